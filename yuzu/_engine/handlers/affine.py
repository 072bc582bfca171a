"""Affine operations and products.

On differences an affine operation is a factor: no reference is needed and nothing is subtracted. The product of two
mutated tensors is ``(R1 + D1)(R2 + D2) - R1 R2 = D1 R2 + (R1 + D1) D2``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from yuzu._engine.choice import ChannelFactor
from yuzu._engine.context import Context
from yuzu._engine.graph import Ref, map_refs
from yuzu._engine.handlers.contract import Rule, View
from yuzu._engine.handlers.elementwise import common_layout, pointwise
from yuzu._engine.handlers.exact_zeros import is_zero
from yuzu._engine.handlers.facts import Numerics
from yuzu._engine.handlers.registry import handles
from yuzu._engine.handlers.statistics import ByStatistic
from yuzu._engine.handlers.values import of_rank
from yuzu._engine.layout import CONSTANT, ROWS, Change, Layout, rewindow
from yuzu._engine.window import Window


class Scaled(Rule):
    """A difference times something that a mutation does not change."""

    family = "elementwise"
    keeps_finite = True
    aliases = True
    recomputable = True
    numerics = Numerics(well_conditioned=True, keeps_size=True)

    def __init__(
        self,
        view: View,
        layout: Layout,
        factor: Callable[[Context], torch.Tensor | float],
        operand: int | None = None,
        per_channel: ChannelFactor | None = None,
    ) -> None:
        super().__init__(view, layout)
        self.factor, self.per_channel = factor, per_channel
        self.reads_reference = operand is not None and view.graph.nodes[operand].batched

    @property
    def linear(self) -> bool:
        return True

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        (source,) = self.sources
        assert change is not None
        if run.choice(self.node.index).absorbed and not run.keep_all:
            assert change.window is not None and window is not None
            return rewindow(change.tensor, change.window, window)
        factor = self.factor(run)
        if window is None:
            whole = run.whole(source, change)
            if isinstance(factor, torch.Tensor) and factor.dim():
                factor = run.of_sites(of_rank(factor, self.node))
            return whole * factor
        assert change.window is not None
        difference = rewindow(change.tensor, change.window, window)
        if self._ones(run, factor):
            return difference
        if isinstance(factor, torch.Tensor) and factor.dim():
            factor = self._on_window(run, of_rank(factor, self.node), window)
        if run.disposable(source) and (not isinstance(factor, torch.Tensor) or _fits(factor, difference)):
            return difference.mul_(factor)
        return difference * factor

    def vanishes(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor | None:
        """For a quotient, which is a product with the inverse here; a product makes zeros of zeros anyway."""
        (change,), (source,), (layout,) = changes, self.sources, self.source_layouts
        absorbed = run.choice(self.node.index).absorbed
        return None if change is None or absorbed else is_zero(run, source, layout, change, window)

    def knows_zeros(self) -> bool:
        return self.node.op == "aten.div"

    def _on_window(self, run: Context, factor: torch.Tensor, window: Window) -> torch.Tensor:
        """A factor of the result's rank to broadcast against ``(S, A, w, ...)``, cut to the window where it has
        positions.
        """
        layout = self.layout
        if factor.shape[layout.axis] == 1:
            first = Layout("windows", layout.axis, 1).position_first(factor)
            if layout.composite:
                first = first.unsqueeze(layout.axis + 1).unsqueeze(layout.axis + 1)
            return run.of_sites(first)
        return run.made_on_window(("factor", self.node.index), lambda: layout.position_first(factor), window)

    def _ones(self, run: Context, factor: torch.Tensor | float) -> bool:
        """Tell whether the factor is all ones, as signs often are. No GPU is waited for to find out."""
        if self.per_channel is None or not isinstance(factor, torch.Tensor) or factor.device.type != "cpu":
            return False
        return run.derived(("ones", self.node.index), [factor], lambda: bool((factor == 1).all()))


class Linear(Rule):
    """An operation that is linear in its one mutated operand, run on the differences: on windows if its result at a
    position depends on that position alone, else on whole values.
    """

    reads_reference = False

    def __init__(self, view: View, layout: Layout, family: str) -> None:
        super().__init__(view, layout)
        self.family = family
        self.numerics = Numerics(weighted=family != "reduce", cancels=family == "reduce")

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,), (source,) = changes, self.sources
        assert change is not None
        if window is None:
            difference = run.whole(source, change)
        else:
            assert change.window is not None
            difference = rewindow(change.tensor, change.window, window)
        return self._of(difference, window, run.value)

    def _of(self, tensor: torch.Tensor, window: Window | None, other: Callable[[int], Any]) -> torch.Tensor:
        """The operation on a tensor ``(S, A, ...)`` and on the values of ``other`` nodes."""
        rows = tensor.flatten(0, 1)
        rows = rows if window is None else self.source_layouts[0].natural(rows)
        result = self._of_rows(rows, other)
        result = result if window is None else self.layout.position_first(result)
        return result.unflatten(0, tensor.shape[:2])

    def _of_rows(self, rows: torch.Tensor, other: Callable[[int], Any]) -> torch.Tensor:
        (source,) = self.sources

        def value(ref: Ref) -> Any:
            return rows if ref.index == source else other(ref.index)

        return self.node.target(*map_refs(self.node.args, value), **map_refs(self.node.kwargs, value))

    def terms(
        self, run: Context, changes: list[Change | None], window: Window | None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        (change,), (source,), (layout,) = changes, self.sources, self.source_layouts
        if change is None:
            return None
        if window is None:
            difference, reference = run.whole(source, change), run.of_sites(run.value(source))
        else:
            assert change.window is not None
            difference = rewindow(change.tensor, change.window, window)
            reference = run.on_window(source, layout, window)

        def absolute(index: int) -> Any:
            value = run.value(index)
            return value.abs() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

        def of_reference() -> torch.Tensor:
            rows = self._of_rows(run.value(source).abs(), absolute)
            return rows if window is None else self.layout.position_first(rows)

        key = ("terms", self.node.index)
        if window is None:
            there = run.of_sites(run.reference.made(key, of_reference))
        else:
            there = run.made_on_window(key, of_reference, window)
        return self._of((difference + reference).abs() - reference.abs(), window, absolute), there

    def vanishes(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor | None:
        """A sum is zero where it counts no term that is not."""
        (change,), (source,), (layout,) = changes, self.sources, self.source_layouts
        if change is None:
            return None
        nonzero = ~is_zero(run, source, layout, change, window)
        rows = nonzero.flatten(0, 1).to(run.value(source).dtype)
        rows = rows if window is None else layout.natural(rows)
        args = map_refs(self.node.args, lambda ref: rows if ref.index == source else run.value(ref.index))
        counts = self.node.target(*args, **self.node.kwargs)
        counts = counts if window is None else self.layout.position_first(counts)
        return counts.unflatten(0, nonzero.shape[:2]) == 0

    def knows_terms(self) -> bool:
        return self.family != "reduce"

    def knows_zeros(self) -> bool:
        return self.family == "reduce"


def _fits(factor: torch.Tensor, difference: torch.Tensor) -> bool:
    """Tell whether the product has the difference's own shape and dtype, so that it can be written over it."""
    sizes = zip(reversed(factor.shape), reversed(difference.shape), strict=False)
    return factor.dtype == difference.dtype and factor.dim() <= difference.dim() and all(f in (1, d) for f, d in sizes)


@handles("aten._native_batch_norm_legit_no_training", "aten.batch_norm", "aten.native_batch_norm")
def batch_norm(view: View) -> Rule | str:
    """``(x - mean) / sqrt(variance + eps) * weight + bias``: on differences, a factor for each channel."""
    node = view.node
    training_free = node.op == "aten._native_batch_norm_legit_no_training"
    if not training_free and node.argument(5, "training", True):
        return "batch normalisation uses the batch's own statistics"
    weight, variance = node.args[1], node.args[4]
    eps = node.args[6] if training_free else node.args[7]
    if any(view.layout(r) != CONSTANT for r in node.args[1:5] if isinstance(r, Ref)) or not isinstance(variance, Ref):
        return "the statistics of the batch normalisation depend on an input"
    layout = view.layout(node.args[0]) if node.mutated else ROWS
    channels = view.rank - 2

    def per_channel(run: Context) -> tuple[torch.Tensor, list[torch.Tensor]]:
        sources = [run.value(variance.index)] + ([run.value(weight.index)] if isinstance(weight, Ref) else [])

        def make() -> torch.Tensor:
            scale = torch.rsqrt(sources[0] + eps)
            return scale * sources[1] if len(sources) > 1 else scale

        return run.derived(("batch norm", node.index), sources, make), sources

    def factor(run: Context) -> torch.Tensor:
        return per_channel(run)[0].reshape(1, -1, *[1] * channels)

    return Scaled(view, layout, factor, per_channel=per_channel)


@handles("aten.mul", "aten.div")
def product(view: View) -> Rule | str:
    """With an unmutated operand it is a factor; with another mutated tensor ``D1 R2 + R1 D2 + D1 D2``. Other
    quotients run on values.
    """
    node = view.node
    left, right = node.args[0], node.args[1]
    plain = len(node.args) == 2 and not node.kwargs  # no rounding mode
    quotient = node.op == "aten.div"
    found = by_statistic(view, quotient) if plain else None
    if found is not None:
        return found
    layout = common_layout(view)
    if isinstance(layout, str):
        return layout
    if not plain:
        return pointwise(view)
    if not node.floating or any(view.source(ref).dtype != node.dtype for ref in (left, right) if view.mutated(ref)):
        return pointwise(view)  # a mask has values, not differences
    if view.mutated(left) and view.mutated(right):
        return (
            pointwise(view) if quotient or not isinstance(left, Ref) else Product(view, layout, left.index, right.index)
        )
    if quotient and view.mutated(right):
        return pointwise(view)
    other = right if view.mutated(left) else left
    mutated = left if view.mutated(left) else right
    if not node.mutated or view.source(mutated).shape != node.shape:
        return pointwise(view)

    def factor(run: Context) -> torch.Tensor | float:
        value = run.value(other.index) if isinstance(other, Ref) else other
        if quotient and isinstance(value, torch.Tensor):
            value = value.to(run.value(node.index).dtype)  # the inverse of integers would be float32
        return 1 / value if quotient else value

    if not isinstance(other, Ref):
        return Scaled(view, layout, factor)
    sizes = view.shape_of(other)
    aligned = (1,) * (view.rank - len(sizes)) + sizes
    in_channels = (
        bool(sizes) and view.layout(other) == CONSTANT and aligned == (1, view.shape[1], *[1] * (view.rank - 2))
    )

    def per_channel(run: Context) -> tuple[torch.Tensor, list[torch.Tensor]]:
        value = factor(run)
        assert isinstance(value, torch.Tensor)
        return value.reshape(-1), [run.value(other.index)]

    return Scaled(view, layout, factor, other.index, per_channel if in_channels else None)


def by_statistic(view: View, quotient: bool) -> Rule | None:
    """The rule for a windowed value times a statistic, or divided by one; None if the operands are others."""
    node = view.node
    left, right = node.args
    pairs = [(left, right)] if quotient else [(left, right), (right, left)]
    for operand, statistic in pairs:
        if not isinstance(statistic, Ref) or statistic.index not in view.statistics or not isinstance(operand, Ref):
            continue
        layout = common_layout(view, view.statistics)
        own = isinstance(layout, Layout) and layout.kind == "windows" and operand.index not in view.statistics
        if own and view.mutated(operand) and {view.source(r).dtype for r in pairs[0]} == {node.dtype}:
            assert isinstance(layout, Layout)
            return ByStatistic(view, layout, operand.index, statistic.index, quotient)
    return None


class Product(Rule):
    """The product of two mutated tensors."""

    family = "merge"
    recomputable = True
    numerics = Numerics(well_conditioned=True, cancels=True, multiplies=True)

    def __init__(self, view: View, layout: Layout, left: int, right: int) -> None:
        super().__init__(view, layout)
        self.left, self.right = left, right

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        found = dict(zip(self.sources, changes, strict=True))
        layouts = dict(zip(self.sources, self.source_layouts, strict=True))

        def parts(index: int) -> tuple[torch.Tensor | None, torch.Tensor]:
            change = found[index]
            if window is None:
                return None if change is None else run.whole(index, change), run.of_sites(run.value(index))
            if change is None:
                return None, run.on_window(index, layouts[index], window)
            assert change.window is not None
            return rewindow(change.tensor, change.window, window), run.on_window(index, layouts[index], window)

        (d1, r1), (d2, r2) = parts(self.left), parts(self.right)
        if d1 is None or d2 is None:
            return d1 * r2 if d1 is not None else r1 * d2  # type: ignore[operator]
        return d1 * r2 + (r1 + d1) * d2

    def vanishes(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor | None:
        """It is zero where either factor is."""
        found: torch.Tensor | None = None
        for source, layout, change in zip(self.sources, self.source_layouts, changes, strict=True):
            if change is not None:
                zero = is_zero(run, source, layout, change, window)
                found = zero if found is None else found | zero
        return found


@handles("aten.neg")
def negative(view: View) -> Rule | str:
    if not view.node.mutated or not view.node.floating:
        return pointwise(view)
    return Scaled(view, view.layout(view.node.args[0]), lambda run: -1.0)
