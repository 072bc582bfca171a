"""Tables of variants: the columns that every one has, and a user's own, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from yuzu.errors import YuzuError, shown
from yuzu.variants.alleles import N_IN_WINDOW, OK, as_read, status_of

COLUMNS = ("chrom", "pos", "ref", "alt", "id", "status")


class Row(NamedTuple):
    """A variant as its table has it: ``pos`` counts from 0, alleles are in upper case."""

    chrom: str
    pos: int
    ref: str
    alt: str
    status: str


def pandas() -> Any:
    """The package pandas.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("tables of variants are pandas frames: pip install pandas") from error
    return pandas


def frame_of(rows: Sequence[Row], ids: Sequence[str]) -> Any:
    """The frame that `read` gives."""
    columns: list[Any] = list(zip(*rows, strict=True)) or [[]] * len(Row._fields)
    chrom, pos, ref, alt, status = columns
    texts = {"chrom": chrom, "ref": ref, "alt": alt, "id": ids, "status": status}
    pd = pandas()
    made = {name: pd.Series(list(texts[name]), dtype="object") for name in texts}
    made["pos"] = pd.Series(np.array(pos, dtype=np.int64))
    return pd.DataFrame({name: made[name] for name in COLUMNS})


def rows_of(table: Any) -> list[Row]:
    """The variants of a frame.

    Raises
    ------
    YuzuError
        Naming the column, the row and its value.
    """
    pd = pandas()
    if not isinstance(table, pd.DataFrame):
        raise YuzuError(f"table: got {type(table).__name__}, want a pandas.DataFrame, such as variants.read gives")
    missing = [name for name in COLUMNS[:4] if name not in table.columns]
    if missing:
        raise YuzuError(
            f"table: got the columns {shown(list(map(str, table.columns)))}, want {', '.join(COLUMNS[:4])}; "
            f"{missing[0]!r} is missing"
        )
    repeated = [name for name in COLUMNS if list(table.columns).count(name) > 1]
    if repeated:
        raise YuzuError(f"table: got several columns {repeated[0]!r}, want one")
    places = [_position(value, row) for row, value in enumerate(table["pos"].tolist())]
    chroms = [_chromosome(value, row) for row, value in enumerate(table["chrom"].tolist())]
    refs = [_allele(value, "ref", row) for row, value in enumerate(table["ref"].tolist())]
    alts = [_allele(value, "alt", row) for row, value in enumerate(table["alt"].tolist())]
    found = [status_of(ref, alt) for ref, alt in zip(refs, alts, strict=True)]
    if "status" in table.columns:  # one that a file was read with, or that another program gave
        given = [_status(value, row) for row, value in enumerate(table["status"].tolist())]
        found = [here if there in (OK, N_IN_WINDOW) else there for here, there in zip(found, given, strict=True)]
    return [Row(*row) for row in zip(chroms, places, refs, alts, found, strict=True)]


def with_columns(table: Any, columns: Mapping[str, Any]) -> Any:
    """A copy of a frame with further columns, or others in the place of some."""
    pd = pandas()
    made = {name: pd.Series(values, index=table.index) for name, values in columns.items() if name != "status"}
    frame = table.drop(columns=[name for name in made if name in table.columns])
    frame = frame.assign(status=pd.Series(list(columns["status"]), index=table.index, dtype="object"))
    return pd.concat([frame, pd.DataFrame(made, index=table.index)], axis=1)


def _position(value: Any, row: int) -> int:
    whole = isinstance(value, int | np.integer | float | np.floating) and not isinstance(value, bool)
    if not whole or value != value or value != int(value):
        raise YuzuError(f"table: got {shown(value)} in column 'pos' of row {row}, want an integer, counted from 0")
    return int(value)


def _chromosome(value: Any, row: int) -> str:
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise YuzuError(f"table: got {shown(value)} in column 'chrom' of row {row}, want a chromosome's name")
    return value


def _allele(value: Any, name: str, row: int) -> str:
    if not isinstance(value, str):
        raise YuzuError(f"table: got {shown(value)} in column {name!r} of row {row}, want letters, '' for none")
    return as_read(value)


def _status(value: Any, row: int) -> str:
    if not isinstance(value, str) or not value:
        raise YuzuError(f"table: got {shown(value)} in column 'status' of row {row}, want 'ok' or a reason")
    return value
