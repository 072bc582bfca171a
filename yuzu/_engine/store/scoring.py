"""Scores sequences with a precomputation in use: references, chunks of mutants, and those that then run naively."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from yuzu._engine.capture.outputs import Recipe
from yuzu._engine.edits import Group, Mutations, batches, letters_of
from yuzu._engine.freed_memory import bounded, give_back, keep_freed_memory
from yuzu._engine.graph import Graph
from yuzu._engine.kept import Kept
from yuzu._engine.kernels.precision import products
from yuzu._engine.layout import Layout
from yuzu._engine.plan.plan import Plan
from yuzu._engine.progress import Bar
from yuzu._engine.request import Args, Request, Selection
from yuzu._engine.run.naive import score_naively
from yuzu._engine.run.run import Reference, Run
from yuzu._engine.run.scores import Outputs, Results, Scores, result_dtype, scored
from yuzu._engine.store.in_use import InUse


@dataclass(frozen=True)
class Timings:
    """The seconds of each layer for each batch of sequences, and of each layer's parts, which are None."""

    layers: list[list[float]] = field(default_factory=list)
    within_layers: list[list[None]] = field(default_factory=list)

    def add(self, seconds: list[float]) -> None:
        """Note those of another batch."""
        self.layers.append(seconds)
        self.within_layers.append([None] * len(seconds))


@torch.no_grad()
def run_planned(used: InUse, request: Request, timings: Timings | None = None, stacked: bool = True) -> Any:
    """The results of a request ``(n, states, ...)``; not ``stacked``, of its one state, ``(n, ...)``."""
    selection, device = request.selection, request.device
    used = used if request.series else used.without_statistics()
    if selection.target is not None and selection.func is None:
        smaller = used.for_outputs(selection.target)
        if smaller is not None:
            one = isinstance(selection.target, int | np.integer)
            used, request = smaller, replace(request, selection=Selection(None, 0 if one else None))
    results, outputs = Results(request), Outputs(request.selection)
    with bounded(used.settings.max_memory if device.type == "cpu" else None):
        if used.plan is None:
            _score_naively(used, request, outputs, results.scores(), timings)
        else:
            _score_planned(used, request, outputs, results.scores(), timings)
    return results.to_user(outputs, stacked)


def _score_naively(
    used: InUse, request: Request, outputs: Outputs, scores: list[Scores], timings: Timings | None
) -> None:
    """Fill the scores of every state where the whole model runs naively; its batches are of mutants."""
    clone, n = used.evaluation_copy(), len(request.X)
    size = n if timings is None else request.batch_size or n
    for first in range(0, n, size):
        begin, rows = time.perf_counter(), range(first, min(first + size, n))
        for args, score in zip(request.states, scores, strict=True):
            score_naively(clone, request, args, outputs, score, used.naive_batch, rows)
        if timings is not None:
            timings.add([time.perf_counter() - begin])


def _score_planned(
    used: InUse, request: Request, outputs: Outputs, scores: list[Scores], timings: Timings | None
) -> None:
    """Fill the scores of every state, some sequences with some states at a time."""
    X, states, mutations, device = request.X, request.states, request.mutations, request.device
    used = used.fitting(mutations)
    assert used.plan is not None
    keep_freed_memory()
    beside = result_bytes(used.plan.graph, mutations, request.output) if device.type != "cpu" else 0
    laid_out = bytes_laid_out(used.plan, request)
    most = used.most_sequences(mutations, beside)
    size = min(request.batch_size or used.sequences_at_once(mutations, beside, laid_out), most, len(X))
    together = min(used.states_at_once(mutations, size, beside), len(states))
    sites_at_once = used.sites_at_once(mutations, size * together, laid_out)
    job = Job(used, request, outputs, sites_at_once, timings)
    with (
        products(used.plan.precision, device),
        Bar(len(X) * len(states), request.verbose, "in-silico mutagenesis") as bar,
    ):
        for first in range(0, len(states), together):
            some = slice(first, first + together)
            for row in range(0, len(X), size):
                x = X[row : row + size]
                extras = [tuple(a[row : row + size].to(device) for a in args) for args in states[some]]
                job.score(x, extras, scores[some], row, bar)
                bar.update(len(x) * len(extras))


def result_bytes(graph: Graph, mutations: Mutations, output: str) -> int:
    """Bytes of a sequence's results, of all outputs; ``func`` may make them smaller."""
    numbers = math.prod(mutations.result_shape)
    if output != "l2":
        shapes = [graph.nodes[o].shape or () for o in graph.output_nodes]
        numbers *= sum(math.prod(s for s in shape[1:] if s is not None) for shape in shapes)
    return 8 * numbers


def bytes_laid_out(plan: Plan, request: Request) -> int:
    """Bytes of a site's mutants whose outputs are laid out in full, as `outputs_to_score` does for all but norms: the
    differences, the sum with the reference, and the copy that ``func`` gets or the result's dtype.
    """
    selection = request.selection
    nodes = [plan.graph.nodes[o] for o in plan.graph.output_nodes]
    if request.output == "l2" and selection.func is None:
        nodes = [n for n in nodes if plan.layouts[n.index].kind == "windows"]
        nodes = [n for n in nodes if not _on_windows(plan.layouts[n.index], selection)]
    numbers = sum(math.prod(s for s in (n.shape or (0,))[1:] if s is not None) for n in nodes if n.mutated)
    return 3 * numbers * request.mutations.edits_of_a_site * request.X.element_size()


def _on_windows(layout: Layout, selection: Selection) -> bool:
    """Tell whether ``target`` can be picked from windows: their axes are the output's, with positions first."""
    return selection.target is None or (layout.axis > 1 and not layout.composite)


@dataclass(frozen=True, eq=False)
class Batch:
    """Some sequences on the device, their `letters_of`, and their edits."""

    mutations: Mutations
    x: torch.Tensor
    letters: torch.Tensor


class Job:
    """A request, and a plan put to use for it."""

    def __init__(
        self, used: InUse, request: Request, outputs: Outputs, sites_at_once: int, timings: Timings | None
    ) -> None:
        assert used.plan is not None
        self.used, self.mutations, self.outputs, self.output = used, request.mutations, outputs, request.output
        self.sites_at_once, self.timings = sites_at_once, timings
        self.run = Run(used.plan, used.weights(), used.derived, request.device)
        self._runs = Kept[tuple[int, ...], Run]()  # others, of which some nodes run naively

    def score(self, X: torch.Tensor, extras: Sequence[Args], scores: Sequence[Scores], first: int, bar: Bar) -> None:
        """Score some sequences, the ``first``-th and following, with each of ``extras`` after them. The bar is shown
        once it is known that they can be scored.
        """
        device = self.run.device
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
            self.outputs.check(leaves[-1], len(X))
            score.begin(first, leaves[-1])
        bar.show()
        mutations = self.mutations.of_rows(slice(first, first + len(X)))
        reachable, regular = map(mutations.by_position, plan.reach(mutations.places, mutations.width))
        together = None if plan.senses else regular  # probes hold all positions from the first site to the last
        there = Batch(mutations, x, letters_there)
        for group in mutations.groups(letters, reachable):
            parts = batches(group, self.sites_at_once, together, across=device.type != "cpu")
            self.write(parts, run, references, leaves, scores, there)
        for extra, score in zip(extras, scores, strict=True):
            places = score.to_run_naively()
            if places is not None:
                naively, rows = self.naively(run), self.used.mutants_at_once(self.mutations)
                reference = naively.set_reference(x, extra)  # whose rounding is that of its mutants
                leaf = self.leaves(naively.plan.graph, reference)
                for group in mutations.groups(letters):
                    parts = batches(group.part(places[group.sequence, group.slot]), max(rows // group.edits, 1))
                    self.write(parts, naively, [reference], [leaf], [score], there)
            score.end()
        if self.timings is not None and run.seconds is not None:
            kept = [run.seconds[n.index] for n in plan.graph.nodes if n.mutated and n.kind == "call"]
            self.timings.add(kept)

    def leaves(self, graph: Graph, reference: Reference) -> list[torch.Tensor]:
        """The tensors that are scored, of the reference sequences."""
        values = [reference.values[o] if isinstance(o, int) else o[0] for o in graph.outputs]
        return self.outputs.leaves(graph.rebuild(values))

    def write(
        self,
        parts: Iterable[Group],
        run: Run,
        references: Sequence[Reference],
        leaves: Sequence[list[torch.Tensor]],
        scores: Sequence[Scores],
        there: Batch,
    ) -> None:
        """Run chunk after chunk, and write the scores for each reference."""
        for part in parts:
            sites, written = there.mutations.sites(there.x, there.letters, part)
            give_back()
            for i, changes in enumerate(run.chunk_for_each(sites, references)):
                found = outputs_to_score(run, changes, self.outputs, leaves[i], self.output)
                scores[i].write(part.sequence, part.slot, written, found)
                if run.doubtful is not None:
                    scores[i].doubt(part.sequence, part.slot, run.doubtful)

    def naively(self, run: Run) -> Run:
        """A run of every operation on whole mutants. Where a mutant's values are infinite and the reference's are not,
        products of differences may spoil more than naive ISM does: the zeros in them become NaN. Where all terms of a
        mutant's value nearly vanish, the reference's rounding is large beside it. Where a mutant moves statistics
        far, its series is too short.
        """
        naively = run.of_plan(self.used.naive_plan("its value is infinite, or nearly vanishes, in some mutants"))
        naively.seconds = run.seconds if naively.plan.graph is run.plan.graph else None
        return naively

    def references(self, x: torch.Tensor, extras: Sequence[Args]) -> tuple[Run, list[Reference]]:
        """The reference with each of ``extras``; and the run for the mutants: where a reference is infinite (a mask
        before a softmax) there is no difference, and values are carried.
        """
        run = self.run
        found = [run.set_reference(x, extras[0])]
        unfit = set(run.unfit_for_differences())
        for extra in extras[1:]:
            found.append(run.set_reference(x, extra, like=found[0]))
            unfit.update(run.unfit_for_differences(among=run.plan.sharing.values))
        infinite = tuple(sorted(unfit))
        if not infinite:
            return run, found
        reason = "its reference value is infinite or as large as a mask"
        return self._runs.made(infinite, lambda: run.of_plan(self.used.plan_without(infinite, reason))), found


def outputs_to_score(
    run: Run, changes: list[Any], outputs: Outputs, reference: list[torch.Tensor], output: str
) -> list[torch.Tensor | None]:
    """The scored differences ``(S, A, O...)`` of a chunk, or windows of them where only their norm is wanted, or the
    mutants' values for ``"prediction"``.
    """
    graph, selection = run.plan.graph, outputs.selection
    grid = run.sites.difference.shape[:2]
    if selection.func is None and not isinstance(graph.rebuild, Recipe):  # only ``func`` can pick tensors of an object
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
                found.append(selection.pick(change.tensor, 3))  # after sites, edits and positions
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
    leaves = outputs.leaves(mutants_outputs(run, changes))
    outputs.check(leaves, grid[0] * grid[1])
    return [scored(leaf.unflatten(0, grid), run.of_sites(r), output) for leaf, r in zip(leaves, reference, strict=True)]


def mutants_outputs(run: Run, changes: list[Any]) -> Any:
    """The model's whole output for the mutants of a chunk, a row for each: ``(S * A, O...)``."""
    graph = run.plan.graph
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
    return graph.rebuild(values)
