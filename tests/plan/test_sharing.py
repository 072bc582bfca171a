"""Many values of the other inputs for the same sequences: what does not depend on them is run once."""

import functools
import re
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu
from tests.oracle import oracle
from tests.small_models import randomized, sequences
from yuzu._engine.handlers.convolution import Convolution
from yuzu._engine.handlers.dense import OnChannels
from yuzu._engine.handlers.over_positions import OverPositions
from yuzu._engine.run.run import Run
from yuzu.product import apply_pairwise, apply_product

L, STATES = 30, 5


class Joins(nn.Module):
    """Convolutions, and a cell state that joins them somehow."""

    def __init__(self, how, length=L):
        super().__init__()
        self.how, self.length = how, length
        self.conv, self.after = nn.Conv1d(4, 6, 5, padding=2), nn.Conv1d(6, 6, 3, padding=1)
        self.cell, self.names = nn.Linear(3, 6), nn.Embedding(9, 6)
        self.norm = nn.BatchNorm1d(6)
        self.dense, self.head = nn.Linear(6 * length + 6, 7), nn.Linear(7, 2)

    def forward(self, x, state):
        cell = self.names(state[:, 0].long()) if self.how == "embedding" else self.cell(state)
        first = self.how == "at the first layer"
        y = self.conv(x * (1 + state[:, :1, None]) if first else x).relu()
        z = cell[:, :, None]
        if self.how == "attention":
            y = y + F.scaled_dot_product_attention(y.transpose(1, 2), (y + z).transpose(1, 2), y.transpose(1, 2)).transpose(1, 2)
        elif self.how == "a factor":
            y = self.after(y) * z.sigmoid()
        elif self.how == "a term":
            y = self.norm(self.after(y + z)).tanh()
        elif self.how == "a mask":
            y = self.after(y).masked_fill(z > 0, -1.0)
        elif self.how == "an infinite mask":
            y = y + torch.where((z > 0.5) & (torch.arange(self.length, device=z.device) < 20), -torch.inf, 0.0).softmax(2)
            y = y + y.masked_fill((z > 0.5) & (torch.arange(self.length, device=z.device) < 9), -torch.inf).softmax(2)
        elif self.how == "a comparison":
            y = torch.where(self.after(y) > z, y, z)
        elif self.how == "read again later":
            scaled = y * z.sigmoid()  # what the states share is read by what they do not, and then by what they do
            y = scaled + self.after(y) + self.after(y).flip(2)
        elif self.how == "positions":
            y = F.max_pool1d(torch.cat([self.after(y), z.expand(-1, -1, 4)], 2), 3, 1)[:, :, : self.length]
            y = F.pad(y, (0, self.length - y.shape[2]))
        out = self.head(self.dense(torch.cat([y.flatten(1), cell], 1)).relu())
        return (out, self.after(y).mean(2)) if self.how == "two outputs" else out


HOW = ["at the end", "embedding", "a factor", "a term", "a mask", "an infinite mask", "a comparison", "positions", "attention"]
HOW += ["two outputs", "at the first layer", "read again later"]


def state(n=STATES, seed=1):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).abs()


def model_of(how):
    return randomized(Joins(how), seed=3).double().eval()


def leaves(value):
    return torch.utils._pytree.tree_leaves(value)


@pytest.mark.filterwarnings("ignore:.*run naively")
@pytest.mark.parametrize("how", HOW)
def test_every_pair_as_alone(how, device):
    model, X, cells = model_of(how), sequences(3, L, dtype=torch.float64), state()
    X[1, :, 7] = 0
    found = leaves(apply_pairwise(yuzu.yuzu_ism, model, X, (cells,), device=device, output="delta"))
    for j in range(STATES):
        wanted = leaves(oracle(model, X, args=(cells[j : j + 1].expand(3, 3),))["delta"])
        for mine, other in zip(found, wanted, strict=True):
            assert mine.shape[:2] == (3, STATES) and torch.allclose(mine[:, j], other, atol=1e-10), j


@pytest.mark.filterwarnings("ignore:.*run naively")
@pytest.mark.parametrize("how", ["at the end", "a term", "a mask", "attention", "read again later"])
@pytest.mark.parametrize("length", [1, 3, 6])
def test_shorter_than_the_receptive_field(how, length):
    model, X = randomized(Joins(how, length), seed=3).double().eval(), sequences(2, length, dtype=torch.float64)
    cells = state(3)
    found = apply_pairwise(yuzu.yuzu_ism, model, X, (cells,), device="cpu", output="delta")
    for j in range(3):
        wanted = oracle(model, X, args=(cells[j : j + 1].expand(2, 3),))["delta"]
        assert torch.allclose(found[:, j], wanted, atol=1e-10)


SETTINGS = {
    "l2": {},
    "prediction": {"output": "prediction"},
    "target": {"output": "delta", "target": 1},
    "func": {"output": "delta", "func": lambda y: (y**2).sum(1)},
    "span": {"output": "delta", "start": 4, "end": -3},
    "ranges": {"output": "delta", "ranges": [(2, 5), (20, 23)]},
    "written": {"output": "delta", "ranges": [(2, 5), (20, 23)], "replace_with": "ACG"},
    "one at a time": {"output": "delta", "batch_size": 1},
}


@pytest.mark.parametrize("how", ["at the end", "a term"])
@pytest.mark.parametrize("name", SETTINGS)
def test_whatever_is_asked_for(how, name):
    model, X, cells = model_of(how), sequences(2, L, dtype=torch.float64), state(3)
    found = apply_pairwise(yuzu.yuzu_ism, model, X, (cells,), device="cpu", additional_func_kwargs=SETTINGS[name])
    for j in range(3):
        wanted = yuzu.naive_ism(model, X, args=(cells[j : j + 1].expand(2, 3),), device="cpu", **SETTINGS[name])
        assert torch.allclose(found[:, j], wanted, atol=1e-10)


@pytest.mark.parametrize("settings", [{}, {"hypothetical": True, "target": 0}, {"raw_outputs": True}, {"fast": False}])
def test_saturation_mutagenesis(settings, monkeypatch):
    model, X, cells = model_of("at the end"), sequences(3, L), state()
    found = leaves(apply_pairwise(yuzu.saturation_mutagenesis, model, X, (cells,), device="cpu", **settings))
    for j in range(STATES):
        wanted = leaves(yuzu.saturation_mutagenesis(model, X, args=(cells[j : j + 1].expand(3, 3),), device="cpu", **settings))
        for mine, other in zip(found, wanted, strict=True):
            assert torch.allclose(mine[:, j], other, atol=1e-10)
    module = sys.modules["yuzu.saturation_mutagenesis"]
    for size in (1, 4 * L * 2 * 8 * 7):  # of one pair, and of seven, which are neither all states nor all sequences
        monkeypatch.setattr(module, "RESULTS_AT_ONCE", size)
        again = leaves(apply_pairwise(yuzu.saturation_mutagenesis, model, X, (cells,), device="cpu", **settings))
        assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("conv", ["cyclic", "fold", "windows"])
def test_with_a_precomputation(conv):
    model, X, cells = model_of("a term"), sequences(2, L, dtype=torch.float64), state()
    made = yuzu.precompute(model, L, args=(cells[:1],), conv=conv, device="cpu")
    found = apply_pairwise(yuzu.yuzu_ism, model, X, (cells,), device="cpu", precomputation=made)
    wanted = apply_pairwise(yuzu.naive_ism, model, X, (cells,), device="cpu")
    assert torch.allclose(found, wanted, atol=1e-10)


def test_memory_bounds_how_many_states_are_kept(monkeypatch):
    model, X, cells = model_of("a term"), sequences(2, L, dtype=torch.float64), state(7)
    found = apply_pairwise(yuzu.yuzu_ism, model, X, (cells,), device="cpu")
    together = []
    original = Run.chunk_for_each
    monkeypatch.setattr(Run, "chunk_for_each", lambda self, sites, some: together.append(len(some)) or original(self, sites, some))
    made = yuzu.precompute(model, L, args=(cells[:1],), device="cpu")
    apply_pairwise(yuzu.yuzu_ism, model, X, (cells,), device="cpu", precomputation=made)
    assert set(together) == {7}
    with pytest.raises(yuzu.YuzuError, match="least that works") as refused:
        yuzu.precompute(model, L, args=(cells[:1],), device="cpu", conv="windows", max_memory=1)
    least = int(re.search(r"works is (\d+)", str(refused.value)).group(1))
    for memory in (least, 3 * least // 2):
        together.clear()
        made = yuzu.precompute(model, L, args=(cells[:1],), device="cpu", conv="windows", max_memory=memory)
        again = apply_pairwise(yuzu.yuzu_ism, model, X, (cells,), device="cpu", precomputation=made)
        assert torch.allclose(found, again, atol=1e-12) and max(together) < 7
    assert max(together) > 1, "more memory, more states"


def test_what_is_no_tensor_stays():
    class Kinds(Joins):
        def forward(self, x, state):
            return {"y": super().forward(x, state), "kind": "a cell", "nothing": None}

    model, X, cells = randomized(Kinds("at the end"), seed=3).double().eval(), sequences(2, L, dtype=torch.float64), state(3)
    shared = apply_pairwise(yuzu.yuzu_ism, model, X, (cells,), device="cpu", output="delta")
    alone = apply_pairwise(yuzu.naive_ism, model, X, (cells,), device="cpu", output="delta")
    for found in (shared, alone):
        assert found["kind"] == "a cell" and found["nothing"] is None and found["y"].shape == (2, 3, 4, L, 2)
    assert torch.allclose(shared["y"], alone["y"], atol=1e-10)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [({"return_timings": True}, yuzu.YuzuError, "return_timings"), ({"outputs": "delta"}, TypeError, "^got an unexpected keyword argument 'outputs'")],
)
def test_what_products_refuse(settings, error, message):
    with pytest.raises(error, match=message):
        apply_pairwise(yuzu.yuzu_ism, model_of("at the end"), sequences(2, L), (state(2),), device="cpu", **settings)


def test_args_of_another_dtype_are_cast_once(monkeypatch):
    """Not for each of the sequences that they are paired with."""
    model, X, cells = randomized(Joins("at the end"), seed=3).eval(), sequences(6, L), state(4)
    module = sys.modules["yuzu.saturation_mutagenesis"]
    original, seen = module.ism_of_states, []
    monkeypatch.setattr(module, "ism_of_states", lambda model, made, asked: seen.extend(asked.states) or original(model, made, asked))
    found = apply_pairwise(yuzu.saturation_mutagenesis, model, X, (cells.numpy(),), device="cpu")
    assert all(a.dtype == torch.float32 and a.stride(0) == 0 for (a,) in seen) and len(seen) == 4
    assert torch.equal(found, apply_pairwise(yuzu.saturation_mutagenesis, model, X, (cells.float(),), device="cpu"))


def runs_of(monkeypatch, rule):
    """Counts how often the layers of a kind run in chunks."""
    counted = []
    original = rule.run
    monkeypatch.setattr(rule, "run", lambda self, *rest: counted.append(self.node.label) or original(self, *rest))
    return counted


def test_what_the_states_share_runs_once(monkeypatch):
    """Convolutions, and the dense layer that the state enters with them: its change is the same for every state."""
    model, X, cells = model_of("at the end"), sequences(1, L, dtype=torch.float64), state(50)
    made = yuzu.precompute(model, L, args=(cells[:1],), device="cpu")
    yuzu.yuzu_ism(model, X, made, args=(cells[:1],), device="cpu")
    found = []
    for rows in (cells[:1], cells):
        with monkeypatch.context() as patch:
            counted = [runs_of(patch, rule) for rule in (Convolution, OnChannels, OverPositions)]
            apply_pairwise(yuzu.yuzu_ism, model, X, (rows,), device="cpu", precomputation=made)
        ran = [label for labels in counted for label in labels]
        found.append({label: ran.count(label) for label in ("conv", "dense", "head")})
    assert found == [{"conv": 1, "dense": 1, "head": 1}, {"conv": 1, "dense": 1, "head": 50}]


def test_a_partial_and_the_rest(monkeypatch):
    model, X, cells = model_of("at the end"), sequences(2, L, dtype=torch.float64), state(2)
    calls = []
    monkeypatch.setattr(sys.modules["yuzu.product"], "_pair_by_pair", lambda *a: calls.append(a))
    func = functools.partial(yuzu.yuzu_ism, output="delta", target=0)
    found = apply_product(func, model, X, (cells,), device="cpu")
    wanted = yuzu.naive_ism(model, X, args=(cells[1:].expand(2, 3),), output="delta", target=0, device="cpu")
    assert torch.allclose(found[:, 1], wanted, atol=1e-10) and not calls
    with pytest.raises(yuzu.YuzuError, match="output must be one of"):
        apply_pairwise(func, model, X, (cells,), device="cpu", output="nothing")


def test_several_inputs_in_a_product():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.dense = nn.Conv1d(4, 5, 5), nn.Linear(5 + 3, 2)

        def forward(self, x, a, b):
            return self.dense(torch.cat([self.conv(x).relu().amax(2), a], 1)).tanh() * b

    model, X = Two().double().eval(), sequences(2, L, dtype=torch.float64)
    a, b = state(3), torch.arange(1.0, 5.0).double()[:, None]
    found = apply_product(yuzu.yuzu_ism, model, X.numpy(), (a, b.numpy()), device="cpu", output="delta")
    assert isinstance(found, np.ndarray) and found.shape == (2, 3, 4, 4, L, 2)
    for j, k in np.ndindex(3, 4):
        wanted = oracle(model, X, args=(a[j : j + 1].expand(2, 3), b[k : k + 1].expand(2, 1)))["delta"]
        assert np.allclose(found[:, j, k], wanted, atol=1e-10)
