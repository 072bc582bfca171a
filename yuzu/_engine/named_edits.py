"""Edits that are named one by one: letters written over those of some sequences, each at a place of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from yuzu._engine.edits import Sites, letters_of
from yuzu._engine.layout import on_device


@dataclass(frozen=True, eq=False)
class NamedEdits:
    """Edits of one width, in any order.

    Attributes
    ----------
    row, position: integer arrays, shape=(E,)
        The sequence of a batch, and the first position that is written.
    letters: integer array, shape=(E, width)
        The characters that are written; ``C`` writes none, a column of zeros.
    number: integer array, shape=(E,)
        The number by which the caller knows each edit.
    """

    row: np.ndarray
    position: np.ndarray
    letters: np.ndarray
    number: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    @property
    def width(self) -> int:
        """The positions that each edit writes."""
        return int(self.letters.shape[1])

    def part(self, keep: np.ndarray | slice) -> NamedEdits:
        """Some of the edits."""
        return NamedEdits(self.row[keep], self.position[keep], self.letters[keep], self.number[keep])

    def of_rows(self, rows: np.ndarray) -> NamedEdits:
        """The edits of some sequences, given in increasing order, which become rows 0, 1, ..."""
        keep = np.isin(self.row, rows)
        return NamedEdits(
            np.searchsorted(rows, self.row[keep]), self.position[keep], self.letters[keep], self.number[keep]
        )

    def at_one_position(self) -> bool:
        """Tell whether all sequences are edited at the same position, and at no other."""
        return bool((self.position == self.position[0]).all())

    def chunks(self, X: torch.Tensor, edits_at_once: int) -> Iterator[tuple[Sites, np.ndarray]]:
        """The edits of sequences ``(B, C, L)`` as sites, some at a time, and the number of each ``(S, A)``. Edits at
        one place are one site; the sites of a chunk have as many edits each.
        """
        order = np.lexsort((self.position, self.row))
        row, position = self.row[order], self.position[order]
        begins = np.flatnonzero(np.r_[True, (np.diff(row) != 0) | (np.diff(position) != 0)][: len(row)])
        counts = np.diff(np.r_[begins, len(row)])
        for count in np.unique(counts):
            members = order[begins[counts == count][:, None] + np.arange(count)]  # (S, A)
            size = max(edits_at_once // int(count), 1)
            for first in range(0, len(members), size):
                some = members[first : first + size]
                yield self._sites(X, some), self.number[some]

    def _sites(self, X: torch.Tensor, members: np.ndarray) -> Sites:
        c, device = X.shape[1], X.device
        row, position = self.row[members[:, 0]], self.position[members[:, 0]]
        here = on_device(row, device)[:, None], on_device(position, device)[:, None]
        before = X[here[0], :, here[1] + torch.arange(self.width, device=device)]  # (S, width, C)
        written = on_device(self.letters[members], device)  # (S, A, width)
        difference = _table(c, X)[written] - before[:, None]
        codes = None
        if self.width == 1:
            overwritten = letters_of(before.movedim(1, 2))  # (S, 1)
            if bool((overwritten <= c).all()):
                codes = written[..., 0] * (c + 1) + overwritten
        return Sites(row, position, self.width, difference, codes)

    def mutants(self, X: torch.Tensor) -> torch.Tensor:
        """The edited sequences ``(E, C, L)``, in this order."""
        mutants = X[on_device(self.row, X.device)]
        place = on_device(self.position, X.device)[:, None] + torch.arange(self.width, device=X.device)
        each = torch.arange(len(mutants), device=X.device)[:, None]
        mutants[each, :, place] = _table(X.shape[1], X)[on_device(self.letters, X.device)]
        return mutants


def _table(c: int, X: torch.Tensor) -> torch.Tensor:
    """The columns of the characters, and of none: ``(C + 1, C)``."""
    return torch.eye(c + 1, c, dtype=X.dtype, device=X.device)
