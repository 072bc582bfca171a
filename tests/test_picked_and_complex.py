"""Positions that other inputs name, medians over members, and complex convolutions: end to end, against naive ISM in
float64, and never naively.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu

L = 40


class Net(nn.Module):
    """A convolution, a function that is given the module, and a dense layer."""

    def __init__(self, function, size=6, complex_weight=False):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.out = nn.Conv1d(4, 6, 5, padding=2), nn.Linear(size, 2)
            if complex_weight:
                self.weight = nn.Parameter(torch.randn(6, 6, 3, dtype=torch.complex64))
        self.function = function

    def forward(self, x, *args):
        return self.out(self.function(self, F.gelu(self.conv(x)), *args))


def rows(x):
    return torch.arange(len(x), device=x.device)


PLACES = {
    "gather": lambda m, x, p: x.gather(2, p[:, None, None].expand(-1, 6, 1)).squeeze(2),
    "take_along_dim": lambda m, x, p: torch.take_along_dim(x, p[:, None, None], 2).squeeze(2),
    "row and position": lambda m, x, p: x[rows(x), :, p],
    "from behind": lambda m, x, p: x[rows(x), :, -1 - p],
    "in n,L,C": lambda m, x, p: x.transpose(1, 2)[rows(x), p],
    "mean of a span": lambda m, x, p: x[rows(x)[:, None], :, (p // 2)[:, None] + torch.arange(4)].mean(1),
}


def sequences(n):
    letters = torch.randint(4, (n, L), generator=torch.Generator().manual_seed(1))
    X = torch.eye(4)[letters].transpose(1, 2).contiguous()
    X[0, :, 7] = 0  # N
    return X


def assert_exact(model, X, args=None, **options):
    plan = yuzu.precompute(model, L, args=args, device="cpu")
    assert "naive" not in [layer.handler for layer in plan.layers], plan.summary()
    found = yuzu.yuzu_ism(model, X, plan, args=args, output="delta", device="cpu", **options)
    truth = yuzu.naive_ism(copy.deepcopy(model).double(), X.double(), args=args, output="delta", device="cpu", **options)
    found, truth = torch.as_tensor(found).double(), torch.as_tensor(truth).double()
    assert truth.abs().max() > 0
    assert float((found - truth).norm() / truth.norm()) < 1e-5


@pytest.mark.parametrize("name", PLACES)
def test_a_position_that_another_input_names(name):
    model, X = Net(PLACES[name]).eval(), sequences(4)
    place = torch.tensor([0, L - 1, 17, 7])  # both ends, the middle, and an N
    assert_exact(model, X, (place,))


@pytest.mark.parametrize("options", [{"start": 3, "end": 29}, {"batch_size": 7}], ids=str)
def test_a_position_in_a_range_and_in_small_chunks(options):
    assert_exact(Net(PLACES["row and position"]).eval(), sequences(3), (torch.tensor([5, 28, 29]),), **options)


MEMBERS = {
    "median": lambda s: s.median(0).values,
    "quantile": lambda s: s.quantile(0.25, dim=0),
    "trimmed": lambda s: s.sort(0).values[1:-1].mean(0),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_members_that_are_ranked(name):
    def function(m, x):
        return MEMBERS[name](torch.stack([x, x.tanh(), 2 * x, x.flip(1)])).mean(2)

    assert_exact(Net(function).eval(), sequences(2))


@pytest.mark.parametrize("options", [{}, {"padding": 2, "dilation": 2}, {"stride": 2}], ids=str)
def test_a_convolution_with_complex_weights(options):
    def function(m, x):
        weight = m.weight.to(torch.complex128 if x.dtype == torch.float64 else torch.complex64)
        return F.conv1d(x.to(weight.dtype), weight, **options).abs().mean(2)

    assert_exact(Net(function, complex_weight=True).eval(), sequences(2))
