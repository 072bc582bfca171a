"""Layers and checks that the example models share."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from yuzu.errors import YuzuError, shown


@contextmanager
def seeded(module: torch.nn.Module, random_state: int) -> Iterator[None]:
    """Draw the weights made inside from `random_state`, on the CPU; then move `module` to the default device.

    Only the CPU's generator is seeded: `torch.manual_seed` would also seed accelerators, whose state `fork_rng` does
    not restore here. The weights are then the same on every default device.
    """
    device = torch.empty(0).device
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(random_state)
        yield
    module.to(device)


def check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        try:
            good = operator.index(value) >= 1
        except TypeError:
            good = False
        if not good:
            raise YuzuError(f"{name}: got {shown(value)}, want an int of at least 1")


def check_length(model: str, seq_len: int | None, shortest: int) -> int:
    """Check that at least one position is left before the dense layers, and return `seq_len`."""
    wanted = f"want the length of the sequences as an int of at least {shortest}"
    if seq_len is None:
        raise YuzuError(f"seq_len: got None, but the dense layers of {model} depend on it; {wanted}")
    check_sizes(seq_len=seq_len)
    if seq_len < shortest:
        raise YuzuError(f"seq_len: got {seq_len}, which the pooling of {model} reduces to nothing; {wanted}")
    return seq_len


class Flatten(torch.nn.Module):
    """Flatten `(n, C, L)` to `(n, L * C)`, position after position (`torch.nn.Flatten` goes by channel).

    Examples
    --------
    >>> import torch
    >>> from yuzu.models import Flatten
    >>> Flatten().eval()(torch.zeros(2, 4, 50)).shape
    torch.Size([2, 200])
    """

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return X.permute(0, 2, 1).flatten(1)


class Unsqueeze(torch.nn.Module):
    """Insert an axis of size 1 at `dim`.

    Examples
    --------
    >>> import torch
    >>> from yuzu.models import Unsqueeze
    >>> Unsqueeze(1).eval()(torch.zeros(2, 50)).shape
    torch.Size([2, 1, 50])
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return X.unsqueeze(self.dim)
