"""Mutants whose letters move: deletions and insertions of all places, as edits of some of them.

Such a mutant is spliced: one sequence before the cut, then what is inserted, then another sequence, the moved one. The
mutants of two neighbouring cuts differ only between the cuts. So a mutant every few cuts is run as a reference, and
those around it are edits of it, as wide as the distance of their cuts. Positions do not move between them: pools and
strides need nothing of their own.

Neighbouring references share a mutant, whose differences from both tell how far these are apart. One wide edit of the
sequence itself gives the distance of the last from it. So all scores are sums of differences, and keep their digits.
A user's function loses digits in each difference, so that long sums would lose more than naive ISM does: with it the
mutants' values are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from yuzu._engine.checks import to_user
from yuzu._engine.edits import Mutations
from yuzu._engine.progress import tqdm
from yuzu._engine.request import Request
from yuzu._engine.store.states import answer

# Cuts on either side of a reference, at most: fewer take more references, more take wider edits. Of 8 to 48 it is the
# fastest for BPNet, and close to it for Basset (deletions of benchmarks/edits.py).
MOST_BESIDE = 16
BYTES_AT_ONCE = 1 << 26  # of letters that are written, or of scores


@dataclass(frozen=True, eq=False)
class Splices:
    """The mutants of one kind, of all sequences, at the cuts from ``first`` up to but without ``stop``: position ``q``
    holds ``left[q]`` before the cut, then the letters ``inserted``, then ``right[q]``.

    Attributes
    ----------
    left, right: torch.Tensor, shape=(n, C, L)
        The sequences themselves on the side that stays.
    inserted: torch.Tensor, shape=(C, w)
        None with ``w = 0``.
    first, stop: int
        From ``-w`` on: the first letters of what is inserted may have left the sequence.
    left_stays: bool
        True if ``left`` has the sequences themselves.
    """

    left: torch.Tensor
    right: torch.Tensor
    inserted: torch.Tensor
    first: int
    stop: int
    left_stays: bool

    @property
    def count(self) -> int:
        return self.stop - self.first

    @property
    def width(self) -> int:
        """Letters that are inserted."""
        return self.inserted.shape[1]

    def letters(self, sequence: int, cut: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """The letters ``(..., C)`` of a sequence's mutants at positions ``(w,)``, for cuts that broadcast to these."""
        left, right = self.left[sequence, :, position].T, self.right[sequence, :, position].T
        found = torch.where((position < cut)[..., None], left, right)
        if self.width:
            place = position - cut
            within = (place >= 0) & (place < self.width)
            found = torch.where(within[..., None], self.inserted.T[place.clamp(0, self.width - 1)], found)
        return found


def moved_scores(
    model: torch.nn.Module, precomputation: Any, request: Request, kinds: Sequence[Splices], what: str
) -> list[Any]:
    """``y(mutant) - y(reference)`` of all mutants: for each kind ``(n, cuts, O...)``, in the model's own container.

    ``request`` has the sequences, the model's other inputs and the selection; ``what`` is the progress bar's title.
    """
    output = "delta" if request.selection.func is None else "prediction"
    quiet = replace(request, output=output, verbose=False, as_numpy=False, series=False)
    scan = _Scan(model, precomputation, quiet, kinds)
    with tqdm(total=scan.total, disable=not request.verbose, desc=what, unit="mutant") as bar:
        found, spec = scan.run(bar)
    results = []
    for leaves in found:
        user = [to_user(v, request.as_numpy) if isinstance(v, torch.Tensor) else v for v in leaves]
        results.append(pytree.tree_unflatten(user, spec))
    return results


class _Scan:
    """The mutants of some kinds, and what scores them."""

    def __init__(self, model: torch.nn.Module, precomputation: Any, request: Request, kinds: Sequence[Splices]) -> None:
        self.model, self.precomputation, self.request, self.kinds = model, precomputation, request, kinds
        self.n, self.n_choices, self.length = request.X.shape
        self.shared = int(request.output == "delta")  # 1 if neighbouring references share a mutant
        steps = max(max(kind.count for kind in kinds) - self.shared, 1)
        self.beside = -(-steps // (2 * -(-steps // (2 * MOST_BESIDE))))  # evenly spaced, as few references as can be
        self.blocks = [max(-(-(kind.count - self.shared) // (2 * self.beside)), 1) for kind in kinds]
        self.total = self.n * sum(2 * self.beside * count for count in self.blocks)

    def run(self, bar: tqdm) -> tuple[list[list[Any]], Any]:
        """For each kind the scores ``(n, cuts, O...)`` of each output, and the container that they are from."""
        nearest = [kind.stop - 1 if kind.left_stays else kind.first for kind in self.kinds]
        ends = [(k, i, cut) for k, cut in enumerate(nearest) for i in range(self.n)]
        anchors, spec = self.of_sequences(ends) if self.shared else self.unchanged()
        near = self.of_references(bar, sum(v[0].nbytes for v in anchors if isinstance(v, torch.Tensor)))
        found = []
        for k, kind in enumerate(self.kinds):
            leaves = []
            for anchor, values in zip(anchors, near[k], strict=True):
                if not isinstance(anchor, torch.Tensor):
                    leaves.append(anchor)
                elif self.shared:
                    leaves.append(_joined(values, anchor[k * self.n : (k + 1) * self.n], kind)[:, : kind.count])
                else:
                    leaves.append(values[:, :, :-1].flatten(1, 2)[:, : kind.count] - anchor[:, None])
            found.append(leaves)
        self.mend(found, anchors)
        return found, spec

    def unchanged(self) -> tuple[list[Any], Any]:
        """The values ``(n, O...)`` of the sequences themselves: a letter is written over itself."""
        X = self.request.X
        own = X[:, None, None, None, :, 0]  # (n, 1, 1, 1, C)
        leaves, spec = self.answer(torch.arange(self.n), X, np.zeros((self.n, 1), dtype=np.int64), own)
        return [v[:, 0, 0] if isinstance(v, torch.Tensor) else v for v in leaves], spec

    def of_sequences(self, mutants: list[tuple[int, int, int]]) -> tuple[list[Any], Any]:
        """The differences, or values, ``(mutants, O...)`` of mutants (kind, sequence, cut) as edits of the sequence
        itself, which are as wide as all that moves.
        """
        kinds, parts, spec = self.kinds, [], None
        first, stop = self.length, 0
        for k, _, cut in mutants:
            first = min(first, cut if kinds[k].left_stays else 0)
            stop = max(stop, self.length if kinds[k].left_stays else cut + kinds[k].width)
        first, stop = min(max(first, 0), self.length - 1), min(max(stop, 1), self.length)  # where nothing moves, one
        first = min(first, stop - 1)
        place = torch.arange(first, stop)
        at_once = max(BYTES_AT_ONCE // (len(place) * self.n_choices * self.request.X.element_size()), 1)
        for begin in range(0, len(mutants), at_once):
            some = mutants[begin : begin + at_once]
            own = torch.stack([kinds[k].letters(i, torch.tensor(cut), place) for k, i, cut in some])
            rows = torch.tensor([i for _, i, _ in some])
            positions = np.full((len(some), 1), first)
            leaves, spec = self.answer(rows, self.request.X[rows], positions, own[:, None, None])
            parts.append([v[:, 0, 0] if isinstance(v, torch.Tensor) else v for v in leaves])
        return [torch.cat(v) if isinstance(v[0], torch.Tensor) else v[0] for v in zip(*parts, strict=True)], spec

    def of_references(self, bar: tqdm, bytes_of_scores: int) -> list[list[Any]]:
        """For each kind and output the differences from the references, ``(n, blocks, 2 * beside + 1, O...)``, or the
        values, without the last; the scores of a mutant take so many bytes.
        """
        width = min(self.beside + max(kind.width for kind in self.kinds), self.length)
        rows = [(k, i, b) for k, count in enumerate(self.blocks) for i in range(self.n) for b in range(count)]
        bytes_of_a_mutant = max(width * self.n_choices * self.request.X.element_size(), bytes_of_scores)
        at_once = max(BYTES_AT_ONCE // (2 * self.beside * bytes_of_a_mutant), 1)
        found: list[list[Any]] = []
        for begin in range(0, len(rows), at_once):
            some = rows[begin : begin + at_once]
            made = [self.reference(k, i, b, width) for k, i, b in some]
            references, positions, own = (list(part) for part in zip(*made, strict=True))
            sequences = torch.tensor([i for _, i, _ in some])
            leaves, _ = self.answer(sequences, torch.stack(references), np.stack(positions), torch.stack(own))
            if not found:
                found = [[_room(leaf, self.n, count) for leaf in leaves] for count in self.blocks]
            for row, (k, i, b) in enumerate(some):
                for whole, leaf in zip(found[k], leaves, strict=True):
                    if isinstance(leaf, torch.Tensor):
                        before, after = leaf[row].unbind(1)  # (beside, O...)
                        begin_after = self.beside + self.shared
                        whole[i, b, : self.beside], whole[i, b, begin_after:][: self.beside] = before, after
            bar.update(2 * self.beside * len(some))
        return found

    def reference(self, k: int, i: int, b: int, width: int) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
        """A reference ``(C, L)``, the two positions of its edits, and the letters ``(2, beside, width, C)`` of the
        mutants with their cuts before its own, and after it (or from it on, for values).
        """
        kind = self.kinds[k]
        cut = kind.first + (2 * b + 1) * self.beside
        last = torch.tensor(kind.stop - 1)
        reference = kind.letters(i, torch.minimum(torch.tensor(cut), last), torch.arange(self.length)).T
        positions = np.clip([cut - self.beside, cut], 0, self.length - width)
        own = []
        for start, begin in zip(positions, (cut - self.beside, cut + self.shared), strict=True):
            cuts = torch.minimum(torch.arange(begin, begin + self.beside), last)
            own.append(kind.letters(i, cuts[:, None], torch.arange(width) + int(start)))
        return reference.contiguous(), positions, torch.stack(own)

    def answer(
        self, rows: torch.Tensor, X: torch.Tensor, positions: np.ndarray, own: torch.Tensor
    ) -> tuple[list[Any], Any]:
        """The differences, or values, ``(rows, edits, sites, O...)`` of edits of ``X``, which stand for these rows."""
        states = [tuple(a[rows] for a in args) for args in self.request.states]
        mutations = Mutations(self.n_choices, self.length, positions, own.shape[3], own=own)
        asked = replace(self.request, X=X, states=states, mutations=mutations)
        return pytree.tree_flatten(answer(self.model, self.precomputation, asked, stacked=False))

    def mend(self, found: list[list[Any]], anchors: list[Any]) -> None:
        """Score mutants anew, as edits of the sequences themselves, whose scores are not finite: a reference may be the
        reason, which is none of the two that are compared.
        """
        wrong = [
            (k, int(i), int(p))
            for k, leaves in enumerate(found)
            for i, p in torch.stack([_not_finite(v) for v in leaves if isinstance(v, torch.Tensor)]).any(0).nonzero()
        ]
        if not wrong:
            return
        again, _ = self.of_sequences([(k, i, self.kinds[k].first + p) for k, i, p in wrong])
        for row, (k, i, p) in enumerate(wrong):
            for whole, leaf, anchor in zip(found[k], again, anchors, strict=True):
                if isinstance(leaf, torch.Tensor):
                    whole[i, p] = leaf[row] if self.shared else leaf[row] - anchor[i]


def _joined(differences: torch.Tensor, anchor: torch.Tensor, kind: Splices) -> torch.Tensor:
    """The scores ``(n, cuts, O...)`` of one kind and output, from differences ``(n, blocks, 2 * beside + 1, O...)`` and
    the score ``(n, O...)`` of the mutant that is nearest to the sequence. The differences are overwritten.
    """
    blocks, cuts = differences.shape[1:3]
    at = torch.empty_like(differences[:, :, 0], dtype=torch.float64)  # the references' scores
    before, after = differences[:, :, 0].double(), differences[:, :, -1].double()
    if kind.left_stays:
        nearest = kind.count - 1 - (blocks - 1) * (cuts - 1)
        at[:, -1] = anchor.double() - differences[:, -1, nearest].double()
        for b in range(blocks - 2, -1, -1):
            at[:, b] = at[:, b + 1] + before[:, b + 1] - after[:, b]
    else:
        at[:, 0] = anchor.double() - before[:, 0]
        for b in range(1, blocks):
            at[:, b] = at[:, b - 1] + after[:, b - 1] - before[:, b]
    differences += at[:, :, None].to(differences.dtype)
    return torch.cat([differences[:, :, :-1].flatten(1, 2), differences[:, -1, -1:]], 1)


def _room(leaf: Any, n: int, blocks: int) -> Any:
    """Room for the differences of one kind and output."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return leaf.new_zeros(n, blocks, 2 * leaf.shape[1] + 1, *leaf.shape[3:])


def _not_finite(scores: torch.Tensor) -> torch.Tensor:
    """The mutants ``(n, cuts)`` with scores that are not finite."""
    return ~torch.isfinite(scores).flatten(2).all(2) if scores.dim() > 2 else ~torch.isfinite(scores)


__all__ = ["Splices", "moved_scores"]
