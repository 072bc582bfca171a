"""The index (``.fai``) with which a genome's FASTA file is read: checked against the file, or made anew.

An index says where each record's letters begin and how long its lines are, so that a window is read without the rest.
The index of another file gives wrong letters silently, however new it is, so it is checked here. It is also made here,
so that errors name the line and the remedy. A row of an index has the record's name, the number of its letters, the
place of the first, and the letters and bytes of a line.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

from yuzu._engine.files import written_whole
from yuzu.errors import YuzuError

LARGE = 1 << 24  # bytes; of larger files an index is only sampled, smaller ones are read in a fifth of a second
CHUNK = 1 << 24  # bytes read at once
LINES_LOOKED_AT = 1000  # lines of each record that are sampled

_BOM = b"\xef\xbb\xbf"
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"PK\x03\x04": "zip", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz*-."
_SPACE = re.compile(rb"[ \t\r\n]*")
_LINE_ENDS = re.compile(rb"[\r\n]*")
_BEFORE_RECORDS = re.compile(rb"(?:[ \t]*\r?\n|;[^\n]*\n)*")  # blank lines, and comments of old


class Row(NamedTuple):
    """A line of an index."""

    name: str
    letters: int
    first: int
    line: int
    line_bytes: int

    def place(self, letter: int) -> int:
        """The place of a letter in the file."""
        return self.first + letter // self.line * self.line_bytes + letter % self.line

    @property
    def stop(self) -> int:
        """The place after the last letter."""
        return self.place(self.letters - 1) + 1


@contextlib.contextmanager
def index_of(path: str) -> Iterator[str]:
    """The path of an index that fits a FASTA file.

    It is the one beside the file, which is made if it is missing or does not fit; or a temporary one if that cannot be
    written.

    Raises
    ------
    YuzuError
        If the file cannot be indexed; the message names line and record.
    OSError
        If it cannot be opened.
    """
    beside = Path(path + ".fai")
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        with _mapped(path, file) as data:
            kept = _kept(beside, status)
            if kept is not None and len(data) >= LARGE and _fits(kept, data):
                rows = kept
            else:
                rows = _read(path, data)
    if rows == kept:
        yield str(beside)
        return
    content = "".join("\t".join(map(str, row)) + "\n" for row in rows)
    try:
        _write(beside, content, status)
        written = True
    except OSError:  # no permission, no space, or the index is open in another program
        written = False
    if written:
        yield str(beside)
        return
    with tempfile.TemporaryDirectory(prefix="yuzu") as folder:
        other = Path(folder) / beside.name
        _write(other, content, status)
        yield str(other)


def check_packing(path: str) -> str | None:
    """The compression of a file, by its first bytes: "bgzip", "gzip", "zip", ...; None for none."""
    with open(path, "rb") as file:
        head = file.read(18)
    kind = next((kind for magic, kind in _PACKED.items() if head.startswith(magic)), None)
    return "bgzip" if kind == "gzip" and head[12:14] == b"BC" else kind


def _write(path: Path, content: str, status: os.stat_result) -> None:
    with written_whole(path) as part:
        part.write_text(content)
        if (
            part.stat().st_mtime_ns < status.st_mtime_ns
        ):  # the genome's time lies in the future: the index must not look older than it
            os.utime(part, ns=(status.st_atime_ns, status.st_mtime_ns))


@contextlib.contextmanager
def _mapped(path: str, file: BinaryIO) -> Iterator[mmap.mmap]:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise YuzuError(f"genome: got {path}, want FASTA in a file on disk: a pipe cannot be read at many places")
    if not status.st_size:
        raise YuzuError(f"genome: got {path}, want FASTA; the file is empty")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


# An index that is there


def _kept(path: Path, status: os.stat_result) -> list[Row] | None:
    """The rows of an index that is not older than its file; None if there is no such index."""
    try:
        if path.stat().st_mtime_ns < status.st_mtime_ns:
            return None
        rows = []
        for line in path.read_text().splitlines():
            name, *numbers = line.split("\t")
            rows.append(Row(name, *map(int, numbers)))
    except (OSError, ValueError, TypeError):
        return None
    return rows


def _fits(rows: list[Row], data: mmap.mmap) -> bool:
    """True if the file has every record at the place that the index gives, in lines of that length, and no others."""
    at, size = _start(data), len(data)
    for row in rows:
        if not (0 < row.line < row.line_bytes <= row.line + 2 or row.line == row.line_bytes >= row.letters):
            return False
        stop = row.stop if row.letters > 0 else 0
        if not at < row.first < stop <= size or data[at : at + 1] != b">":
            return False
        end_of_header = _find(data, b"\n", at)
        if _skip(_LINE_ENDS, data, end_of_header) != row.first or not _lines_fit(row, stop, data):
            return False
        if data[at + 1 : end_of_header].split(maxsplit=1)[:1] != [row.name.encode()]:
            return False
        at = _skip(_SPACE, data, stop)
        if at == stop < size:  # there are more letters
            return False
    return at == size and len({row.name for row in rows}) == len(rows) > 0


def _lines_fit(row: Row, end: int, data: mmap.mmap) -> bool:
    """True if a sample of a record's lines, with the first and the last, begin and end at the right places."""
    count = (row.letters - 1) // row.line + 1
    for line in (*range(0, count - 1, max(count // LINES_LOOKED_AT, 1)), count - 1):
        first = row.first + line * row.line_bytes
        stop = min(first + row.line, end)
        if data[first - 1 : first] != b"\n" or data.find(b"\n", first, stop) >= 0:
            return False
        if stop < end and data[stop : first + row.line_bytes] not in (b"\n", b"\r\n"):
            return False
    return True


# An index from the file


def _read(path: str, data: mmap.mmap) -> list[Row]:
    """Read the whole file and make a row for each record."""
    at = _start(data)
    if data[at : at + 1] == b"\r":
        _refuse_carriage_return(path, data, at, None)
    if data[at : at + 1] != b">":
        got = repr(data[at : at + 40].split(b"\n")[0].decode("latin-1")) if at < len(data) else "no record"
        _refuse(path, data, at, None, f"got {got}, want a header such as '>chr1'; give the genome's FASTA file")
    rows: list[Row] = []
    lines: dict[str, int] = {}
    while at < len(data):
        end_of_header = _find(data, b"\n", at)
        lone = data.find(b"\r", at, end_of_header)
        if lone >= 0 and data[lone + 1 : lone + 2] != b"\n":
            _refuse_carriage_return(path, data, at, None)
        words = data[at + 1 : end_of_header].split(maxsplit=1)
        try:
            name = words[0].decode() if words else ""
        except UnicodeDecodeError:
            _refuse(path, data, at, None, f"got the name {words[0][:40].decode('latin-1')!r}, want one in UTF-8")
        if not name:
            _refuse(path, data, at, None, "got a header without a name, want such as '>chr1'; name the record")
        if name in lines:
            why = f"got a second record of this name, the first being on line {_line(data, lines[name])}"
            _refuse(path, data, at, name, f"{why}; rename one, or leave it out")
        lines[name] = at
        following = data.find(b"\n>", end_of_header)
        stop = len(data) if following < 0 else following + 1
        rows.append(_record(path, data, name, at, _skip(_LINE_ENDS, data, end_of_header), stop))
        at = stop
    return rows


def _record(path: str, data: mmap.mmap, name: str, header: int, first: int, stop: int) -> Row:
    """The row of one record, whose letters begin at ``first``; ``stop`` is where the next one begins."""
    end = _end(data, first, stop)
    if end <= first:
        _refuse(path, data, header, name, "got no letters, want a sequence; leave the record out, or get the file anew")
    if stop < len(data) and data[end:stop].count(b"\n") > 2:
        at = _find(data, b"\n", _find(data, b"\n", end) + 1) + 1
        why = "got a second blank line after the record, want one at the most"
        _refuse(path, data, at, name, f"{why}; take blank lines out: sed '/^[[:space:]]*$/d' OLD > NEW")
    line_end = data.find(b"\n", first, end)
    if line_end < 0:
        length = end - first
        row = Row(name, length, first, length, length + (2 if data[end : end + 2] == b"\r\n" else 1))
        step = CHUNK
    else:
        ends = 2 if data[line_end - 1 : line_end] == b"\r" else 1
        line_bytes = line_end + 1 - first
        whole = (end - first) // line_bytes
        row = Row(name, end - first - whole * ends, first, line_bytes - ends, line_bytes)
        step = line_bytes * max(CHUNK // line_bytes, 1)
    for at in range(first, end, step):
        _check_lines(path, data, row, at, min(at + step, end), line_end >= 0)
    return row


def _check_lines(path: str, data: mmap.mmap, row: Row, first: int, stop: int, several: bool) -> None:
    """Refuse lines of a record that have another length than its first, or anything but letters."""
    block = data[first:stop]
    ends = row.line_bytes - row.line
    feeds = block[row.line_bytes - 1 :: row.line_bytes] if several else b""
    returns = block[row.line_bytes - 2 :: row.line_bytes] if several and ends == 2 else b""
    even = block.count(b"\n") == len(feeds) and block.count(b"\r") == len(returns) and row.line > 0
    even = even and not feeds.strip(b"\n") and not returns.strip(b"\r")
    if even and not block.translate(None, _LETTERS + b"\r\n"):
        return
    at = first
    while at < stop:
        following = min(_find(data, b"\n", at) + 1, stop)
        line = data[at:following]
        letters = line.rstrip(b"\n").removesuffix(b"\r")
        if b"\r" in letters or (following == stop and line.endswith(b"\r")):
            _refuse_carriage_return(path, data, at, row.name)
        if not letters:
            why = "got a blank line within the record, want its letters without a gap"
            _refuse(path, data, at, row.name, f"{why}; take blank lines out: sed '/^[[:space:]]*$/d' OLD > NEW")
        if left := letters.translate(None, _LETTERS):
            _refuse(
                path,
                data,
                at,
                row.name,
                f"got {left[:1].decode('latin-1')!r}, want letters only; is it a genome's FASTA file, and whole? Take "
                "out what is no sequence",
            )
        last = following == stop and not line.endswith(b"\n")
        if len(letters) > row.line or (len(letters) < row.line and not last):
            why = f"got {len(letters)} letters on the line, want {row.line} as on the record's first; only its last may"
            _refuse(path, data, at, row.name, f"{why} be shorter; wrap the file anew: seqkit seq -w 60 OLD > NEW")
        if not last and len(line) != row.line_bytes:
            why = "got line ends of Windows and of Unix in one record, want one kind"
            _refuse(path, data, at, row.name, f"{why}; convert them: tr -d '\\r' < OLD > NEW")
        at = following


def _refuse_carriage_return(path: str, data: mmap.mmap, at: int, name: str | None) -> NoReturn:
    why = "got a line end of old Macs (CR alone), want LF or CRLF"
    _refuse(path, data, at, name, f"{why}; convert them: tr '\\r' '\\n' < OLD > NEW")


def _refuse(path: str, data: mmap.mmap, at: int, name: str | None, why: str) -> NoReturn:
    record = "" if name is None else f", record {name!r}"
    raise YuzuError(f"genome: got {path}, want FASTA; line {_line(data, at)}{record}: {why}")


# Places


def _start(data: mmap.mmap) -> int:
    """The place at which the first record should begin."""
    return _skip(_BEFORE_RECORDS, data, len(_BOM) if data[: len(_BOM)] == _BOM else 0)


def _skip(pattern: re.Pattern[bytes], data: mmap.mmap, at: int) -> int:
    found = pattern.match(data, at)
    return at if found is None else found.end()


def _find(data: mmap.mmap, what: bytes, at: int) -> int:
    """The next place of something, or the end."""
    found = data.find(what, at)
    return len(data) if found < 0 else found


def _end(data: mmap.mmap, first: int, stop: int) -> int:
    """The place after the last that is not blank, between two."""
    while stop > first:
        start = max(stop - 4096, first)
        kept = data[start:stop].rstrip(b" \t\r\n")
        if kept:
            return start + len(kept)
        stop = start
    return first


def _line(data: mmap.mmap, at: int) -> int:
    """The number of the line of a place, counted from 1."""
    return 1 + sum(data[first : min(first + CHUNK, at)].count(b"\n") for first in range(0, at, CHUNK))
