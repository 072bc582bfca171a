"""Times Cherimoya at its published size: `yuzu_ism` of all positions and of the central 400, beside naive ISM.

    python benchmarks/whole_cherimoya.py [--threads 2] [--naive-positions 20]

Naive ISM is timed on a sample of positions in the middle, and extrapolated; its batches have 32 mutants. Both score the
profile and the log-counts. A precomputation with statistics pays for a sequence's derivatives once, so samples of few
positions would say little of it: it is timed in full.
"""

from __future__ import annotations

import argparse
import time

import torch
from models import ARCHITECTURES

import yuzu


def seconds_of(function, *args, **kwargs) -> float:
    """The seconds of one call."""
    begin = time.perf_counter()
    function(*args, device="cpu", output="delta", **kwargs)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--naive-positions", type=int, default=20)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    case = ARCHITECTURES["Cherimoya"]
    model, X = case.model(), case.sequences()
    begin = time.perf_counter()
    made = yuzu.precompute(model, case.length, device="cpu")
    print(f"precompute {time.perf_counter() - begin:.1f} s, {made.decisions.statistics}")
    middle = case.length // 2
    sample = {"start": middle, "end": middle + asked.naive_positions, "batch_size": 32}
    for name, start, end in (("central 400", middle - 200, middle + 200), ("all positions", 0, case.length)):
        before = seconds_of(yuzu.naive_ism, model, X, **sample)
        ours = seconds_of(yuzu.yuzu_ism, model, X, made, start=start, end=end)
        after = seconds_of(yuzu.naive_ism, model, X, **sample)
        naive = [taken / asked.naive_positions * (end - start) for taken in (before, after)]
        ratios = sorted(n / ours for n in naive)
        times = f"{ratios[0]:.1f} to {ratios[1]:.1f} times"
        print(f"{name}: {ours:.1f} s, naive ISM {min(naive):.0f} to {max(naive):.0f} s: {times}")


if __name__ == "__main__":
    main()
