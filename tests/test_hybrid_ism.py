"""Hybrid ISM: exact where what mixes positions is linear, Taylor ISM where nothing is local, and in between better."""

import copy
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu
from tests.oracle import oracle
from tests.small_models import sequences
from yuzu import taylor
from yuzu._engine.edits import Mutations, letters_of
from yuzu._engine.run.run import Run
from yuzu._engine.tune import memory as tune_memory

L = 40


class Attention(nn.Module):
    """Convolutions and a pool, then attention over all positions and a head: as Enformer is built, and as small as can be."""

    def __init__(self, outputs=2, width=8):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(4, width, 5, padding=2), nn.Conv1d(width, width, 3, padding=1)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.head = nn.Linear(width, outputs)

    def forward(self, x):
        y = F.max_pool1d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2).transpose(1, 2)
        y = y + F.scaled_dot_product_attention(self.query(y), self.key(y), self.value(y))
        return self.head(F.gelu(y)).mean(1)


class Joined(nn.Module):
    """Another input joins after the convolutions; two outputs in a list."""

    def __init__(self):
        super().__init__()
        self.conv, self.dense = nn.Conv1d(4, 6, 5, padding=2), nn.Linear(6 * L + 3, 4)

    def forward(self, x, cell):
        y = self.conv(x).relu()
        return [self.dense(torch.cat([y.flatten(1), cell], 1)).tanh(), y.mean(2)]


def wanted(model, X, args=(), flat=lambda d: d):
    return flat(oracle(model, X, args=args)["delta"]).permute(0, 3, 1, 2)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_exact_where_the_rest_is_linear(device, batch_size):
    layers = [nn.Conv1d(4, 6, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(6, 8, 3, padding=1), nn.GELU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * L // 2, 3), nn.Linear(3, 2)).double().eval()
    X = sequences(3, L, dtype=torch.float64)
    X[1, :, 7] = 0
    found = yuzu.hybrid_ism(model, X, batch_size=batch_size, device=device)
    assert found.shape == (3, 2, 4, L) and found.dtype == torch.float64
    assert torch.allclose(found, wanted(model, X), atol=1e-10)
    part = yuzu.hybrid_ism(model, X.numpy(), tracks=1, start=5, end=-5, device=device)
    assert isinstance(part, np.ndarray) and np.allclose(part, found[:, 1:, :, 5:-5], atol=1e-10)


def test_exact_where_everything_is_local():
    model = nn.Sequential(nn.Conv1d(4, 6, 5), nn.ReLU(), nn.Conv1d(6, 2, 3), nn.Tanh()).double().eval()
    X = sequences(2, 14, dtype=torch.float64)
    found = yuzu.hybrid_ism(model, X, device="cpu")
    assert torch.allclose(found, wanted(model, X, flat=lambda d: d.flatten(3)), atol=1e-10)
    # a differentiable func of it is linearised
    total = yuzu.hybrid_ism(model, X, func=lambda y: y.sum((1, 2)), device="cpu")
    assert torch.allclose(total[:, 0], found.sum(1), atol=1e-10)


@pytest.mark.parametrize("join", ["flatten", "squeeze", "sum"])
def test_one_channel_at_the_border(join):
    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2, self.dense = nn.Conv1d(4, 3, 5), nn.Conv1d(3, 1, 3), nn.Linear(L - 6, 2)

        def forward(self, x):
            y = self.conv2(self.conv1(x).relu()).relu()
            return self.dense({"flatten": y.flatten(1), "squeeze": y.squeeze(1), "sum": y.sum(1)}[join])

    model, X = Narrow().double().eval(), sequences(2, L, dtype=torch.float64)
    assert torch.allclose(yuzu.hybrid_ism(model, X, device="cpu"), wanted(model, X), atol=1e-10)


def test_infinite_references(device):
    """Masked positions before a softmax over them: no NaN, and exact but for the softmax."""

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.score = nn.Conv1d(4, 6, 5, padding=2), nn.Conv1d(6, 1, 1)
            self.register_buffer("hidden", torch.arange(L) >= L - 7)

        def forward(self, x):
            y = self.conv(x).relu()
            weights = self.score(y).masked_fill(self.hidden, -torch.inf).softmax(2)
            return (y * weights).sum(2)

    model, X = Pooled().double().eval(), sequences(2, L, dtype=torch.float64)
    found = yuzu.hybrid_ism(model, X, device=device)
    assert torch.isfinite(found).all() and correlation(found, wanted(model, X)) > 0.95
    assert (found[..., L - 4 :] == 0).all(), "nobody reads there"


def test_recurrent_layers(device):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.rnn, self.dense = nn.Conv1d(4, 6, 5), nn.GRU(6, 5, batch_first=True), nn.Linear(5, 1)

        def forward(self, x):
            return self.dense(self.rnn(self.conv(x).relu().transpose(1, 2))[0].mean(1))

    model, X = Recurrent().eval(), sequences(2, 20)
    found = yuzu.hybrid_ism(model, X, device=device)
    assert correlation(found, wanted(model, X).float()) > 0.95


def test_taylor_ism_where_nothing_is_local():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.dense = nn.Linear(4 * L, 9), nn.Linear(9, 2)

        def forward(self, x):
            return self.dense(self.rnn(x.flatten(1)).tanh())

    model, X = Mixing().double().eval(), sequences(2, L, dtype=torch.float64)
    found = yuzu.hybrid_ism(model, X, device="cpu")
    assert torch.allclose(found, taylor.takegrad(X, model, output="tism", device="cpu"), atol=1e-10)


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.parametrize("seed", range(4))
def test_between_the_two(seed, device):
    torch.manual_seed(seed)
    model, X = Attention().eval(), sequences(2, L, seed=seed)
    exact = wanted(model, X).float()
    hybrid = correlation(exact, yuzu.hybrid_ism(model, X, device=device))
    approximate = correlation(exact, taylor.takegrad(X, model, output="tism", device=device))
    assert hybrid > 0.98 and hybrid > approximate


def test_several_outputs_and_inputs(monkeypatch):
    model, X, cell = Joined().double().eval(), sequences(3, L, dtype=torch.float64), torch.randn(3, 3).double()
    found = yuzu.hybrid_ism(model, X, args=(cell,), batch_size=2, device="cpu")
    exact = wanted(model, X, (cell,), lambda d: torch.cat(d, 3))
    assert found.shape == exact.shape == (3, 10, 4, L)
    assert torch.allclose(found[:, 4:], exact[:, 4:], atol=1e-10), "the mean is linear"
    assert correlation(found[:, :4], exact[:, :4]) > 0.9
    some = yuzu.hybrid_ism(model, X, args=(cell,), tracks=[9, 0], device="cpu")
    assert torch.allclose(some, found[:, [9, 0]], atol=1e-10)
    monkeypatch.setattr(sys.modules["yuzu.hybrid_ism"], "SLOPES_BYTES", 1)
    assert torch.allclose(yuzu.hybrid_ism(model, X, args=(cell,), device="cpu"), found, atol=1e-10), "a track at a time"
    one = yuzu.hybrid_ism(model, X, args=(cell,), func=lambda y: y[0], device="cpu")
    assert torch.allclose(one, found[:, :4], atol=1e-10)


def test_a_precomputation_and_weights_that_change():
    model, X = Attention().double().eval(), sequences(2, L, dtype=torch.float64)
    made = yuzu.precompute(model, L, device="cpu")
    before = yuzu.hybrid_ism(model, X, made, device="cpu")
    assert torch.equal(before, yuzu.hybrid_ism(model, X, made, device="cpu"))
    with torch.no_grad():
        model.conv1.weight.mul_(2)
    after = yuzu.hybrid_ism(model, X, made, device="cpu")
    assert not torch.allclose(before, after) and correlation(after, wanted(model, X)) > 0.95
    assert all(p.grad is None for p in model.parameters())


def test_in_inference_mode(device):
    """There are no gradients in it, nor of what was made in it: sequences, other inputs, weights."""
    torch.manual_seed(0)
    model, joined, X, cell = Attention().eval(), Joined().eval(), sequences(2, L), torch.randn(2, 3)
    given = [(model, X, None), (joined, X, (cell,))]
    with torch.inference_mode():
        made = [(copy.deepcopy(m), x.clone(), a and (a[0].clone(),)) for m, x, a in given]
    functions = (yuzu.hybrid_ism, lambda m, x, **settings: taylor.takegrad(x, m, **settings))
    for function in functions:
        for (m, x, a), those in zip(given, made, strict=True):
            wanted = function(m, x, args=a, device=device)
            assert torch.allclose(function(those[0], those[1], args=those[2], device=device), wanted, atol=1e-6)
            with torch.inference_mode():
                found = function(m, x, args=a, device=device)
            assert torch.equal(found, wanted) and not found.is_inference() and not found.requires_grad


@pytest.mark.parametrize("conv", ["cyclic", "gaussian"])
def test_a_precomputation_with_probes(conv):
    model, X = Attention().double().eval(), sequences(2, L, dtype=torch.float64)
    made = yuzu.precompute(model, L, conv=conv, alpha=1.5 if conv == "gaussian" else None, device="cpu")
    found = yuzu.hybrid_ism(model, X, made, device="cpu")
    assert torch.allclose(found, yuzu.hybrid_ism(model, X, device="cpu"), atol=1e-10), "probes are for whole runs"


@pytest.mark.parametrize("target", [1, 3000, 50_000])
def test_results_do_not_depend_on_the_chunks(target, monkeypatch):
    model, X, cell = Joined().double().eval(), sequences(3, L, dtype=torch.float64), torch.randn(3, 3).double()
    X[1, :, 7] = 0
    whole = yuzu.hybrid_ism(model, X, args=(cell,), device="cpu")
    monkeypatch.setitem(tune_memory.CACHE_TARGET, "cpu", target)
    counts = []
    original = Run.chunk
    monkeypatch.setattr(Run, "chunk", lambda self, sites: counts.append(len(sites.sequence)) or original(self, sites))
    found = yuzu.hybrid_ism(model, X, args=(cell,), device="cpu")
    assert torch.allclose(found, whole, atol=1e-12)
    assert len(counts) > 3 and (target > 1 or max(counts) == 1)


def test_memory_that_may_be_used(monkeypatch):
    """Of a chunk and of the references of a batch."""
    model, X = Attention().double().eval(), sequences(8, L, dtype=torch.float64)
    unlimited = yuzu.precompute(model, L, device="cpu")
    least = tune_memory.memory_of(unlimited._used.values()[0][0].used.plan, L, 4, 1, X.element_size(), 4).least
    counts, rows = [], []
    chunk, set_reference = Run.chunk, Run.set_reference
    monkeypatch.setattr(Run, "chunk", lambda self, sites: counts.append(len(sites.sequence)) or chunk(self, sites))
    monkeypatch.setattr(Run, "set_reference", lambda self, x, *rest: rows.append(len(x)) or set_reference(self, x, *rest))
    whole = yuzu.hybrid_ism(model, X, unlimited, device="cpu")
    assert max(counts) == 8 * L and max(rows) == 8
    # exact ISM counts the scores of attention, too, which hybrid ISM never lays out: there is room for more sites
    for limit, most in ((4 * least, L), (least, 4)):
        made = yuzu.precompute(model, L, max_memory=limit, device="cpu")
        counts.clear()
        rows.clear()
        assert torch.allclose(yuzu.hybrid_ism(model, X, made, device="cpu"), whole, atol=1e-12)
        assert most // 4 <= max(counts) <= most and (limit > least or max(rows) < 8)


def test_letters_are_moved_once_for_all_chunks_of_a_batch(monkeypatch):
    moved, given = [], []
    sites = Mutations.sites

    class Letters(torch.Tensor):
        def to(self, *args, **kwargs):
            moved.append(args)
            return super().to(*args, **kwargs).as_subclass(torch.Tensor)

    module = sys.modules["yuzu.hybrid_ism"]
    monkeypatch.setattr(module, "letters_of", lambda X: letters_of(X).as_subclass(Letters))
    monkeypatch.setattr(Mutations, "sites", lambda self, *args: given.append(args) or sites(self, *args))
    monkeypatch.setitem(tune_memory.CACHE_TARGET, "cpu", 1)
    yuzu.hybrid_ism(Attention().eval(), sequences(4, L), batch_size=2, device="cpu")
    assert len(given) == 4 * L and len(moved) == 2


def test_what_cannot_be_captured_is_taylor_ism():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(4, 3, 5)

        def forward(self, x):
            y = self.conv(x).tanh().mean(2)
            return y * 2 if float(y.sum()) > 1e9 else y

    model, X = Branching().eval(), sequences(2, L)
    with pytest.warns(yuzu.YuzuWarning):
        found = yuzu.hybrid_ism(model, X, start=3, device="cpu")
    assert torch.allclose(found, taylor.takegrad(X, model, output="tism", device="cpu")[..., 3:], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tracks": 9}, "tracks must be integers from 0 to 1"),
        ({"func": 3}, "func must be callable"),
        ({"func": lambda y: y.detach()}, "do not depend on the sequence"),
        ({"start": 5, "end": 5}, "select no position"),
        ({"X_0": torch.zeros(4, L)}, "3 axes"),
        ({"batch_size": 0}, "batch_size"),
        ({"precomputation": "file"}, "precomputation must be"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(yuzu.YuzuError, match=message):
        yuzu.hybrid_ism(**{"model": Attention().eval(), "X_0": sequences(1, L), "device": "cpu", **change})
