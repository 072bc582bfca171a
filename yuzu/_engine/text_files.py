"""Text files: their lines, plain or gzipped, and the integers in their tables."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterator
from decimal import Decimal

from yuzu.errors import YuzuError


def text_lines(path: str | os.PathLike[str], kind: str) -> Iterator[tuple[int, str]]:
    """The lines of a text file, plain or gzipped, that are not blank, without their ends.

    Parameters
    ----------
    path : str or os.PathLike
        The file, in UTF-8. That it is gzipped is told from its first bytes. Lines may end as on Windows.
    kind : str
        What it should be, such as "FASTA", for the error.

    Yields
    ------
    tuple of int and str
        The number of the line, counted from 1, and the line.

    Raises
    ------
    YuzuError
        If the file is not text, or damaged gzip.
    OSError
        If the file cannot be opened.
    """
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    number = 0
    opener = gzip.open if zipped else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as text:
            for number, line in enumerate(text, 1):
                if line.strip():
                    yield number, line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise YuzuError(f"{path}, after line {number}: not {kind}, not even text ({error})") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise YuzuError(f"{path}, after line {number}: damaged gzip file ({error})") from error


_WHOLE = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


_DIGITS = 15  # of the largest that is read


def whole_number(text: str) -> int | None:
    """The whole number that a cell of a table holds, however it is spelled; None if it holds something else.

    Parameters
    ----------
    text : str
        Such as "4", "+4", " 4 ", "4.0" (as pandas writes a column with a missing value) or "4e2". Not "4.5", "1,000",
        "nan" or "", nor numbers of more than 15 digits.

    Examples
    --------
    >>> [whole_number(text) for text in ("4", "4.0", "4e2", "-1", "4.5", "nan", "")]
    [4, 4, 400, -1, None, None, None]
    """
    text = text.strip()
    if not _WHOLE.fullmatch(text):
        return None
    value = Decimal(text)
    if abs(value) >= 10**_DIGITS or value != value.to_integral_value():
        return None
    return int(value)
