"""Rows of BED and narrowPeak files, checked cell by cell."""

from __future__ import annotations

import re

from yuzu._engine.text_files import whole_number
from yuzu.errors import YuzuError, warn_user

# Columns 7 to 9 hold a signal and two p-values: numbers, or a table's words for a missing one
_MEASURE = re.compile(
    r"|[.]|[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)(e[+-]?[0-9]+)?|[+-]?(inf|infinity|nan)|na|n/a|none|null|<na>", re.I
)


_COLOR = re.compile(r"[0-9]+,[0-9]+,[0-9]+,?")  # as BED has it in column 9


_CHOOSE = "pass summits=True if column 10 is the summit's offset, else summits=False"


def looks_like_narrow_peak(columns: list[str], where: str) -> bool:
    """True if the first row is one of a narrowPeak; warns if its column 10 may be a summit though it is not."""
    if len(columns) < 10:
        return False
    measures = all(map(_MEASURE.fullmatch, columns[6:9]))
    if len(columns) == 10 and measures:
        return True
    if len(columns) == 10 and not _COLOR.fullmatch(columns[8]):
        warn_user(
            f"{where}: got ten columns, but {columns[6:9]} in columns 7 to 9, where narrowPeak has numbers; column 10 "
            f"is not read, and windows are centred on the regions' midpoints. To be sure, {_CHOOSE}"
        )
    if len(columns) > 10 and measures and not _has_blocks(columns) and whole_number(columns[9]) is not None:
        warn_user(
            f"{where}: got {len(columns)} columns, narrowPeak has ten; column 10 is not read, and windows are centred "
            f"on the regions' midpoints. To be sure, {_CHOOSE}"
        )
    return False


def _has_blocks(columns: list[str]) -> bool:
    """True for a row of BED12: its column 10 is the number of items in the next two."""
    items = [[item for item in column.split(",") if item] for column in columns[10:12]]
    return len(items) == 2 and all(len(listed) == whole_number(columns[9]) for listed in items)


def check_measures(columns: list[str], first: int, where: str) -> None:
    for place, cell in enumerate(columns[6:9], 7):
        if not _MEASURE.fullmatch(cell):
            raise YuzuError(
                f"{where}: got {cell[:40]!r} in column {place}, want a number, for line {first} looks like narrowPeak; "
                f"{_CHOOSE}"
            )


def row_of(columns: list[str], summits: bool | None, where: str) -> tuple[str, int, int, int, str, str]:
    """Chromosome, start, end, summit, name and strand."""
    if len(columns) < 3 or not columns[0]:
        got = [cell[:40] for cell in columns[:3]]
        raise YuzuError(f"{where}: not BED; got {got}, want chromosome, start and end between tabs or blanks")
    if len(columns[0].split()) > 1:
        raise YuzuError(
            f"{where}: got {columns[0][:40]!r} in column 1, want a chromosome; columns stand between tabs where a line "
            "has one, and else between blanks"
        )
    start = _count(columns[1], "start as an integer, 0 or more, in column 2", where)
    end = _count(columns[2], "end as an integer, 0 or more, in column 3", where)
    if end <= start:
        raise YuzuError(f"{where}: got end {end}, want more than the start {start}, in column 3")
    name = (columns[3] if len(columns) > 3 else "") or "."
    strand = (columns[5] if len(columns) > 5 else "") or "."
    if strand not in ("+", "-", "."):
        raise YuzuError(f"{where}: got {strand[:40]!r} in column 6, want the strand '+', '-' or '.'")
    summit = (start + end) // 2
    if summits:
        if len(columns) < 10:
            raise YuzuError(f"{where}: got {len(columns)} columns, want the summit in column 10; or pass summits=False")
        if whole_number(columns[9]) != -1:
            want = "the summit's offset or -1 in column 10 as an integer, 0 or more; or pass summits=False"
            summit = start + _count(columns[9], want, where)
        if summit >= end:
            raise YuzuError(
                f"{where}: got {columns[9]} in column 10, want the summit's offset from the start, less than the "
                f"region's width {end - start}; pass summits=False if the column is something else"
            )
    return columns[0], start, end, summit, name, strand


def _count(text: str, want: str, where: str) -> int:
    value = whole_number(text)
    if value is None or value < 0:
        header = "; is this a header? Start it with '#'" if re.fullmatch(r"[A-Za-z_]+", text) else ""
        raise YuzuError(f"{where}: got {text[:40]!r}, want {want}{header}")
    return value
