"""Trials of chunks: the number of sites at once that costs least, and whether the model itself is faster."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence

import torch

from yuzu._engine.edits import Sites
from yuzu._engine.gate import running
from yuzu._engine.run.run import Run
from yuzu._engine.tune.clock import MANY_PAGES, new_pages, seconds_of
from yuzu._engine.tune.examples import Examples, shared_evenly, span_of

LONGEST_TRIAL = 0.2  # seconds for the trial of one chunk size
# If naive ISM takes more than LONG_CHUNK seconds for the mutants of a chunk, a chunk of FEWER_SITES times fewer sites
# is tried first. The chunk itself is not tried if it would take more than LONG_CHUNK seconds and no other size could
# follow.
LONG_CHUNK, FEWER_SITES = 1.0, 8
LONG_RUN = 1.5  # seconds of a chunk from which on it runs only once
# Seconds for the search for a chunk size: at most, and at least; and for the trials of ways and that search together.
SEARCH_SECONDS, LEAST_SEARCH_SECONDS, ALL_TRIALS_SECONDS = 0.6, 0.3, 1.5
NAIVE_BATCHES = (128, 512)  # rows of the batches that are tried with naive ISM
BATCH_GAINS = ((1, 30), (16, 6), (128, 2))  # rows of a batch, and how many times cheaper a row of a large batch may be
# A batch of more than LONG_BATCH seconds runs once, and larger ones make a row at most LONG_BATCH_GAIN times cheaper,
# since rows do not share this work. A batch that would take more than LONGEST_BATCH seconds is not run, if a smaller
# one was.
LONG_BATCH, LONG_BATCH_GAIN, LONGEST_BATCH = 0.25, 3, 1.5
SHARES = 0.7  # cost of a row over that of a batch of one, below which rows share much of their work
MOST_SEQUENCES = 8  # sequences in a chunk whose cost is measured
WORTH_COMPARING = 0.01  # seconds for a sequence below which a call is mostly overhead, and noise would decide
CHUNK_REPEATS = 2
CLEARLY = 0.98  # times the least cost of a site: a size must cost less than this to be better
CLOSE = 1.5  # times the least cost of a site: sizes up to this are tried again
SETTLED = 0.9  # times the least seconds so far: after a run that takes longer the next ones will not be faster
CHUNK_OVERHEAD = 4e-4  # seconds of a chunk, or batch, outside of the walk, or model: sites, letters, scores


def choose_chunk(
    run: Run, examples: Examples, first: int, most: int, spent: float = 0.0, naively: float = 0.0
) -> tuple[int, list[float], float]:
    """Find the number of sites at once that costs least per site. Returns it, the seconds of each node at that size,
    and the seconds of a site.

    The search tries ``first``, then doubles it up to ``most``, or until two sizes in a row are plainly worse. If
    doubling was no better and there is time, it tries half of ``first``. Sizes that come close are tried again, since a
    busy machine may slow only one of them. Among equally good sizes the one tried first is taken. If ``first`` takes so
    long that no other size would be tried, it is taken, and its cost is estimated from fewer sites.

    Parameters
    ----------
    run: Run
    examples: Examples
    first, most: int
    spent: float
        The seconds that the trials of ways took.
    naively: float
        The seconds that naive ISM takes for a site.
    """
    allowed = max(min(SEARCH_SECONDS, ALL_TRIALS_SECONDS - spent), LEAST_SEARCH_SECONDS)
    span = span_of(run.plan, examples.length)
    begin = time.perf_counter()
    tried: dict[int, tuple[float, list[float]]] = {}

    def least() -> int:
        best = next(iter(tried))
        for size, (cost, _) in tried.items():
            if cost < CLEARLY * tried[best][0]:
                best = size
        return best

    def attempt(size: int) -> float:
        hopeless = CLOSE * min((cost for cost, _ in tried.values()), default=math.inf)
        found = cost_of_chunk(run, examples, size, hopeless)
        tried[size] = min(found, tried.get(size, found), key=lambda each: each[0])
        return found[0]

    def affordable(size: int, cost: float) -> bool:
        return time.perf_counter() + 4 * cost * size - begin <= allowed

    size = shared_evenly(first, span, most)
    if size * naively > LONG_CHUNK and size >= FEWER_SITES:
        fewer = size // FEWER_SITES
        cost, shares = cost_of_chunk(run, examples, fewer, 0.0)
        if cost * size > LONG_CHUNK and not affordable(size, cost):
            return min(first, most) if size == span < first else size, [s * size / fewer for s in shares], cost
    cost, worse = attempt(size), 0
    if run.plan.sensing is None:  # Gaussian probes need other coefficients for each size
        while worse < 2:
            size, before = shared_evenly(2 * size, span, most), size
            if size <= before or not affordable(before, cost):
                break
            cost = attempt(size)
            worse = worse + 1 if cost > 1.1 * tried[least()][0] else 0
        small = shared_evenly(first // 2, span, most)
        if least() == shared_evenly(first, span, most) > small and affordable(small, cost):
            attempt(small)
        rivals = [(s, c) for s, (c, _) in tried.items() if c < CLOSE * tried[least()][0]]
        for size, cost in rivals if len(rivals) > 1 else ():
            if affordable(size, cost):
                attempt(size)
    best = least()
    cost, shares = tried[best]
    # the length of a short sequence limited the size, but a chunk may hold several sequences
    return (min(first, most) if best == span < first else best), shares, cost


def cost_of_chunk(run: Run, examples: Examples, size: int, hopeless: float = math.inf) -> tuple[float, list[float]]:
    """Measure the seconds of a site in chunks of a size, and the seconds of each node. Chunks are smaller if the
    sequences of the reference have fewer sites. A cost above ``hopeless`` is measured only roughly.
    """
    sites = examples.sites(run, size).in_each(run.reference.batch)
    count = len(sites.position)
    seconds, found = _chunk_seconds(run, sites, hopeless * count)
    return (seconds + CHUNK_OVERHEAD) / count, found


def _chunk_seconds(run: Run, sites: Sites, hopeless: float) -> tuple[float, list[float]]:
    """The least seconds of some runs of a chunk, and of each of its nodes. There are fewer runs if these take more than
    ``hopeless`` seconds.

    The first run lays out weights and prepares kernels. It takes a few more until the C library serves all tensors from
    freed memory, and no longer asks the system for more.
    """
    least, shares, spent, runs = math.inf, [0.0] * len(run.plan.graph.nodes), 0.0, 0
    while True:
        run.seconds = [0.0] * len(run.plan.graph.nodes)
        pages = new_pages()
        now = seconds_of(lambda: run.chunk(sites), run.device)
        found, run.seconds = run.seconds, None
        settled = now > SETTLED * least and new_pages() - pages < MANY_PAGES
        spent += now if runs else 0.0
        runs += 1
        if now < least:
            least, shares = now, found
        if now > LONG_RUN:  # the additional work of a first run is small beside it
            return least, shares
        if spent > LONGEST_TRIAL or (settled and (runs > CHUNK_REPEATS or least > hopeless or 4 * now > LONGEST_TRIAL)):
            return least, shares


def naive_is_faster(
    model: torch.nn.Module,
    X: torch.Tensor,
    args: Sequence[torch.Tensor],
    device: torch.device,
    planned: float,
    most: int,
) -> tuple[float, int] | None:
    """Measure the seconds that the model itself takes for a mutant. Returns them and the batch size, up to ``most``, if
    they are less than ``planned``; else None.

    A model that mixes all positions from the start leaves nothing to save.
    """

    @functools.cache
    def run(rows: int) -> float:
        # copies, since a forward pass may overwrite its inputs
        x, *rest = (t.to(device).expand(rows, *t.shape[1:]).clone() for t in (X, *args))
        with running():
            seconds = seconds_of(lambda: model(x, *rest), device)
            return (
                seconds if seconds > LONG_BATCH else min(seconds, seconds_of(lambda: model(x, *rest), device))
            ) / rows

    tried = 1

    def short(rows: int) -> bool:
        return rows <= tried or rows * run(tried) <= LONGEST_BATCH

    for rows, gain in BATCH_GAINS:
        if rows > most or not short(rows):
            break
        # rows of a large batch share costs that few rows pay for alone, but never more than this was seen
        saves = min(gain, LONG_BATCH_GAIN) if rows * run(rows) > LONG_BATCH else gain
        if run(rows) > saves * planned:
            return None
        tried = rows
    batches = {min(size, most) for size in NAIVE_BATCHES if short(min(size, most))} or {tried}
    seconds, batch = min((run(batch) + CHUNK_OVERHEAD / batch, batch) for batch in batches)
    if seconds >= planned:
        return None
    if batch < min(NAIVE_BATCHES) and run(batch) < SHARES * run(1):
        batch = min(*NAIVE_BATCHES, most)  # running it would take long, but so far rows share much
    return seconds, batch
