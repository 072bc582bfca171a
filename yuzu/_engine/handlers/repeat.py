"""Operations that repeat elements: each position, all positions, or other axes."""

from __future__ import annotations

import numpy as np
import torch

from yuzu._engine.context import Context
from yuzu._engine.handlers.contract import Rule, Spans, View, spatial_axis
from yuzu._engine.handlers.interpolate import Resampled, places_of
from yuzu._engine.handlers.registry import handles
from yuzu._engine.handlers.values import OnRows
from yuzu._engine.handlers.view import Rearranged
from yuzu._engine.layout import ROWS, Change, Layout, rewindow
from yuzu._engine.window import Integers, Window


class Upsampled(Rule):
    """Nearest-neighbour upsampling by an integer factor: each position is repeated."""

    family = "view"
    keeps_finite = True
    reads_reference = False

    def __init__(self, view: View, layout: Layout, factor: int) -> None:
        super().__init__(view, layout)
        self.factor = factor

    def window(self, windows: Spans) -> tuple[Integers, Integers]:
        (window,) = windows
        assert window is not None
        return window.first * self.factor, window.stop * self.factor

    def needed(self, low: int, high: int) -> list[tuple[int, int]]:
        return [(low // self.factor, -(-high // self.factor))]

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        assert change is not None and change.window is not None and window is not None
        result = change.tensor.repeat_interleave(self.factor, dim=2)
        start = change.window.start * self.factor
        full = window.cached(("raw", self.node.index), lambda: Window.at(start, result.shape[2]))
        return rewindow(result, full, window)


@handles("aten.upsample_nearest1d", "aten._upsample_nearest_exact1d")
def upsample(view: View) -> Rule | str:
    node = view.node
    if not node.mutated or len(view.shape_of(node.args[0])) != 3:
        return OnRows(view)
    layout = view.movable(node.args[0])
    if spatial_axis(layout) != 2:
        return Rearranged(view, ROWS, lambda rows: node.target(rows, *node.args[1:], **node.kwargs))
    places, size = np.rint(places_of(view, layout.length)).astype(np.int64), view.shape[2]
    factor = size // layout.length
    if size % layout.length == 0 and (places == np.arange(size) // factor).all():
        return Upsampled(view, Layout("windows", 2, size), factor)
    return Resampled(view, layout, places[None])  # not all positions are repeated as often


@handles("aten.repeat_interleave")
def repeat_each(view: View) -> Rule | str:
    node = view.node
    factor, axis = node.argument(1, "repeats"), node.argument(2, "dim")
    if type(factor) is not int or type(axis) is not int or factor == 0:
        return "it does not repeat along one axis, by a number"
    axis %= view.rank
    if axis == 0:
        return "it repeats rows of the batch"
    layout = view.movable(node.args[0]) if axis == view.layout(node.args[0]).axis else view.layout(node.args[0])
    if not node.mutated or spatial_axis(layout) is None:
        layout = ROWS
    elif axis == layout.axis:
        return Upsampled(view, Layout("windows", axis, layout.length * factor), factor)
    return Rearranged(view, layout, lambda rows: rows.repeat_interleave(factor, axis))


@handles("aten.repeat", "aten.tile")
def repeat_all(view: View) -> Rule | str:
    node = view.node
    source = node.args[0]
    times = [1] * (view.rank - len(node.args[1])) + list(node.args[1])
    if view.layout(source).kind == "constant" or len(view.shape_of(source)) != view.rank or times[0] != 1:
        return "it repeats the batch"
    layout = view.layout(source)
    if not node.mutated or spatial_axis(layout) is None or times[layout.axis] != 1:
        layout = ROWS
    return Rearranged(view, layout, lambda rows: rows.repeat(times))
