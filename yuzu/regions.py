"""Regions of a genome: BED and narrowPeak files, and their one-hot sequences.

Coordinates are those of BED everywhere: 0-based, the end not included. A summit is the 0-based position of one base on
the chromosome, not an offset. A window of width ``w`` on a summit is ``[summit - w // 2, summit - w // 2 + w)``, as
ChromBPNet and bpnet-lite have it.
"""

from __future__ import annotations

import gzip
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from yuzu._engine.alphabets import DNA, IUPAC
from yuzu._engine.bed import check_measures, looks_like_narrow_peak, row_of
from yuzu._engine.files import written_whole
from yuzu._engine.genome import opened_genome
from yuzu._engine.text_files import text_lines
from yuzu.errors import YuzuError, one_line, warn_user
from yuzu.sequence import dna_order, one_hot_encode

__all__ = ["Dropped", "OneHotRegions", "Regions", "one_hot_regions", "read_regions", "write_bed"]

_COMPLEMENT = str.maketrans("ACGT", "TGCA")  # other letters are columns of zeros on either strand
_AT_ONCE = 4096  # windows encoded at once, so that little memory is needed beside the result

_NO_CHROMOSOME = "the genome has no such chromosome"
_OUTSIDE = "the window runs over an end of its chromosome"
_UNKNOWN = "too many unknown letters"


class Regions:
    """Regions of a genome, in columns: row ``i`` of every column is one region.

    Parameters
    ----------
    chromosomes : sequence of str, length n
    starts, ends : sequence of int, length n
        0-based, the end not included: ``0 <= start < end``.
    summits : sequence of int, length n, optional
        0-based positions on the chromosome, within their regions. Default: the midpoints, ``(start + end) // 2``.
    names : sequence of str, length n, optional
        Default: "." for each.
    strands : sequence of str, length n, optional
        "+", "-" or "." (none). Default: "." for each.
    lines : sequence of str, length n, optional
        The lines that `write_bed` writes. Default: the columns given, as BED3, BED6 or narrowPeak.
    flipped : sequence of bool, length n, optional
        True for a region whose sequence and scores run from its end to its start: `one_hot_regions` sets it for
        regions on the minus strand that it reverse-complements. Default: False for each.

    Attributes
    ----------
    chromosomes, names, strands, lines : numpy.ndarray of str, shape=(n,)
    starts, ends, summits : numpy.ndarray of int64, shape=(n,)
    flipped : numpy.ndarray of bool, shape=(n,)

    Raises
    ------
    YuzuError
        If a column has another length or type, or a region has impossible coordinates.

    Examples
    --------
    >>> regions = Regions(["chr1", "chr2"], [10, 20], [14, 25])
    >>> regions.summits.tolist(), regions[regions.chromosomes == "chr2"]
    ([12, 22], Regions(1 of 'chr2'))
    """

    def __init__(
        self,
        chromosomes: Sequence[str],
        starts: Sequence[int],
        ends: Sequence[int],
        summits: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        strands: Sequence[str] | None = None,
        lines: Sequence[str] | None = None,
        flipped: Sequence[bool] | None = None,
    ) -> None:
        self.chromosomes = _texts("chromosomes", chromosomes)
        n = len(self.chromosomes)
        self.starts = _positions("starts", starts, n)
        self.ends = _positions("ends", ends, n)
        self.summits = (self.starts + self.ends) // 2 if summits is None else _positions("summits", summits, n)
        self.names = _texts("names", ["."] * n if names is None else names, n)
        self.strands = _texts("strands", ["."] * n if strands is None else strands, n)
        for name, column, bad, want in (
            ("starts", self.starts, self.starts < 0, "0 or more"),
            ("ends", self.ends, self.ends <= self.starts, "more than the start"),
            ("summits", self.summits, (self.summits < self.starts) | (self.summits >= self.ends), _SUMMIT),
            ("strands", self.strands, ~np.isin(self.strands.astype(str), ("+", "-", ".")), "'+', '-' or '.'"),
        ):
            if bad.any():
                row = int(bad.argmax())
                raise YuzuError(f"{name}: got {column[row]} in row {row}, want {want}")
        if lines is None:
            lines = self._lines(summits is not None, names is not None or strands is not None)
        self.lines = _texts("lines", lines, n)
        self.flipped = np.zeros(n, dtype=bool) if flipped is None else np.array(flipped)
        if self.flipped.dtype != bool or self.flipped.shape != (n,):
            raise YuzuError(f"flipped: got {self.flipped.dtype} of shape {self.flipped.shape}, want bool of ({n},)")

    def _lines(self, with_summits: bool, with_strands: bool) -> list[str]:
        """A line for each region, in the shortest format that holds the columns given."""
        found = []
        for row in range(len(self)):
            start = self.starts[row]
            columns = [self.chromosomes[row], start, self.ends[row]]
            if with_summits or with_strands:
                columns += [self.names[row], 0, self.strands[row]]
            if with_summits:
                columns += [0, -1, -1, self.summits[row] - start]
            found.append("\t".join(map(str, columns)))
        return found

    def __len__(self) -> int:
        return len(self.chromosomes)

    def __getitem__(self, rows: Any) -> Regions:
        """Select regions by a slice, a mask ``(n,)`` or a list of row numbers, in that order."""
        if not isinstance(rows, slice):
            rows = np.asarray(rows)
            rows = rows if rows.size else rows.astype(np.int64)  # numpy has [] as floats
            if rows.ndim != 1 or rows.dtype.kind not in "biu":
                raise YuzuError(f"rows: got {rows.dtype} of shape {rows.shape}, want a slice, a mask or row numbers")
        return Regions(**{name: column[rows] for name, column in vars(self).items()})

    def __repr__(self) -> str:
        counts = Counter(self.chromosomes.tolist())
        beside = f" and {len(counts) - 3} more" if len(counts) > 3 else ""
        return f"Regions({len(self)} of {', '.join(map(repr, list(counts)[:3])) or 'none'}{beside})"


_SUMMIT = "start <= summit < end: a position on the chromosome, not an offset"


def _texts(name: str, values: Any, n: int | None = None) -> np.ndarray:
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise YuzuError(f"{name}: got {type(values).__name__}, want a sequence of str")
    column = np.array(list(values), dtype=object)
    for row, value in enumerate(column):
        if not isinstance(value, str):
            raise YuzuError(f"{name}: got {value!r} in row {row}, want a str")
    if n is not None and len(column) != n:
        raise YuzuError(f"{name}: got {len(column)} rows, want {n}, as many as chromosomes")
    return column


def _positions(name: str, values: Any, n: int) -> np.ndarray:
    column = np.asarray(values)
    if column.shape != (n,) or (column.dtype.kind not in "iu" and n):
        raise YuzuError(f"{name}: got {column.dtype} of shape {column.shape}, want integers of shape ({n},)")
    return column.astype(np.int64)


# Files of regions


def read_regions(path: str | os.PathLike[str], summits: bool | None = None) -> Regions:
    """Read a BED or narrowPeak file, plain or gzipped (told from its first bytes, not from its name).

    Lines that are blank or start with ``#``, ``track`` or ``browser`` are skipped. Tabs separate the columns, or blanks
    in a line without tabs. The first three columns are chromosome, start and end (0-based, the end not included). The
    fourth is the name, the sixth the strand, and the tenth of a narrowPeak the summit's offset from the start. Other
    columns are kept in `Regions.lines` and not read. Integers may be spelled as tables have them, such as ``4.0`` or
    ``4e2``; anything else is an error. So is a column with ``4`` in its first row and ``4.0`` in a later one, which no
    single program writes.

    Parameters
    ----------
    path : str or os.PathLike
        The file.
    summits : bool or None, optional
        True reads the tenth column as the summit's offset, -1 for none. A region without a summit, and every region
        with False, has its midpoint as summit. Default is None: True for files of ten columns whose first row has
        numbers, "." or nothing in columns 7 to 9, as in narrowPeak and ChromBPNet's background regions. BED of ten
        columns with a single number in the ninth looks the same: pass False.

    Returns
    -------
    Regions
        In the order of the file.

    Raises
    ------
    YuzuError
        If a line is malformed; the message names file, line and column. Also if lines have different numbers of
        columns, if there is no region in the file, or if the file is damaged.
    OSError
        If the file cannot be opened.

    Warns
    -----
    YuzuWarning
        If column 10 may hold summits, but the file is no narrowPeak: with None they are not read.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "peaks.bed"
    ...     _ = path.write_text("chr1\\t10\\t14\\nchr2\\t20\\t26\\n")
    ...     regions = read_regions(path)
    >>> regions, regions.summits.tolist()
    (Regions(2 of 'chr1', 'chr2'), [12, 23])
    """
    if summits is not None and not isinstance(summits, bool):
        raise YuzuError(f"summits: got {summits!r}, want True, False or None")
    rows: list[tuple[str, int, int, int, str, str, str]] = []
    first, width, told = 0, 0, summits is not None
    plain: list[int] = []  # columns that begin with a number spelled with digits only
    for number, line in text_lines(path, "BED"):
        if line.startswith("#") or line.split(maxsplit=1)[0] in ("track", "browser"):
            continue
        columns = [cell.strip() for cell in line.split("\t")] if "\t" in line else line.split()
        where = f"{path}, line {number}"
        if not rows:
            first, width = number, len(columns)
            summits = looks_like_narrow_peak(columns, where) if summits is None else summits
            plain = [place for place, cell in enumerate(columns, 1) if re.fullmatch("[+-]?[0-9]+", cell)]
        if len(columns) != width:
            raise YuzuError(f"{where}: got {len(columns)} columns, want {width} as on line {first}")
        if summits and not told:
            check_measures(columns, first, where)
        rows.append((*row_of(columns, summits, where), line))
        for place in (2, 3, 10) if summits else (2, 3):
            if place in plain and re.search("[.eE]", columns[place - 1]):
                raise YuzuError(
                    f"{where}: got {columns[place - 1][:40]!r} in column {place}, want an integer in digits, as on "
                    f"line {first}"
                )
    if not rows:
        raise YuzuError(f"{path}: got no regions, want BED with at least one")
    chromosomes, starts, ends, positions, names, strands, lines = zip(*rows, strict=True)
    return Regions(chromosomes, starts, ends, positions, names, strands, lines)


def write_bed(path: str | os.PathLike[str], regions: Regions) -> None:
    """Write regions as BED, each with the line of the file that it was read from.

    ``write_bed("kept.bed", found.regions)``, with `found` of `one_hot_regions`, writes a row for each row of
    ``found.X``, as fi-nemo and others ask for. All columns of the original file are kept; windows are not written.

    Parameters
    ----------
    path : str or os.PathLike
        The file, gzipped if its name ends in ".gz". It is written whole or not at all.
    regions : Regions
        Regions to write. Those that were not read from a file are written as BED3, BED6 or narrowPeak.

    Raises
    ------
    YuzuError
        If `regions` is no `Regions`.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "kept.bed"
    ...     write_bed(path, Regions(["chr1"], [10], [14], names=["peak"]))
    ...     path.read_text()
    'chr1\\t10\\t14\\tpeak\\t0\\t.\\n'
    """
    if not isinstance(regions, Regions):
        raise YuzuError(f"regions: got {type(regions).__name__}, want yuzu.regions.Regions")
    content = "".join(f"{line}\n" for line in regions.lines).encode()
    if str(path).endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    with written_whole(Path(path)) as part:
        part.write_bytes(content)


# Sequences of regions


class Dropped(NamedTuple):
    """A region without a sequence: its row among those passed, counted from 0, and why it was dropped."""

    row: int
    reason: str


class OneHotRegions(NamedTuple):
    """The result of `one_hot_regions`: `X` and `regions` have a row for each region kept, `kept` one for each passed.

    Attributes
    ----------
    X : torch.Tensor, shape=(n, 4, width)
        The one-hot sequences; unknown letters are columns of zeros.
    regions : Regions, n rows
        The regions kept, in the order passed. Their starts and ends are those of the windows, their lines the
        original ones.
    kept : numpy.ndarray of bool, shape=(number of regions passed,)
        True for each region that was kept. It cuts other arrays about the regions to the rows of `X`.
    dropped : list of Dropped
        The row of each region that was dropped, and the reason.
    """

    X: torch.Tensor
    regions: Regions
    kept: np.ndarray
    dropped: list[Dropped]


def one_hot_regions(
    regions: Regions | str | os.PathLike[str],
    genome: Any,
    width: int | None = None,
    alphabet: str | Sequence[str] = DNA,
    dtype: torch.dtype = torch.float32,
    reverse_complement: bool = False,
    max_unknown: float = 1.0,
) -> OneHotRegions:
    """One-hot encode the sequences of regions, and say which regions had to be dropped.

    A region is dropped if the genome lacks its chromosome, if its window runs over an end of the chromosome, or if it
    has too many unknown letters. Windows are never cut or padded. One warning says how many were dropped and why.

    Parameters
    ----------
    regions : Regions, or str or os.PathLike
        As `read_regions` gives them, or the BED or narrowPeak file to read.
    genome : str or os.PathLike, pyfaidx.Fasta, or mapping of str to str
        A FASTA file, which pyfaidx opens; or the opened file; or the sequences by chromosome. A file without a fitting
        index ``.fai`` beside it gets one, or a temporary one if that cannot be written. Lower case (soft masks) is read
        as upper case. A record's lines must have one length, but for the last, and end with LF or CRLF; one blank line
        may follow the record.
    width : int or None, optional
        The length of the windows, centred on the summits: ``[summit - width // 2, summit - width // 2 + width)``.
        Default is None: the regions as they are, which must all be of one length.
    alphabet : str, or list or tuple of single characters, optional
        The order of the channels: the letters of DNA. Default is "ACGT"; models trained in Lua Torch have "AGCT".
    dtype : torch.dtype, optional
        Default is torch.float32; torch.int8 is a quarter of it.
    reverse_complement : bool, optional
        True reads regions on the minus strand from that strand. ``regions.flipped`` of the result marks them, and
        `yuzu.bigwig.write_bigwig` turns their scores back. Default is False: all are read from the plus strand.
    max_unknown : float, optional
        The largest fraction of letters other than A, C, G and T in a window, between 0 and 1. Default is 1: any.

    Returns
    -------
    OneHotRegions
        Named tuple ``(X, regions, kept, dropped)``.

    Raises
    ------
    YuzuError
        If no region is left, an argument is wrong, or the genome has characters other than the letters of IUPAC. Also
        if the file is no FASTA that can be indexed; the message names line and record.
    ImportError
        If `genome` is a file and pyfaidx is not installed.
    OSError
        If a file cannot be opened.

    Warns
    -----
    YuzuWarning
        If regions were dropped.

    Examples
    --------
    >>> from yuzu.sequence import decode
    >>> found = one_hot_regions(Regions(["chr1", "chr1"], [2, 4], [4, 8]), {"chr1": "NNACgtAC"}, width=4)
    >>> decode(found.X), found.regions.starts.tolist(), found.dropped
    (['NACG', 'GTAC'], [1, 4], [])
    """
    letters = dna_order(alphabet)
    if not isinstance(reverse_complement, (bool, np.bool_)):
        raise YuzuError(f"reverse_complement: got {reverse_complement!r}, want True or False")
    if not isinstance(dtype, torch.dtype):
        raise YuzuError(f"dtype: got {dtype!r}, want a torch.dtype")
    if not isinstance(max_unknown, (int, float)) or not 0 <= max_unknown <= 1:
        raise YuzuError(f"max_unknown: got {max_unknown!r}, want a fraction between 0 and 1")
    if isinstance(regions, (str, os.PathLike)):
        regions = read_regions(regions)
    if not isinstance(regions, Regions) or not len(regions):
        got = "none" if isinstance(regions, Regions) else type(regions).__name__
        raise YuzuError(f"regions: got {got}, want Regions with at least one row, or a BED file")
    starts, ends = _windows(regions, width)
    with opened_genome(genome) as chromosomes:
        texts, dropped = _fetch(regions.chromosomes, starts, ends, chromosomes, max_unknown)
        _report(dropped, len(regions), chromosomes)
    gone = {drop.row for drop in dropped}
    kept = np.array([row not in gone for row in range(len(regions))])
    flipped = (regions.strands == "-") & reverse_complement
    texts = [
        text.translate(_COMPLEMENT)[::-1] if flip else text for text, flip in zip(texts, flipped[kept], strict=True)
    ]
    X = torch.empty((len(texts), len(letters), len(texts[0])), dtype=dtype)
    for first in range(0, len(texts), _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        X[some] = one_hot_encode(texts[some], letters, dtype, unknown=IUPAC)
    columns = {**vars(regions), "starts": starts, "ends": ends, "flipped": flipped}
    return OneHotRegions(X, Regions(**{name: column[kept] for name, column in columns.items()}), kept, dropped)


def windows_on(
    regions: Regions, genome: Any, width: int | None, reverse_complement: bool = False, max_unknown: float = 1.0
) -> tuple[Regions, np.ndarray]:
    """The windows that `one_hot_regions` keeps, and the rows of their regions; sequences are read, but not kept."""
    starts, ends = _windows(regions, width)
    dropped: list[Dropped] = []
    with opened_genome(genome) as chromosomes:
        for first in range(0, len(regions), _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            _, gone = _fetch(regions.chromosomes[some], starts[some], ends[some], chromosomes, max_unknown)
            dropped += [Dropped(first + row, reason) for row, reason in gone]
        _report(dropped, len(regions), chromosomes)
    kept = np.setdiff1d(np.arange(len(regions)), [row for row, _ in dropped]).astype(np.int64)
    flipped = (regions.strands == "-") & reverse_complement
    columns = {**vars(regions), "starts": starts, "ends": ends, "flipped": flipped}
    return Regions(**{name: column[kept] for name, column in columns.items()}), kept


def _windows(regions: Regions, width: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of the windows, which may lie outside of the chromosomes."""
    if width is None:
        widths = regions.ends - regions.starts
        if (widths != widths[0]).any():
            row = int((widths != widths[0]).argmax())
            raise YuzuError(
                f"width: got None for regions of several lengths ({widths[0]} in row 0, {widths[row]} in row {row}), "
                "want the length of the windows"
            )
        return regions.starts, regions.ends
    if not isinstance(width, (int, np.integer)) or isinstance(width, bool) or width < 1:
        raise YuzuError(f"width: got {width!r}, want an integer, 1 or more, or None")
    starts = regions.summits - width // 2
    return starts, starts + width


def _fetch(
    names: np.ndarray, starts: np.ndarray, ends: np.ndarray, genome: Mapping[str, Any], max_unknown: float
) -> tuple[list[str], list[Dropped]]:
    """The sequences of the windows in upper case, and the windows that have none."""
    lengths = {name: len(genome[name]) if name in genome else None for name in dict.fromkeys(names.tolist())}
    texts, dropped = [], []
    for row, (name, start, end) in enumerate(zip(names.tolist(), starts.tolist(), ends.tolist(), strict=True)):
        length, place = lengths[name], f"{name}:{start}-{end}"
        if length is None:
            dropped.append(Dropped(row, f"{_NO_CHROMOSOME}: {name!r}"))
            continue
        if start < 0 or end > length:
            dropped.append(Dropped(row, f"{_OUTSIDE}: {place}, of length {length}"))
            continue
        try:
            text = str(genome[name][start:end]).upper()
        except Exception as error:  # pyfaidx raises many kinds for a damaged or closed file
            raise YuzuError(f"genome: {place} cannot be read ({type(error).__name__}: {one_line(error)})") from error
        if len(text) != end - start:
            raise YuzuError(
                f"genome: got {len(text)} letters for {place}, want {end - start}; is it damaged, or no str?"
            )
        if bad := re.search(rf"[^ACGT{IUPAC}]", text):
            raise YuzuError(
                f"genome: got {bad.group()!r} at {name}:{start + bad.start()} (from 0), want letters of DNA"
            )
        unknown = len(text) - sum(map(text.count, DNA))
        if unknown > max_unknown * len(text):
            dropped.append(Dropped(row, f"{_UNKNOWN}: {unknown} of the {len(text)} of {place}"))
            continue
        texts.append(text)
    return texts, dropped


def _report(dropped: list[Dropped], n: int, genome: Any) -> None:
    """Warn once about the regions that were dropped; raise an error if none is left."""
    if not dropped:
        return
    counts = Counter(drop.reason.split(":")[0] for drop in dropped)
    why = ", ".join(f"{count} because {reason}" for reason, count in counts.items())
    if len(dropped) < n:
        warn_user(f"one_hot_regions dropped {len(dropped)} of {n} regions: {why}; `dropped` of the result lists them")
        return
    has = ", ".join(map(repr, list(genome.keys())[:3]))
    raise YuzuError(
        f"regions: all {n} were dropped, {why}; the first is row 0, {dropped[0].reason}; the genome has {has}, ..."
    )


def __dir__() -> list[str]:
    return sorted(__all__)
