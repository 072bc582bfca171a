"""One row of `models_benchmark`: yuzu_ism, naive ISM and tangermeme's fast path on one architecture, in this process.

The three take turns, so that a slow moment of the machine meets them all. Naive ISM and tangermeme are timed on a
sample of positions in the middle and extrapolated: a call for one position gives what a call costs however few its
positions are, and the rest grows with them. `yuzu_ism` is timed on all positions, or, where that would take longer than
``whole_seconds``, on naive ISM's sample in the same way. The row says which. All give the signed changes or the
predictions of every output, or norms where these would take more than `MOST_BYTES`.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import EDITS, Memory, middle, versions
from models import ARCHITECTURES
from torch.utils._pytree import tree_leaves

import yuzu

# naive ISM's batch sizes; all of them hold the mutants of whole positions
BATCHES = (6, 24, 96, 192)
TANGERMEME_BATCHES = (24, 96, 384)
COMPARED_RUNS, COMPARED_RUN = 8, 4  # runs of neighbours, evenly spaced, whose scores are compared with float64
MOST_BYTES = 1 << 29  # of the signed changes of all positions
LONG = 60.0  # seconds of all turns after which there are no more
SHORT = 0.2  # seconds that short calls are repeated for, and of which the median is taken


@dataclasses.dataclass(frozen=True)
class Job:
    """A row to measure.

    Attributes
    ----------
    architecture: str
    start, end: int
        The mutated positions; ``end`` None for all that follow.
    repeats: int
        Turns of each peer.
    naive_seconds, whole_seconds: float
        For naive ISM's samples of all turns together; for one call of `yuzu_ism` for all positions.
    peers: bool
        Time tangermeme, too.
    max_memory: int or None
        What `precompute` may use, in bytes; None for its default.
    """

    architecture: str
    start: int = 0
    end: int | None = None
    repeats: int = 3
    naive_seconds: float = 10.0
    whole_seconds: float = 45.0
    peers: bool = True
    max_memory: int | None = None


@dataclasses.dataclass
class Peer:
    """A way of doing ISM, and how it is timed.

    Attributes
    ----------
    call: callable
        Takes the first and the stop position.
    fixed: float
        The seconds of a call that do not grow with its positions.
    positions: tuple of int
        The first and the stop of those that are timed.
    """

    call: Callable[[int, int], Any]
    fixed: float
    positions: tuple[int, int]
    scores: Any = None  # of the last call

    def seconds(self, count: int) -> float:
        """Time a call, and extrapolate it to ``count`` positions."""

        def work() -> None:
            self.scores = None
            self.scores = self.call(*self.positions)

        taken, timed = seconds(work), self.positions[1] - self.positions[0]
        # the part that does not grow is known badly where it is most of a call
        fixed = min(self.fixed, taken / 2)
        return taken if timed == count else fixed + (taken - fixed) * count / timed


def seconds(work: Callable[[], object]) -> float:
    """Seconds of a call; the median of several where they are short."""
    found: list[float] = []
    while not found or sum(found) < SHORT:
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


class Subject:
    """An architecture with its sequence, and the mutated positions."""

    def __init__(self, job: Job) -> None:
        case = ARCHITECTURES[job.architecture]
        self.job, self.length = job, case.length
        self.model, self.X, self.args = case.model(), case.sequences(), case.args() or None
        self.start, self.end = job.start, case.length if job.end is None else job.end
        self.count = self.end - self.start
        with torch.no_grad():
            outputs = tree_leaves(self.model(self.X, *(self.args or ())))
        changes = sum(output.numel() for output in outputs) * self.X.shape[1] * self.count * 4
        self.output = "delta" if changes <= MOST_BYTES else "l2"

    def middle(self, positions: int) -> tuple[int, int]:
        first, stop = middle(self.count, positions)
        return self.start + first, self.start + stop

    def naive(self, batch: int) -> Callable[[int, int], Any]:
        return lambda first, stop: yuzu.naive_ism(
            self.model,
            self.X,
            args=self.args,
            output=self.output,
            start=first,
            end=stop,
            batch_size=batch,
            device="cpu",
        )

    def yuzu(self, made: yuzu.Precomputation, output: str) -> Callable[[int, int], Any]:
        return lambda first, stop: yuzu.yuzu_ism(
            self.model, self.X, made, args=self.args, output=output, start=first, end=stop, device="cpu"
        )

    def sample(self, batch: int, for_a_mutant: float) -> tuple[int, int]:
        """Positions in the middle whose mutants fill whole batches and take a turn's share of ``naive_seconds``."""
        one = batch // EDITS
        share = self.job.naive_seconds / self.job.repeats
        batches = max(1, int(share / max(for_a_mutant * batch, 1e-9)))
        return self.middle(min(self.count, one * batches))


def fixed_seconds(subject: Subject, call: Callable[[int, int], Any], for_a_mutant: float) -> float:
    """The seconds of a call that do not grow with its positions."""
    taken = min(seconds(lambda: call(*subject.middle(1))) for _ in range(2))
    return max(taken - EDITS * for_a_mutant, 0.0)


def best_batch(
    subject: Subject, sizes: tuple[int, ...], call: Callable[[int], Callable[[int, int], Any]]
) -> tuple[int, float]:
    """The batch size with the fewest seconds for a mutant, and these. Rising sizes are tried, until one is a third
    slower than the best, or until one batch would take more than a turn's share of ``naive_seconds``.
    """
    found: dict[int, float] = {}
    for size in sizes:
        expected = min(found.values(), default=0.0) * size
        if expected > subject.job.naive_seconds / subject.job.repeats or size // EDITS > subject.count:
            break
        work = functools.partial(call(size), *subject.middle(size // EDITS))
        if not found:
            work()  # to warm up
        found[size] = seconds(work) / size
        if found[size] > min(found.values()) * 4 / 3:
            break
    best = min(found, key=lambda size: found[size])
    return best, found[best]


def ours(subject: Subject, made: yuzu.Precomputation, sample: tuple[int, int], for_a_mutant: float) -> Peer:
    """`yuzu_ism` on all positions, or on naive ISM's sample where all would take too long."""
    call, past = subject.yuzu(made, subject.output), made.decisions.statistics
    few = max(8, 0 if past is None else 4 * past.least_positions)  # a series is made once, and takes long
    if 2 * few < subject.count:
        one, two = subject.middle(few), subject.middle(2 * few)
        a = seconds(lambda: call(*one))  # lays out the weights
        a, b = a if a > LONG / 20 else seconds(lambda: call(*one)), seconds(lambda: call(*two))
        if b + max(b - a, 0.0) * (subject.count - 2 * few) / few > subject.job.whole_seconds:
            return Peer(call, fixed_seconds(subject, call, for_a_mutant), sample)
    return Peer(call, 0.0, (subject.start, subject.end))


# ---- errors --------------------------------------------------------------------------------------------------------


def compared(subject: Subject, for_a_mutant: float) -> list[tuple[int, int]]:
    """Runs of positions, both ends among them; fewer where naive ISM in float64 would take ``naive_seconds``."""
    affordable = subject.job.naive_seconds / (3 * EDITS * COMPARED_RUN * for_a_mutant)
    runs = int(min(COMPARED_RUNS, max(3, affordable)))
    starts = np.unique(np.linspace(subject.start, subject.end - COMPARED_RUN, runs).round().astype(int))
    return [(int(first), int(first) + COMPARED_RUN) for first in starts]


def joined(parts: list[Any]) -> list[np.ndarray]:
    """Each output's changes at all compared positions, in float64."""
    leaves = [[np.asarray(leaf, dtype=np.float64)[0] for leaf in tree_leaves(part)] for part in parts]
    return [np.concatenate(outputs, axis=1) for outputs in zip(*leaves, strict=True)]


def errors(found: list[np.ndarray], truth: list[np.ndarray]) -> list[float]:
    """The relative L2 error of each output."""
    return [
        float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-300)) for a, b in zip(found, truth, strict=True)
    ]


def compare(subject: Subject, made: yuzu.Precomputation, batch: int, cost: float, scores: Any) -> dict[str, Any]:
    """Errors of `yuzu_ism` and naive ISM in float32 against naive ISM in float64, for each output by itself.

    ``scores`` are those of the last turn, or None where that was not of all positions or gave norms.
    """
    runs, double = compared(subject, cost), ARCHITECTURES[subject.job.architecture].in_float64(subject.model)
    wide = None if subject.args is None else tuple(arg.double() for arg in subject.args)

    def naive(model: torch.nn.Module, X: torch.Tensor, args: Any, size: int) -> list[np.ndarray]:
        given = {"args": args, "output": "delta", "batch_size": size, "device": "cpu"}
        return joined([yuzu.naive_ism(model, X, start=first, end=stop, **given) for first, stop in runs])

    truth, plain = naive(double, subject.X.double(), wide, 24), naive(subject.model, subject.X, subject.args, batch)
    if scores is None:
        mine = joined([subject.yuzu(made, "delta")(*run) for run in runs])
    else:
        index = np.concatenate([np.arange(first, stop) - subject.start for first, stop in runs])
        mine = [np.asarray(leaf, dtype=np.float64)[0][:, index] for leaf in tree_leaves(scores)]
    return {
        "errors": errors(mine, truth),
        "naive_errors": errors(plain, truth),
        "compared_positions": len(runs) * COMPARED_RUN,
    }


# ---- tangermeme ----------------------------------------------------------------------------------------------------


def tangermeme(subject: Subject) -> tuple[Peer | None, dict[str, Any]]:
    """`saturation_mutagenesis` with its fast path forced, captured before the clock starts, at its best batch size; or
    the reason why it cannot run. Each call caches the sequence's activations again.
    """
    try:
        from tangermeme import saturation_mutagenesis as module
    except ImportError as error:
        return None, {"reason": f"not installed: {error}"}
    X, start, end = subject.X.to(torch.int8), subject.start, subject.end
    centre = subject.middle(COMPARED_RUN)
    try:
        with torch.no_grad():
            fast = module._FastISM(
                subject.model, X, subject.args, start, end, torch.device("cpu"), torch.float32, False
            )
    except Exception as error:  # its own reason, whatever it is
        lines = str(error).splitlines() or [""]
        return None, {"reason": f"{type(error).__name__}: {lines[0]}"}
    module._fast_path = lambda *arguments: (fast, None, 0)

    def call(batch: int) -> Callable[[int, int], Any]:
        def score(first: int, stop: int) -> Any:
            fast._example = None
            given = {"batch_size": batch, "raw_outputs": True, "device": "cpu", "fast": True}
            return module.saturation_mutagenesis(subject.model, X, subject.args, start=first, end=stop, **given)

        return score

    try:
        batch, cost = best_batch(subject, TANGERMEME_BATCHES, call)
        fixed = fixed_seconds(subject, call(batch), cost)
        peer = Peer(call(batch), fixed, subject.sample(batch, max(cost - fixed / batch, cost / 4)))
        y0, mutants = (tree_leaves(part) for part in call(batch)(*centre))
    except Exception as error:
        lines = str(error).splitlines() or [""]
        return None, {"reason": f"{type(error).__name__}: {lines[0]}"}
    changes = [(y - y_0[:, None, None]).numpy()[0] for y_0, y in zip(y0, mutants, strict=True)]
    given = {"args": subject.args, "output": "delta", "start": centre[0], "end": centre[1], "device": "cpu"}
    true = joined([yuzu.naive_ism(subject.model, subject.X, batch_size=24, **given)])
    return peer, {"batch_size": batch, "differs_from_naive": errors(changes, true)}


# ---- the row -------------------------------------------------------------------------------------------------------


def shares(made: yuzu.Precomputation) -> dict[str, float]:
    """The operations that run naively, and their share of the time in percent."""
    found: dict[str, float] = {}
    for layer in made.decisions.layers:
        if layer.handler == "naive":
            percent = layer.time.rstrip("%< ")
            found[layer.operation] = found.get(layer.operation, 0.0) + float(percent or 0)
    return found


def measure(job: Job) -> dict[str, Any]:
    """One row."""
    subject = Subject(job)
    memory, begin = Memory("cpu"), time.perf_counter()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        given = {"args": subject.args, "max_memory": job.max_memory, "device": "cpu"}
        made = yuzu.precompute(subject.model, subject.length, **given)
    row: dict[str, Any] = {"precompute_seconds": time.perf_counter() - begin}
    row["warnings"] = [str(w.message) for w in said if issubclass(w.category, yuzu.YuzuWarning)]
    warnings.simplefilter("ignore")
    batch, cost = best_batch(subject, BATCHES, subject.naive)
    mine = ours(subject, made, subject.sample(batch, cost), cost)
    row["peak_bytes"], row["allowed_bytes"] = memory.peak(), made.settings.max_memory
    fixed = fixed_seconds(subject, subject.naive(batch), cost)
    peers = {"yuzu": mine, "naive": Peer(subject.naive(batch), fixed, subject.sample(batch, cost))}
    if job.peers:
        other, row["tangermeme"] = tangermeme(subject)
        if other is not None:
            peers["tangermeme"] = other
    taken: dict[str, list[float]] = {name: [] for name in peers}
    turns, begin = 0, time.perf_counter()
    while turns < job.repeats and (turns + 1) / max(turns, 1) * (time.perf_counter() - begin) < LONG:
        for name, peer in peers.items():
            taken[name].append(peer.seconds(subject.count))
        turns += 1
    whole = mine.positions == (subject.start, subject.end)
    row |= {
        "positions": subject.count,
        "length": subject.length,
        "seconds": taken,
        "timed_positions": {name: peer.positions[1] - peer.positions[0] for name, peer in peers.items()},
        "batch_size": batch,
        "output": subject.output,
        "naive_model": made.decisions.naive_model,
        "naive_percent": shares(made),
        "statistics": None if made.decisions.statistics is None else made.decisions.statistics.numbers,
        "notes": ARCHITECTURES[job.architecture].notes,
        "versions": versions("torch", "tangermeme", "cherimoya"),
        "threads": torch.get_num_threads(),
    }
    return row | compare(subject, made, batch, cost, mine.scores if whole and subject.output == "delta" else None)
