"""The edits that a call asks for, and the mutants that they make: the only place that builds mutants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
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
    letters: torch.Tensor or None, shape=(S, A, width, C)
        The numbers that are written, where the sums of differences and reference would be rounded.
    """

    sequence: np.ndarray
    position: np.ndarray
    width: int
    difference: torch.Tensor
    codes: torch.Tensor | None = None
    letters: torch.Tensor | None = None

    @property
    def only(self) -> int | None:
        """The sequence that all sites lie in, if it is one."""
        return int(self.sequence[0]) if self.sequence[0] == self.sequence[-1] else None

    def part(self, keep: slice) -> Sites:
        """Some of the sites."""
        codes, letters = (None if t is None else t[keep] for t in (self.codes, self.letters))
        return Sites(self.sequence[keep], self.position[keep], self.width, self.difference[keep], codes, letters)

    def in_each(self, sequences: int) -> Sites:
        """The sites of one sequence in each of so many."""
        sequence = np.repeat(np.arange(sequences), len(self.position))
        difference = self.difference.repeat(sequences, 1, 1, 1)
        codes = None if self.codes is None else self.codes.repeat(sequences, 1)
        letters = None if self.letters is None else self.letters.repeat(sequences, 1, 1, 1)
        return Sites(sequence, np.tile(self.position, sequences), self.width, difference, codes, letters)


def substitutions_at(position: np.ndarray, written: torch.Tensor, X: torch.Tensor) -> Sites:
    """Characters ``(S, A)`` written at positions of one sequence ``(1, C, L)``, over those that are there."""
    c = X.shape[1]
    overwritten = X[0, :, torch.from_numpy(position).to(X.device)].argmax(0)[:, None]
    eye = torch.eye(c, dtype=X.dtype, device=X.device)
    difference = (eye[written] - eye[overwritten]).unsqueeze(2)
    sequence = np.zeros(len(position), dtype=np.int64)
    return Sites(sequence, position, 1, difference, written * (c + 1) + overwritten)


def mutants_of(X: torch.Tensor, sites: Sites) -> torch.Tensor:
    """The mutants ``(S * A, C, L)`` of sequences ``(B, C, L)``."""
    edits, device = sites.difference.shape[1], X.device
    sequence = torch.from_numpy(sites.sequence).to(device).repeat_interleave(edits)
    mutants = X.index_select(0, sequence)
    first = torch.from_numpy(sites.position).to(device).repeat_interleave(edits)[:, None]
    place = first + torch.arange(sites.width, device=device)
    row = torch.arange(len(mutants), device=device)[:, None]
    if sites.letters is not None:
        mutants[row, :, place] = sites.letters.flatten(0, 1)
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
    """The edits that a call asks for: every substitution at some positions, one replacement at many places, or edits of
    each place's own.

    Attributes
    ----------
    n_choices, length: int
        Characters and positions of a sequence.
    positions: integer array, shape=(P,) or (n, P)
        First positions of the edits: the same for all sequences, or those of each, with -1 for no edit.
    width: int
        Positions that one edit writes.
    replacement: torch.Tensor or None, shape=(C, width)
        The numbers that are written at each place.
    own: torch.Tensor or None, shape=(n, P, A, width, C)
        The numbers that are written by each of ``A`` edits of each place. Without either there are substitutions.
    """

    n_choices: int
    length: int
    positions: np.ndarray
    width: int = 1
    replacement: torch.Tensor | None = None
    own: torch.Tensor | None = None
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
        """The shape of a sequence's result before the model output's own axes: ``(C, L')``, ``(R,)``, or ``(A, P)``."""
        return (
            (self.sites_of_a_sequence,)
            if self.replacement is not None
            else (self.edits_of_a_site, self.sites_of_a_sequence)
        )

    @property
    def substitutions(self) -> bool:
        """True if every substitution is made, rather than one replacement at each place, or edits of its own."""
        return self.replacement is None and self.own is None

    @property
    def edits_of_a_site(self) -> int:
        """How many mutants a site has at most: an N has all substitutions."""
        if self.own is not None:
            return self.own.shape[2]
        return self.n_choices if self.substitutions else 1

    @property
    def sites_of_a_sequence(self) -> int:
        """How many sites a sequence has at most."""
        return self.positions.shape[-1]

    @property
    def places(self) -> np.ndarray:
        """The positions at which any sequence has a site, in order."""
        return np.unique(self.positions[self.positions >= 0])

    def by_position(self, found: np.ndarray) -> np.ndarray:
        """Lay what is ``found`` out for `places` over all positions of a sequence."""
        table = np.zeros(self.length, dtype=found.dtype)
        table[self.places] = found
        return table

    def of_rows(self, rows: slice | Sequence[int]) -> Mutations:
        """The edits of some of the sequences."""
        if self.positions.ndim == 1 and self.own is None:
            return self
        rows = rows if isinstance(rows, slice) else list(rows)
        positions = self.positions if self.positions.ndim == 1 else self.positions[rows]
        return replace(self, positions=positions, own=None if self.own is None else self.own[rows])

    def groups(self, letters: torch.Tensor, keep: np.ndarray | None = None) -> list[Group]:
        """The sites of a batch whose `letters_of` ``(B, L)`` are on the CPU, sorted by sequence and position. ``keep``
        masks the positions of a sequence.
        """
        positions = np.broadcast_to(self.positions, (letters.shape[0], self.sites_of_a_sequence))
        order = np.argsort(positions, axis=1, kind="stable")
        ordered = np.take_along_axis(positions, order, axis=1)
        wanted = ordered >= 0
        if keep is not None:
            wanted &= keep[ordered]
        sequence, place = np.nonzero(wanted)
        everything = Group(sequence, ordered[sequence, place], order[sequence, place], 1, False)
        if not len(sequence):
            return []
        if self.own is not None:
            return [replace(everything, edits=self.edits_of_a_site)]
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
        A)`` for substitutions, or its number among a place's own.
        """
        device = X.device
        sequence, position = on_device(group.sequence, device), on_device(group.position, device)
        if not self.substitutions:
            offset = torch.arange(self.width, device=device)
            before = X[sequence[:, None], :, position[:, None] + offset].unsqueeze(1)  # (S, 1, w, C)
            if self.own is not None:
                letters = self.own[torch.from_numpy(group.sequence), torch.from_numpy(group.slot)].to(X)
                number = torch.arange(group.edits, device=device).expand(len(sequence), group.edits)
            else:
                letters, number = self._replacement_on(X).expand_as(before), None
            return Sites(group.sequence, group.position, self.width, letters - before, letters=letters), number
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

    ``regular`` tells which positions of a sequence lie far from its ends. Where a chunk is of one sequence, the others
    get chunks of their own: in the middle all windows are evenly spaced, and nothing has to be moved to line them up.
    Where most positions do not, and chunks may go ``across`` sequences, a chunk holds the same positions of each: the
    windows of neighbouring positions are cut by the ends, and by the output's needs, in about the same way.
    """
    if across and regular is not None and group.sequence[-1:] != group.sequence[:1]:
        if regular[group.position].mean() < MOSTLY:
            by_position = np.argsort(group.position, kind="stable")
            for part in np.array_split(by_position, -(-len(by_position) // sites_at_once)):
                yield group.part(np.sort(part))
            return
    _, counts = np.unique(group.sequence, return_counts=True)
    total = len(group.sequence)
    if not total:
        return
    if counts.max() * 2 <= sites_at_once:
        ends, begin = counts.cumsum(), 0
        while begin < total:
            end = int(ends[np.searchsorted(ends, begin + sites_at_once, "right") - 1])
            yield group.part(slice(begin, end))
            begin = end
        return
    begin = 0
    for count in counts:
        here = np.arange(begin, begin + int(count))
        begin += int(count)
        even = np.ones(len(here), dtype=bool) if regular is None else regular[group.position[here]]
        if even.sum() * 2 < min(len(here), sites_at_once):
            even[:] = True
        for sites in (here[even], here[~even]):
            pieces = -(-len(sites) // sites_at_once)
            for part in np.array_split(sites, pieces) if pieces else []:
                steps = len(part) == part[-1] + 1 - part[0]
                yield group.part(slice(int(part[0]), int(part[-1]) + 1) if steps else part)
