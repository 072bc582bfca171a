"""Files of variants: VCF, and the tables that variant-scorer and its kin read.

VCF is read here rather than by cyvcf2 or pysam. Five of its columns are needed. Both bring htslib (10 to 30 MB of
compiled code, not for Windows), and refuse files that users have: without a header, without declared contigs, empty.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from yuzu._engine.checks import check_path
from yuzu._engine.text_files import text_lines, whole_number
from yuzu.errors import YuzuError, shown
from yuzu.variants.alleles import as_read, status_of
from yuzu.variants.table import COLUMNS, Row, frame_of

SCHEMAS = ("vcf", "chrombpnet", "bed", "plink", "original")


class _Layout(NamedTuple):
    """The places of a table's columns, from 0, the number of its first position, and how many columns it has."""

    chrom: int
    pos: int
    ref: int
    alt: int
    id: int
    first: int = 1
    columns: int = 5

    @property
    def least(self) -> int:
        """The columns that a row must have."""
        return max(self[:4]) + 1


_TABLES = {
    "chrombpnet": _Layout(0, 1, 2, 3, 4),
    "bed": _Layout(0, 1, 3, 4, 5, first=0, columns=6),
    "plink": _Layout(0, 3, 4, 5, 1, columns=6),
    "original": _Layout(0, 1, 3, 4, 2),
}
_VCF = _Layout(0, 1, 3, 4, 2)
_ENDINGS = {".vcf": "vcf", ".bed": "bed", ".bim": "plink"}
_NAMES = {
    "chrom": ("chrom", "chr", "chromosome", "#chrom", "#chr"),
    "pos": ("pos", "position"),
    "ref": ("ref", "allele1", "reference"),
    "alt": ("alt", "allele2", "alternate"),
    "id": ("id", "variant_id", "rsid", "snp"),
}
_POSITIONS = {*_NAMES["pos"], "start"}
_ALLELE = re.compile(r"[A-Za-z]+|-|\*|<.*>|")
_Lines = list[tuple[int, list[str]]]


def read(path: str | os.PathLike[str], schema: str | None = None) -> Any:
    """Read variants from a VCF file or a table, one row for each alternative allele, in the file's order.

    No row is dropped. Those that cannot be scored are kept with the reason as their status. Files may be plain, gzip or
    bgzip (told from their first bytes), with line ends of Unix or Windows.

    Parameters
    ----------
    path: str or os.PathLike
    schema: str or None
        ``"vcf"``, or one of the tables that variant-scorer reads, tab-separated and without a header: ``"chrombpnet"``
        (chromosome, position, allele 1, allele 2, id), ``"original"`` (chromosome, position, id, allele 1, allele 2),
        ``"plink"`` (chromosome, id, a column that is not read, position, allele 1, allele 2) and ``"bed"`` (chromosome,
        start, end, allele 1, allele 2, id). Positions count from 1, those of ``"bed"`` from 0. Allele 1 is the
        reference, and ``-`` is an empty allele. Default None: told from the file's name (``.vcf``, ``.bed``, ``.bim``)
        or its columns, by their names if there is a header with ``chr``, ``pos``, ``allele1`` and ``allele2``.

    Returns
    -------
    pandas.DataFrame
        ``chrom`` (as written), ``pos`` (int64, of the reference allele's first letter, counted from 0), ``ref`` and
        ``alt`` (upper case; "" for an empty allele), ``id`` ("." for none), and ``status``: ``"ok"``; ``"symbolic"``
        for ``<DEL>``, breakends and ``*``; ``"no_alternative"`` for ``.``; ``"not_acgt"`` for other letters.

    Raises
    ------
    YuzuError
        If a line lacks columns, or its position is no integer; the message names file, line and column. Also if it
        cannot be told in which schema a table is.
    OSError
        If the file cannot be opened.
    ImportError
        If pandas is not installed.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from yuzu import variants
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "some.vcf"
    ...     _ = path.write_text("#CHROM\\tPOS\\tID\\tREF\\tALT\\nchr1\\t8\\trs1\\ta\\tG,<DEL>\\n")
    ...     variants.read(path)
      chrom  pos ref    alt   id    status
    0  chr1    7   A      G  rs1        ok
    1  chr1    7   A  <DEL>  rs1  symbolic
    """
    place = check_path(path)
    if schema is not None and schema not in SCHEMAS:
        raise YuzuError(f"schema must be one of {', '.join(map(repr, SCHEMAS))}, or None, got {shown(schema)}")
    if schema is None:
        name = re.sub(r"\.(gz|bgz)$", "", place.name.lower())
        schema = _ENDINGS.get(Path(name).suffix)
    lines: _Lines = []
    titles: list[str] | None = None
    for number, line in text_lines(place, "VCF or a table of variants"):
        if line.startswith("#"):
            if schema is None and line.startswith(("##fileformat=VCF", "#CHROM\tPOS")):
                schema = "vcf"
            titles = _split(line) if not lines and not line.startswith("##") else titles
            continue
        cells = _split(line, _VCF.columns if schema == "vcf" else -1)  # it may have thousands of samples
        lines.append((number, cells))
    if schema == "vcf":
        return _frame(place, lines, _VCF, _alternatives)
    if lines and _POSITIONS & {cell.lower() for cell in lines[0][1]}:
        number, titles = lines.pop(0)
        if schema is None and _named(titles) is None:
            raise YuzuError(
                f"{place}, line {number}: got a header {shown(titles)}, want columns chr, pos, allele1 and allele2; or "
                "leave it out, and give the schema"
            )
    if schema is not None:
        layout = _TABLES[schema]
    else:
        layout = (None if titles is None else _named(titles)) or _told_from(place, lines)
    return _frame(place, lines, layout, lambda cell: [cell])


def _split(line: str, most: int = -1) -> list[str]:
    """The cells of a line; at ``most`` so many, unless it is -1."""
    cells = line.split("\t" if "\t" in line else None, most)
    return [cell.strip() for cell in (cells if most < 0 else cells[:most])]


def _alternatives(cell: str) -> list[str]:
    return [alternative or "." for alternative in cell.split(",")]


def _named(titles: Sequence[str]) -> _Layout | None:
    """The layout of a table with a header; None if it lacks one of the names."""
    lower = [title.lower() for title in titles]
    places = {
        name: next((lower.index(known) for known in names if known in lower), -1) for name, names in _NAMES.items()
    }
    if min(places[name] for name in COLUMNS[:4]) < 0:
        return None
    ours = lower[: len(COLUMNS)] == list(COLUMNS)  # a table of scores that yuzu wrote
    return _Layout(**places, first=0 if ours else 1)


def _told_from(path: Path, lines: _Lines) -> _Layout:
    """The layout that every row fits."""
    fitting = [name for name, layout in _TABLES.items() if all(_fits(name, layout, cells) for _, cells in lines)]
    if not lines or len(fitting) == 1:
        return _TABLES[fitting[0] if fitting else "chrombpnet"]
    got = f"{path}, line {lines[0][0]}: got columns {shown(lines[0][1][:6])}"
    known = ", ".join(map(repr, SCHEMAS))
    if fitting:
        raise YuzuError(f"{got}, which fit the schemas {' and '.join(map(repr, fitting))}; say which with schema=")
    raise YuzuError(
        f"{got}, which fit no schema in all rows; give schema=, one of {known}, and the error names the row"
    )


def _fits(name: str, layout: _Layout, cells: list[str]) -> bool:
    if not layout.least <= len(cells) <= layout.columns or (name == "bed" and len(cells) < layout.columns):
        return False
    integers = (1, 2) if name == "bed" else (layout.pos,)
    return all(whole_number(cells[place]) is not None for place in integers) and all(
        _ALLELE.fullmatch(cells[place]) for place in (layout.ref, layout.alt)
    )


def _frame(path: Path, lines: _Lines, layout: _Layout, alternatives: Callable[[str], list[str]]) -> Any:
    rows, ids = [], []
    for number, cells in lines:
        where = f"{path}, line {number}"
        if len(cells) < layout.least:
            raise YuzuError(
                f"{where}: got {len(cells)} columns, want at least {layout.least}, with the position in column "
                f"{layout.pos + 1} and the alleles in columns {layout.ref + 1} and {layout.alt + 1}"
            )
        pos = whole_number(cells[layout.pos])
        if pos is None or pos < 0:
            raise YuzuError(
                f"{where}: got {cells[layout.pos][:40]!r} in column {layout.pos + 1}, want a position, an integer "
                f"counted from {layout.first}"
            )
        if not cells[layout.chrom]:
            raise YuzuError(f"{where}: got nothing in column {layout.chrom + 1}, want a chromosome's name")
        ref = as_read(cells[layout.ref])
        for cell in alternatives(cells[layout.alt]):
            alt = as_read(cell)
            rows.append(Row(cells[layout.chrom], pos - layout.first, ref, alt, status_of(ref, alt)))
            ids.append(cells[layout.id] if 0 <= layout.id < len(cells) and cells[layout.id] else ".")
    return frame_of(rows, ids)
