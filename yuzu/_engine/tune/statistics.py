"""Decides whether a plan carries windows past statistics: only if that is right and faster on the machine at hand.

Series are cut after second order. So the differences of a plan with them have to be as exact as naive ISM's, output by
output, on the mutants with which the other plan was compared with the model in float64.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from yuzu._engine.capture.errors import first_line
from yuzu._engine.derived import Derived
from yuzu._engine.graph import Weights
from yuzu._engine.kernels.precision import products
from yuzu._engine.plan.plan import Plan, make_plan_with_statistics
from yuzu._engine.run.run import Run
from yuzu._engine.tune import chunks
from yuzu._engine.tune.memory import first_sites
from yuzu._engine.tune.subject import Subject
from yuzu._engine.tune.verify import Verdict, errors_of_outputs, naive_errors
from yuzu.errors import warn_user

# Relative errors of differences that are right, whatever naive ISM's own; with products of less precision they are
# those of the products.
EXACT = {"highest": 1e-5, "high": 1e-3, "medium": 3e-2}
EXACT_IN_FLOAT64 = 1e-10  # a user of float64 wants its digits, which a series rarely has
MOST_DOUBTFUL = 0.1  # part of a chunk's mutants that may run naively
FASTER = 0.95  # times the cost of the other plan: a plan with statistics must cost less
# A default of memory may be exceeded by so much, since estimates are from above, and by what the other plan needs.
ABOUT = 1.1


@dataclass(frozen=True, eq=False)
class WithStatistics:
    """A plan that carries windows past statistics, and is better than the one without.

    Attributes
    ----------
    run: Run
        A run of the plan, whose reference has its series.
    norms: tuple of int
        The nodes of the captured graph whose norms are taken apart.
    seconds: float
        The time that the reference and its series take.
    saves: float
        The time that a site then takes less.
    """

    run: Run
    norms: tuple[int, ...]
    seconds: float
    saves: float

    @property
    def facts(self) -> tuple[tuple[int, ...], int, int]:
        """The norms, the numbers of a sequence, and the least positions for which it is faster."""
        numbers = self.run.plan.statistics.count
        return self.norms, numbers, math.ceil(self.seconds / self.saves) if numbers else 1


def with_statistics(subject: Subject, plain: Plan, verdict: Verdict) -> WithStatistics | None:
    """A plan that carries windows past statistics; None where ``plain`` is as good, on which there is the ``verdict``
    that it is right.
    """
    found = make_plan_with_statistics(plain)
    if found is None:
        return None
    plan, norms = found
    allowed = subject.asked_memory
    if allowed is None:
        allowed = max(int(ABOUT * subject.settings.max_memory), subject.memory(plain).least)
    if subject.memory(plan).least > allowed:
        return None
    try:
        with products(plan.precision, subject.device):
            other = _cost(subject, _prepared(subject, plain)[0])  # first: the two do not fit into memory together
            run, seconds = _prepared(subject, plan)
            if not _is_right(subject, run, verdict):
                return None
            cost = _cost(subject, run)
            if cost + seconds / subject.settings.seq_len < FASTER * other:
                return WithStatistics(run, norms, seconds, other - cost)
    except torch.OutOfMemoryError:
        pass  # as good as slower
    except (RuntimeError, NotImplementedError) as error:  # an operation that PyTorch cannot differentiate forwards
        warn_user(
            "Windows end at the first norm over positions, gate or other statistic: a trial of carrying them on failed "
            f"({first_line(error)})"
        )
    return None


def _prepared(subject: Subject, plan: Plan) -> tuple[Run, float]:
    run = Run(plan, Weights(subject.model, subject.device), Derived(), subject.device)
    X, args = subject.on_device()
    begin = time.perf_counter()
    run.set_reference(X, args)
    run.prepare()
    return run, time.perf_counter() - begin


def _is_right(subject: Subject, run: Run, verdict: Verdict) -> bool:
    """Compare each output's differences with naive ISM's, in the model's own dtype."""
    X, args = subject.on_device()
    ours = errors_of_outputs(run, X, verdict)
    few = run.doubtful is None or float(run.doubtful.float().mean()) <= MOST_DOUBTFUL
    if not few or not ours:
        return False
    exact = EXACT_IN_FLOAT64 if X.dtype == torch.float64 else EXACT[run.plan.precision]
    if all(error <= exact for error in ours):
        return True
    naive = naive_errors(subject.evaluation_copy(), X, args, verdict)
    return all(a <= max(exact, b) for a, b in zip(ours, naive, strict=True))


def _cost(subject: Subject, run: Run) -> float:
    """Measure the seconds of a site, roughly."""
    count = first_sites(subject.memory(run.plan), subject.settings.max_memory, run.device)
    return chunks.cost_of_chunk(run, subject.examples, count, 0.0)[0]


__all__ = ["WithStatistics", "with_statistics"]
