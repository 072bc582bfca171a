"""Kept precomputations: used again, and keeping no model alive."""

import gc
import weakref

import torch

from tests.small_models import Net, randomized, sequences
from tests.store.models import in_place
from yuzu import precompute, yuzu_ism
from yuzu._engine.run.run import Run

L = 30


def test_the_model_is_not_kept_alive():
    model = randomized(Net(), seed=60).eval()
    precomputation = precompute(model, L)
    yuzu_ism(model, sequences(1, L), precomputation)
    yuzu_ism(model, sequences(1, L))
    weight = weakref.ref(model.fc1.weight)
    model = weakref.ref(model)
    gc.collect()
    assert model() is None and weight() is None
    assert precomputation.summary()


def test_no_run_waits_to_be_collected():
    """With it would wait what lies on a GPU: weights, and the values of a reference."""
    model = randomized(Net(), seed=60).eval()
    gc.collect()
    others = [id(found) for found in gc.get_objects() if isinstance(found, Run)]  # that earlier tests keep
    gc.disable()
    try:
        yuzu_ism(model, sequences(1, L), precompute(model, L))
        assert not [found for found in gc.get_objects() if isinstance(found, Run) and id(found) not in others]
    finally:
        gc.enable()


def test_kept_precomputation_is_used_again(monkeypatch):
    """The second call with one model must not prepare again (it would cost more than the run)."""
    model, X = randomized(Net(), seed=75).eval(), sequences(1, L)
    exports = []
    export = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *a, **k: exports.append(1) or export(*a, **k))
    yuzu_ism(model, X)
    first = len(exports)
    assert first >= 1
    yuzu_ism(model, X)
    in_place(model)
    yuzu_ism(model, sequences(3, L), start=3, output="delta")
    assert len(exports) == first
