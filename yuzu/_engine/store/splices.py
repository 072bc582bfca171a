"""Mutants whose letters move: deletions and insertions of all places, as edits of some of them.

Such a mutant is spliced: one sequence before the cut, then what is inserted, then another sequence, the moved one. The
mutants of two neighbouring cuts differ only between the cuts. So a mutant every few cuts is run as a reference, and
those around it are edits of it, as wide as the distance of their cuts. Positions do not move between them: pools and
strides need nothing of their own.
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

# Cuts on either side of a reference, at most: fewer take more references, more take wider edits. From 8 to 64 the
# fastest for Basset and BPNet (benchmarks/edits.py).
MOST_BESIDE = 16
BYTES_AT_ONCE = 1 << 26  # of references' edits


@dataclass(frozen=True, eq=False)
class Splices:
    """The mutants of one kind, of all sequences, at the cuts from ``first`` up to but without ``stop``: position ``q``
    holds ``left[q]`` before the cut, then the letters ``inserted``, then ``right[q]``.

    Attributes
    ----------
    left, right: torch.Tensor, shape=(n, C, L)
    inserted: torch.Tensor, shape=(C, w)
        None with ``w = 0``.
    first, stop: int
        From ``-w`` on: the first letters of what is inserted may have left the sequence.
    """

    left: torch.Tensor
    right: torch.Tensor
    inserted: torch.Tensor
    first: int
    stop: int

    def letters(self, sequence: int, cut: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """The letters ``(..., C)`` of a sequence's mutants at positions ``(w,)``, for cuts that broadcast to these."""
        width = self.inserted.shape[1]
        left, right = self.left[sequence, :, position].T, self.right[sequence, :, position].T
        found = torch.where((position < cut)[..., None], left, right)
        if width:
            place = position - cut
            within = (place >= 0) & (place < width)
            found = torch.where(within[..., None], self.inserted.T[place.clamp(0, width - 1)], found)
        return found


def moved_scores(
    model: torch.nn.Module, precomputation: Any, request: Request, kinds: Sequence[Splices], what: str
) -> list[Any]:
    """``y(mutant) - y(reference)`` of all mutants: for each kind ``(n, cuts, O...)``, in the model's own container.

    ``request`` has the sequences, the model's other inputs and the selection; ``what`` is the progress bar's title.
    """
    X = request.X
    unchanged = Splices(X, X, X.new_zeros(X.shape[1], 0), 0, 1)
    (reference, *found), spec = _predictions(model, precomputation, request, [unchanged, *kinds], what)
    results = []
    for leaves in found:
        scores = [
            to_user(leaf - base, request.as_numpy) if isinstance(leaf, torch.Tensor) else leaf
            for leaf, base in zip(leaves, reference, strict=True)
        ]
        results.append(pytree.tree_unflatten(scores, spec))
    return results


def _predictions(
    model: torch.nn.Module, precomputation: Any, request: Request, kinds: Sequence[Splices], what: str
) -> tuple[list[list[Any]], Any]:
    """For each kind the predictions ``(n, cuts, O...)`` of each output, and the container that they are from."""
    n = len(request.X)
    most = max(kind.stop - kind.first for kind in kinds)
    beside = -(-most // (2 * -(-most // (2 * MOST_BESIDE))))  # as few references, evenly spaced
    blocks = [-(-(kind.stop - kind.first) // (2 * beside)) for kind in kinds]
    rows = [(k, i, b) for k, count in enumerate(blocks) for i in range(n) for b in range(count)]
    width = min(beside + max(kind.inserted.shape[1] for kind in kinds), request.X.shape[2])
    bytes_of_a_row = 2 * beside * width * request.X.shape[1] * request.X.element_size()
    at_once = max(BYTES_AT_ONCE // bytes_of_a_row, 1)
    found: list[list[Any]] = []
    spec: Any = None
    bar = tqdm(total=2 * beside * len(rows), disable=not request.verbose, desc=what, unit="mutant")
    with bar:
        for begin in range(0, len(rows), at_once):
            some = rows[begin : begin + at_once]
            leaves, spec = pytree.tree_flatten(_answer(model, precomputation, request, kinds, some, beside, width))
            if not found:
                found = [[_room(leaf, n, count) for leaf in leaves] for count in blocks]
            for row, (k, i, b) in enumerate(some):
                for whole, leaf in zip(found[k], leaves, strict=True):
                    if isinstance(leaf, torch.Tensor):
                        whole[i, b] = leaf[row].movedim(1, 0).flatten(0, 1)  # (edits, sides) to cuts in order
            bar.update(2 * beside * len(some))
    for kind, leaves in zip(kinds, found, strict=True):
        count = kind.stop - kind.first
        leaves[:] = [v.flatten(1, 2)[:, :count] if isinstance(v, torch.Tensor) else v for v in leaves]
    return found, spec


def _room(leaf: Any, n: int, blocks: int) -> Any:
    """Room for the predictions of one kind and output: ``(n, blocks, cuts, O...)``."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return leaf.new_zeros(n, blocks, leaf.shape[1] * leaf.shape[2], *leaf.shape[3:])


def _answer(
    model: torch.nn.Module,
    precomputation: Any,
    request: Request,
    kinds: Sequence[Splices],
    rows: list[tuple[int, int, int]],
    beside: int,
    width: int,
) -> Any:
    """Predictions ``(rows, beside, 2, O...)`` of mutants before and from the cut of each reference."""
    length = request.X.shape[2]
    everywhere = torch.arange(length)
    references, own, positions = [], [], []
    for k, i, b in rows:
        kind = kinds[k]
        cut = kind.first + (2 * b + 1) * beside
        references.append(kind.letters(i, torch.tensor(min(cut, kind.stop - 1)), everywhere))
        starts = np.clip([cut - beside, cut], 0, length - width)
        positions.append(starts)
        for side, start in enumerate(starts):
            cuts = torch.arange(beside) + cut + (side - 1) * beside
            place = torch.arange(width) + int(start)
            own.append(kind.letters(i, cuts.clamp(max=kind.stop - 1)[:, None], place))
    sequence = torch.tensor([i for _, i, _ in rows])
    letters = torch.stack(own).unflatten(0, (len(rows), 2))  # (rows, 2, beside, width, C)
    mutations = Mutations(request.X.shape[1], length, np.stack(positions), width, own=letters)
    asked = replace(
        request,
        X=torch.stack(references).mT.contiguous(),
        states=[tuple(a[sequence] for a in args) for args in request.states],
        mutations=mutations,
        output="prediction",
        verbose=False,
        as_numpy=False,
    )
    return answer(model, precomputation, asked, stacked=False)
