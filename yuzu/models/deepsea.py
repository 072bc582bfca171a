"""DeepSEA, and its successor Beluga."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from yuzu.errors import YuzuError, shown
from yuzu.models.layers import Flatten, Unsqueeze, check_length, check_sizes, seeded


class DeepSEA(torch.nn.Module):
    """DeepSEA, in the variant of the Yuzu paper: `(n, n_inputs, seq_len)` to `(n, 1, 925)` probabilities.

    Parameters
    ----------
    n_inputs : int
        Characters in the alphabet.
    seq_len : int
        Length of the sequences, at least 16.
    random_state : int, optional
        Seed of the weights. Default is 0.

    Raises
    ------
    YuzuError
        If `seq_len` is None or too short, or a size is no positive int.

    Examples
    --------
    >>> import torch
    >>> from yuzu.models import DeepSEA
    >>> DeepSEA(4, seq_len=100).eval()(torch.zeros(2, 4, 100)).shape
    torch.Size([2, 1, 925])

    References
    ----------
    Zhou and Troyanskaya, "Predicting effects of noncoding variants with deep learning-based sequence model",
    Nature Methods 2015.
    """

    def __init__(self, n_inputs: int, seq_len: int | None = None, random_state: int = 0):
        super().__init__()
        check_sizes(n_inputs=n_inputs)
        n_pooled = check_length("DeepSEA", seq_len, 16) // 16
        with seeded(self, random_state):
            self.conv1 = torch.nn.Conv1d(n_inputs, 320, 9, padding=4)
            self.relu1 = torch.nn.ReLU()
            self.mp1 = torch.nn.MaxPool1d(4)
            self.conv2 = torch.nn.Conv1d(320, 480, 9, padding=4)
            self.relu2 = torch.nn.ReLU()
            self.mp2 = torch.nn.MaxPool1d(4)
            self.conv3 = torch.nn.Conv1d(480, 960, 9, padding=4)
            self.relu3 = torch.nn.ReLU()
            self.reshape = Flatten()
            self.fc = torch.nn.Linear(n_pooled * 960, 925)
            self.sigmoid = torch.nn.Sigmoid()
            self.unsqueeze = Unsqueeze(1)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        X = self.mp1(self.relu1(self.conv1(X)))
        X = self.mp2(self.relu2(self.conv2(X)))
        X = self.relu3(self.conv3(X))
        result: torch.Tensor = self.unsqueeze(self.sigmoid(self.fc(self.reshape(X))))
        return result


class Beluga(torch.nn.Module):
    """DeepSEA "Beluga": `(n, n_inputs, seq_len)` to `(n, n_outputs)` probabilities of chromatin features.

    The convolutions are two-dimensional with `(1, 8)` kernels, as published. The nesting follows the
    published definition too, so that parameters have its names: `model.0.0.weight` to `model.1.4.1.bias`.

    Parameters
    ----------
    n_inputs, n_outputs : int, optional
        Characters in the alphabet, chromatin features. Defaults 4 and 2002.
    seq_len : int, optional
        Length of the sequences, at least 310. Default is 2000.
    random_state : int, optional
        Seed of the weights. Default is 0.
    n_filters : sequence of three ints, optional
        Filters in the three pairs of convolutions. Default is (320, 480, 640).
    n_hidden : int, optional
        Units of the hidden dense layer. Default is 2003, which with the other defaults takes 600 MB.

    Raises
    ------
    YuzuError
        If `seq_len` is too short, `n_filters` does not have three items, or a size is no positive int.

    Examples
    --------
    >>> import torch
    >>> from yuzu.models import Beluga
    >>> Beluga(seq_len=400, n_hidden=10).eval()(torch.zeros(2, 4, 400)).shape
    torch.Size([2, 2002])

    References
    ----------
    Zhou et al., "Deep learning sequence-based ab initio prediction of variant effects on expression and
    disease risk", Nature Genetics 2018.
    """

    def __init__(
        self,
        n_inputs: int = 4,
        seq_len: int = 2000,
        n_outputs: int = 2002,
        random_state: int = 0,
        n_filters: Sequence[int] = (320, 480, 640),
        n_hidden: int = 2003,
    ):
        super().__init__()
        if not isinstance(n_filters, Sequence) or len(n_filters) != 3:
            raise YuzuError(f"n_filters: got {shown(n_filters)}, want three ints, one per pair of convolutions")
        a, b, c = n_filters
        check_sizes(
            n_inputs=n_inputs,
            n_outputs=n_outputs,
            n_hidden=n_hidden,
            **{f"n_filters[{i}]": size for i, size in enumerate(n_filters)},
        )
        # Each pair of unpadded convolutions takes 14 positions, each of the two pools leaves a quarter.
        n_pooled = ((check_length("Beluga", seq_len, 310) - 14) // 4 - 14) // 4 - 14
        with seeded(self, random_state):
            convs = [
                *self._pair(n_inputs, a),
                torch.nn.Dropout(0.2),
                torch.nn.MaxPool2d((1, 4)),
                *self._pair(a, b),
                torch.nn.Dropout(0.2),
                torch.nn.MaxPool2d((1, 4)),
                *self._pair(b, c),
            ]
            dense = [
                torch.nn.Dropout(0.5),
                torch.nn.Flatten(1),
                torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(n_pooled * c, n_hidden)),
                torch.nn.ReLU(),
                torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(n_hidden, n_outputs)),
            ]
            self.model = torch.nn.Sequential(
                torch.nn.Sequential(*convs), torch.nn.Sequential(*dense), torch.nn.Sigmoid()
            )

    @staticmethod
    def _pair(n_in: int, n_out: int) -> list[torch.nn.Module]:
        return [
            torch.nn.Conv2d(n_in, n_out, (1, 8)),
            torch.nn.ReLU(),
            torch.nn.Conv2d(n_out, n_out, (1, 8)),
            torch.nn.ReLU(),
        ]

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.model(X.unsqueeze(2))
        return result
