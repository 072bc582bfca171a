"""Basset, and its factorized form."""

from __future__ import annotations

import torch

from yuzu.models.layers import Flatten, Unsqueeze, check_length, check_sizes, seeded


class _BassetLayers(torch.nn.Module):
    """Layers of both Bassets, under their published names."""

    def _add_conv(self, name: str, n_in: int, n_out: int, kernel_size: int) -> None:
        self.add_module(f"conv{name}", torch.nn.Conv1d(n_in, n_out, kernel_size, padding=kernel_size // 2))
        self.add_module(f"bn{name}", torch.nn.BatchNorm1d(n_out))
        self.add_module(f"relu{name}", torch.nn.ReLU())

    def _apply_layers(self, X: torch.Tensor, *names: str) -> torch.Tensor:
        for name in names:
            X = getattr(self, name)(X)
        return X

    def _add_dense(self, n_pooled: int, n_outputs: int) -> None:
        self.fc1 = torch.nn.Linear(n_pooled * 200, 1000)
        self.relu4 = torch.nn.ReLU()
        self.bn4 = torch.nn.BatchNorm1d(1000)
        self.fc2 = torch.nn.Linear(1000, 1000)
        self.relu5 = torch.nn.ReLU()
        self.bn5 = torch.nn.BatchNorm1d(1000)
        self.fc3 = torch.nn.Linear(1000, n_outputs)
        self.unsqueeze = Unsqueeze(1)

    def _apply_dense(self, X: torch.Tensor) -> torch.Tensor:
        return self._apply_layers(X, "fc1", "relu4", "bn4", "fc2", "relu5", "bn5", "fc3", "unsqueeze")


class Basset(_BassetLayers):
    """Basset: `(n, n_inputs, seq_len)` to `(n, 1, 164)` logits of accessibility, one per cell type.

    Parameters and errors as for `DeepSEA`; `seq_len` is at least 48.

    Examples
    --------
    >>> import torch
    >>> from yuzu.models import Basset
    >>> Basset(4, seq_len=100).eval()(torch.zeros(2, 4, 100)).shape
    torch.Size([2, 1, 164])

    References
    ----------
    Kelley, Snoek and Rinn, "Basset: learning the regulatory code of the accessible genome with deep
    convolutional neural networks", Genome Research 2016.
    """

    def __init__(self, n_inputs: int, seq_len: int | None = None, random_state: int = 0):
        super().__init__()
        check_sizes(n_inputs=n_inputs)
        n_pooled = check_length("Basset", seq_len, 48) // 48
        with seeded(self, random_state):
            self._add_conv("1", n_inputs, 300, 19)
            self.maxpool1 = torch.nn.MaxPool1d(3)
            self._add_conv("2", 300, 200, 11)
            self.maxpool2 = torch.nn.MaxPool1d(4)
            self._add_conv("3", 200, 200, 7)
            self.maxpool3 = torch.nn.MaxPool1d(4)
            self.reshape = Flatten()
            self._add_dense(n_pooled, 164)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        X = self._apply_layers(X, "conv1", "relu1", "bn1", "maxpool1")
        X = self._apply_layers(X, "conv2", "relu2", "bn2", "maxpool2")
        X = self._apply_layers(X, "conv3", "relu3", "bn3", "maxpool3")
        return self._apply_dense(self.reshape(X))


class FactorizedBasset(_BassetLayers):
    """Basset with its wide convolutions split into narrow ones: `(n, n_inputs, seq_len)` to `(n, 1, 1)`.

    Parameters and errors as for `DeepSEA`; `seq_len` is at least 48.

    Examples
    --------
    >>> import torch
    >>> from yuzu.models import FactorizedBasset
    >>> FactorizedBasset(4, seq_len=100).eval()(torch.zeros(2, 4, 100)).shape
    torch.Size([2, 1, 1])

    References
    ----------
    Wnuk et al., "Predicting DNA accessibility in the pan-cancer tumor genome using RNA-seq, WGS, and deep
    learning", bioRxiv 2017.
    """

    def __init__(self, n_inputs: int, seq_len: int | None = None, random_state: int = 0):
        super().__init__()
        check_sizes(n_inputs=n_inputs)
        n_pooled = check_length("FactorizedBasset", seq_len, 48) // 48
        with seeded(self, random_state):
            self._add_conv("11", n_inputs, 48, 3)
            self._add_conv("12", 48, 64, 3)
            self._add_conv("13", 64, 100, 3)
            self._add_conv("14", 100, 150, 7)
            self._add_conv("15", 150, 300, 7)
            self.mp1 = torch.nn.MaxPool1d(3)
            self._add_conv("21", 300, 200, 7)
            self._add_conv("22", 200, 200, 3)
            self._add_conv("23", 200, 200, 3)
            self.mp2 = torch.nn.MaxPool1d(4)
            self._add_conv("3", 200, 200, 7)
            self.mp3 = torch.nn.MaxPool1d(4)
            self.flatten = Flatten()
            self._add_dense(n_pooled, 1)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        for name in ("11", "12", "13", "14", "15", "mp1", "21", "22", "23", "mp2", "3", "mp3"):
            layers = [name] if name.startswith("mp") else [f"conv{name}", f"bn{name}", f"relu{name}"]
            X = self._apply_layers(X, *layers)
        return self._apply_dense(self.flatten(X))
