"""Windows that are remembered are bounded and counted."""

import gc
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

import yuzu
from tests.small_models import sequences


def test_windows_that_are_remembered_are_bounded(monkeypatch):
    """Sequences with an N here and there have chunks of their own, each with index tables."""
    layers = [m for i in range(1, 5) for m in (nn.Conv1d(6, 6, 3, padding=2**i, dilation=2**i), nn.ReLU())]
    model = nn.Sequential(nn.Conv1d(4, 6, 9, padding=4), *layers).eval()
    plans = sys.modules["yuzu._engine.plan.plan"]
    monkeypatch.setattr(plans, "WINDOWS_BYTES", 300_000)
    made = yuzu.precompute(model, 200, conv="windows", device="cpu")
    plan = made.bind(model, 200, 4, (), torch.device("cpu")).plan
    generator = np.random.default_rng(0)
    for seed in range(6):
        X = sequences(1, 200, seed=seed)
        X[0, :, generator.integers(200, size=15)] = 0
        found = yuzu.yuzu_ism(model, X, made, device="cpu")
        kept = [w for windows in plan.remembered.values() for w in windows if w is not None]
        tables = {t.data_ptr(): t.nbytes for w in kept for t in torch.utils._pytree.tree_leaves(w._cache) if isinstance(t, torch.Tensor)}
        assert sum(tables.values()) <= plan.remembered.nbytes <= 300_000 and len(kept) > 0
    monkeypatch.setattr(plans, "WINDOWS_BYTES", 0)
    assert torch.equal(found, yuzu.yuzu_ism(model, X, made, device="cpu"))


@pytest.mark.parametrize("sites", [1, 5])
def test_windows_of_few_sites_are_counted_with_their_objects(sites):
    """Arrays of a few numbers are mostly headers: of calls at single positions memory once held 7 times what was meant."""
    layers = [layer for _ in range(4) for layer in (nn.Conv1d(8, 8, 5, padding=2), nn.ReLU())]
    model = nn.Sequential(nn.Conv1d(4, 8, 5, padding=2), *layers).eval()
    X, places = sequences(1, 300), np.random.default_rng(0).integers(0, 300, (60, sites))
    made = yuzu.precompute(model, 300, device="cpu")
    plan = made.bind(model, 300, 4, (), torch.device("cpu")).plan
    begin = plan.remembered.nbytes
    tracemalloc.start()
    try:
        for some in places:
            yuzu.yuzu_ism(model, X, made, ranges=[(int(p), int(p) + 1) for p in some], device="cpu")
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.8 * held < plan.remembered.nbytes - begin < 3 * held
