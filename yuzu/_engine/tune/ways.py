"""Trials of ways: they find the fastest way of each layer on the machine at hand."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence

import torch

from yuzu._engine.edits import Sites
from yuzu._engine.gate import running
from yuzu._engine.handlers.contract import Rule
from yuzu._engine.kernels.precision import fastest_products
from yuzu._engine.plan.plan import Plan
from yuzu._engine.run.run import Run
from yuzu._engine.tune.clock import LONG_CALL, least_seconds
from yuzu._engine.tune.examples import Examples, shared_evenly, span_of
from yuzu._engine.tune.memory import Memory
from yuzu._engine.window import Window

# A second trial compares the ways that took at most RIVAL times the least seconds, if it can have at least MORE_SITES
# times as many sites.
MORE_SITES, RIVAL = 1.5, 1.8
AGAIN_SECONDS = 0.5  # seconds of all second trials; the last may take longer
# Trials of ways on a CPU may take this part of naive ISM's seconds for a sequence, within a least and a most. After
# that a layer akin to one that was tried runs by the same way.
WAYS_PART, LEAST_WAYS_SECONDS, MOST_WAYS_SECONDS = 0.2, 1.0, 3.0
TRIAL_PRODUCTS = {"cpu": 4e8}  # multiply-adds in one call of a way in a trial: about 3 ms on two cores
LOW_PRECISION_PRODUCTS = 10  # times as many in low precision, where few products tell little about many


def choose_ways(
    run: Run, forced: str | None, examples: Examples, first: int, most: int, naively: float = math.inf
) -> dict[int, str]:
    """Find the fastest exact way of every layer that has several; or take ``forced`` for the convolutions to which it
    applies. Trials use as many sites as a chunk may hold and a short trial allows.

    ``naively`` are naive ISM's seconds for a sequence. Trials that take much of them cost more than they may save.
    """
    trials = _Trials(run, examples, first, most, naively)
    plan = run.plan
    places = plan.reached(examples.length, 1)
    middle = plan.windows(places[(len(places) - 1) // 2, None], 1)  # the place of one example site
    alike: dict[Hashable, list[tuple[int, Rule]]] = {}
    for rule in plan.rules:
        if rule is None or not rule.all_ways() or not rule.node.mutated or not plan.readers[rule.node.index]:
            continue
        i, one = rule.node.index, middle[rule.sources[0]]
        trials.chosen[i] = plan.choices[i].way
        asked = None if forced is None else rule.forced_way(run, forced, one.width if one is not None else 1)
        if asked is not None:
            trials.chosen[i] = asked
        elif one is not None and one.width > 0 and plan.graph.nodes[rule.sources[0]].kind != "sequence":
            alike.setdefault(rule.alike(plan.choices[i]), []).append((one.width, rule))
    for layers in alike.values():
        layers.sort(key=lambda pair: pair[0])
    # the slowest layers first, since no time for second trials may be left for the others
    for layers in sorted(alike.values(), key=lambda layers: -layers[-1][1].multiply_adds(run, layers[-1][0])):
        trials.of_layers(layers)
    return trials.chosen


class _Trials:
    """The trials of one call; ``chosen`` has the ways found so far."""

    def __init__(self, run: Run, examples: Examples, first: int, most: int, naively: float) -> None:
        self.run, self.examples, self.first = run, examples, first
        self.chosen: dict[int, str] = {}
        low_precision = run.precision == "medium"
        products = TRIAL_PRODUCTS.get(run.device.type, math.inf)
        self.affordable = products * (LOW_PRECISION_PRODUCTS if low_precision else 1)
        # the search for the chunk's size begins with the same number, so kernels that a library makes for each shape
        # serve both
        self.whole = shared_evenly(min(2 * first, most), span_of(run.plan, examples.length), most)
        self.again = AGAIN_SECONDS
        allowed = min(max(WAYS_PART * naively, LEAST_WAYS_SECONDS), MOST_WAYS_SECONDS)
        # on other devices most of the time prepares kernels
        self.allowed = allowed if run.device.type == "cpu" else math.inf
        self.begun = time.thread_time()  # CPU time: other processes that slow this one are no reason to try less
        self.known: dict[Hashable, list[tuple[int, str]]] = {}  # widths of windows and the ways found for them

    def of_layers(self, layers: list[tuple[int, Rule]]) -> None:
        """Choose the ways of layers that are alike, in the order of their windows' widths."""
        for width, rule in {layers[0], layers[-1]}:
            self.chosen[rule.node.index] = self._attempt(width, rule)
        # the way that runs both the narrowest and the widest windows fastest runs those between fastest
        waiting = [layers]  # recursion would keep the run, and with it the model, until garbage collection
        while waiting:
            some = waiting.pop()
            narrowest, widest = (self.chosen[some[end][1].node.index] for end in (0, -1))
            if narrowest != widest and len(some) > 2:
                middle = len(some) // 2
                self.chosen[some[middle][1].node.index] = self._attempt(*some[middle])
                waiting += [some[middle:], some[: middle + 1]]
            else:
                self.chosen.update((rule.node.index, widest) for _, rule in some[1:-1])

    def _attempt(self, width: int, rule: Rule) -> str:
        akin = self.known.setdefault(rule.akin(self.run.choice(rule.node.index)), [])
        if akin and time.thread_time() - self.begun > self.allowed:
            way = min(akin, key=lambda other: abs(other[0] - width))[1]
            window = self.run.set_sites(self.examples.sites(self.run, 1))[rule.sources[0]]
            if window is not None and way in rule.ways(self.run, window):
                return way
        way = self._fastest(width, rule)
        akin.append((width, way))
        return way

    def _fastest(self, width: int, rule: Rule) -> str:
        work = max(rule.multiply_adds(self.run, width) * self.examples.edits, 1)
        fewest = self.whole if rule.shares_among_sites else self.first // 4
        count = max(int(min(self.whole, max(self.affordable / work, fewest))), 1)
        times = self._tried(rule, count)
        least = min(times.values(), default=math.inf)
        # a few sites rule ways out; the rest run again with as many sites as a short call can hold
        more = int(min(self.whole, count * LONG_CALL / least))
        rivals = [way for way, seconds in times.items() if seconds < RIVAL * least]
        if len(rivals) > 1 and more >= MORE_SITES * count and self.again > 0:
            begin = time.perf_counter()
            times = self._tried(rule, more, rivals)
            self.again -= time.perf_counter() - begin
        return min(times, key=times.__getitem__, default=self.chosen[rule.node.index])

    def _tried(self, rule: Rule, count: int, ways: Sequence[str] | None = None) -> dict[str, float]:
        """The seconds of each way (default: all that may win) with ``count`` sites. A single way is not timed."""
        run = self.run.of_plan(
            self.run.plan.with_ways(self.chosen)
        )  # a neighbour's way decides the dtype of its result
        sites = self.examples.sites(run, count)
        window = run.set_sites(sites)[rule.sources[0]]
        if window is None or not window.width:
            return {}
        ways = rule.ways(run, window) if ways is None else ways
        return times_of(rule, ways, run, window, sites) if len(ways) > 1 else dict.fromkeys(ways, math.inf)


@running()
def times_of(rule: Rule, ways: Sequence[str], run: Run, window: Window, sites: Sites) -> dict[str, float]:
    """The least seconds of a call by each way. They are rough, and may be infinite, for a way that is plainly slower
    than another.
    """
    dtype = run.value(rule.sources[0]).dtype
    made: dict[tuple[int, ...], torch.Tensor] = {}

    def some(*shape: int) -> torch.Tensor:
        if shape not in made:
            size = (*sites.difference.shape[:2], *shape)
            made[shape] = torch.linspace(-1, 1, math.prod(size), dtype=dtype, device=run.device).view(size)
        return made[shape]

    times: dict[str, float] = {}
    with fastest_products(run.device):
        for way in ways:
            best = min(times.values(), default=math.inf)
            times[way] = least_seconds(rule.trial(run, window, some, way), run.device, best)
    run.forget(("measure", rule.node.index))
    return times


def make_fit(
    plan: Plan, ways: Mapping[int, str], memory: Callable[[Plan], Memory], limit: int
) -> tuple[dict[int, str], list[int]]:
    """Change ways until a plan takes no more than a limit in bytes, if that is possible. The layers whose ways lay out
    most run by their default ways, which lay out least. Returns the ways, and the nodes of the changed layers.
    """
    found, changed = dict(ways), list[int]()
    all_of_them = memory(plan.with_ways(found)).least
    if all_of_them <= limit:
        return found, changed
    plainest = {i: rule.default_way for i in ways if (rule := plan.rules[i]) is not None}
    saved = {i: all_of_them - memory(plan.with_ways({**found, i: way})).least for i, way in plainest.items()}
    for i in sorted((i for i in saved if saved[i] > 0), key=lambda i: -saved[i]):
        found[i] = plainest[i]
        changed.append(i)
        if memory(plan.with_ways(found)).least <= limit:
            break
    return found, changed
