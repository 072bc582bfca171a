"""The ladder of fallbacks: from a plan as it was chosen, step by step, down to running the whole model naively.

A plan is first compared with naive ISM in float64, operation by operation (`verified`). That comparison does not cover
the ways that are chosen later, the weights laid out for them, Triton kernels and low precision. So each tuned attempt
runs once more on a few mutants, exactly as it will run (`descend`). If these are wrong, and right by a plainer plan,
the next rung of `RUNGS` is taken, with a warning. Its attempt is tried from the top again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from yuzu._engine.kernels.precision import products
from yuzu._engine.kernels.triton import KERNEL_WAYS
from yuzu._engine.plan.plan import Plan
from yuzu._engine.run.run import Run
from yuzu._engine.tune.subject import RunsNaively, Subject, warn_naive_model
from yuzu._engine.tune.verify import Verdict, compare, error_of_products
from yuzu.errors import warn_user

# The relative errors of differences above which a plainer plan runs for comparison.
# Low precision: its rounding gives 0.01, a broken kernel 1 and more.
MOST_LOW_PRECISION_ERROR = 0.5
# Triton kernels: rounding usually gives a hundredth of these. Small differences of large values have larger errors, but
# then without kernels, too.
MOST_KERNEL_ERROR = {"highest": 1e-3, "high": 5e-2, "medium": 0.2}
# The chosen ways: some round a few times as much as others, which may be a large part of a small difference.
MOST_WAYS_ERROR = {"highest": 5e-2, "high": 5e-2, "medium": 0.2}
FAR_LESS = 0.3  # times the error: the plainer plan is right if its own error is at most this
DISAGREES = "the captured graph does not agree with the model"
WRONG_HERE = "its differences are wrong on this machine, whichever ways carry them"


@dataclass(frozen=True, eq=False)
class Attempt:
    """A run of a tuned plan; ``first_ways`` if each of its layers runs by the first of its ways."""

    run: Run
    first_ways: bool = False

    @property
    def plan(self) -> Plan:
        return self.run.plan


@dataclass(frozen=True, eq=False)
class Trial:
    """The model and the differences that attempts are judged by.

    Attributes
    ----------
    subject: Subject
    verdict: Verdict
        With the differences that naive ISM gives in float64.
    choose: callable
        Chooses the ways of a run's layers anew.
    """

    subject: Subject
    verdict: Verdict
    choose: Callable[[Run], Run]

    def error(self, run: Run) -> float:
        """Measure the relative error of a few mutants' differences."""
        return error_of_products(run, self.subject.X.to(self.subject.device), self.verdict)

    def chosen(self, attempt: Attempt, plan: Plan) -> Attempt:
        """Make an attempt with another plan, whose ways are chosen anew."""
        with products(plan.precision, self.subject.device):
            return Attempt(self.choose(attempt.run.of_plan(plan)))

    def off(self, attempt: Attempt, most: float, precision: str, once: bool = False) -> str:
        """Describe how far off an attempt is; empty if it is right.

        It is wrong if its error is more than ``most``, and far more than that of the first ways in a ``precision``,
        without kernels. With ``once`` these run as verification runs them.
        """
        with products(attempt.plan.precision, self.subject.device):
            error = self.error(attempt.run)
        if error <= most:
            return ""
        with products(precision, self.subject.device):
            another = attempt.run.of_plan(attempt.plan.by_first_ways(precision))
            another.once = once
            other = self.error(another)
        if not math.isfinite(other) or other > FAR_LESS * error:
            return ""
        return f"off by {error:.{0 if error > 0.1 else 2}%}" if math.isfinite(error) else "not finite"


# ---- the error of an attempt


def _with_kernels(trial: Trial, attempt: Attempt) -> str:
    plan = attempt.plan
    if not plan.kernels or not any(choice.way in KERNEL_WAYS for choice in plan.choices):
        return ""
    return trial.off(attempt, MOST_KERNEL_ERROR[plan.precision], plan.precision)


def _in_low_precision(trial: Trial, attempt: Attempt) -> str:
    return trial.off(attempt, MOST_LOW_PRECISION_ERROR, "highest") if attempt.plan.precision == "medium" else ""


def _as_run(trial: Trial, attempt: Attempt) -> str:
    plan = attempt.plan
    if plan.sensing is not None:  # it approximates anyway
        return ""
    kind = plan.precision if trial.subject.X.element_size() >= 4 else "medium"
    return trial.off(attempt, MOST_WAYS_ERROR[kind], plan.precision, once=True)


# ---- the next lower attempt; None if a rung has none


def _without_kernels(trial: Trial, attempt: Attempt, off: str) -> Attempt:
    warn_user(
        f"Layers run one by one, and pools by phases, on this machine, and take longer: with Triton kernels the "
        f"differences of a few mutants are {off}"
    )
    return trial.chosen(attempt, attempt.plan.without_kernels())


def _in_full_precision(trial: Trial, attempt: Attempt, off: str) -> Attempt:
    warn_user(
        f"precision='medium' runs as 'highest' for this model on this machine: with bfloat16 products the differences "
        f"of a few mutants are {off}"
    )
    return trial.chosen(attempt, attempt.plan.in_precision("highest"))


def _one_layer_naively(trial: Trial, attempt: Attempt, off: str) -> Attempt | None:
    if attempt.first_ways:
        return None
    plan, s = attempt.plan, trial.subject
    with products(plan.precision, s.device):
        bad = compare(s.model, plan, s.X, s.args, s.device, as_run=True).node
    rule = plan.rules[bad] if bad is not None and bad >= 0 else None
    if rule is None:
        return None
    chosen = plan.choices[rule.node.index].way
    way = f" by the way {chosen!r}" if chosen else ""
    why = f"its handler disagreed with naive ISM as it runs here{way}: differences are {off}"
    return trial.chosen(attempt, plan.without({rule.node.index: why}))


def _by_first_ways(trial: Trial, attempt: Attempt, off: str) -> Attempt | None:
    if attempt.first_ways:
        return None
    warn_user(
        f"Each layer runs by the first of its ways, and may take longer: by the fastest ways here the differences of a "
        f"few mutants are {off}"
    )
    plain = attempt.plan.by_first_ways(attempt.plan.precision)
    return Attempt(attempt.run.of_plan(plain), first_ways=True)


def _naively(trial: Trial, attempt: Attempt, off: str) -> Attempt:
    name = type(trial.subject.model).__name__
    warn_user(f"{name} runs naively, mutant by mutant, and is not faster: {WRONG_HERE}")
    raise RunsNaively(WRONG_HERE, plan=attempt.plan, disagrees=True)


@dataclass(frozen=True)
class Rung:
    """A fallback.

    Attributes
    ----------
    off: callable
        Describes how far off an attempt is; empty if it is right.
    below: callable
        Makes the attempt to fall back to, and warns; None if there is none.
    """

    off: Callable[[Trial, Attempt], str]
    below: Callable[[Trial, Attempt, str], Attempt | None]


RUNGS = (
    Rung(_with_kernels, _without_kernels),
    Rung(_in_low_precision, _in_full_precision),
    Rung(_as_run, _one_layer_naively),  # the summary and the warning of naive layers give the reason
    Rung(_as_run, _by_first_ways),  # no single layer is to blame
    Rung(_as_run, _naively),
)


def descend(trial: Trial, attempt: Attempt) -> Attempt:
    """Find the first attempt that is right, downwards from the one that was chosen.

    Raises
    ------
    RunsNaively
        If no attempt is right.
    """
    while True:
        below = None
        off: dict[Callable[[Trial, Attempt], str], str] = {}
        for rung in RUNGS:
            if rung.off not in off:
                off[rung.off] = rung.off(trial, attempt)
            if off[rung.off] and (below := rung.below(trial, attempt, off[rung.off])) is not None:
                break
        if below is None:
            return attempt
        attempt = below


def verified(subject: Subject, plan: Plan) -> tuple[Plan, Verdict]:
    """Verify a plan in float64. Returns the plan, in which operations run naively if their handlers disagree with the
    model; and the verdict on it.

    Raises
    ------
    RunsNaively
        If the graph itself disagrees with the model.
    """
    while True:
        verdict = compare(subject.model, plan, subject.X, subject.args, subject.device, keep=True)
        bad, why = verdict.node, verdict.why
        if bad is None:
            return plan, verdict
        if bad < 0 or plan.rules[bad] is None:  # no handler is to blame
            reason = ": ".join(filter(None, (DISAGREES, why)))
            warn_naive_model(subject.model, reason)
            raise RunsNaively(reason, disagrees=True)
        plan = plan.without({bad: why})
