"""The option ``precision`` of `precompute`."""

import copy

import pytest
import torch

from tests.oracle import assert_same, errors, oracle
from tests.small_models import sequences
from tests.store.models import pearson
from yuzu import precompute, yuzu_ism


@pytest.mark.parametrize("way", ["windows", "banded", "cyclic"])
def test_high_is_highest_on_a_cpu(several, captured_once, way):
    X = sequences(2, 40, seed=3)
    highest, high = (precompute(several, 40, conv=way, precision=p, device="cpu") for p in ("highest", "high"))
    assert_same(
        yuzu_ism(several, X, high, output="delta", device="cpu"),
        yuzu_ism(several, X, highest, output="delta", device="cpu"),
    )


@pytest.mark.parametrize("way", ["windows", "banded", "blocks", "whole", "fold", "cyclic"])
def test_medium(several, captured_once, device, way):
    X = sequences(2, 40, seed=3)
    precomputation = precompute(several, 40, conv=way, precision="medium", device=device)
    for output in ("l2", "delta"):
        result, truth = yuzu_ism(several, X, precomputation, output=output, device=device), oracle(several, X)[output]
        assert result.dtype == torch.float32 and bool((result[X.bool()] == 0).all())
        assert pearson(result, truth) > 0.999
        assert errors(result, truth)[0] < 5e-2 and errors(result, truth)[1] < 5e-2


def test_high_stays_accurate(several, captured_once, device):
    X = sequences(2, 40, seed=3)
    precomputation = precompute(several, 40, precision="high", device=device)
    relative, largest = errors(
        yuzu_ism(several, X, precomputation, output="delta", device=device), oracle(several, X)["delta"]
    )
    assert relative < 5e-3 and largest < 5e-3


def test_medium_keeps_the_reference_in_float32(several, captured_once):
    """Reference and non-linearities stay in float32, so the reference prediction is as accurate as ever."""
    X = sequences(1, 40, seed=3)
    prediction = yuzu_ism(several, X, precompute(several, 40, precision="medium"), output="prediction")
    with torch.no_grad():
        y = copy.deepcopy(several).double()(X.double())[0]
    assert errors(prediction[0][X[0].bool()], y.expand(40, 3))[1] < 1e-6
