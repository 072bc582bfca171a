"""Genomes, opened to read parts of their chromosomes: FASTA files, plain or packed by bgzip, and mappings."""

from __future__ import annotations

import contextlib
import inspect
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yuzu._engine.fasta_index import check_packing, index_of
from yuzu._engine.files import written_whole
from yuzu.errors import YuzuError, one_line


@contextlib.contextmanager
def opened_genome(genome: Any) -> Iterator[Any]:
    """Open a genome: its sequences by chromosome, each with a length and slices. A file is closed at the end."""
    if not isinstance(genome, (str, os.PathLike)):
        if not (hasattr(genome, "keys") and hasattr(genome, "__getitem__")):
            raise YuzuError(
                f"genome: got {type(genome).__name__}, want a FASTA file, a pyfaidx.Fasta or sequences by chromosome"
            )
        yield genome
        return
    try:
        import pyfaidx
    except ImportError as error:
        raise ImportError("a FASTA file is opened with pyfaidx: pip install pyfaidx") from error
    path = os.fspath(genome)
    packed = check_packing(path)  # a missing file raises FileNotFoundError here
    named = path.lower().endswith((".gz", ".bgz"))  # pyfaidx unpacks by the ending of the name
    if packed == "bgzip" and named:
        opened = _opened_packed(path, pyfaidx)
    elif packed is not None or named:
        raise YuzuError(_how_to_unpack(path, packed, named))
    else:
        opened = _opened_plain(path, pyfaidx)
    with opened as fasta:
        yield fasta


@contextlib.contextmanager
def _opened_plain(path: str, pyfaidx: Any) -> Iterator[Any]:
    with index_of(path) as index:
        try:
            fasta = pyfaidx.Fasta(path, indexname=index, rebuild=False)
        except (OSError, ValueError, AssertionError) as error:
            raise YuzuError(f"genome: {path} cannot be read with its index {index}: {one_line(error)}") from error
    with fasta:
        yield fasta


@contextlib.contextmanager
def _opened_packed(path: str, pyfaidx: Any) -> Iterator[Any]:
    """Open a FASTA file that is packed by bgzip, which pyfaidx indexes by itself.

    Its indexes cannot be checked against the letters. So they must be newer than the change time of the file, which
    `cp -p` and unpacking do not set back.
    """
    status, beside = os.stat(path), [Path(path + ending) for ending in (".fai", ".gzi")]
    since = max(status.st_mtime_ns, status.st_ctime_ns)
    try:
        with contextlib.ExitStack() as opened:
            if all(index.is_file() and index.stat().st_mtime_ns >= since for index in beside):
                fasta = pyfaidx.Fasta(path, rebuild=False)
            elif "gzi_indexname" not in inspect.signature(pyfaidx.Fasta).parameters:  # before version 0.9
                fasta = pyfaidx.Fasta(path)
            else:
                folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="yuzu")))
                made = [folder / index.name for index in beside]
                fasta = pyfaidx.Fasta(path, indexname=str(made[0]), gzi_indexname=str(made[1]))
                with contextlib.suppress(OSError):  # if they cannot be written, the next call makes them again
                    for index, new in zip(beside, made, strict=True):
                        with written_whole(index) as part:
                            part.write_bytes(new.read_bytes())
    except ImportError as error:
        raise YuzuError(
            f"genome: got {path}, which is compressed; unpack it with 'gunzip', or pack it with 'bgzip' and install "
            "biopython"
        ) from error
    except Exception as error:  # pyfaidx raises many kinds for a damaged file, or one that is no FASTA
        raise YuzuError(
            f"genome: got {path}, want FASTA packed with bgzip, whole and in lines of one length ({one_line(error)}); "
            "unpack it with 'gunzip', and the next error names the line"
        ) from error
    with fasta:
        yield fasta


def _how_to_unpack(path: str, packed: str | None, named: bool) -> str:
    if packed is None:
        return f"genome: got {path}, which is not compressed, whatever its name says; rename it without the ending"
    if packed == "bgzip":
        return f"genome: got {path}, which is packed with bgzip; rename it to end in '.gz', or unpack it"
    return (
        f"genome: got {path}, which is compressed ({packed}); unpack it, with 'gunzip' where it is gzip, or pack it "
        "with 'bgzip' and install biopython"
    )
