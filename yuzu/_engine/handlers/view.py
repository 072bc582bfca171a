"""Operations that move elements without changing them: windows move along, and are copied only if they must be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from yuzu._engine.context import Context
from yuzu._engine.graph import Ref
from yuzu._engine.handlers.contract import Reading, Rule, Spans, View
from yuzu._engine.handlers.elementwise import pointwise
from yuzu._engine.handlers.registry import handles
from yuzu._engine.handlers.values import rewindowed
from yuzu._engine.layout import ROWS, Change, Layout, rewindow
from yuzu._engine.rewrite.batch_first import order_of
from yuzu._engine.window import Geometry, Integers, Window

END = 2**63 - 1


class Rearranged(Rule):
    """Rows ``(N, ...)`` in the model's layout, rearranged by a function that leaves the axis of positions whole. The
    function also gets the values of some constant nodes, which may be buffers and change.
    """

    family = "view"
    keeps_finite = True
    reads_reference = False
    carries_values = True
    aliases = True

    def __init__(self, view: View, layout: Layout, rearrange: Callable[..., torch.Tensor], *constants: int) -> None:
        super().__init__(view, layout)
        self.rearrange, self.constants = rearrange, constants

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        assert change is not None
        grid = run.sites.difference.shape[:2]
        constants = [run.value(i) for i in self.constants]
        if change.mutant and window is None:
            return self.rearrange(run.mutants(self.sources[0], change), *constants)
        if window is None:
            rows = run.whole(self.sources[0], change).flatten(0, 1)
            return self.rearrange(rows, *constants).unflatten(0, grid)
        tensor = rewindowed(run, self.sources[0], self.source_layouts[0], change, window)
        rows = self.rearrange(self.source_layouts[0].natural(tensor.flatten(0, 1)), *constants)
        return self.layout.position_first(rows).unflatten(0, grid)


def _shape_with(shape: tuple[int | None, ...], axis: int | None, rows: int, width: int) -> list[int]:
    return [rows if a == 0 else width if a == axis else int(s or 0) for a, s in enumerate(shape)]


def _target(view: View) -> tuple[int | None, ...]:
    assert view.node.shape is not None
    return view.node.shape


@handles("aten.permute", "aten.transpose", "aten.movedim", "aten.swapaxes")
def permute(view: View) -> Rule | str:
    node, order = view.node, order_of(view.node)
    if order[0] != 0:
        return "it moves the batch axis"
    layout = view.layout(node.args[0])
    if layout.kind == "windows":
        layout = Layout("windows", order.index(layout.axis), layout.length, layout.outer, layout.inner)
    return Rearranged(view, layout, lambda rows: rows.permute(order))


@handles(
    "aten.unsqueeze",
    "aten.squeeze",
    "aten.view",
    "aten.reshape",
    "aten._unsafe_view",
    "aten.flatten",
    "aten.unflatten",
    reads_sizes=True,
)
def reshape(view: View) -> Rule | str:
    """The axis of positions may be merged with others (then the layout says so), or be split into groups; otherwise
    values are whole.
    """
    shape, source = _target(view), view.source(view.node.args[0]).shape
    layout = view.layout(view.node.args[0])
    assert source is not None

    def rows_view() -> Rule:
        return Rearranged(view, ROWS, lambda rows: rows.reshape(_shape_with(shape, None, rows.shape[0], 0)))

    if not view.node.mutated or layout.kind != "windows":
        return rows_view()
    sizes_in = [int(s or 0) for s in source]
    sizes = [int(s or 0) for s in shape]
    before = math.prod(sizes_in[1 : layout.axis]) * layout.outer
    after = layout.inner * math.prod(sizes_in[layout.axis + 1 :])
    length = layout.length
    for axis in range(1, len(sizes)):
        left, right = math.prod(sizes[1:axis]), math.prod(sizes[axis + 1 :])
        if before % left == 0 and after % right == 0 and sizes[axis] == (before // left) * length * (after // right):
            return Regrouped(view, Layout("windows", axis, length, before // left, after // right), sizes)
    for axis in range(1, len(sizes) - 1):
        groups = sizes[axis]
        # a first axis of one group would be the flattened vector, which has no axis of positions
        if math.prod(sizes[1:axis]) == before and groups > 1 and length % groups == 0 and layout.inner == 1:
            return Split(view, Layout("windows", axis, groups), length // groups, sizes)
    return rows_view()


class Regrouped(Rule):
    """A reshape that leaves the positions together: with positions first it is a reshape of the other axes
    alone.
    """

    family = "view"
    keeps_finite = True
    reads_reference = False
    carries_values = True
    aliases = True

    def __init__(self, view: View, layout: Layout, sizes: list[int]) -> None:
        super().__init__(view, layout)
        around = [layout.outer, layout.inner] if layout.composite else []
        self.rest = [*sizes[1 : layout.axis], *around, *sizes[layout.axis + 1 :]]

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        assert change is not None and window is not None
        tensor = rewindowed(run, self.sources[0], self.source_layouts[0], change, window)
        return tensor.reshape(*tensor.shape[:3], *self.rest)


class Split(Reading):
    """Positions taken in groups, ``L -> (L / size, size)``: the window grows to whole groups.

    Axes after the positions stay after the group, and may be merged with it.
    """

    family = "view"
    reads_reference = False
    carries_values = True

    def __init__(self, view: View, layout: Layout, size: int, sizes: list[int]) -> None:
        super().__init__(view, layout)
        self.geometry = Geometry(size, size, 0, 1, layout.length * size, layout.length)
        self.before = sizes[1 : layout.axis]
        self.after = sizes[layout.axis + 1 :]  # of the group and the axes after the positions

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        assert change is not None and window is not None
        size = self.geometry.kernel
        read = window.cached(("groups", self.node.index), lambda: self.geometry.read_by(window))
        tensor = rewindowed(run, self.sources[0], self.source_layouts[0], change, read)
        tensor = tensor.reshape(*tensor.shape[:2], window.width, size, math.prod(self.before), -1).movedim(3, 4)
        return tensor.reshape(*tensor.shape[:3], *self.before, *self.after)


@handles("aten.expand", reads_sizes=True)
def expand(view: View) -> Rule | str:
    shape, source = _target(view), view.source(view.node.args[0]).shape
    layout = view.layout(view.node.args[0])
    assert source is not None
    if layout.kind == "constant":
        return Rule(view, ROWS)
    if len(shape) != len(source):
        return "it adds an axis before the batch"
    if (
        not view.node.mutated
        or layout.kind != "windows"
        or layout.composite
        or shape[layout.axis] != source[layout.axis]
    ):
        return Rearranged(view, ROWS, lambda rows: rows.expand(_shape_with(shape, None, rows.shape[0], 0)))
    axis = layout.axis
    return Rearranged(view, layout, lambda rows: rows.expand(_shape_with(shape, axis, rows.shape[0], rows.shape[axis])))


class Moved(Reading):
    """Crops, strides and pads along positions: output ``j`` is input ``j*s - p``."""

    family = "view"
    keeps_finite = True
    reads_reference = False
    carries_values = True
    aliases = True

    def __init__(
        self,
        view: View,
        layout: Layout,
        geometry: Geometry,
        rest: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        super().__init__(view, layout)
        self.geometry, self.rest = geometry, rest

    @property
    def fused_as(self) -> str:
        g = self.geometry
        return "crop" if g.stride == 1 and g.padding <= 0 and self.rest is None else ""

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        assert change is not None and window is not None
        g = self.geometry
        read = window.cached(("moved", self.node.index), lambda: g.read_by(window))
        tensor = rewindowed(run, self.sources[0], self.source_layouts[0], change, read)
        tensor = tensor[:, :, :: g.stride] if g.stride != 1 else tensor
        return tensor if self.rest is None else self.rest(tensor)


def _without_batch_arguments(view: View) -> Rule:
    node = view.node
    return Rearranged(view, ROWS, lambda rows: node.target(rows, *node.args[1:], **node.kwargs))


@handles("aten.slice")
def crop(view: View) -> Rule | str:
    node = view.node
    axis = node.argument(1, "dim", 0) % view.rank
    if axis == 0:
        return "it takes part of the batch"
    if any(isinstance(node.argument(i, n), Ref) for i, n in ((2, "start"), (3, "end"))):
        return "its bounds are computed from the size of the batch"
    layout = view.layout(node.args[0])
    if not view.node.mutated or layout.kind != "windows" or layout.composite:
        return _without_batch_arguments(view)
    if axis != layout.axis:
        return Rearranged(view, layout, lambda rows: node.target(rows, *node.args[1:], **node.kwargs))
    start, step = node.argument(2, "start") or 0, node.argument(4, "step", 1)
    start = max(start + layout.length, 0) if start < 0 else start
    length = _target(view)[axis]
    assert length is not None
    return Moved(view, Layout("windows", axis, length), Geometry(1, step, -start, 1, layout.length, length))


@handles("aten.select")
def select(view: View) -> Rule | str:
    node = view.node
    source = view.source(node.args[0])
    axis, place = node.args[1] % len(source.shape or ()), node.args[2]
    if axis == 0:
        return "it takes one row of the batch"
    layout = view.layout(node.args[0])
    if not node.mutated or layout.kind != "windows" or layout.composite:
        return _without_batch_arguments(view)
    if axis == layout.axis:
        return OnePosition(view, place % layout.length)
    return Rearranged(
        view,
        Layout("windows", layout.axis - (axis < layout.axis), layout.length),
        lambda rows: rows.select(axis, place),
    )


class OnePosition(Rule):
    """A single position: a whole difference, zero for mutations that do not reach it."""

    family = "view"
    reads_reference = False
    carries_values = True

    def __init__(self, view: View, place: int) -> None:
        super().__init__(view, ROWS)
        self.place = place

    def needed(self, low: int, high: int) -> list[tuple[int, int]]:
        return [(self.place, self.place + 1)]

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        assert change is not None and change.window is not None
        old = change.window
        if change.mutant:
            return run.mutants(self.sources[0], change).select(self.source_layouts[0].axis, self.place)
        here = old.cached(("place", self.place), lambda: Window.at(0 * old.start + self.place, 1))
        return rewindow(change.tensor, old, here).squeeze(2)


class Mirrored(Rule):
    """Positions in reverse order."""

    family = "view"
    reads_reference = False
    carries_values = True

    def __init__(self, view: View, layout: Layout, others: list[int]) -> None:
        super().__init__(view, layout)
        self.others = others

    def window(self, windows: Spans) -> tuple[Integers, Integers]:
        (window,) = windows
        assert window is not None
        return self.layout.length - window.stop, self.layout.length - window.first

    def needed(self, low: int, high: int) -> list[tuple[int, int]]:
        return [(self.layout.length - high, self.layout.length - low)]

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        assert change is not None and window is not None
        length, (layout,) = self.layout.length, self.source_layouts
        start = length - window.start - window.width
        read = window.cached(("mirrored", length), lambda: Window.at(start, window.width))
        axes = [3 + (a - 1 if a < self.layout.axis else a - 2) for a in self.others]
        return rewindowed(run, self.sources[0], layout, change, read).flip([2, *axes])


@handles("aten.flip")
def flip(view: View) -> Rule | str:
    node = view.node
    axes = [a % view.rank for a in node.args[1]]
    if 0 in axes:
        return "it reverses the batch"
    layout = view.layout(node.args[0])
    if not node.mutated or layout.kind != "windows" or layout.composite:
        return Rearranged(view, ROWS, lambda rows: rows.flip(axes))
    if layout.axis not in axes:
        return Rearranged(view, layout, lambda rows: rows.flip(axes))
    return Mirrored(view, layout, [a for a in axes if a != layout.axis])


class Converted(Rearranged):
    """Another dtype between floating point types. The tensor whose dtype is taken changes nothing."""

    def __init__(self, view: View, layout: Layout) -> None:
        dtype: Any = view.node.dtype
        super().__init__(view, layout, lambda rows: rows.to(dtype))
        source = view.node.args[0]
        self.sources, self.source_layouts = [view.source(source).index], [view.layout(source)]


@handles("aten.to", "aten._to_copy", "aten.type_as")
def convert(view: View) -> Rule | str:
    """A change of dtype between floating point types."""
    source, node = view.source(view.node.args[0]), view.node
    if node.mutated and not (source.floating and node.floating):
        return pointwise(view)
    return Converted(view, view.layout(node.args[0]) if node.mutated else ROWS)
