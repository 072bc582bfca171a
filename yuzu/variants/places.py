"""The place of each variant in the genome: its one spelling, its window, and the sequences of either allele."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from yuzu._engine.alphabets import DNA
from yuzu.variants.alleles import (
    MISSING_CHROMOSOME,
    N_IN_WINDOW,
    OK,
    OUTSIDE,
    REF_MISMATCH,
    TOO_LONG,
    leftmost,
    trimmed,
)
from yuzu.variants.genome import Chromosomes
from yuzu.variants.table import Row

SIDES = {"left": ("left",), "right": ("right",), "average": ("left", "right")}
WIDEST = 64  # letters of a substitution that runs as a window; longer ones run as two forward passes
_PART_SHARED = 2  # variants that share a reference lie within 1 / _PART_SHARED of the sequence, far from its ends


class Place(NamedTuple):
    """A variant that can be scored.

    Attributes
    ----------
    row: int
        Its row in the table.
    chrom: str
        The genome's name of the chromosome.
    pos, ref, alt: int, str, str
        The spelling that is trimmed, and leftmost.
    """

    row: int
    chrom: str
    pos: int
    ref: str
    alt: str

    @property
    def substitutes(self) -> bool:
        """True if both alleles have one length, so that no flank moves."""
        return len(self.ref) == len(self.alt)

    def start(self, length: int) -> int:
        """The start of its window."""
        return self.pos - length // 2


def place_of(row: int, variant: Row, genome: Chromosomes, length: int, indels: str) -> tuple[str, Place | None]:
    """The status of a variant, and its place if it can be scored in sequences of a length."""
    if variant.status != OK:
        return variant.status, None
    found = genome.find(variant.chrom)
    if found is None:
        return MISSING_CHROMOSOME, None
    name, end = found
    if variant.pos < 0 or variant.pos + len(variant.ref) > end:
        return OUTSIDE, None
    if genome.read(name, variant.pos, variant.pos + len(variant.ref)) != variant.ref:
        return REF_MISMATCH, None
    spelled = leftmost(*trimmed(*variant[1:4]), lambda start, stop: genome.read(name, start, stop))
    place = Place(row, name, *spelled)
    windows = [_reference(place, length)]
    for side in SIDES[indels]:
        flanks = _flanks(place, length, side)
        if len(place.ref) > length - length // 2 or flanks[0] > place.pos or flanks[1] < place.pos + len(place.ref):
            return TOO_LONG, None
        windows.append(flanks)
    start, stop = min(w[0] for w in windows), max(w[1] for w in windows)
    if start < 0 or stop > end:
        return OUTSIDE, None
    known = not genome.read(name, start, stop).strip(DNA)
    return OK if known else N_IN_WINDOW, place


def _reference(place: Place, length: int) -> tuple[int, int]:
    start = place.start(length)
    return start, start + length


def _flanks(place: Place, length: int, side: str) -> tuple[int, int]:
    """The genome's positions that the alternative allele's sequence begins and ends with. One flank stays as it is in
    the reference's sequence; the other begins or ends elsewhere, so that the length stays.
    """
    start, stop = _reference(place, length)
    longer = len(place.alt) - len(place.ref)
    return (start, stop - longer) if side == "left" else (start + longer, stop)


def alternative(place: Place, genome: Chromosomes, length: int, side: str) -> str:
    """The sequence of the alternative allele."""
    start, stop = _flanks(place, length, side)
    before = genome.read(place.chrom, start, place.pos)
    return before + place.alt + genome.read(place.chrom, place.pos + len(place.ref), stop)


@dataclass(frozen=True)
class Group:
    """Variants on one sequence, which begins at ``start``."""

    chrom: str
    start: int
    members: Sequence[Place]


def groups_of(places: Sequence[Place], genome: Chromosomes, length: int, share: int, apart: bool) -> Iterator[Group]:
    """The sequences to run, in the genome's order. Variants at one place have one, unless they stay ``apart``; and so
    have substitutions of which the first letters lie within ``share`` of each other, if the chromosome is long enough
    around their middle.
    """
    share = min(share, length // _PART_SHARED)
    some: list[Place] = []
    for place in sorted(places, key=lambda p: (p.chrom, p.pos, p.row)):
        if some and (apart or not _together(some[0], place, share)):
            yield from _grouped(some, genome, length)
            some = []
        some.append(place)
    if some:
        yield from _grouped(some, genome, length)


def _together(first: Place, place: Place, share: int) -> bool:
    return first.chrom == place.chrom and place.pos - first.pos <= share


def _grouped(some: list[Place], genome: Chromosomes, length: int) -> Iterator[Group]:
    """One sequence for substitutions, centred between the first and the last; those of others are their own."""
    substituted = [place for place in some if _by_window(place)]
    others = [place for place in some if not _by_window(place)]
    found = genome.find(some[0].chrom)
    assert found is not None
    if substituted:
        first, last = substituted[0], substituted[-1]
        middle = (first.pos + last.pos) // 2
        start, reach = middle - length // 2, max(place.pos + len(place.ref) for place in substituted)
        if 0 <= start <= first.pos and reach <= start + length <= found[1]:
            yield Group(first.chrom, start, substituted)
        else:
            others = some
    by_place: dict[int, list[Place]] = {}
    for place in others:
        by_place.setdefault(place.pos, []).append(place)
    for pos, members in by_place.items():
        yield Group(members[0].chrom, pos - length // 2, members)


def _by_window(place: Place) -> bool:
    return place.substitutes and 0 < len(place.ref) <= WIDEST
