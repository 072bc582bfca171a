"""`yuzu.naive_ism` at its best batch size, and the float64 truth that all errors are taken against.

Naive ISM costs the same for every mutant. Where all positions would take longer than ``job.whole_seconds``, the ones
in the middle are timed and the seconds scaled up; ``timed_positions`` says how many.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
from common import (
    EDITS,
    Memory,
    affordable,
    best_batch,
    compared_deltas,
    compared_runs,
    load_model,
    load_sequences,
    middle,
    run,
    save_scores,
    timed,
    timings,
    versions,
)

BATCHES = {"cpu": (16, 32, 64, 128, 256), "cuda": (64, 128, 256, 512, 1024, 2048)}
TRIAL = 32  # positions, at least, on which a batch size is tried


def main(job: SimpleNamespace) -> dict[str, Any]:
    import yuzu

    model, X, length = load_model(job), load_sequences(job), job.length

    def naive(batch: int, first: int, stop: int) -> Any:
        return yuzu.naive_ism(model, X, start=first, end=stop, batch_size=batch, device=job.device)

    memory = Memory(job.device)
    naive(BATCHES[job.device][0], *middle(length, TRIAL))  # warm up
    # a call copies the model and runs the reference, however few its positions are
    fixed = min(timed(lambda: naive(BATCHES[job.device][0], *middle(length, 1)), job.device) for _ in range(2))

    def seconds_for_a_position(batch: int) -> float:
        first, stop = middle(length, max(TRIAL, -(-batch // EDITS)))
        seconds = timed(lambda: naive(batch, first, stop), job.device)
        return max(seconds - fixed, seconds / 2) / (stop - first)

    batch = best_batch(seconds_for_a_position, BATCHES[job.device])
    positions = affordable(length, seconds_for_a_position(batch), job.whole_seconds)
    first, stop = middle(length, positions)
    seconds = timings(lambda: naive(batch, first, stop), job)
    if positions < length:
        seconds = [fixed + (s - fixed) * length / positions for s in seconds]
    peak = memory.peak()

    double = copy.deepcopy(model).double()
    save_deltas(yuzu, model, X[:1], job, job.scores_file)
    save_deltas(yuzu, double, X[:1].astype(np.float64), job, job.truth_file)
    return {
        "seconds": seconds,
        "batch_size": batch,
        "timed_positions": positions,
        "peak_bytes": peak,
        "versions": versions("torch"),
    }


def save_deltas(yuzu: Any, model: Any, X: np.ndarray, job: SimpleNamespace, file: str) -> None:
    """Save the signed changes of one sequence at the compared positions, and their norms."""

    def score(first: int, stop: int) -> Any:
        return yuzu.naive_ism(model, X, output="delta", start=first, end=stop, batch_size=64, device=job.device)

    deltas = list(compared_deltas(job.length, score))
    save_scores(job, scattered_norm(deltas, job.length), deltas, file)


def scattered_norm(deltas: list[np.ndarray], length: int) -> np.ndarray:
    """The norm over all outputs of changes at the compared positions, in a table of all positions."""
    squares = sum((d.astype(np.float64) ** 2).reshape(*d.shape[:2], -1).sum(-1) for d in deltas)
    table = np.full((squares.shape[0], length), np.nan)
    table[:, np.concatenate([np.arange(*run) for run in compared_runs(length)])] = np.sqrt(squares)
    return table


if __name__ == "__main__":
    run(main)
