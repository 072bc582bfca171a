"""Branches that meet: sums, and concatenation along any axis.

A sum of differences is the difference of the sum, on the union of the windows. An unmutated operand adds nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from yuzu._engine.context import Context
from yuzu._engine.graph import Ref
from yuzu._engine.handlers.contract import Rule, Spans, View
from yuzu._engine.handlers.elementwise import common_layout, pointwise
from yuzu._engine.handlers.facts import Numerics
from yuzu._engine.handlers.registry import handles
from yuzu._engine.layout import ROWS, Change, Layout, rewindow
from yuzu._engine.window import Integers, Window, union


class Sum(Rule):
    """``a + alpha * b``."""

    family = "merge"
    keeps_finite = True
    reads_reference = False
    recomputable = True
    numerics = Numerics(keeps_size=True)

    def __init__(self, view: View, layout: Layout, factors: dict[int, float]) -> None:
        super().__init__(view, layout)
        self.factors = factors
        self.aliases = True

    @property
    def fused_as(self) -> str:
        return "sum" if len(self.sources) == 2 and all(factor == 1 for factor in self.factors.values()) else ""

    def only_adds(self) -> bool | None:
        return all(factor > 0 for factor in self.factors.values()) if len(self.sources) > 1 else None

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        # a fused group may leave low precision for a group that adds it, and that group did not run fused
        dtype = run.value(self.node.index).dtype
        changes = [
            c if c is None or c.tensor.dtype == dtype else replace(c, tensor=c.tensor.to(dtype)) for c in changes
        ]
        written = self._written_over(run, changes, window)
        if written is not None:
            return written
        result: torch.Tensor | None = None
        shape = list(run.value(self.node.index).shape[1:])
        if window is not None:
            probe = torch.empty(1, *shape, device="meta")
            shape = [window.width, *self.layout.position_first(probe).shape[2:]]
        for source, change in zip(self.sources, changes, strict=True):
            if change is None:
                continue
            if window is None:
                part = run.whole(source, change)
            else:
                assert change.window is not None
                part = rewindow(change.tensor, change.window, window)
            if list(part.shape[2:]) != shape:
                part = part.expand(*part.shape[:2], *shape)
            factor = self.factors[source]
            if result is None:
                result = part if factor == 1 else part * factor
                writable = factor != 1 or part is not change.tensor or run.disposable(source)
                writable = writable and (factor != 1 or run.disposable(source)) and 0 not in result.stride()
            elif writable and result.dtype == part.dtype:
                result.add_(part, alpha=factor)
            else:
                result, writable = torch.add(result, part, alpha=factor), True
        assert result is not None
        return result

    def _written_over(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor | None:
        """The sum, written over one change that has its window and no other reader; None if there is no such change."""
        present = [(s, c) for s, c in zip(self.sources, changes, strict=True) if c is not None]
        shapes = {c.tensor.shape[3:] for _, c in present}
        dtypes = {c.tensor.dtype for _, c in present}
        if window is None or len(present) < 2 or len(shapes) > 1 or len(dtypes) > 1:
            return None
        if present[0][1].tensor.shape[3:] != self.layout.position_first(run.value(self.node.index)[:1]).shape[2:]:
            return None  # broadcast
        for source, change in present:
            own = change.window
            assert own is not None
            fits = own.width == window.width and own.offset_to(window) == 0
            if fits and self.factors[source] == 1 and run.disposable(source) and 0 not in change.tensor.stride():
                break
        else:
            return None
        total = change.tensor
        for other, addend in present:
            if other == source:
                continue
            old = addend.window
            assert old is not None

            def overlap(old: Window = old) -> tuple[int, Window, Window]:
                # the positions of the sum's windows at which any site has a part
                offset = old.start - window.start
                first = min(max(int(offset.min()), 0), window.width)
                stop = max(min(int(offset.max()) + old.width, window.width), first)
                return first, Window.at(window.start + first, stop - first), old

            first, place, _ = window.cached(("addend", self.node.index, other, id(old)), overlap)
            part = rewindow(addend.tensor, old, place)
            total[:, :, first : first + place.width].add_(part, alpha=self.factors[other])
        return total


@handles("aten.add", "aten.sub", "aten.rsub")
def addition(view: View) -> Rule | str:
    node = view.node
    layout = common_layout(view, view.statistics)
    if isinstance(layout, str):
        return layout
    if not node.mutated:
        return pointwise(view)
    left, right = node.args[0], node.args[1]
    alpha = node.argument(2, "alpha", 1)
    operands = [(left, 1.0), (right, alpha if node.op == "aten.add" else -alpha)]
    if node.op == "aten.rsub":
        operands = [(left, -float(alpha)), (right, 1.0)]
    factors: dict[int, float] = {}
    for ref, factor in operands:
        if isinstance(ref, Ref) and view.mutated(ref):
            if view.source(ref).dtype != node.dtype:
                return pointwise(view)
            factors[ref.index] = factors.get(ref.index, 0.0) + factor
    if not node.floating:
        return pointwise(view)
    return Sum(view, layout, factors)


class Concatenation(Rule):
    """``cat`` along an axis that is not the positions: each branch on the union of the windows."""

    family = "merge"
    keeps_finite = True
    reads_reference = False

    def __init__(self, view: View, layout: Layout, parts: list[int], axis: int) -> None:
        super().__init__(view, layout)
        self.parts, self.axis = parts, axis

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        found = dict(zip(self.sources, changes, strict=True))
        grid = run.sites.difference.shape[:2]
        pieces: list[torch.Tensor] = []
        for index in self.parts:
            change = found.get(index)
            value = run.value(index)
            if window is None:
                piece = run.whole(index, change) if change is not None else value.new_zeros(*grid, *value.shape[1:])
            elif change is None:
                rest = self.layout.position_first(value[:1]).shape[2:]
                piece = value.new_zeros(*grid, window.width, *rest)
            else:
                assert change.window is not None
                piece = rewindow(change.tensor, change.window, window)
            pieces.append(piece)
        if window is None:
            return torch.cat(pieces, dim=self.axis + 1)
        place = self.axis - 1 if self.axis < self.layout.axis else self.axis - 2
        return torch.cat(pieces, dim=3 + place)


class Juxtaposition(Rule):
    """``cat`` along the positions: each branch's window moves by the length of those before it."""

    family = "merge"
    keeps_finite = True
    reads_reference = False

    def __init__(self, view: View, layout: Layout, parts: list[tuple[int, int]]) -> None:
        super().__init__(view, layout)
        self.parts = parts  # (node, offset)

    def window(self, windows: Spans) -> tuple[Integers, Integers]:
        found = dict(zip(self.sources, windows, strict=True))
        moved = []
        for index, offset in self.parts:
            window = found.get(index)
            if window is not None:
                stop = window.stop + offset
                moved.append(Window(window.first + offset, stop, window.start + offset, window.width))
        return union(moved)

    def needed(self, low: int, high: int) -> list[tuple[int, int]]:
        spans: list[tuple[int, int]] = []
        for source, layout in zip(self.sources, self.source_layouts, strict=True):
            first, stop = layout.length, 0
            for index, offset in self.parts:
                if index == source:
                    first, stop = (
                        min(first, max(low - offset, 0)),
                        max(stop, min(high - offset, layout.length)),
                    )
            spans.append((first, stop) if stop > first else (0, 0))
        return spans

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        assert window is not None
        found = dict(zip(self.sources, changes, strict=True))
        result: torch.Tensor | None = None
        for place, (index, offset) in enumerate(self.parts):
            change = found.get(index)
            if change is None:
                continue
            old = change.window
            assert old is not None
            moved = window.cached(
                ("part", self.node.index, place, id(old)),
                lambda old=old, offset=offset: (Window.at(old.start + offset, old.width), old),
            )[0]
            piece = rewindow(change.tensor, moved, window)
            result = piece.clone() if result is None else result.add_(piece)
        assert result is not None
        return result


def _why_not(view: View, refs: list[Any], axis: int) -> str | None:
    """The reason why parts cannot be joined along an axis; None if they can."""
    dtype = view.node.dtype
    if axis == 0:
        return "it joins batches"
    if any(view.layout(ref).kind == "constant" for ref in refs):
        return "one part has no batch axis"
    if any(view.source(ref).dtype != dtype for ref in refs) or not view.node.floating:
        return "the parts are of different types"
    return None


@handles("aten.cat", "aten.concat")
def concatenation(view: View) -> Rule | str:
    node = view.node
    axis = node.argument(1, "dim", 0) % view.rank
    refs: list[Any] = list(node.args[0])
    reason = _why_not(view, refs, axis)
    if reason is not None:
        return reason
    parts = [ref.index for ref in refs]
    layouts = [view.layout(ref) for ref in refs if view.mutated(ref)]
    if not layouts or any(la.kind != "windows" or la.composite or la.axis != layouts[0].axis for la in layouts):
        return Concatenation(view, ROWS, parts, axis)
    if axis != layouts[0].axis:
        if any(la.length != layouts[0].length for la in layouts):
            return Concatenation(view, ROWS, parts, axis)
        return Concatenation(view, layouts[0], parts, axis)
    offset, placed = 0, []
    for ref in refs:
        placed.append((ref.index, offset))
        size = (view.source(ref).shape or ())[axis]
        assert size is not None
        offset += size
    return Juxtaposition(view, Layout("windows", axis, offset), placed)


class Stack(Rule):
    """``stack`` along a new axis."""

    family = "merge"
    keeps_finite = True
    reads_reference = False

    def __init__(self, view: View, layout: Layout, parts: list[int], axis: int) -> None:
        super().__init__(view, layout)
        self.parts, self.axis = parts, axis

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        found = dict(zip(self.sources, changes, strict=True))
        layouts = dict(zip(self.sources, self.source_layouts, strict=True))
        grid = run.sites.difference.shape[:2]
        pieces = []
        for index in self.parts:
            change = found.get(index)
            value = run.value(index)
            if window is None:
                piece = run.whole(index, change) if change is not None else value.new_zeros(*grid, *value.shape[1:])
                piece = piece.unsqueeze(self.axis + 1)
            else:
                before = next(iter(layouts.values()))
                if change is None:
                    piece = value.new_zeros(*grid, window.width, *before.position_first(value[:1]).shape[2:])
                else:
                    assert change.window is not None
                    piece = rewindow(change.tensor, change.window, window)
                place = self.axis - 1 if self.axis < self.layout.axis else self.axis - 2
                piece = piece.unsqueeze(3 + place)
            pieces.append(piece)
        dim = (
            self.axis + 1 if window is None else 3 + (self.axis - 1 if self.axis < self.layout.axis else self.axis - 2)
        )
        return torch.cat(pieces, dim=dim)


@handles("aten.stack")
def stack(view: View) -> Rule | str:
    node = view.node
    axis = node.argument(1, "dim", 0) % view.rank
    refs: list[Any] = list(node.args[0])
    reason = _why_not(view, refs, axis)
    if reason is not None:
        return reason
    parts = [ref.index for ref in refs]
    layouts = [view.layout(ref) for ref in refs if view.mutated(ref)]
    if not layouts or any(la.kind != "windows" or la.composite or la != layouts[0] for la in layouts):
        return Stack(view, ROWS, parts, axis)
    first = layouts[0]
    return Stack(view, Layout("windows", first.axis + (axis <= first.axis), first.length), parts, axis)


@handles(
    "aten.zeros",
    "aten.ones",
    "aten.full",
    "aten.empty",
    "aten.zeros_like",
    "aten.ones_like",
    "aten.full_like",
    "aten.new_zeros",
    "aten.new_ones",
    "aten.new_full",
    reads_sizes=True,
)
def filled(view: View) -> Rule | str:
    """A constant for each row of the batch."""
    node = view.node
    place = {"aten.full": 1, "aten.full_like": 1, "aten.new_full": 2}.get(node.op)
    if place is not None and isinstance(node.argument(place, "fill_value"), Ref):
        return "it is filled with a number computed from the size of the batch"
    return Rule(view, ROWS)
