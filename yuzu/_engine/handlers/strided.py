"""Rows that are laid out anew by the strides of their memory: ``as_strided``, and the shift of relative positions.

Positions stay windows where one axis of the result follows them, ``result[i, ...] = x[i + c, ...]``, and the other axes
stay inside of a position, perhaps shifted by ``i``.
"""

from __future__ import annotations

import itertools
import math

import torch

from yuzu._engine.context import Context
from yuzu._engine.handlers.contract import Reading, Rule, View
from yuzu._engine.handlers.registry import handles
from yuzu._engine.handlers.values import OnRows, rewindowed
from yuzu._engine.handlers.view import Rearranged
from yuzu._engine.layout import ROWS, Change, Layout
from yuzu._engine.rewrite.strides import RowStrides
from yuzu._engine.window import Geometry, Window

Steps = list[list[int]]  # for each axis of the result, how far one step on it goes along each axis of the source


class Skewed(Reading):
    """One axis of the result follows the positions; on a window each site is read by strides of its own."""

    family = "view"
    keeps_finite = True
    reads_reference = False
    carries_values = True

    def __init__(self, view: View, before: Layout, axis: int, steps: Steps, offset: list[int]) -> None:
        target: RowStrides = view.node.target
        super().__init__(view, Layout("windows", axis, target.sizes[axis - 1]))
        first = offset[before.axis - 1]
        self.geometry = Geometry(1, 1, -first, 1, before.length, self.layout.length)
        self.steps, self.offset, self.sizes = steps, offset, target.sizes

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,), (before,) = changes, self.source_layouts
        assert change is not None and window is not None
        read = window.cached(("moved", self.node.index), lambda: self.geometry.read_by(window))
        rows = before.natural(rewindowed(run, self.sources[0], before, change, read).flatten(0, 1)).contiguous()
        edits, own = change.tensor.shape[1], rows.stride()[1:]
        sizes = list(self.sizes)
        sizes[self.layout.axis - 1] = window.width
        strides = [sum(n * s for n, s in zip(steps, own, strict=True)) for steps in self.steps]
        along = self.steps[self.layout.axis - 1]
        result = rows.new_empty(len(rows), *sizes)
        for site, start in enumerate(window.start.tolist()):
            # the window's first position is the first of its rows, and other axes have moved on by then
            place = [o + start * n for o, n in zip(self.offset, along, strict=True)]
            place[before.axis - 1] = 0
            first = rows.storage_offset() + site * edits * rows.stride(0)
            first += sum(p * s for p, s in zip(place, own, strict=True))
            result[site * edits : (site + 1) * edits] = rows.as_strided(
                (edits, *sizes), (rows.stride(0), *strides), first
            )
        return self.layout.position_first(result).unflatten(0, change.tensor.shape[:2])


def _steps_of(row: tuple[int, ...], target: RowStrides) -> tuple[Steps, list[int]] | None:
    """How the axes of the result step along those of the source, and where they begin; None if they cross an axis."""
    own = [math.prod(row[i + 1 :]) for i in range(len(row))]

    def taken_apart(distance: int) -> list[int]:
        steps = []
        for size, stride in zip(row, own, strict=True):
            # the nearest number of steps, since another axis may step back
            steps.append((distance + stride // 2) // stride if size > 1 else 0)
            distance -= steps[-1] * stride
        return steps

    offset = [target.offset // stride % size for size, stride in zip(row, own, strict=True)]
    steps = [taken_apart(stride) for stride in target.strides]
    for axis, size in enumerate(row):
        ends = [[0, (n - 1) * s[axis]] for n, s in zip(target.sizes, steps, strict=True)]
        low, high = (offset[axis] + sum(bound(end) for end in ends) for bound in (min, max))
        if low < 0 or high >= size:
            return None
    return steps, offset


@handles("yuzu.row_strides")
def row_strides(view: View) -> Rule | str:
    node, target = view.node, view.node.target
    layout, row = view.layout(node.args[0]), view.shape_of(node.args[0])[1:]
    if not node.mutated:
        return OnRows(view)
    known = _steps_of(row, target) if layout.kind == "windows" and not layout.composite else None
    if known is not None:
        steps, offset = known
        along = [s[layout.axis - 1] for s in steps]
        following = [axis for axis, n in enumerate(along) if n]
        if len(following) == 1 and along[following[0]] == 1:
            return Skewed(view, layout, following[0] + 1, steps, offset)
    overlaps = _overlaps(target)
    return Rearranged(view, ROWS, lambda rows: target(rows).contiguous() if overlaps else target(rows))


def _overlaps(target: RowStrides) -> bool:
    """Tell whether two elements of a row may be one."""
    axes = sorted((stride, size) for stride, size in zip(target.strides, target.sizes, strict=True) if size > 1)
    reach = itertools.accumulate((size - 1) * stride for stride, size in axes)
    return any(stride <= before for (stride, _), before in zip(axes, [0, *reach], strict=False))


__all__ = ["Skewed"]
