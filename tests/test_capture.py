"""From a model to a graph: awkward models are captured and the graph computes what they compute; others are refused, saying why."""

import collections
import copy
import dataclasses
import functools
import logging
import tempfile
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_right, randomized, sequences
from random_models import (
    CPU,
    Laboratory,
    brute_force,
    chunks,
    laboratory_sequences,
    one_hot,
    relative_error,
    tensors_of,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

import yuzu
from yuzu import models
from yuzu._engine.capture import export
from yuzu._engine.capture.errors import CaptureError
from yuzu._engine.graph import Graph, Weights, evaluate, refs_of
from yuzu._engine.handlers import contract
from yuzu._engine.plan.plan import make_plan
from yuzu._engine.rewrite import all as rewrite
from yuzu._engine.rewrite.all import capture
from yuzu._engine.rewrite.simplify import simplify
from yuzu.errors import YuzuWarning

LENGTH = 12
aten = torch.ops.aten


def conv(cin: int = 4, cout: int = 5, k: int = 3) -> nn.Module:
    return nn.Conv1d(cin, cout, k, padding=k // 2)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().double()


def run_graph(graph: Graph, model: nn.Module, X: torch.Tensor, args: tuple[torch.Tensor, ...] = ()) -> Any:
    weights = Weights(model, CPU)
    values: list[Any] = []
    with torch.no_grad():
        for node in graph.nodes:
            if node.kind == "call":
                values.append(evaluate(node, values.__getitem__, CPU))
            else:
                values.append({"sequence": lambda n: X, "extra": lambda n: args[n.key], "weight": lambda n: weights[n.key],
                               "constant": lambda n: n.value}[node.kind](node))  # fmt: skip
    return graph.rebuild([values[o] if isinstance(o, int) else o[0] for o in graph.outputs])


# ---- models that are captured ---------------------------------------------------------------------------------------------------------------


class Reused(nn.Module):
    """One convolution called three times, with functional calls between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = conv(), conv(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first(x))
        for _ in range(3):
            x = x + F.gelu(self.again(x))
        return F.max_pool1d(x, 2).mean(-1)


class StarArgs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        for r in rest:
            y = y * r
        return y


class Optional(nn.Module):
    """Inputs with defaults, of which some are never given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None, *, flag: bool = False) -> torch.Tensor:
        y = self.conv(x)
        return -y if flag else y if scale is None else y * scale


Pair = collections.namedtuple("Pair", ["profile", "counts"])


class Nested(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.fc = conv(), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.conv(x)
        counts = self.fc(y.mean(2))
        return {
            "tuple": (y, counts),
            "list": [y, [counts, y]],
            "dict": {"profile": y, "counts": counts},
            "nested": {"a": (y, {"b": counts}), "c": [counts]},
            "namedtuple": Pair(y, counts),
            "ordered": collections.OrderedDict(z=y, a=counts),
            "with none": (y, None, counts),
            "with number": (y, 3, counts),
            "same twice": (y, y),
            "the input": (y, x),
            "a constant": (y, torch.ones(x.shape[0], 2, dtype=x.dtype)),
        }[self.kind]


KINDS = ["tuple", "list", "dict", "nested", "namedtuple", "ordered", "with none", "with number", "same twice", "the input", "a constant"]


class Buffers(nn.Module):
    """Buffers, kept and not kept in the state, a plain tensor attribute and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.register_buffer("mask", (torch.arange(LENGTH) % 3 > 0).double())
        self.register_buffer("scale", torch.rand(5, 1), persistent=False)
        self.table = torch.rand(LENGTH, dtype=torch.float64)
        self.number, self.numpy_number = 3.0, np.float64(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.conv(x) * self.mask + self.table) * self.scale * self.number + float(self.numpy_number)


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


class BranchOnShape(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.short, self.long = conv(), conv(4, 5, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.long(x) if x.shape[-1] > 10 else self.short(x)
        if self.training:
            y = y * 100
        if y.shape[2] % 2:
            y = F.pad(y, (0, 1))
        return y


class NoGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = conv(), nn.Linear(5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = self.conv(x)
        return self.fc(y.detach().mean(2)).requires_grad_().squeeze(-1)


class Grad(NoGrad):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            return super().forward(x)


class Tied(nn.Module):
    """Encoder and decoder with one weight, and one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Conv1d(4, 5, 1)
        self.decode = nn.ConvTranspose1d(5, 4, 1)
        self.decode.weight = nn.Parameter(self.encode.weight.detach().clone())
        self.also = self.encode
        self.other = nn.Conv1d(4, 5, 1)
        self.other.weight = self.encode.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(F.relu(self.encode(x)) + self.also(x) + F.relu(self.other(x)))


class Holding(nn.Module):
    """Attributes that ``copy.deepcopy`` refuses."""

    def __init__(self, what: Callable[[], Any], deep: bool = False) -> None:
        super().__init__()
        self.conv = conv()
        self.inner = nn.Sequential(conv(5, 5), nn.ReLU())
        (self.inner if deep else self).held = what()  # type: ignore[assignment]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.conv(x))


class Hooked(nn.Module):
    """Hooks that change what layers give; they are part of what the model computes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.relu = nn.ReLU()
        self.conv.register_forward_hook(lambda module, inputs, output: output * 2)
        self.relu.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv(x))


class InPlace(nn.Module):
    """In-place operations, slices written to, a list appended to."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = conv(), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        y += 1
        y = self.relu(y)
        y *= 0.5
        y[:, 0].neg_()
        y[:, :, -1] = 0
        parts = []
        for i in range(2):
            parts.append(y[:, i : i + 2].clone().mul_(i + 1))
        return torch.cat(parts, 1)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(conv(), nn.ReLU(), conv(5, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.net, x, use_reentrant=False)


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.conv(x)


class DropoutEverywhere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm1d(5)
        self.drops = nn.Sequential(nn.Dropout(0.5), nn.Dropout1d(), nn.AlphaDropout(), nn.FeatureAlphaDropout())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.drops(self.norm(self.conv(x))), 0.9, self.training)


class Parametrized(nn.Module):
    """A weight computed by a parametrization of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

        class Symmetric(nn.Module):
            def forward(self, w: torch.Tensor) -> torch.Tensor:
                return (w + w.flip(2)) / 2

        nn.utils.parametrize.register_parametrization(self.conv, "weight", Symmetric())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


@dataclasses.dataclass
class Config:
    width: int = 5
    activation: str = "relu"
    sizes: tuple[int, ...] = (3, 5)


class FromConfig(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.convs = nn.ModuleList([conv(4, self.config.width, k) for k in self.config.sizes])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([getattr(F, self.config.activation)(c(x)) for c in self.convs], 1)


class Subclassed(nn.Conv1d):
    """A layer of one's own, derived from PyTorch's, that does something else."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return super().forward(input).exp() - 1


class StraightLine(nn.Module):
    """No parameters at all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * torch.arange(1, 5, dtype=x.dtype)[:, None]).cumsum(1)[:, -1].unfold(1, 3, 1).amax(-1)


def spectral() -> nn.Module:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(conv()), nn.ReLU(), nn.utils.parametrizations.weight_norm(conv(5, 5)))
    model.train()
    with torch.no_grad():
        model(torch.rand(2, 4, LENGTH))  # a step of the power iteration
    return model


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.utils.weight_norm(conv()), nn.ReLU(), nn.utils.spectral_norm(conv(5, 5)))


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Sequential(conv(), nn.ReLU(), conv(5, 5)))


CAPTURED: dict[str, Callable[[], nn.Module]] = {
    "reused": Reused,
    "optional inputs": Optional,
    "no parameters": StraightLine,
    "weight norm and spectral norm": spectral,
    "old weight norm": old_weight_norm,
    "own parametrization": Parametrized,
    "buffers": Buffers,
    "branch on shape": BranchOnShape,
    "no grad": NoGrad,
    "enable grad": Grad,
    "tied": Tied,
    "lock": lambda: Holding(threading.Lock),
    "lock inside": lambda: Holding(threading.RLock, deep=True),
    "open file": lambda: Holding(tempfile.TemporaryFile, deep=True),
    "generator": lambda: Holding(lambda: (i for i in range(3)), deep=True),
    "logger": lambda: Holding(lambda: logging.getLogger("yuzu.test")),
    "thread local": lambda: Holding(threading.local, deep=True),
    "hooked": Hooked,
    "in place": InPlace,
    "checkpoint": Checkpointed,
    "autocast off": Autocast,
    "dropout everywhere": DropoutEverywhere,
    "configuration": FromConfig,
    "subclassed layer": lambda: nn.Sequential(Subclassed(4, 5, 3), nn.ReLU()),
    **{f"returns {kind}": (lambda kind=kind: Nested(kind)) for kind in KINDS},
}


@functools.cache
def captured(name: str) -> tuple[nn.Module, Graph]:
    model = seeded(CAPTURED[name])
    return model.eval(), capture(model, (4, LENGTH), (), torch.float64)


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


def truth_of(model: nn.Module, X: torch.Tensor) -> list[torch.Tensor]:
    """`brute_force` for models that cannot be copied."""
    try:
        return brute_force(model, X)
    except (TypeError, RuntimeError):
        pass
    results: list[list[torch.Tensor]] = []
    with torch.no_grad():
        for x in X:
            rows = x.expand(4, LENGTH, 4, LENGTH).clone()
            for p in range(LENGTH):
                rows[:, p, :, p] = torch.eye(4, dtype=X.dtype)
            mutants, reference = tensors_of(model(rows.flatten(0, 1))), tensors_of(model(x[None]))
            results.append([(m - r).unflatten(0, (4, LENGTH)) for m, r in zip(mutants, reference, strict=True)])
    return [torch.stack(t) for t in zip(*results, strict=True)]


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


def assert_right_or_refused(model: nn.Module) -> Any:
    X = one_hot(2, 4, LENGTH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", YuzuWarning)
        made = yuzu.precompute(model, LENGTH, device="cpu")
        for a, b in zip(tensors_of(yuzu.yuzu_ism(model, X, made, output="delta", device="cpu")), truth_of(model, X), strict=True):
            assert relative_error(a, b) < 1e-12
    return made


# ---- the third route: children in order ------------------------------------------------------------------------------------------------------


class Inspecting(nn.Module):
    """Its forward cannot be exported, yet is plainly its children in order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.head = conv(), nn.ReLU(), conv(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if type(x) is not torch.Tensor and not hasattr(x, "inner"):
            raise RuntimeError("not a plain tensor")
        if not isinstance(x, nn.Parameter) and "Fake" in type(x).__name__:
            raise RuntimeError("no tracing, please")
        return self.head(self.relu(self.conv(x)))


def test_children_in_order_is_the_second_road() -> None:
    model = seeded(Inspecting).eval()
    graph = capture(model, (4, LENGTH), (), torch.float64)
    assert graph.route == "children"
    assert [n.layer for n in graph.nodes if n.kind == "call"] == ["conv", "relu", "head"]
    X = one_hot(2, 4, LENGTH)
    assert torch.allclose(run_graph(graph, model, X), model(X))


class NotInOrder(Inspecting):
    """As above, but its forward does a little more than its children."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 0.0 * x[:, :2]


class ByContent(Inspecting):
    """Children in order for most sequences, and not for some."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x[:, 1].sum() > 1000).any()):
            return self.head(self.conv(x))
        return super().forward(x)


class ByListedContent(ByContent):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if max(x.sum(1).flatten().tolist()) > 5:
            return self.head(self.conv(x))
        return Inspecting.forward(self, x)


class Twice(Inspecting):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(super().forward(x))


@pytest.mark.parametrize("kind", [NotInOrder, ByContent, ByListedContent, Twice])
def test_agreeing_on_one_input_is_no_proof_of_order(kind: type) -> None:
    model = seeded(kind).eval()
    with pytest.raises(CaptureError):
        capture(model, (4, LENGTH), (), torch.float64)


# ---- models that are refused -------------------------------------------------------------------------------------------------------------------


class Decides(nn.Module):
    """Control flow that depends on the sequence."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.other = conv(), conv()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "if":
            return self.conv(x) if x[:, 0].sum() > x[:, 1].sum() else self.other(x)
        if self.kind == "while":
            y = self.conv(x)
            while y.abs().max() > 0.1:
                y = y / 2
            return y
        if self.kind == "positions":
            out = self.conv(x)
            for p in range(x.shape[2]):
                if x[0, 0, p] == 1:
                    out = out + 1
            return out
        if self.kind == "numpy":
            return self.conv(x) + torch.from_numpy(x.detach().numpy().mean(axis=(1, 2), keepdims=True))
        if self.kind == "all":
            return self.conv(x) if torch.all(x >= 0) else self.other(x)
        raise AssertionError


@pytest.mark.parametrize("kind", ["if", "while", "positions", "numpy", "all"])
def test_control_flow_on_content_is_refused_and_runs_naively(kind: str) -> None:
    model = seeded(lambda: Decides(kind)).eval()
    with pytest.raises(CaptureError):
        capture(model, (4, LENGTH), (), torch.float64)
    with pytest.warns(YuzuWarning, match="Decides runs naively.*(could not be captured|each mutant is run alone)"):
        made = yuzu.precompute(model, LENGTH, device="cpu")
    assert "naively" in made.summary()
    if kind in ("if", "numpy"):  # what depends on one row at a time
        X = one_hot(1, 4, LENGTH)
        found = yuzu.yuzu_ism(model, X, made, output="delta", device="cpu")
        assert found.shape == (1, 4, LENGTH, 5, LENGTH)


class Remembers(nn.Module):
    """What it returns depends on the calls before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.register_buffer("calls", torch.zeros(1, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.conv(x) * self.calls


class Random(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.kind = conv(), kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "noise":
            return self.conv(x) + torch.randn_like(x[:, :1])
        if self.kind == "dropout":
            return F.dropout(self.conv(x), 0.5)  # training=True whatever the mode
        return self.conv(x)[:, torch.randperm(5)]


@pytest.mark.parametrize(
    ("build", "reason"),
    [(Remembers, "calls before"), (lambda: Random("noise"), "random"), (lambda: Random("dropout"), "random"), (lambda: Random("permutation"), "random")],
)
def test_what_changes_from_call_to_call_is_refused(build: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(CaptureError, match=reason):
        capture(seeded(build).eval(), (4, LENGTH), (), torch.float64)


# ---- traced once or twice -------------------------------------------------------------------------------------------------------------------


class UpperLayers(nn.Module):
    """What the second trace would write in other operations: batch norms, flattening, dropout."""

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
    """What is read after it was written over: a view, or a value as a whole by operations that PyTorch calls pointwise."""

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


def test_a_forward_that_raises_leaves_no_mode_entered() -> None:
    """Else every later call of PyTorch in this thread goes through it."""

    class Raises(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no")

    model = Raises()
    for _ in range(2):
        with pytest.raises(CaptureError, match="no"):
            capture(model, (4, LENGTH), (), torch.float64)
    assert torch._C._len_torch_function_stack() == 0
    assert "forward" not in vars(model)


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
    monkeypatch.setitem(contract._REGISTRY, "aten.renorm", lambda view: "not now")
    assert capture(model, (4, LENGTH), (), torch.float64).fingerprint() == before


def test_a_constant_model_is_refused_or_zero() -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ones(x.shape[0], 3)

    found = yuzu.yuzu_ism(Constant(), one_hot(2, 4, LENGTH, dtype=torch.float32), output="delta", device="cpu")
    assert found.shape == (2, 4, LENGTH, 3) and not found.any()


def test_a_scripted_model_runs_naively_at_worst() -> None:
    assert_right_or_refused(seeded(scripted).eval())


def test_a_fixed_batch_is_refused() -> None:
    class ThreeAtATime(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).view(3, -1)

    with pytest.raises(CaptureError):
        capture(seeded(ThreeAtATime), (4, LENGTH), (), torch.float64)


def test_both_strands_in_one_batch_are_not_mixed_up() -> None:
    """A wrapper that stacks the reverse complement onto the batch: its rows are not the sequences'."""

    class BothStrands(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), nn.Linear(5 * LENGTH, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            both = self.net(torch.cat([x, x.flip([1, 2])]))
            forward, backward = both.chunk(2)
            return (forward + backward) / 2

    assert_right_or_refused(seeded(BothStrands).eval())


def test_the_reason_stands_in_the_warning() -> None:
    model = seeded(lambda: Random("noise")).float()
    with pytest.warns(YuzuWarning) as caught:
        yuzu.precompute(model, LENGTH, device="cpu")
    (message,) = [str(w.message) for w in caught if issubclass(w.category, YuzuWarning)]
    assert "Random" in message and "rand" in message and "\n" not in message


# ---- the user's model is left alone ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [DropoutEverywhere, Reused, spectral, lambda: Decides("if"), Remembers, lambda: Holding(threading.Lock), Inspecting])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_as_before(build: Callable[[], nn.Module], training: bool) -> None:
    model = seeded(build).train(training)
    model.conv if hasattr(model, "conv") else None
    first = next(model.modules())
    first.marked = "by the user"
    list(model.children())[0].train(not training)
    flags = [m.training for m in model.modules()]
    state = {k: (v.clone(), v.data_ptr()) for k, v in model.state_dict(keep_vars=True).items()}
    attributes = [{k: id(v) for k, v in m.__dict__.items() if k != "training"} for m in model.modules()]
    grads = [(p.requires_grad, p.grad) for p in model.parameters()]
    random_state = torch.get_rng_state()
    try:
        capture(model, (4, LENGTH), (), torch.float64)
    except CaptureError:
        pass
    assert [m.training for m in model.modules()] == flags
    assert [{k: id(v) for k, v in m.__dict__.items() if k != "training"} for m in model.modules()] == attributes
    after = model.state_dict(keep_vars=True)
    assert all(torch.equal(after[k], v) and after[k].data_ptr() == place for k, (v, place) in state.items())
    assert [(p.requires_grad, p.grad) for p in model.parameters()] == grads
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()


def test_a_model_in_training_mode_is_captured_as_in_evaluation() -> None:
    model = seeded(DropoutEverywhere).train()
    X = one_hot(2, 4, LENGTH)
    graph = capture(model, (4, LENGTH), (), torch.float64)
    found = run_graph(graph, model, X)
    assert model.training and torch.allclose(found, copy.deepcopy(model).eval()(X))


def test_logging_and_warnings_are_as_before() -> None:
    names = ["torch", "torch.export", "torch._dynamo"]
    before = [(logging.getLogger(n).disabled, logging.getLogger(n).level) for n in names]
    filters = list(warnings.filters)
    with pytest.raises(CaptureError):
        capture(seeded(lambda: Decides("if")), (4, LENGTH), (), torch.float64)
    assert [(logging.getLogger(n).disabled, logging.getLogger(n).level) for n in names] == before
    assert list(warnings.filters) == filters


def test_capture_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    """What torch.export has to say stays with it; the reason comes in one warning."""
    with pytest.raises(CaptureError), warnings.catch_warnings():
        warnings.simplefilter("error")
        capture(seeded(lambda: Decides("if")), (4, LENGTH), (), torch.float64)
    out, err = capfd.readouterr()
    assert out == "" and err == ""


# ---- what the graph says --------------------------------------------------------------------------------------------------------------------------


def test_layer_names_are_the_users() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = conv(5, 5), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.act(self.conv(x))

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = conv()
            self.tower = nn.ModuleList([Block(), Block()])
            self.heads = nn.ModuleDict({"profile": conv(5, 1), "counts": nn.Linear(5, 1)})

        def forward(self, x: torch.Tensor) -> Any:
            x = F.relu(self.stem(x))
            for block in self.tower:
                x = block(x)
            return self.heads["profile"](x), self.heads["counts"](x.mean(2))

    graph = capture(seeded(Named), (4, LENGTH), (), torch.float64)
    names = [(n.layer, n.op) for n in graph.nodes if n.kind == "call"]
    assert names == [
        ("stem", "aten.conv1d"), ("", "aten.relu"),
        ("tower.0.conv", "aten.conv1d"), ("tower.0.act", "aten.relu"), ("tower.0", "aten.add"),
        ("tower.1.conv", "aten.conv1d"), ("tower.1.act", "aten.relu"), ("tower.1", "aten.add"),
        ("heads.profile", "aten.conv1d"), ("", "aten.mean"), ("heads.counts", "aten.linear"),
    ]  # fmt: skip
    assert [n.label for n in graph.nodes if n.op == "aten.mean"] == ["mean"]


def test_a_reused_module_is_two_layers_of_one_name() -> None:
    graph = capture(seeded(Reused), (4, LENGTH), (), torch.float64)
    assert [n.layer for n in graph.nodes if n.op == "aten.conv1d"] == ["first", "again", "again", "again"]
    assert len({n.args[1] for n in graph.nodes if n.op == "aten.conv1d"}) == 2


def test_what_depends_on_the_sequence_is_known() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.other = conv(), conv(1, 5)
            self.table = nn.Parameter(torch.rand(5, 1))

        def forward(self, x: torch.Tensor, track: torch.Tensor) -> Any:
            side = torch.tanh(self.other(track))
            return self.conv(x) * side + self.table.exp() + torch.zeros_like(x[:, :1])

    graph = capture(seeded(Two), (4, LENGTH), (torch.rand(2, 1, LENGTH, dtype=torch.float64),), torch.float64)
    said = {(n.op.removeprefix("aten."), n.layer): (n.mutated, n.batched) for n in graph.nodes if n.kind == "call"}
    assert said[("conv1d", "conv")] == (True, True)
    assert said[("conv1d", "other")] == (False, True) and said[("tanh", "")] == (False, True)
    assert said[("exp", "")] == (False, False)
    assert said[("mul", "")] == (True, True)
    assert [n.kind for n in graph.nodes if n.kind in ("sequence", "extra")] == ["sequence", "extra"]


def test_weights_are_named_not_kept() -> None:
    """The graph looks weights up when it runs: values changed in place, or replaced, are the ones used."""
    model = seeded(Reused).eval()
    graph = capture(model, (4, LENGTH), (), torch.float64)
    X = one_hot(2, 4, LENGTH)
    with torch.no_grad():
        model.first.weight.mul_(2)
        model.again.bias = nn.Parameter(torch.rand(5, dtype=torch.float64))
        assert torch.allclose(run_graph(graph, model, X), model(X))
    assert not any(n.value is not None for n in graph.nodes)


def test_the_fingerprint_tells_architectures_and_not_weights_apart() -> None:
    def fingerprint(build: Callable[[], nn.Module], seed: int = 0, length: int = LENGTH, dtype: torch.dtype = torch.float64) -> str:
        torch.manual_seed(seed)
        return capture(build().to(dtype), (4, length), (), dtype).fingerprint()

    with torch.random.fork_rng(devices=[]):
        first = fingerprint(Reused)
        assert fingerprint(Reused, seed=1) == first
        others = [
            fingerprint(Reused, length=LENGTH + 2),
            *(fingerprint(lambda k=k: nn.Sequential(conv(k=k), nn.ReLU())) for k in (3, 5)),
            fingerprint(lambda: nn.Sequential(conv(), nn.GELU())),
            *(fingerprint(lambda kind=kind: Nested(kind)) for kind in ("tuple", "list")),
            *(fingerprint(lambda s=s: nn.Sequential(conv(), nn.MaxPool1d(3, s))) for s in (1, 2)),
        ]
    assert len({first, *others}) == 1 + len(others)


# ---- simplify --------------------------------------------------------------------------------------------------------------------------------------


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


class WithSize(nn.Module):
    """A layer, and something that makes a plain integer of the batch size."""

    def __init__(self, use):
        super().__init__()
        self.conv, self.last, self.use = nn.Conv1d(4, 3, 5), nn.Linear(3 * 26, 2), use

    def forward(self, x, *args):
        return self.use(self, x, *args)


def with_positions(model, x):
    positions = torch.linspace(0, 1, 26, dtype=x.dtype).view(1, 1, 26).repeat(len(x), 3, 1)
    return model.last((model.conv(x).relu() * positions).flatten(1))


def both_strands(model, x):
    y = model.last(model.conv(torch.cat([x, x.flip(1, 2)])).relu().flatten(1))
    return y[: len(x)] + y[len(x) :]


def with_another_input(model, x, a):
    return model.last(model.conv(x).relu().reshape(len(x), -1)) * a.reshape(int(a.shape[0]), -1)[:, :2]


SIZES = {
    "length": lambda model, x: model.last(model.conv(x).relu().reshape(len(x), -1)),
    "integer": lambda model, x: model.last(model.conv(x).relu().view(int(x.shape[0]), 3 * 26)),
    "multiple": lambda model, x: model.conv(x).relu().reshape(3 * len(x), 26).mean(1).reshape(len(x), 3),
    "repeated": with_positions,
    "both strands": both_strands,
    "another input": with_another_input,
    "one piece": lambda model, x: torch.cat([model.last(h.relu().flatten(1)) for h in model.conv(x).split(max(int(len(x)), 1))]),
    "all rows": lambda model, x: model.last(model.conv(x).relu()[: int(len(x))].flatten(1)),
}


@pytest.mark.parametrize("name", SIZES)
def test_integers_made_of_the_batch_size(name):
    model, X = randomized(WithSize(SIZES[name])).eval(), sequences(3, 30)
    args = (torch.randn(3, 4),) if name == "another input" else ()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="These layers, and what follows them")
        warnings.filterwarnings("error", message=".*could not be captured")
        for output in ("delta", "l2"):
            found = yuzu.yuzu_ism(model, X, args=args or None, output=output, device="cpu")
            assert_right(found, model, X, args=args, output=output)


@pytest.mark.parametrize(
    "use",
    [
        lambda model, x: torch.stack([model.last(model.conv(x[i : i + 1]).relu().flatten(1))[0] for i in range(len(x))]),
        lambda model, x: model.last(model.conv(x).relu().flatten(1)) * (2.0 if len(x) > 4 else 1.0),
        lambda model, x: model.last(model.conv(x).relu().reshape(len(x), -1)) / torch.tensor([len(x), 1]),
    ],
    ids=["a loop over the batch", "another factor", "a constant"],
)
def test_batch_sizes_that_change_more_than_sizes(use):
    model = randomized(WithSize(use)).eval()
    with pytest.raises(CaptureError, match="Constraints violated.*for two batch sizes: Unlike"):
        capture(model, (4, 30), (), torch.float32)


APART = {
    "split": lambda model, x: torch.cat([model.last(h.relu().flatten(1)) for h in model.conv(x).split(16)]),
    "loop": lambda model, x: torch.cat([model.last(model.conv(x[i : i + 16]).relu().flatten(1)) for i in range(0, len(x), 16)]),
    "first rows": lambda model, x: model.last(model.conv(x)[:10**6].relu().flatten(1)),
}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", APART)
def test_batches_taken_apart(name, verify):
    """In pieces that fit into memory: a small batch, such as the one that is traced and the one that verifies, is one."""
    model, X = randomized(WithSize(APART[name])).eval(), sequences(3, 30)
    with pytest.warns(YuzuWarning, match="could not be captured.*splits the batch into pieces"):
        made = yuzu.precompute(model, 30, verify=verify, device="cpu")
    assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device="cpu"), model, X, output="delta")


def test_a_graph_that_does_not_run_on_the_mutants():
    """Padded to an even number of rows: those of both traces are odd, and the mutants that verify are not."""

    def in_pairs(model, x):
        padded = torch.cat([x, x.new_zeros(int(len(x)) % 2, 4, 30)]).reshape(-1, 2, 4, 30).flatten(0, 1)
        return model.last(model.conv(padded)[: int(len(x))].relu().flatten(1))

    model, X = randomized(WithSize(in_pairs)).eval(), sequences(2, 30)
    with pytest.warns(YuzuWarning, match="the captured graph does not agree with the model"):
        found = yuzu.yuzu_ism(model, X, output="delta", device="cpu")
    assert_right(found, model, X, output="delta")


# ---- what is written and not read -------------------------------------------------------------------------------------------------------------


class Writing(nn.Module):
    """Writes down what it does, in buffers, attributes and lists; what it returns is by ``use``."""

    def __init__(self, use):
        super().__init__()
        self.conv, self.last, self.use = nn.Conv1d(4, 5, 3, padding=1), nn.Linear(5 * LENGTH, 2), use
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("more", torch.ones(3))
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("cache", torch.zeros(8, 5))
        self.register_buffer("empty", None)
        self.attribute, self.seen, self.kept, self.table, self.number = torch.zeros(()), None, [], {}, 0

    def forward(self, x):
        y = self.conv(x)
        given = self.use(self, x, y)
        return self.last((y if given is None else given).flatten(1))


def several_counters(m, x, y):
    m.calls.add_(1)
    m.more[0] += 1
    m.more.mul_(2)


def assigned(m, x, y):
    m.calls = m.calls + 1


def running_mean(m, x, y):
    m.mean.mul_(0.9).add_(y.mean((0, 2)), alpha=0.1)


def copied_mean(m, x, y):
    m.mean.copy_(0.9 * m.mean + 0.1 * y.detach().mean((0, 2)))


def largest(m, x, y):
    m.more[0] = torch.maximum(m.more[0], y.abs().max())


def rows_of_a_cache(m, x, y):
    m.cache[3] = y.mean((0, 2))
    m.cache.index_put_((torch.tensor([1]),), y[:1, :, 0])


def seen_last(m, x, y):
    m.seen, m.empty = y, y.mean(0)


def in_lists(m, x, y):
    m.kept.append(y)
    m.table["y"] = y.detach()
    m.number += 1


def in_place_on_an_attribute(m, x, y):
    m.attribute += 1


def input_written_over(m, x, y):
    return m.conv(x.mul_(2))


def overwritten_before_it_is_read(m, x, y):
    m.mean.copy_(y.mean((0, 2)))
    m.more.zero_().add_(2)
    return y * m.more[0]


WRITTEN = [several_counters, assigned, running_mean, copied_mean, largest, rows_of_a_cache, seen_last, in_lists, in_place_on_an_attribute,
           input_written_over, overwritten_before_it_is_read]  # fmt: skip


@pytest.mark.parametrize("use", WRITTEN)
def test_what_is_written_and_not_read_is_in_nobodys_way(use):
    model, X = randomized(Writing(use)).eval(), sequences(2, LENGTH)
    before, attribute = copy.deepcopy(model.state_dict()), model.attribute.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error", YuzuWarning)
        made = yuzu.precompute(model, LENGTH, device="cpu")
        for _ in range(2):
            assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device="cpu"), model, X, output="delta")
    assert made.decisions["naive_model"] is None and not made.decisions["naive"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(model.attribute, attribute) and model.seen is None and model.empty is None
    assert not model.kept and not model.table and model.number == 0


def read_after(m, x, y):
    m.calls += 1
    return y * m.calls


def read_before(m, x, y):
    scaled = y * (m.mean.sum() + 1)
    m.mean.add_(1)
    return scaled


def read_by_another(m, x, y):
    m.calls += 1
    m.more.add_(m.calls)
    return y + m.more[1]


def decided_by(m, x, y):
    m.calls += 1
    return y * 2 if m.calls > 2 else y


def partly_overwritten(m, x, y):
    m.cache[3] = y.mean((0, 2))
    return y + m.cache.sum()


def read_of_an_attribute(m, x, y):
    m.attribute += 1
    return y * m.attribute


@pytest.mark.parametrize("use", [read_after, read_before, read_by_another, decided_by, partly_overwritten, read_of_an_attribute])
def test_what_is_written_and_read_is_refused(use):
    with pytest.raises(CaptureError, match=r"forward changes '\w+' and reads it: what it returns depends on the calls before"):
        capture(randomized(Writing(use)).eval(), (4, LENGTH), (), torch.float32)
