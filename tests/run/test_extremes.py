"""Underflow, masks of huge numbers and expanded tensors: as accurate as naive ISM in float32."""

import copy

import pytest
import torch

import yuzu
from tests.run.headed import Headed, sequences
from yuzu.check import errors_against

L = 30


def masked(value):
    def head(h, x):
        weight = h[:, :1].masked_fill(x.sum(1, keepdim=True) == 0, value)
        return (h * torch.softmax(weight, -1)).sum(-1)

    return head

HEADS = {
    "exp that underflows": lambda h, x: torch.exp(-((h * 20) ** 2)).sum(2),
    "log softmax, exp": lambda h, x: (h * 200).log_softmax(1).exp().sum(2),
    "mask of -1e9": masked(-1e9),
    "mask of the least number": masked(torch.finfo(torch.float32).min),
    "mask of -inf": masked(float("-inf")),
    "expand, relu": lambda h, x: torch.relu(h.sum(1, keepdim=True).expand(-1, 6, -1)).sum(2),
    "both strands and zeros like them": lambda h, x: _strands(h),
}


def _strands(h):
    both = torch.cat([h, h.flip(2)], 0)
    zeros = torch.zeros_like(both)
    first, second = (both * 2 + zeros).chunk(2, 0)
    return first.sum(2) + second.amax(2)


@pytest.mark.filterwarnings("ignore::yuzu.YuzuWarning")
@pytest.mark.parametrize("options", [{}, {"ranges": [(i, i + 3) for i in range(0, L - 3, 2)]}], ids=["substitutions", "blanked"])
@pytest.mark.parametrize("name", HEADS)
def test_as_accurate_as_naive_float32(name, options):
    torch.manual_seed(0)
    model, X = Headed(HEADS[name]), sequences()
    truth = yuzu.naive_ism(copy.deepcopy(model).double(), X.double(), output="delta", **options)
    naive = yuzu.naive_ism(model, X, output="delta", **options)
    ours = yuzu.yuzu_ism(model, X, output="delta", **options)
    assert bool(torch.isfinite(ours).all()) or not bool(torch.isfinite(truth).all())
    error, naive_error = errors_against(ours, truth)[0], errors_against(naive, truth)[0]
    assert error <= max(1e-5, naive_error)
