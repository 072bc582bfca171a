"""Sliding windows laid out as an axis of their own: ``x.unfold(2, size, step)`` and ``F.unfold`` (``im2col``).

Position ``j`` of the result holds the inputs ``j*s - p + t*d``: elements are moved, so differences are laid out as they
are.
"""

from __future__ import annotations

import torch

from yuzu._engine.context import Context
from yuzu._engine.handlers.affine import Linear
from yuzu._engine.handlers.contract import Reading, Rule, View
from yuzu._engine.handlers.registry import handles
from yuzu._engine.handlers.values import rewindowed
from yuzu._engine.handlers.view import Rearranged
from yuzu._engine.layout import ROWS, Change, Layout
from yuzu._engine.window import Geometry, Window


class Unfolded(Reading):
    """The taps are on an axis after all others, and may be merged with them."""

    family = "view"
    keeps_finite = True
    reads_reference = False
    carries_values = True

    def __init__(self, view: View, layout: Layout, geometry: Geometry) -> None:
        super().__init__(view, layout)
        self.geometry = geometry
        shape = view.shape
        self.rest = [*shape[1 : layout.axis], *shape[layout.axis + 1 :]]

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        assert change is not None and window is not None
        g = self.geometry
        read = window.cached(("read", self.node.index), lambda: g.read_by(window))
        tensor = rewindowed(run, self.sources[0], self.source_layouts[0], change, read)
        taps = tensor.unfold(2, g.reach + 1, g.stride)[..., :: g.dilation]
        return taps.reshape(*tensor.shape[:2], window.width, *self.rest)

    def detail(self) -> str:
        return f"kernel {self.geometry.kernel}"


@handles("aten.unfold")
def unfold(view: View) -> Rule | str:
    node = view.node
    axis, size, step = node.named("dimension") % (view.rank - 1), node.named("size"), node.named("step")
    if axis == 0:
        return "it takes part of the batch"
    layout = view.layout(node.args[0])
    if not node.mutated or layout.kind != "windows" or layout.composite:
        layout = ROWS
    elif axis == layout.axis:
        length = view.shape[axis]
        return Unfolded(view, Layout("windows", axis, length), Geometry(size, step, 0, 1, layout.length, length))
    return Rearranged(view, layout, lambda rows: rows.unfold(axis, size, step))


@handles("aten.im2col")
def columns(view: View) -> Rule | str:
    """For images with one axis of positions, and a single line on the other."""
    node, (source, kernel, dilation, padding, stride) = view.node, view.node.args
    sizes, layout = view.shape_of(source), view.movable(source)
    if len(sizes) != 4:
        return "its input has no batch axis"
    if not node.mutated or layout.kind != "windows" or layout.composite or layout.axis < 2:
        return Linear(view, ROWS, "view")
    along, across = layout.axis - 2, 3 - layout.axis
    if sizes[2 + across] != 1 or kernel[across] != 1 or padding[across] != 0:
        return Linear(view, ROWS, "view")
    length = view.shape[2]
    geometry = Geometry(kernel[along], stride[along], padding[along], dilation[along], layout.length, length)
    return Unfolded(view, Layout("windows", 2, length), geometry)


@handles("aten.col2im")
def add_columns(view: View) -> Rule | str:
    if len(view.shape_of(view.node.args[0])) != 3:
        return "its input has no batch axis"
    return Linear(view, ROWS, "view")


__all__ = ["Unfolded"]
