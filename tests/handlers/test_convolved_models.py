"""Strides, paddings and missing biases of convolutions in whole models."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.exactness import assert_exact, assert_gains
from tests.oracle import assert_close, oracle
from tests.small_models import randomized, sequences
from yuzu import precompute, yuzu_ism

L = 36

FLOATS = (torch.float32, torch.float64)


def test_no_bias(device):
    model = nn.Sequential(
        nn.Conv1d(4, 6, 5, padding=2, bias=False),
        nn.BatchNorm1d(6, affine=False),
        nn.ReLU(),
        nn.Conv1d(6, 4, 3, dilation=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * (L - 4), 5, bias=False),
        nn.ReLU(),
        nn.Linear(5, 2, bias=False),
    )
    assert_gains(assert_exact(randomized(model).eval(), sequences(2, L), device, FLOATS))


@pytest.mark.parametrize(
    "kernel, stride, padding, dilation",
    [(5, 2, 2, 1), (4, 4, 0, 1), (3, 2, 1, 3), (2, 3, 0, 1), (1, 2, 0, 1), (7, 5, 6, 1)],
)
def test_strided_convolutions(device, kernel, stride, padding, dilation):
    class Strided(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv1d(4, 4, kernel, stride=stride, padding=padding, dilation=dilation)
            self.second = nn.Conv1d(4, 3, 3, stride=2, padding=1)
            self.third = nn.Conv1d(3, 2, 2, padding=1)

        def forward(self, X):
            return self.third(torch.relu(self.second(torch.relu(self.first(X)))))

    assert_gains(assert_exact(randomized(Strided()), sequences(2, L), device))

PADDINGS = {
    "zeros": dict(padding=4),
    "same": dict(padding="same"),
    "wider than the kernel": dict(padding=11),
    "dilated": dict(padding=8, dilation=2),
    "strided": dict(padding=5, stride=2),
    "reflect": dict(padding=4, padding_mode="reflect"),
    "replicate": dict(padding=4, padding_mode="replicate"),
    "circular": dict(padding=4, padding_mode="circular"),
}

CASES = [(name, "windows") for name in PADDINGS] + [("zeros", "banded"), ("same", "fold"), ("strided", "cyclic")]


@pytest.mark.parametrize("name, conv", CASES)
def test_padding_is_not_a_reference_value(name, conv):
    """With biases, a layer's values just behind the ends are not zero; the next layer's padding is. In float64."""

    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv1d(4, 3, 9, **PADDINGS[name])
            self.second = nn.Conv1d(3, 3, 7, padding=6)
            self.third = nn.Conv1d(3, 2, 5, padding=2)

        def forward(self, X):
            X = torch.sigmoid(self.first(X))  # sigmoid(0) is not 0 either
            X = F.softplus(self.second(X)) + 1
            return self.third(F.avg_pool1d(X, 4, stride=2, padding=2))

    model, X = randomized(Padded()).double(), sequences(2, L)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a padding mode may be run naively
        precomputation = precompute(model, L, conv=conv)
    result, truth = yuzu_ism(model, X, precomputation, output="delta"), oracle(model, X)["delta"]
    for positions in (slice(0, 6), slice(-6, None), slice(None)):
        assert_close(result[:, :, positions], truth[:, :, positions], 1e-12, 1e-12)


@pytest.mark.parametrize("pad", [(3, 2), (0, 5), (-3, -2), (-4, 6), (5, 0)], ids=str)
def test_explicit_padding_and_cropping(pad):
    class Padding(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv1d(4, 4, 5)
            self.second = nn.Conv1d(4, 3, 3)

        def forward(self, X):
            X = F.pad(torch.sigmoid(self.first(F.pad(X, pad, value=0.5))), pad, value=-1.0)
            return self.second(X).square()

    assert_exact(randomized(Padding()), sequences(2, L))


def test_a_sequence_shorter_than_a_kernel_with_padding():
    model = nn.Sequential(nn.Conv1d(4, 3, 9, padding=8), nn.Sigmoid(), nn.Conv1d(3, 2, 9, padding=4))
    for length in (1, 5):
        assert_exact(randomized(model), sequences(2, length))
