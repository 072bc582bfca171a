"""Runs of many workers: rate of two over one, time to the first block, overhead of blocks, and growth of memory.

    python benchmarks/runs.py FOLDER [--sequences 20000] [--length 500] [--pairs 3] [--tiny 50000]

One and two workers of one thread alternate, each on the packaged CTCF model and the same random sequences; the rate is
that between the first and the last block. The overhead is the share of a worker's time that is not spent in scoring,
with claims, reading, encoding and writing. Memory is this process's after a tenth, half and all of a run on many tiny
sequences.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from yuzu.examples import load_ctcf_model
from yuzu.runs.call import Call
from yuzu.runs.ism import given_sequences
from yuzu.runs.job import Job, begin
from yuzu.runs.store import Store
from yuzu.runs.worker import Task, work


def rate(folder: Path, workers: int) -> tuple[float, float, float]:
    """Sequences a second between the first and the last block, seconds to the first block, and processor seconds of the
    command. The last tell two workers that get in each other's way from a machine that has other work.
    """
    out = folder / "rate.zarr"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "yuzu", "ism", "--model", "yuzu.examples:load_ctcf_model", "--fasta"]
    command += [str(folder / "x.fa"), "--out", str(out), "--device", "cpu", "--output", "delta", "--target", "0"]
    begun, before = time.time(), os.times()
    subprocess.run([*command, "--workers", str(workers), "--quiet"], check=True, stdout=subprocess.DEVNULL)
    store = Store(out)
    times = sorted(path.stat().st_mtime for path in (out / "scores").glob("c.*"))
    skipped = 2 * workers  # while the workers start
    return store.block * (len(times) - skipped) / (times[-1] - times[skipped - 1]), times[0] - begun, _used(before)


def _used(before: os.times_result) -> float:
    now = os.times()
    return now.children_user + now.children_system - before.children_user - before.children_system


def one_hot(n: int, length: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    letters = torch.from_numpy(rng.integers(4, size=(n, length)))
    return torch.eye(4, dtype=torch.int8)[letters].transpose(1, 2).contiguous()


def ctcf() -> Call:
    return Call([load_ctcf_model()], None, None, 0, "delta", settings())


def tiny() -> Call:
    torch.manual_seed(0)
    layers = [torch.nn.Conv1d(4, 8, 5, padding=2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 24, 1)]
    return Call([torch.nn.Sequential(*layers).eval()], None, None, None, "l2", settings())


def settings() -> dict:
    return {"start": 0, "end": None, "batch_size": None, "device": "cpu"}


def task_of(path: Path, load, X: torch.Tensor) -> Task:
    shutil.rmtree(path, ignore_errors=True)
    begin(path, Job(load, {}, block=64), load(), lambda: given_sequences(X, None, "ACGT"))  # as for many sequences
    return Task(path, load)


def overhead(folder: Path, X: torch.Tensor) -> float:
    """The share of a worker's time that is not in scoring."""
    task, inside, original = task_of(folder / "overhead.zarr", ctcf, X), [], Call.scores
    ends = []

    @functools.wraps(original)
    def timed(self, X, made):
        begun = time.perf_counter()
        found = original(self, X, made)
        inside.append(time.perf_counter() - begun)
        ends.append(time.perf_counter())
        return found

    Call.scores = timed
    try:
        work(task)
    finally:
        Call.scores = original
    return 1 - sum(inside[1:]) / (ends[-1] - ends[0])  # after the first, which captures the model


def memory(folder: Path, n: int) -> list[float]:
    """MB of this process after a tenth, half and all of a run."""
    task = task_of(folder / "tiny.zarr", tiny, one_hot(n, 24))
    blocks, found, done = Store(task.path).blocks, [], [0]

    def report() -> None:
        done[0] += 1
        if done[0] in (blocks // 10, blocks // 2, blocks):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            found.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)

    work(task, report=report)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sequences", type=int, default=20_000)
    parser.add_argument("--length", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--tiny", type=int, default=50_000)
    options = parser.parse_args()
    folder = options.folder
    folder.mkdir(exist_ok=True)
    X = one_hot(options.sequences, options.length)
    letters = np.array(list("ACGT"))[X.argmax(1).numpy()]
    (folder / "x.fa").write_text("".join(f">s{i}\n{''.join(row)}\n" for i, row in enumerate(letters)))
    found = {1: [], 2: []}
    for _ in range(options.pairs):
        for workers in (1, 2):
            found[workers].append(rate(folder, workers))
            per_second, first, used = found[workers][-1]
            told = f"{per_second:.1f} a second, first block after {first:.1f} s, processor {used:.1f} s"
            print(f"{workers} workers: {told}", flush=True)
    if options.pairs:
        ratios = [two[0] / one[0] for one, two in zip(found[1], found[2], strict=True)]
        print(f"two workers over one: {statistics.median(ratios):.2f} ({', '.join(f'{r:.2f}' for r in ratios)})")
    print(f"overhead of blocks: {100 * overhead(folder, X[: min(len(X), 1024)]):.1f}%", flush=True)
    if options.tiny:
        grown = ", ".join(f"{size:.0f} MB" for size in memory(folder, options.tiny))
        print(f"memory over {options.tiny} tiny sequences: {grown}")


if __name__ == "__main__":
    main()
