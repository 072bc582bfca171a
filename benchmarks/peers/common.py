"""Shared by all peers' runners: the job they get, how they time it, and the results they return.

A runner is started as ``python run_x.py job.json`` in its own environment and prints one line of JSON last. Only
numpy is needed here: fastISM's environment has no torch.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

EDITS = 3  # other characters than the reference's, at each position
MORE_REPEATS = 4  # times as many for calls of milliseconds
RUNS, RUN = 8, 4  # runs of neighbours, evenly spaced, whose scores are compared with float64


def run(main: Callable[[SimpleNamespace], dict[str, Any]]) -> None:
    """Read the job, run it and print what came out, or the first line of the error."""
    job = SimpleNamespace(**json.loads(Path(sys.argv[1]).read_text()))
    try:
        result = main(job)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        result = {"error": f"{type(error).__name__}: {lines[0]}"}
    print(json.dumps(result), flush=True)


def load_sequences(job: SimpleNamespace) -> np.ndarray:
    """One-hot sequences ``(n, 4, L)`` as float32."""
    return np.load(job.sequences_file).astype(np.float32)


def load_weights(job: SimpleNamespace) -> dict[str, np.ndarray]:
    """The weights that all peers share, by their name in the state dict."""
    with np.load(job.weights_file) as file:
        return dict(file)


def load_model(job: SimpleNamespace, model: Any = None) -> Any:
    """The job's torch model (or ``model``) with the shared weights, in evaluation mode on the job's device.

    The first peer to run writes the weights; all others load them. How many threads it runs on is for the environment
    to say: after `torch.set_num_threads` the published Yuzu's small matrix inversions take minutes in place of seconds.
    """
    import torch
    from definitions import build

    model = build(job.model, job.length) if model is None else model
    if not Path(job.weights_file).exists():
        weights: dict[str, Any] = {name: value.numpy() for name, value in model.state_dict().items()}
        np.savez(job.weights_file, **weights)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in load_weights(job).items()})
    return model.eval().to(job.device)


def compared_runs(length: int) -> list[tuple[int, int]]:
    """First and stop of the compared positions; both ends of the sequence are among them."""
    starts = np.unique(np.linspace(0, length - RUN, RUNS).round().astype(int))
    return [(int(start), int(start) + RUN) for start in starts]


def save_scores(job: SimpleNamespace, l2: Any, deltas: Iterable[Any] = (), name: str | None = None) -> None:
    """Keep the scores of the first sequence at the compared positions.

    Parameters
    ----------
    l2: array, shape=(4, L)
        The norm of the change over all outputs.
    deltas: arrays, each of shape=(4, n_compared, ...)
        For each output tensor the change itself; none for a peer that gives norms only.
    """
    compared = np.concatenate([np.arange(*run) for run in compared_runs(job.length)])
    arrays: dict[str, Any] = {f"delta_{i}": np.asarray(delta) for i, delta in enumerate(deltas)}
    np.savez(name or job.scores_file, l2=np.asarray(l2)[:, compared], **arrays)


def compared_deltas(length: int, score: Callable[[int, int], Any]) -> Iterator[np.ndarray]:
    """The first sequence's changes at the compared positions, for each output tensor.

    Parameters
    ----------
    length: int
    score: callable
        Takes the first and the stop position and returns changes ``(n, 4, positions, ...)``, one tensor or a tuple.
    """
    parts = []
    for first, stop in compared_runs(length):
        found = score(first, stop)
        parts.append(found if isinstance(found, tuple | list) else [found])
    for leaves in zip(*parts, strict=True):
        yield np.concatenate([np.asarray(leaf)[0] for leaf in leaves], axis=1)


def timed(function: Callable[[], Any], device: str) -> float:
    """Seconds of one call, with the device's work done before and after."""
    synchronize(device)
    begin = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - begin


def synchronize(device: str) -> None:
    """Wait for what was started on a GPU."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def timings(function: Callable[[], Any], job: SimpleNamespace) -> list[float]:
    """Seconds of ``job.repeats`` calls, of more where all are done within a second, and of fewer where
    ``job.limit_seconds`` are spent before.
    """
    found: list[float] = []
    while (len(found) < job.repeats and sum(found) < job.limit_seconds) or (
        len(found) < MORE_REPEATS * job.repeats and sum(found) < 1
    ):
        found.append(timed(function, job.device))
    return found


def best_batch(seconds: Callable[[int], float], sizes: Iterable[int]) -> int:
    """The batch size with the fewest seconds for a mutant, ``seconds(size)``; rising sizes are tried until one is a
    third slower than the best.
    """
    found: dict[int, float] = {}
    for size in sizes:
        try:
            found[size] = seconds(size)
        except (MemoryError, RuntimeError):  # the size does not fit into memory; smaller ones did
            if not found:
                raise
            break
        if found[size] > min(found.values()) * 4 / 3:
            break
    return min(found, key=lambda size: found[size])


def middle(length: int, positions: int) -> tuple[int, int]:
    """First and stop of ``positions`` positions in the middle of the sequence, where no window meets an end."""
    positions = min(positions, length)
    first = (length - positions) // 2
    return first, first + positions


def affordable(length: int, seconds_for_a_position: float, most_seconds: float) -> int:
    """How many positions can be timed in ``most_seconds``: all of them where that is enough, at least 32."""
    return min(length, max(32, int(most_seconds / max(seconds_for_a_position, 1e-9))))


class Memory:
    """Peak memory from now on, beyond what this process holds now."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return
        try:  # loading the model may have needed more than will be needed now: forget that peak
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass
        self.before = _status("VmRSS")

    def peak(self) -> int:
        """Bytes."""
        if self.device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated() - self.before
        return max(_status("VmHWM") - self.before, 0)


def _status(entry: str) -> int:
    """A size from the kernel's account of this process. `ru_maxrss` is for systems without one only: after an exec it
    starts from the parent's.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry + ":"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def versions(*packages: str) -> dict[str, str]:
    """The installed versions."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
