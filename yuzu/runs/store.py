"""The Zarr store of a run: a labelled data set, whose blocks of sequences are written one file each, whole or not at
all.

``scores/c.7.0.0`` holds the scores of block 7: a shard of Zarr, which is written beside its place, synced, and renamed.
It comes last, after all else of the block, so the block is done if the file is there.
The folder ``.yuzu`` holds what a run needs to go on: the job, the precomputation, claims, and a log.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from yuzu.errors import YuzuError, one_line

OWN = ".yuzu"  # the folder of what a run needs to go on
CHUNK = 1 << 20  # bytes, about, that are read at once to read one sequence's scores
_COLUMN = 1 << 16  # rows in a chunk of a column


def zarr_of() -> Any:
    """The package zarr.

    Raises
    ------
    ImportError
        If it is not installed, or older than version 3.
    """
    try:
        import zarr
    except ImportError as error:
        raise ImportError("a store of scores needs zarr, version 3: pip install 'yuzu-ism[zarr]'") from error
    if int(zarr.__version__.split(".")[0]) < 3:
        raise ImportError(f"a store of scores needs zarr, version 3, got {zarr.__version__}: pip install 'zarr>=3.1'")
    return zarr


class Store:
    """A store that is there.

    Raises
    ------
    YuzuError
        If there is none, or it is damaged or not of yuzu.
    """

    def __init__(self, path: Path) -> None:
        zarr = zarr_of()
        self.path = path
        if not (path / OWN / "job.json").is_file():
            what = "is not a store of yuzu ism" if path.exists() else "does not exist"
            raise YuzuError(f"{path} {what}; give the path of a run's scores, such as scores.zarr")
        try:
            known = json.loads((path / OWN / "job.json").read_text())
            self.job, self.block, self.n = known["job"], int(known["block"]), int(known["n"])
            self.group = zarr.open_group(path, mode="r")
            self.scores = self.group["scores"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise YuzuError(f"{path} is damaged ({one_line(error)}); delete it and start again") from error
        self.blocks = -(-self.n // self.block)

    def rows(self, block: int) -> slice:
        """The rows of a block."""
        return slice(block * self.block, min((block + 1) * self.block, self.n))

    def is_done(self, block: int) -> bool:
        """Tell whether a block's scores are there."""
        return self._file("scores", block).exists()

    def done(self) -> list[int]:
        """The blocks that are done."""
        with os.scandir(self.path / "scores") as entries:
            return sorted(int(entry.name.split(".")[1]) for entry in entries if _is_block(entry.name))

    def sequences_of(self, blocks: list[int]) -> int:
        """The number of sequences in some blocks."""
        return sum(min((block + 1) * self.block, self.n) - block * self.block for block in blocks)

    def failures(self) -> list[tuple[str, str]]:
        """The names of the sequences that failed, and why."""
        found = []
        for block in self.failed_blocks():
            rows = self.rows(block)
            reasons = self.group["failure"][rows]
            names = self.group["name"][rows]
            found += [(str(name), str(why)) for name, why in zip(names, reasons, strict=True) if why]
        return found

    def failed_blocks(self) -> list[int]:
        """The blocks with sequences that failed."""
        with os.scandir(self.path / "failure") as entries:
            return sorted(int(entry.name.split(".")[1]) for entry in entries if _is_block(entry.name))

    def write(self, block: int, name: str, values: np.ndarray) -> None:
        """Write a block of one variable, whole or not at all; no block of it may be there."""
        write_block(self.group[name], self._file(name, block), self.path / OWN / "parts", values)

    def drop(self, blocks: list[int]) -> None:
        """Forget blocks that are done, to score them again. What else is there of them is written anew."""
        for block in blocks:
            self._file("scores", block).unlink(missing_ok=True)

    def write_failures(self, block: int, reasons: list[str]) -> None:
        """Write why sequences of a block failed, or delete what was written when it was scored before."""
        if any(reasons):
            self.write(block, "failure", np.array(reasons, dtype=object))
        else:
            self._file("failure", block).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Delete what killed workers had half written, once all is done."""
        for path in (self.path / OWN / "parts").iterdir():
            path.unlink(missing_ok=True)

    def log(self, line: str) -> None:
        """Add a line to the run's log."""
        with open(self.path / OWN / "log.txt", "a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {socket.gethostname()} {os.getpid()} {line}\n")

    def _file(self, name: str, block: int) -> Path:
        return self.path / name / ".".join(["c", str(block), *["0"] * (self.group[name].ndim - 1)])


def _is_block(name: str) -> bool:
    return name.startswith("c.")  # and not the metadata


def write_block(like: Any, path: Path, parts: Path, values: np.ndarray) -> None:
    """Encode values as a chunk or shard of an array, and write the file, on the disk before it has its name.

    It is written into the folder ``parts``, of the same file system.
    """
    zarr = zarr_of()
    memory: dict[str, Any] = {}
    made = _array(
        zarr.storage.MemoryStore(memory),
        values.shape,
        {
            "chunks": like.chunks,
            "shards": like.shards,
            "dtype": like.dtype,
            "compressors": like.compressors,
            "fill_value": like.fill_value,
            "config": {"write_empty_chunks": True},
        },
    )
    made[...] = values
    (content,) = (value for name, value in memory.items() if name != "zarr.json")
    part = parts / f"{path.parent.name}.{path.name}.{uuid.uuid4().hex}"
    try:
        with open(part, "wb") as file:
            file.write(content.to_bytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _array(store: Any, shape: tuple[int, ...], settings: dict[str, Any]) -> Any:
    with _quiet():
        return zarr_of().create_array(
            store, shape=shape, chunk_key_encoding={"name": "default", "separator": "."}, **settings
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without zarr's warnings that strings, or metadata in one place, are not yet in its specification."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="zarr.*")
        warnings.filterwarnings("ignore", message=".*(pecification|onsolidated metadata).*")
        yield


class Draft:
    """A store that is being made beside its place, which it takes whole.

    Parameters
    ----------
    path : Path
        Its place.
    block : int
        Sequences in a block.
    letters : str
    """

    def __init__(self, path: Path, block: int, letters: str) -> None:
        self._path, self._block = path, block
        self.part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        zarr = zarr_of()
        with _quiet():
            self._group = zarr.open_group(self.part, mode="w-", zarr_format=3)
        for name in ("claims", "parts"):
            (self.part / OWN / name).mkdir(parents=True)
        self.column("letter", np.array(list(letters)), ("letter",), "the letters, in the order of the model's channels")

    def column(self, name: str, values: np.ndarray, dims: tuple[str, ...], text: str) -> None:
        """Add an array that is known from the beginning; text is a column of ``str``."""
        settings: dict[str, Any] = {"chunks": (max(min(_COLUMN, len(values)), 1), *values.shape[1:])}
        settings["dtype"] = str if values.dtype.kind in "OUT" else values.dtype
        self._make(name, values.shape, dims, settings, text)[...] = (
            values.astype(object) if settings["dtype"] is str else values
        )

    def blocks(self, name: str, shape: tuple[int, ...], dtype: Any, dims: tuple[str, ...], text: str) -> Any:
        """Add an array whose first axis is that of sequences, for blocks to be written one by one."""
        from zarr.codecs import ZstdCodec

        if dtype is str:
            settings: dict[str, Any] = {"chunks": (self._block,), "dtype": str, "fill_value": ""}
            return self._make(name, shape, dims, settings, text)
        row = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
        inner = max(
            size for size in range(1, self._block + 1) if not self._block % size and size * row <= max(CHUNK, row)
        )
        of_block = (self._block, *shape[1:])
        settings = {"chunks": (inner, *shape[1:]), "shards": of_block, "dtype": dtype}
        # On CTCF's scores level 1 takes 78% of the bytes; higher levels and shuffling gain nothing. One-hot: 19%
        settings |= {"compressors": ZstdCodec(level=1), "fill_value": np.nan if np.dtype(dtype).kind == "f" else 0}
        return self._make(name, shape, dims, settings, text)

    def _make(
        self, name: str, shape: tuple[int, ...], dims: tuple[str, ...], settings: dict[str, Any], text: str
    ) -> Any:
        store = zarr_of().storage.StorePath(self._group.store, name)
        return _array(store, shape, {**settings, "dimension_names": dims, "attributes": {"description": text}})

    def finish(self, job: dict[str, Any], n: int, attributes: dict[str, Any], coordinates: list[str]) -> Store:
        """Give it its place, unless another worker was first; what is there then counts."""
        zarr = zarr_of()
        with _quiet():
            for name in ("scores", "scores_by_model"):
                if name in self._group:
                    self._group[name].attrs["coordinates"] = " ".join(coordinates)
            self._group.attrs.update(attributes)
            zarr.consolidate_metadata(self._group.store)
        note = {"job": job, "block": self._block, "n": n}
        (self.part / OWN / "job.json").write_text(json.dumps(note, indent=1))
        try:
            os.rename(self.part, self._path)  # no folder with content is replaced
        except OSError:
            if not self._path.exists():
                raise
            self.discard()
        return Store(self._path)

    def discard(self) -> None:
        """Delete it."""
        shutil.rmtree(self.part, ignore_errors=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of writing into one that says why, and what to do."""
    try:
        yield
    except OSError as error:
        raise YuzuError(
            f"{path} cannot be written: {one_line(error)}; what is done stays done: start the same job again "
            "when it can"
        ) from error
