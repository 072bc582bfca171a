"""Awkward models are captured, and the graph computes what they compute."""

import warnings

import pytest
import torch
from torch import nn

import yuzu
from tests.capture.models import (
    CAPTURED,
    StarArgs,
    assert_right_or_refused,
    captured,
    conv,
    run_graph,
    seeded,
    truth_of,
)
from tests.laws.random_models import (
    Laboratory,
    brute_force,
    chunks,
    laboratory_sequences,
    one_hot,
    relative_error,
    tensors_of,
)
from yuzu._engine.rewrite.all import capture
from yuzu.errors import YuzuWarning

LENGTH = 12


class Loops(nn.Module):
    """Layers in lists and dicts, loops with shapes, len, zip and enumerate."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv(), conv(5, 5, 5), conv(5, 5)])
        self.named = nn.ModuleDict({"relu": nn.ReLU(), "tanh": nn.Tanh()})
        self.weights = nn.ParameterList([nn.Parameter(torch.rand(1)) for _ in range(3)])
        self.hidden = [conv(5, 5)]  # not registered: its weights are attributes of nothing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, (layer, w) in enumerate(zip(self.layers, self.weights, strict=True)):
            x = self.named["relu" if i % 2 else "tanh"](layer(x)) * w
        for _ in range(len(self.layers)):
            x = x[..., 1:]
        assert x.shape[1] == 5 and x.dim() == 3 and len(x.shape) == 3
        return x.reshape(x.size(0), -1, x.size(2) // 3, 3).sum(-1)


@pytest.mark.parametrize("name", list(CAPTURED))
def test_the_graph_is_the_model(name: str) -> None:
    model, graph = captured(name)
    for batch in (1, 2, 7):
        X = torch.rand(batch, 4, LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            wanted = model(X.clone())
        found = run_graph(graph, model, X)
        assert type(found) is type(wanted)
        assert len(tensors_of(found)) == len(tensors_of(wanted))
        for a, b in zip(tensors_of(found), tensors_of(wanted), strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", list(CAPTURED))
def test_and_its_changes_are_the_models(name: str) -> None:
    model, graph = captured(name)
    X = laboratory_sequences(4, LENGTH)
    laboratory = Laboratory(model, X, (), graph)
    assert not list(laboratory.problems(chunks(X)))
    naive = {graph.nodes[i].op for i, reason in laboratory.plan.reasons.items() if "which runs naively" not in reason}
    assert naive <= {"no parameters": {"aten.unfold"}, "in place": {"aten.slice_scatter", "aten.select_scatter"}}.get(name, set())


@pytest.mark.parametrize("name", ["reused", "returns nested", "returns namedtuple", "buffers", "lock inside"])
def test_and_its_mutagenesis_is_brute_force(name: str) -> None:
    model = seeded(CAPTURED[name]).eval()
    X = one_hot(2, 4, LENGTH)
    with warnings.catch_warnings():
        warnings.simplefilter("error", YuzuWarning)
        found = yuzu.yuzu_ism(model, X, output="delta", device="cpu")
    assert len(tensors_of(found)) == len(tensors_of(model(X)))
    for a, b in zip(tensors_of(found), truth_of(model, X), strict=True):
        assert relative_error(a, b) < 1e-12


def test_star_args() -> None:
    model = seeded(StarArgs).eval()
    args = (torch.rand(3, 5, 1, dtype=torch.float64), torch.rand(3, 1, LENGTH, dtype=torch.float64))
    graph = capture(model, (4, LENGTH), args, torch.float64)
    X = one_hot(3, 4, LENGTH)
    assert torch.allclose(run_graph(graph, model, X, args), model(X, *args))
    (truth,) = brute_force(model, X, args)
    assert relative_error(yuzu.yuzu_ism(model, X, args=args, output="delta", device="cpu"), truth) < 1e-12
    (truth,) = brute_force(model, X)
    assert relative_error(yuzu.yuzu_ism(model, X, output="delta", device="cpu"), truth) < 1e-12


def test_unregistered_layers_and_lists() -> None:
    """A layer in a plain list has no name in the model, so its weights cannot be looked up: kept as they were, or refused, never wrong."""
    model = seeded(Loops).eval()
    model.hidden = [m.double() for m in model.hidden]
    assert_right_or_refused(model)

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = conv()
            self.rest = [conv(5, 5).double(), nn.ReLU(), conv(5, 2).double()]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            for layer in self.rest:
                x = layer(x)
            return x

    model = seeded(Hidden).eval()
    X = one_hot(2, 4, LENGTH)
    made = assert_right_or_refused(model)
    with torch.no_grad():
        model.rest[0].weight.mul_(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", YuzuWarning)
        found = yuzu.yuzu_ism(model, X, made, output="delta", device="cpu")
    assert relative_error(found, brute_force(model, X)[0]) < 1e-12, "the weights' values at capture were used"
