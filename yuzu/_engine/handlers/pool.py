"""Pooling over positions, with any stride, overlap, padding, ``ceil_mode`` and dilation.

The maximum is exact. With ``M[j]`` the reference's result and ``E_t[j] = R[j*s - p + t*d] - M[j]``, never positive
and ``-inf`` outside the sequence,

    max_t(R + D) - M = max_t(D[j*s - p + t*d] + E_t[j])

so the largest element's own difference comes out unrounded. The average is linear: the sum of the differences over
the reference's divisor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from yuzu._engine.choice import Choice
from yuzu._engine.context import Context
from yuzu._engine.handlers.affine import Linear
from yuzu._engine.handlers.contract import Reading, Rule, View, setting, spatial_axis
from yuzu._engine.handlers.exact_zeros import TermsOf, Test, count_read, nonzero, positive, zero
from yuzu._engine.handlers.facts import Numerics, RuleMemory, Sizes
from yuzu._engine.handlers.interpolate import Resampled
from yuzu._engine.handlers.reduce import reduction
from yuzu._engine.handlers.registry import handles
from yuzu._engine.handlers.values import OnRows
from yuzu._engine.kernels import pool as pool_kernel
from yuzu._engine.kernels import triton as kernels
from yuzu._engine.kernels.triton import POOL_KERNEL
from yuzu._engine.layout import ROWS, Change, Layout, on_device, read_windows
from yuzu._engine.window import Geometry, Window

PHASES = "phases"


class Pool(Reading):
    """The shared part of maximum and average: windows aligned to the stride, and the taps that each output position
    reads. On a GPU one kernel does the work. Elsewhere it runs phase by phase: a phase has the sites that lie alike
    towards the stride.
    """

    family = "pool"
    keeps_finite = True
    default_way = PHASES

    def __init__(self, view: View, layout: Layout, geometry: Geometry) -> None:
        super().__init__(view, layout)
        self.geometry = geometry

    def phases(self, before: Window, window: Window) -> list[Phase]:
        """The phases of a chunk. In the middle of a sequence one has runs of sites of equal length, evenly spaced."""

        def find() -> tuple[list[Phase], Window]:
            offset = window.start * self.geometry.stride - self.geometry.padding - before.start
            found = []
            for value in np.unique(offset):
                sites = np.flatnonzero(offset == value)
                runs = np.split(sites, np.flatnonzero(np.diff(sites) > 1) + 1)
                firsts, lengths = np.array([run[0] for run in runs]), np.array([len(run) for run in runs])
                i = 0
                while i < len(runs):
                    j = i + 1
                    while (
                        j < len(runs)
                        and lengths[j] == lengths[i]
                        and firsts[j] - firsts[j - 1] == firsts[i + 1] - firsts[i]
                    ):
                        j += 1
                    rows = firsts[i:j, None] + np.arange(lengths[i])
                    found.append(Phase.of(rows, int(value), window))
                    i = j
            return found, before

        return window.cached(("phases", self.node.index, id(before)), find)[0]

    def taps(self, phase: Phase, before: Window, window: Window) -> list[tuple[int, int, slice]]:
        """For each tap, the output positions ``[first, stop)`` at which it reads inside the window before, and the
        slice that it reads.
        """
        g = self.geometry
        found = []
        for t in range(g.kernel):
            place = phase.offset + t * g.dilation
            first = max(-(place // g.stride), 0)
            stop = min((before.width - 1 - place) // g.stride + 1, window.width)
            low = place + first * g.stride
            found.append((first, max(stop, first), slice(low, place + (stop - 1) * g.stride + 1, g.stride)))
        return found

    def all_ways(self) -> tuple[str, ...]:
        return PHASES, POOL_KERNEL

    def ways(self, run: Context, window: Window) -> list[str]:
        runs = run.device.type != "cpu" and kernels.may_run(run, self.node.index)
        return [POOL_KERNEL, PHASES] if runs else [PHASES]

    def multiply_adds(self, run: Context, width: int) -> int:
        (layout,) = self.source_layouts
        return width * run.value(self.sources[0])[0].numel() // layout.length

    def trial(self, run: Context, window: Window, some: Callable[..., torch.Tensor], way: str) -> Callable[[], object]:
        (source,), (layout,) = self.sources, self.source_layouts
        shape = layout.position_first(run.value(source)[:1]).shape[2:]
        change = Change(some(window.width, *shape), window)
        after = run.plan.windows(run.sites.position, run.sites.width)[self.node.index]
        assert after is not None
        return lambda: self._by(way, run, change, after)

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        assert change is not None and window is not None
        return self._by(run.choice(self.node.index).way, run, change, window)

    def _by(self, way: str, run: Context, change: Change, window: Window) -> torch.Tensor:
        if way == POOL_KERNEL and kernels.may_run(run, self.node.index):
            try:
                return self.by_kernel(run, change, window)
            except kernels.KernelError as error:
                run.do_without_kernels(error)
        return self.by_phases(run, change, window)

    def by_phases(self, run: Context, change: Change, window: Window) -> torch.Tensor:
        """The result, phase by phase, one tap at a time."""
        raise NotImplementedError

    def by_kernel(self, run: Context, change: Change, window: Window) -> torch.Tensor:
        """The result, by one kernel."""
        g, old = self.geometry, change.window
        assert old is not None

        def sites() -> tuple[pool_kernel.Sites, Window]:
            first = window.start * g.stride - g.padding - old.start
            of_each = (a.astype(np.int32) for a in (first, window.start, run.sites.sequence))
            return pool_kernel.Sites(*(on_device(a, run.device) for a in of_each)), old

        key = ("pooled", self.node.index, id(old), run.sites.sequence.tobytes(), run.device)
        x = change.tensor.flatten(0, 1).flatten(2).contiguous()
        there = window.cached(key, sites)[0]
        found = pool_kernel.pool(x, change.tensor.shape[1], window.width, g, there, *self.beside(run))
        return found.view(*change.tensor.shape[:2], window.width, *change.tensor.shape[3:])

    def count(self, run: Context, change: Change, window: Window, test: Test) -> torch.Tensor:
        """How many of the terms of each result pass a test."""
        (source,), (layout,), sizes = self.sources, self.source_layouts, change.tensor.shape[3:]
        of = TermsOf(self.node.index, source, layout, self.geometry, sizes.numel())
        found = count_read(run, of, change, window, test)
        return found.unflatten(3, sizes) if sizes else found.squeeze(3)

    def beside(self, run: Context) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The tensors that the kernel reads beside the differences: before and after the pool."""
        raise NotImplementedError

    def detail(self) -> str:
        g = self.geometry
        return f"kernel {g.kernel}, stride {g.stride}"


@dataclass(frozen=True)
class Phase:
    """Sites that lie alike towards the stride: ``count`` runs of ``length`` neighbours, ``step`` from each other.

    ``offset`` is the input that their first tap reads, counted from the start of the window before. ``rows`` are all
    of them and ``windows`` theirs after the pool; ``shared`` has the first of each run if a run's windows are the same.
    """

    first: int
    count: int
    length: int
    step: int
    offset: int
    rows: np.ndarray
    windows: Window
    shared: Window | None

    @classmethod
    def of(cls, rows: np.ndarray, offset: int, window: Window) -> Phase:
        start = window.start[rows]
        same = bool((start == start[:, :1]).all())
        step = int(rows[1, 0] - rows[0, 0]) if len(rows) > 1 else 1
        return cls(
            int(rows[0, 0]),
            rows.shape[0],
            rows.shape[1],
            step,
            offset,
            rows,
            Window.at(start.reshape(-1), window.width),
            Window.at(start[:, 0], window.width) if same else None,
        )

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """The rows of ``(S, A, ...)`` as ``(count, length, A, ...)``, a view."""
        stop = self.first + (self.count - 1) * self.step + self.length
        return tensor[self.first : stop].unfold(0, self.length, self.step).movedim(-1, 1)


class MaximumPool(Pool):
    """Maximum over positions."""

    reads_low_precision = True

    def memory(self, choice: Choice, sizes: Sizes) -> RuleMemory:
        return RuleMemory(tables=self.geometry.kernel * sizes.result)

    def vanishes(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor | None:
        (change,) = changes
        if change is None or window is None:
            return None
        return (self.count(run, change, window, positive) == 0) & (self.count(run, change, window, zero) > 0)

    def below_maximum(self, run: Context, t: int) -> torch.Tensor:
        """``E_t`` at all output positions: ``(B, L', ...)``."""
        source, g = self.sources[0], self.geometry
        reference = run.reference.position_first(source, self.source_layouts[0])
        pooled = run.reference.position_first(self.node.index, self.layout)
        position = torch.arange(g.output_length, device=run.device) * g.stride - g.padding + t * g.dilation
        inside = (position >= 0) & (position < g.input_length)
        read = reference.index_select(1, position.clamp(0, g.input_length - 1)) - pooled
        return read.masked_fill_(~inside.view(1, -1, *[1] * (read.dim() - 2)), float("-inf"))

    def by_phases(self, run: Context, change: Change, window: Window) -> torch.Tensor:
        tensor, before = change.tensor, change.window
        assert before is not None
        dtype = run.value(self.node.index).dtype
        result = tensor.new_empty(*tensor.shape[:2], window.width, *tensor.shape[3:], dtype=dtype)
        for phase in self.phases(before, window):
            of_phase, maximum = phase.take(tensor), phase.take(result)
            scratch = torch.empty_like(maximum)  # small enough to stay in the cache from one tap to the next
            begun = False
            taps = list(enumerate(self.taps(phase, before, window)))
            for t, (first, stop, read) in sorted(taps, key=lambda tap: tap[1][0] - tap[1][1]):
                below = self.on_phase(run, t, phase)
                value = scratch if begun else maximum
                if stop > first:
                    part, added = value[:, :, :, first:stop], below[:, :, :, first:stop]
                    if tensor.dtype == dtype:
                        torch.add(of_phase[:, :, :, read], added, out=part)
                    else:  # widened first: operations on mixed dtypes are slow
                        part.copy_(of_phase[:, :, :, read]).add_(added)
                for outside in (slice(0, first), slice(stop, window.width)):
                    if outside.stop > outside.start:
                        value[:, :, :, outside] = below[:, :, :, outside]
                if begun:
                    torch.maximum(maximum, scratch, out=maximum)
                begun = True
        return result

    def beside(self, run: Context) -> tuple[torch.Tensor | None, torch.Tensor]:
        before = run.reference.position_first(self.sources[0], self.source_layouts[0])
        return before, run.reference.position_first(self.node.index, self.layout)

    def on_phase(self, run: Context, t: int, phase: Phase) -> torch.Tensor:
        """``E_t`` on the windows of a phase: ``(count, length or 1, 1, w', ...)``."""
        table = run.reference.made(("below", self.node.index, t), lambda: self.below_maximum(run, t).contiguous())
        only = run.sites.only
        if only is not None and phase.shared is not None:
            return read_windows(table, phase.shared, run.sites.sequence[phase.rows[:, 0]], only)[:, None, None]
        taken = read_windows(table, phase.windows, run.sites.sequence[phase.rows.reshape(-1)], only)
        return taken.unflatten(0, (phase.count, phase.length)).unsqueeze(2)


class AveragePool(Pool):
    """Average over positions; ``divisors`` are those of the reference operation at each output position."""

    numerics = Numerics(cancels=True)

    def __init__(
        self, view: View, layout: Layout, geometry: Geometry, count_padding: bool, divisor: int | None
    ) -> None:
        super().__init__(view, layout, geometry)
        g = geometry
        low = torch.arange(g.output_length, device="cpu") * g.stride - g.padding
        high = low + g.kernel
        if divisor is not None:
            counts = torch.full((g.output_length,), divisor, device="cpu")
        elif count_padding:
            counts = high.clamp(max=g.input_length + g.padding) - low  # ``ceil_mode`` may reach further
        else:
            counts = high.clamp(max=g.input_length) - low.clamp(min=0)
        self.counts = counts
        self.even = bool((counts == counts[0]).all())

    def vanishes(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor | None:
        (change,) = changes
        return None if change is None or window is None else self.count(run, change, window, nonzero) == 0

    def by_phases(self, run: Context, change: Change, window: Window) -> torch.Tensor:
        tensor, before = change.tensor, change.window
        assert before is not None
        result = tensor.new_zeros(*tensor.shape[:2], window.width, *tensor.shape[3:])
        for phase in self.phases(before, window):
            of_phase, total = phase.take(tensor), phase.take(result)
            for first, stop, read in self.taps(phase, before, window):
                if stop > first:
                    total[:, :, :, first:stop] += of_phase[:, :, :, read]
        if self.even:
            return result.div_(int(self.counts[0]))
        trailing = [1] * (result.dim() - 3)
        counts = run.made_on_window(
            ("counts", self.node.index),
            lambda: self.counts.to(run.device, result.dtype).view(1, -1, *trailing),
            window,
        )
        return result.div_(counts)

    def beside(self, run: Context) -> tuple[torch.Tensor | None, torch.Tensor]:
        counts = run.reference.made(("all counts", self.node.index), lambda: self.counts.to(run.device, torch.float32))
        return None, counts


class UnevenAverage(Resampled):
    """Averages over parts of a sequence whose length is no multiple of their number: output ``j`` of ``n`` reads from
    ``floor(j L / n)`` to ``ceil((j + 1) L / n)``.
    """

    family = "pool"
    numerics = Numerics(cancels=True)

    def __init__(self, view: View, before: Layout, size: int) -> None:
        output = np.arange(size)
        first, stop = output * before.length // size, -(-(output + 1) * before.length // size)
        places = first + np.arange(int((stop - first).max()))[:, None]
        shares = np.broadcast_to(1 / (stop - first), places.shape)
        super().__init__(view, before, np.where(places < stop, places, -1), shares)

    def vanishes(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor | None:
        (change,), (source,), (layout,) = changes, self.sources, self.source_layouts
        if change is None or window is None:
            return None
        assert change.window is not None

        def of_reference() -> torch.Tensor:
            there = (run.reference.position_first(source, layout) != 0).float()
            everywhere = Window.at(np.zeros(len(there), dtype=np.int64), there.shape[1])
            outputs = Window.at(0 * everywhere.start, self.layout.length)
            return self.summed(there.unsqueeze(1), everywhere, outputs, None).squeeze(1)

        there = run.on_window(source, layout, change.window)
        more = (change.tensor + there != 0).float() - (there != 0).float()
        counted = run.made_on_window(("counted", self.node.index), of_reference, window)
        return self.summed(more, change.window, window, None) + counted == 0


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
    if view.rank != spatial + 2:
        return "the input of the pool has no batch axis"
    layout = view.movable(x)
    axis = spatial_axis(layout)
    average = "avg" in node.op
    if axis is None or axis < 2:
        return Linear(view, ROWS, "reduce") if average and node.mutated and layout == ROWS else OnRows(view)
    kernel = node.argument(1, "kernel_size")
    stride = node.argument(2, "stride", None) or kernel
    padding = node.argument(3, "padding", 0)
    dilation = 1 if average else node.argument(4, "dilation", 1)
    if spatial == 2:
        other = 5 - axis
        if setting(kernel, other) != 1 or setting(stride, other) != 1 or setting(padding, other) != 0:
            return OnRows(view)
    size, step, left, rate = (setting(value, axis) for value in (kernel, stride, padding, dilation))
    geometry = Geometry(size, step, left, rate, layout.length, view.shape[axis])
    out = Layout("windows", axis, geometry.output_length)
    if average:
        divisor = node.argument(6, "divisor_override") if spatial == 2 else None
        return AveragePool(view, out, geometry, node.argument(5, "count_include_pad", True), divisor)
    return MaximumPool(view, out, geometry)


@handles("aten.adaptive_avg_pool1d", "aten.adaptive_max_pool1d")
def adaptive(view: View) -> Rule | str:
    """An adaptive pool to a divisor of the length is an ordinary one; to 1 it is a reduction."""
    node = view.node
    layout = view.movable(node.args[0])
    axis = spatial_axis(layout)
    if view.rank != 3:
        return "the input of the pool has no batch axis"
    average = "avg" in node.op
    if axis != 2:
        linear = average and node.mutated and layout == ROWS
        return Linear(view, ROWS, "reduce") if linear else OnRows(view)
    size = view.shape[2]
    if size == 1:
        return reduction(view, "mean" if average else "amax", (2,), keepdim=True)
    if layout.length % size:
        return UnevenAverage(view, layout, size) if average else OnRows(view)
    k = layout.length // size
    geometry = Geometry(k, k, 0, 1, layout.length, size)
    out = Layout("windows", 2, size)
    return AveragePool(view, out, geometry, True, None) if average else MaximumPool(view, out, geometry)


__all__ = ["AveragePool", "MaximumPool", "Pool"]
