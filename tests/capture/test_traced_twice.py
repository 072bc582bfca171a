"""Models are traced once more only where that changes their graph."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.capture.models import Reused, StarArgs, conv, run_graph, seeded
from tests.laws.random_models import (
    laboratory_sequences,
    tensors_of,
)
from yuzu import models
from yuzu._engine.capture import export
from yuzu._engine.handlers import registry
from yuzu._engine.plan.plan import make_plan
from yuzu._engine.rewrite.all import capture

LENGTH = 12


class UpperLayers(nn.Module):
    """Layers that a second trace would write in other operations: batch norms, flattening, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.dense = conv(), nn.BatchNorm1d(5), nn.Linear(5 * (LENGTH // 2), 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool1d(F.relu(self.norm(self.conv(x))), 2)
        return self.dense(F.dropout(x.flatten(1), 0.5, self.training))


class BatchStatistics(nn.Module):
    """A norm by the statistics of the batch, or of each row, that may also be written into the model."""

    def __init__(self, kind: str, written: bool) -> None:
        super().__init__()
        self.conv, self.kind, self.written = conv(), kind, written
        self.register_buffer("mean", torch.zeros(5, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(5, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = F.batch_norm if self.kind == "batch" else F.instance_norm
        kept = (self.mean, self.variance) if self.written else (None, None)
        return norm(self.conv(x), *kept, None, None, True, 0.1)


class Written(nn.Module):
    """A value is read after it was written over: a view, or a value as a whole by operations that PyTorch calls pointwise."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2 - 0.5
        if self.kind == "view":
            y[:, :, 1:] += x[:, :, :-1]
            return torch.relu_(y)
        z = torch.relu_(y)
        y += x
        return y * 3 + z.sigmoid()


@pytest.fixture
def traced_twice(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Grows with each model that is traced a second time."""
    calls: list[bool] = []
    original = torch.export.ExportedProgram.run_decompositions

    def recorded(*args: Any, **kwargs: Any) -> Any:
        calls.append(True)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", recorded)
    return calls


@pytest.mark.parametrize("build", [UpperLayers, Reused, StarArgs, lambda: models.BPNet(4, seq_len=LENGTH)])
def test_a_second_trace_would_change_nothing(build: Callable[[], nn.Module], traced_twice: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    model, X = seeded(build).eval(), laboratory_sequences(4, LENGTH)
    args = (torch.rand(1, 5, 1, dtype=torch.float64),) if isinstance(model, StarArgs) else ()
    once = capture(model, (4, LENGTH), args, torch.float64)
    assert not traced_twice
    monkeypatch.setattr(export, "is_settled", lambda program: False)
    twice = capture(model, (4, LENGTH), args, torch.float64)
    assert traced_twice
    rows = tuple(a.expand(len(X), *a.shape[1:]) for a in args)
    for a, b in zip(*(tensors_of(run_graph(graph, model, X, rows)) for graph in (once, twice)), strict=True):
        assert torch.equal(a, b)
    families = [[rule.family for rule in make_plan(graph, "highest", {}).rules if rule is not None] for graph in (once, twice)]
    assert sorted(families[0]) == sorted(families[1])


@pytest.mark.parametrize("kind", ["batch", "instance"])
@pytest.mark.parametrize("written", [True, False])
def test_norms_by_statistics_of_the_batch_are_traced_twice(kind: str, written: bool, traced_twice: list[bool]) -> None:
    model, X = seeded(lambda: BatchStatistics(kind, written)).eval(), laboratory_sequences(4, LENGTH)
    found = run_graph(capture(model, (4, LENGTH), (), torch.float64), model, X)
    with torch.no_grad():  # what is written is not read
        assert torch.allclose(found, model(X), rtol=1e-12, atol=1e-13)
    assert traced_twice


@pytest.mark.parametrize("kind", ["view", "pointwise"])
def test_what_writes_is_traced_twice(kind: str, traced_twice: list[bool]) -> None:
    model, X = Written(kind), laboratory_sequences(4, LENGTH)
    graph = capture(model, (4, LENGTH), (), torch.float64)
    assert traced_twice
    assert not any(n.target._schema.is_mutable for n in graph.nodes if isinstance(n.target, torch._ops.OpOverload))
    assert torch.equal(run_graph(graph, model, X), model(X))


def test_a_users_handler_changes_no_graph(monkeypatch: pytest.MonkeyPatch, traced_twice: list[bool]) -> None:
    class Unknown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.renorm(self.norm(x), 2, 1, 1.0)

    model = seeded(Unknown).eval()
    before = capture(model, (4, LENGTH), (), torch.float64).fingerprint()
    assert traced_twice, "there is a handler by now: take another operation"
    monkeypatch.setitem(registry._REGISTRY, "aten.renorm", lambda view: "not now")
    assert capture(model, (4, LENGTH), (), torch.float64).fingerprint() == before
