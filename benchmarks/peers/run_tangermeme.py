"""tangermeme's `saturation_mutagenesis`, with ``fast=True`` and with ``fast=False``, at the best batch size.

With ``fast=True`` the public function decides in `_fast_path` whether a job is long enough, captures the model,
checks it against ``fast=False`` and predicts a first batch slowly. Here the capture and the check run once, before
the clock starts, and `_fast_path` is replaced by a function that hands over what they made; so there is no threshold
either. What is timed is the public function without those steps, the cached activations of each sequence included.
If the capture is refused, this run fails with tangermeme's own reason. When its check finds the fast path wrong or
slower, the run goes on and the reason is reported.

``raw_outputs=True`` asks for the outputs of all mutants, the least that it returns for all outputs; the scores that
errors are taken of are worked out afterwards.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
from common import (
    EDITS,
    Memory,
    affordable,
    best_batch,
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

BATCHES = {"cpu": (8, 16, 32, 64, 128, 256, 512), "cuda": (64, 128, 256, 512, 1024, 2048, 4096)}
TRIAL = 32  # positions, at least, on which a batch size is tried


def main(job: SimpleNamespace) -> dict[str, Any]:
    import torch
    from tangermeme import saturation_mutagenesis as module

    model, X = load_model(job), torch.from_numpy(load_sequences(job)).to(torch.int8)
    func = select_counts if job.counts_only else None
    result: dict[str, Any] = {"versions": versions("tangermeme", "torch")}
    length = job.length

    def score(batch: int, first: int = 0, stop: int = -1) -> Any:
        return module.saturation_mutagenesis(
            model,
            X,
            start=first,
            end=stop,
            batch_size=batch,
            raw_outputs=True,
            device=job.device,
            func=func,
            fast=job.fast,
        )

    memory = Memory(job.device)
    if job.fast:
        fast = force_fast_path(module, model, X, func, job, result)

        def trial(batch: int, first: int, stop: int) -> Any:
            _, characters, positions = module._single_edits(X[0], 0, length)
            chosen = (positions >= first) & (positions < stop)
            fast.predict_edits(0, characters[chosen], positions[chosen], batch, func)
    else:
        trial = score

    def seconds_for_a_position(batch: int) -> float:
        first, stop = middle(length, max(TRIAL, -(-batch // EDITS)))
        return timed(lambda: trial(batch, first, stop), job.device) / (stop - first)

    trial(BATCHES[job.device][0], *middle(length, TRIAL))  # warm up
    batch = job.batch_size or best_batch(seconds_for_a_position, BATCHES[job.device])
    positions = length
    if not job.fast:  # every mutant costs the same: some can be timed for all
        positions = affordable(length, seconds_for_a_position(batch), job.limit_seconds / 2)
    first, stop = middle(length, positions)

    kept: dict[str, Any] = {}

    def whole() -> None:
        kept.clear()
        if job.fast:
            fast._example = None  # each run caches each sequence's activations again
        kept["raw"] = score(batch, first, stop)

    result["seconds"] = [s * length / positions for s in timings(whole, job)]
    result.update(batch_size=batch, timed_positions=positions, peak_bytes=memory.peak())
    if positions == length and not job.counts_only:
        y0, mutants = kept["raw"]
        y0, mutants = ([y0], [mutants]) if isinstance(y0, torch.Tensor) else (y0, mutants)
        squares, deltas = 0.0, []
        compared = np.concatenate([np.arange(*run) for run in compared_runs(length)])
        for reference, mutant in zip(y0, mutants, strict=True):
            change = (mutant[0] - reference[0]).numpy()
            squares = squares + (change.reshape(*change.shape[:2], -1).astype(np.float64) ** 2).sum(-1)
            deltas.append(change[:, compared])
        save_scores(job, np.sqrt(squares), deltas)
    return result


def select_counts(outputs: Any) -> Any:
    """bpnet-lite's count head."""
    return outputs[1]


def force_fast_path(module: Any, model: Any, X: Any, func: Any, job: SimpleNamespace, result: dict[str, Any]) -> Any:
    """Capture and check the model once, have `saturation_mutagenesis` use that from then on, and return it."""
    import torch

    device = torch.device(job.device)
    begin = time.perf_counter()
    with torch.no_grad():
        fast = module._FastISM(model, X, None, 0, job.length, device, torch.float32, False)
    captured = time.perf_counter()
    reason = module._verify_fast(fast, model, X, None, 0, job.length, 32, torch.float32, device, func)
    checked = time.perf_counter()
    module._fast_path = lambda *arguments: (fast, None, 0)
    result.update(
        precompute_seconds=checked - begin,
        capture_seconds=captured - begin,
        check_seconds=checked - captured,
        note="" if reason is None else f"tangermeme itself would not use its fast path: {reason}",
    )
    return fast


if __name__ == "__main__":
    run(main)
