"""Random architectures, a yardstick that shares no code with the engine, and chunks of edits, for the tests of the engine.

`brute_force` runs a model on every mutant in float64 and subtracts. `Laboratory` captures a model, plans it, runs chunks of edits, and
compares every node with running the graph's own operation on the mutants.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

from yuzu._engine.derived import Derived
from yuzu._engine.edits import Sites
from yuzu._engine.graph import Graph, Weights, evaluate
from yuzu._engine.plan.plan import make_plan
from yuzu._engine.rewrite.all import capture
from yuzu._engine.run.run import Run

torch.set_num_threads(1)
CPU = torch.device("cpu")


# ---- sequences and mutants -----------------------------------------------------------------------------------------------------------------


def one_hot(n: int, c: int, length: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Random one-hot sequences ``(n, c, length)``."""
    letters = torch.randint(c, (n, length), generator=torch.Generator().manual_seed(seed))
    return F.one_hot(letters, c).movedim(2, 1).to(dtype)


def tensors_of(output: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


@torch.no_grad()
def brute_force(
    model: torch.nn.Module, X: torch.Tensor, args: tuple[torch.Tensor, ...] = (), dtype: torch.dtype = torch.float64
) -> list[torch.Tensor]:
    """``y(mutant) - y(reference)`` for every substitution, ``(n, C, L, O...)`` for each output tensor, by a loop "
    "over sequences."""
    model_copy = copy.deepcopy(model).to(dtype).eval()
    X = X.to(dtype)
    args = tuple(a.to(dtype) if a.is_floating_point() else a for a in args)
    n, c, length = X.shape
    results: list[list[torch.Tensor]] = []
    for i in range(n):
        mutants = X[i].expand(c, length, c, length).clone()
        for p in range(length):
            mutants[:, p, :, p] = torch.eye(c, dtype=dtype)
        rows = mutants.flatten(0, 1)
        reference = tensors_of(model_copy(X[i : i + 1], *(a[i : i + 1] for a in args)))
        found = tensors_of(model_copy(rows, *(a[i : i + 1].expand(len(rows), *a.shape[1:]) for a in args)))
        change = [(m.to(dtype) - r.to(dtype)).unflatten(0, (c, length)) for m, r in zip(found, reference, strict=True)]
        for d in change:
            d[X[i] == 1] = 0
        results.append(change)
    return [torch.stack(tensors) for tensors in zip(*results, strict=True)]


@torch.no_grad()
def noise_of(model: torch.nn.Module, X: torch.Tensor, args: tuple[torch.Tensor, ...], truth: list[torch.Tensor]) -> list[float]:
    """The L2 norm that rounding the model's outputs to one part in 1e16 leaves in differences of theirs."""
    outputs = tensors_of(copy.deepcopy(model).double()(X.double(), *(a.double() if a.is_floating_point() else a for a in args)))
    return [1e-16 * float(y.abs().max()) * t.numel() ** 0.5 for y, t in zip(outputs, truth, strict=True)]


def relative_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Relative L2 error; the norm of what was found where the truth is zero."""
    scale = float(truth.norm())
    error = float((found.double() - truth.double()).norm())
    return error / scale if scale else error


# ---- chunks of edits -----------------------------------------------------------------------------------------------------------------------


@dataclass
class Chunk:
    """Edits for the engine, and the same edits written out as mutants for the yardstick."""

    name: str
    sites: Sites
    mutants: torch.Tensor  # (S * A, C, L)


def chunk(name: str, X: torch.Tensor, places: list[tuple[int, int]], width: int = 1, seed: int = 0) -> Chunk:
    """Edits at ``(sequence, position)``: with ``width=1`` every other letter, else random numbers over ``width`` "
    "positions."""
    _, c, length = X.shape
    sequence, position = np.array(places, dtype=np.int64).reshape(-1, 2).T
    before = torch.stack([X[s, :, p : p + width].T for s, p in places])  # (S, w, C)
    codes = None
    if width > 1:
        written = torch.rand(len(places), 2, width, c, dtype=X.dtype, generator=torch.Generator().manual_seed(seed))
    else:
        column = before[:, 0]
        coded = bool(((column == 1).sum(1) + (column == 0).all(1) == 1).all())
        letter = torch.where((column == 0).all(1), c, column.argmax(1)) if coded else torch.full((len(places),), c)
        others = torch.stack([torch.tensor([a for a in range(c) if a != int(k)]) for k in letter])
        written = torch.eye(c, dtype=X.dtype)[others].unsqueeze(2)
        codes = others * (c + 1) + letter[:, None] if coded else None
    difference = written - before[:, None]
    edits = difference.shape[1]
    mutants = X[torch.from_numpy(sequence)].repeat_interleave(edits, 0)
    for row in range(len(mutants)):
        first = int(position[row // edits])
        mutants[row, :, first : first + width] = written[row // edits, row % edits].T
    return Chunk(name, Sites(sequence, position, width, difference, codes), mutants)


def chunks(X: torch.Tensor) -> list[Chunk]:
    """Left edge, middle, right edge, all positions, both sequences, uneven, wide edits, an ``N`` and a soft column.

    ``X`` has two sequences; the second is given an ``N`` and a soft column at its positions 2 and 3 (see `laboratory_sequences`).
    """
    length = X.shape[2]
    plain = [p for p in range(length) if length < 5 or p not in (2, 3)]
    made = [
        chunk("left edge", X, [(0, 0), (0, 1)]),
        chunk("middle", X, [(0, length // 2)]),
        chunk("right edge", X, [(0, length - 2), (0, length - 1)]),
        chunk("all positions", X, [(0, p) for p in range(length)]),
        chunk("both sequences", X, [(0, p) for p in range(length)] + [(1, p) for p in plain]),
        chunk("uneven", X, [(1, p) for p in (0, length // 2 + 1, length - 1) if p in plain]),
        chunk("three wide", X, [(0, 0), (0, (length - 3) // 2), (1, length - 3)], width=3),
    ]
    return made if length < 5 else [*made, chunk("N", X, [(1, 2)]), chunk("soft", X, [(1, 3)])]


def laboratory_sequences(c: int, length: int, seed: int = 0) -> torch.Tensor:
    """Two sequences; the second has an ``N`` at position 2 and a soft column at 3 (unless it is shorter than five)."""
    X = one_hot(2, c, length, seed)
    if length >= 5:
        X[1, :, 2] = 0
        X[1, :, 3] = torch.rand(c, dtype=X.dtype, generator=torch.Generator().manual_seed(seed))
    return X


# ---- the law -------------------------------------------------------------------------------------------------------------------------------


@dataclass
class Laboratory:
    """A model captured and planned, with reference sequences; `problems` checks the handler law at every node.

    The graph is captured once in the model's own dtype and may be run in another.
    """

    model: torch.nn.Module
    X: torch.Tensor
    args: tuple[torch.Tensor, ...] = ()
    graph: Graph | None = None
    plan: Any = field(init=False)
    _truths: dict[str, tuple[list[Any], list[Any]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.model = self.model.eval()
        if self.graph is None:
            dtype = self.X.dtype
            self.graph = capture(self.model, (self.X.shape[1], self.X.shape[2]), self.args, dtype)
        self.plan = make_plan(self.graph)
        self.model_copy = self.in_dtype(torch.float64)

    def run(self, dtype: torch.dtype = torch.float64) -> Run:
        """Ready to run chunks; like ``yuzu_ism``, with plain values from where the reference is infinite."""
        weights, derived = Weights(self.in_dtype(dtype), CPU), Derived()
        X, args = self.X.to(dtype), self.rows(None, dtype)
        constants = {n.index: n.value for n in self.graph.nodes if n.value is not None}
        for i, value in constants.items():  # tables made in forward follow the dtype too
            self.graph.nodes[i].value = value.to(dtype) if value.is_floating_point() else value
        run = Run(self.plan, weights, derived, CPU)
        run.set_reference(X, args)
        infinite = run.unfit_for_differences()
        if infinite:
            run = Run(self.plan.without(dict.fromkeys(infinite, "infinite")), weights, derived, CPU)
            run.set_reference(X, args)
        for i, value in constants.items():
            self.graph.nodes[i].value = value
        return run

    def in_dtype(self, dtype: torch.dtype) -> torch.nn.Module:
        """The model, or a copy of it in another dtype (also of tensors that are plain attributes)."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        if all(t.dtype == dtype for t in tensors if t.is_floating_point()):
            return self.model
        made = copy.deepcopy(self.model).to(dtype)
        for module in made.modules():
            for name, value in list(vars(module).items()):
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    setattr(module, name, value.to(dtype))
        return made

    def rows(self, sequence: np.ndarray | None, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        args = tuple(a.to(dtype) if a.is_floating_point() else a for a in self.args)
        return args if sequence is None else tuple(a[torch.from_numpy(sequence)] for a in args)

    def families(self) -> dict[int, str]:
        """The family that each mutated node is handled by."""
        found = {}
        for node in self.graph.nodes:
            if node.kind == "call" and node.mutated and self.plan.readers[node.index]:
                rule = self.plan.rules[node.index]
                found[node.index] = "naive" if rule is None else rule.family
        return found

    @torch.no_grad()
    def problems(self, made: list[Chunk], dtype: torch.dtype = torch.float64, tolerance: float = 1e-10) -> Iterator[tuple[int, str]]:
        """``(node, sentence)`` for everything that breaks the law; the truth is always float64."""
        run, truth_run = self.run(dtype), self.run()
        for item in made:
            values, reference = self._truth(item, truth_run)
            yield from self._outputs(run, item, values, reference, dtype, tolerance)
            run.keep_all = True
            try:
                windows = run.set_sites(self._sites(item, dtype))
                run.chunk(run.sites)
                for node in self.graph.nodes:
                    i = node.index
                    if node.kind == "call" and node.mutated and self.plan.readers[i] and node.shape is not None:
                        for sentence in self._node(run, i, windows[i], values[i], reference[i], item, tolerance):
                            yield i, f"{item.name}: {sentence}"
            finally:
                run.keep_all = False

    def _sites(self, item: Chunk, dtype: torch.dtype) -> Sites:
        s = item.sites
        return Sites(s.sequence, s.position, s.width, s.difference.to(dtype), s.codes)

    def _truth(self, item: Chunk, run: Run) -> tuple[list[Any], list[Any]]:
        """Every node's value for the mutants and for their references, one row a mutant, by running the graph."""
        if item.name in self._truths:
            return self._truths[item.name]
        edits = item.sites.difference.shape[1]
        sequence = item.sites.sequence.repeat(edits)
        args = self.rows(sequence, torch.float64)
        found: list[list[Any]] = []
        for X in (item.mutants, self.X.double()[torch.from_numpy(sequence)]):
            values: list[Any] = []
            for node in self.graph.nodes:
                values.append(run.leaf(node, X, args) if node.kind != "call" else evaluate(node, values.__getitem__, CPU))
            found.append(values)
        self._truths[item.name] = (found[0], found[1])
        return self._truths[item.name]

    def _outputs(
        self, run: Run, item: Chunk, values: list[Any], reference: list[Any], dtype: torch.dtype, tolerance: float
    ) -> Iterator[tuple[int, str]]:
        """Outputs, with changes dropped and overwritten as in a real run; against the model itself, not its graph."""
        changes = run.chunk(self._sites(item, dtype))
        edits = item.sites.difference.shape[1]
        sequence = item.sites.sequence.repeat(edits)
        args = self.rows(sequence, torch.float64)
        mutant, before = tensors_of(self.model_copy(item.mutants, *args)), tensors_of(self.model_copy(self.X.double()[torch.from_numpy(sequence)], *args))
        outputs = [(o, c) for o, c in zip(self.graph.outputs, changes, strict=True) if isinstance(o, int)]
        assert len(outputs) == len(mutant)
        for (o, change), m, b in zip(outputs, mutant, before, strict=True):
            if self.graph.nodes[o].mutated:
                found = self.difference(run, o, change)
                sentence = disagreement(found, m, b, tolerance)
                if sentence:
                    yield o, f"{item.name}: output {sentence}"
            elif not torch.equal(m, b):
                yield o, f"{item.name}: said not to depend on the sequence, but does"

    @staticmethod
    def difference(run: Run, index: int, change: Any) -> torch.Tensor:
        """The change of a node as ``yuzu_ism`` reads it: mutant minus reference, ``(S * A, ...)``, float64."""
        if change is not None and (change.mutant or run.plan.layouts[index].kind == "values"):
            rows = change.tensor if run.plan.layouts[index].kind == "values" else run.mutants(index, change)
            grid = run.sites.difference.shape[:2]
            return (wide(rows).unflatten(0, grid) - wide(run.of_sites(run.value(index)))).flatten(0, 1)
        return wide(run.whole(index, change).flatten(0, 1))

    def _node(
        self, run: Run, i: int, window: Any, mutant: Any, reference: Any, item: Chunk, tolerance: float
    ) -> Iterator[str]:
        layout = run.plan.layouts[i]
        if layout.kind == "values":  # whole values, in whatever shape the operation returns them
            sentence = disagreement(wide(run._changes[i].tensor), mutant, torch.zeros_like(mutant), tolerance)
            if sentence:
                yield sentence
            return
        found = self.difference(run, i, run._changes[i])
        if found.shape != mutant.shape:
            yield f"shape {tuple(found.shape)}, not {tuple(mutant.shape)}"
            return
        if layout.kind != "windows":
            sentence = disagreement(found, mutant, reference, tolerance)
            if sentence:
                yield sentence
            return
        low, high = run.plan.needed[i]
        found, mutant, reference = (layout.position_first(v) for v in (found, mutant, reference))
        edits = item.sites.difference.shape[1]
        judged = torch.zeros(found.shape[:2], dtype=torch.bool)
        judged[:, low:high] = True
        if window is not None and window.natural is not None:  # all that is carried must be right, needed or not
            for row, start in enumerate(window.start.repeat(edits)):
                judged[row, start : start + window.width] = True
        sentence = disagreement(found[judged], mutant[judged], reference[judged], tolerance)
        if sentence:
            yield sentence
        if window is None:
            return
        found, mutant, reference = (v[:, low:high] for v in (found, mutant, reference))
        position = np.arange(low, high)
        outside = (position < window.first.repeat(edits)[:, None]) | (position >= window.stop.repeat(edits)[:, None])
        change = (wide(mutant) - wide(reference)).abs()
        change = change.flatten(2).amax(2) if mutant.dim() > 2 else change
        change = torch.nan_to_num(change, nan=0.0, posinf=1.0)
        if change.numel() and float(change[torch.from_numpy(outside)].amax() if outside.any() else 0) > max(1e-12, tolerance / 10) * max(1.0, float(change.max())):
            yield "changes outside the declared window"


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """In double precision."""
    return tensor.to(torch.complex128) if tensor.is_complex() else tensor.double()


def disagreement(found: torch.Tensor, mutant: torch.Tensor, reference: torch.Tensor, tolerance: float) -> str | None:
    """Why ``found`` is not ``mutant - reference`` within ``tolerance`` of the largest value, or None.

    Where either is infinite no difference is defined, and only the node that reads it can be judged.
    """
    if found.shape != mutant.shape:
        return f"has shape {tuple(found.shape)}, not {tuple(mutant.shape)}"
    if not found.numel():
        return None
    mutant, reference = wide(mutant), wide(reference)
    finite = torch.isfinite(mutant) & torch.isfinite(reference)
    if not finite.any():
        return None
    truth = (mutant - reference)[finite]
    error = (wide(found)[finite] - truth).abs()
    scale = max(float(truth.abs().max()), 1e-3 * float(mutant[finite].abs().max()), 1e-30)
    worst = float(torch.nan_to_num(error, nan=float("inf")).max())
    return f"is off by {worst / scale:.1e} of the largest" if worst > tolerance * scale else None


# ---- small modules to build cases from -----------------------------------------------------------------------------------------------------


class Fn(torch.nn.Module):
    """A function as a module, with submodules and parameters that it gets as first argument."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, torch.nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.takes_self = bool(parts)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(self, *inputs) if self.takes_self else self.function(*inputs)


# ---- random architectures ------------------------------------------------------------------------------------------------------------------


@dataclass
class RandomModel:
    """A model drawn by `random_model`, sequences and other inputs for it, and what it is made of."""

    model: torch.nn.Module
    X: torch.Tensor
    args: tuple[torch.Tensor, ...]
    blocks: list[str]


class Net(torch.nn.Module):
    """Blocks in a row, then one or two heads; other inputs go to the blocks and heads that ask for them."""

    def __init__(self, blocks: list[torch.nn.Module], heads: list[torch.nn.Module], container: str) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(blocks)
        self.heads = torch.nn.ModuleList(heads)
        self.container = container

    def forward(self, x: torch.Tensor, *extras: torch.Tensor) -> Any:
        for block in self.blocks:
            x = block(x, *extras)
        outputs = [head(x, *extras) for head in self.heads]
        if self.container == "dict":
            return {f"head{i}": y for i, y in enumerate(outputs)}
        return outputs[0] if self.container == "tensor" else tuple(outputs)


class Draw:
    """One draw of a block: random choices, and the shape of what comes in."""

    def __init__(self, rng: random.Random, shape: tuple[int, int], extra: int) -> None:
        self.rng, (self.c, self.length), self.extra = rng, shape, extra

    def kernel(self, most: int = 9) -> tuple[int, int]:
        """A kernel and a dilation that fit the sequence."""
        k = self.rng.randint(1, min(most, self.length))
        d = self.rng.choice([1, 1, 2, 3, 4])
        return k, d if (k - 1) * d < self.length else 1

    def same(self, out: int) -> nn.Module:
        """A convolution that keeps the length."""
        k, d = self.kernel()
        k -= k % 2 == 0
        return nn.Conv1d(self.c, out, k, padding=(k - 1) * d // 2, dilation=d)

    def activation(self) -> nn.Module:
        return self.rng.choice(
            [nn.ReLU, nn.ReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.LeakyReLU, nn.ReLU6, nn.PReLU]
        )()


def call(function: Callable[..., Any], **parts: Any) -> nn.Module:
    """A block of a function ``(module, x)``, which does not read other inputs."""
    return Fn(lambda m, x, *extras: function(m, x), **(parts or {"none": torch.zeros(1)}))


def convolution(d: Draw) -> nn.Module:
    k, dilation = d.kernel()
    reach = (k - 1) * dilation
    out = d.rng.choice([2, 4, 6, 8])
    groups = d.rng.choice([1, 1, 1, 2]) if d.c % 2 == 0 else 1
    stride = d.rng.choice([1, 1, 1, 1, 2, 3])
    padding: Any = d.rng.choice([0, reach // 2, reach // 2, reach, "same" if stride == 1 else 1])
    return nn.Conv1d(d.c, out, k, stride, padding, dilation, groups, bias=d.rng.random() < 0.8)


def convolution_2d(d: Draw) -> nn.Module:
    k, dilation = d.kernel()
    out = d.rng.choice([2, 4, 6])
    pad = (k - 1) * dilation // 2
    kind = d.rng.choice(["row", "column", "letters"])
    if kind == "row":
        return call(lambda m, x: m.conv(x.unsqueeze(2)).squeeze(2), conv=nn.Conv2d(d.c, out, (1, k), padding=(0, pad), dilation=(1, dilation)))
    if kind == "column":
        return call(lambda m, x: m.conv(x.unsqueeze(3)).squeeze(3), conv=nn.Conv2d(d.c, out, (k, 1), padding=(pad, 0), dilation=(dilation, 1)))
    return call(lambda m, x: m.conv(x.unsqueeze(1)).squeeze(2), conv=nn.Conv2d(1, out, (d.c, k), padding=(0, pad), dilation=(1, dilation)))


def pool(d: Draw) -> nn.Module:
    k = d.rng.randint(2, min(5, d.length))
    stride, padding = d.rng.choice([k, k, 1, 2, k + 1]), d.rng.choice([0, 0, k // 2])
    ceil = d.rng.random() < 0.3
    if d.rng.random() < 0.6:
        return nn.MaxPool1d(k, stride, padding, d.rng.choice([1, 1, 2]) if d.length > 2 * k else 1, ceil_mode=ceil)
    return nn.AvgPool1d(k, stride, padding, ceil, d.rng.random() < 0.5)


def norm(d: Draw) -> nn.Module:
    kind = d.rng.choice(["batch", "batch", "layer", "group", "instance"])
    if kind == "layer":
        return call(lambda m, x: m.norm(x.transpose(1, 2)).transpose(1, 2), norm=nn.LayerNorm(d.c))
    if kind == "group":
        return nn.GroupNorm(2 if d.c % 2 == 0 else 1, d.c)
    return nn.InstanceNorm1d(d.c, affine=True) if kind == "instance" and d.length > 1 else nn.BatchNorm1d(d.c)


def residual(d: Draw) -> nn.Module:
    inner = nn.Sequential(d.activation(), d.same(d.c), d.activation(), d.same(d.c))
    if d.rng.random() < 0.3 and d.length > 4:
        return call(lambda m, x: x[:, :, 1:-1] + m.conv(m.inner(x)), inner=inner, conv=nn.Conv1d(d.c, d.c, 3))
    return call(lambda m, x: x + m.inner(x), inner=inner)


def concatenated(d: Draw) -> nn.Module:
    parts = {"a": d.same(2), "b": nn.Sequential(d.same(3), d.activation()), "c": nn.MaxPool1d(3, 1, 1)}
    axis = d.rng.choice([1, 1, 2])
    if axis == 2:
        parts = {"a": d.same(d.c), "b": nn.Sequential(d.same(d.c), d.activation()), "c": nn.AvgPool1d(2)}
        if d.length < 2:
            parts["c"] = nn.Identity()
    return call(lambda m, x: torch.cat([m.a(x), x, m.b(x), m.c(x)], axis), **parts)


def squeeze_and_excite(d: Draw) -> nn.Module:
    if d.rng.random() < 0.5:
        return call(lambda m, x: x * torch.sigmoid(m.fc(x.mean(2))).unsqueeze(2), fc=nn.Linear(d.c, d.c))
    return call(lambda m, x: x * m.gate(x), gate=nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Conv1d(d.c, d.c, 1), nn.Sigmoid()))


def gate(d: Draw) -> nn.Module:
    if d.rng.random() < 0.5:
        return nn.Sequential(d.same(2 * d.c), nn.GLU(1))
    return call(lambda m, x: torch.tanh(m.a(x)) * torch.sigmoid(m.b(x)), a=d.same(d.c), b=d.same(d.c))


def crop(d: Draw) -> nn.Module:
    kind = d.rng.choice(["crop", "pad", "flip", "step", "negative", "mirror", "pick", "repeat"])
    left, right = d.rng.randint(0, max(d.length // 4, 0)), d.rng.randint(0, max(d.length // 4, 0))
    if kind == "crop":
        return call(lambda m, x: x[:, :, left : x.shape[2] - right])
    if kind == "pad":
        return call(lambda m, x: F.pad(x, (left, right), value=0.3))
    if kind == "flip":
        return call(lambda m, x: x.flip(2))
    if kind == "mirror":
        return call(lambda m, x: m.conv(x) + m.conv(x.flip([1, 2])).flip(2), conv=d.same(d.c))
    if kind == "pick":
        other = [d.rng.randrange(-d.c, d.c) for _ in range(d.c)]
        return call(lambda m, x: m.conv(x) + m.conv(x[:, other].flip(2)).flip(2), conv=d.same(d.c))
    if kind == "repeat":
        return call(lambda m, x: m.conv(x.repeat(1, 2, 1)), conv=nn.Conv1d(2 * d.c, d.c, 3, padding=1))
    if kind == "negative":
        return call(lambda m, x: F.pad(x, (-left, right)))
    return call(lambda m, x: x[:, :, left % 2 :: 2]) if d.length > 3 else call(lambda m, x: x.flip(1))


def table(d: Draw) -> nn.Module:
    shape = d.rng.choice([(1, d.c, d.length), (d.c, 1), (d.length,), (d.c, d.length), (1, 1, d.length)])
    parameter = nn.Parameter(torch.rand(shape) + 0.5)
    if d.rng.random() < 0.5:
        return call(lambda m, x: x + m.table, table=parameter)
    return call(lambda m, x: m.scale * x / m.table, table=parameter, scale=2.0)


def channelwise(d: Draw) -> nn.Module:
    kind = d.rng.choice(["softmax", "linear", "mask", "clamp", "einsum"])
    if kind == "softmax":
        return call(lambda m, x: x.softmax(1) * 3)
    if kind == "linear":
        return call(lambda m, x: m.fc(x.transpose(1, 2)).transpose(1, 2), fc=nn.Linear(d.c, 5))
    if kind == "mask":
        return call(lambda m, x: torch.where(x > 0, x, 0.2 * x) + x * (x > 0.1))
    if kind == "clamp":
        return call(lambda m, x: x.clamp(-0.7, 0.9))
    return call(lambda m, x: torch.einsum("bcl,cd->bdl", x, m.w), w=nn.Parameter(torch.randn(d.c, 4)))


def resample(d: Draw) -> nn.Module:
    if d.length > 24:
        return pool(d)
    if d.rng.random() < 0.5:
        return nn.Upsample(scale_factor=2)
    k, s = d.rng.randint(1, 4), d.rng.randint(1, 3)
    return nn.ConvTranspose1d(d.c, 4, k, s, d.rng.randint(0, k // 2))


def grouped(d: Draw) -> nn.Module:
    """Enformer's attention pool."""
    size = d.rng.choice([s for s in (1, 2, 3, 4) if d.length % s == 0])

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = x.reshape(x.shape[0], x.shape[1], x.shape[2] // size, size)
        return (y * m.logits(y).softmax(-1)).sum(-1)

    return call(forward, logits=nn.Conv2d(d.c, d.c, 1, bias=False))


def conditioned(d: Draw) -> nn.Module:
    """Reads the other inputs: a vector, and a track along the positions of the sequence."""
    if not d.extra:
        return d.activation()

    def forward(m: Any, x: torch.Tensor, vector: torch.Tensor, track: torch.Tensor) -> torch.Tensor:
        if m.lengths[0] == x.shape[2]:
            x = torch.cat([x, track], 1) if m.lengths[1] else x * track
        return x * m.scale(vector).unsqueeze(2)

    joined = d.rng.random() < 0.5 and d.length == d.extra
    return Fn(forward, scale=nn.Linear(3, d.c + joined), lengths=[d.extra, int(joined)])


def attention(d: Draw) -> nn.Module:
    if d.length > 16:
        return pool(d)

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = x.transpose(1, 2)
        return (y + F.scaled_dot_product_attention(m.q(y), m.k(y), m.v(y))).transpose(1, 2)

    return call(forward, q=nn.Linear(d.c, 4), k=nn.Linear(d.c, 4), v=nn.Linear(d.c, d.c))


BLOCKS: list[tuple[Callable[[Draw], nn.Module], int]] = [
    (convolution, 8), (convolution_2d, 2), (pool, 3), (norm, 3), (Draw.activation, 4), (residual, 3), (concatenated, 2),
    (squeeze_and_excite, 1), (gate, 1), (crop, 2), (table, 1), (channelwise, 2), (resample, 1), (grouped, 1), (conditioned, 1), (attention, 1),
]  # fmt: skip


def head(d: Draw) -> tuple[str, nn.Module]:
    flat = d.c * d.length
    heads: dict[str, Callable[[], nn.Module]] = {
        "flatten": lambda: call(lambda m, x: m.fc(x.flatten(1)), fc=nn.Linear(flat, 3)),
        "flatten L,C": lambda: call(lambda m, x: m.fc(x.transpose(1, 2).flatten(1)), fc=nn.Linear(flat, 2)),
        "mlp": lambda: call(lambda m, x: m.net(x.reshape(x.shape[0], -1)), net=nn.Sequential(
            nn.BatchNorm1d(flat), nn.ReLU(), nn.Linear(flat, 5), nn.Dropout(), d.activation(), nn.Linear(5, 2))),
        "mean": lambda: call(lambda m, x: m.fc(x.mean(2)), fc=nn.Linear(d.c, 2)),
        "max": lambda: call(lambda m, x: m.fc(x.amax(-1)), fc=nn.Linear(d.c, 2)),
        "adaptive": lambda: call(lambda m, x: m.net(x), net=nn.Sequential(nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(d.c, 2))),
        "sum": lambda: call(lambda m, x: x.sum((1, 2))[:, None]),
        "profile": lambda: call(lambda m, x: m.conv(x), conv=d.same(2)),
        "profile softmax": lambda: call(lambda m, x: m.conv(x).log_softmax(-1), conv=d.same(1)),
        "scores at positions": lambda: call(lambda m, x: torch.sigmoid(m.fc(x.transpose(1, 2))), fc=nn.Linear(d.c, 3)),
        "last position": lambda: call(lambda m, x: m.fc(x[:, :, -1]), fc=nn.Linear(d.c, 2)),
        "over positions": lambda: call(lambda m, x: F.relu(m.fc(x)).mean(1), fc=nn.Linear(d.length, 3)),
        "as it is": lambda: call(lambda m, x: x),
    }  # fmt: skip
    name = d.rng.choice(list(heads))
    return name, heads[name]()


def random_model(seed: int) -> RandomModel:
    """Architecture number ``seed``: always the same, with weights and normalisation statistics as after training."""
    rng = random.Random(seed)
    n_choices = rng.choice([4, 4, 4, 4, 5])
    length = rng.randint(9, 36) if rng.random() < 0.85 else rng.randint(1, 8)
    extra = length if rng.random() < 0.25 else 0
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        args = (torch.rand(2, 3) + 0.5, torch.rand(2, 1, length)) if extra else ()
        x = torch.rand(2, n_choices, length)
        X = one_hot(2, n_choices, length, seed, torch.float32)
        if rng.random() < 0.2:
            X[1, :, rng.randrange(length)] = 0  # an N
        blocks: list[nn.Module] = []
        names: list[str] = []
        wanted = rng.randint(1, 7)
        while len(blocks) < wanted:
            make = rng.choices([b for b, _ in BLOCKS], [w for _, w in BLOCKS])[0]
            if not blocks and rng.random() < 0.7:
                make = convolution
            try:
                block = make(Draw(rng, (x.shape[1], x.shape[2]), extra)).eval()
                y = block(x, *args) if isinstance(block, Fn) else block(x)
            except (RuntimeError, ValueError):
                continue  # does not fit this length
            if y.shape[2] < 1 or y.shape[2] > 60 or y.shape[1] > 24:
                continue
            blocks.append(block if isinstance(block, Fn) else Fn(lambda m, v, *rest: m.block(v), block=block))
            names.append(f"{make.__name__} {tuple(y.shape[1:])}")
            x = y
        drawn = [head(Draw(rng, (x.shape[1], x.shape[2]), extra)) for _ in range(rng.choice([1, 1, 2]))]
        container = "tensor" if len(drawn) == 1 else rng.choice(["tuple", "dict"])
        model = Net(blocks, [h for _, h in drawn], container)
        settle(model)
    names = [f"{n_choices} x {length}", *names, *(f"head: {name}" for name, _ in drawn)]
    return RandomModel(model.eval(), X, args, names)


def settle(model: torch.nn.Module) -> None:
    """Statistics and scales of normalisations as after training."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_var is not None:
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
