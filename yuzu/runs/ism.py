"""`ism_to`: scores of many sequences in a store, from Python."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yuzu._engine.checks import from_numpy
from yuzu.errors import YuzuError
from yuzu.regions import Regions, read_regions, windows_on
from yuzu.runs.call import Call
from yuzu.runs.job import Input, Job, begin
from yuzu.runs.processes import run
from yuzu.runs.progress import Status, status
from yuzu.runs.worker import Task
from yuzu.sequence import DNA, dna_order


def ism_to(
    path: str | os.PathLike[str],
    model: torch.nn.Module | Sequence[torch.nn.Module],
    sequences: Any,
    genome: str | os.PathLike[str] | None = None,
    width: int | None = None,
    *,
    names: Sequence[str] | None = None,
    args: tuple[Any, ...] | None = None,
    output: str = "l2",
    target: Any = None,
    func: Callable[[Any], Any] | None = None,
    start: int | None = 0,
    end: int | None = None,
    precomputation: str | os.PathLike[str] | None = None,
    precision: str | None = None,
    alphabet: str = DNA,
    reverse_complement: bool = False,
    max_unknown: float = 1.0,
    workers: int = 1,
    devices: Sequence[str] | None = None,
    shard: tuple[int, int] | None = None,
    block: int | None = None,
    retry: bool = False,
    threads: int = 1,
    batch_size: int | None = None,
    device: Any = None,
    verbose: bool = False,
) -> Status:
    """Score every substitution of many sequences, into a Zarr store that any number of workers fill.

    The same call goes on where the last one stopped, however that ended. Calls at the same time, also on other machines
    that share the file system, share the work.

    Parameters
    ----------
    path : str or os.PathLike
        The store, such as "scores.zarr". ``xarray.open_zarr`` opens it.
    model : torch.nn.Module, or a list of them
        Several models are folds of one architecture: ``scores`` is their mean, and ``scores_by_model`` has each.
    sequences : torch.Tensor or numpy.ndarray of shape (n, C, L), Regions, or str or os.PathLike
        One-hot sequences; or regions, or a BED or narrowPeak file, whose windows are read from ``genome``.
    genome : str or os.PathLike, optional
        A FASTA file, for regions.
    width : int, optional
        The length of windows on the regions' summits. Default: the regions as they are.
    names : list of str, optional
        Names of one-hot sequences. Default: "0", "1", ...
    args : tuple of tensors, optional
        The model's other inputs, a row for each sequence or region given.
    output, target, func, start, end, batch_size, device
        As in `yuzu.yuzu_ism`; ``output`` may also be "hypothetical": differences less their mean over the letters.
    precomputation : str or os.PathLike, optional
        A file that `yuzu.Precomputation.save` wrote. Default: that of an earlier run, or a new one.
    precision : str, optional
        As in `yuzu.precompute`. Default: the precomputation's, or "highest".
    alphabet : str, optional
        The letters in the order of the channels. Default "ACGT".
    reverse_complement, max_unknown
        As in `yuzu.regions.one_hot_regions`.
    workers : int, optional
        Processes. With more than one, `model`, `args` and `func` must be picklable, and a script needs
        ``if __name__ == "__main__":`` around the call. Default 1, this process.
    devices : list of str, optional
        Devices that are dealt out to workers; ``workers`` is then at least their number.
    shard : (int, int), optional
        ``(i, n)`` scores each n-th block, from ``i % n``, as a task of a scheduler's array does. Default: all.
    block : int, optional
        Sequences in a block, when the store is made. Default: up to 64, fewer for short runs and large outputs.
    retry : bool, optional
        Score blocks with sequences that failed again. Default False.
    threads : int, optional
        Threads of each worker on a CPU. Another number may change last bits, so it belongs to the job. Default 1.
    verbose : bool, optional
        Show a bar, or a line a minute where there is no terminal.

    Returns
    -------
    Status
        How far the run is: complete but for shards. Sequences that could not be scored are in ``failures``.

    Raises
    ------
    YuzuError
        For bad input; if the store is of another job, or cannot be written; if all workers were killed.
    ImportError
        If zarr is not installed.

    Examples
    --------
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> yuzu.runs.ism_to(                                                              # doctest: +SKIP
    ...     "scores.zarr", load_ctcf_model(), load_ctcf_peaks().X, output="hypothetical", target=0, workers=4
    ... ).complete
    True
    """
    models = [model] if isinstance(model, torch.nn.Module) else list(model)
    if not models or not all(isinstance(one, torch.nn.Module) for one in models):
        raise YuzuError(f"model: got {type(model).__name__}, want a torch.nn.Module or a list of them")
    workers = check_workers(workers, devices)
    shard = check_shard(shard)
    others = None if args is None else tuple(torch.as_tensor(one) for one in args)
    settings = {"start": start, "end": end, "batch_size": batch_size, "device": device}
    call = Call(models, others, func, target, output, settings)
    identity: dict[str, Any] = {
        "func": None if func is None else f"{func.__module__}.{getattr(func, '__qualname__', func)}"
    }
    if isinstance(sequences, (np.ndarray, torch.Tensor)):
        if genome is not None or width is not None:
            raise YuzuError("genome and width are for regions, got one-hot sequences")
        given = given_sequences(_one_hot(sequences, alphabet), names, alphabet)
        assert given.X is not None
        digest = hashlib.sha256(given.X.numpy().tobytes() + "\n".join(map(str, given.columns["name"])).encode())
    else:
        if genome is None:
            raise YuzuError("genome: got None, want the FASTA file that the regions are of")
        regions = sequences if isinstance(sequences, Regions) else read_regions(sequences)
        given = given_regions(regions, genome, width, (dna_text(alphabet), reverse_complement, max_unknown))
        status_of = os.stat(genome)
        identity["genome"] = [os.path.realpath(genome), status_of.st_size, status_of.st_mtime_ns]
        digest = hashlib.sha256("\n".join(regions.lines.tolist()).encode())
        digest.update(repr((given.columns["start"].tolist(), given.columns["strand"].tolist())).encode())
    identity["sequences"] = digest.hexdigest()
    place = Path(path)
    made = None if precomputation is None else Path(precomputation)
    load = _Loaded(call)
    store = begin(place, Job(load, identity, precision, made, block, threads), call, lambda: given)
    if retry:
        store.drop(store.failed_blocks())
    run(
        Task(place, load, given.genome, threads, shard),
        dataclasses.replace(call),
        workers,
        list(devices or []),
        not verbose,
    )
    return status(place)


@dataclass(frozen=True)
class _Loaded:
    """A call that is sent to workers as it is."""

    call: Call

    def __call__(self) -> Call:
        return self.call


def check_workers(workers: Any, devices: Sequence[str] | None) -> int:
    """The number of workers: at least one for each device."""
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise YuzuError(f"workers must be an integer, at least 1, got {workers!r}")
    return max(workers, len(devices or []))


def check_shard(shard: Any) -> tuple[int, int]:
    """``(i, n)`` with ``0 <= i <= n``: ``n`` is 0, so that shards may be counted from 0 or from 1."""
    if shard is None:
        return 0, 1
    good = isinstance(shard, tuple) and len(shard) == 2 and all(isinstance(one, int) for one in shard)
    if not good or shard[1] < 1 or not 0 <= shard[0] <= shard[1]:
        raise YuzuError(f"shard must be (i, n), with i from 0 to n - 1 or from 1 to n, got {shard!r}")
    return shard[0] % shard[1], shard[1]


def dna_text(alphabet: Any) -> str:
    """Letters of DNA in some order, as one text."""
    return "".join(dna_order(alphabet))


def _one_hot(X: Any, alphabet: str) -> torch.Tensor:
    found = torch.as_tensor(from_numpy(X, "sequences") if isinstance(X, np.ndarray) else X).detach().cpu()
    if found.ndim != 3 or 0 in found.shape or found.shape[1] != len(alphabet):
        raise YuzuError(f"sequences must have shape (n, {len(alphabet)}, L), got {tuple(found.shape)}")
    return found.to(torch.int8) if bool(((found == 0) | (found == 1)).all()) else found.float()


def given_sequences(X: torch.Tensor, names: Sequence[str] | None, letters: str) -> Input:
    """One-hot sequences with names."""
    names = [str(row) for row in range(len(X))] if names is None else list(names)
    if len(names) != len(X):
        raise YuzuError(f"names: got {len(names)}, want {len(X)}, one for each sequence")
    columns = {"name": np.array(names, dtype=object), "row": np.arange(len(X))}
    return Input(X.shape[2], letters, columns, len(X), X)


def given_regions(regions: Regions, genome: Any, width: int | None, reading: tuple[str, bool, float]) -> Input:
    """Windows on regions; ``reading`` is the order of letters, ``reverse_complement`` and ``max_unknown``."""
    from yuzu._engine.genome import opened_genome

    letters, reverse_complement, max_unknown = reading
    windows, kept = windows_on(regions, genome, width, reverse_complement, max_unknown)
    with opened_genome(genome) as chromosomes:
        sizes = {name: len(chromosomes[name]) for name in sorted(chromosomes.keys())}
    peaks = regions[kept]
    named = any(name != "." for name in regions.names.tolist())
    places = zip(windows.chromosomes, windows.starts, windows.ends, strict=True)
    columns = {
        "name": peaks.names if named else np.array([f"{c}:{s}-{e}" for c, s, e in places], dtype=object),
        "row": kept,
        "chrom": windows.chromosomes,
        "start": windows.starts,
        "end": windows.ends,
        "strand": np.where(windows.flipped, "-", "+").astype(object),
        "summit": windows.summits,
        "peak_start": peaks.starts,
        "peak_end": peaks.ends,
        "peak_strand": peaks.strands,
        "line": peaks.lines,
    }
    return Input(
        int(windows.ends[0] - windows.starts[0]), letters, columns, len(regions), None, os.fspath(genome), sizes
    )
