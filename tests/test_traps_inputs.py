"""Models that write over what they are given, and what stays in memory or between threads."""

import gc
import sys
import threading
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from conftest import randomized, sequences
from torch import nn

import yuzu
from yuzu.product import apply_pairwise

L = 15


class WritesSequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.dense = nn.Conv1d(4, 5, 3, padding=1), nn.Linear(5 * L + 3, 2)

    def forward(self, x, state):
        x -= 0.25
        return self.dense(torch.cat([self.conv(x).relu().flatten(1), state], 1)).tanh()


class WritesState(WritesSequence):
    def forward(self, x, state):
        state.add_(1)
        return self.dense(torch.cat([self.conv(x).relu().flatten(1), state], 1)).tanh()


class WritesUncaptured(WritesSequence):
    """Branches on its data, so that it runs naively."""

    def forward(self, x, state):
        x.mul_(2)
        state.mul_(0.5)
        y = self.dense(torch.cat([self.conv(x).relu().flatten(1), state], 1))
        return y.tanh() if float(y.sum()) > 1e9 else y


def by_hand(model, X, state):
    """The deltas, each forward on tensors of its own."""
    with torch.no_grad():
        reference = model(X.clone(), state.clone())
        found = torch.zeros(len(X), 4, L, 2, dtype=X.dtype)
        for c in range(4):
            for p in range(L):
                mutant = X.clone()
                mutant[:, :, p] = 0
                mutant[:, c, p] = 1
                found[:, c, p] = model(mutant, state.clone()) - reference
    return found


@pytest.mark.filterwarnings("ignore::yuzu.YuzuWarning")
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("kind", [WritesSequence, WritesState, WritesUncaptured])
@pytest.mark.parametrize("as_numpy", [False, True])
def test_a_forward_that_writes_over_its_inputs(kind, as_numpy, device):
    model, X = randomized(kind(), seed=1).double().eval(), sequences(2, L, dtype=torch.float64)
    state = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = by_hand(model, X, state)
    given = [(t.numpy().copy() if as_numpy else t.clone()) for t in (X, state)]

    def same(found):
        assert np.allclose(np.asarray(found), wanted, atol=1e-10)
        for before, after in zip((X, state), given, strict=True):
            assert np.array_equal(np.asarray(after), np.asarray(before)), "what the user passed has changed"

    settings = {"output": "delta", "device": device}
    made = yuzu.precompute(model, L, args=(given[1],), device=device)
    same(yuzu.yuzu_ism(model, given[0], made, args=(given[1],), **settings))
    same(yuzu.yuzu_ism(model, given[0], args=(given[1],), batch_size=1, **settings))
    same(yuzu.naive_ism(model, given[0], args=(given[1],), batch_size=7, **settings))
    paired = apply_pairwise(yuzu.yuzu_ism, model, given[0], (given[1],), **settings)
    same(np.stack([np.asarray(paired)[i, i] for i in range(2)]))
    assert yuzu.check(model, given[0], made, args=(given[1],), device=device).yuzu_relative_error < 1e-10
    yuzu.hybrid_ism(model, given[0], args=(given[1],), device=device)
    yuzu.taylor.takegrad(given[0], model, args=(given[1],), device=device)
    yuzu.saturation_mutagenesis(model, given[0], args=(given[1],), device=device)
    same(wanted)


def test_the_first_warning_is_at_the_callers_line():
    model = randomized(WritesUncaptured(), seed=1).eval()
    for call in (
        lambda: yuzu.precompute(model, L, args=(torch.zeros(1, 3),), device="cpu"),
        lambda: yuzu.hybrid_ism(model, sequences(1, L), args=(torch.zeros(1, 3),), device="cpu"),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        ours = [w for w in caught if issubclass(w.category, yuzu.YuzuWarning)]
        assert ours and all(w.filename == __file__ for w in ours)


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
        kept = [w for windows, _ in plan.remembered._kept.values() for w in windows if w is not None]
        tables = {t.data_ptr(): t.nbytes for w in kept for t in torch.utils._pytree.tree_leaves(w._cache) if isinstance(t, torch.Tensor)}
        assert sum(tables.values()) <= plan.remembered._bytes <= 300_000 and len(kept) > 0
    monkeypatch.setattr(plans, "WINDOWS_BYTES", 0)
    assert torch.equal(found, yuzu.yuzu_ism(model, X, made, device="cpu"))


def test_threads_that_ask_for_other_outputs():
    model, X = nn.Sequential(nn.Conv1d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * (L - 2), 40)).eval(), sequences(1, L)
    made = yuzu.precompute(model, L, device="cpu")
    whole = yuzu.yuzu_ism(model, X, made, output="delta", device="cpu")
    wrong, interval = [], sys.getswitchinterval()

    def work(first):
        for i in range(40):
            target = (first + 7 * i) % 40
            try:
                found = yuzu.yuzu_ism(model, X, made, output="delta", target=target, device="cpu")
                if not torch.allclose(found, whole[..., target], atol=1e-6):
                    wrong.append(target)
            except Exception as error:
                wrong.append(repr(error))

    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(3 * i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_one_slow_measurement_does_not_make_a_model_naive(monkeypatch):
    """A busy machine may slow the trial of chunks and not that of the model: it is measured again."""
    measure = sys.modules["yuzu._engine.tune.measure"]
    original, calls = measure._chunk_seconds, []

    def slow(run, sites, hopeless):
        calls.append(len(sites.sequence))
        seconds, found = original(run, sites, hopeless)
        return (seconds + 3.0 if naive_yet == [] else seconds), found

    naive_yet = []
    monkeypatch.setattr(measure, "_chunk_seconds", slow)
    compared = measure.naive_is_faster
    monkeypatch.setattr(measure, "naive_is_faster", lambda *a: (naive_yet.append(compared(*a)), naive_yet[0])[1])
    model = nn.Sequential(nn.Conv1d(4, 32, 9, padding=4), nn.ReLU(), nn.Conv1d(32, 32, 9, padding=4), nn.Flatten(), nn.Linear(32 * 400, 3))
    made = yuzu.precompute(model.eval(), 400, device="cpu")
    assert naive_yet[0] is not None and made.decisions.naive_model is None


@pytest.mark.parametrize("sites", [1, 5])
def test_windows_of_few_sites_are_counted_with_their_objects(sites):
    """Arrays of a few numbers are mostly headers: of calls at single positions memory once held 7 times what was meant."""
    layers = [layer for _ in range(4) for layer in (nn.Conv1d(8, 8, 5, padding=2), nn.ReLU())]
    model = nn.Sequential(nn.Conv1d(4, 8, 5, padding=2), *layers).eval()
    X, places = sequences(1, 300), np.random.default_rng(0).integers(0, 300, (60, sites))
    made = yuzu.precompute(model, 300, device="cpu")
    plan = made.bind(model, 300, 4, (), torch.device("cpu")).plan
    begin = plan.remembered._bytes
    tracemalloc.start()
    try:
        for some in places:
            yuzu.yuzu_ism(model, X, made, ranges=[(int(p), int(p) + 1) for p in some], device="cpu")
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.8 * held < plan.remembered._bytes - begin < 3 * held
