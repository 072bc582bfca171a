"""Models and fixtures that tests of the public contract share."""

import collections
import functools

import pytest
import torch

import yuzu
from tests.small_models import randomized

L = 30


@pytest.fixture(params=["yuzu_ism", "naive_ism"])
def ism(request):
    """Everything that both functions promise is asked of both."""
    return getattr(yuzu, request.param)


class Container(torch.nn.Module):
    """Returns what ``pack`` makes of a convolution, a dense output and one number a sequence."""

    def __init__(self, pack):
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 5, 5, padding=2)
        self.fc = torch.nn.Linear(5 * L, 3)
        self.pack = pack

    def forward(self, X):
        X = torch.tanh(self.conv(X))
        dense = self.fc(X.flatten(1))
        return self.pack(X, dense, dense.exp().sum(1))

Named = collections.namedtuple("Named", ["profile", "dense"])

CONTAINERS = {
    "tuple": lambda a, b, c: (a, b),
    "tuple of one": lambda a, b, c: (b,),
    "list": lambda a, b, c: [b, a, c],
    "dict": lambda a, b, c: {"z": a, "a": b},
    "nested": lambda a, b, c: {"heads": (a, [b, {"scalar": c}]), "again": b},
    "namedtuple": lambda a, b, c: Named(a, b),
    "the same tensor twice": lambda a, b, c: (b, b),
    "scalar": lambda a, b, c: c,
    "profile": lambda a, b, c: a,
}


@pytest.fixture(scope="module")
def containers():
    return {name: randomized(Container(pack), seed=3).eval() for name, pack in CONTAINERS.items()}


def with_columns(X, columns):
    X = X.clone()
    for (i, p), column in columns.items():
        X[i, :, p] = torch.as_tensor(column, dtype=X.dtype)
    return X


class WithArgs(torch.nn.Module):
    """A scale per sequence, a control track and a cell type (an integer)."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 5, 5, padding=2)
        self.out = torch.nn.Conv1d(6, 2, 3, padding=1)
        self.cells = torch.nn.Embedding(7, 2)

    def forward(self, X, scale, control=None, cell=None):
        X = torch.relu(self.conv(X)) * scale[:, :, None]
        if control is None:
            control = torch.zeros_like(X[:, :1])
        y = torch.tanh(self.out(torch.cat([X, control], 1)))
        if cell is not None:
            y = y * self.cells(cell)[:, :, None]
        return y.sum(2), y


@functools.cache
def with_args():
    return randomized(WithArgs())
