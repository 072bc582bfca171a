"""The ladder of fallbacks: from a plan as it was chosen, step by step, down to running the whole model naively.

A plan is first compared with naive ISM in float64, operation by operation (`verified`). That knows nothing of the ways
that are chosen later, of weights laid out for them, of kernels and of low precision. So each attempt that was tuned
is run once more on a few mutants, as it will be run (`descend`). Where these are wrong, and a plainer plan is right,
the next lower rung of `RUNGS` is taken, with a warning. The attempt that it makes is tried from the top again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from yuzu._engine.kernels.precision import products
from yuzu._engine.kernels.triton import KERNEL_WAYS
from yuzu._engine.plan.plan import Plan, make_plan
from yuzu._engine.run.run import Run
from yuzu._engine.tune.subject import RunsNaively, Subject, warn_naive_model
from yuzu._engine.tune.verify import Verdict, compare, error_of_products
from yuzu.errors import warn_user

# The relative errors of differences above which a plainer plan is run for comparison.
# Low precision: its rounding gives 0.01, a broken kernel 1 and more.
MOST_LOW_PRECISION_ERROR = 0.5
# Triton kernels: rounding gives a hundredth of each; or as much for small differences of large values, but then
# without kernels, too.
MOST_KERNEL_ERROR = {"highest": 1e-3, "high": 5e-2, "medium": 0.2}
# The chosen ways: some round a few times as much as others, which is a large part of a small difference.
MOST_WAYS_ERROR = {"highest": 5e-2, "high": 5e-2, "medium": 0.2}
FAR_LESS = 0.3  # the part of an error below which the plainer plan is right
DISAGREES = "the captured graph does not agree with the model"
WRONG_HERE = "its differences are wrong on this machine, by whichever ways they are carried"


@dataclass(frozen=True, eq=False)
class Attempt:
    """A tuned plan, put to use; ``first_ways`` if each of its layers runs by the first of its ways."""

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
        """The relative error of a few mutants' differences."""
        return error_of_products(run, self.subject.X.to(self.subject.device), self.verdict)

    def chosen(self, attempt: Attempt, plan: Plan) -> Attempt:
        """An attempt with another plan, whose ways are chosen anew."""
        with products(plan.precision, self.subject.device):
            return Attempt(self.choose(attempt.run.of_plan(plan)))

    def off(self, attempt: Attempt, most: float, precision: str, once: bool = False) -> str:
        """How far off an attempt is, in words, if that is more than ``most`` and far more than in a ``precision`` by
        the first ways without kernels (run as by verification if ``once``); else nothing.
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


# ---- how far off an attempt is


def _with_kernels(trial: Trial, attempt: Attempt) -> str:
    plan = attempt.plan
    if not plan.kernels or not any(choice.way in KERNEL_WAYS for choice in plan.choices):
        return ""
    return trial.off(attempt, MOST_KERNEL_ERROR[plan.precision], plan.precision)


def _in_low_precision(trial: Trial, attempt: Attempt) -> str:
    return trial.off(attempt, MOST_LOW_PRECISION_ERROR, "highest") if attempt.plan.precision == "medium" else ""


def _as_run(trial: Trial, attempt: Attempt) -> str:
    plan = attempt.plan
    if plan.sensing is not None:  # which approximates
        return ""
    kind = plan.precision if trial.subject.X.element_size() >= 4 else "medium"
    return trial.off(attempt, MOST_WAYS_ERROR[kind], plan.precision, once=True)


# ---- the next lower attempt; None where a rung has none to offer


def _without_kernels(trial: Trial, attempt: Attempt, off: str) -> Attempt:
    warn_user(
        f"Layers run one by one, and pools by phases, on this machine, and take longer: with kernels the differences "
        f"of a few mutants are {off}"
    )
    return trial.chosen(attempt, attempt.plan.without_kernels())


def _in_full_precision(trial: Trial, attempt: Attempt, off: str) -> Attempt:
    warn_user(
        f"precision='medium' is as 'highest' for this model on this machine: with bfloat16 products the differences of "
        f"a few mutants are {off}"
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
    why = f"its handler disagreed with naive ISM as it is run here{way}: differences are {off}"
    return trial.chosen(attempt, plan.without({rule.node.index: why}))


def _by_first_ways(trial: Trial, attempt: Attempt, off: str) -> Attempt | None:
    if attempt.first_ways:
        return None
    warn_user(
        f"Each layer runs in the first of its ways, and may take longer: by those that are fastest here the "
        f"differences of a few mutants are {off}"
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
        How far off an attempt is, in words; empty where it is right.
    below: callable
        Makes the attempt to fall back to, and warns; None where there is none.
    """

    off: Callable[[Trial, Attempt], str]
    below: Callable[[Trial, Attempt, str], Attempt | None]


RUNGS = (
    Rung(_with_kernels, _without_kernels),
    Rung(_in_low_precision, _in_full_precision),
    Rung(_as_run, _one_layer_naively),  # the reason is in the summary and in the warning of naive layers
    Rung(_as_run, _by_first_ways),  # where no single layer is to blame
    Rung(_as_run, _naively),
)


def descend(trial: Trial, attempt: Attempt) -> Attempt:
    """The first attempt that is right, from one as it was chosen downwards.

    Raises
    ------
    RunsNaively
        If none is.
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
    """The plan, with those operations run naively whose handlers give something else than the model in float64; and the
    verdict on it.

    Raises
    ------
    RunsNaively
        If the graph itself gives something else.
    """
    while True:
        verdict = compare(subject.model, plan, subject.X, subject.args, subject.device, keep=True)
        bad, why = verdict.node, verdict.why
        if bad is None:
            return plan, verdict
        if bad < 0 or plan.rules[bad] is None:  # the model itself has been run on these mutants
            reason = ": ".join(filter(None, (DISAGREES, why)))
            warn_naive_model(subject.model, reason)
            raise RunsNaively(reason, disagrees=True)
        plan = make_plan(plan.graph, plan.precision, {**plan.naive, bad: why})
