"""Sizes and times: how many sites fit in memory, which way runs each convolution fastest here, and what each
layer costs.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from yuzu._engine.handlers.convolution import Convolution
from yuzu._engine.handlers.convolution_ways import BAND_BYTES, WAYS, Call
from yuzu._engine.handlers.dense import OverPositions
from yuzu._engine.plan import Plan
from yuzu._engine.run import Run, Sites
from yuzu._engine.window import Window

CACHE_TARGET = {
    "cpu": 6 << 20,
    "cuda": 1 << 30,
}  # bytes of the largest change of a chunk; tried with half and twice as much


@dataclass(frozen=True)
class Memory:
    """Bytes that one site and one sequence take at the peak, and the weights that are laid out anew."""

    site: int
    sequence: int
    weights: int


def memory_of(plan: Plan, length: int, n_choices: int, width: int, itemsize: int, edits: int) -> Memory:
    """An upper estimate from the widest windows of the plan, at the middle of the sequence and at its ends."""
    starts = sorted({0, max(length // 2 - width // 2, 0), max(length - width, 0)})
    windows = plan.windows(np.array(starts), width)
    largest, standing, reference, weights = n_choices * width, 0, 0, 0
    for node in plan.graph.nodes:
        if node.shape is None or not node.batched:
            continue
        whole = math.prod(s for s in node.shape if s is not None and s > 0)
        reference += whole
        if not node.mutated or not plan.readers[node.index]:
            continue
        layout, window = plan.layouts[node.index], windows[node.index]
        size = whole if window is None else whole * window.width // max(layout.length, 1)
        rule = plan.rules[node.index]
        if isinstance(rule, Convolution):
            source = windows[rule.sources[0]]
            sizes = rule.shape(source.width if source is not None else 1)
            kernel = sizes.kernel * sizes.channels_in * sizes.channels_out // sizes.groups
            weights += 2 * kernel  # laid out anew, and a copy to notice changes
            if rule.way == "banded":
                weights += sizes.band_bytes // sizes.itemsize
            if rule.way == "fold":
                largest = max(largest, sizes.width * sizes.kernel * sizes.channels_out)
        elif isinstance(rule, OverPositions):
            weights += 2 * math.prod(plan.graph.nodes[rule.weight].shape or ())  # type: ignore[arg-type]
        largest = max(largest, size)
        if plan.readers[node.index] > 1:
            standing += size
    return Memory((4 * largest + standing) * edits * itemsize, 3 * reference * itemsize, weights * itemsize)


def example_sites(
    plan: Plan, count: int, edits: int, width: int, n_choices: int, length: int, run: Run, seed: int
) -> Sites:
    """Random substitutions at ``count`` neighbouring positions in the middle of the sequence."""
    count = min(count, length - width + 1)
    first = max((length - width + 1 - count) // 2, 0)
    position = np.arange(first, first + count)
    generator = torch.Generator("cpu").manual_seed(seed)
    written = torch.randint(n_choices, (count, edits), generator=generator, device="cpu").to(run.device)
    overwritten = torch.randint(n_choices, (count, 1), generator=generator, device="cpu").to(run.device)
    dtype = run.value(next(n.index for n in plan.graph.nodes if n.kind == "sequence")).dtype
    eye = torch.eye(n_choices, dtype=dtype, device=run.device)
    difference = (eye[written] - eye[overwritten]).unsqueeze(2)
    codes = written * (n_choices + 1) + overwritten
    return Sites(np.zeros(count, dtype=np.int64), position, 1, difference, codes)


def _seconds(function: object, device: torch.device, repeats: int, give_up: float = math.inf) -> float:
    """The least of ``repeats`` times after one call to warm up; stops early when it will not beat ``give_up``."""
    best = math.inf
    for i in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        function()  # type: ignore[operator]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken = time.perf_counter() - begin
        if i:
            best = min(best, taken)
            if best > 1.5 * give_up:
                return best
        elif taken > 20 * give_up:
            return taken
    return best


def choose_ways(run: Run, sites: Sites, forced: str | None, seed: int, room: int) -> dict[int, str]:
    """The fastest exact way for every convolution on windows, at the size of a chunk; or ``forced`` where it
    applies.
    """
    plan = run.plan
    windows = run.set_sites(sites)
    chosen: dict[int, str] = {}
    count, edits = sites.difference.shape[:2]
    dtype = sites.difference.dtype
    generator = torch.Generator("cpu").manual_seed(seed)
    for node in plan.graph.nodes:
        rule = plan.rules[node.index]
        if not isinstance(rule, Convolution) or not node.mutated or not plan.readers[node.index]:
            continue
        window: Window | None = windows[rule.sources[0]]
        width, itemsize = (window.width if window is not None else 1), sites.difference.element_size()
        ways = rule.ways(width, itemsize, min(room, BAND_BYTES))
        if forced is not None:
            rule.way = forced if forced in ways else "windows"
            chosen[node.index] = rule.way
            continue
        first_layer = plan.graph.nodes[rule.sources[0]].kind == "sequence"
        exact = [way for way in ways if WAYS[way].exact]
        if len(exact) == 1 or window is None or window.width == 0 or first_layer:
            chosen[node.index] = rule.way
            continue
        weight = run.value(rule.weight)
        kernel = rule.kernel(weight)
        x = torch.randn(
            count, edits, window.width, kernel.shape[1] * rule.groups, dtype=dtype, generator=generator, device="cpu"
        ).to(run.device)
        best = math.inf
        for way in exact:
            call = Call(run, ("measure", node.index), x, window, kernel, [weight], rule.geometry.dilation, rule.groups)
            taken = _seconds(lambda way=way, call=call: WAYS[way].run(call), run.device, 3, best)
            if taken < best:
                best, rule.way = taken, way
        run.forget(("measure", node.index))
        if rule.way == "banded":
            room -= rule.shape(width, itemsize).band_bytes
        chosen[node.index] = rule.way
    return chosen


def choose_chunk(
    run: Run, edits: int, n_choices: int, length: int, first: int, most: int, seed: int
) -> tuple[int, list[float]]:
    """Sites carried at once that cost least per site, among some around ``first``; and the seconds of each
    node at that size.
    """
    sizes = (
        (first,) if run.plan.sensing is not None else (first // 2, first, first * 2)
    )  # each size needs its own coefficients
    candidates = sorted({min(max(size, 1), most, length) for size in sizes})
    best, best_cost, shares = candidates[0], math.inf, [0.0] * len(run.plan.graph.nodes)
    for size in candidates:
        sites = example_sites(run.plan, size, edits, 1, n_choices, length, run, seed)
        taken = _seconds(lambda sites=sites: run.chunk(sites), run.device, 1)
        if taken / size < 0.97 * best_cost:
            best, best_cost = size, taken / size
            run.seconds = [0.0] * len(run.plan.graph.nodes)
            run.chunk(sites)
            shares, run.seconds = run.seconds, None
    # short sequences: the size was limited by the length, but a chunk may hold several sequences
    return (min(first, most) if best == length < first else best), shares
