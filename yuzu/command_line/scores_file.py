"""The HDF5 file of scores, which a job that was interrupted goes on with, and the BED file of its windows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from yuzu._engine.files import written_whole
from yuzu._engine.version import __version__
from yuzu.command_line.inputs import Input
from yuzu.errors import YuzuError, one_line

# Descriptions of the datasets in a file of scores
DESCRIPTIONS = {
    "scores": "scores of each letter at each position; a row is done where `done` is True",
    "sequences": "the sequences scored, one-hot, their letters in the order {alphabet}",
    "names": "the headers of the FASTA file",
    "done": "whether the row's scores are there",
}


DESCRIPTION_BY_MODEL = "scores of each model, in the order of --weights; `scores` is their mean"

DESCRIPTIONS_OF_REGIONS = {
    **DESCRIPTIONS,
    "names": "the window that was scored, chromosome:start-end, 0-based, the end not included",
    "chrom": "chromosome of the window that was scored, and of the peak",
    "start": "start of the window that was scored, 0-based",
    "end": "end of the window that was scored, not included",
    "strand": "strand that was scored, + or -",
    "summit": "the peak's summit, on which the window is centred: a 0-based position on the chromosome",
    "peak_name": "name of the peak in the file of regions",
    "peak_start": "start of the peak in the file of regions, 0-based",
    "peak_end": "end of the peak in the file of regions, not included",
    "peak_strand": "strand of the peak in the file of regions: +, - or . for none",
}


def rows_left(out: Path, job: str, count: int) -> np.ndarray:
    """The rows that are not scored yet; an error for a file of another job."""
    import h5py

    if not out.exists():
        return np.arange(count)
    with _reading(out), h5py.File(out, "r") as file:
        other, done = file.attrs.get("job"), file["done"][:] if "done" in file else None
        good = done is not None and done.shape == (count,) and done.dtype == bool and len(file["scores"]) == count
    if other is not None and other != job:
        raise YuzuError(
            f"--out: {out} holds another job's scores (other sequences, model, weights or options); give another file, "
            "or delete it"
        )
    if other is None or done is None:
        raise YuzuError(f"--out: {out} is not a file of yuzu ism; give another file, or delete it")
    if not good:
        raise YuzuError(f"--out: {out} is damaged: `done` or `scores` has not {count} rows; delete it")
    return np.flatnonzero(~done)


def lay_out(out: Path, job: str, given: Input, found: tuple[np.ndarray, np.ndarray | None], alphabet: str) -> None:
    """Make the file with all but the scores, whole or not at all.

    A job may be killed while many sequences are written. The next one goes on with the file that it finds.
    """
    import h5py

    n = len(given.X)
    with written_whole(out) as part, h5py.File(part, "w") as file:
        for name, scores in zip(("scores", "scores_by_model"), found, strict=True):
            if scores is not None:
                file.create_dataset(name, (n, *scores.shape[1:]), scores.dtype, chunks=(1, *scores.shape[1:]))
        file.create_dataset("sequences", data=given.X.numpy())
        file.create_dataset("names", data=given.names, dtype=h5py.string_dtype())
        file.create_dataset("done", data=np.zeros(n, dtype=bool))
        for name, text in (DESCRIPTIONS_OF_REGIONS if given.columns else DESCRIPTIONS).items():
            if name in file:
                file[name].attrs["description"] = text.format(alphabet=alphabet)
        if "scores_by_model" in file:
            file["scores_by_model"].attrs["description"] = DESCRIPTION_BY_MODEL
        _add_columns(file, given.columns)
        file.attrs["yuzu"], file.attrs["job"] = __version__, job


def complete(out: Path, given: Input) -> None:
    """Add columns that an older version did not write; an error if the file is of other peaks."""
    import h5py

    with _reading(out), h5py.File(out, "r") as file:
        kept = {name: file[name] for name in given.columns if name in file}
        kept = {name: c.asstr()[:] if h5py.check_string_dtype(c.dtype) else c[:] for name, c in kept.items()}
    for name, column in kept.items():
        if not np.array_equal(column, given.columns[name]):
            raise YuzuError(
                f"--out: {out} holds the same windows for other peaks (`{name}` differs); give another file, or delete "
                "it"
            )
    if missing := {name: column for name, column in given.columns.items() if name not in kept}:
        with writing(out), h5py.File(out, "a") as file:
            _add_columns(file, missing)


def _add_columns(file: Any, columns: dict[str, np.ndarray]) -> None:
    import h5py

    for name, column in columns.items():
        dtype = h5py.string_dtype() if column.dtype == object else column.dtype
        file.create_dataset(name, data=column, dtype=dtype).attrs["description"] = DESCRIPTIONS_OF_REGIONS[name]


def write_windows(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Write the windows that were scored as BED6, with the peak's own start, end and summit after it."""
    zeros = np.zeros(len(columns["start"]), dtype=np.int64)
    order = ("chrom", "start", "end", "peak_name", "", "strand", "peak_start", "peak_end", "summit")
    rows = zip(*(columns.get(name, zeros) for name in order), strict=True)
    with written_whole(path) as part:
        part.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")


@contextlib.contextmanager
def _reading(out: Path) -> Iterator[None]:
    """Turn the many kinds of errors that h5py raises for a bad file into one that says what to do."""
    try:
        yield
    except PermissionError as error:
        raise YuzuError(f"--out: no permission to read {out}; give another file") from error
    except BlockingIOError as error:
        raise YuzuError(f"--out: {out} is open in another program, or another job writes it; wait for that") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        why = one_line(error)
        raise YuzuError(f"--out: {out} is not HDF5, or damaged ({why}); delete it or give another file") from error


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn errors of writing into one that says why, and what to do."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        why = "it is open in another program" if isinstance(error, BlockingIOError) else one_line(error)
        raise YuzuError(
            f"--out: {out} cannot be written: {why}; what is done stays done: start the same job again when it can"
        ) from error
