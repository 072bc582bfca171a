"""Trials: sequences with edits that are named one by one, and pairs of sequences; both sides' outputs.

An edit that keeps the length is a window on the reference of its sequence, and sequences run some at a time. Pairs of
sequences, and edits of models that run naively, are forward passes of both sides, in batches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils import _pytree as pytree

from yuzu._engine.capture.outputs import map_tensors, tensors_in
from yuzu._engine.capture.rows import on_rows
from yuzu._engine.edits import Mutations
from yuzu._engine.freed_memory import bounded, give_back, keep_freed_memory
from yuzu._engine.gate import running
from yuzu._engine.kernels.precision import products
from yuzu._engine.layout import on_device
from yuzu._engine.named_edits import NamedEdits
from yuzu._engine.request import Args, Request, Selection
from yuzu._engine.run.scores import Outputs, difference
from yuzu._engine.store.in_use import InUse
from yuzu._engine.store.obtain import obtain_each
from yuzu._engine.store.scoring import Job, bytes_laid_out, mutants_outputs, outputs_to_score


@dataclass(frozen=True, eq=False)
class Pairs:
    """Sequences ``X`` ``(P, C, L)`` that are compared with rows of others; ``number`` is the caller's."""

    row: np.ndarray
    X: torch.Tensor
    number: np.ndarray


@dataclass(frozen=True, eq=False)
class Trials:
    """Sequences ``(B, C, L)`` in the model's dtype, its other inputs, and what each sequence is compared with."""

    X: torch.Tensor
    args: Args
    edits: Sequence[NamedEdits]
    pairs: Pairs

    def of_rows(self, rows: np.ndarray) -> Trials:
        """The trials of some sequences."""
        if len(rows) == len(self.X):
            return self
        keep = np.isin(self.pairs.row, rows)
        pairs = Pairs(np.searchsorted(rows, self.pairs.row[keep]), self.pairs.X[keep], self.pairs.number[keep])
        return Trials(
            self.X[rows], tuple(a[rows] for a in self.args), [edits.of_rows(rows) for edits in self.edits], pairs
        )


@dataclass(frozen=True, eq=False)
class Asked:
    """The outputs that are wanted of each trial: the ``selected`` ones, and the model's ``whole`` ones."""

    device: torch.device
    selection: Selection
    selected: bool = True
    whole: bool = False
    batch_size: int | None = None


class Outcome(NamedTuple):
    """Some trials' outputs.

    Attributes
    ----------
    number: integer array, shape=(n,)
    before, change: lists of torch.Tensor, shape=(n, O...)
        The selected outputs of the reference, and the edited ones' minus these; empty unless they are wanted.
    reference, edited: containers of torch.Tensor, or None
        The model's whole outputs, with a row for each trial, if they are wanted.
    """

    number: np.ndarray
    before: list[torch.Tensor]
    change: list[torch.Tensor]
    reference: Any = None
    edited: Any = None


Take = Callable[[Outcome], None]


@torch.no_grad()
def run_trials(model: torch.nn.Module, precomputation: Any, trials: Trials, asked: Asked, take: Take) -> None:
    """Run every trial, and hand the outcomes to ``take``, some at a time and in any order."""
    c, length = trials.X.shape[1:]
    any_edits = Mutations(c, length, np.zeros(1, dtype=np.int64))
    request = Request(trials.X, [trials.args], any_edits, asked.device, asked.selection, "delta", asked.batch_size)
    for part in obtain_each(model, precomputation, request):
        some = trials.of_rows(np.array(part.rows))
        with bounded(part.used.settings.max_memory if asked.device.type == "cpu" else None):
            _Trying(part.used, replace(request, X=some.X, states=[some.args]), asked, take).run(some)


class _Trying:
    """Trials of a model that decides in the same way for all of them."""

    def __init__(self, used: InUse, request: Request, asked: Asked, take: Take) -> None:
        self.used, self.request, self.asked, self.take = used, request, asked, take
        self.outputs = Outputs(asked.selection)

    def run(self, trials: Trials) -> None:
        keep_freed_memory()
        pairs = trials.pairs
        if len(pairs.row):
            self._compare(pairs.row, pairs.number, lambda some: pairs.X[some])
        for edits in trials.edits:
            if len(edits):
                left = edits if self.used.plan is None else edits.part(self._by_windows(edits))
                if len(left):
                    self._compare(left.row, left.number, functools.partial(_mutants, left, self.request.X))

    # ---- edits as windows

    def _by_windows(self, edits: NamedEdits) -> np.ndarray:
        """Run edits on references of their sequences. Returns those that have to run naively."""
        rows = np.unique(edits.row)
        request = replace(self.request, mutations=self._like(edits.width, len(edits) // len(rows)))
        used, selection = self.used, request.selection
        if selection.target is not None and selection.func is None and not self.asked.whole:
            smaller = used.for_outputs(selection.target)
            if smaller is not None:
                one = isinstance(selection.target, int | np.integer)
                used, request = smaller, replace(request, selection=Selection(None, 0 if one else None))
        used = used.fitting(request.mutations)
        assert used.plan is not None
        outputs = Outputs(request.selection)
        laid_out = bytes_laid_out(used.plan, request) * (2 if self.asked.whole else 1)
        size, edits_at_once = self._sizes(used, request.mutations, laid_out, len(edits) / len(rows))
        doubtful = []
        job = Job(used, request, outputs, edits_at_once, None)
        with products(used.plan.precision, request.device):
            for some in _pieces(rows, size):
                x = request.X[some].to(request.device)
                extra = tuple(a[some].to(request.device) for a in request.states[0])
                doubtful.append(self._windows_of(job, x, extra, edits.of_rows(some)))
        return np.flatnonzero(np.isin(edits.number, np.concatenate(doubtful)))

    def _like(self, width: int, positions: int = 1) -> Mutations:
        """Edits that take as much memory as these, one at each site, and so many in a sequence."""
        c, length = self.request.X.shape[1:]
        places = np.zeros(positions, dtype=np.int64)
        return Mutations(c, length, places, width, torch.zeros(c, width, device="cpu"))

    def _sizes(self, used: InUse, like: Mutations, laid_out: int, of_each: float) -> tuple[int, int]:
        """How many sequences are carried at once, and edits in a chunk."""
        memory, most = used.memory(like), used.most_sequences(like)
        left = used.settings.max_memory - memory.weights
        most = min(most, self.asked.batch_size or most)
        wanted = max(int(used.sites_at_once(like, 1, laid_out) / of_each), 1)  # enough to fill a chunk
        size = max(min(most, wanted, left // (memory.sequence + memory.site + laid_out)), 1)
        return size, used.sites_at_once(like, size, laid_out)

    def _windows_of(self, job: Job, x: torch.Tensor, extra: Args, edits: NamedEdits) -> np.ndarray:
        """Run the edits of some sequences. Returns the numbers of those in doubt, which are not taken."""
        run, (reference,) = job.references(x, [extra])
        run.once = edits.at_one_position()
        graph = run.plan.graph
        before = job.leaves(graph, reference) if self.asked.selected else []
        job.outputs.check(before, len(x))
        values = [reference.values[o] if isinstance(o, int) else o[0] for o in graph.outputs]
        whole = graph.rebuild(values) if self.asked.whole else None
        doubtful = []
        for sites, number in edits.chunks(x, job.sites_at_once):
            give_back()
            (changes,) = run.chunk_for_each(sites, [reference])
            found = outputs_to_score(run, changes, job.outputs, before, "delta") if self.asked.selected else []
            row = on_device(sites.sequence, x.device).repeat_interleave(number.shape[1])
            start = [b.index_select(0, row) for b in before]
            change = [torch.zeros_like(s) if f is None else f.flatten(0, 1) for s, f in zip(start, found, strict=True)]
            outcome = Outcome(number.reshape(-1), start, change)
            if whole is not None:
                edited = mutants_outputs(run, changes)
                outcome = outcome._replace(reference=_rows(whole, row, len(x)), edited=edited)
            bad = _not_finite(outcome)
            if run.doubtful is not None:
                bad |= run.doubtful.reshape(-1)
            if bool(bad.any()):
                doubtful.append(outcome.number[bad.cpu().numpy()])
                outcome = _part(outcome, (~bad).nonzero()[:, 0])
            self.take(outcome)
        return np.concatenate(doubtful) if doubtful else np.zeros(0, dtype=np.int64)

    # ---- forward passes

    def _compare(self, row: np.ndarray, number: np.ndarray, edited: Callable[[slice], torch.Tensor]) -> None:
        """Run sequences, of which ``edited`` gives some, and the rows that they are compared with."""
        used, request = self.used, self.request
        size = used.naive_batch if used.plan is None else used.mutants_at_once(self._like(1))
        size = min(size, self.asked.batch_size or size)
        clone, device = used.evaluation_copy(), request.device
        half = max(size // 2, 1)
        for first in range(0, len(row), half):
            give_back()
            some = slice(first, first + half)
            rows, place = np.unique(row[some], return_inverse=True)
            of_args = np.r_[rows, row[some]]
            x = torch.cat([request.X[rows], edited(some)]).to(device)
            args = tuple(a[of_args].to(device) for a in request.states[0])
            whole = _joined(list(_forward(clone, x, args, size)))
            leaves = self.outputs.leaves(whole) if self.asked.selected else []
            self.outputs.check(leaves, len(x))
            here = on_device(place.reshape(-1), device)
            there = torch.arange(len(rows), len(x), device=device)
            before = [leaf.index_select(0, here) for leaf in leaves]
            change = [difference(leaf[len(rows) :], b) for leaf, b in zip(leaves, before, strict=True)]
            outcome = Outcome(number[some], before, change)
            if self.asked.whole:
                sides = {"reference": _rows(whole, here, len(x)), "edited": _rows(whole, there, len(x))}
                outcome = outcome._replace(**sides)
            self.take(outcome)


def _mutants(edits: NamedEdits, X: torch.Tensor, some: slice) -> torch.Tensor:
    return edits.part(some).mutants(X)


def _forward(clone: torch.nn.Module, x: torch.Tensor, args: Args, size: int) -> Iterator[Any]:
    """The model's outputs for some sequences after the other."""
    for first in range(0, len(x), size):
        some = slice(first, first + size)
        piece, rest = x[some].clone(), [a[some].clone() for a in args]  # a model may write over what it is given
        with running(), products("highest", x.device):
            yield on_rows(clone, piece, *rest) if len(piece) == 1 else clone(piece, *rest)


def _joined(outputs: list[Any]) -> Any:
    """Outputs of several batches as if they were one's."""
    if len(outputs) == 1:
        return outputs[0]
    flat = [pytree.tree_flatten(output) for output in outputs]
    leaves = [
        torch.cat(leaf) if isinstance(leaf[0], torch.Tensor) and leaf[0].dim() else leaf[0]
        for leaf in zip(*(leaves for leaves, _ in flat), strict=True)
    ]
    return pytree.tree_unflatten(leaves, flat[0][1])


def _rows(output: Any, index: torch.Tensor, rows: int) -> Any:
    """Rows of every tensor that has one for each sequence."""
    return map_tensors(lambda t: t.index_select(0, index) if t.dim() and len(t) == rows else t, output)


def _not_finite(outcome: Outcome) -> torch.Tensor:
    """The trials with any number that is not finite: a mask ``(n,)``."""
    tensors = [*outcome.change, *tensors_in(outcome.edited)]
    n = len(outcome.number)
    bad = torch.zeros(n, dtype=torch.bool, device=tensors[0].device)
    for tensor in tensors:
        if tensor.is_floating_point() and len(tensor) == n and not bool(torch.isfinite(tensor.sum())):
            bad |= ~torch.isfinite(tensor).reshape(n, -1).all(1)
    return bad


def _part(outcome: Outcome, index: torch.Tensor) -> Outcome:
    n = len(outcome.number)
    return Outcome(
        outcome.number[index.cpu().numpy()],
        [t.index_select(0, index) for t in outcome.before],
        [t.index_select(0, index) for t in outcome.change],
        _rows(outcome.reference, index, n),
        _rows(outcome.edited, index, n),
    )


def _pieces(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Rows in pieces of at most ``size``, of about one length."""
    return np.array_split(rows, -(-len(rows) // size))
