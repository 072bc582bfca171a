"""Projected scores as a BigWig, which genome browsers show as a dynseq track and fi-nemo reads.

A base that several windows cover gets the value of the window whose summit is nearest, as in ChromBPNet: between two
summits ``a < b`` the windows meet at ``(a + b) // 2``, which belongs to the second. The distance of base ``p`` is
``|p + 1/2 - summit|``. Of two summits equally far, the one on the right has the base; of two windows with the same
summit, the one in the first row.
"""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yuzu._engine.files import written_whole
from yuzu._engine.text_files import text_lines, whole_number
from yuzu.errors import YuzuError, one_line
from yuzu.regions import Regions

__all__ = ["write_bigwig"]

_PIECE = 1 << 16  # bases that pyBigWig gets at once: few large blocks, little memory
_ROWS = 1024  # rows checked at once
_FREE = np.iinfo(np.int64).max


def write_bigwig(path: str | os.PathLike[str], regions: Regions, scores: Any, chromosome_sizes: Any) -> None:
    """Write projected scores to a BigWig, each base once.

    A BigWig has one number for each base: the score of the reference letter. Scores of all letters go to
    `yuzu.modisco.to_modisco`. Browsers show the file with the genome as a *dynseq* track (WashU, UCSC, HiGlass,
    igv.js). Bases that no window covers have no value. Regions may be in any order, and overlap: a base gets the value
    of the window whose summit is nearest. The memory needed beside the scores does not grow with the genome.

    Parameters
    ----------
    path : str or os.PathLike
        The file, such as "peaks.bw". It is written whole or not at all.
    regions : Regions, n rows
        The windows scored, all of length L: ``regions`` of what `yuzu.regions.one_hot_regions` gave. Scores of regions
        with ``flipped``, read from the minus strand, are turned back.
    scores : torch.Tensor or numpy.ndarray, shape=(n, L) or (n, C, L)
        Projected scores of one output, with the rows of `regions`. Scores ``(n, C, L)``, as
        `yuzu.attribution.projected` and `yuzu.attribution.mean_effect` give them, are summed over the letters. They
        are stored as float32.
    chromosome_sizes : mapping of str to int, or str or os.PathLike
        The length of each chromosome of the genome, at least those of `regions`; or a file with names and lengths in
        its first two columns: chrom.sizes, or the index ``.fai`` of a FASTA file.

    Raises
    ------
    YuzuError
        If the scores do not fit the regions, are not finite or not projected, or if a window is not on its chromosome.
    ImportError
        If pyBigWig is not installed.
    OSError
        If a file cannot be opened or written.

    Examples
    --------
    >>> from yuzu.regions import one_hot_regions, write_bed
    >>> from yuzu.attribution import hypothetical, projected
    >>> found = one_hot_regions("peaks.narrowPeak", "hg38.fa", width=2114)         # doctest: +SKIP
    >>> scores = hypothetical(yuzu_ism(model, found.X, output="delta", target=0))  # doctest: +SKIP
    >>> write_bigwig("peaks.bw", found.regions, projected(scores, found.X), "hg38.fa.fai")  # doctest: +SKIP
    >>> write_bed("peaks.kept.bed", found.regions)                                 # doctest: +SKIP
    """
    try:
        import pyBigWig
    except ImportError as error:
        raise ImportError("write_bigwig needs pyBigWig: pip install pyBigWig") from error
    if not isinstance(regions, Regions) or not len(regions):
        got = "no rows" if isinstance(regions, Regions) else type(regions).__name__
        raise YuzuError(f"regions: got {got}, want yuzu.regions.Regions with at least one row")
    values = _checked_scores(scores, regions)
    sizes = _sizes(chromosome_sizes)
    _check_windows(regions, sizes)
    with written_whole(Path(path)) as part:
        with _said_of(path):
            bases = 0
            with contextlib.closing(pyBigWig.open(str(part), "w")) as file:
                # Readers search the list of chromosomes by bisection, so it must be sorted; values follow its order.
                file.addHeader(sorted(sizes.items()))
                for name in sorted(set(regions.chromosomes.tolist())):
                    rows = np.flatnonzero(regions.chromosomes == name)
                    for start, piece in _joined(_nearest(rows, regions, values)):
                        file.addEntries(name, start, values=piece.tolist(), span=1, step=1)
                        bases += len(piece)
            with contextlib.closing(
                pyBigWig.open(str(part))
            ) as file:  # pyBigWig prints an error at the end, and raises none
                if file.header()["nBasesCovered"] != bases:
                    raise RuntimeError("it is not complete")


@contextlib.contextmanager
def _said_of(path: Any) -> Iterator[None]:
    """Name the file in pyBigWig's errors, which name a temporary file or none."""
    try:
        yield
    except (RuntimeError, UnicodeError) as error:
        raise YuzuError(
            f"path: {path} cannot be written as BigWig ({one_line(error)}); is there space on the disk, and are the "
            "names of chromosomes ASCII?"
        ) from error


# Checks


def _checked_scores(scores: Any, regions: Regions) -> np.ndarray:
    """The scores as an array, ``(n, L)`` or ``(n, C, L)``."""
    if isinstance(scores, torch.Tensor):
        scores = scores.detach().cpu()
        values: np.ndarray = (
            scores.float() if scores.dtype == torch.bfloat16 else scores
        ).numpy()  # numpy has no bfloat16
    elif isinstance(scores, np.ndarray):
        values = scores
    else:
        raise YuzuError(f"scores: got {type(scores).__name__}, want a torch.Tensor or numpy.ndarray")
    if values.ndim not in (2, 3) or values.dtype.kind not in "biuf" or 0 in values.shape:
        raise YuzuError(
            f"scores: got {values.dtype} of shape {values.shape}, want numbers of shape (n, L) or (n, C, L): one output"
        )
    if len(values) != len(regions):
        raise YuzuError(
            f"scores: got {len(values)} rows for {len(regions)} regions, want one for each; regions that were dropped "
            "have no scores: pass the `regions` that one_hot_regions gave"
        )
    widths = regions.ends - regions.starts
    if (widths != values.shape[-1]).any():
        row = int((widths != values.shape[-1]).argmax())
        raise YuzuError(
            f"scores: got {values.shape[-1]} positions for the region of length {widths[row]} in row {row}, want one "
            "for each; pass the `regions` that one_hot_regions gave, whose starts and ends are those of the windows"
        )
    for first in range(0, len(values), _ROWS):
        some = values[first : first + _ROWS]
        if not np.isfinite(some).all():
            raise YuzuError("scores: got NaN or infinity, want finite values")
        if some.ndim == 3 and ((some != 0).sum(1) > 1).any():
            raise YuzuError(
                "scores: got values for more than one letter of a position, want projected scores, one a position: "
                "pass yuzu.attribution.projected(scores, X)"
            )
    return values


def _sizes(chromosome_sizes: Any) -> dict[str, int]:
    """The length of each chromosome."""
    if isinstance(chromosome_sizes, Mapping):
        pairs = [("chromosome_sizes", name, size) for name, size in chromosome_sizes.items()]
    elif isinstance(chromosome_sizes, (str, os.PathLike)):
        pairs = []
        for number, line in text_lines(chromosome_sizes, "chromosome sizes"):
            if line.startswith("#"):
                continue
            columns = line.split("\t") if "\t" in line else line.split()
            where, text = f"{chromosome_sizes}, line {number}", columns[1] if len(columns) > 1 else ""
            size = whole_number(text)
            if size is None:
                raise YuzuError(
                    f"{where}: got {columns[0][:40]!r} of length {text[:40]!r} in column 2, want a chromosome and its "
                    "length as an integer"
                )
            pairs.append((where, columns[0].strip(), size))
    else:
        got = type(chromosome_sizes).__name__
        raise YuzuError(f"chromosome_sizes: got {got}, want lengths by chromosome, or a chrom.sizes or .fai file")
    sizes: dict[str, int] = {}
    for where, name, size in pairs:
        whole = hasattr(size, "__index__") and not isinstance(size, bool)
        if not isinstance(name, str) or not name or not whole or not 0 < size < 2**32:
            raise YuzuError(f"{where}: got {name!r} of length {size!r}, want a chromosome and its length, 1 or more")
        if name in sizes:
            raise YuzuError(f"{where}: got {name!r} a second time, want each chromosome once")
        sizes[name] = operator.index(size)
    return sizes


def _check_windows(regions: Regions, sizes: dict[str, int]) -> None:
    for row, (name, end) in enumerate(zip(regions.chromosomes.tolist(), regions.ends.tolist(), strict=True)):
        if name not in sizes:
            raise YuzuError(f"chromosome_sizes: got none for {name!r} of row {row}, want one for each chromosome")
        if end > sizes[name]:
            raise YuzuError(
                f"regions: got {name}:{regions.starts[row]}-{end} in row {row}, want it within the chromosome's length "
                f"{sizes[name]}; are the sizes those of the same genome?"
            )


# Values


def _nearest(rows: np.ndarray, regions: Regions, values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Starts and values of pieces of one chromosome, from left to right, which together have each covered base once.

    Windows are taken by their starts. Bases left of the next start are final. All windows have one length, so the last
    one covers all bases that are not. The state is therefore that of one window: for each base its value, and the rank
    of its region.
    """
    starts, summits = regions.starts, regions.summits
    length = values.shape[-1]
    best = np.full(length, _FREE)
    chosen = np.zeros(length, dtype=np.float32)
    origin = -1
    for row in rows[np.argsort(starts[rows], kind="stable")]:
        start, summit = int(starts[row]), int(summits[row])
        if origin >= 0:
            final = min(start - origin, length)
            if final:
                yield origin, chosen[:final].copy()  # without the copy each piece would hold a whole window
            best = np.concatenate([best[final:], np.full(final, _FREE)])
            chosen = np.concatenate([chosen[final:], np.zeros(final, dtype=np.float32)])
        origin = start
        positions = np.arange(start, start + length)
        # The smallest rank wins: by twice the distance, an integer; then a summit on the right; then the row.
        rank = (2 * np.abs(2 * positions + 1 - 2 * summit) + (summit <= positions)) * len(regions) + row
        nearer = rank < best
        best[nearer] = rank[nearer]
        own = values[row] if values.ndim == 2 else values[row].sum(0)
        chosen[nearer] = (own[::-1] if regions.flipped[row] else own)[nearer]
    yield origin, chosen


def _joined(pieces: Iterator[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
    """Join pieces that touch, up to about `_PIECE` bases."""
    start, held, bases = 0, [np.zeros(0, dtype=np.float32)], 0
    for first, piece in pieces:
        if bases and (first != start + bases or bases >= _PIECE):
            yield start, np.concatenate(held)
            held, bases = [], 0
        if not bases:
            start, held = first, []
        held.append(piece)
        bases += len(piece)
    if bases:
        yield start, np.concatenate(held)


def __dir__() -> list[str]:
    return sorted(__all__)
