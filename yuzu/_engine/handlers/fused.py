"""A convolution, and the ReLU, the sum and the crop after it, run as one on a GPU.

Each of them keeps its rule, and runs by it wherever the convolution's way is another. In a walk the nodes of a group
that runs as one are passed over, and its last one gets its result. `plan.fusion` finds them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from yuzu._engine.context import Context
from yuzu._engine.handlers.contract import Rule
from yuzu._engine.handlers.convolution import Convolution
from yuzu._engine.handlers.formulas import ReLU
from yuzu._engine.handlers.merge import Sum
from yuzu._engine.handlers.view import Moved
from yuzu._engine.kernels import fused as fused_kernel
from yuzu._engine.kernels import triton as kernels
from yuzu._engine.kernels.products import in_low_precision
from yuzu._engine.kernels.triton import FUSED
from yuzu._engine.layout import Change, on_device
from yuzu._engine.ways.call import FEW_CHANNELS
from yuzu._engine.window import Window

HEAD_COLUMNS = 32  # positions that one product yields, times channels, if these are few


@dataclass(frozen=True)
class FusedGroup:
    """
    Attributes
    ----------
    convolution: Convolution
    relu: ReLU or None
    total: Sum or None
    nodes: list of int
        Theirs, and those of absorbed factors and of a crop, in order.
    cropped: int
        Positions that are cut off at the beginning.
    """

    convolution: Convolution
    relu: ReLU | None
    total: Sum | None
    nodes: list[int]
    cropped: int = 0

    @classmethod
    def of(
        cls, convolution: Rule, relu: Rule | None, total: Rule | None, crop: Rule | None, nodes: list[int]
    ) -> FusedGroup:
        """The group of rules that say in `Rule.fused_as` which part they are."""
        assert isinstance(convolution, Convolution) and isinstance(relu, ReLU | None) and isinstance(total, Sum | None)
        return cls(convolution, relu, total, nodes, -crop.geometry.padding if isinstance(crop, Moved) else 0)

    @property
    def last(self) -> int:
        return self.nodes[-1]

    @property
    def source(self) -> int:
        """The node that the convolution reads."""
        return self.convolution.sources[0]

    @property
    def residual(self) -> int | None:
        """The node that the sum adds, if there is one."""
        if self.total is None:
            return None
        return next(s for s in self.total.sources if s not in self.nodes)

    def possible(self, run: Context) -> bool:
        """Tell whether it can run as one in this run at all."""
        return kernels.may_run(run, self.last)

    def chosen(self, run: Context) -> bool:
        """Tell whether the plan has chosen to run it as one."""
        return run.choice(self.convolution.node.index).way == FUSED

    def runs(self, run: Context, changes: list[Change | None]) -> bool:
        """Tell whether it runs as one in the chunk at hand."""
        given = changes[self.source]
        if not self.chosen(run) or run.keep_all or given is None or given.codes is not None:
            return False
        return self.possible(run)

    def run(self, run: Context, changes: list[Change | None], window: Window) -> torch.Tensor:
        """The change of the last node on its window."""
        given, kernel = changes[self.source], self.convolution
        assert given is not None and given.window is not None
        before, g = given.window, kernel.geometry
        sites, edits = given.tensor.shape[:2]
        few = self._positions_at_once()
        weight = self._weight(run, few)
        x = given.tensor.flatten(0, 1).flatten(2).to(weight.dtype).contiguous()
        width = -(-window.width // few)
        start = (window.start + self.cropped) * g.stride - g.padding - before.start
        first = window.cached(("first", self.last, id(before), run.device), lambda: (_numbers(start, run), before))[0]
        spans = fused_kernel.spans_of(width, x.shape[1], weight.shape[0], g.dilation, int(start.max()))
        form = fused_kernel.Form(edits, width, g.dilation, g.stride * few, spans)
        dtype = (
            in_low_precision(run.value(self.last)[:0], run.precision).dtype
            if self.low_precision_result(run)
            else torch.float32
        )
        after = fused_kernel.After(self._before_relu(run, window), self._added(run, changes, window, x), dtype)
        found = fused_kernel.convolve(x, weight, first, form, run.precision, after)
        return found.view(sites, edits, width * few, -1)[:, :, : window.width]

    def _before_relu(self, run: Context, window: Window) -> fused_kernel.BeforeReLU | None:
        if self.relu is None:
            return None
        if run.once:
            there = Window.at(window.start + self.cropped, window.width)
            values = run.on_window(self.relu.sources[0], self.relu.source_layouts[0], there).contiguous()
            return fused_kernel.BeforeReLU(values, _numbers(np.arange(len(there.start)) * window.width, run))
        reference = run.reference.position_first(self.relu.sources[0], self.relu.source_layouts[0])
        length, batch = reference.shape[1], run.reference.batch
        row = window.start + self.cropped + (0 if batch == 1 else run.sites.sequence * length)
        key = ("row", batch == 1 or run.sites.sequence.tobytes(), length, run.device)
        return fused_kernel.BeforeReLU(reference, window.cached(key, lambda: _numbers(row, run)))

    def _added(
        self, run: Context, changes: list[Change | None], window: Window, x: torch.Tensor
    ) -> fused_kernel.Residual | None:
        other = changes[self.residual] if self.residual is not None else None
        if other is None:
            return None
        assert other.window is not None
        place, offset = other.window, window.start + self.cropped - other.window.start
        shift = window.cached(("shift", self.last, id(place), run.device), lambda: (_numbers(offset, run), place))[0]
        # a residual that the convolution reads, too, is read once, as the convolution reads it
        values = x if self.residual == self.source else other.tensor.flatten(0, 1).flatten(2).contiguous()
        return fused_kernel.Residual(values, shift)

    def _positions_at_once(self) -> int:
        """The positions that are the columns of one product, if output channels are few."""
        kernel = self.convolution
        channels, alone = kernel.channels[1], self.relu is None and self.total is None
        blocks = alone and channels <= FEW_CHANNELS and kernel.geometry.dilation == kernel.geometry.stride == 1
        return HEAD_COLUMNS // channels if blocks else 1

    def _weight(self, run: Context, few: int) -> torch.Tensor:
        """``(k, Cout, Cin)``; for several positions at once the kernel at every place among them."""
        kernel, sources = self.convolution.scaled_kernel(run)

        def make() -> torch.Tensor:
            taps = in_low_precision(kernel.permute(2, 0, 1), run.precision)
            if few == 1:
                return taps.contiguous()
            k, cout, cin = taps.shape
            spread = taps.new_zeros(k + few - 1, few, cout, cin)
            for i in range(few):
                spread[i : i + k, i] = taps
            return spread.flatten(1, 2)

        return run.derived(("fused", self.convolution.node.index, few), sources, make)

    def low_precision_result(self, run: Context) -> bool:
        """Tell whether its result stays in the dtype of low-precision products, which all its readers can read."""
        plan = run.plan

        def as_one(reader: int) -> bool:
            group = plan.group_of.get(reader)
            return group is not None and self.last in (group.source, group.residual) and group.chosen(run)

        return run.precision == "medium" and plan.read_in_low_precision(self.last, as_one)

    def trial(self, run: Context, some: Callable[..., torch.Tensor]) -> Callable[[], object]:
        """Its work on the chunk at hand, by the way that the plan has chosen; ``some`` is that of `Rule.trial`."""
        windows = run.plan.windows(run.sites.position, run.sites.width)
        given: list[Change | None] = [None] * len(windows)
        for source in {self.source, self.residual} - {None}:
            assert source is not None
            at, shape = windows[source], run.value(source).shape
            assert at is not None
            tensor = some(at.width, shape[1])
            group = run.plan.group_of.get(source)
            if group is not None and group.last == source and group.chosen(run) and group.low_precision_result(run):
                tensor = in_low_precision(tensor, run.precision)
            given[source] = Change(tensor, at) if at.width else None
        nodes = [run.plan.graph.nodes[i] for i in self.nodes]

        def work() -> object:
            return run.walk(run.sites, nodes, given)

        if self.chosen(run):
            work()  # compiles the kernel, which takes longer than any trial
        return work


def _numbers(array: np.ndarray, run: Context) -> torch.Tensor:
    return on_device(array.astype(np.int32), run.device)
