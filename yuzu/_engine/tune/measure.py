"""Sizes and times: how many sites fit in memory, which way runs each convolution fastest here, and what each
layer costs.
"""

from __future__ import annotations

import functools
import gc
import math
import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

from yuzu._engine.edits import Sites, substitutions_at
from yuzu._engine.freed_memory import give_back
from yuzu._engine.gate import running
from yuzu._engine.graph import Graph, Node, Ref
from yuzu._engine.handlers.contract import Rule
from yuzu._engine.handlers.convolution import Convolution
from yuzu._engine.handlers.dense import OverPositions
from yuzu._engine.handlers.elementwise import OfValues
from yuzu._engine.handlers.pool import MaximumPool
from yuzu._engine.kernels.precision import fastest_products
from yuzu._engine.plan.plan import Plan
from yuzu._engine.plan.widening import may_widen
from yuzu._engine.run.run import Run
from yuzu._engine.ways import winograd
from yuzu._engine.ways.call import BLOCK_POSITIONS
from yuzu._engine.ways.convolution import room_of_whole
from yuzu._engine.ways.few_output_channels import block_of, folded_block, folded_room
from yuzu._engine.window import Window

# bytes of the largest change of a chunk; the search for its size begins at twice as many
CACHE_TARGET = {"cpu": 11 << 20, "cuda": 2 << 30}
# its most bytes: of larger ones few are found again among those that were freed, and new pages cost more
LARGEST_BLOCK = {"cpu": 30 << 20}
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
MANY_PAGES = 500  # of 4 kB, that a run got anew: the next may need fewer, and be faster
CLEARLY, CLOSE = 0.98, 1.5  # times the least cost of a site: below it a size is better, up to it worth another trial
SETTLED = 0.9  # of the least time so far: a run that takes longer says that the next will take no less
CHUNK_OVERHEAD = 4e-4  # seconds that a chunk, or batch, takes outside of the walk, or model: sites, letters, scores
WAY_REPEATS, SHORT_TRIAL = 3, 0.006  # of a way's call, and the seconds after which two are enough
LONG_CALL = 0.03  # seconds of a way's call after which one is enough
MORE_SITES, RIVAL = 1.5, 1.8  # times as many sites for another trial, and times the least seconds of who is in it
AGAIN_SECONDS = 0.5  # of all such trials; the last may take longer
# part of naive ISM's seconds for a sequence that trials of ways may take on a CPU, and their least and most; after that
# layers that are akin to one that was tried run as that one does
WAYS_PART, LEAST_WAYS_SECONDS, MOST_WAYS_SECONDS = 0.2, 1.0, 3.0
# that a way's first call may take beside the work: it lays out weights, and has kernels prepared, or loaded to a GPU
SETUP_SECONDS = {"cpu": 0.2, "cuda": 2.0}
LONGEST_SETTLING = 0.1  # of such calls until they ask for no more memory
TRIAL_PRODUCTS = {"cpu": 4e8}  # multiply-adds in one call of a way that is tried: about 3 ms on two cores
LOWERED_PRODUCTS = 10  # times as many where they are lowered: few of them say little about many


@dataclass(frozen=True)
class Memory:
    """Bytes that one site and one sequence take at the peak, and the weights that are laid out anew; and a site's part
    of the largest tensor.
    """

    site: int
    sequence: int
    weights: int
    block: int

    @property
    def least(self) -> int:
        """What a run of one sequence takes with a site at a time."""
        return self.sequence + self.site + self.weights


def memory_of(plan: Plan, length: int, n_choices: int, width: int, itemsize: int, edits: int) -> Memory:
    """An upper estimate from the windows at the first, the middle and the last of the positions that reach an output;
    those of a chunk between them may be an eighth wider.
    """
    if itemsize < 4:  # part of a model in half precision may be in another
        itemsize = max(n.dtype.itemsize for n in plan.graph.nodes if n.floating and n.dtype is not None)
    places = plan.reached(length, width)
    windows = plan.windows(np.unique(places[[0, len(places) // 2, -1]]), width)
    largest, standing, reference, tables, weights = n_choices * width, 0, 0, 0, 0
    blocks = 4
    widened = plan.widened.run if itemsize == 4 and may_widen(plan.precision, "cpu") else frozenset[int]()
    for node in plan.graph.nodes:
        if node.shape is None or not node.batched:
            continue
        whole = math.prod(s for s in node.shape if s is not None and s > 0)
        reference += whole
        hidden = _scores_of_attention(plan.graph, node)
        reference += hidden
        if not node.mutated or not plan.readers[node.index]:
            continue
        largest = max(largest, hidden)
        layout, window = plan.layouts[node.index], windows[node.index]
        size = whole if window is None else whole * window.width // max(layout.length, 1)
        rule = plan.rules[node.index]
        if isinstance(rule, Convolution):
            source = windows[rule.sources[0]]
            sizes = rule.shape(source.width if source is not None else 1)
            kernel = sizes.kernel * sizes.channels_in * sizes.channels_out // sizes.groups
            # laid out anew, and a copy to notice changes; the same of the kernel with factors in it
            weights += (4 if rule.factors_before or rule.factors_after else 2) * kernel
            lowers = plan.precision == "medium" and itemsize == 4
            if rule.way == "blocks" or sizes.few:
                wide = BLOCK_POSITIONS
                if sizes.few:
                    taken = block_of(sizes.channels_out, sizes.kernel, rule.way == "blocks")
                    wide = max(wide, taken, folded_block(sizes, lowers) or 0)
                weights += wide * (2 + 2 * wide // sizes.kernel) * kernel
            if rule.way == "whole":
                weights += room_of_whole(sizes)
            if rule.way == "fold" and sizes.few:
                largest = max(largest, folded_room(sizes, lowers))
            if rule.way == "winograd":
                largest = max(largest, winograd.room(sizes))
                weights += winograd.room_of_weights(sizes)
        elif isinstance(rule, MaximumPool):
            tables += rule.geometry.kernel * whole
        elif isinstance(rule, OfValues) and itemsize == 4 and rule.may_widen(plan.precision, torch.float32, "cpu"):
            # beside the first, what else is read before a stretch that is taken over
            more = len(rule.sources) - 1 if rule.inside else 0
            blocks, tables = max(blocks, 7 + 2 * more), tables + 2 * whole
        elif isinstance(rule, OverPositions):
            weights += 2 * math.prod(plan.graph.nodes[rule.weight].shape or ())  # type: ignore[arg-type]
        if node.index in widened:  # it, what it reads and the references of both
            blocks = max(blocks, 7 + 2 * (len(rule.sources) - 1 if rule is not None else 0))
            read = [plan.graph.nodes[i].shape or () for i in (node.index, *(rule.sources if rule is not None else ()))]
            tables += 2 * sum(math.prod(s for s in shape if s is not None and s > 0) for shape in read)
        largest = max(largest, size)
        if plan.readers[node.index] > 1:
            standing += 2 * size if node.index in widened else size
    block = largest * edits * itemsize
    site = blocks * block + standing * edits * itemsize
    return Memory(site, (3 * reference + tables) * itemsize, weights * itemsize, block)


def _scores_of_attention(graph: Graph, node: Node) -> int:
    """The numbers of one row's scores, which no node holds: of four axes PyTorch attends block by block, else it lays
    them out.
    """
    if node.op != "aten.scaled_dot_product_attention":
        return 0
    shapes = [graph.nodes[a.index].shape for a in node.args[:2] if isinstance(a, Ref)]
    if len(shapes) < 2 or not shapes[0] or not shapes[1] or len(shapes[0]) == 4:
        return 0
    return math.prod(s for s in (*shapes[0][:-1], shapes[1][-2]) if s is not None and s > 0)


class _Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.largest = self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(made):
            if _is_plain(tensor):
                self._count(tensor.untyped_storage(), pytree.tree_leaves((args, kwargs)))
        return made

    def _count(self, storage: torch.UntypedStorage, given: list[Any]) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self._known or any(_is_plain(t) and t.untyped_storage()._cdata == place for t in given):
            return
        self._known.add(place)
        self._now += size
        self.peak, self.largest = max(self.peak, self._now), max(self.largest, size)
        weakref.finalize(storage, self._forget, place, size)

    def _forget(self, place: int, size: int) -> None:
        self._known.discard(place)
        self._now -= size


def _is_plain(value: Any) -> bool:
    return type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout == torch.strided


def bytes_of_a_row(run: Callable[[], object]) -> int:
    """What a forward pass of one row takes at its peak, where no graph tells: of the tensors that live at once, and one
    more for what an operation keeps to itself.
    """
    alive = _Alive()
    with alive:
        run()
    return alive.peak + alive.largest


def most_sites(memory: Memory, limit: int, device: torch.device) -> int:
    """How many sites a chunk may hold within a limit in bytes, and with no tensor larger than is good; 1 at least."""
    room = (limit - memory.sequence - memory.weights) // max(memory.site, 1)
    return max(min(room, LARGEST_BLOCK.get(device.type, limit) // max(memory.block, 1)), 1)


def example_sites(plan: Plan, count: int, edits: int, n_choices: int, length: int, run: Run, seed: int) -> Sites:
    """Random substitutions at ``count`` neighbours in the middle of the positions that reach an output; of the letters
    that are there, for what looks its numbers up in a table has no row for others.
    """
    places = plan.reached(length, 1)
    count = min(count, len(places))
    first = (len(places) - count) // 2
    position = places[first : first + count]
    generator = torch.Generator("cpu").manual_seed(seed)
    written = torch.randint(n_choices, (count, edits), generator=generator, device="cpu").to(run.device)
    X = run.value(next(n.index for n in plan.graph.nodes if n.kind == "sequence"))
    return substitutions_at(position, written, X)


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    """Of a call, without Python's garbage collection: that takes tenths of a second where a model was just captured."""
    give_back()
    collects = gc.isenabled()
    gc.disable()
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin
    finally:
        if collects:
            gc.enable()


def _least_seconds(function: Callable[[], object], device: torch.device, best: float) -> float:
    """The least of some times after a call to set up; fewer when it will plainly not beat ``best``, or takes long.

    A call that had to ask the system for memory says nothing of the next, which finds it at hand.
    """
    try:
        if _seconds(function, device) > 2 * best + SETUP_SECONDS.get(device.type, 0.2):
            return math.inf
    except torch.OutOfMemoryError:  # of a GPU: a way that does not fit with so many sites is not chosen for them
        return math.inf
    least, spent, settling, counted = math.inf, 0.0, 0.0, 0
    while counted < WAY_REPEATS:
        pages = _new_pages()
        now = _seconds(function, device)
        least = min(least, now)
        if _new_pages() - pages > MANY_PAGES and settling < LONGEST_SETTLING:
            settling += now
            continue
        spent += now
        if least > (1.3 if counted else 2.0) * best or spent > (SHORT_TRIAL if counted else LONG_CALL):
            break
        counted += 1
    return least


def choose_ways(
    run: Run,
    forced: str | None,
    edits: int,
    n_choices: int,
    length: int,
    first: int,
    most: int,
    seed: int,
    naively: float = math.inf,
) -> dict[int, str]:
    """The fastest exact way for every layer that has several, with as many sites as a chunk may come to hold and a
    short trial allows; or ``forced`` for the convolutions to which it applies. ``naively`` are naive ISM's seconds for
    a sequence: trials that take much of them are worth less than what they may save.
    """
    plan = run.plan
    chosen: dict[int, str] = {}
    lowered = run.precision == "medium"
    affordable = TRIAL_PRODUCTS.get(run.device.type, math.inf) * (LOWERED_PRODUCTS if lowered else 1)
    places = plan.reached(length, 1)
    middle = plan.windows(places[(len(places) - 1) // 2, None], 1)  # where one example site is
    # as many as the search for the chunk's size begins with: kernels that a library makes for each shape serve both
    whole = _share(min(2 * first, most), _span(plan, length), most)
    alike: dict[Hashable, list[tuple[int, Rule]]] = {}
    again = AGAIN_SECONDS
    allowed = min(max(WAYS_PART * naively, LEAST_WAYS_SECONDS), MOST_WAYS_SECONDS)
    allowed = allowed if run.device.type == "cpu" else math.inf  # elsewhere most of it is kernels that are prepared
    begun = time.thread_time()  # other processes that slow this one down are no reason to try less
    known: dict[Hashable, list[tuple[int, str]]] = {}  # widths of windows and the ways found for them
    for node in plan.graph.nodes:
        rule = plan.rules[node.index]
        if rule is None or not rule.all_ways() or not node.mutated or not plan.readers[node.index]:
            continue
        one = middle[rule.sources[0]]
        if isinstance(rule, Convolution) and forced is not None:
            rule.way = forced if forced in rule.applicable(run, one.width if one is not None else 1) else "windows"
        elif one is not None and one.width > 0 and plan.graph.nodes[rule.sources[0]].kind != "sequence":
            alike.setdefault(rule.alike(), []).append((one.width, rule))
        chosen[node.index] = rule.way

    def tried(rule: Rule, count: int, ways: Sequence[str] | None = None) -> dict[str, float]:
        """The seconds of each way (default: all that may win) with so many sites; none are needed where it is one."""
        sites = example_sites(plan, count, edits, n_choices, length, run, seed)
        window = run.set_sites(sites)[rule.sources[0]]
        if window is None or not window.width:
            return {}
        ways = rule.ways(run, window) if ways is None else ways
        return _times(rule, ways, run, window, sites) if len(ways) > 1 else dict.fromkeys(ways, math.inf)

    def attempt(width: int, rule: Rule) -> str:
        akin = known.setdefault(rule.akin(), [])
        if akin and time.thread_time() - begun > allowed:
            way = min(akin, key=lambda other: abs(other[0] - width))[1]
            window = run.set_sites(example_sites(plan, 1, edits, n_choices, length, run, seed))[rule.sources[0]]
            if window is not None and way in rule.ways(run, window):
                return way
        way = fastest(width, rule)
        akin.append((width, way))
        return way

    def fastest(width: int, rule: Rule) -> str:
        nonlocal again
        work = max(rule.multiply_adds(run, width) * edits, 1)
        fewest = whole if rule.shares_among_sites else first // 4
        count = max(int(min(whole, max(affordable / work, fewest))), 1)
        times = tried(rule, count)
        least = min(times.values(), default=math.inf)
        # few sites say who is out of the race: the others run with as many as a call that is not long may hold
        more = int(min(whole, count * LONG_CALL / least))
        rivals = [way for way, seconds in times.items() if seconds < RIVAL * least]
        if len(rivals) > 1 and more >= MORE_SITES * count and again > 0:
            begin = time.perf_counter()
            times = tried(rule, more, rivals)
            again -= time.perf_counter() - begin
        return min(times, key=times.__getitem__, default=rule.way)

    def settle(layers: list[tuple[int, Rule]]) -> None:
        """What runs both the narrowest and the widest windows fastest runs those between fastest."""
        waiting = [layers]  # a function that called itself would keep the run, and with it the model, until collected
        while waiting:
            some = waiting.pop()
            (_, narrowest), (_, widest) = some[0], some[-1]
            if narrowest.way != widest.way and len(some) > 2:
                middle = len(some) // 2
                some[middle][1].way = attempt(*some[middle])
                waiting += [some[middle:], some[: middle + 1]]
            else:
                for _, rule in some[1:-1]:
                    rule.way = widest.way

    for layers in alike.values():
        layers.sort(key=lambda pair: pair[0])
    # those that take longest first: the others' rivals may find no time left
    for layers in sorted(alike.values(), key=lambda layers: -layers[-1][1].multiply_adds(run, layers[-1][0])):
        for width, rule in {layers[0], layers[-1]}:
            rule.way = attempt(width, rule)
        settle(layers)
        chosen.update({rule.node.index: rule.way for _, rule in layers})
    return chosen


def make_fit(plan: Plan, ways: dict[int, str], memory: Callable[[], Memory], limit: int) -> list[int]:
    """Where a plan takes more than a limit in bytes: run by windows, which lay out least, those convolutions whose ways
    lay out most; which they are.
    """
    changed: list[int] = []
    if (all_of_them := memory().least) <= limit:
        return changed
    saved: dict[int, int] = {}
    for i, way in ways.items():
        rule = plan.rules[i]
        if isinstance(rule, Convolution):
            rule.way = "windows"
            saved[i] = all_of_them - memory().least
            rule.way = way
    for i in sorted((i for i in saved if saved[i] > 0), key=lambda i: -saved[i]):
        rule = plan.rules[i]
        assert rule is not None
        rule.way = ways[i] = "windows"
        changed.append(i)
        if memory().least <= limit:
            break
    return changed


@running()
def _times(rule: Rule, ways: Sequence[str], run: Run, window: Window, sites: Sites) -> dict[str, float]:
    """The least seconds of a call by each way; more than those of another where it was plainly slower."""
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
            rule.way = way
            best = min(times.values(), default=math.inf)
            times[way] = _least_seconds(rule.trial(run, window, some), run.device, best)
    run.forget(("measure", rule.node.index))
    return times


def _share(size: int, length: int, most: int) -> int:
    """About ``size`` sites, such that chunks of that many share a sequence of ``length`` evenly."""
    return max(min(-(-length // max(round(length / max(size, 1)), 1)), most, length), 1)


def _span(plan: Plan, length: int) -> int:
    """The positions, of those that reach an output, that chunks share; those near the ends get chunks of their own."""
    reach, regular = plan.reach(np.arange(length), 1)
    several, most = int((reach & regular).sum()), int(reach.sum()) or length
    return several if 2 * several >= most else most


def choose_chunk(
    run: Run,
    edits: int,
    n_choices: int,
    length: int,
    first: int,
    most: int,
    seed: int,
    spent: float = 0.0,
    naively: float = 0.0,
) -> tuple[int, list[float], float]:
    """Sites carried at once that cost least per site, the seconds of each node at that size, and of a site.

    Tried are ``first``, then twice as many again up to ``most`` or until that is plainly worse twice over; and half of
    ``first`` where twice as many were no better, and there is time. Sizes that come close are tried again: a busy
    machine slows one and not the other. Of sizes as good as each other the one tried first is taken. ``spent`` are the
    seconds that the trials of ways took, ``naively`` those that naive ISM takes for a site. Where ``first`` takes so
    long that no other would be tried, it is taken, and its cost is that of fewer sites.
    """
    allowed = max(min(SEARCH_SECONDS, ALL_TRIALS_SECONDS - spent), LEAST_SEARCH_SECONDS)
    span = _span(run.plan, length)
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
        found = cost_of_chunk(run, edits, n_choices, length, size, seed, hopeless)
        tried[size] = min(found, tried.get(size, found), key=lambda each: each[0])
        return found[0]

    def affordable(size: int, cost: float) -> bool:
        return time.perf_counter() + 4 * cost * size - begin <= allowed

    size = _share(first, span, most)
    if size * naively > LONG_CHUNK and size >= FEWER_SITES:
        fewer = size // FEWER_SITES
        cost, shares = cost_of_chunk(run, edits, n_choices, length, fewer, seed, 0.0)
        if cost * size > LONG_CHUNK and not affordable(size, cost):
            return min(first, most) if size == span < first else size, [s * size / fewer for s in shares], cost
    cost, worse = attempt(size), 0
    if run.plan.sensing is None:  # Gaussian probes need other coefficients for each size
        while worse < 2:
            size, before = _share(2 * size, span, most), size
            if size <= before or not affordable(before, cost):
                break
            cost = attempt(size)
            worse = worse + 1 if cost > 1.1 * tried[least()][0] else 0
        small = _share(first // 2, span, most)
        if least() == _share(first, span, most) > small and affordable(small, cost):
            attempt(small)
        rivals = [(s, c) for s, (c, _) in tried.items() if c < CLOSE * tried[least()][0]]
        for size, cost in rivals if len(rivals) > 1 else ():
            if affordable(size, cost):
                attempt(size)
    best = least()
    cost, shares = tried[best]
    # short sequences: the size was limited by the length, but a chunk may hold several sequences
    return (min(first, most) if best == span < first else best), shares, cost


def cost_of_chunk(
    run: Run, edits: int, n_choices: int, length: int, size: int, seed: int, hopeless: float = math.inf
) -> tuple[float, list[float]]:
    """Seconds of a site in chunks of a size, or of as many as each sequence of the reference has where that is fewer,
    and the seconds of each node; roughly where that is ``hopeless``.
    """
    sites = example_sites(run.plan, size, edits, n_choices, length, run, seed).in_each(run.reference.batch)
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
        pages = _new_pages()
        now = _seconds(lambda: run.chunk(sites), run.device)
        found, run.seconds = run.seconds, None
        settled = now > SETTLED * least and _new_pages() - pages < MANY_PAGES
        spent += now if runs else 0.0
        runs += 1
        if now < least:
            least, shares = now, found
        if now > LONG_RUN:  # beside which a first run's own work is little
            return least, shares
        if spent > LONGEST_TRIAL or (settled and (runs > CHUNK_REPEATS or least > hopeless or 4 * now > LONGEST_TRIAL)):
            return least, shares


def _new_pages() -> int:
    """How many pages of memory the process has got from the system so far; 0 where the system does not say."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_minflt


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
            seconds = _seconds(lambda: model(x, *rest), device)
            return (seconds if seconds > LONG_BATCH else min(seconds, _seconds(lambda: model(x, *rest), device))) / rows

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
