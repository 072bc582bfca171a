"""The formulas of differences, on numbers of every size."""

from __future__ import annotations

import pytest
import torch

from yuzu._engine.handlers.formulas import FORMULAS

PLAIN = {"aten.sigmoid": torch.sigmoid, "aten.tanh": torch.tanh}
# of the changes and of the values; 60 is where the formula changes
RANGES = {"small": (1e-4, 3.0), "near": (1.0, 3.0), "far": (20.0, 20.0), "at the edge": (59.9, 59.9), "beyond": (200.0, 200.0)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", RANGES)
@pytest.mark.parametrize("op", PLAIN)
def test_a_saturating_function(op: str, size: str, dtype: torch.dtype, device: str) -> None:
    moved, value = RANGES[size]
    generator = torch.Generator().manual_seed(0)
    d, before = ((2 * torch.rand(2000, generator=generator) - 1) * s for s in (moved, value))
    d, before = d.to(device, dtype), before.to(device, dtype)
    after = PLAIN[op](before)
    found = FORMULAS[op](d, before, after)
    assert found.dtype == dtype and found.isfinite().all()
    wide, wide_before = d.double(), before.double()
    truth = PLAIN[op](wide_before + wide) - PLAIN[op](wide_before)
    error = torch.linalg.vector_norm(found.double() - truth) / torch.linalg.vector_norm(truth)
    assert error < 8 * torch.finfo(dtype).eps or dtype == torch.float64 and error < 1e-11  # the truth cancels, too


@pytest.mark.parametrize("op", PLAIN)
def test_numbers_that_are_none(op: str, device: str) -> None:
    d = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.5], device=device)
    before = torch.zeros(4, device=device)
    found, plain = FORMULAS[op](d, before, PLAIN[op](before)), PLAIN[op]
    assert found[0].isnan()
    assert torch.allclose(found[1:], plain(d[1:]) - plain(before[1:]))
    assert FORMULAS[op](d[:0], before[:0], before[:0]).shape == (0,)
