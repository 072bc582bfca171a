"""The letters of sequences."""

from __future__ import annotations

DNA = "ACGT"
PROTEIN = "ACDEFGHIKLMNPQRSTVWY"


def unknown_letter(alphabet: str) -> str:
    """The character that stands for no letter, an all-zero column: N, or X where N is one of the alphabet."""
    return next((c for c in "NX" if c not in alphabet), "")
