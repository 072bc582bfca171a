"""Compares the engine with the model itself, in float64, on a few mutants, and finds the layer to blame. Also measures
the error of low-precision products.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from yuzu._engine.capture.double import InDouble, in_double, names_dtypes
from yuzu._engine.capture.model_copy import evaluation_copy
from yuzu._engine.capture.outputs import tensors_in
from yuzu._engine.capture.rows import on_rows
from yuzu._engine.derived import Derived
from yuzu._engine.edits import Sites, mutants_of, substitutions_at
from yuzu._engine.freed_memory import give_back
from yuzu._engine.gate import running
from yuzu._engine.graph import Weights, evaluate
from yuzu._engine.plan.plan import Plan
from yuzu._engine.run.run import Run

# relative to the largest value: rounding errors are far smaller, those of a wrong window far larger
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 0.1}
RAISED = "its handler raised"


MUCH = 64 << 20  # bytes of one operation on two mutants above which mutants run one by one


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison.

    Attributes
    ----------
    node: int or None
        The first node whose change disagrees with running the graph on the mutants; -1 if the graph disagrees with the
        model; None if all is right.
    why: str
        The reason why it is wrong.
    differences: list of torch.Tensor, each of shape=(S * A, O...)
        The model's own differences of every output that is a tensor, for `few_sites`, if all is right and they are to
        be kept.
    places: tuple of int
        The positions of those sites.
    """

    node: int | None
    why: str = ""
    differences: list[torch.Tensor] = field(default_factory=list)
    places: tuple[int, ...] = ()


def compare(
    model: torch.nn.Module,
    plan: Plan,
    X: torch.Tensor,
    args: Sequence[torch.Tensor],
    device: torch.device,
    keep: bool = False,
    as_run: bool = False,
) -> Verdict:
    """Compare the plan with the model, with full products.

    Both run in float64 if a copy of the model does so as a whole, and its graph agrees with it. Otherwise both run in
    their own dtypes. Float64 hides clashes in a graph of several dtypes, so its handlers also run in their own dtypes.

    Parameters
    ----------
    model: torch.nn.Module
    plan: Plan
    X: torch.Tensor, shape=(1, C, L)
    args: sequence of torch.Tensor
    device: torch.device
    keep: bool
        Keep the differences in the verdict, to compare the chosen products with them.
    as_run: bool
        Run exactly as later chunks will. Otherwise nothing large is laid out for these few mutants.
    """
    plan = replace(plan, precision="highest")
    try:
        verdict = _in_double(model, plan, X, args, device, keep, as_run)
        several = len(_dtypes(plan)) > 1
        if verdict is not None and (verdict.node is not None or not several):
            return verdict
        model_copy = evaluation_copy(model, device)
        own = _Terms(model_copy, model_copy, X.to(device), [a.to(device) for a in args], _tolerance(plan))
        if verdict is None:
            return _compare(plan, own, device, keep, as_run)
        clash = _run_few(plan, own, device, as_run)
        return clash if isinstance(clash, Verdict) else verdict
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of the graph itself: the model runs naively
        return Verdict(-1, f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class _Terms:
    """The terms of a comparison.

    Attributes
    ----------
    model_copy: torch.nn.Module
        An evaluation copy of the model, for its weights.
    runs: callable
        Runs it on a batch.
    x, rest: torch.Tensor, list of torch.Tensor
        The sequence, and the inputs after it.
    tolerance: float
        The largest difference allowed, relative to the largest value.
    wide: bool
        Its graph names dtypes, and has to be kept in float64.
    """

    model_copy: torch.nn.Module
    runs: Callable[..., Any]
    x: torch.Tensor
    rest: list[torch.Tensor]
    tolerance: float
    wide: bool = False

    def around(self) -> contextlib.AbstractContextManager[Any]:
        return InDouble() if self.wide else contextlib.nullcontext()


def _dtypes(plan: Plan) -> set[torch.dtype]:
    return {n.dtype for n in plan.graph.nodes if n.dtype in TOLERANCE}


def _tolerance(plan: Plan) -> float:
    return max((TOLERANCE[dtype] for dtype in _dtypes(plan)), default=TOLERANCE[torch.float32])


def _in_double(
    model: torch.nn.Module,
    plan: Plan,
    X: torch.Tensor,
    args: Sequence[torch.Tensor],
    device: torch.device,
    keep: bool,
    as_run: bool,
) -> Verdict | None:
    """Compare in float64. Returns None if that tells nothing: the copy does not run, or it disagrees with its graph."""
    try:
        model_copy = evaluation_copy(model, device, torch.float64)
        x = X.to(device, torch.float64)
        rest = [a.to(device, torch.float64 if a.is_floating_point() else None) for a in args]
    except Exception:  # too little memory, or an attribute that refuses to be copied
        return None
    wide = names_dtypes(plan.graph, X.dtype)
    for runs in (model_copy, in_double(model_copy)):
        try:
            terms = _Terms(model_copy, runs, x, rest, TOLERANCE[torch.float64], wide)
            verdict = _compare(plan, terms, device, keep, as_run)
        except Exception:  # a model that insists on a dtype may raise anything
            continue
        if verdict.node is None or verdict.node >= 0:
            return None if verdict.why.startswith(RAISED) else verdict
    return None


def _run_few(plan: Plan, terms: _Terms, device: torch.device, as_run: bool) -> tuple[Run, Sites, list[Any]] | Verdict:
    """Compute the reference and the changes of a few mutants; or return a verdict, if a handler raises an error."""
    run = Run(plan, Weights(terms.model_copy, device), Derived(fixed=True), device)
    run.once = not as_run
    sites = few_sites(terms.x, few_places(plan, terms.x.shape[2]))
    with terms.around():
        run.set_reference(terms.x, terms.rest)
        run = _carrying_values(run)
        try:
            return run, sites, outputs_of(run, sites)
        except Exception as error:  # a handler's own error: its layer runs naively, and the warning says so
            if run.at is None or run.plan.rules[run.at.index] is None:
                raise
            return Verdict(run.at.index, f"{RAISED} {type(error).__name__}: {error}")


def _compare(plan: Plan, terms: _Terms, device: torch.device, keep: bool, as_run: bool) -> Verdict:
    places = few_places(plan, terms.x.shape[2])
    mutants = mutants_of(terms.x, few_sites(terms.x, places))
    rows = [a.expand(len(mutants), *a.shape[1:]) for a in terms.rest]
    truth = _leaves_by_rows(terms.runs, mutants, rows, 1 if 2 * bytes_of_a_mutant(plan) > MUCH else 2)
    found = _run_few(plan, terms, device, as_run)
    if isinstance(found, Verdict):
        return found
    run, sites, values = found
    outputs = _tensor_outputs(run.plan)
    if len(truth) != len(outputs):
        return Verdict(-1)
    with terms.around():
        if all(_agree(value, t, terms.tolerance) for value, t in zip(values, truth, strict=True)):
            pairs = zip(outputs, truth, strict=True) if keep else ()
            return Verdict(None, "", [_difference(t, run.value(o)) for o, t in pairs], places)
        wrong = _first_wrong(run, sites, mutants, rows, truth, outputs, terms.tolerance)
    return Verdict(wrong, "its handler disagreed with naive ISM" if wrong >= 0 else "")


def error_of_products(run: Run, X: torch.Tensor, verdict: Verdict) -> float:
    """The relative L2 error of the differences of all outputs together for `few_sites`, in the run's own precision and
    by its own ways; 0 if nothing changes.
    """
    pairs = [_wrong_and_whole(found, t) for found, t in _found_and_truth(run, X, verdict)]
    error, size = (float(torch.linalg.vector_norm(torch.stack(norms))) for norms in zip(*pairs, strict=True))
    return error / size if size else 0.0


def errors_of_outputs(run: Run, X: torch.Tensor, verdict: Verdict) -> list[float]:
    """The relative L2 error of the differences of each output by itself; 0 for one that does not change."""
    return [_error(found, truth) for found, truth in _found_and_truth(run, X, verdict)]


def naive_errors(
    model_copy: torch.nn.Module, X: torch.Tensor, args: Sequence[torch.Tensor], verdict: Verdict
) -> list[float]:
    """The same for naive ISM with an evaluation copy of the model, in its own dtype."""
    mutants = mutants_of(X, few_sites(X, verdict.places))
    rows = [a.expand(len(mutants), *a.shape[1:]) for a in args]
    values = _leaves_by_rows(model_copy, mutants, rows, 2)
    references = _leaves_by_rows(model_copy, X, list(args), 1)
    pairs = zip(values, references, verdict.differences, strict=True)
    return [_error(_difference(value, reference), truth) for value, reference, truth in pairs]


def _found_and_truth(run: Run, X: torch.Tensor, verdict: Verdict) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The differences of every output for `few_sites`, by a run and in truth."""
    run = _carrying_values(run)
    pairs = []
    for (o, change), truth in zip(
        _tensors(run.plan, run.chunk(few_sites(X, verdict.places))), verdict.differences, strict=True
    ):
        if change is None:
            found = torch.zeros_like(truth)
        elif change.mutant:
            found = _difference(run.whole_value(o), run.value(o))
        else:
            found = run.whole(o, change).flatten(0, 1).double()
        pairs.append((found, truth))
    return pairs


def _wrong_and_whole(found: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The norms of the error and of the truth, where that is finite."""
    known = torch.isfinite(truth)
    wrong = torch.where(known, found - truth, 0).nan_to_num(nan=torch.inf)
    return torch.linalg.vector_norm(wrong), torch.linalg.vector_norm(torch.where(known, truth, 0))


def _error(found: torch.Tensor, truth: torch.Tensor) -> float:
    error, size = (float(norm) for norm in _wrong_and_whole(found, truth))
    return error / size if size else 0.0


def _difference(mutants: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return mutants.double() - reference.double()


def _carrying_values(run: Run) -> Run:
    """The run itself, or one that carries values in place of differences where the reference is infinite."""
    infinite = run.unfit_for_differences()
    return run.of_plan(run.plan.without(dict.fromkeys(infinite, ""))) if infinite else run


def _tensors(plan: Plan, changes: Sequence[Any]) -> list[tuple[int, Any]]:
    """The nodes of the outputs that are tensors, and their changes."""
    outputs = zip(plan.graph.outputs, changes, strict=True)
    return [(o, c) for o, c in outputs if isinstance(o, int) and plan.graph.nodes[o].shape is not None]


def _tensor_outputs(plan: Plan) -> list[int]:
    return [o for o in plan.graph.outputs if isinstance(o, int) and plan.graph.nodes[o].shape is not None]


def bytes_of_a_mutant(plan: Plan) -> int:
    """Estimate the most bytes that one mutant takes in float64. For convolutions PyTorch lays out the inputs of all
    taps; otherwise it is four times the largest value.
    """
    numbers = [0]
    for node, rule in zip(plan.graph.nodes, plan.rules, strict=True):
        numbers.append(0 if rule is None else rule.unfolded())
        if node.batched and node.shape is not None:
            numbers.append(4 * math.prod(s for s in node.shape if s is not None and s > 0))
    return torch.float64.itemsize * max(numbers)


def outputs_of(run: Run, sites: Sites) -> list[torch.Tensor]:
    """The values of the outputs that are tensors, with one row for each mutant. Sites run one at a time if all together
    take too much memory.
    """
    count, edits = sites.difference.shape[:2]
    at_once = count if count * edits * bytes_of_a_mutant(run.plan) <= 4 * MUCH else 1
    parts = []
    for i in range(0, count, at_once):
        give_back()
        here = slice(i, i + at_once)
        run.chunk(sites.part(here))
        parts.append([run.whole_value(o) for o in _tensor_outputs(run.plan)])
    return [torch.cat(some) if some[0].dim() and at_once < count else some[0] for some in zip(*parts, strict=True)]


def _leaves_by_rows(
    runs: Callable[..., Any], X: torch.Tensor, args: list[torch.Tensor], at_once: int
) -> list[torch.Tensor]:
    """The model's output tensors for a batch, run ``at_once`` rows at a time."""
    parts = []
    for i in range(0, len(X), at_once):
        give_back()
        with running():
            output = on_rows(runs, X[i : i + at_once], *(a[i : i + at_once] for a in args))
        parts.append(tensors_in(output))
    return [torch.cat(pieces) if pieces[0].dim() else pieces[0] for pieces in zip(*parts, strict=True)]


def _agree(a: Any, b: Any, tolerance: float) -> bool:
    if not isinstance(b, torch.Tensor):
        return bool(a == b)
    if a.shape != b.shape:
        return False
    finite = torch.isfinite(b)
    if not torch.equal(torch.where(finite, 0, a).nan_to_num(nan=0.5), torch.where(finite, 0, b).nan_to_num(nan=0.5)):
        return False
    a, b = torch.where(finite, a, 0).double(), torch.where(finite, b, 0).double()
    scale = float(b.abs().max()) if b.numel() else 0.0
    return bool((a - b).abs().max() <= tolerance * max(scale, 1e-30)) if b.numel() else True


def _first_wrong(
    run: Run,
    sites: Sites,
    mutants: torch.Tensor,
    rows: list[torch.Tensor],
    truth: list[torch.Tensor],
    outputs: list[int],
    tolerance: float,
) -> int:
    """Run the graph itself on the mutants, and compare the engine's values with it node by node. Returns the first
    wrong node; -1 if the graph disagrees with the model, or no node is wrong.
    """
    graph = run.plan.graph
    values: list[Any] = []
    for node in graph.nodes:
        values.append(
            run.leaf(node, mutants, rows) if node.kind != "call" else evaluate(node, values.__getitem__, run.device)
        )
    if not all(_agree(values[o], t, tolerance) for o, t in zip(outputs, truth, strict=True)):
        return -1
    run.keep_all = True
    run.chunk(sites)
    for node in graph.nodes:
        rule = run.plan.rules[node.index]
        if (
            node.kind != "call"
            or not node.mutated
            or node.shape is None
            or rule is None
            or not run.plan.readers[node.index]
        ):
            continue
        if run.plan.layouts[node.index].kind == "windows":
            low, high = run.plan.needed[node.index]
            layout = run.plan.layouts[node.index]
            mine = layout.position_first(run.whole_value(node.index))[:, low:high]
            theirs = layout.position_first(values[node.index])[:, low:high]
        else:
            mine, theirs = run.whole_value(node.index), values[node.index]
        if not _agree(mine, theirs, tolerance):
            return node.index
    return -1


def few_places(plan: Plan, length: int) -> tuple[int, ...]:
    """Both ends and the middle of a sequence, and of the positions that reach an output according to the plan."""
    reached = plan.reached(length, 1)
    places = {0, length // 2, length - 1, *reached[[0, len(reached) // 2, -1]].tolist()}
    return tuple(sorted(places))


def few_sites(X: torch.Tensor, places: Sequence[int]) -> Sites:
    """Two substitutions (one, if there are two characters) at each of some places of one sequence ``(1, C, L)``."""
    c = X.shape[1]
    position = np.array(places)
    letter = X[0].argmax(0)[torch.from_numpy(position).to(X.device)]
    steps = torch.arange(1, min(c - 1, 2) + 1, device=X.device)
    return substitutions_at(position, (letter[:, None] + steps) % c, X)
