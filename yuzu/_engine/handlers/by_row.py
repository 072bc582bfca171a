"""Picking, or writing, by an index of each row's own: ``gather``, and ``x[rows, :, place]``.

Picking moves numbers, so differences are picked as they are. On the axis of positions a row's places are those of its
own window: ``D'[j] = D[place[j] - start]``, zero where the window has no such position.
"""

from __future__ import annotations

from typing import Any

import torch

from yuzu._engine.context import Context
from yuzu._engine.graph import Ref, map_refs
from yuzu._engine.handlers.contract import Rule, View
from yuzu._engine.handlers.elementwise import common_layout
from yuzu._engine.handlers.registry import handles
from yuzu._engine.handlers.values import Local, OnRows, aligned_operand, rewindowed
from yuzu._engine.layout import CONSTANT, ROWS, Change, Layout, on_device
from yuzu._engine.rewrite.row_index import PickInRows
from yuzu._engine.window import Window


class PickedByRow(Rule):
    """Picks from one mutated tensor, by indices that no mutation changes.

    ``place`` is the index of positions, if one of them is: then the result is whole.
    """

    family = "view"
    keeps_finite = True
    carries_values = True

    def __init__(self, view: View, layout: Layout, indices: list[int], place: int | None = None) -> None:
        super().__init__(view, layout)
        self.indices, self.place = indices, place
        self.reads_reference = any(view.graph.nodes[i].batched for i in indices)

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,), (source,), (layout,) = changes, self.sources, self.source_layouts
        assert change is not None
        grid = run.sites.difference.shape[:2]
        if window is not None:
            tensor = rewindowed(run, source, layout, change, window)
            result = self._picked(run, layout.natural(tensor.flatten(0, 1)), window)
            return self.layout.position_first(result).unflatten(0, grid)
        if change.mutant:
            return self._picked(run, run.mutants(source, change))
        if self.place is None or change.window is None:
            return self._picked(run, run.whole(source, change).flatten(0, 1)).unflatten(0, grid)
        index = self._of_rows(run, self.place)
        index = torch.where(index < 0, index + layout.length, index)
        start = on_device(change.window.start, run.device)
        place = index - start.view(-1, *[1] * (index.dim() - 1))
        outside = (place < 0) | (place >= change.window.width)
        place = place.masked_fill(outside, 0)
        rows = layout.natural(change.tensor.flatten(0, 1))
        result = self._picked(run, rows, None, {self.place: place}).unflatten(0, grid)
        return result.masked_fill_(outside.view(*outside.shape, *[1] * (result.dim() - outside.dim())), 0)

    def _of_rows(self, run: Context, index: int) -> torch.Tensor:
        """The indices of each site ``(S or 1, 1, ...)``."""
        value = run.value(index)
        if run.plan.layouts[index] == CONSTANT:
            assert isinstance(self.node.target, PickInRows)
            value = value.view(*[1] * (self.node.target.rank - value.dim()), *value.shape)
        return run.of_sites(value)

    def _picked(
        self, run: Context, rows: torch.Tensor, window: Window | None = None, own: dict[int, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """The operation on rows ``(S * A, ...)``, with some indices of their ``own``."""
        grid = (run.sites.difference.shape[0], run.sites.difference.shape[1])

        def value(ref: Ref) -> Any:
            i = ref.index
            if i == self.sources[0]:
                return rows
            if own is not None and i in own:
                index = own[i]
            elif window is not None and not isinstance(self.node.target, PickInRows):
                return aligned_operand(run, i, self.node, self.layout, window, grid)
            elif run.plan.layouts[i] == CONSTANT:
                return run.value(i)
            else:
                index = run.of_sites(run.value(i))
            return index.expand(*grid, *index.shape[2:]).flatten(0, 1)

        return self.node.target(*map_refs(self.node.args, value), **map_refs(self.node.kwargs, value))


@handles("aten.gather")
def gather(view: View) -> Rule | str:
    node = view.node
    source, index = node.args[0], node.argument(2, "index")
    axis = node.argument(1, "dim") % view.rank
    why = _why_not(view, axis)
    if why is not None:
        return why
    layout = view.layout(source)
    if not node.mutated or view.mutated(index):
        return _aligned(view, axis)
    if layout.kind == "windows" and not layout.composite:
        if axis == layout.axis:
            return PickedByRow(view, ROWS, [index.index], index.index)
        if view.shape[layout.axis] == layout.length:
            return PickedByRow(view, layout, [index.index])
    return PickedByRow(view, ROWS, [index.index])


@handles("yuzu.index_of_rows")
def index_of_rows(view: View) -> Rule | str:
    node = view.node
    source, *indices = node.args
    layout, axes = view.layout(source), node.target.axes
    if layout == CONSTANT:
        return "what it picks from has no batch axis"
    if not node.mutated or any(view.mutated(index) for index in indices):
        return OnRows(view, widens=False)
    picked = [index.index for index in indices]
    if layout.kind != "windows" or layout.composite:
        return PickedByRow(view, ROWS, picked)
    if layout.axis in axes:
        return PickedByRow(view, ROWS, picked, picked[axes.index(layout.axis)])
    before = sum(axis not in axes for axis in range(1, layout.axis))
    return PickedByRow(view, Layout("windows", node.target.rank + before, layout.length), picked)


@handles("aten.scatter", "aten.scatter_add", "aten.scatter_reduce")
def scatter(view: View) -> Rule | str:
    axis = view.node.argument(1, "dim") % view.rank
    return _why_not(view, axis) or _aligned(view, axis)


@handles("aten.index_add", "aten.index_copy", "aten.index_fill")
def write_at(view: View) -> Rule | str:
    node = view.node
    if view.layout(node.argument(2, "index")) != CONSTANT:
        return "its index depends on an input"
    axis = node.argument(1, "dim") % view.rank
    return _why_not(view, axis, node.argument(2, "index")) or OnRows(view)


def _why_not(view: View, axis: int, but: Any = None) -> str | None:
    """Why an operation along an axis, with operands of one shape, does not keep rows apart; None if it does."""
    if axis == 0:
        return "it works along the batch"
    for ref in view.tensors():
        shape = view.source(ref).shape or ()
        if ref != but and shape and (view.layout(ref) == CONSTANT or shape[0] is not None):
            return "one of its operands has no batch axis"
    return None


def _aligned(view: View, axis: int) -> Rule | str:
    """A local rule if all operands have their positions on one axis, and the operation works along another."""
    layout = common_layout(view)
    if isinstance(layout, str):
        return layout
    whole = all(view.shape_of(ref)[layout.axis] == layout.length for ref in view.tensors() if view.shape_of(ref))
    if layout.kind != "windows" or layout.composite or layout.axis == axis or not whole:
        return OnRows(view)
    return Local(view, layout)


__all__ = ["PickedByRow"]
