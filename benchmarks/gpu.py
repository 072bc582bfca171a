"""Times yuzu_ism on bpnet-lite's BPNet and ChromBPNet on the GPU at hand, in one process; with errors, and kernels.

    python benchmarks/gpu.py                   # both models, all precisions
    python benchmarks/gpu.py --only BPNet --profile

For each precision milliseconds a sequence (2,114 positions, both heads) for ten sequences together and for one, three
calls each; the seconds of `precompute`; peak memory; and relative L2 errors of profile and counts at seven positions,
both ends among them, against float64 naive ISM. ``--profile`` adds the kernels that take longest. Peers are for
`benchmark.py --device cuda --here`; this takes half a minute for a model. Needs bpnet-lite. Without a GPU it runs on
the CPU, to see that it does.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "peers"), str(HERE.parent)]

from common import Memory, synchronize  # noqa: E402
from definitions import build  # noqa: E402

import yuzu  # noqa: E402

MODELS = {"BPNet": "bpnet-lite", "ChromBPNet": "ChromBPNet"}
LENGTH, TOGETHER, CALLS = 2114, 10, 3
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLACES = (0, 300, 700, 1056, 1057, 1700, 2113)
KERNELS_SHOWN = 12


def milliseconds(work: Callable[[], object]) -> list[float]:
    """The milliseconds of some calls, each until the GPU has finished."""
    found = []
    for _ in range(CALLS):
        begin = time.perf_counter()
        work()
        synchronize(DEVICE)
        found.append(1e3 * (time.perf_counter() - begin))
    return found


def errors(score: Callable[[int], Any], truth: list[Any]) -> list[float]:
    """Relative L2 error of each head over the compared positions."""
    found = [score(place) for place in PLACES]
    squares = [
        [sum(float(((a[head] - b[head]) ** 2).sum()) for a, b in zip(found, truth, strict=True)) for head in range(2)],
        [sum(float((b[head] ** 2).sum()) for b in truth) for head in range(2)],
    ]
    return [float(np.sqrt(wrong / whole)) for wrong, whole in zip(*squares, strict=True)]


def measure(name: str, profiled: bool) -> dict[str, Any]:
    """All rows of a model."""
    letters = np.random.default_rng(0).integers(4, size=(TOGETHER, LENGTH))
    X = np.eye(4, dtype=np.float32)[letters].transpose(0, 2, 1).copy()
    model = build(MODELS[name], LENGTH).to(DEVICE)
    double = copy.deepcopy(model).double()
    asked: dict[str, Any] = {"output": "delta", "device": DEVICE}

    def naive(network: torch.nn.Module, x: np.ndarray) -> Callable[[int], Any]:
        return lambda place: yuzu.naive_ism(network, x, start=place, end=place + 1, **asked)

    truth = [naive(double, X[:1].astype(np.float64))(place) for place in PLACES]
    rows: dict[str, Any] = {"naive, float32": {"errors": errors(naive(model, X[:1]), truth)}}
    for precision in ("high", "medium", "highest"):
        memory = Memory(DEVICE)
        begin = time.perf_counter()
        plan = yuzu.precompute(model, LENGTH, precision=precision, device=DEVICE)
        row: dict[str, Any] = {"precompute_seconds": time.perf_counter() - begin}
        yuzu.yuzu_ism(model, X, plan, device=DEVICE)
        for number in (TOGETHER, 1):
            found = milliseconds(lambda n=number, p=plan: yuzu.yuzu_ism(model, X[:n], p, device=DEVICE))
            row[f"milliseconds_each_of_{number}"] = [round(ms / number, 2) for ms in found]
        row["peak_gigabytes"] = memory.peak() / 1e9
        row["errors"] = errors(
            lambda place, p=plan: yuzu.yuzu_ism(model, X[:1], p, start=place, end=place + 1, **asked), truth
        )
        row["ways"] = plan.decisions.ways
        if profiled:
            show_kernels(lambda p=plan: yuzu.yuzu_ism(model, X, p, device=DEVICE))
        print(name, precision, json.dumps({k: v for k, v in row.items() if k != "ways"}), flush=True)
        rows[precision] = row
    return rows


def show_kernels(work: Callable[[], object]) -> None:
    """Milliseconds a sequence of the kernels that take longest."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        work()
    kernels = [e for e in found.key_averages() if e.self_device_time_total and not e.key.startswith("aten::")]
    for event in sorted(kernels, key=lambda e: -e.self_device_time_total)[:KERNELS_SHOWN]:
        print(f"    {event.self_device_time_total / 1e3 / TOGETHER:8.3f} ms  {event.count:5d} x  {event.key[:90]}")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--profile", action="store_true", help="also the kernels that take longest")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu.json")
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "no GPU"
    machine = {"gpu": device, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    print(machine)
    results = {"machine": machine, "models": {name: measure(name, options.profile) for name in options.only}}
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
