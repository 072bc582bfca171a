"""Models and helpers that tests of capturing share."""

import collections
import dataclasses
import functools
import logging
import tempfile
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import yuzu
from tests.laws.random_models import (
    CPU,
    brute_force,
    one_hot,
    relative_error,
    tensors_of,
)
from yuzu._engine.graph import Graph, Weights, evaluate
from yuzu._engine.rewrite.all import capture
from yuzu.errors import YuzuWarning

LENGTH = 12


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


def assert_right_or_refused(model: nn.Module) -> Any:
    X = one_hot(2, 4, LENGTH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", YuzuWarning)
        made = yuzu.precompute(model, LENGTH, device="cpu")
        for a, b in zip(tensors_of(yuzu.yuzu_ism(model, X, made, output="delta", device="cpu")), truth_of(model, X), strict=True):
            assert relative_error(a, b) < 1e-12
    return made


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


class Remembers(nn.Module):
    """Returns another result after earlier calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.register_buffer("calls", torch.zeros(1, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.conv(x) * self.calls
