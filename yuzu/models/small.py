"""Fully convolutional models: one layer, three, and BPNet's dilated ones."""

from __future__ import annotations

import torch

from yuzu.models.layers import check_sizes, seeded


class OneLayer(torch.nn.Module):
    """A single convolution: `(n, n_inputs, L)` to `(n, n_filters, L)` (`L + 1` for an even `kernel_size`).

    Parameters
    ----------
    n_inputs : int
        Characters in the alphabet.
    n_filters, kernel_size : int, optional
        Defaults 64 and 7.
    seq_len : int or None, optional
        Not used. All models take it, so that one call builds any of them.
    random_state : int, optional
        Seed of the weights. Default is 0.

    Examples
    --------
    >>> import torch
    >>> from yuzu.models import OneLayer
    >>> OneLayer(4).eval()(torch.zeros(2, 4, 50)).shape
    torch.Size([2, 64, 50])
    """

    def __init__(
        self,
        n_inputs: int,
        n_filters: int = 64,
        kernel_size: int = 7,
        seq_len: int | None = None,
        random_state: int = 0,
    ):
        super().__init__()
        check_sizes(n_inputs=n_inputs, n_filters=n_filters, kernel_size=kernel_size)
        with seeded(self, random_state):
            self.conv = torch.nn.Conv1d(n_inputs, n_filters, kernel_size, padding=kernel_size // 2)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv(X)
        return result


class ToyNet(torch.nn.Module):
    """Three convolutions with ReLUs between: `(n, n_inputs, L)` to `(n, 2, L)` (odd `kernel_size`).

    The parameters are those of `OneLayer`. `n_filters`, by default 32, is for the first two convolutions.

    Examples
    --------
    >>> import torch
    >>> from yuzu.models import ToyNet
    >>> ToyNet(4).eval()(torch.zeros(2, 4, 50)).shape
    torch.Size([2, 2, 50])
    """

    def __init__(
        self,
        n_inputs: int,
        n_filters: int = 32,
        kernel_size: int = 7,
        seq_len: int | None = None,
        random_state: int = 0,
    ):
        super().__init__()
        check_sizes(n_inputs=n_inputs, n_filters=n_filters, kernel_size=kernel_size)
        padding = kernel_size // 2
        with seeded(self, random_state):
            self.conv1 = torch.nn.Conv1d(n_inputs, n_filters, kernel_size, padding=padding)
            self.relu1 = torch.nn.ReLU()
            self.conv2 = torch.nn.Conv1d(n_filters, n_filters, kernel_size, padding=padding)
            self.relu2 = torch.nn.ReLU()
            self.conv3 = torch.nn.Conv1d(n_filters, 2, kernel_size, padding=padding)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv3(self.relu2(self.conv2(self.relu1(self.conv1(X)))))
        return result


class BPNet(torch.nn.Module):
    """BPNet's dilated convolutions without its residual sums: `(n, n_inputs, L)` to a profile `(n, 1, L)`.

    Parameters
    ----------
    n_inputs : int
        Characters in the alphabet.
    n_filters : int, optional
        Filters in every convolution but the last. Default is 64.
    kernel_size : int, optional
        Width of the first convolution; an even one gives `L + 1` outputs. Default is 21.
    seq_len : int or None, optional
        Not used. All models take it, so that one call builds any of them.
    n_layers : int, optional
        Number of the first convolution and the dilated ones together. Dilated convolution `i = 1 .. n_layers - 1`
        has width 3 and dilation `2 ** i`. The default, 4, is the network of `yuzu-ism` 0.0.1, which ignored this
        argument and `kernel_size`.
    random_state : int, optional
        Seed of the weights. Default is 0.

    Examples
    --------
    >>> import torch
    >>> from yuzu.models import BPNet
    >>> BPNet(4).eval()(torch.zeros(2, 4, 100)).shape
    torch.Size([2, 1, 100])

    References
    ----------
    Avsec et al., "Base-resolution models of transcription-factor binding reveal soft motif syntax",
    Nature Genetics 2021.
    """

    def __init__(
        self,
        n_inputs: int,
        n_filters: int = 64,
        kernel_size: int = 21,
        seq_len: int | None = None,
        n_layers: int = 4,
        random_state: int = 0,
    ):
        super().__init__()
        check_sizes(n_inputs=n_inputs, n_filters=n_filters, kernel_size=kernel_size, n_layers=n_layers)
        self.n_layers = n_layers
        with seeded(self, random_state):
            self.iconv = torch.nn.Conv1d(n_inputs, n_filters, kernel_size, padding=kernel_size // 2)
            self.irelu = torch.nn.ReLU()
            for i in range(1, n_layers):
                dconv = torch.nn.Conv1d(n_filters, n_filters, 3, padding=2**i, dilation=2**i)
                self.add_module(f"dconv{i}", dconv)
                self.add_module(f"drelu{i}", torch.nn.ReLU())
            self.fconv = torch.nn.Conv1d(n_filters, 1, 75, padding=37)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        X = self.irelu(self.iconv(X))
        for i in range(1, self.n_layers):
            X = getattr(self, f"drelu{i}")(getattr(self, f"dconv{i}")(X))
        result: torch.Tensor = self.fconv(X)
        return result
