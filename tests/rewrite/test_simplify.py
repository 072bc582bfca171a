"""Simplifying a graph changes no value."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from tests.capture.models import captured, conv, run_graph, seeded
from tests.laws.random_models import (
    Laboratory,
    chunks,
    laboratory_sequences,
    tensors_of,
)
from yuzu._engine.graph import Graph, refs_of
from yuzu._engine.plan.plan import make_plan
from yuzu._engine.rewrite import all as rewrite
from yuzu._engine.rewrite.all import capture
from yuzu._engine.rewrite.simplify import simplify

LENGTH = 12


class Messy(nn.Module):
    """Everything that `simplify` rewrites."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.kind = conv(4, 6), kind

    def forward(self, x: torch.Tensor) -> Any:
        y = self.conv(x)
        k = self.kind
        if k == "copies":
            return y.clone().contiguous().detach().to(torch.float64).view(y.shape).reshape(y.shape)[:, :, :].expand(-1, 6, -1)
        if k == "chunk":
            a, b, c = y.chunk(3, 1)
            return a * c
        if k == "uneven chunk":
            parts = y.chunk(5, 2)
            return parts[3] + parts[0], parts[-1]
        if k == "split":
            a, b, c = y.split([1, 3, 2], 1)
            return b.sum(1), a
        if k == "split positions":
            return y.split(5, 2)[2], y.split(5, -1)[0]
        if k == "unbind":
            return y.unbind(1)[4] * y.unbind(-1)[2][:, :1], y.unbind(2)[-1]
        if k == "transposed views":
            return y.transpose(1, 2).contiguous().view(y.shape[0], -1).clone().view(-1, LENGTH, 6).permute(0, 2, 1).contiguous()
        if k == "first of several":
            return y.max(2).values, torch.var_mean(y, 2)[0], y.sort(1)[0]
        if k == "second of several":
            return y.max(2)[1], y.sort(1)[1], y.max(1)
        if k == "unread":
            (y * 3).sum()
            unused = torch.exp(y)
            del unused
            return y.amax(2)
        if k == "slices":
            return y[:, :, 0:], y[:, :, :100], y[:, :, ::1][:, :, 1:-1:2], y[:, :, -3:]
        if k == "the batch":
            return y[0:][:], y[: x.shape[0]]
        if k == "dtype":
            return y.to(torch.float32).to(torch.float64), y.double(), y.type_as(x), y.to(x)
        if k == "in place on a copy":
            z = y.clone()
            z.mul_(2)
            w = y.view(y.shape[0], 3, 2, LENGTH)
            w[:, 0] += 1
            return y, z, w
        if k == "in place on a chunk":
            a, b = y.chunk(2, 1)
            a.relu_()
            return y, b
        if k == "expanded":
            return y.unsqueeze(1).expand(-1, 2, -1, -1).reshape(y.shape[0], 12, LENGTH), y.expand_as(y)
        raise AssertionError

MESSES = ["copies", "chunk", "uneven chunk", "split", "split positions", "unbind", "transposed views", "first of several", "second of several",
          "unread", "slices", "the batch", "dtype", "in place on a copy", "in place on a chunk", "expanded"]  # fmt: skip


@pytest.mark.parametrize("kind", MESSES)
def test_simplify_never_changes_a_value(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(lambda: Messy(kind)).eval()
    before: list[Any] = []

    def watched(nodes: Any, outputs: Any) -> Any:
        before.append(([dataclasses.replace(n) for n in nodes], list(outputs)))
        return simplify(nodes, outputs)

    monkeypatch.setattr(rewrite, "simplify", watched)
    simple = capture(model, (4, LENGTH), (), torch.float64)
    plain = Graph(*before[-1], simple.rebuild, simple.container, simple.route)
    for batch in (1, 4):
        X = torch.rand(batch, 4, LENGTH, dtype=torch.float64)
        with torch.no_grad():
            wanted = tensors_of(model(X))
        for graph in (plain, simple):
            for a, b in zip(tensors_of(run_graph(graph, model, X)), wanted, strict=True):
                assert a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    problems = list(Laboratory(model, laboratory_sequences(4, LENGTH), (), simple).problems(chunks(laboratory_sequences(4, LENGTH)), tolerance=1e-6))
    assert not problems, problems
    assert len(simple.nodes) <= len(plain.nodes)
    for node in simple.nodes:
        assert all(i < node.index for i in refs_of((node.args, node.kwargs))) and simple.nodes[node.index] is node


def ops_of(model: nn.Module) -> list[str]:
    return [n.op.removeprefix("aten.") for n in capture(model, (4, LENGTH), (), torch.float64).nodes if n.kind == "call"]


@pytest.mark.parametrize(
    ("kind", "ops"),
    [("copies", ["conv1d"]), ("chunk", ["conv1d", "slice", "slice", "mul"]), ("unread", ["conv1d", "amax"]),
     ("split", ["conv1d", "slice", "yuzu.sum_of_slice"])],
)  # fmt: skip
def test_simplify_leaves_the_fewest_operations(kind: str, ops: list[str]) -> None:
    assert ops_of(seeded(lambda: Messy(kind))) == ops


def test_simplify_does_not_change_what_it_is_given() -> None:
    graph = capture(seeded(lambda: Messy("chunk")), (4, LENGTH), (), torch.float64)
    before = [dataclasses.replace(n) for n in graph.nodes]
    again, outputs = simplify(graph.nodes, graph.outputs)
    assert graph.nodes == before
    assert [n.op for n in again] == [n.op for n in before] and outputs == graph.outputs


def test_every_operation_in_it_has_a_layout() -> None:
    """A plan can be made of every graph here, and says for each node what it is."""
    for name in ("reused", "returns nested", "in place", "buffers", "no parameters"):
        graph = captured(name)[1]
        plan = make_plan(graph)
        assert len(plan.layouts) == len(graph.nodes), name
        assert all((plan.rules[n.index] is None) == (n.index in plan.reasons) for n in graph.nodes if n.kind == "call" and n.mutated), name
