"""Comparison of all three outputs with brute force."""

import copy
import warnings

import torch

from tests.oracle import assert_right
from yuzu import precompute, yuzu_ism

FLOATS = (torch.float32, torch.float64)


def assert_exact(model, X, device="cpu", dtypes=FLOATS[1:], quiet=True, one_by_one=False):
    """All three outputs are right, by default in float64, and without a warning where none is expected."""
    for dtype in dtypes:
        model = copy.deepcopy(model).to(dtype)
        with warnings.catch_warnings():
            if quiet:
                warnings.simplefilter("error")
            precomputation = precompute(model, X.shape[2], X.shape[1], device=device)
        for output in ("delta", "l2", "prediction"):
            result = yuzu_ism(model, X, precomputation, output=output, device=device)
            assert_right(result, model, X, output=output, device=device, one_by_one=one_by_one)
    return precomputation


def assert_gains(precomputation):
    """No layer runs naively: what the engine is for."""
    assert "naive" not in precomputation.summary().lower(), precomputation.summary()
