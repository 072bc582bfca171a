"""Rules after a statistic: a value of few numbers that all positions of a sequence make, and that all of them read.

Outside of its window a mutant differs from the reference by the changes ``s`` of such statistics alone. There its value
is the reference's with other statistics, which a Taylor series in ``s`` gives. A change is carried as

    remainder on the window  +  series everywhere

A linear operation takes the two apart, and needs nothing new. With ``r`` a statistic, ``D`` the remainder before and
``t = sum_j s_j dR/ds_j`` the first term of the series before it, the remainders after others are

    product with r:    D (r + s_r)
    smooth function:   f(R + D + t) - f(R) - f'(R) t - f''(R) t^2 / 2

A mutant whose terms of second order are not far smaller than those of first order, at any function, runs naively.
"""

from __future__ import annotations

import copy
import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from yuzu._engine import ops
from yuzu._engine.choice import Choice
from yuzu._engine.context import Context
from yuzu._engine.graph import Node, map_refs
from yuzu._engine.handlers.contract import Rule, Spans, View
from yuzu._engine.handlers.facts import RuleMemory, Sizes
from yuzu._engine.layout import Change, Layout, rewindow
from yuzu._engine.window import Integers, Window

# Terms of second order over those of first order, at a function or an output, above which a mutant runs naively. Those
# of third order, which are left out, are about its square: 4e-6 of the change at most. Ordinary mutants of sequences of
# 140 positions and more stay below it.
MOST_SECOND_ORDER = 2e-3

# PyTorch's derivatives are kept in levels that all threads share.
DIFFERENTIATING = threading.RLock()


class ByStatistic(Rule):
    """The product of a windowed value with a statistic, or its quotient by one."""

    family = "statistic"
    after_statistics = True

    def __init__(self, view: View, layout: Layout, operand: int, statistic: int, quotient: bool) -> None:
        super().__init__(view, layout)
        self.operand, self.statistic, self.quotient = operand, statistic, quotient

    def window(self, windows: Spans) -> tuple[Integers, Integers]:
        window = windows[self.sources.index(self.operand)]
        assert window is not None
        return window.first, window.stop

    def needed(self, low: int, high: int) -> list[tuple[int, int]]:
        return [(low, high) if s == self.operand else (0, 0) for s in self.sources]

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        found = dict(zip(self.sources, changes, strict=True))
        change, moved = found[self.operand], found[self.statistic]
        assert change is not None and change.window is not None and window is not None
        grid = run.sites.difference.shape[:2]
        if self.quotient and moved is not None:  # a product has no terms of third order
            relative = moved.tensor / run.of_sites(run.value(self.statistic))
            run.doubt(~(relative.abs() <= MOST_SECOND_ORDER))
        factor = run.mutants(self.statistic, moved)  # (S * A, ...), with one number along the positions
        layout = self.layout
        if layout.composite:
            factor = factor.movedim(layout.axis, 1).unsqueeze(layout.axis + 1).unsqueeze(layout.axis + 1)
        else:
            factor = factor.movedim(layout.axis, 1)
        factor = factor.unflatten(0, grid) if factor.shape[0] != 1 else factor.unsqueeze(0)
        difference = rewindow(change.tensor, change.window, window)
        return difference / factor if self.quotient else difference * factor


class Smooth(Rule):
    """A smooth function of windowed values that follow statistics; ``inner`` is its rule where none precede it."""

    after_statistics = True

    def __init__(self, view: View, inner: Rule) -> None:
        super().__init__(view, inner.layout)
        self.inner, self.family, self.numerics = inner, inner.family, inner.numerics
        self.sources, self.source_layouts = inner.sources, inner.source_layouts

    def window(self, windows: Spans) -> tuple[Integers, Integers]:
        return self.inner.window(windows)

    def needed(self, low: int, high: int) -> list[tuple[int, int]]:
        return self.inner.needed(low, high)

    def reads(self) -> list[int]:
        return self.inner.reads()

    def detail(self) -> str:
        return ", ".join(filter(None, (self.inner.detail(), "second order")))

    def memory(self, choice: Choice, sizes: Sizes) -> RuleMemory:
        inner = self.inner.memory(choice, sizes)
        slopes = 2 * len(self.sources) ** 2 * sizes.result
        return RuleMemory(inner.weights, inner.tables + slopes, inner.largest, max(inner.blocks, 4) + 3)

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        assert window is not None
        given: list[Change | None] = []
        first: dict[int, torch.Tensor] = {}
        for source, change in zip(self.sources, changes, strict=True):
            before = run.first_order(source, window)
            if before is None:
                given.append(change)
                continue
            first[source] = before
            if change is None:
                given.append(Change(before.clone(), window))
            else:
                assert change.window is not None
                given.append(Change(rewindow(change.tensor, change.window, window) + before, window))
        run.doubt(~(_second_over_first(run, self, list(first)) <= MOST_SECOND_ORDER))
        result = self.inner.run(run, given, window)
        return subtract_series(run, self, first, result, window)


def subtract_series(
    run: Context, rule: Rule, first: dict[int, torch.Tensor], result: torch.Tensor, window: Window
) -> torch.Tensor:
    """Subtract what the terms of first order before a function make of it, up to second order. ``result`` is written
    over.
    """
    node = rule.node
    if not ops.is_pointwise(node.op, node.target):
        return result - _series_of_rows(run, rule, first, window)
    for a in first:
        total = _derivative_on_window(run, rule, (a,), window)
        for b in first:
            curve = _derivative_on_window(run, rule, (a, b), window, 0.5)
            if curve is not None:
                total = first[b] * curve if total is None else torch.addcmul(total, first[b], curve)
        if total is not None:
            whole = torch.broadcast_shapes(first[a].shape, total.shape) == result.shape and 0 not in result.stride()
            subtracted = result.addcmul_ if whole else result.addcmul
            result = subtracted(first[a], total, value=-1)
    return result


def _second_over_first(run: Context, rule: Rule, sources: list[int]) -> torch.Tensor:
    """How large the terms of second order of a function are beside those of first order, over all positions: a number
    for each mutant ``(S, A)``, from root mean squares.
    """
    node, sizes = rule.node, {s: run.first_order_size(s) for s in sources}
    if not ops.is_pointwise(node.op, node.target):
        (source,) = sources
        curve = run.reference.made(("curvature", node.index), lambda: _curvature(run, node, source))
        return sizes[source] * curve
    second = torch.zeros_like(next(iter(sizes.values())))
    first = torch.zeros_like(second)
    for a in sources:
        first += sizes[a] * _derivative_size(run, node, (a,))
        for b in sources:
            second += 0.5 * sizes[a] * sizes[b] * _derivative_size(run, node, (a, b))
    return torch.where(second > 0, second / first, 0)


def _derivative_size(run: Context, node: Node, by: tuple[int, ...]) -> torch.Tensor:
    """The root mean square of a derivative over all positions."""

    def make() -> torch.Tensor:
        found = derivative(run, node, by)
        return torch.zeros((), device=run.device) if found is None else found.square().mean().sqrt()

    return run.reference.made(("size of derivative", node.index, by), make)


def _curvature(run: Context, node: Node, source: int) -> torch.Tensor:
    """Half the second derivative over the first, both along the sum of the terms of first order, each of size 1."""
    function, x, along = operation_of(run, node, source), run.value(source), run.direction(source)
    along = along / along.square().mean().sqrt()
    with DIFFERENTIATING, torch.enable_grad():
        found: Any = torch.func.jvp(lambda y: jvp(function, (y,), (along,)), (x,), (along,))
    slope, curve = (t.square().mean() for t in found)
    return torch.where(curve > 0, 0.5 * (curve / slope).sqrt(), 0)


def _derivative_on_window(
    run: Context, rule: Rule, by: tuple[int, ...], window: Window, factor: float = 1.0
) -> torch.Tensor | None:
    """The derivative of a pointwise operation by some of its sources, times a factor, on a window; None if it is zero
    everywhere.
    """
    whole = derivative(run, rule.node, by)
    if whole is None:
        return None
    key = ("derivative", rule.node.index, by)
    return run.made_on_window(key, lambda: rule.layout.position_first(whole) * factor, window)


def jvp(function: Callable[..., torch.Tensor], values: Sequence[torch.Tensor], along: Sequence[torch.Tensor]) -> Any:
    """The derivative of a function at ``values`` along tangents. PyTorch differentiates some operations twice only
    where gradients are enabled.
    """
    _load_jvp()
    with DIFFERENTIATING, torch.enable_grad():
        return torch.func.jvp(function, tuple(values), tuple(along))[1]


@functools.cache
def _load_jvp() -> None:
    """Have PyTorch load its derivatives, once, without its own warning that it uses `torch.jit.script` for them."""
    one = torch.ones(())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (one,), (one,))


def derivative(run: Context, node: Node, by: tuple[int, ...]) -> torch.Tensor | None:
    """The derivative of a pointwise operation by some of the nodes it reads, at the reference: ``(B, ...)``; None if it
    is zero everywhere.
    """

    def make() -> torch.Tensor:
        with DIFFERENTIATING:
            return differentiated()

    def differentiated() -> torch.Tensor:
        function = operation_of(run, node, by[0])
        ones = torch.ones_like(run.value(by[0]))
        if len(by) == 1:
            return jvp(function, (run.value(by[0]),), (ones,))
        if by[0] == by[1]:
            return jvp(lambda x: jvp(function, (x,), (ones,)), (run.value(by[0]),), (ones,))
        others = torch.ones_like(run.value(by[1]))

        def slope(y: torch.Tensor) -> torch.Tensor:
            return jvp(operation_of(run, node, by[0], {by[1]: y}), (run.value(by[0]),), (ones,))

        return jvp(slope, (run.value(by[1]),), (others,))

    found = run.reference.made(("derivative of", node.index, by), make)
    return found if run.reference.made(("is not zero", node.index, by), found.any) else None


def operation_of(
    run: Context, node: Node, index: int, others: dict[int, torch.Tensor] | None = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A node as a function of the value of one node it reads; the rest is the reference's, or that of ``others``."""

    def function(x: torch.Tensor) -> torch.Tensor:
        def value(i: int) -> Any:
            return x if i == index else run.value(i) if others is None or i not in others else others[i]

        args, kwargs = (map_refs(a, lambda ref: value(ref.index)) for a in (node.args, node.kwargs))
        result = differentiable(node)(*args, **kwargs)
        assert isinstance(result, torch.Tensor)
        return result

    return function


def differentiable(node: Node) -> Callable[..., Any]:
    """A node's operation, written out where PyTorch differentiates it wrongly: layer norm, twice in forward mode."""
    return _layer_norm if node.op in ("aten.layer_norm", "aten.native_layer_norm") else node.target


def _layer_norm(
    x: torch.Tensor, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *rest: Any
) -> torch.Tensor:
    axes = tuple(range(-len(shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    result = centred * torch.rsqrt((centred * centred).mean(axes, keepdim=True) + eps)
    result = result if weight is None else result * weight
    return result if bias is None else result + bias


def _series_of_rows(run: Context, rule: Rule, first: dict[int, torch.Tensor], window: Window) -> torch.Tensor:
    """The same for an operation along other axes than the positions, by differentiating it on the windows."""
    ((source, before),) = first.items()
    layout, node = rule.source_layouts[rule.sources.index(source)], rule.node
    grid = run.sites.difference.shape[:2]

    def rows(tensor: torch.Tensor) -> torch.Tensor:
        return layout.natural(tensor.expand(*grid, *tensor.shape[2:]).flatten(0, 1)).contiguous()

    reference, tangent = rows(run.on_window(source, layout, window)), rows(before)
    function = operation_of(run, node, source)

    def slope(x: torch.Tensor) -> torch.Tensor:
        return jvp(function, (x,), (tangent,))

    with DIFFERENTIATING, torch.enable_grad():
        found: Any = torch.func.jvp(slope, (reference,), (tangent,))
    return rule.layout.position_first(found[0] + 0.5 * found[1]).unflatten(0, grid)


def smooth_rule(view: View, rule: Rule) -> Rule | None:
    """The rule of a smooth function after statistics; None if the function is not known to be smooth."""
    own = type(rule).__module__.startswith("yuzu._engine.handlers.")
    node = view.node
    if not own or not ops.of(node.op).smooth or not node.op.startswith("aten."):
        return None
    if node.op == "aten.pow" and not _is_whole_power(node):
        return None
    pointwise = ops.is_pointwise(node.op, node.target)
    if not pointwise and len(rule.sources) != 1:
        return None
    if any(view.graph.nodes[s].dtype != node.dtype for s in rule.sources):
        return None
    return Smooth(view, copy.copy(rule))


def _is_whole_power(node: Node) -> bool:
    exponent = node.argument(1, "exponent")
    return isinstance(exponent, int | float) and exponent >= 2 and exponent == int(exponent)


__all__ = ["DIFFERENTIATING", "MOST_SECOND_ORDER", "ByStatistic", "derivative", "differentiable", "jvp", "smooth_rule"]
