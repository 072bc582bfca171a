"""Linear layers along positions, after a flatten or on the last axis.

Only the window's positions are nonzero, so each site's window is multiplied with the matching slice of the weight,
which is read in place. Sites that share a window share the slice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from yuzu._engine.choice import Choice
from yuzu._engine.context import Context
from yuzu._engine.graph import Ref
from yuzu._engine.handlers.contract import Rule, View
from yuzu._engine.handlers.exact_zeros import count_all, magnitude, nonzero, read_all
from yuzu._engine.handlers.facts import Numerics, RuleMemory, Sizes
from yuzu._engine.kernels import onednn as onednn_products
from yuzu._engine.kernels.products import add_product, in_low_precision, product
from yuzu._engine.layout import ROWS, Change, Layout, on_device
from yuzu._engine.window import Window

DENSE_WAYS = ("slices", "positions")
PART = 8  # channels around the positions of a weight that are copied at once
SPREAD_BYTES = 24 << 20  # of a block's windows, each in its place among all positions


class OverPositions(Rule):
    """``x @ W^T`` where ``x``'s last axis holds the positions (with ``outer`` and ``inner`` channels around
    them).

    A mutant reads the slice of the weight at its window. By ``"slices"`` all sites of one window are multiplied with
    its slice. By ``"positions"`` all sites that reach a position are multiplied with the weight's rows of that
    position, and summed, so that neighbouring windows do not read the same weights again.
    """

    family = "dense"
    reads_reference = False
    default_way = "slices"
    shares_among_sites = True
    numerics = Numerics(weighted=True)

    def __init__(self, view: View, weight: int, transposed: bool) -> None:
        super().__init__(view, ROWS)
        self.weight, self.transposed = weight, transposed
        self.numbers = math.prod(view.shape_of(Ref(weight)))

    def memory(self, choice: Choice, sizes: Sizes) -> RuleMemory:
        return RuleMemory(weights=2 * self.numbers)

    def all_ways(self) -> tuple[str, ...]:
        return DENSE_WAYS

    def ways(self, run: Context, window: Window) -> list[str]:
        return ["slices"] if (window.start == window.start[0]).all() else ["slices", "positions"]

    def multiply_adds(self, run: Context, width: int) -> int:
        (layout,) = self.source_layouts
        return run.value(self.weight).numel() * width // layout.length

    def trial(self, run: Context, window: Window, some: Callable[..., torch.Tensor], way: str) -> Callable[[], object]:
        (layout,) = self.source_layouts
        channels = layout.outer * layout.inner
        others = run.value(self.sources[0])[0].numel() // (layout.length * channels)
        x = some(others, window.width * channels).flatten(1, 2)
        return lambda: self._product(run, x, window, way)

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        (layout,) = self.source_layouts
        assert change is not None and change.window is not None
        channels = layout.outer * layout.inner
        tensor = change.tensor
        sites, edits, width = tensor.shape[:3]
        if layout.composite:
            # (S, A, w, before..., outer, inner): the axes before the flattened one stay
            before = tensor.shape[3:-2]
            x = tensor.movedim(2, -3).reshape(sites, edits, *before, width * channels)
        else:
            before = tensor.shape[3:]
            x = tensor.movedim(2, -1)
        way = run.choice(self.node.index).way
        result = self._product(run, x.reshape(sites, -1, width * channels), change.window, way)
        return result.view(sites, edits, *before, -1)

    def vanishes(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor | None:
        (change,), (source,), (layout,) = changes, self.sources, self.source_layouts
        if change is None or (layout.composite and change.tensor.dim() > 5):
            return None  # other axes lie between those that are summed
        beside = 0 if layout.composite else change.tensor.dim() - 3
        return (count_all(run, source, layout, change, beside, nonzero) == 0).unsqueeze(-1)

    def terms(
        self, run: Context, changes: list[Change | None], window: Window | None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        (change,), (source,), (layout,) = changes, self.sources, self.source_layouts
        if change is None or (layout.composite and change.tensor.dim() > 5):
            return None
        beside = 0 if layout.composite else change.tensor.dim() - 3
        more, there = read_all(run, source, layout, change, beside, magnitude)
        return more.unsqueeze(-1), there.unsqueeze(-1)

    def _product(self, run: Context, x: torch.Tensor, window: Window, way: str) -> torch.Tensor:
        """``(S, M, w * channels)`` times the slice of the weight at each site's window: ``(S, M, out)``."""
        (layout,) = self.source_layouts
        weight = run.value(self.weight)

        def position_major() -> torch.Tensor:
            """``(L * channels, out)``, contiguous, with positions slowest."""
            dtype, beside = in_low_precision(matrix[:0], run.precision).dtype, layout.length * layout.inner
            result = matrix.new_empty(layout.length, layout.outer, layout.inner, matrix.shape[1], dtype=dtype)
            # parts are transposed in the cache, which takes half as long as all at once
            parts = zip(result.split(PART, 1), matrix.split(PART * beside), strict=True)
            for into, part in parts:
                rows = (
                    in_low_precision(part, run.precision)
                    .contiguous()
                    .view(-1, layout.length, layout.inner, matrix.shape[1])
                )
                into.copy_(rows.transpose(0, 1))
            return result.view(matrix.shape)

        matrix = weight.T if self.transposed else weight
        if layout.outer > 1 and run.once:
            return _by_whole_weight(x, matrix, window, layout)
        if layout.outer > 1 or run.precision == "medium":
            matrix = run.derived(("dense", self.node.index), [weight], position_major)
        runs, order = window.cached(("slices", x.device), lambda: _even_runs(window, x.device))
        x = x if order is None else x.index_select(0, order.there)
        if way == "positions":
            result = _by_positions(x, matrix, window, order, layout.outer * layout.inner)
        else:
            result = _by_slices(x, matrix, runs, window.width, layout.outer * layout.inner)
        return result if order is None else result.index_select(0, order.back)


@dataclass(frozen=True)
class EvenRun:
    """Sites ``begin`` to ``stop``, ``count`` of them at each of the starts ``start, start + step, ...``."""

    begin: int
    stop: int
    start: int
    step: int
    count: int


@dataclass(frozen=True)
class Order:
    """The sites in rising order of their starts, as an array, as an index on the device, and the way back."""

    sites: np.ndarray
    there: torch.Tensor
    back: torch.Tensor


def _even_runs(window: Window, device: torch.device) -> tuple[list[EvenRun], Order | None]:
    """Runs of the sites in rising order of their starts; and that order, if it is not the sites' own, as with several
    sequences or mirrored windows.
    """
    order = np.argsort(window.start, kind="stable")
    starts, first, counts = np.unique(window.start[order], return_index=True, return_counts=True)
    found = []
    i = 0
    while i < len(starts):
        j = i + 1
        step = int(starts[j] - starts[i]) if j < len(starts) else 0
        while j < len(starts) and counts[j] == counts[i] and starts[j] - starts[j - 1] == step:
            j += 1
        count = int(counts[i])
        found.append(EvenRun(int(first[i]), int(first[i]) + count * (j - i), int(starts[i]), step, count))
        i = j
    if (order == np.arange(len(order))).all():
        return found, None
    return found, Order(order, on_device(order, device), on_device(np.argsort(order), device))


def _by_slices(x: torch.Tensor, matrix: torch.Tensor, runs: list[EvenRun], width: int, channels: int) -> torch.Tensor:
    depth, (line, column), results = width * channels, matrix.stride(), []
    for r in runs:
        number = (r.stop - r.begin) // r.count
        slices = matrix.as_strided(
            (number, depth, matrix.shape[1]),
            (r.step * channels * line, line, column),
            matrix.storage_offset() + r.start * channels * line,
        )
        rows = x[r.begin : r.stop].reshape(number, -1, depth)
        if number == 1:
            result = product(rows[0], slices[0])
        elif _one_by_one(rows, slices):
            result = torch.stack([product(r, s) for r, s in zip(rows, slices, strict=True)])
        else:
            result = torch.bmm(rows.to(matrix.dtype), slices).to(x.dtype)
        results.append(result.view(r.stop - r.begin, -1, matrix.shape[1]))
    return results[0] if len(results) == 1 else torch.cat(results)


def _by_whole_weight(x: torch.Tensor, matrix: torch.Tensor, window: Window, layout: Layout) -> torch.Tensor:
    """The product for few sites: windows are padded with zeros, so that a large weight need not be copied."""
    sites, rows = x.shape[:2]
    spread = x.new_zeros(sites, rows, layout.outer, layout.length, layout.inner)
    for into, windows, start in zip(spread, x, window.start.tolist(), strict=True):
        there = into[:, :, start : start + window.width]
        there.copy_(windows.view(rows, window.width, layout.outer, layout.inner).transpose(1, 2))
    return spread.view(sites, rows, -1) @ matrix


def _one_by_one(rows: torch.Tensor, slices: torch.Tensor) -> bool:
    """Tell whether a product for each slice is faster than a batch of products. PyTorch's batches are slow on CPUs in
    low precision, and where oneDNN runs products of full precision.
    """
    low_precision = rows.dtype != slices.dtype and rows.device.type == "cpu"
    return low_precision or onednn_products.serves(rows[0], slices[0])


def _by_positions(
    x: torch.Tensor,
    matrix: torch.Tensor,
    window: Window,
    order: Order | None,
    channels: int,
) -> torch.Tensor:
    sites, rows = x.shape[:2]
    start, first, stop = (
        array if order is None else array[order.sites] for array in (window.start, window.first, window.stop)
    )
    width, outputs = window.width, matrix.shape[1]
    # neighbours' windows move on together, so the sites that reach a position lie side by side
    ends = np.maximum.accumulate(np.where(stop > first, stop, start))
    result = x.new_zeros(sites * rows, outputs)
    at = 0
    while at < sites:
        low = int(start[at])
        sizes = np.arange(1, sites - at + 1) * (start[at:] + width - low) * (rows * channels * matrix.element_size())
        last = at + max(int(np.searchsorted(sizes, min(SPREAD_BYTES, x.nbytes), "right")), 1)
        starts, some_ends = start[at:last], ends[at:last]
        high = int(starts[-1]) + width
        # each site's window in its place among all positions; the rest is neither written nor read
        spread = x.new_empty(last - at, rows, (high - low) * channels, dtype=matrix.dtype)
        borders = [0, *(np.flatnonzero(np.diff(starts)) + 1).tolist(), last - at]
        for begin, end in itertools.pairwise(borders):
            place = (int(starts[begin]) - low) * channels
            spread[begin:end, :, place : place + width * channels] = x[at + begin : at + end]
        flat, total = spread.flatten(0, 1), result[at * rows : last * rows]
        for q in range(low, high):
            begin, end = int(np.searchsorted(some_ends, q, "right")), int(np.searchsorted(starts, q, "right"))
            if end > begin:
                there = flat[begin * rows : end * rows, (q - low) * channels : (q - low + 1) * channels]
                weight = matrix[q * channels : (q + 1) * channels]
                add_product(total[begin * rows : end * rows], there, weight)
        at = last
    return result.view(sites, rows, -1)
