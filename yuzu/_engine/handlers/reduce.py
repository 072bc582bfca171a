"""Reductions, over positions or over other axes.

Over positions, the difference of a sum is the sum of the window's differences. A maximum needs the largest reference
value outside the window, which running maxima from both ends give: with ``M`` the reference's maximum it is
``max(max_window(D + (R - M)), max_outside(R) - M)``.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch

from yuzu._engine.context import Context
from yuzu._engine.graph import OfSlice, Result
from yuzu._engine.handlers.affine import Linear
from yuzu._engine.handlers.contract import Rule, View
from yuzu._engine.handlers.elementwise import axes_of, pointwise
from yuzu._engine.handlers.exact_zeros import count_all, negative, nonzero, positive, zero
from yuzu._engine.handlers.facts import Numerics
from yuzu._engine.handlers.registry import handles
from yuzu._engine.handlers.values import Local, OnRows
from yuzu._engine.layout import ROWS, Change, Layout, on_device, widened
from yuzu._engine.window import Window


class SumOverPositions(Rule):
    """``sum`` or ``mean`` over positions, and other axes with them; of a slice, where the operation takes one."""

    family = "reduce"
    reads_reference = False
    reads_low_precision = True
    numerics = Numerics(cancels=True, sums_positions=True)

    def __init__(self, view: View, axes: tuple[int, ...], keepdim: bool, divisor: int, cut: OfSlice | None) -> None:
        super().__init__(view, ROWS)
        self.axes, self.keepdim, self.divisor, self.cut = axes, keepdim, divisor, cut
        (layout,) = self.source_layouts
        along = cut is not None and cut.axis == layout.axis
        self.start, self.stop = (cut.start, cut.stop) if cut is not None and along else (0, layout.length)

    def needed(self, low: int, high: int) -> list[tuple[int, int]]:
        return [(self.start, self.stop)]

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        (layout,) = self.source_layouts
        assert change is not None and change.window is not None
        dtype = run.value(self.node.index).dtype  # of the sums, also if differences come in low precision
        rows, cut = layout.natural(self._summed(change.tensor, change.window, dtype).flatten(0, 1)), self.cut
        if cut is not None and cut.axis != layout.axis:
            rows = rows.narrow(cut.axis, cut.start, cut.stop - cut.start)
        total = rows.sum(self.axes, keepdim=self.keepdim, dtype=dtype)
        total = total.unflatten(0, run.sites.difference.shape[:2])
        return total.div_(self.divisor) if self.divisor != 1 else total

    def vanishes(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor | None:
        (change,), (source,), (layout,) = changes, self.sources, self.source_layouts
        if change is None:
            return None
        if self.axes != (layout.axis,):  # with other axes: all of a row must be zero
            found = count_all(run, source, layout, change, 0, nonzero) == 0
            return found.view(*found.shape, *[1] * (len(self.node.shape or ()) - 1))
        found = count_all(run, source, layout, change, change.tensor.dim() - 3, nonzero) == 0
        return found.unsqueeze(layout.axis + 1) if self.keepdim else found

    def knows_zeros(self) -> bool:
        return self.cut is None and not self.source_layouts[0].composite

    def _summed(self, tensor: torch.Tensor, window: Window, dtype: torch.dtype) -> torch.Tensor:
        """``(S, A, 1, ...)``: the sum over the slice, if windows reach beyond it; else the tensor itself.

        The positions that lie in the slice for every site are summed together. Beside them some sites have zeros.
        """

        def find() -> tuple[int, int]:
            low, high = (np.clip(end - window.start, 0, window.width) for end in (self.start, self.stop))
            first, stop = int(low.max()), int(high.min())
            return first, max(stop, first)

        first, stop = window.cached(("summed", self.node.index), find)
        if stop - first == window.width:
            return tensor
        total = tensor[:, :, first:stop].sum(2, keepdim=True, dtype=dtype)
        start = on_device(window.start, tensor.device)[:, None]
        for edge in (slice(0, first), slice(stop, window.width)):
            if edge.stop > edge.start:
                position = start + torch.arange(edge.start, edge.stop, device=tensor.device)
                inside = ((position >= self.start) & (position < self.stop))[:, None]
                # not times zero: infinity times zero is NaN
                kept = torch.where(inside.view(*inside.shape, *[1] * (tensor.dim() - 3)), tensor[:, :, edge], 0)
                total += kept.sum(2, keepdim=True, dtype=dtype)
        return total


class MaximumOverPositions(Rule):
    """``amax`` (or ``amin``, with the sign turned) over positions."""

    family = "reduce"

    def __init__(self, view: View, keepdim: bool, sign: int) -> None:
        super().__init__(view, ROWS)
        self.keepdim, self.sign = keepdim, sign

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        (source,) = self.sources
        (layout,) = self.source_layouts
        assert change is not None and change.window is not None
        here = change.window

        def below() -> torch.Tensor:
            reference = run.reference.position_first(source, layout) * self.sign
            return reference - reference.amax(1, keepdim=True)

        def outside(ends: str) -> torch.Tensor:
            shifted = run.reference.made(("below", self.node.index), lambda: below().contiguous())
            edge = torch.full_like(shifted[:, :1], float("-inf"))
            running = shifted if ends == "before" else shifted.flip(1)
            running = torch.cat([edge, running.cummax(1).values], 1)
            return running if ends == "before" else running.flip(1)

        inside = run.made_on_window(("below", self.node.index), below, here)
        largest = (change.tensor * self.sign + inside).amax(2)
        for ends, place in (("before", here.start), ("after", here.start + here.width)):
            table = run.reference.made((ends, self.node.index), functools.partial(outside, ends))
            index = on_device(place, run.device)
            sequence = run.sequence_index() if table.shape[0] > 1 else torch.zeros_like(index)
            torch.maximum(largest, table[sequence, index].unsqueeze(1), out=largest)
        result = largest if self.sign == 1 else largest.neg_()
        return result.unsqueeze(layout.axis + 1) if self.keepdim else result

    def vanishes(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor | None:
        (change,), (source,), (layout,) = changes, self.sources, self.source_layouts
        if change is None:
            return None
        beside = change.tensor.dim() - 3
        more = positive if self.sign == 1 else negative
        found = count_all(run, source, layout, change, beside, more) == 0
        found &= count_all(run, source, layout, change, beside, zero) > 0
        return found.unsqueeze(layout.axis + 1) if self.keepdim else found


class SpreadOverPositions(Rule):
    """``var``, ``std`` or the Euclidean norm over positions.

    With ``r`` the reference less its mean (less nothing, for a norm) and ``d`` the mean of the differences, the sum of
    squares changes by ``sum of D (2 r + D)``, of the window alone, less ``L d^2``. It is taken in float64: a root shows
    what is lost where the sum nearly vanishes.
    """

    family = "reduce"
    numerics = Numerics(cancels=True, sums_positions=True)

    def __init__(self, view: View, kind: str, keepdim: bool, divisor: int) -> None:
        super().__init__(view, ROWS)
        self.kind, self.keepdim, self.divisor = kind, keepdim, divisor

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,), (source,), (layout,) = changes, self.sources, self.source_layouts
        assert change is not None and change.window is not None

        def centred() -> torch.Tensor:
            values = widened(run.reference.position_first(source, layout))
            return values if self.kind == "norm" else values - values.mean(1, keepdim=True)

        def spread() -> torch.Tensor:
            return run.reference.made(("centred", self.node.index), centred).square().sum(1) / self.divisor

        difference = widened(change.tensor)
        here = run.made_on_window(("centred", self.node.index), centred, change.window)
        more = (difference * (2 * here + difference)).sum(2)
        if self.kind != "norm":
            more -= difference.sum(2).square() / layout.length
        more /= self.divisor
        if self.kind != "var":
            before = run.of_sites(run.reference.made(("spread", self.node.index), spread))
            roots = before.sqrt() + (before + more).clamp(min=0).sqrt()
            more = torch.where(roots > 0, more / roots, 0)
        result = more.to(run.value(self.node.index).dtype)
        return result.unsqueeze(layout.axis + 1) if self.keepdim else result

    def vanishes(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor | None:
        (change,), (source,), (layout,) = changes, self.sources, self.source_layouts
        if change is None:
            return None
        found = count_all(run, source, layout, change, change.tensor.dim() - 3, nonzero) == 0
        return found.unsqueeze(layout.axis + 1) if self.keepdim else found


def _spread(view: View, kind: str, layout: Layout, keepdim: bool) -> Rule | None:
    """The rule for a spread over positions alone, if it is one that has a formula."""
    node = view.node
    name, divisor = {"linalg_vector_norm": "norm"}.get(kind, kind), 1
    if name == "norm":
        known = node.argument(1, "ord", 2) == 2 and node.kwargs.get("dtype") is None
    else:
        correction = 1 if node.named("correction") is None else node.named("correction")
        divisor = layout.length - (0 if node.named("unbiased") is False else correction)
        known = divisor > 0
    known = known and view.source(node.args[0]).dtype == node.dtype in (torch.float32, torch.float64)
    return SpreadOverPositions(view, name, keepdim, divisor) if known else None


def reduction(view: View, kind: str, axes: tuple[int, ...], keepdim: bool) -> Rule | str:
    """The rule for ``sum``, ``mean``, ``amax``, ``amin`` or another reduction that treats rows by themselves."""
    if 0 in axes:
        return "it reduces over the batch"
    node = view.node
    layout = view.layout(node.args[0])
    source = view.source(node.args[0])
    linear = kind in ("sum", "mean") and source.dtype == node.dtype and node.floating
    if not node.mutated or layout.kind != "windows":
        return Linear(view, ROWS, "reduce") if linear and node.mutated and "adaptive" not in node.op else OnRows(view)
    if layout.axis not in axes:
        if layout.composite:
            return OnRows(view)
        moved = layout.axis if keepdim else layout.axis - sum(a < layout.axis for a in axes)
        out = Layout("windows", moved, layout.length)
        return Linear(view, out, "reduce") if linear else Local(view, out, broadcast=False)
    if linear:
        cut = node.target if isinstance(node.target, OfSlice) else None
        if cut is not None and layout.composite:
            return OnRows(view)
        sizes = [int(size or 1) for size in source.shape or ()]
        if cut is not None:
            sizes[cut.axis] = cut.stop - cut.start
        divisor = math.prod(sizes[a] for a in axes) if kind == "mean" else 1
        return SumOverPositions(view, axes, keepdim, divisor, cut)
    if kind in ("amax", "amin") and axes == (layout.axis,) and not layout.composite and node.floating:
        return MaximumOverPositions(view, keepdim, 1 if kind == "amax" else -1)
    if axes == (layout.axis,) and not layout.composite and kind in ("var", "std", "linalg_vector_norm"):
        return _spread(view, kind, layout, keepdim) or OnRows(view)
    return OnRows(view)


@handles(
    "aten.sum",
    "aten.mean",
    "yuzu.sum_of_slice",
    "yuzu.mean_of_slice",
    "aten.amax",
    "aten.amin",
    "aten.logsumexp",
    "aten.var",
    "aten.std",
    "aten.prod",
    "aten.linalg_vector_norm",
)
def reduce(view: View) -> Rule | str:
    node = view.node
    rank = len(view.source(node.args[0]).shape or ())
    kind = node.op.removeprefix("aten.").removeprefix("yuzu.").removesuffix("_of_slice")
    if kind == "linalg_vector_norm":
        axes, keepdim = axes_of(node.argument(2, "dim"), rank), node.argument(3, "keepdim", False)
    else:
        target = node.target.target if isinstance(node.target, OfSlice) else node.target
        overload = getattr(target, "_overloadname", "")
        if overload in ("default", "") and kind != "amax" and kind != "amin" and kind != "logsumexp":
            axes, keepdim = tuple(range(rank)), False
        else:
            axes = axes_of(node.argument(1, "dim"), rank)
            keepdim = bool(node.named("keepdim"))
    return reduction(view, kind, axes, bool(keepdim))


@handles("aten.argmax", "aten.argmin", "aten.any", "aten.all")
def reduce_to_places_or_masks(view: View) -> Rule | str:
    node = view.node
    axis = node.argument(1, "dim")
    if axis is None:
        return "it reduces over the batch"
    rank = len(view.source(node.args[0]).shape or ())
    return reduction(view, node.op.removeprefix("aten."), axes_of(axis, rank), bool(node.argument(2, "keepdim", False)))


@handles("aten.max", "aten.min")
def maximum(view: View) -> Rule | str:
    """``max`` over one axis, its values or their places; between two tensors it is pointwise."""
    node = view.node
    if len(view.tensors()) == 2:
        return pointwise(view)
    if len(node.args) < 2:
        return "it reduces over the batch"
    rank = len(view.source(node.args[0]).shape or ())
    kind = "amax" if node.op == "aten.max" else "amin"
    kind = "places" if isinstance(node.target, Result) and node.target.place == 1 else kind
    return reduction(view, kind, axes_of(node.args[1], rank), bool(node.argument(2, "keepdim", False)))
