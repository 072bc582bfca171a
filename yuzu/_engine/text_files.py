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
    """Yield the lines of a text file, plain or gzipped, without blank lines and line ends.

    Parameters
    ----------
    path : str or os.PathLike
        The file, in UTF-8. Its first bytes tell whether it is gzipped. Lines may end as on Windows.
    kind : str
        The format that is wanted, such as "FASTA", for the error.

    Yields
    ------
    tuple of int and str
        The number of the line, counted from 1, and its text.

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


_DIGITS = 15  # most digits of an integer that is read


def whole_number(text: str) -> int | None:
    """Read the integer in a cell of a table, in any spelling; None if the cell holds something else.

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
