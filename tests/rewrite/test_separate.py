"""Linear layers of joined tensors as sums: the same results, windows that stay windows, and unmutated parts for free."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu
from tests.oracle import oracle
from tests.small_models import randomized, sequences
from yuzu._engine.plan.plan import make_plan
from yuzu._engine.rewrite.all import capture

L = 20


class Joined(nn.Module):
    def __init__(self, how, length=L):
        super().__init__()
        self.how, self.length = how, length
        self.conv, self.other = nn.Conv1d(4, 5, 5, padding=2), nn.Conv1d(4, 3, 3, padding=1)
        self.cell = nn.Linear(3, 6)
        self.flat, self.two = nn.Linear(5 * length + 3, 4), nn.Linear(8 * length, 4, bias=False)
        self.pooled, self.three = nn.Linear(5 + 3, 4), nn.Linear(5 * length + 3 + 3 * length + 3, 4)
        self.channels, self.many = nn.Conv1d(5 + 6, 4, 3, padding=1), nn.Conv1d(5 + 6 + 3 + 2, 4, 3, padding=1, bias=False)
        self.grouped, self.wide = nn.Conv1d(5 + 6 + 1, 4, 3, groups=2, padding=1), nn.Conv2d(5 + 6, 4, (1, 3), padding=(0, 1))

    def forward(self, x, state):
        y, other, z = self.conv(x).relu(), self.other(x).tanh(), self.cell(state)[:, :, None].expand(-1, -1, self.length)
        flat, cat = y.flatten(1), torch.cat
        if self.how == "flattened":
            return self.flat(cat([flat, state], 1)).relu()
        if self.how == "the state first":
            return self.flat(cat([state, flat], -1)).relu()
        if self.how == "two flattened":
            return self.two(cat([flat, other.flatten(1)], 1))
        if self.how == "pooled":
            return self.pooled(cat([y.amax(2), state], 1)).sigmoid()
        if self.how == "in turn":
            return self.three(cat([flat, state, other.flatten(1), state * 2], 1))
        if self.how == "channels":
            return self.channels(cat([y, z], 1)).relu().mean(2)
        if self.how == "channels in turn":
            return self.many(cat([other, y, z, z[:, :2]], 1)).relu().mean(2)
        if self.how == "two dimensions":
            return self.wide(cat([y, z], 1)[:, :, None]).relu().mean((2, 3)) + self.wide(cat([y[:, :, None], z[:, :, None]], 1)).mean((2, 3))
        if self.how == "groups":
            return self.grouped(cat([y, z, z[:, :1]], 1)).relu().mean(2)
        joined = cat([flat, state], 1)
        if self.how == "read twice":
            return self.flat(joined) + joined.sum(1, keepdim=True)
        return self.flat(joined).relu() * self.flat(cat([flat, state * 2], 1)).tanh()  # a weight used twice


SEPARATED = ["flattened", "the state first", "two flattened", "pooled", "in turn", "channels", "channels in turn", "two dimensions", "used twice"]
HOW = [*SEPARATED, "groups", "read twice"]


def model_of(how, dtype=torch.float64):
    return randomized(Joined(how), seed=2).to(dtype).eval()


def inputs(n=2, dtype=torch.float64):
    return sequences(n, L, dtype=dtype), torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)


def graph_of(how):
    X, state = inputs()
    return capture(model_of(how), (4, L), (state[:1],), torch.float64)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("output", ["delta", "prediction"])
def test_results(how, output, device):
    model, (X, state) = model_of(how), inputs()
    found = yuzu.yuzu_ism(model, X, args=(state,), output=output, device=device)
    assert torch.allclose(found, oracle(model, X, args=(state,))[output], atol=1e-10)


@pytest.mark.parametrize("how", SEPARATED)
@pytest.mark.parametrize("length", [1, 3])
def test_shorter_than_the_receptive_field(how, length):
    model, X = randomized(Joined(how, length), seed=2).double().eval(), sequences(2, length, dtype=torch.float64)
    X[1, :, 0] = 0
    found = yuzu.yuzu_ism(model, X, args=(inputs()[1],), output="delta", device="cpu")
    assert torch.allclose(found, oracle(model, X, args=(inputs()[1],))["delta"], atol=1e-10)


@pytest.mark.parametrize("how", HOW)
def test_what_is_taken_apart(how):
    joins = [n for n in graph_of(how).nodes if n.op == "aten.cat" and any(graph_of(how).nodes[i].mutated for i in n.inputs)]
    left = {"channels in turn": 1, "two dimensions": 1}.get(how, 0 if how in SEPARATED else 1)
    assert len(joins) == left, "of neighbours that are alike, and where something lies between the two"


@pytest.mark.parametrize("how", ["flattened", "the state first", "two flattened", "in turn"])
def test_flattened_positions_stay_windows(how):
    graph = graph_of(how)
    plan = make_plan(graph)
    dense = [plan.rules[n.index] for n in graph.nodes if n.op == "aten.linear" and n.mutated]
    assert dense and all(type(rule).__name__ == "OverPositions" for rule in dense)


@pytest.mark.parametrize("how", ["pooled", "channels"])
def test_what_is_not_mutated_is_not_multiplied(how):
    graph = graph_of(how)
    kernels = {n.layer: graph.nodes[n.args[1].index].shape[1] for n in graph.nodes if n.op in ("aten.linear", "aten.conv1d") and n.mutated}
    assert kernels["pooled" if how == "pooled" else "channels"] == 5


@pytest.mark.parametrize("how", ["flattened", "in turn", "pooled"])
@pytest.mark.parametrize("target", [1, [3, 0], slice(1, 3)])
def test_some_outputs_only(how, target):
    model, (X, state) = model_of(how), inputs()
    found = yuzu.yuzu_ism(model, X, args=(state,), output="delta", target=target, device="cpu")
    assert torch.allclose(found, oracle(model, X, args=(state,))["delta"][:, :, :, target], atol=1e-10)
    made = yuzu.precompute(model, L, args=(state[:1],), device="cpu")
    assert made.bind(model, L, 4, (state[:1],), torch.device("cpu")).for_outputs(target) is not None


def test_weights_that_change_are_seen():
    model, (X, state) = model_of("flattened", torch.float32), inputs(dtype=torch.float32)
    made = yuzu.precompute(model, L, args=(state[:1],), device="cpu")
    before = yuzu.yuzu_ism(model, X, made, args=(state,), device="cpu")
    with torch.no_grad():
        model.flat.weight[:, :50].mul_(3)
    after = yuzu.yuzu_ism(model, X, made, args=(state,), device="cpu")
    wanted = oracle(model, X, args=(state,))["l2"]
    assert not torch.allclose(before, after) and torch.allclose(after.double(), wanted, atol=1e-4)


def test_medium_precision():
    model, (X, state) = model_of("in turn", torch.float32), inputs(dtype=torch.float32)
    made = yuzu.precompute(model, L, args=(state[:1],), precision="medium", device="cpu")
    found = yuzu.yuzu_ism(model, X, made, args=(state,), output="delta", device="cpu")
    wanted = oracle(model, X, args=(state,))["delta"]
    assert float((found - wanted).norm() / wanted.norm()) < 0.02


def test_a_layer_that_something_else_reads_is_not_narrowed():
    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.a, self.b = nn.Conv1d(4, 5, 5), nn.Linear(5, 6), nn.Linear(6, 6)

        def forward(self, x):
            y = self.a(self.conv(x).relu().amax(2))
            return y.relu() + self.b(y)

    model, (X, _) = randomized(Read(), seed=1).double().eval(), inputs()
    found = yuzu.yuzu_ism(model, X, output="delta", target=[4, 1], device="cpu")
    assert torch.allclose(found, oracle(model, X)["delta"][..., [4, 1]], atol=1e-10)


def test_sums_of_last_layers_are_narrowed():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.a, self.b = nn.Conv1d(4, 5, 5), nn.Linear(5, 6), nn.Linear(5, 6)

        def forward(self, x):
            y = self.conv(x).relu()
            return F.softplus(self.a(y.amax(2)) + 2 * self.b(y.mean(2)))

    model, (X, _) = randomized(Two(), seed=1).double().eval(), inputs()
    found = yuzu.yuzu_ism(model, X, output="delta", target=[4, 1], device="cpu")
    assert torch.allclose(found, oracle(model, X)["delta"][..., [4, 1]], atol=1e-10)
