"""Convolution. It is linear, so the difference of the result is the convolution of the difference, without the bias.

An output position ``j`` reads the inputs ``j*s - p + t*d``. This is exact for every stride, padding, dilation and
number of groups. With stride 1 it runs by one of the `ways`; with a larger stride the windows are first aligned to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import torch

from yuzu._engine.choice import Choice
from yuzu._engine.context import Context
from yuzu._engine.graph import Ref
from yuzu._engine.handlers.complex_numbers import ComplexConvolution
from yuzu._engine.handlers.contract import Reading, Rule, View, setting, spatial_axis
from yuzu._engine.handlers.exact_zeros import TermsOf, count_read, magnitude, nonzero, read
from yuzu._engine.handlers.facts import Numerics, RuleMemory, Sizes
from yuzu._engine.handlers.linear_rows import LinearRows
from yuzu._engine.handlers.registry import handles
from yuzu._engine.kernels.products import convolve_rows, low_precision_kernel
from yuzu._engine.kernels.triton import FUSED
from yuzu._engine.layout import CONSTANT, Change, Layout, rewindow
from yuzu._engine.ways.call import FEW_CHANNELS, Call, Shape
from yuzu._engine.ways.convolution import WAYS, WayEntry, held_by_blocks, table
from yuzu._engine.window import Geometry, Integers, Window

LEAST_FUSED_CHANNELS = 16  # before a convolution that runs fused: a product of fewer is mostly zeros
LONG_HEAD = 16  # from so many taps and input channels on, few output channels are computed with channels last


class Convolution(Reading):
    """``conv1d``, or ``conv2d`` with one axis of positions, on windows."""

    family = "convolution"
    default_way = "windows"
    keeps_finite = True
    reads_reference = False
    absorbs_after = True
    numerics = Numerics(weighted=True)

    def __init__(self, view: View, layout: Layout, geometry: Geometry, groups: int, height: int | None) -> None:
        super().__init__(view, layout)
        self.geometry, self.groups, self.height = geometry, groups, height
        # a kernel of 1 on the second axis keeps its lines apart: they are carried like edits
        self.lines = height if height is not None and view.shape_of(view.node.args[1])[5 - layout.axis] != height else 1
        self.weight = view.node.args[1].index
        self.kernel_axis = view.layout(view.node.args[0]).axis
        out, channels, *kernel = view.shape_of(view.node.args[1])
        beside = math.prod(kernel) // geometry.kernel
        self.channels = (channels * groups * beside, out)
        self.absorbs_before = groups == 1 and height is None

    def reference(self, value_of: Callable[[int], Any], device: torch.device) -> Any:
        """The value, computed with channels last for few output channels of a long kernel on many input channels. These
        are the heads of profile models: oneDNN runs them three to four times faster so than with channels first.
        """
        node, padding = self.node, self.node.argument(4, "padding", 0)
        x, weight = value_of(node.args[0].index), value_of(self.weight)
        slow = self.channels[1] <= FEW_CHANNELS and min(self.geometry.kernel, weight.shape[1]) >= LONG_HEAD
        if not (slow and node.op == "aten.conv1d" and x.dtype == torch.float32 and device.type == "cpu"):
            return super().reference(value_of, device)
        if isinstance(padding, str):
            return super().reference(value_of, device)
        bias, g = node.argument(2, "bias"), self.geometry
        x, weight = (t.unsqueeze(2).contiguous(memory_format=torch.channels_last) for t in (x, weight))
        added = None if bias is None else value_of(bias.index)
        result = torch.conv2d(x, weight, added, (1, g.stride), (0, g.padding), (1, g.dilation), self.groups)
        return result.squeeze(2).contiguous()

    def shape(self, width: int) -> Shape:
        """The sizes that the ways ask for."""
        g = self.geometry
        return Shape(width, g.kernel, g.dilation, self.channels[0], self.channels[1], self.groups)

    def applicable(self, run: Context, width: int) -> list[str]:
        """The ways that this layer can be run with windows of a width."""
        found = [name for name in WAYS if self.fits(name, width)]
        group = run.plan.group_of.get(self.node.index)
        return [*found, FUSED] if group is not None and group.possible(run) else found

    def all_ways(self) -> tuple[str, ...]:
        return (*WAYS, FUSED)

    def fits(self, way: str, width: int) -> bool:
        if way == FUSED or self.geometry.stride != 1:
            return way in (FUSED, "windows")
        return WAYS[way].applies(self.shape(width)) is None

    def ways(self, run: Context, window: Window) -> list[str]:
        shape, low_precision = (
            self.shape(window.width),
            run.precision == "medium" or run.value(self.weight).itemsize < 4,
        )
        found = self.applicable(run, window.width)
        # TF32 rounds more than may be amplified
        steady = run.choice(self.node.index).well_conditioned and (
            run.precision == "highest" or run.device.type == "cpu"
        )
        exact = [way for way in found if way in WAYS and WAYS[way].exact and (steady or WAYS[way].keeps_zeros)]
        winners = [way for way in exact if WAYS[way].may_win(shape, low_precision)] or exact
        return (
            [FUSED, *winners] if FUSED in found and run.device.type != "cpu" else winners
        )  # first, so that the trials of the others can be short

    def forced_way(self, run: Context, way: str, width: int) -> str:
        return way if way in self.applicable(run, width) else self.default_way

    def alike(self, choice: Choice) -> Hashable:
        g = self.geometry
        return (
            "convolution",
            g.kernel,
            g.stride,
            g.dilation,
            self.channels,
            self.groups,
            self.lines,
            choice.low_precision,
            choice.well_conditioned,
        )

    def akin(self, choice: Choice) -> Hashable:
        g = self.geometry
        return "convolution", g.kernel, g.stride, self.channels, self.groups, self.lines, choice.well_conditioned

    def multiply_adds(self, run: Context, width: int) -> int:
        return width * run.value(self.weight).numel() * self.lines

    def trial(self, run: Context, window: Window, some: Callable[..., torch.Tensor], way: str) -> Callable[[], object]:
        group = run.plan.group_of.get(self.node.index)
        if group is not None and group.possible(run):
            # the operations after it are part of the fused way, so each way is timed with them
            return group.trial(run.of_plan(run.plan.with_ways({self.node.index: way})), some)
        # at full width: near the ends of the sequence a crop may leave less
        kernel, sources = self.scaled_kernel(run)
        x, g = some(window.width, self.channels[0]).to(kernel.dtype), self.geometry
        call = Call(run, ("measure", self.node.index), x, window, kernel, sources, g.dilation, self.groups)
        call.low_precision_result = run.choice(self.node.index).low_precision
        return lambda: _by_itself(way).run(call)

    def memory(self, choice: Choice, sizes: Sizes) -> RuleMemory:
        shape, low_precision = self.shape(sizes.width), sizes.precision == "medium" and sizes.itemsize == 4
        kernel = shape.kernel * shape.channels_in * shape.channels_out // shape.groups
        # laid out anew, and a copy to notice changes; the same of the weight with factors in it
        copies = 4 if choice.before or choice.after else 2
        held = _by_itself(choice.way).held(shape, low_precision)
        # of few output channels the first layer and the reference may take blocks, too, whatever the way
        blocks = held_by_blocks(shape, low_precision, wide=False).weights if shape.few and choice.way != "blocks" else 0
        return RuleMemory(weights=copies * kernel + held.weights + blocks, largest=held.of_mutant)

    def unfolded(self) -> int:
        g = self.geometry
        return g.kernel * self.channels[0] * g.output_length

    @property
    def fused_as(self) -> str:
        plain = self.groups == 1 and self.height is None and self.node.dtype == torch.float32
        return "convolution" if plain and self.channels[0] >= LEAST_FUSED_CHANNELS else ""

    def shown_way(self, way: str, first_layer: bool) -> str:
        return "table" if first_layer and self.geometry.stride == 1 and self.groups == 1 else way

    def probes(self, way: str, width: int, edits: int) -> int | None:
        return (width + self.geometry.reach) * edits if way == "cyclic" else None

    def kernel(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as ``(Cout, Cin, k)``; a second axis that is read whole counts as channels."""
        if weight.dim() == 4:
            weight = weight.movedim(self.kernel_axis, 3).flatten(1, 2)
        return weight

    def scaled_kernel(self, run: Context) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The weight times the absorbed factors, and the tensors that it is made from."""
        weight = run.value(self.weight)
        choice = run.choice(self.node.index)
        if not (choice.before or choice.after) or run.keep_all:
            return self.kernel(weight), [weight]
        before, after = ([f(run) for f in factors] for factors in (choice.before, choice.after))
        sources = [weight, *(source for _, found in (*before, *after) for source in found)]

        def make() -> torch.Tensor:
            kernel = self.kernel(weight)
            for factor, _ in after:
                kernel = kernel * factor[:, None, None]
            for factor, _ in before:
                kernel = kernel * factor[:, None]
            return kernel.to(weight.dtype)

        return run.derived(("scaled kernel", self.node.index), sources, make), sources

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        assert change is not None and change.window is not None and window is not None
        kernel, sources = self.scaled_kernel(run)
        x = change.tensor
        edits = x.shape[1]
        if self.lines > 1:
            x = x.movedim(4, 2).flatten(1, 2)
        elif self.height is not None:
            x = x.flatten(3)
        sites, rows = x.shape[:2]
        geometry = self.geometry
        key = ("convolution", self.node.index, len(sources))
        choice = run.choice(self.node.index)
        lower = choice.low_precision and not run.keep_all
        if geometry.stride == 1:
            before = change.window
            first, stop, start = window.cached(
                ("wanted", self.node.index, id(before)), lambda: self._wanted(before, window)
            )[0]
            call = Call(
                run,
                key,
                x,
                before,
                kernel,
                sources,
                geometry.dilation,
                self.groups,
                change.codes,
                lower,
                (first, stop),
            )
            first_layer = change.codes is not None and self.groups == 1
            result = table(call) if first_layer else _by_itself(choice.way).run(call)
            width = result.shape[1]
            if width == stop - first:
                start = start + first
        else:
            start, width = window.start, window.width
            read = window.cached(("strided", self.node.index), lambda: geometry.read_by(window))
            aligned = rewindow(x, change.window, read).reshape(sites * rows, read.width, -1)
            prepared = run.derived((key, "strided"), sources, lambda: low_precision_kernel(kernel, run.precision))
            result = convolve_rows(
                aligned, prepared, 0, geometry.dilation, self.groups, geometry.stride, dtype=kernel.dtype
            )
        result = result.view(sites, rows, width, -1)
        if self.lines > 1:
            result = result.unflatten(1, (edits, self.lines)).movedim(2, 4)
        elif self.height is not None:
            result = result.unsqueeze(4)
        full = window.cached(("raw", self.node.index, width), lambda: Window.at(start, width))
        return rewindow(result, full, window, disposable=True)

    def vanishes(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor | None:
        (change,) = changes
        if change is None or window is None:
            return None
        return self._of_channels(count_read(run, self._terms, change, window, nonzero) == 0)

    @property
    def _terms(self) -> TermsOf:
        return TermsOf(self.node.index, self.sources[0], self.source_layouts[0], self.geometry, self.groups)

    def terms(
        self, run: Context, changes: list[Change | None], window: Window | None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The sums of magnitudes, as if all weights were one."""
        (change,) = changes
        if change is None or window is None:
            return None
        for absorbed in () if run.keep_all else run.choice(self.node.index).before:
            factor = absorbed(run)[0]
            change = replace(change, tensor=change.tensor * factor.view(-1, *[1] * (change.tensor.dim() - 4)))
        more, there = read(run, self._terms, change, window, magnitude)
        return self._of_channels(more), self._of_channels(there)

    def _of_channels(self, found: torch.Tensor) -> torch.Tensor:
        """A tensor with an entry for each group, repeated for each output channel."""
        found = found.repeat_interleave(self.channels[1] // self.groups, 3) if self.groups > 1 else found
        return found if self.height is None else found.unsqueeze(4)

    def knows_zeros(self) -> bool:
        return self.lines == 1 and (self.height is None or self.groups == 1)

    def _wanted(self, before: Window, window: Window) -> tuple[tuple[int, int, Integers], Window]:
        """Which of the positions that the window before it reaches are in any site's window (first, and one after the
        last), and where those begin.
        """
        g = self.geometry
        start = before.start + (g.padding - g.reach)
        ahead = window.start - start
        reached = before.width + g.reach
        first = min(max(int(ahead.min()), 0), reached)
        stop = max(min(int(ahead.max()) + window.width, reached), first)
        return (first, stop, start), before

    def detail(self) -> str:
        g = self.geometry
        settings = [f"kernel {g.kernel}"]
        settings += [
            f"{name} {value}"
            for name, value in (("stride", g.stride), ("dilation", g.dilation), ("groups", self.groups))
            if value != 1
        ]
        return ", ".join(settings)


def _by_itself(way: str) -> WayEntry:
    """The entry of a way for a layer that runs alone."""
    return WAYS["windows"] if way == FUSED else WAYS[way]


@handles("aten.conv1d", "aten.conv2d")
def convolution(view: View) -> Rule | str:
    node = view.node
    x, weight = node.args[0], node.args[1]
    if view.layout(weight) != CONSTANT or not isinstance(weight, Ref):
        return "the convolution's weight depends on an input"
    bias = node.argument(2, "bias")
    if isinstance(bias, Ref) and view.layout(bias) != CONSTANT:
        return "the convolution's bias depends on an input"
    layout = view.layout(x)
    spatial = 1 if node.op == "aten.conv1d" else 2
    if len(view.shape_of(x)) != spatial + 2:
        return "the input of the convolution has no batch axis"
    groups = node.argument(6, "groups", 1)
    stride, padding, dilation = (
        node.argument(i, n, d) for i, n, d in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    axis = spatial_axis(layout)
    if axis is None or axis < 2:
        return LinearRows(view, 2)
    shape = view.shape_of(weight)
    length, kernel = layout.length, shape[axis]
    step, rate = setting(stride, axis), setting(dilation, axis)
    if isinstance(padding, str):
        left = (kernel - 1) * rate // 2 if padding == "same" else 0
        no_padding = padding == "valid"
    else:
        left, no_padding = setting(padding, axis), False
    height = None
    if spatial == 2:
        other = 5 - axis
        height = view.shape_of(x)[other]
        pad_other = 0 if no_padding or isinstance(padding, str) else setting(padding, other)
        if isinstance(padding, str) and padding == "same" and shape[other] != 1:
            return LinearRows(view, 2)
        apart = shape[other] == 1 and setting(stride, other) == 1
        if (shape[other] != height and not apart) or pad_other != 0 or (shape[other] != 1 and groups != 1):
            return LinearRows(view, 2)
    geometry = Geometry(kernel, step, left, rate, length, view.shape[axis])
    out = Layout("windows", axis, view.shape[axis])
    if node.dtype is not None and node.dtype.is_complex:
        return ComplexConvolution(view, out, geometry)
    return Convolution(view, out, geometry, groups, height)
