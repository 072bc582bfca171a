"""Attention pooling: a softmax over positions, whose division comes last, and products that are summed over positions."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu
from tests.oracle import assert_right
from yuzu._engine.plan.plan import make_plan, make_plan_with_statistics
from yuzu._engine.rewrite.all import capture
from yuzu._engine.rewrite.norms_apart import SOFTMAX, norms_apart
from yuzu._engine.rewrite.pooled_softmax import find_pooled
from yuzu._engine.tune import chunks, statistics


class Pool(nn.Module):
    """A tower, and values pooled by weights; ``pool(values (n, C, L), scores (n, h, L))``."""

    def __init__(self, pool, heads=1, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.tower = nn.Sequential(nn.Conv1d(4, 8, 7, padding=3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 8, 5, padding=2), nn.ReLU())
        self.score, self.head, self.pool = nn.Conv1d(8, heads, 3, padding=1), nn.Linear(width, 3), pool

    def forward(self, x):
        h = self.tower(x)
        return 30 * self.head(self.pool(h, 2 * self.score(h)).flatten(1))


POOLS = {
    "product and sum": (1, 8, lambda h, s: (h * torch.softmax(s, -1)).sum(-1)),
    "mean": (1, 8, lambda h, s: (torch.softmax(s, 2) * h).mean(2)),
    "keeping the axis": (1, 8, lambda h, s: (h * torch.softmax(s, -1)).sum(2, keepdim=True)),
    "moved": (1, 8, lambda h, s: (torch.softmax(s.squeeze(1), 1).unsqueeze(-1) * h.transpose(1, 2)).sum(1)),
    "matmul": (3, 24, lambda h, s: torch.softmax(s, -1) @ h.transpose(1, 2)),
    "matmul on the right": (3, 24, lambda h, s: h @ torch.softmax(s, -1).transpose(1, 2)),
    "bmm": (3, 24, lambda h, s: torch.bmm(F.softmax(s.transpose(1, 2), 1).transpose(1, 2), h.transpose(1, 2))),
    "einsum": (1, 8, lambda h, s: torch.einsum("bl,bcl->bc", torch.softmax(s.squeeze(1), -1), h)),
    "einsum of heads": (2, 16, lambda h, s: torch.einsum("bhl,bcl->bhc", torch.softmax(s, -1), h)),
    "einsum, values first": (2, 16, lambda h, s: torch.einsum("bcl,bhl->bch", h, torch.softmax(s, -1))),
    "a weight for each channel": (8, 8, lambda h, s: (h * torch.softmax(s, -1)).sum(-1)),
    "gated": (1, 8, lambda h, s: (torch.softmax(torch.tanh(s), 2) * torch.sigmoid(h)).sum(2)),
}


def read_twice(h, weights):
    return (h * weights).sum(-1) + weights.amax(-1)


# used in another way, so that the division cannot wait
WHOLE = {
    "squared": (1, 8, lambda h, s: (h * torch.softmax(s, -1).square()).sum(-1)),
    "read twice": (1, 8, lambda h, s: read_twice(h, torch.softmax(s, -1))),
    "summed over heads": (2, 4, lambda h, s: (h.unflatten(1, (4, 2)) * torch.softmax(s, -1).unsqueeze(1)).sum((2, 3))),
    "not summed": (1, 8, lambda h, s: (h * torch.softmax(s, -1)).amax(-1)),
}


def sequences(n=1):
    letters = torch.randint(4, (n, 60), generator=torch.Generator().manual_seed(1))
    return F.one_hot(letters, 4).movedim(2, 1).float()


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(statistics, "FASTER", float("inf"))
    monkeypatch.setattr(chunks, "WORTH_COMPARING", float("inf"))


@pytest.mark.parametrize(("pool", "dtype"), [*((p, torch.float32) for p in POOLS), ("matmul", torch.float64), ("moved", torch.float64)])
def test_windows_reach_the_pool(pool, dtype, always):
    heads, width, function = POOLS[pool]
    model, X = Pool(function, heads, width).to(dtype).eval(), sequences(2).to(dtype)
    X[1, :, 20:22] = 0  # N
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = yuzu.precompute(model, 60, device="cpu")
    assert made.decisions.statistics is not None and made.decisions.statistics.numbers == 0
    assert not any(layer.handler == "whole values" and "softmax" in layer.operation for layer in made.layers)
    assert "divides" in made.summary()
    assert_right(yuzu.yuzu_ism(model, X, made, device="cpu", output="delta"), model, X, output="delta")


@pytest.mark.parametrize("pool", WHOLE)
def test_other_uses_stay_whole(pool, always):
    heads, width, function = WHOLE[pool]
    model, X = Pool(function, heads, width).eval(), sequences()
    with torch.no_grad():
        graph = capture(model, (4, 60), (), torch.float32)
    assert not any(find_pooled(graph, n) for n in graph.nodes if n.op in SOFTMAX)
    assert make_plan_with_statistics(make_plan(graph)) is None
    assert_right(yuzu.yuzu_ism(model, X, device="cpu", output="delta"), model, X, output="delta")


def test_scores_that_jump(always):
    """A mutant's score may exceed the reference's maximum by more than an exponential holds: it runs naively."""
    model, X = Pool(POOLS["matmul"][2], 3, 24).eval(), sequences()
    with torch.no_grad():
        model.score.weight.mul_(2000)
    made = yuzu.precompute(model, 60, device="cpu")
    assert_right(yuzu.yuzu_ism(model, X, made, device="cpu", output="delta"), model, X, output="delta")


def test_the_law_of_exponentials():
    """Their values are the model's but for one factor for each mutant, which the division takes out."""
    model, X = Pool(POOLS["matmul"][2], 3, 24).double().eval(), sequences().double()
    with torch.no_grad():
        graph = capture(model, (4, 60), (), torch.float64)
        apart, _ = norms_apart(graph, {n.index for n in graph.nodes if n.op in SOFTMAX})
        node = next(n for n in apart.nodes if n.op == "yuzu.shifted_exp")
        plan = make_plan(apart)
        assert plan.layouts[node.index].kind == "windows"
        scores = 2 * model.score(model.tower(X))
        shifted = node.target(scores)
        assert torch.allclose(shifted / shifted.sum(-1, keepdim=True), torch.softmax(scores, -1))
