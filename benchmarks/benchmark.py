"""Speed, memory and error of yuzu_ism beside naive_ism, on the example models, in one run.

    python benchmarks/benchmark.py                      # the table of the README
    python benchmarks/benchmark.py --models ToyNet BPNet --length 1000 --repeats 5

Each model runs in a process of its own, so that peak memory is its own. naive_ism runs at the best of several
batch sizes, chosen on a few positions and then timed on all. Results go to benchmarks/results/<host
kind>.json and are printed as a table with pass or fail.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FLOORS = {
    "ToyNet": 20,
    "DeepSEA": 10,
    "Basset": 20,
    "FactorizedBasset": 25,
    "BPNet": 25,
}  # times faster than naive_ism
MODELS = ["OneLayer", *FLOORS]
NAIVE_BATCHES = (16, 32, 64, 128, 256)
PRECOMPUTE_SECONDS, PEAK_BYTES = 5.0, 2 << 30


def resident() -> int:
    """Bytes of memory this process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def peak() -> int:
    """The most bytes this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed(function: Any) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def measure(name: str, length: int, repeats: int, precision: str, device: str) -> dict[str, Any]:
    """All figures of one model, in this process."""
    import torch

    import yuzu
    from yuzu import models
    from yuzu.sequence import one_hot_encode

    generator = torch.Generator().manual_seed(0)
    letters = "".join("ACGT"[i] for i in torch.randint(4, (length,), generator=generator))
    X = one_hot_encode([letters])
    model = getattr(models, name)(4, seq_len=length).eval()
    model(X)
    import torch.export  # noqa: F401  its import time is torch's, not the model's

    before = resident()
    begin = time.perf_counter()
    precomputation = yuzu.precompute(model, length, precision=precision, device=device)
    precompute_seconds = time.perf_counter() - begin
    yuzu.yuzu_ism(model, X, precomputation, device=device)
    ours = [timed(lambda: yuzu.yuzu_ism(model, X, precomputation, device=device)) for _ in range(repeats)]
    peak_bytes = peak() - before

    few = range(length // 2, length // 2 + min(96, length // 2))

    def naive(batch: int, positions: range) -> float:
        return timed(
            lambda: yuzu.naive_ism(model, X, start=positions.start, end=positions.stop, batch_size=batch, device=device)
        )

    naive(64, range(0, 22))
    best = min(NAIVE_BATCHES, key=lambda batch: naive(batch, few))
    theirs = [naive(best, range(length)) for _ in range(max(1, repeats // 3))]
    again = [timed(lambda: yuzu.yuzu_ism(model, X, precomputation, device=device)) for _ in range(repeats)]
    checked = yuzu.check(model, X, precomputation, positions=32, device=device)
    return {
        "model": name,
        "length": length,
        "precision": precision,
        "device": device,
        "yuzu_seconds": statistics.median(ours + again),
        "yuzu_range": [min(ours + again), max(ours + again)],
        "naive_seconds": statistics.median(theirs),
        "naive_range": [min(theirs), max(theirs)],
        "naive_batch": best,
        "ratio": statistics.median(theirs) / statistics.median(ours + again),
        "precompute_seconds": precompute_seconds,
        "peak_bytes": peak_bytes,
        "yuzu_error": checked.yuzu_relative_error,
        "naive_error": checked.naive_relative_error,
        "yuzu_largest": checked.yuzu_largest_error,
        "naive_largest": checked.naive_largest_error,
        "summary": precomputation.summary(),
    }


def machine(device: str) -> dict[str, Any]:
    import torch

    cpu = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def verdict(row: dict[str, Any]) -> str:
    """What of the project's floors a row misses, or 'pass'."""
    missed = []
    floor = FLOORS.get(row["model"])
    if floor is not None and row["ratio"] < floor and row["length"] == 1000:
        missed.append(f"ratio < {floor}")
    if row["precompute_seconds"] > PRECOMPUTE_SECONDS:
        missed.append(f"precompute > {PRECOMPUTE_SECONDS:g} s")
    if row["peak_bytes"] > PEAK_BYTES:
        missed.append("peak > 2 GB")
    if row["precision"] == "highest" and row["yuzu_error"] > max(1e-5, row["naive_error"]):
        missed.append("error")
    return "pass" if not missed else "FAIL: " + ", ".join(missed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--length", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", default="highest", choices=["highest", "high", "medium"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.length, options.repeats, options.precision, options.device)))
        return 0
    rows = []
    print("| model | yuzu s | naive s (batch) | ratio | precompute s | peak MB | error yuzu | error naive | verdict |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.models:
        command = [
            sys.executable,
            __file__,
            "--one",
            name,
            "--length",
            str(options.length),
            "--repeats",
            str(options.repeats),
            "--precision",
            options.precision,
            "--device",
            options.device,
        ]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        row["verdict"] = verdict(row)
        rows.append(row)
        print(
            f"| {name} | {row['yuzu_seconds']:.4f} ({row['yuzu_range'][0]:.4f}-{row['yuzu_range'][1]:.4f}) | "
            f"{row['naive_seconds']:.2f} "
            f"({row['naive_batch']}) | {row['ratio']:.1f} | {row['precompute_seconds']:.2f} | "
            f"{row['peak_bytes'] / 1e6:.0f} | "
            f"{row['yuzu_error']:.1e} | {row['naive_error']:.1e} | {row['verdict']} |",
            flush=True,
        )
    out = options.out or HERE / "results" / f"{options.device}-{options.precision}-{options.length}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"machine": machine(options.device), "rows": rows}, indent=1) + "\n")
    print(f"written to {out}")
    return 0 if all(row["verdict"] == "pass" for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
