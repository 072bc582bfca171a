"""`export`: from a store to the files of other programs, some sequences at a time."""

from __future__ import annotations

import contextlib
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from yuzu._engine.files import written_whole
from yuzu.attribution import hypothetical, projected
from yuzu.bigwig import write_bigwig
from yuzu.errors import YuzuError
from yuzu.regions import Regions, write_bed
from yuzu.runs.store import Store
from yuzu.sequence import DNA, reorder_alphabet

Read = Callable[[int], tuple[np.ndarray, np.ndarray]]  # a block's sequences and scores, of the rows that are exported


def export(
    path: str | os.PathLike[str],
    *,
    modisco: str | os.PathLike[str] | None = None,
    bigwig: str | os.PathLike[str] | None = None,
    bed: str | os.PathLike[str] | None = None,
    numpy: str | os.PathLike[str] | None = None,
    target: int | None = None,
    chromosome_sizes: Any = None,
) -> int:
    """Write the scores of a complete run to files that other programs read.

    Sequences without scores are left out of all files, so that their rows agree. Few sequences are in memory at once,
    however many there are; a BigWig takes ``4 n L`` bytes of disk beside it while it is made.

    Parameters
    ----------
    path : str or os.PathLike
        The store, such as "scores.zarr".
    modisco : str or os.PathLike, optional
        Common path of the two files of `yuzu.modisco.to_modisco`: ``.ohe.npz`` and ``.attr.npz``.
    bigwig : str or os.PathLike, optional
        A BigWig of the scores at the letters of the sequence, as `yuzu.bigwig.write_bigwig` writes it. For regions.
    bed : str or os.PathLike, optional
        The peaks' lines, as `yuzu.regions.write_bed` writes them. For regions.
    numpy : str or os.PathLike, optional
        An ``.npy`` file of the scores as they are, all outputs: ``numpy.load(..., mmap_mode="r")`` opens it.
    target : int, optional
        The output to write to ``modisco`` and ``bigwig``. Needed where the store has several.
    chromosome_sizes : mapping or path, optional
        As for `yuzu.bigwig.write_bigwig`. Default: those of the run's genome.

    Returns
    -------
    int
        The number of sequences written.

    Raises
    ------
    YuzuError
        If the run is not complete, or its scores are not of the kind that a file needs.
    ImportError
        If zarr, or pyBigWig for a BigWig, is not installed.

    Examples
    --------
    >>> yuzu.runs.export("scores.zarr", modisco="peaks", bigwig="peaks.bw", bed="kept.bed")      # doctest: +SKIP
    """
    store = Store(Path(path))
    left = store.n - store.sequences_of(store.done())
    if left:
        raise YuzuError(f"{path} is not complete: {left} of {store.n} sequences are left; start its job again")
    if modisco is None and bigwig is None and bed is None and numpy is None:
        raise YuzuError("got no file to write, want modisco, bigwig, bed or numpy")
    if (bigwig is not None or bed is not None) and "line" not in store.group:
        raise YuzuError("bigwig and bed are for runs on regions; this one is on sequences without coordinates")
    kept = np.array([not why for why in store.group["failure"][:]], dtype=bool)
    if not kept.any():
        raise YuzuError(f"{path} has no scores: all {store.n} sequences failed")
    if numpy is not None:
        _write_numpy(Path(numpy), store, kept)
    if modisco is not None or bigwig is not None:
        read = _Hypothetical(store, kept, target)
        if modisco is not None:
            _write_modisco(Path(modisco), store, kept, read)
        if bigwig is not None:
            sizes = store.group.attrs["chromosome_sizes"] if chromosome_sizes is None else chromosome_sizes
            _write_bigwig(Path(bigwig), store, kept, (read, sizes))
    if bed is not None:
        write_bed(bed, _regions(store, kept, whole=True))
    return int(kept.sum())


class _Hypothetical:
    """Reads blocks of hypothetical scores ``(rows, 4, L)`` in the order ACGT, with their sequences."""

    def __init__(self, store: Store, kept: np.ndarray, target: int | None) -> None:
        self._store, self._kept = store, kept
        output, self._letters = store.group.attrs["output"], store.group.attrs["alphabet"]
        if output not in ("delta", "hypothetical"):
            raise YuzuError(
                f"the store has {output}: TF-MoDISco and BigWig need signed scores, of a run with --output "
                "hypothetical or delta"
            )
        if set(self._letters) != set(DNA):
            raise YuzuError(f"TF-MoDISco and BigWig are of DNA, and the store's letters are {self._letters}")
        self._centre = output == "delta"
        outputs = store.scores.shape[3:]
        if target is None and int(np.prod(outputs)) != 1:
            raise YuzuError(f"the store has outputs of shape {outputs}: give the target to write")
        if target is not None and (len(outputs) != 1 or not 0 <= target < outputs[0]):
            raise YuzuError(f"target: got {target}, and the store has outputs of shape {outputs}")
        self._target = target
        self._positions = slice(int(store.group["position"][0]), int(store.group["position"][-1]) + 1)

    def __call__(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self._store.rows(block)
        kept = self._kept[rows]
        scores = self._store.scores[rows][kept]
        scores = scores.reshape(scores.shape[:3]) if self._target is None else scores[..., self._target]
        sequences = self._store.group["sequences"][rows][kept][:, :, self._positions]
        if self._centre:
            scores = hypothetical(scores)
        return reorder_alphabet(sequences, self._letters, DNA), reorder_alphabet(scores, self._letters, DNA)


def _write_modisco(path: Path, store: Store, kept: np.ndarray, read: Read) -> None:
    shape = (int(kept.sum()), 4, store.scores.shape[2])
    ends = (".ohe.npz", ".attr.npz")
    with contextlib.ExitStack() as opened:
        parts = [opened.enter_context(written_whole(path.with_name(path.name + end))) for end in ends]
        for number, (part, dtype) in enumerate(zip(parts, (np.int8, np.float32), strict=True)):
            with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
                with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                    _header(file, shape, dtype)
                    for block in range(store.blocks):
                        file.write(np.ascontiguousarray(read(block)[number], dtype).tobytes())


def _write_numpy(path: Path, store: Store, kept: np.ndarray) -> None:
    with written_whole(path) as part, open(part, "wb") as file:
        _header(file, (int(kept.sum()), *store.scores.shape[1:]), store.scores.dtype)
        for block in range(store.blocks):
            rows = store.rows(block)
            file.write(np.ascontiguousarray(store.scores[rows][kept[rows]]).tobytes())


def _header(file: Any, shape: tuple[int, ...], dtype: Any) -> None:
    described = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(file, described)


def _write_bigwig(path: Path, store: Store, kept: np.ndarray, found: tuple[Read, Any]) -> None:
    read, sizes = found
    regions = _regions(store, kept, whole=False)
    with _on_disk(path, (len(regions), store.scores.shape[2])) as values:
        at = 0
        for block in range(store.blocks):
            sequences, scores = read(block)
            values[at : at + len(scores)] = projected(scores, sequences).sum(1)
            at += len(scores)
        write_bigwig(path, regions, values, sizes)


@contextlib.contextmanager
def _on_disk(path: Path, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """An array of float32 in a file beside another, which is deleted at the end."""
    if not path.absolute().parent.is_dir():
        raise YuzuError(f"there is no folder {path.parent} to write {path.name} in")
    with tempfile.TemporaryFile(dir=path.absolute().parent) as file:
        yield np.memmap(file, np.float32, "w+", shape=shape)


def _regions(store: Store, kept: np.ndarray, whole: bool) -> Regions:
    """The windows, cut to the scored positions; or ``whole`` the peaks."""
    group = store.group

    def texts(name: str) -> list[str]:
        return [str(one) for one in group[name][:][kept]]

    chrom, summits = texts("chrom"), group["summit"][:][kept]
    if whole:
        starts, ends = group["peak_start"][:][kept], group["peak_end"][:][kept]
        return Regions(chrom, starts, ends, summits, lines=texts("line"))
    first, length = int(group["position"][0]), store.scores.shape[2]
    starts, ends = group["start"][:][kept], group["end"][:][kept]
    flipped = np.array([strand == "-" for strand in texts("strand")], dtype=bool)
    starts = np.where(flipped, ends - first - length, starts + first)
    summits = np.clip(summits, starts, starts + length - 1)
    return Regions(chrom, starts, starts + length, summits, flipped=flipped.tolist())
