"""``yuzu ism`` with a Zarr store, and ``yuzu status``: runs with several workers."""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import sys
from pathlib import Path
from typing import Any

from yuzu._engine.checks import check_device
from yuzu.command_line.call import call_of
from yuzu.command_line.inputs import check_input, read_sequences
from yuzu.command_line.options import ALPHABETS
from yuzu.errors import YuzuError
from yuzu.regions import read_regions
from yuzu.runs import Status, export, status
from yuzu.runs.ism import check_shard, check_workers, given_regions, given_sequences
from yuzu.runs.job import Input, Job, begin
from yuzu.runs.processes import run
from yuzu.runs.store import OWN, zarr_of
from yuzu.runs.submission import Requeued, submit, wait
from yuzu.runs.worker import Task

LISTED = 20  # failed sequences that are listed
_FILES = ("fasta", "regions", "genome", "args", "precomputation")
_ARRAYS = (  # of schedulers: the task, and its first and last number
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX"),
    ("SGE_TASK_ID", "SGE_TASK_FIRST", "SGE_TASK_LAST"),
    ("PBS_ARRAY_INDEX", None, None),
    ("LSB_JOBINDEX", None, "LSB_JOBINDEX_END"),
)


def run_ism_to_store(options: argparse.Namespace) -> int:
    """Run ``yuzu ism`` with ``--out FILE.zarr``."""
    try:
        zarr_of()
    except ImportError as error:
        raise YuzuError(f"--out: {error}") from error
    for name in _FILES:
        path = getattr(options, name)
        if path is not None and not path.is_file():
            raise YuzuError(f"--{name}: there is no file {path}")
    if options.devices is not None and options.device is not None:
        raise YuzuError("give either --device or --devices")
    if options.at_once is not None and options.at_once < 1:
        raise YuzuError(f"--at-once must be at least 1, got {options.at_once}")
    if options.threads < 1:
        raise YuzuError(f"--threads must be at least 1, got {options.threads}")
    devices = None if options.devices is None else options.devices.split(",")
    for device in devices or [options.device]:
        check_device(device)
    options.device = devices[0] if devices else options.device
    workers = check_workers(1 if options.workers is None else options.workers, devices)
    shard = check_shard(_shard(options.shard))
    check_input(options)
    if options.submit is not None:
        return _submit(options, workers, shard)
    call = call_of(options)
    load = functools.partial(call_of, options)
    block, threads = options.at_once, options.threads
    job = Job(load, _identity(options), options.precision, options.precomputation, block, threads)
    store = begin(options.out, job, call, functools.partial(_read, options))
    if options.retry:
        store.drop(store.failed_blocks())
    task = Task(options.out, load, None if options.genome is None else str(options.genome), threads, shard)
    run(task, call, workers, devices, options.quiet)
    return _end(status(options.out), options.out, shard)


def _submit(options: argparse.Namespace, workers: int, shard: tuple[int, int]) -> int:
    """Hand the run over to jobs that share it."""
    if shard != (0, 1):
        raise YuzuError("give either --shard or --submit, whose jobs share the work by themselves")
    if options.jobs < 1:
        raise YuzuError(f"--jobs must be at least 1, got {options.jobs}")
    settings: dict[str, Any] = {"cpus_per_task": workers * options.threads}
    for text in options.setting:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise YuzuError(f"--setting must be NAME=VALUE, got {text!r}")
        settings[name] = int(value) if value.isdigit() else value
    call_of(options)  # a model or weights that cannot be loaded are told now
    one = argparse.Namespace(**{**vars(options), "submit": None, "quiet": False})
    folder = options.out.with_name(options.out.name + ".jobs")
    try:
        jobs = submit(Requeued(run_ism_to_store, one), folder, options.submit, options.jobs, settings)
    except ImportError as error:
        raise YuzuError(f"--submit: {error}") from error
    print(f"jobs {', '.join(str(job.job_id) for job in jobs)}; logs in {folder}; follow: yuzu status {options.out}")
    if not options.wait:
        return 0
    errors = wait(jobs)
    if not (options.out / OWN).is_dir() or not (found := status(options.out)).complete:
        raise YuzuError(f"the jobs ended before the run was complete: {'; '.join(errors) or 'no reason is known'}")
    return _end(found, options.out, shard)


def run_status(options: argparse.Namespace) -> int:
    """Run ``yuzu status``."""
    try:
        found = status(options.path)
    except ImportError as error:
        raise YuzuError(str(error)) from error
    print(found)
    if not found.complete:
        print(f"{found.working} blocks in work" if found.working else "no worker is on it: start the same job again")
    for line in _listed(found):
        print(line)
    return 0


def run_export(options: argparse.Namespace) -> None:
    """Run ``yuzu export``."""
    files = {name: getattr(options, name) for name in ("modisco", "bigwig", "bed", "numpy")}
    if not any(files.values()):
        raise YuzuError("give --modisco, --bigwig, --bed or --numpy, the files to write")
    try:
        n = export(options.path, **files, target=options.target, chromosome_sizes=options.sizes)
    except ImportError as error:
        raise YuzuError(str(error)) from error
    print(f"{n} sequences of {options.path} in {', '.join(str(path) for path in files.values() if path is not None)}")


def check_one_process(options: argparse.Namespace) -> None:
    """Refuse options of several workers for a file of one."""
    for name in ("workers", "devices", "shard", "submit"):
        if getattr(options, name) is not None:
            raise YuzuError(
                f"--{name} needs a store that several workers can write: --out FILE.zarr, got {options.out}"
            )


def _end(found: Status, out: Path, shard: tuple[int, int]) -> int:
    for line in _listed(found):
        print(line, file=sys.stderr)
    failed = f", {found.failed} failed" if found.failed else ""
    if found.complete:
        print(f"{found.sequences} sequences in {out}{failed}")
    else:
        print(f"shard {shard[0]}/{shard[1]} is done; {found.done} of {found.sequences} sequences in {out}{failed}")
    return 3 if found.failed else 0


def _listed(found: Status) -> list[str]:
    lines = [f"failed: {name}: {why}" for name, why in found.failures[:LISTED]]
    more = len(found.failures) - LISTED
    return [*lines, f"failed: {more} more, in the variable `failure`"] if more > 0 else lines


def _shard(text: str | None) -> tuple[int, int] | None:
    """``I/N``, or the place of this task in a scheduler's array."""
    if text is None:
        return None
    if text == "array":
        return _array_task()
    first, _, second = text.partition("/")
    if not (first.isdigit() and second.isdigit()):
        raise YuzuError(f"--shard must be I/N, such as 3/16, or array, got {text!r}")
    return int(first), int(second)


def _array_task() -> tuple[int, int]:
    for task, first, last in _ARRAYS:
        if (number := os.environ.get(task, "")).isdigit():
            begin = int(os.environ.get(first or "", "1"))
            end = os.environ.get(last or "", "")
            if not end.isdigit():
                raise YuzuError(f"--shard array: {task}={number}, but how many tasks there are is not known; give I/N")
            return int(number) - begin, int(end) - begin + 1
    names = ", ".join(task for task, _, _ in _ARRAYS)
    raise YuzuError(f"--shard array: this is no task of an array, for none of {names} is set; give I/N")


def _read(options: argparse.Namespace) -> Input:
    letters = ALPHABETS[options.alphabet]
    if options.fasta is not None:
        names, X = read_sequences(options.fasta, options.alphabet)
        return given_sequences(X, names, letters)
    unknown = 1.0 if options.max_unknown is None else options.max_unknown
    reading = (letters, options.reverse_complement, unknown)
    try:
        return given_regions(read_regions(options.regions), str(options.genome), options.width, reading)
    except ImportError as error:
        raise YuzuError(str(error)) from error


def _identity(options: argparse.Namespace) -> dict[str, Any]:
    """The options about scores, beside those of the models."""
    names = ("model", "head", "func", "alphabet", "width", "reverse_complement", "max_unknown")
    found = {name: getattr(options, name) for name in names}
    code = hashlib.sha256()
    for place in (options.model, options.func):
        if place is not None and ".py:" in place:
            code.update(Path(place.rpartition(":")[0]).read_bytes())
    found["code"] = code.hexdigest()
    digest = hashlib.sha256()
    with open(options.regions if options.fasta is None else options.fasta, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    found["sequences"] = digest.hexdigest()
    if options.genome is not None:
        known = options.genome.stat()
        found["genome"] = [str(options.genome.resolve()), known.st_size, known.st_mtime_ns]
    return found
