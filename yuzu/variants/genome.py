"""A genome's chromosomes, found with or without ``chr``, and their letters."""

from __future__ import annotations

import re
from typing import Any

from yuzu._engine.alphabets import DNA, IUPAC
from yuzu.errors import YuzuError, one_line

_OTHER = re.compile(rf"[^{DNA}{IUPAC}]")


class Chromosomes:
    """An opened genome.

    Parameters
    ----------
    genome: mapping of str to sequences, such as a pyfaidx.Fasta
    """

    def __init__(self, genome: Any) -> None:
        self._genome = genome
        self._found: dict[str, tuple[str, int] | None] = {}

    def find(self, name: str) -> tuple[str, int] | None:
        """The genome's name of a chromosome, and its length; None if it has none such."""
        if name not in self._found:
            bare = name[3:] if name.lower().startswith("chr") else name
            mitochondrial = ("M", "MT") if bare.upper() in ("M", "MT") else ()
            others = [prefix + one for one in (bare, *mitochondrial) for prefix in ("chr", "", "Chr", "CHR")]
            known = next((one for one in (name, *others) if one in self._genome), None)
            self._found[name] = None if known is None else (known, len(self._genome[known]))
        return self._found[name]

    def read(self, name: str, start: int, end: int) -> str:
        """Letters of a chromosome, by the genome's name, in upper case."""
        if start >= end:
            return ""
        place = f"{name}:{start}-{end}"
        try:
            text = str(self._genome[name][start:end]).upper()
        except Exception as error:  # pyfaidx raises many kinds for a damaged or closed file
            raise YuzuError(f"genome: {place} cannot be read ({type(error).__name__}: {one_line(error)})") from error
        if len(text) != end - start:
            raise YuzuError(
                f"genome: got {len(text)} letters for {place}, want {end - start}; is it damaged, or no str?"
            )
        if bad := _OTHER.search(text):
            raise YuzuError(
                f"genome: got {bad.group()!r} at {name}:{start + bad.start()} (from 0), want letters of DNA"
            )
        return text
