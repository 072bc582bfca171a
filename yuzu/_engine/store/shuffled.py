"""Scores of shuffled windows: each has edits of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from yuzu._engine.checks import to_user
from yuzu._engine.edits import Mutations, letters_of
from yuzu._engine.progress import tqdm
from yuzu._engine.request import Request
from yuzu._engine.shuffles import shuffle_pairs, shuffled_orders
from yuzu._engine.store.states import answer

BYTES_AT_ONCE = 1 << 26  # of shuffled windows


@dataclass(frozen=True, eq=False)
class Shuffles:
    """Windows of ``width`` positions that begin at ``places``, each to be shuffled ``samples`` times.

    ``pairs`` keeps the counts of all pairs of neighbouring letters. Each sequence has its seed.
    """

    places: np.ndarray
    width: int
    samples: int
    pairs: bool
    seeds: Sequence[np.random.SeedSequence]

    def of(self, x: torch.Tensor, row: int) -> torch.Tensor:
        """The shuffled windows ``(R, samples, width, C)`` of a sequence ``(C, L)``, the ``row``-th."""
        rng = np.random.default_rng(self.seeds[row])
        inside = np.repeat(self.places[:, None] + np.arange(self.width), self.samples, axis=0)
        if self.pairs:
            letters = letters_of(x[None])[0].numpy()
            columns = torch.cat([torch.eye(len(x), dtype=x.dtype), x.new_zeros(1, len(x))])
            shuffled = columns[torch.from_numpy(shuffle_pairs(letters[inside], rng))]
        else:
            order = shuffled_orders(len(inside), self.width, rng)
            shuffled = x.T[torch.from_numpy(np.take_along_axis(inside, order, axis=1))]
        return shuffled.unflatten(0, (len(self.places), self.samples))


def shuffled_scores(model: torch.nn.Module, precomputation: Any, request: Request, shuffles: Shuffles) -> Any:
    """``y(mutant) - y(reference)`` of shuffled windows, ``(n, R, samples, O...)``, some sequences at a time."""
    n, n_choices, length = request.X.shape
    size = len(shuffles.places) * shuffles.samples * shuffles.width * n_choices * request.X.element_size()
    at_once = max(BYTES_AT_ONCE // size, 1)
    parts: list[list[Any]] = []
    spec: Any = None
    with tqdm(total=n, disable=not request.verbose, desc="shuffles", unit="sequence") as bar:
        for begin in range(0, n, at_once):
            rows = slice(begin, begin + at_once)
            X = request.X[rows]
            own = torch.stack([shuffles.of(x, begin + i) for i, x in enumerate(X)])
            asked = replace(
                request,
                X=X,
                states=[tuple(a[rows] for a in args) for args in request.states],
                mutations=Mutations(n_choices, length, shuffles.places, shuffles.width, own=own),
                verbose=False,
                as_numpy=False,
            )
            leaves, spec = pytree.tree_flatten(answer(model, precomputation, asked, stacked=False))
            parts.append(leaves)
            bar.update(len(X))
    found = [
        to_user(torch.cat(pieces).transpose(1, 2).contiguous(), request.as_numpy)
        if isinstance(pieces[0], torch.Tensor)
        else pieces[0]
        for pieces in zip(*parts, strict=True)
    ]
    return pytree.tree_unflatten(found, spec)


__all__ = ["Shuffles", "shuffled_scores"]
