"""A trained model and real sequences, which come with yuzu.

The model tells binding sites of CTCF from those of PU.1. `tutorials/train_ctcf_model.py` made both files in
`yuzu/data`, from public ChIP-seq peaks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from yuzu.errors import YuzuError, one_line
from yuzu.sequence import one_hot_encode, read_fasta

__all__ = ["CTCFClassifier", "CTCFPeaks", "load_ctcf_model", "load_ctcf_peaks"]

MODEL_FILE = "ctcf_classifier.safetensors"
PEAKS_FILE = "ctcf_peaks.fa"


class CTCFClassifier(torch.nn.Module):
    """A small convolutional classifier: CTCF against PU.1 binding sites.

    It has two convolutions with batch normalization and ReLU, the first wide enough for the CTCF motif; max pooling
    between them; the maximum over positions after them; and a linear layer. It takes one-hot DNA of shape `(n, 4, L)`
    with L of at least 5, and returns the logit of a CTCF site against a PU.1 site, shape `(n, 1)`.

    Parameters
    ----------
    n_filters : int
        The filters of each convolution. Default: 64, the size of the weights that ship with yuzu.

    Examples
    --------
    >>> import torch
    >>> CTCFClassifier().eval()(torch.zeros(2, 4, 100)).shape
    torch.Size([2, 1])
    """

    def __init__(self, n_filters: int = 64) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv1d(4, n_filters, kernel_size=19, padding=9, bias=False)
        self.norm1 = torch.nn.BatchNorm1d(n_filters)
        self.pool = torch.nn.MaxPool1d(5)
        self.dropout = torch.nn.Dropout(0.1)
        self.conv2 = torch.nn.Conv1d(n_filters, n_filters, kernel_size=5, padding=2, bias=False)
        self.norm2 = torch.nn.BatchNorm1d(n_filters)
        self.head = torch.nn.Linear(n_filters, 1)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        hidden = self.pool(torch.relu(self.norm1(self.conv1(X))))
        hidden = torch.relu(self.norm2(self.conv2(self.dropout(hidden))))
        logits: torch.Tensor = self.head(hidden.amax(dim=-1))
        return logits


class CTCFPeaks(NamedTuple):
    """The peaks that `load_ctcf_peaks` returns, in the order of the file: CTCF first, then PU.1.

    Attributes
    ----------
    names : list of str
        Coordinates, such as "chr1:17036408-17036508".
    sequences : list of str
        The DNA in upper case, 100 characters each.
    labels : torch.Tensor, shape (n,), int64
        1 for a CTCF peak, 0 for a PU.1 peak.
    X : torch.Tensor, shape (n, 4, 100), float32
        The sequences, one-hot.
    """

    names: list[str]
    sequences: list[str]
    labels: torch.Tensor
    X: torch.Tensor


def load_ctcf_model() -> CTCFClassifier:
    """Load the trained classifier, on the CPU and in evaluation mode.

    Returns
    -------
    CTCFClassifier
        The model with its trained weights, float32.

    Examples
    --------
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> load_ctcf_model()(load_ctcf_peaks().X).shape
    torch.Size([40, 1])
    """
    model = CTCFClassifier()
    with _shipped(MODEL_FILE) as path:
        model.load_state_dict(load_file(path))
    return model.eval()


def load_ctcf_peaks() -> CTCFPeaks:
    """Load forty real peaks of a chromosome that the classifier was not trained on: 30 of CTCF, 10 of PU.1.

    They were drawn at random from the held-out peaks, and not chosen by the classifier's result.

    Returns
    -------
    CTCFPeaks
        The named tuple `(names, sequences, labels, X)`.

    Examples
    --------
    >>> from yuzu.examples import load_ctcf_peaks
    >>> peaks = load_ctcf_peaks()
    >>> peaks.names[0], tuple(peaks.X.shape), int(peaks.labels.sum())
    ('chr1:26027254-26027354', (40, 4, 100), 30)
    """
    with _shipped(PEAKS_FILE) as path:
        headers, sequences = read_fasta(path)
    names, factors = zip(*(header.split() for header in headers), strict=True)
    labels = torch.tensor([int(factor == "CTCF") for factor in factors])
    sequences = [sequence.upper() for sequence in sequences]
    return CTCFPeaks(list(names), sequences, labels, one_hot_encode(sequences))


@contextlib.contextmanager
def _shipped(name: str) -> Iterator[Path]:
    """The path of a file that comes with yuzu; an error if it is missing or damaged."""
    try:
        with as_file(files("yuzu") / "data" / name) as path:
            yield path
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise YuzuError(
            f"{name}, which ships with yuzu, cannot be read ({one_line(error)}); install yuzu anew"
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)
