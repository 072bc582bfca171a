"""Alleles: which can be scored; and one spelling of each variant, trimmed of what both share and leftmost."""

from __future__ import annotations

import re
from collections.abc import Callable

from yuzu._engine.alphabets import DNA

OK = "ok"
SYMBOLIC, NO_ALTERNATIVE, NOT_ACGT = "symbolic", "no_alternative", "not_acgt"
MISSING_CHROMOSOME, OUTSIDE, REF_MISMATCH = "missing_chromosome", "outside", "ref_mismatch"
TOO_LONG, N_IN_WINDOW = "too_long", "n_in_window"

_LETTERS = re.compile(f"[{DNA}]*")
_SYMBOL = re.compile(r"[<>\[\]*]")
_SINGLE_BREAKEND = re.compile(r"\.[A-Za-z]+|[A-Za-z]+\.")
_READ_AT_ONCE = 256  # letters of a repeat that are looked at together


def as_read(text: str) -> str:
    """An allele as the tables have it: letters in upper case, nothing for ``-``, symbols as they are."""
    text = text.strip()
    return "" if text == "-" else text if is_symbolic(text) else text.upper()


def is_symbolic(text: str) -> bool:
    """Tell whether an allele is a name, a breakend or ``*``, rather than letters."""
    return bool(_SYMBOL.search(text) or _SINGLE_BREAKEND.fullmatch(text))


def status_of(ref: str, alt: str) -> str:
    """Tell why alleles in upper case cannot be scored, or "ok"."""
    if is_symbolic(ref) or is_symbolic(alt):
        return SYMBOLIC
    if alt == ".":
        return NO_ALTERNATIVE
    return OK if _LETTERS.fullmatch(ref) and _LETTERS.fullmatch(alt) else NOT_ACGT


def trimmed(position: int, ref: str, alt: str) -> tuple[int, str, str]:
    """The alleles without the letters that they share at their ends, first those at the right."""
    if ref == alt:
        return position, ref[:1], alt[:1]
    most = min(len(ref), len(alt))
    shared = 0
    while shared < most and ref[-1 - shared] == alt[-1 - shared]:
        shared += 1
    ref, alt = ref[: len(ref) - shared], alt[: len(alt) - shared]
    most, shared = min(len(ref), len(alt)), 0
    while shared < most and ref[shared] == alt[shared]:
        shared += 1
    return position + shared, ref[shared:], alt[shared:]


def leftmost(position: int, ref: str, alt: str, read: Callable[[int, int], str]) -> tuple[int, str, str]:
    """Trimmed alleles at the leftmost place that gives the same sequence (Tan, Abecasis and Kang, Bioinformatics 2015).

    Parameters
    ----------
    position: int
        The first position of ``ref``, from 0; or the one that inserted letters precede.
    ref, alt: str
        Trimmed. Only insertions and deletions can move.
    read: callable
        Gives the chromosome's letters in upper case from one position to another.
    """
    moving = ref or alt
    if bool(ref) == bool(alt) or not moving:
        return position, ref, alt
    size, moved, begin = len(moving), 0, position
    while begin > 0:
        stop = begin
        begin = max(begin - _READ_AT_ONCE, 0)
        before = read(begin, stop)
        # an insertion or deletion may move by one if the letter that precedes it is its last; that then comes first
        for letter in reversed(before):
            if letter != moving[-1 - moved % size]:
                break
            moved += 1
        else:
            continue
        break
    turned = moving[size - moved % size :] + moving[: size - moved % size]
    return position - moved, turned if ref else "", turned if alt else ""
