"""Pooling over positions, with any stride, overlap, padding, ``ceil_mode`` and dilation.

Maximum, exact: with ``M[j]`` the reference's result and ``E_t[j] = R[j*s - p + t*d] - M[j]``, never positive
and ``-inf`` outside the sequence,

    max_t(R + D) - M = max_t(D[j*s - p + t*d] + E_t[j])

so the largest element's own difference comes out unrounded. Average: linear, the sum of the differences over
the reference's divisor.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from yuzu._engine.delta import ROWS, Change, Layout, rewindow
from yuzu._engine.handlers.contract import Rule, Spans, View, handles, spatial_axis
from yuzu._engine.handlers.elementwise import OnRows
from yuzu._engine.window import Geometry, Integers, Window

if TYPE_CHECKING:
    from yuzu._engine.run import Run


class Pool(Rule):
    """What maximum and average share: windows aligned to the stride, and the taps that each output position
    reads.
    """

    family = "pool"

    def __init__(self, view: View, layout: Layout, geometry: Geometry) -> None:
        super().__init__(view, layout)
        self.geometry = geometry

    def window(self, windows: Spans) -> tuple[Integers, Integers]:
        (window,) = windows
        assert window is not None
        return self.geometry.outputs_of(window.first, window.stop)

    def needed(self, low: int, high: int) -> list[tuple[int, int]]:
        return [self.geometry.inputs_of(low, high)]

    def taps(self, change: Change, window: Window) -> list[torch.Tensor]:
        """The differences that each output position reads, one tensor ``(S, A, w', ...)`` for each place in
        the kernel.
        """
        g = self.geometry
        assert change.window is not None
        start = window.start * g.stride - g.padding
        read = window.cached(
            ("taps", self.node.index), lambda: Window.at(start, (window.width - 1) * g.stride + g.reach + 1)
        )
        aligned = rewindow(change.tensor, change.window, read)
        span = (window.width - 1) * g.stride + 1
        return [aligned[:, :, t * g.dilation : t * g.dilation + span : g.stride] for t in range(g.kernel)]

    def detail(self) -> str:
        g = self.geometry
        return f"kernel {g.kernel}, stride {g.stride}"


class MaximumPool(Pool):
    """Maximum over positions."""

    def run(self, run: Run, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        assert change is not None and window is not None
        source, g = self.sources[0], self.geometry

        def below_maximum(t: int) -> torch.Tensor:
            reference = run.reference.position_first(source, self.source_layouts[0])
            pooled = run.reference.position_first(self.node.index, self.layout)
            position = torch.arange(g.output_length, device=run.device) * g.stride - g.padding + t * g.dilation
            inside = (position >= 0) & (position < g.input_length)
            read = reference.index_select(1, position.clamp(0, g.input_length - 1)) - pooled
            return read.masked_fill_(~inside.view(1, -1, *[1] * (read.dim() - 2)), float("-inf"))

        result: torch.Tensor | None = None
        for t, tap in enumerate(self.taps(change, window)):
            below = run.made_on_window(("below", self.node.index, t), functools.partial(below_maximum, t), window)
            value = tap + below
            result = value if result is None else torch.maximum(result, value, out=result)
        assert result is not None
        return result


class AveragePool(Pool):
    """Average over positions; ``divisors`` are those of the reference operation at each output position."""

    def __init__(
        self, view: View, layout: Layout, geometry: Geometry, count_padding: bool, divisor: int | None
    ) -> None:
        super().__init__(view, layout, geometry)
        g = geometry
        position = torch.arange(g.output_length, device="cpu")[:, None] * g.stride - g.padding
        position = position + torch.arange(g.kernel, device="cpu")
        if divisor is not None:
            counts = torch.full((g.output_length,), divisor, device="cpu")
        elif count_padding:
            counts = (position < g.input_length + g.padding).sum(1)
        else:
            counts = ((position >= 0) & (position < g.input_length)).sum(1)
        self.counts = counts
        self.even = bool((counts == counts[0]).all())

    def run(self, run: Run, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        assert change is not None and window is not None
        taps = self.taps(change, window)
        result = taps[0].clone()
        for tap in taps[1:]:
            result += tap
        if self.even:
            return result.div_(int(self.counts[0]))
        trailing = [1] * (result.dim() - 3)
        counts = run.made_on_window(
            ("counts", self.node.index),
            lambda: self.counts.to(run.device, result.dtype).view(1, -1, *trailing),
            window,
        )
        return result.div_(counts)


def _one(value: Any, axis: int, rank: int) -> int:
    """A pool's setting along positions."""
    if isinstance(value, int):
        return value
    return int(value[0] if len(value) == 1 else value[axis - (rank - len(value))])


@handles(
    "aten.max_pool1d",
    "aten.max_pool2d",
    "aten.max_pool1d_with_indices",
    "aten.max_pool2d_with_indices",
    "aten.avg_pool1d",
    "aten.avg_pool2d",
)
def pool(view: View) -> Rule | str:
    node = view.node
    x = node.args[0]
    spatial = 1 if "1d" in node.op else 2
    rank = view.rank
    if rank != spatial + 2:
        return "the input of the pool has no batch axis"
    layout = view.movable(x)
    axis = spatial_axis(layout)
    if axis is None or axis < 2:
        return OnRows(view, ROWS)
    average = "avg" in node.op
    kernel = node.argument(1, "kernel_size")
    stride = node.argument(2, "stride", None) or kernel
    padding = node.argument(3, "padding", 0)
    dilation = 1 if average else node.argument(4, "dilation", 1)
    if spatial == 2:
        other = 5 - axis
        if _one(kernel, other, rank) != 1 or _one(stride, other, rank) != 1 or _one(padding, other, rank) != 0:
            return OnRows(view, ROWS)
    geometry = Geometry(
        _one(kernel, axis, rank),
        _one(stride, axis, rank),
        _one(padding, axis, rank),
        _one(dilation, axis, rank),
        layout.length,
        view.shape[axis],
    )
    out = Layout("windows", axis, geometry.output_length)
    if average:
        divisor = node.argument(6, "divisor_override") if spatial == 2 else None
        return AveragePool(view, out, geometry, node.argument(5, "count_include_pad", True), divisor)
    return MaximumPool(view, out, geometry)


@handles("aten.adaptive_avg_pool1d", "aten.adaptive_max_pool1d")
def adaptive(view: View) -> Rule | str:
    """An adaptive pool to a divisor of the length is an ordinary one; to 1 it is a reduction."""
    from yuzu._engine.handlers.reduce import reduction

    node = view.node
    layout = view.movable(node.args[0])
    axis = spatial_axis(layout)
    if view.rank != 3:
        return "the input of the pool has no batch axis"
    average = "avg" in node.op
    if axis != 2:
        return OnRows(view, ROWS)
    size = view.shape[2]
    if size == 1:
        return reduction(view, "mean" if average else "amax", (2,), keepdim=True)
    if layout.length % size:
        return OnRows(view, ROWS)
    k = layout.length // size
    geometry = Geometry(k, k, 0, 1, layout.length, size)
    out = Layout("windows", 2, size)
    return AveragePool(view, out, geometry, True, None) if average else MaximumPool(view, out, geometry)


class Upsampled(Rule):
    """Nearest-neighbour upsampling by a whole factor: each position is repeated."""

    family = "view"

    def __init__(self, view: View, layout: Layout, factor: int) -> None:
        super().__init__(view, layout)
        self.factor = factor

    def window(self, windows: Spans) -> tuple[Integers, Integers]:
        (window,) = windows
        assert window is not None
        return window.first * self.factor, window.stop * self.factor

    def needed(self, low: int, high: int) -> list[tuple[int, int]]:
        return [(low // self.factor, -(-high // self.factor))]

    def run(self, run: Run, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        assert change is not None and change.window is not None and window is not None
        result = change.tensor.repeat_interleave(self.factor, dim=2)
        start = change.window.start * self.factor
        full = window.cached(("raw", self.node.index), lambda: Window.at(start, result.shape[2]))
        return rewindow(result, full, window)


@handles("aten.upsample_nearest1d")
def upsample(view: View) -> Rule | str:
    layout = view.movable(view.node.args[0])
    size = view.shape[2]
    if spatial_axis(layout) != 2 or size % layout.length or view.source(view.node.args[0]).kind == "weight":
        return OnRows(view, ROWS)
    scales = view.node.argument(2, "scales")
    if isinstance(scales, float) and scales != size // layout.length:
        return OnRows(view, ROWS)
    return Upsampled(view, Layout("windows", 2, size), size // layout.length)


__all__ = ["AveragePool", "MaximumPool", "Pool"]
