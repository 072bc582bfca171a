"""Numbers that are none, or become none in the model's dtype, and arrays and devices of unusual kinds."""

import numpy as np
import pytest
import torch
from conftest import Net, assert_close, sequences
from torch import nn

import yuzu
from yuzu import YuzuError
from yuzu.product import apply_pairwise

L = 30
GOOD = sequences(2, L)


class Attends(nn.Module):
    """Attention under a mask that is added before the softmax."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.query, self.dense = nn.Conv1d(4, 8, 5, padding=2), nn.Conv1d(8, 8, 1), nn.Linear(8, 2)

    def forward(self, x, mask):
        y = self.conv(x).relu()
        weights = (y.mT @ self.query(y) + mask[:, None]).softmax(2)
        return self.dense((y @ weights.mT).mean(2))


class NeverRun(Net):
    def forward(self, X, *args):
        raise AssertionError("the model was run")


CALLS = {
    "yuzu_ism": yuzu.yuzu_ism,
    "naive_ism": yuzu.naive_ism,
    "check": yuzu.check,
    "hybrid_ism": yuzu.hybrid_ism,
    "saturation_mutagenesis": yuzu.saturation_mutagenesis,
    "predict": yuzu.predict,
    "takegrad": lambda model, X, **rest: yuzu.taylor.takegrad(X, model, **rest),
    "precompute": lambda model, X, **rest: yuzu.precompute(model, X.shape[2], **rest),
    "apply_pairwise": lambda model, X, args: apply_pairwise(yuzu.yuzu_ism, model, X, args),
}


@pytest.mark.parametrize("as_numpy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_nan_in_args(call, dtype, as_numpy):
    good, bad = torch.zeros(2, 3), torch.zeros(2, 3, dtype=dtype)
    bad[1, 2] = float("nan")
    if as_numpy and dtype != torch.bfloat16:
        bad = bad.numpy()
    with pytest.raises(YuzuError, match=r"args\[1\] must hold numbers, got NaN"):
        CALLS[call](NeverRun(), GOOD, args=(good, bad))


def test_nan_in_args_that_are_one_row_repeated():
    with pytest.raises(YuzuError, match=r"args\[0\].*NaN"):
        yuzu.yuzu_ism(NeverRun(), GOOD, args=(torch.tensor([[0.0, float("nan")]]).expand(2, 2),))


def test_infinite_masks_in_args_are_exact():
    model = Attends()
    mask = torch.zeros(2, L)
    mask[0, 20:] = mask[1, 3] = -torch.inf
    wanted = yuzu.naive_ism(Attends().double(), GOOD.double(), args=(mask,), output="delta")
    assert bool(torch.isfinite(wanted).all()) and wanted.abs().max() > 1e-3
    assert_close(yuzu.naive_ism(model, GOOD, args=(mask,), output="delta").double(), wanted, 1e-4)
    assert_close(yuzu.yuzu_ism(model, GOOD, args=(mask,), output="delta").double(), wanted, 1e-4)
    made = yuzu.precompute(model, L, args=(mask,))
    assert_close(yuzu.yuzu_ism(model, GOOD, made, args=(mask,), output="delta").double(), wanted, 1e-4)
