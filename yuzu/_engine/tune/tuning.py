"""Tunes a plan on the machine at hand: the ways of its layers, the number of positions carried at once, and whether the
model itself is faster.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from yuzu._engine.derived import Derived
from yuzu._engine.freed_memory import keep_freed_memory
from yuzu._engine.graph import Weights
from yuzu._engine.kernels.precision import products
from yuzu._engine.plan import table
from yuzu._engine.plan.plan import Plan
from yuzu._engine.run.run import Run
from yuzu._engine.tune import chunks
from yuzu._engine.tune.ladder import Attempt, Trial, descend, verified
from yuzu._engine.tune.memory import Memory, first_sites, most_sites
from yuzu._engine.tune.statistics import with_statistics
from yuzu._engine.tune.subject import RunsNaively, Subject
from yuzu._engine.tune.verify import Verdict, naive_errors
from yuzu._engine.tune.ways import choose_ways, make_fit
from yuzu._engine.ways.compressed_sensing import Sensing
from yuzu.errors import warn_user

# Where naive ISM's own error is above LOSES_DIGITS, differences are carried as long as they take at most PATIENCE times
# as long as naive ISM: only they have digits to lose.
LOSES_DIGITS, PATIENCE = 1e-4, 1.5
PLAINLY = 0.6  # part of the seconds of differences below which naive ISM is faster without another trial


@dataclass(frozen=True, eq=False)
class Tuned:
    """A tuned plan.

    Attributes
    ----------
    plan: Plan
    ways: dict of int to str
        The ways of the layers that have several.
    sites: int
        The number of positions that are carried at once.
    rows: list of list of str
        The rows of a summary.
    derived: Derived
        Weights that were laid out during trials, for the first call.
    past: tuple or None
        If the plan carries windows past statistics: the nodes of the captured graph whose norms are taken apart, the
        numbers of a sequence, and the least positions for which that is faster.
    kept: str
        Why differences are carried although naive ISM is faster; empty if it is not.
    """

    plan: Plan
    ways: dict[int, str]
    sites: int
    rows: list[list[str]]
    derived: Derived
    past: tuple[tuple[int, ...], int, int] | None = None
    kept: str = ""


@dataclass(frozen=True, eq=False)
class _Sizes:
    """The number of sites that a first chunk and the largest chunk hold; and the most seconds that the model takes for
    the mutants of one site.
    """

    first: int
    most: int
    naively: float


def tune(subject: Subject, plan: Plan, verify: bool, stage: Callable[[str], None]) -> Tuned:
    """Tune a plan. To ``verify`` it, compare it with naive ISM first, and once more as it will run. If that is right
    and faster, another plan carries windows past statistics.

    Raises
    ------
    RunsNaively
        If no way of running it is right here, or the model itself is faster.
    YuzuError
        If the user allows too little memory.
    """
    s, device = subject.settings, subject.device
    verdict, past = None, None
    if verify:
        stage("comparing with naive ISM")
        plan, verdict = verified(subject, plan)
    keep_freed_memory()
    if verdict is not None and s.conv == "auto":
        past = with_statistics(subject, plan, verdict)
        plan = plan if past is None else past.run.plan
    if s.conv == "gaussian":
        plan = plan.with_sensing(Sensing(s.alpha or 1.0, s.random_state))
    run = Run(plan, Weights(subject.model, device), Derived(), device) if past is None else past.run
    reference = None if past is None else run.reference
    begin = time.perf_counter()
    run.set_reference(*subject.on_device())
    forward = time.perf_counter() - begin
    run.reference = reference or run.reference
    memory = subject.memory(plan)
    subject.refuse_too_little(memory.least)
    first, most = first_sites(memory, s.max_memory, device), most_sites(memory, s.max_memory, device)
    sizes = _Sizes(first, most, forward * subject.edits)

    stage("trying ways to run each layer")
    begin = time.perf_counter()
    run = _choose_ways(subject, sizes, run)
    naive_error = functools.cache(lambda: 0.0 if verdict is None else _naive_error(subject, verdict))
    if verdict is not None:
        trial = Trial(subject, verdict, lambda run: _choose_ways(subject, sizes, run))
        run = descend(trial, Attempt(run)).run
        del trial
    _warn_naive_layers(run.plan)
    subject.refuse_too_little(subject.memory(run.plan).least)  # more layers may run naively now
    spent = time.perf_counter() - begin
    stage("trying how many mutants to run at once")
    with products(run.plan.precision, device):
        of_series = 0.0 if past is None else past.seconds / s.seq_len
        count, seconds, kept = _sites(subject, sizes, run, spent, of_series, naive_error)
        rows = table.rows(run.plan, subject.edits, seconds)
        return Tuned(run.plan, run.plan.ways(), count, rows, run.kept, None if past is None else past.facts, kept)


def _choose_ways(subject: Subject, sizes: _Sizes, run: Run) -> Run:
    """Make a run by the fastest ways, or by the way that the user asked for where that fits into the memory."""
    s, asked = subject.settings, subject.asked_memory
    forced = None if s.conv == "auto" else s.conv
    of_sequence = sizes.naively * s.seq_len
    ways = choose_ways(run, forced, subject.examples, sizes.first, sizes.most, of_sequence)
    if asked is not None:
        ways, changed = make_fit(run.plan, ways, subject.memory, asked)
        if changed and forced:
            layers = ", ".join(run.plan.graph.nodes[i].label for i in changed)
            warn_user(f"conv={forced!r} does not fit into max_memory={asked}: {layers} run by 'windows'")
    return run.of_plan(run.plan.with_ways(ways))


def _sites(
    subject: Subject, sizes: _Sizes, run: Run, spent: float, of_series: float, naive_error: Callable[[], float]
) -> tuple[int, list[float], str]:
    """Find the number of sites that costs least. Returns it, the seconds of each node then, and why differences are
    carried although naive ISM is faster. ``spent`` are the seconds that trials of ways took, and ``of_series`` those
    that a site's share of the series of a sequence takes.
    """
    s = subject.settings
    memory = subject.memory(run.plan)
    most = most_sites(memory, s.max_memory, run.device)
    # often more sites than in trials of ways, since threads share products of many rows
    start = min(2 * sizes.first, most)
    count, seconds, cost = chunks.choose_chunk(run, subject.examples, start, most, spent, sizes.naively)
    cost += of_series
    if s.conv == "auto" and cost * s.seq_len > chunks.WORTH_COMPARING:
        return count, seconds, _compare_with_model(subject, run, memory, count, cost, naive_error)
    return count, seconds, ""


def _compare_with_model(
    subject: Subject, run: Run, memory: Memory, count: int, cost: float, naive_error: Callable[[], float]
) -> str:
    """Run the model naively (raise `RunsNaively`) if that is faster than chunks of ``count`` sites, which cost ``cost``
    seconds for each site, unless it loses digits that they keep at little cost. Returns why it is not run then.
    """
    s, edits, device = subject.settings, subject.edits, subject.device
    at_once = s.max_memory // max(memory.sequence, 1)
    # a batch of the model holds mutants of one sequence
    most_rows = max(min(at_once, edits * s.seq_len), 1)
    naively = chunks.naive_is_faster(
        subject.evaluation_copy(), subject.X, subject.args, device, cost / edits, most_rows
    )
    if naively is None:
        return ""
    # a chunk that takes long would be run once more, in full
    long = count < chunks.FEWER_SITES and count * cost > chunks.LONG_RUN
    if not (long and naively[0] < PLAINLY * cost / edits):  # a busy machine may have slowed only one of the two
        # a chunk of several short sequences also costs less than a chunk of each
        several = max(min(count // s.seq_len, at_once, chunks.MOST_SEQUENCES), 1)
        run.set_reference(*subject.on_device(several))
        cost = min(cost, chunks.cost_of_chunk(run, subject.examples, count)[0])
        run.set_reference(*subject.on_device())
    if naively[0] < cost / edits:
        seconds, batch = naively
        longer = cost / edits / seconds
        if longer <= PATIENCE and (error := naive_error()) > LOSES_DIGITS:
            return (
                f"Differences are carried although that takes {longer:.2g} times as long as naive ISM, which is off by "
                f"{error:.1g} here."
            )
        layers = _naive_layers(run.plan)
        reason = (
            f"that takes {1e3 * seconds:.3g} ms a mutant on {device.type}, carrying differences "
            f"{1e3 * cost / edits:.3g} ms"
        )
        raise RunsNaively(reason + (f". Naive in any case: {layers}" if layers else ""), batch, run.plan)
    return ""


def _naive_error(subject: Subject, verdict: Verdict) -> float:
    """The largest relative error of naive ISM's differences, of all outputs, on the mutants of a verdict."""
    X, args = subject.on_device()
    if X.dtype != torch.float32:
        return 0.0
    return max(naive_errors(subject.evaluation_copy(), X, args, verdict), default=0.0)


def _warn_naive_layers(plan: Plan) -> None:
    if layers := _naive_layers(plan):
        warn_user(
            "These layers, and those that follow them, run naively on every mutant: results are exact but gain little. "
            f"{layers}"
        )


def _naive_layers(plan: Plan) -> str:
    """The layers that run naively although nobody asked for it, and why; empty if there are none."""
    roots = [(i, r) for i, r in plan.reasons.items() if "which runs naively" not in r and "terminal_layers" not in r]
    nodes = [(plan.graph.nodes[i], reason) for i, reason in roots[:5]]
    layers = "; ".join(f"{f'{n.layer} ({n.op})' if n.layer else n.op}: {reason}" for n, reason in nodes)
    return layers + (f"; and {len(roots) - 5} more" if len(roots) > 5 else "")
