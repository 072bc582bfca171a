"""Transposed convolution: each input writes the outputs from ``i*s - p`` on."""

from __future__ import annotations

from dataclasses import replace

import torch

from yuzu._engine.context import Context
from yuzu._engine.graph import Ref
from yuzu._engine.handlers.contract import Rule, Spans, View, setting, spatial_axis
from yuzu._engine.handlers.facts import Numerics
from yuzu._engine.handlers.linear_rows import LinearRows
from yuzu._engine.handlers.registry import handles
from yuzu._engine.layout import CONSTANT, Change, Layout, rewindow
from yuzu._engine.window import Geometry, Integers, Window


class TransposedConvolution(Rule):
    """A transposed convolution: each input writes ``k`` outputs from ``i*s - p`` on. It runs on the windows
    without padding, and the result is cut.
    """

    family = "convolution"
    reads_reference = False
    numerics = Numerics(weighted=True)

    def __init__(self, view: View, layout: Layout, geometry: Geometry, groups: int) -> None:
        super().__init__(view, layout)
        self.geometry, self.groups = geometry, groups
        self.weight = view.node.args[1].index

    def window(self, windows: Spans) -> tuple[Integers, Integers]:
        (window,) = windows
        assert window is not None
        g = self.geometry
        first = window.first * g.stride - g.padding
        stop = (window.stop - 1) * g.stride - g.padding + g.reach + 1
        return first, stop

    def needed(self, low: int, high: int) -> list[tuple[int, int]]:
        g = self.geometry
        first = -((g.reach - g.padding - low) // g.stride)
        stop = (high - 1 + g.padding) // g.stride + 1
        first, stop = max(first, 0), min(stop, g.input_length)
        return [(first, stop) if stop > first else (0, 0)]

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        assert change is not None and window is not None
        return self._of(change, run.value(self.weight), window)

    def _of(self, change: Change, weight: torch.Tensor, window: Window) -> torch.Tensor:
        assert change.window is not None
        g = self.geometry
        sites, edits = change.tensor.shape[:2]
        x = change.tensor.reshape(sites * edits, change.window.width, -1).permute(0, 2, 1)
        y = torch.nn.functional.conv_transpose1d(x, weight, None, g.stride, 0, 0, self.groups, g.dilation)
        result = y.permute(0, 2, 1).unflatten(0, (sites, edits))
        start = change.window.start * g.stride - g.padding
        full = window.cached(("raw", self.node.index), lambda: Window.at(start, result.shape[2]))
        return rewindow(result, full, window, disposable=True)

    def terms(
        self, run: Context, changes: list[Change | None], window: Window | None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        (change,), (source,), (layout,) = changes, self.sources, self.source_layouts
        if change is None or change.window is None or window is None:
            return None
        weight, reference = run.value(self.weight).abs(), run.on_window(source, layout, change.window)
        more = replace(change, tensor=(change.tensor + reference).abs() - reference.abs())

        def there() -> torch.Tensor:
            args, kwargs = [run.value(source).abs(), weight, None, *self.node.args[3:]], dict(self.node.kwargs)
            kwargs.pop("bias", None)
            return self.layout.position_first(self.node.target(*args, **kwargs))

        return self._of(more, weight, window), run.made_on_window(("terms", self.node.index), there, window)


@handles("aten.conv_transpose1d")
def transposed(view: View) -> Rule | str:
    node = view.node
    x, weight = node.args[0], node.args[1]
    bias = node.argument(2, "bias")
    if view.layout(weight) != CONSTANT or (isinstance(bias, Ref) and view.layout(bias) != CONSTANT):
        return "the convolution's weight depends on an input"
    axis = spatial_axis(view.layout(x))
    if len(view.shape_of(x)) != 3:
        return "the input of the convolution has no batch axis"
    if axis != 2:
        return LinearRows(view, 2)
    stride, padding, groups, dilation = (
        node.argument(3, "stride", 1),
        node.argument(4, "padding", 0),
        node.argument(6, "groups", 1),
        node.argument(7, "dilation", 1),
    )
    shape = view.shape_of(weight)
    step, left, rate = (setting(value, 2) for value in (stride, padding, dilation))
    geometry = Geometry(shape[2], step, left, rate, view.layout(x).length, view.shape[2])
    return TransposedConvolution(view, Layout("windows", 2, view.shape[2]), geometry, groups)
