"""Trials of chunks: how many sites at once cost least, and whether the model itself is faster."""

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

LONGEST_TRIAL = 0.2  # seconds of one chunk size
# seconds that naive ISM takes for the mutants of a chunk, from which on fewer sites say first whether the chunk itself
# is tried: not where it takes so many; and how many fewer
LONG_CHUNK, FEWER_SITES = 1.0, 8
LONG_RUN = 1.5  # seconds of a chunk that is run once
# of the search among them, and of the trials of ways and that search together where the former took long
SEARCH_SECONDS, LEAST_SEARCH_SECONDS, ALL_TRIALS_SECONDS = 0.6, 0.3, 1.5
NAIVE_BATCHES = (128, 512)
BATCH_GAINS = ((1, 30), (16, 6), (128, 2))  # rows of a batch, and how many times cheaper a row of a large one may be
# seconds of a batch that is run once; of which larger ones save less, for it is work that rows do not share; and of one
# that is not run, where a smaller one was
LONG_BATCH, LONG_BATCH_GAIN, LONGEST_BATCH = 0.25, 3, 1.5
SHARES = 0.7  # times a batch of one, what a row costs where rows share much
MOST_SEQUENCES = 8  # in a chunk whose cost is measured
WORTH_COMPARING = 0.01  # seconds for a sequence; below it a call is mostly overhead, and the clock would decide
CHUNK_REPEATS = 2
CLEARLY, CLOSE = 0.98, 1.5  # times the least cost of a site: below it a size is better, up to it worth another trial
SETTLED = 0.9  # of the least time so far: a run that takes longer says that the next will take no less
CHUNK_OVERHEAD = 4e-4  # seconds that a chunk, or batch, takes outside of the walk, or model: sites, letters, scores


def choose_chunk(
    run: Run, examples: Examples, first: int, most: int, spent: float = 0.0, naively: float = 0.0
) -> tuple[int, list[float], float]:
    """Sites carried at once that cost least per site, the seconds of each node at that size, and of a site.

    Tried are ``first``, then twice as many again up to ``most`` or until that is plainly worse twice over; and half of
    ``first`` where twice as many were no better, and there is time. Sizes that come close are tried again: a busy
    machine slows one and not the other. Of sizes as good as each other the one tried first is taken. ``spent`` are the
    seconds that the trials of ways took, ``naively`` those that naive ISM takes for a site. Where ``first`` takes so
    long that no other would be tried, it is taken, and its cost is that of fewer sites.
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
    # short sequences: the size was limited by the length, but a chunk may hold several sequences
    return (min(first, most) if best == span < first else best), shares, cost


def cost_of_chunk(run: Run, examples: Examples, size: int, hopeless: float = math.inf) -> tuple[float, list[float]]:
    """Seconds of a site in chunks of a size, or of as many as each sequence of the reference has where that is fewer,
    and the seconds of each node; roughly where that is ``hopeless``.
    """
    sites = examples.sites(run, size).in_each(run.reference.batch)
    count = len(sites.position)
    seconds, found = _chunk_seconds(run, sites, hopeless * count)
    return (seconds + CHUNK_OVERHEAD) / count, found


def _chunk_seconds(run: Run, sites: Sites, hopeless: float) -> tuple[float, list[float]]:
    """The least seconds of some runs of a chunk, and of each of its nodes; fewer runs where they are ``hopeless``.

    The first lays out weights and has kernels prepared; and it takes some until the C library has found a place for
    everything among what it keeps, and no longer asks the system for memory.
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
        if now > LONG_RUN:  # beside which a first run's own work is little
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
    """Seconds that the model itself takes for a mutant, and in which batch of up to ``most``, if that is less than
    ``planned``; None if not.

    A model that mixes all positions from the start leaves nothing to save.
    """

    @functools.cache
    def run(rows: int) -> float:
        # copies: a forward may write over what it is given
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
        # rows of a batch share what few rows pay for alone, but it was never more than this
        saves = min(gain, LONG_BATCH_GAIN) if rows * run(rows) > LONG_BATCH else gain
        if run(rows) > saves * planned:
            return None
        tried = rows
    batches = {min(size, most) for size in NAIVE_BATCHES if short(min(size, most))} or {tried}
    seconds, batch = min((run(batch) + CHUNK_OVERHEAD / batch, batch) for batch in batches)
    if seconds >= planned:
        return None
    if batch < min(NAIVE_BATCHES) and run(batch) < SHARES * run(1):
        batch = min(*NAIVE_BATCHES, most)  # it would take long to run, but rows share much so far
    return seconds, batch
