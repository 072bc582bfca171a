"""Exact in-silico saturation mutagenesis that carries only what each mutation changes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, overload

import numpy as np
import torch
from torch.utils import _pytree as pytree

from yuzu._engine.arrays import Array, Device
from yuzu._engine.capture.model_copy import model_dtype
from yuzu._engine.capture.outputs import Recipe
from yuzu._engine.edits import Group, Mutations, batches, letters_of
from yuzu._engine.freed_memory import bounded, give_back, keep_freed_memory
from yuzu._engine.graph import Graph
from yuzu._engine.kernels.precision import products
from yuzu._engine.layout import Layout
from yuzu._engine.plan.plan import Plan
from yuzu._engine.progress import Bar
from yuzu._engine.request import (
    check_args,
    check_count,
    check_device,
    check_model,
    check_output,
    check_sequences,
    to_user,
)
from yuzu._engine.run.bound import Bound
from yuzu._engine.run.run import Reference, Run
from yuzu._engine.run.scores import Results, Scores, Selection, result_dtype, scored
from yuzu._engine.store.kept import Part, inputs_of, obtain_each
from yuzu._engine.store.precomputation import Precomputation
from yuzu.errors import YuzuError
from yuzu.naive_ism import score_naively


@overload
def yuzu_ism(
    model: torch.nn.Module,
    X_0: Array,
    precomputation: Precomputation | None = None,
    *,
    args: tuple[Any, ...] | None = None,
    output: Literal["l2"] = "l2",
    target: Any = None,
    func: Callable[[Any], Any] | None = None,
    start: int | None = 0,
    end: int | None = None,
    ranges: Any = None,
    replace_with: Any = None,
    batch_size: int | None = None,
    device: Device = None,
    return_timings: Literal[False] = False,
    verbose: bool = False,
) -> Array: ...


@overload
def yuzu_ism(
    model: torch.nn.Module,
    X_0: Array,
    precomputation: Precomputation | None = None,
    *,
    args: tuple[Any, ...] | None = None,
    output: str,
    target: Any = None,
    func: Callable[[Any], Any] | None = None,
    start: int | None = 0,
    end: int | None = None,
    ranges: Any = None,
    replace_with: Any = None,
    batch_size: int | None = None,
    device: Device = None,
    return_timings: Literal[False] = False,
    verbose: bool = False,
) -> Array | Any: ...


@overload
def yuzu_ism(
    model: torch.nn.Module,
    X_0: Array,
    precomputation: Precomputation | None = None,
    *,
    args: tuple[Any, ...] | None = None,
    output: str = "l2",
    target: Any = None,
    func: Callable[[Any], Any] | None = None,
    start: int | None = 0,
    end: int | None = None,
    ranges: Any = None,
    replace_with: Any = None,
    batch_size: int | None = None,
    device: Device = None,
    return_timings: Literal[True],
    verbose: bool = False,
) -> tuple[Array | Any, list[list[float]], list[list[dict[str, float] | None]]]: ...


def yuzu_ism(
    model: torch.nn.Module,
    X_0: Any,
    precomputation: Any = None,
    *,
    args: tuple[Any, ...] | None = None,
    output: str = "l2",
    target: Any = None,
    func: Callable[[Any], Any] | None = None,
    start: int | None = 0,
    end: int | None = None,
    ranges: Any = None,
    replace_with: Any = None,
    batch_size: int | None = None,
    device: Any = None,
    return_timings: bool = False,
    verbose: bool = False,
) -> Any:
    """How the model's output changes when each character is changed to each other: exact, and many times
    faster than running every mutant.

    Parameters
    ----------
    model: torch.nn.Module
        Any model that reads ``(n, C, L)`` first. It runs with evaluation semantics and is not changed in any
        way.
    X_0: numpy.ndarray or torch.Tensor, shape=(n, C, L)
        One-hot sequences, cast to the model's dtype. A column that is all zero (an ``N``), or not one-hot,
        has no reference character: all ``C`` substitutions are made there.
    precomputation: Precomputation or None
        From `precompute`. None makes one and keeps it for the next call with the same model and length.
    args: tuple of tensors or None
        The model's other inputs, each with ``n`` rows and without NaN; infinity, as masks hold it, is fine. Floating
        point ones are cast to the model's dtype, but for a precomputation that was made with others.
    output: str
        ``"l2"`` (default): ``(n, C, L')``, the Euclidean norm of ``y(mutant) - y(reference)`` over all model
        outputs; 0 at the reference character. ``"delta"``: ``(n, C, L', O...)``, signed. ``"prediction"``:
        ``(n, C, L', O...)``, ``y(mutant)``, and ``y(reference)`` at the reference character. A model that
        returns a tuple, list or dict of tensors gives the same container for the last two; with ``"l2"`` the
        norm runs over all of them together.
    target: int, slice, list of ints or None
        Which of the output's first axis after the batch. An int drops the axis.
    func: callable or None
        Applied to the model's whole output for a batch, of the reference and the mutants alike, before
        ``target`` and the score.
    start, end: int or None
        Positions to edit, by Python's slice rules; ``L' = end - start``. Default all.
    ranges: list of (int, int) or None
        Instead of substitutions, write ``replace_with`` over each of these ranges, all of one width. The
        result is ``(n, R)`` for ``"l2"`` and ``(n, R, O...)`` otherwise.
    replace_with: array of shape (C,) or (C, width), str, or None
        What to write; zeros if None. A string is over ``ACGT`` or the 20 amino acids; its ``N`` (``X`` in a protein)
        writes zeros. Without ``ranges`` it is written at every single position from ``start``
        to ``end``.
    batch_size: int or None
        Sequences carried at once, at most: fewer where memory is short. None picks it. Results with another one agree
        to rounding, not bit by bit.
    device: str, torch.device or None
        None means CUDA when available, else the CPU.
    return_timings: bool
        Also return, for each batch of sequences, a list with the seconds of each layer, and a list with None for
        each, kept for the published signature.
    verbose: bool
        Show a progress bar.

    Returns
    -------
    numpy.ndarray or torch.Tensor, or a container of them
        float32, or float64 for a float64 model; an array of the kind that ``X_0`` is, on the CPU. With
        ``return_timings`` a tuple of the scores, ``layer_timings`` and ``within_layer_timings``.

    Raises
    ------
    ValueError
        For bad input, before any work: not three axes, wrong ``C`` or ``L``, NaN (in ``args``, too) or infinity, an
        empty batch or selection, ranges of unequal width or outside the sequence, a target that does not exist, outputs
        that are complex (select what to score of them with ``func``).
    PrecomputationError
        If ``precomputation`` was made for something else.

    Notes
    -----
    What it may use beyond the model and the result is the ``max_memory`` of `precompute`. On a CPU with glibc the first
    call, of `precompute` or of any function that scores, raises glibc's memory thresholds for the whole process and
    for good: freed blocks of less than 32 MiB are kept for the next ones, and go back to the system where the process
    has grown by nearly ``max_memory``. To give back at once what is kept, call ``ctypes.CDLL(None).malloc_trim(0)``.
    """
    timings: tuple[list[Any], list[Any]] | None = ([], []) if return_timings else None
    found = ism_of_states(
        model,
        X_0,
        precomputation,
        states=[args],
        output=output,
        target=target,
        func=func,
        start=start,
        end=end,
        ranges=ranges,
        replace_with=replace_with,
        batch_size=batch_size,
        device=device,
        verbose=verbose,
        timings=timings,
        stacked=False,
    )
    return found if timings is None else (found, *timings)


def ism_of_states(
    model: torch.nn.Module,
    X_0: Any,
    precomputation: Any = None,
    *,
    states: Sequence[tuple[Any, ...] | None],
    output: str,
    target: Any = None,
    func: Callable[[Any], Any] | None = None,
    start: int | None = 0,
    end: int | None = None,
    ranges: Any = None,
    replace_with: Any = None,
    batch_size: int | None = None,
    device: Any = None,
    verbose: bool = False,
    timings: tuple[list[Any], list[Any]] | None = None,
    stacked: bool = True,
) -> Any:
    """`yuzu_ism` with each of several ``args`` for the same sequences, ``(n, states, ...)``; not ``stacked``, for one
    of them, ``(n, ...)``. What does not depend on them is computed once.
    """
    check_model(model)
    dtype = model_dtype(model)
    as_numpy = isinstance(X_0, np.ndarray)
    X = check_sequences(X_0, dtype)
    extras = [check_args(args, len(X), dtype, inputs_of(precomputation)) for args in states]
    check_output(output)
    mutations = Mutations(X.shape[1], X.shape[2], start, end, ranges, replace_with)
    selection = Selection(func, target)
    if batch_size is not None:
        batch_size = check_count("batch_size", batch_size)
    found = check_device(device)
    parts = obtain_each(model, precomputation, X, extras, found, selection)
    asked = (mutations, selection, output, batch_size, found, verbose, as_numpy)
    if len(parts) == 1:
        return run_planned(parts[0].bound, X, extras, *asked, timings, stacked)
    results = []
    for part in parts:
        some = [tuple(a[part.rows] for a in extras[state]) for state in part.states]
        results.append(run_planned(part.bound, X[part.rows], some, *asked, timings, stacked))
    return put_together(parts, results, len(X), len(extras) if stacked else None)


def put_together(parts: Sequence[Part], results: Sequence[Any], n: int, states: int | None) -> Any:
    """The results of some sequences with some states each, as if they had been computed together; ``(n, states, ...)``,
    or ``(n, ...)`` where ``states`` is None.

    Raises
    ------
    YuzuError
        If the model returns other outputs for some of them.
    """
    flat = [pytree.tree_flatten(result) for result in results]
    leaves, spec = list(flat[0][0]), flat[0][1]
    shape = (n,) if states is None else (n, states)

    def kinds(leaves: list[Any]) -> list[Any]:
        return [v.shape[len(shape) :] if isinstance(v, torch.Tensor | np.ndarray) else v for v in leaves]

    if any(other != spec or kinds(some) != kinds(leaves) for some, other in flat[1:]):
        raise YuzuError("args must be such that the model returns outputs of the same shapes for all rows, it does not")
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, torch.Tensor | np.ndarray):
            continue
        make = torch.empty if isinstance(leaf, torch.Tensor) else np.empty
        whole = leaves[i] = make((*shape, *leaf.shape[len(shape) :]), dtype=leaf.dtype)
        for part, (some, _) in zip(parts, flat, strict=True):
            whole[np.ix_(part.rows, part.states) if states is not None else part.rows] = some[i]
    return pytree.tree_unflatten(leaves, spec)


@torch.no_grad()
def run_planned(
    bound: Bound,
    X: torch.Tensor,
    states: Sequence[tuple[torch.Tensor, ...]],
    mutations: Mutations,
    selection: Selection,
    output: str,
    batch_size: int | None,
    device: torch.device,
    verbose: bool,
    as_numpy: bool,
    timings: tuple[list[Any], list[Any]] | None = None,
    stacked: bool = True,
) -> Any:
    """`ism_of_states` on checked input with a precomputation bound to a model."""
    if selection.target is not None and selection.func is None:
        narrowed = bound.narrowed(selection.target)
        if narrowed is not None:
            one = isinstance(selection.target, int | np.integer)
            bound, selection = narrowed, Selection(None, 0 if one else None)
    results = Results(len(X), len(states), mutations.result_shape, result_dtype(X.dtype))
    scores = [Scores(output, results, state) for state in range(len(states))]
    with bounded(bound.settings.max_memory if device.type == "cpu" else None):
        if bound.plan is None:
            twin = bound.twin()
            size = len(X) if timings is None else batch_size or len(X)  # its batches are of mutants
            for first in range(0, len(X), size):
                begin, rows = time.perf_counter(), range(first, min(first + size, len(X)))
                for extra, score in zip(states, scores, strict=True):
                    score_naively(twin, X, extra, mutations, selection, score, bound.naive_batch, device, verbose, rows)
                if timings is not None:
                    timings[0].append([time.perf_counter() - begin])
                    timings[1].append([None])
        else:
            _score_planned(bound, X, states, mutations, selection, scores, batch_size, device, verbose, timings)
    return results.packed(selection, output, lambda r: to_user(r if stacked else r[:, 0], as_numpy))


def _score_planned(
    bound: Bound,
    X: torch.Tensor,
    states: Sequence[tuple[torch.Tensor, ...]],
    mutations: Mutations,
    selection: Selection,
    scores: list[Scores],
    batch_size: int | None,
    device: torch.device,
    verbose: bool,
    timings: tuple[list[Any], list[Any]] | None,
) -> None:
    """Fill the scores of every state, some sequences with some states at a time."""
    bound = bound.fitting(mutations)
    assert bound.plan is not None
    keep_freed_memory()
    beside = result_bytes(bound.plan.graph, mutations, scores[0].output) if device.type != "cpu" else 0
    laid_out = bytes_laid_out(bound.plan, mutations, selection, scores[0].output, X.element_size())
    most = bound.most_sequences(mutations, beside)
    size = min(batch_size or bound.sequences_at_once(mutations, beside, laid_out), most, len(X))
    together = min(bound.states_at_once(mutations, size, beside), len(states))
    sites_at_once = bound.sites_at_once(mutations, size * together, laid_out)
    job = _Job(bound, mutations, selection, scores[0].output, device, sites_at_once, timings)
    with (
        products(bound.plan.precision, device),
        Bar(len(X) * len(states), verbose, "in-silico mutagenesis") as bar,
    ):
        for first in range(0, len(states), together):
            some = slice(first, first + together)
            for row in range(0, len(X), size):
                x = X[row : row + size]
                extras = [tuple(a[row : row + size].to(device) for a in extra) for extra in states[some]]
                job.score(x, extras, scores[some], row, bar)
                bar.update(len(x) * len(extras))


def result_bytes(graph: Graph, mutations: Mutations, output: str) -> int:
    """Bytes of a sequence's results, of all outputs; ``func`` may make them smaller."""
    numbers = math.prod(mutations.result_shape)
    if output != "l2":
        shapes = [graph.nodes[o].shape or () for o in graph.output_nodes]
        numbers *= sum(math.prod(s for s in shape[1:] if s is not None) for shape in shapes)
    return 8 * numbers


def bytes_laid_out(plan: Plan, mutations: Mutations, selection: Selection, output: str, itemsize: int) -> int:
    """Bytes of a site's mutants in which outputs are laid out whole, as `outputs_to_score` does for all but norms: the
    differences, the sum with the reference, and the copy that ``func`` gets or the result's dtype.
    """
    nodes = [plan.graph.nodes[o] for o in plan.graph.output_nodes]
    if output == "l2" and selection.func is None:
        nodes = [n for n in nodes if plan.layouts[n.index].kind == "windows"]
        nodes = [n for n in nodes if not _on_windows(plan.layouts[n.index], selection)]
    numbers = sum(math.prod(s for s in (n.shape or (0,))[1:] if s is not None) for n in nodes if n.mutated)
    return 3 * numbers * mutations.edits_of_a_site * itemsize


def _on_windows(layout: Layout, selection: Selection) -> bool:
    """Whether what is scored can be picked from windows: their axes are the output's, with positions first."""
    return selection.target is None or (layout.axis > 1 and not layout.composite)


class _Job:
    """What is asked for, and a plan put to use for it."""

    def __init__(
        self,
        bound: Bound,
        mutations: Mutations,
        selection: Selection,
        output: str,
        device: torch.device,
        sites_at_once: int,
        timings: tuple[list[Any], list[Any]] | None,
    ) -> None:
        assert bound.plan is not None
        self.bound, self.mutations, self.selection, self.output = bound, mutations, selection, output
        self.sites_at_once, self.timings = sites_at_once, timings
        self.runs: dict[tuple[int, ...], Run] = {(): Run(bound.plan, bound.weights(), bound.derived, device)}

    def score(
        self, X: torch.Tensor, extras: list[tuple[torch.Tensor, ...]], scores: list[Scores], first: int, bar: Bar
    ) -> None:
        """Score some sequences, the ``first``-th and following, with each of ``extras`` after them. The bar is shown
        once it is known that they can be scored.
        """
        device = self.runs[()].device
        x = X.to(device)
        letters_there = letters_of(x)
        letters = letters_there.cpu()
        run, references = self.references(x, extras)
        plan = run.plan
        if self.timings is not None:
            run.seconds = [0.0] * len(plan.graph.nodes)
        leaves = []
        for score, reference in zip(scores, references, strict=True):
            leaves.append(self.leaves(plan.graph, reference))
            self.selection.check(leaves[-1], len(X))
            score.begin(first, leaves[-1])
        bar.show()
        reachable, regular = plan.reach(self.mutations.positions, self.mutations.width)
        together = None if plan.senses else regular  # probes hold the stretch from the first site to the last
        for group in self.mutations.groups(letters, reachable):
            parts = batches(group, self.sites_at_once, together, across=device.type != "cpu")
            self.write(parts, run, references, leaves, scores, x, letters_there)
        for extra, score in zip(extras, scores, strict=True):
            places = score.to_run_naively()
            if places is not None:
                naively, rows = self.naively(run), self.bound.mutants_at_once(self.mutations)
                reference = naively.set_reference(x, extra)  # whose rounding is that of its mutants
                leaf = self.leaves(plan.graph, reference)
                for group in self.mutations.groups(letters):
                    parts = batches(group.part(places[group.sequence, group.slot]), max(rows // group.edits, 1))
                    self.write(parts, naively, [reference], [leaf], [score], x, letters_there)
            score.end()
        if self.timings is not None and run.seconds is not None:
            kept = [run.seconds[n.index] for n in plan.graph.nodes if n.mutated and n.kind == "call"]
            self.timings[0].append(kept)
            self.timings[1].append([None] * len(kept))

    def leaves(self, graph: Graph, reference: Reference) -> list[torch.Tensor]:
        """What is scored of the outputs of the reference sequences."""
        outputs = [reference.values[o] if isinstance(o, int) else o[0] for o in graph.outputs]
        return self.selection.leaves(graph.rebuild(outputs))

    def write(
        self,
        parts: Iterable[Group],
        run: Run,
        references: Sequence[Reference],
        leaves: Sequence[list[torch.Tensor]],
        scores: Sequence[Scores],
        x: torch.Tensor,
        letters: torch.Tensor,
    ) -> None:
        """Run chunk after chunk, and write what is found for each reference."""
        for part in parts:
            sites, written = self.mutations.sites(x, letters, part)
            give_back()
            for i, changes in enumerate(run.chunk_for_each(sites, references)):
                found = outputs_to_score(run, changes, self.selection, leaves[i], self.output)
                scores[i].write(part.sequence, part.slot, written, found)
                if run.doubtful is not None:
                    scores[i].doubt(part.sequence, part.slot, run.doubtful)

    def naively(self, run: Run) -> Run:
        """What runs every operation on whole mutants. Where a mutant's values are infinite and the reference's are not,
        products of differences may spoil more than naive ISM does: the zeros in them become NaN. Where all terms of a
        mutant's value nearly vanish, the reference's rounding is much beside it.
        """
        nodes = [n.index for n in run.plan.graph.nodes if n.kind == "call" and n.mutated]
        reason = "its value is infinite, or nearly vanishes, in some mutants"
        naively = run.of_plan(self.bound.plan_without(nodes, reason))
        naively.seconds = run.seconds
        return naively

    def references(self, x: torch.Tensor, extras: list[tuple[torch.Tensor, ...]]) -> tuple[Run, list[Reference]]:
        """The reference with each of ``extras``; and what runs the mutants: where a reference is infinite (a mask
        before a softmax) there is no difference, and values are carried.
        """
        run = self.runs[()]
        found = [run.set_reference(x, extras[0])]
        unfit = set(run.unfit_for_differences())
        for extra in extras[1:]:
            found.append(run.set_reference(x, extra, like=found[0]))
            unfit.update(run.unfit_for_differences(among=run.plan.sharing.values))
        infinite = tuple(sorted(unfit))
        if infinite:
            if infinite not in self.runs:
                self.runs[infinite] = run.of_plan(
                    self.bound.plan_without(infinite, "its reference value is infinite or as large as a mask")
                )
            run = self.runs[infinite]
        return run, found


def outputs_to_score(
    run: Run, changes: list[Any], selection: Selection, reference: list[torch.Tensor], output: str
) -> list[torch.Tensor | None]:
    """The scored differences ``(S, A, O...)`` of a chunk, or windows of them where only their norm is wanted, or the
    mutants' values for ``"prediction"``.
    """
    graph = run.plan.graph
    grid = run.sites.difference.shape[:2]
    if selection.func is None and not isinstance(graph.rebuild, Recipe):  # of an object only ``func`` picks tensors
        tensors = [
            (o, c)
            for o, c in zip(graph.outputs, changes, strict=True)
            if isinstance(o, int) and graph.nodes[o].shape is not None
        ]
        found: list[torch.Tensor | None] = []
        for o, change in tensors:
            layout = run.plan.layouts[o]
            if change is None:
                found.append(None)
            elif output == "l2" and change.window and not change.mutant and _on_windows(layout, selection):
                found.append(selection.pick(change.tensor, 3))  # behind sites, edits and positions
            else:
                base = selection.pick(run.value(o), 1)
                if change.mutant:
                    mutants = selection.pick(run.mutants(o, change).unflatten(0, grid), 2)
                    found.append(scored(mutants, run.of_sites(base), output))
                else:
                    whole = selection.pick(run.whole(o, change), 2)
                    if output == "prediction":
                        dtype = result_dtype(base.dtype)
                        whole = whole.to(dtype) + run.of_sites(base).to(dtype)
                    found.append(whole)
        return found
    values = []
    for o, change in zip(graph.outputs, changes, strict=True):
        if not isinstance(o, int):
            values.append(o[0])
        elif graph.nodes[o].shape is None:
            values.append(run.value(o) if not graph.nodes[o].batched else run.whole_value(o))
        elif run.plan.layouts[o].kind == "values" and change is not None:
            values.append(change.tensor)
        else:
            values.append(run.whole_value(o))
    leaves = selection.leaves(graph.rebuild(values))
    selection.check(leaves, grid[0] * grid[1])
    return [scored(leaf.unflatten(0, grid), run.of_sites(r), output) for leaf, r in zip(leaves, reference, strict=True)]
