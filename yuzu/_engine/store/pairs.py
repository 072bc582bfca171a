"""Interactions of pairs of edits: each edit alone makes a reference, and the other is an edit of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from yuzu._engine.checks import to_user
from yuzu._engine.edits import letters_of
from yuzu._engine.plan.meeting import find_meeting
from yuzu._engine.progress import tqdm
from yuzu._engine.request import Request
from yuzu._engine.run.scores import result_dtype
from yuzu._engine.store.obtain import Part, obtain_each
from yuzu._engine.store.scoring import run_planned
from yuzu.errors import YuzuError

RESULTS_AT_ONCE = 1 << 26  # bytes of differences of single mutants before they are added to the result


@dataclass(frozen=True, eq=False)
class _Singles:
    """The edits that make references: their sequence, their slot among the positions, and the letter (0 for a
    replacement).
    """

    sequence: np.ndarray
    slot: np.ndarray
    letter: np.ndarray

    def part(self, keep: slice) -> _Singles:
        return _Singles(self.sequence[keep], self.slot[keep], self.letter[keep])


def interactions(model: torch.nn.Module, precomputation: Any, request: Request, max_distance: int | None) -> Any:
    """``y(ab) - y(a) - y(b) + y(0)`` of all pairs of a request's edits: ``(n, P, C, P, C, O...)`` for substitutions,
    and ``(n, P, P, O...)`` for one replacement, in the model's own container.

    Each sequence with an edit ``a`` is a reference, and the edits ``b`` after it are scored against it. From that their
    scores against the sequence itself are subtracted. Edits that overlap, that lie further apart than ``max_distance``,
    or that never meet in the model, are no pair: their interaction is 0.
    """
    table = _Table(request)
    parts = obtain_each(model, precomputation, request)
    jobs = [_Job(part, request, table, max_distance) for part in parts]
    total = sum(job.count for job in jobs)
    with tqdm(total=total, disable=not request.verbose, desc="epistasis", unit="pair") as bar:
        for job in jobs:
            for done in job.run():
                bar.update(done)
    return table.to_user()


class _Table:
    """Interactions of all sequences, ``(n, P, E, P, E, O...)`` with ``E`` edits at each place, for each output."""

    def __init__(self, request: Request) -> None:
        self.request, mutations = request, request.mutations
        self.places, self.edits = mutations.sites_of_a_sequence, mutations.edits_of_a_site
        self.tensors: list[torch.Tensor] | None = None
        self.spec: Any = None
        self.kinds: list[Any] = []

    def begin(self, singles: list[torch.Tensor], spec: Any) -> None:
        """Make room, when the shapes of the outputs are known.

        Raises
        ------
        YuzuError
            If memory is too little, or outputs are of other shapes than those of earlier sequences.
        """
        axes = 2 if self.request.mutations.replacement is not None else 3
        kinds = [(t.shape[axes:], t.dtype) for t in singles]
        if self.tensors is None:
            lead = len(self.request.X), self.places, self.edits, self.places, self.edits
            shapes = [(*lead, *shape) for shape, _ in kinds]
            size = sum(math.prod(shape) for shape in shapes) * result_dtype(self.request.X.dtype).itemsize
            try:
                self.tensors = [
                    torch.zeros(shape, dtype=d, device="cpu") for shape, (_, d) in zip(shapes, kinds, strict=True)
                ]
            except RuntimeError as error:  # PyTorch's own, where the system refuses so much
                raise YuzuError(
                    f"the interactions of {len(self.request.X)} sequences take {size / 1e9:.3g} GB, which this machine "
                    "does not have: select outputs with target or func, fewer positions with start and end, or pass "
                    "fewer sequences at a time"
                ) from error
            self.spec, self.kinds = spec, kinds
        elif self.spec != spec or self.kinds != kinds:
            raise YuzuError("args must be such that the model returns outputs of the same shapes for all rows")

    def write(self, at: _Singles, partners: np.ndarray, found: list[torch.Tensor]) -> None:
        """Write the interactions ``(rows, E, P', O...)`` of some references with the edits at their ``partners``, the
        slots ``(rows, P')`` or -1 for none, in both orders.
        """
        row, place = (torch.from_numpy(a) for a in np.nonzero(partners >= 0))
        n, i, c = (torch.from_numpy(a)[row] for a in (at.sequence, at.slot, at.letter))
        j = torch.from_numpy(partners)[row, place]
        assert self.tensors is not None
        for whole, value in zip(self.tensors, found, strict=True):
            pairs = value[row, :, place]  # (pairs, E, O...)
            whole[n, i, c, j] = pairs
            whole[n, j, :, i, c] = pairs

    def to_user(self) -> Any:
        assert self.tensors is not None
        found = self.tensors
        if self.request.mutations.replacement is not None:
            found = [t[:, :, 0, :, 0] for t in found]
        return pytree.tree_unflatten([to_user(t, self.request.as_numpy) for t in found], self.spec)


class _Job:
    """The pairs of sequences for which the model decides in one way."""

    def __init__(self, part: Part, request: Request, table: _Table, max_distance: int | None) -> None:
        self.used, self.rows, self.table = part.used, np.array(part.rows), table
        states = [tuple(a[part.rows] for a in args) for args in request.states]
        some = replace(request, X=request.X[part.rows], states=states)
        self.request = replace(some, as_numpy=False, verbose=False, series=False)
        self.singles, spec = pytree.tree_flatten(run_planned(self.used, self.request, stacked=False))
        others = [i for i, leaf in enumerate(self.singles) if not isinstance(leaf, torch.Tensor)]
        if others:
            raise YuzuError(
                f"epistasis needs outputs that are tensors, the model (after func) also returns "
                f"{type(self.singles[others[0]]).__name__}; select tensors with func"
            )
        table.begin(self.singles, spec)
        self.pairs = self._find_pairs(max_distance)
        self.references = self._find_references()
        self.count = int(self.pairs.sum(1)[self.references.slot].sum()) * _edits_made(self.request)

    def _find_pairs(self, max_distance: int | None) -> np.ndarray:
        """The pairs of slots ``(P, P)`` that are scored, each once."""
        m = self.request.mutations
        distance = np.abs(m.positions[:, None] - m.positions)
        pairs: np.ndarray = np.triu(distance >= m.width)
        if max_distance is not None:
            pairs &= distance <= max_distance
        finite = all(bool(torch.isfinite(t.sum())) for t in self.singles)
        plan = self.used.without_statistics().plan
        if plan is not None and self.request.selection.func is None and finite:
            pairs &= find_meeting(plan, m.positions, m.width)
        return pairs

    def _find_references(self) -> _Singles:
        """The edits that have a later partner, in the order of their slots."""
        m, n = self.request.mutations, len(self.rows)
        if m.substitutions:
            letters = letters_of(self.request.X).numpy()[:, m.positions]
            made = letters[:, :, None] != np.arange(m.n_choices)
        else:
            made = np.ones((n, self.table.places, 1), dtype=bool)
        paired = np.asarray(self.pairs.any(axis=1))
        slot, sequence, letter = np.nonzero(np.moveaxis(made, 1, 0) & paired[:, None, None])
        return _Singles(sequence, slot, letter)

    def run(self) -> Iterator[int]:
        """Score all pairs, some references at a time; the number of pairs that were scored each time."""
        bytes_of_a_pair = sum(t[0].numel() * t.element_size() for t in self.singles) // self.table.places
        begin, widths = 0, self.pairs.sum(1)[self.references.slot]
        while begin < len(widths):
            # slots are sorted, so that neighbours have about as many partners
            widest = np.maximum.accumulate(widths[begin:]) * np.arange(1, len(widths) - begin + 1)
            fit = int(np.searchsorted(widest * bytes_of_a_pair, RESULTS_AT_ONCE, "right"))
            some = self.references.part(slice(begin, begin + max(fit, 1)))
            self._score(some)
            yield int(widths[begin : begin + len(some.slot)].sum()) * _edits_made(self.request)
            begin += len(some.slot)

    def _score(self, some: _Singles) -> None:
        request, m = self.request, self.request.mutations
        partners = _padded([np.flatnonzero(self.pairs[slot]) for slot in some.slot])
        positions = np.where(partners >= 0, m.positions[partners], -1)
        states = [tuple(a[torch.from_numpy(some.sequence)] for a in args) for args in request.states]
        mutations = replace(m, positions=positions)
        asked = replace(request, X=self._edited(some), states=states, mutations=mutations)
        found = pytree.tree_leaves(run_planned(self.used, asked, stacked=False))
        sequence, place = torch.from_numpy(some.sequence)[:, None], torch.from_numpy(partners)
        alone = [t if m.substitutions else t.unsqueeze(1) for t in self.singles]
        found = [t if m.substitutions else t.unsqueeze(1) for t in found]
        for value, single in zip(found, alone, strict=True):
            value -= single[sequence, :, place].movedim(2, 1)
        self.table.write(replace(some, sequence=self.rows[some.sequence]), partners, found)

    def _edited(self, some: _Singles) -> torch.Tensor:
        """The references ``(rows, C, L)``."""
        m = self.request.mutations
        X = self.request.X[torch.from_numpy(some.sequence)]
        row = torch.arange(len(X))[:, None]
        place = torch.from_numpy(m.positions[some.slot])[:, None] + torch.arange(m.width)
        if m.replacement is None:
            X[row, :, place] = torch.eye(m.n_choices, dtype=X.dtype)[torch.from_numpy(some.letter)][:, None]
        else:
            X[row, :, place] = m.replacement.T.to(X)
        return X


def _edits_made(request: Request) -> int:
    """The mutants of a site, but for those without a letter."""
    return request.mutations.n_choices - 1 if request.mutations.substitutions else 1


def _padded(lists: list[np.ndarray]) -> np.ndarray:
    """Lists of integers as rows of one array, with -1 after their ends."""
    found = np.full((len(lists), max(map(len, lists))), -1)
    for row, some in zip(found, lists, strict=True):
        row[: len(some)] = some
    return found


__all__ = ["interactions"]
