"""The edits that a call asks for, and the mutants that they make: the only place that builds mutants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from yuzu._engine.checks import check_ranges, check_replacement, check_span
from yuzu._engine.kept import Kept
from yuzu._engine.layout import on_device
from yuzu.errors import YuzuError, shown


@dataclass(frozen=True, eq=False)
class Sites:
    """The edits of one chunk: ``S`` sites with ``A`` edits each.

    Attributes
    ----------
    sequence: integer array, shape=(S,)
        Row of the batch each site lies in; never decreasing.
    position: integer array, shape=(S,)
        First edited position; never decreasing within a sequence.
    width: int
        Number of edited positions.
    difference: torch.Tensor, shape=(S, A, width, C)
        Edited minus reference letters.
    codes: torch.Tensor or None, shape=(S, A)
        See `Change`.
    """

    sequence: np.ndarray
    position: np.ndarray
    width: int
    difference: torch.Tensor
    codes: torch.Tensor | None = None

    @property
    def only(self) -> int | None:
        """The sequence that all sites lie in, if it is one."""
        return int(self.sequence[0]) if self.sequence[0] == self.sequence[-1] else None

    def part(self, keep: slice) -> Sites:
        """Some of the sites."""
        codes = None if self.codes is None else self.codes[keep]
        return Sites(self.sequence[keep], self.position[keep], self.width, self.difference[keep], codes)

    def in_each(self, sequences: int) -> Sites:
        """The sites of one sequence in each of so many."""
        sequence = np.repeat(np.arange(sequences), len(self.position))
        difference = self.difference.repeat(sequences, 1, 1, 1)
        codes = None if self.codes is None else self.codes.repeat(sequences, 1)
        return Sites(sequence, np.tile(self.position, sequences), self.width, difference, codes)


def substitutions_at(position: np.ndarray, written: torch.Tensor, X: torch.Tensor) -> Sites:
    """Characters ``(S, A)`` written at positions of one sequence ``(1, C, L)``, over those that are there."""
    c = X.shape[1]
    overwritten = X[0, :, torch.from_numpy(position).to(X.device)].argmax(0)[:, None]
    eye = torch.eye(c, dtype=X.dtype, device=X.device)
    difference = (eye[written] - eye[overwritten]).unsqueeze(2)
    sequence = np.zeros(len(position), dtype=np.int64)
    return Sites(sequence, position, 1, difference, written * (c + 1) + overwritten)


def mutants_of(X: torch.Tensor, sites: Sites, replacement: torch.Tensor | None = None) -> torch.Tensor:
    """The mutants ``(S * A, C, L)`` of sequences ``(B, C, L)``; with a ``replacement`` ``(width, C)`` its own numbers
    are written, rather than sums that are rounded.
    """
    edits, device = sites.difference.shape[1], X.device
    sequence = torch.from_numpy(sites.sequence).to(device).repeat_interleave(edits)
    mutants = X.index_select(0, sequence)
    first = torch.from_numpy(sites.position).to(device).repeat_interleave(edits)[:, None]
    place = first + torch.arange(sites.width, device=device)
    row = torch.arange(len(mutants), device=device)[:, None]
    if replacement is not None:
        mutants[row, :, place] = replacement.expand(len(mutants), *replacement.shape)
        return mutants
    values = mutants[row, :, place] + sites.difference.flatten(0, 1)
    # over a soft column a letter is written: exactly 0 or 1
    mutants[row, :, place] = values.round() if sites.codes is None else values
    return mutants


@dataclass(frozen=True)
class Group:
    """Sites that can be carried together: as many edits at each, of the same kind.

    Attributes
    ----------
    sequence, position, slot: integer arrays, shape=(S,)
        Row of the batch, first edited position, and place on the result's axis of positions (or ranges).
    edits: int
        Edits at each site.
    coded: bool
        True if each edit writes one character over one other, or over none.
    """

    sequence: np.ndarray
    position: np.ndarray
    slot: np.ndarray
    edits: int
    coded: bool

    def part(self, keep: slice | np.ndarray) -> Group:
        return Group(self.sequence[keep], self.position[keep], self.slot[keep], self.edits, self.coded)


@dataclass(frozen=True, eq=False)
class Mutations:
    """The edits that a call asks for: every substitution at some positions, or one replacement at many places.

    Attributes
    ----------
    n_choices, length: int
        Characters and positions of a sequence.
    positions: integer array
        First positions of the edits.
    width: int
        Positions that one edit writes.
    replacement: torch.Tensor or None, shape=(C, width)
        The numbers that are written; None for substitutions.
    """

    n_choices: int
    length: int
    positions: np.ndarray
    width: int = 1
    replacement: torch.Tensor | None = None
    _moved: Kept[tuple[torch.device, torch.dtype], torch.Tensor] = field(default_factory=lambda: Kept(1), repr=False)

    @classmethod
    def asked(
        cls,
        n_choices: int,
        length: int,
        start: Any = 0,
        end: Any = None,
        ranges: Any = None,
        replace_with: Any = None,
    ) -> Mutations:
        """The edits that a user's arguments ask for; see `yuzu_ism`."""
        if ranges is None:
            first, stop = check_span(start, end, length)
            positions, width = np.arange(first, stop), 1
            if replace_with is None:
                return cls(n_choices, length, positions)
            if isinstance(replace_with, str) and len(replace_with) != 1:
                raise YuzuError(
                    f"replace_with without ranges is written at single positions, got {shown(replace_with)}, "
                    f"{len(replace_with)} wide"
                )
        else:
            if start not in (0, None) or end is not None:
                raise YuzuError(
                    f"ranges cannot be combined with start={shown(start)} or end={shown(end)}: leave those out"
                )
            positions, width = check_ranges(ranges, length)
        given = np.zeros(n_choices) if replace_with is None else replace_with
        return cls(n_choices, length, positions, width, check_replacement(given, n_choices, width))

    @property
    def result_shape(self) -> tuple[int, ...]:
        """The shape of a sequence's result before the model output's own axes: ``(C, L')``, or ``(R,)``."""
        return (self.n_choices, len(self.positions)) if self.substitutions else (len(self.positions),)

    @property
    def substitutions(self) -> bool:
        """True if every substitution is made, rather than one replacement at each place."""
        return self.replacement is None

    @property
    def edits_of_a_site(self) -> int:
        """How many mutants a site has at most: an N has all substitutions."""
        return self.n_choices if self.substitutions else 1

    def groups(self, letters: torch.Tensor, keep: np.ndarray | None = None) -> list[Group]:
        """The sites of a batch whose `letters_of` ``(B, L)`` are on the CPU, sorted by sequence and position. ``keep``
        masks ``self.positions``.
        """
        batch = letters.shape[0]
        order = np.argsort(self.positions, kind="stable")
        if keep is not None:
            order = order[keep[order]]
        position, slot = self.positions[order], order
        sequence = np.repeat(np.arange(batch), len(position))
        everything = Group(sequence, np.tile(position, batch), np.tile(slot, batch), 1, False)
        if not len(sequence):
            return []
        if not self.substitutions:
            return [everything]
        overwritten = letters.numpy()[everything.sequence, everything.position]
        found = []
        for mask, edits, coded in (
            (overwritten < self.n_choices, self.n_choices - 1, True),
            (overwritten == self.n_choices, self.n_choices, True),
            (overwritten > self.n_choices, self.n_choices, False),
        ):
            if mask.any() and edits:
                part = everything if mask.all() else everything.part(mask)
                found.append(Group(part.sequence, part.position, part.slot, edits, coded))
        return found

    def sites(self, X: torch.Tensor, letters: torch.Tensor, group: Group) -> tuple[Sites, torch.Tensor | None]:
        """The edits of a group (or part of one) on ``X``'s device, and the character each edit writes ``(S,
        A)`` for substitutions.
        """
        device = X.device
        sequence, position = on_device(group.sequence, device), on_device(group.position, device)
        if self.replacement is not None:
            offset = torch.arange(self.width, device=device)
            before = X[sequence[:, None], :, position[:, None] + offset]  # (S, w, C)
            difference = self._replacement_on(X) - before
            return Sites(group.sequence, group.position, self.width, difference.unsqueeze(1)), None
        c = self.n_choices
        letter = letters[sequence, position]
        table = _substitutions(c, device)
        if not group.coded:
            before = X[sequence, :, position]  # (S, C)
            written = torch.arange(c, device=device).expand(len(sequence), c)
            difference = torch.eye(c, dtype=X.dtype, device=device) - before[:, None]
            return Sites(group.sequence, group.position, 1, difference.unsqueeze(2)), written
        written, codes, difference = (t[letter, : group.edits] for t in (table.written, table.codes, table.differences))
        difference = difference.to(X.dtype).unsqueeze(2)
        return Sites(group.sequence, group.position, 1, difference, codes), written

    def _replacement_on(self, X: torch.Tensor) -> torch.Tensor:
        """The replacement ``(width, C)`` on the device and in the dtype of ``X``; moved there once."""
        replacement = self.replacement
        assert replacement is not None
        return self._moved.made((X.device, X.dtype), lambda: replacement.T.to(X))

    def mutants(self, X: torch.Tensor, sites: Sites) -> torch.Tensor:
        """The mutants' sequences ``(S * A, C, L)``."""
        return mutants_of(X, sites, None if self.substitutions else self._replacement_on(X))


@dataclass(frozen=True)
class Substitutions:
    """The characters that can be written over each of ``C``, and over none (the row ``C``).

    Attributes
    ----------
    written: torch.Tensor, shape=(C + 1, C), dtype=torch.int64
        The characters, in order; over a character only the first ``C - 1`` are meant.
    codes: torch.Tensor, shape=(C + 1, C), dtype=torch.int64
        See `Change`.
    differences: torch.Tensor, shape=(C + 1, C, C), dtype=torch.float32
        The one-hot letter that is written minus the character; no character is zero.
    """

    written: torch.Tensor
    codes: torch.Tensor
    differences: torch.Tensor


@lru_cache(maxsize=16)
def _substitutions(c: int, device: torch.device) -> Substitutions:
    rows = [[*range(letter), *range(letter + 1, c), letter] for letter in range(c)] + [list(range(c))]
    written = torch.tensor(rows, device=device)
    overwritten = torch.arange(c + 1, device=device)[:, None]
    letters = torch.cat([torch.eye(c, device=device), torch.zeros(1, c, device=device)])
    return Substitutions(written, written * (c + 1) + overwritten, letters[written] - letters[:, None])


def letters_of(X: torch.Tensor) -> torch.Tensor:
    """``(n, L)`` int64: the character of each one-hot column, ``C`` for an all-zero column, ``C + 1`` for any
    other.
    """
    c = X.shape[1]
    one = X == 1
    ones, zeros = one.sum(1), (X == 0).sum(1)
    letter = torch.where((ones == 1) & (zeros == c - 1), one.to(torch.uint8).argmax(1), c + 1)
    return torch.where(zeros == c, c, letter)


MOSTLY = 0.75  # the part of positions that lie far from the ends, from which on chunks of one sequence are better


def batches(
    group: Group, sites_at_once: int, regular: np.ndarray | None = None, across: bool = False
) -> Iterator[Group]:
    """A group in chunks; a chunk that spans sequences holds all sites of each, so that chunks of
    neighbouring batches look alike.

    ``regular`` tells which positions lie far from the ends. Where a chunk is of one sequence, the others get chunks of
    their own: in the middle all windows are evenly spaced, and nothing has to be moved to line them up. Where most
    positions do not, and chunks may go ``across`` sequences, a chunk holds the same positions of each: the windows of
    neighbouring positions are cut by the ends, and by the output's needs, in about the same way.
    """
    if across and regular is not None and group.sequence[-1:] != group.sequence[:1]:
        if regular[group.slot].mean() < MOSTLY:
            by_position = np.argsort(group.position, kind="stable")
            for part in np.array_split(by_position, -(-len(by_position) // sites_at_once)):
                yield group.part(np.sort(part))
            return
    _, counts = np.unique(group.sequence, return_counts=True)
    total = len(group.sequence)
    if not total:
        return
    if counts.max() * 2 <= sites_at_once and (counts == counts[0]).all():
        size = max(sites_at_once // int(counts[0]), 1) * int(counts[0])
        for i in range(0, total, size):
            yield group.part(slice(i, i + size))
        return
    begin = 0
    for count in counts:
        here = np.arange(begin, begin + int(count))
        begin += int(count)
        even = np.ones(len(here), dtype=bool) if regular is None else regular[group.slot[here]]
        if even.sum() * 2 < min(len(here), sites_at_once):
            even[:] = True
        for sites in (here[even], here[~even]):
            pieces = -(-len(sites) // sites_at_once)
            for part in np.array_split(sites, pieces) if pieces else []:
                steps = len(part) == part[-1] + 1 - part[0]
                yield group.part(slice(int(part[0]), int(part[-1]) + 1) if steps else part)
