"""The general rule for an operation that reads a few neighbouring positions: the operation on windows of ``R + D``,
minus the reference's result.

With kernel ``k``, stride ``s``, padding ``p`` and dilation ``d`` the output position ``j`` reads the inputs ``j*s - p +
t*d``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from yuzu._engine.context import Context
from yuzu._engine.handlers.contract import Reading, View
from yuzu._engine.layout import Change, Layout, rewindow
from yuzu._engine.window import Geometry, Window


class Windowed(Reading):
    """A pool, filter or other operation of one's own along positions.

    Parameters
    ----------
    view: View
        The handler's argument.
    function: callable
        The operation without its padding: from ``(N, ..., m, ...)`` with ``m`` input positions on the axis of positions
        to all output positions that can be computed from them.
    kernel, stride, padding, dilation: int
        The geometry of the operation; ``padding`` is that on the left.
    fill: float
        The value of positions outside of the sequence. Default 0.

    Raises
    ------
    ValueError
        If the operation's first argument has no axis of positions; return a sentence in that case.
    """

    family = "windowed"

    def __init__(
        self,
        view: View,
        function: Callable[[torch.Tensor], torch.Tensor],
        kernel: int = 1,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        fill: float = 0.0,
    ) -> None:
        before = view.movable(view.node.args[0])
        if before.kind != "windows" or before.composite:
            raise ValueError(f"{view.node.op} does not get windows of positions")
        super().__init__(view, Layout("windows", before.axis, view.shape[before.axis]))
        self.geometry = Geometry(kernel, stride, padding, dilation, before.length, self.layout.length)
        self.function, self.fill = function, fill

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        (source,), (layout,) = self.sources, self.source_layouts
        assert change is not None and change.window is not None and window is not None
        read = window.cached(("read", self.node.index), lambda: self.geometry.read_by(window))
        values = rewindow(change.tensor, change.window, read) + run.on_window(source, layout, read, self.fill)
        rows = self.function(layout.natural(values.flatten(0, 1)))
        result = self.layout.position_first(rows).unflatten(0, change.tensor.shape[:2])
        return result - run.on_window(self.node.index, self.layout, window)

    def detail(self) -> str:
        return f"kernel {self.geometry.kernel}"


class Linear(Windowed):
    """A filter or other linear operation of one's own along positions. It is applied to the differences themselves, so
    the reference is not read, and no digits are lost.

    The parameters are those of `Windowed`. ``function`` must be linear, without an offset, and positions outside of the
    sequence must count as 0.
    """

    reads_reference = False

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,), (layout,) = changes, self.source_layouts
        assert change is not None and change.window is not None and window is not None
        read = window.cached(("read", self.node.index), lambda: self.geometry.read_by(window))
        rows = self.function(layout.natural(rewindow(change.tensor, change.window, read).flatten(0, 1)))
        return self.layout.position_first(rows).unflatten(0, change.tensor.shape[:2])
