"""The seconds of `precompute` beside those of naive ISM of one sequence, for the architectures of `models`.

    python benchmarks/precompute_times.py [NAME ...] [--device cuda]

Naive ISM's are those of one batch of 32 mutants, times their number; on a CPU both are the process's own CPU time over
the threads, which others on the machine do not lengthen much. The first model's ``precompute`` loads what PyTorch loads
once; one is run before. The exit status is 1 if any takes longer than ``--most`` seconds.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models import ARCHITECTURES, Architecture

import yuzu

BATCH, EDITS = 32, 3


def seconds(work: Callable[[], object], device: str) -> float:
    """CPU seconds of each thread on a CPU, of the clock on a GPU."""
    if device == "cpu":
        begin = time.process_time()
        work()
        return (time.process_time() - begin) / torch.get_num_threads()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


@torch.no_grad()
def naive_seconds(case: Architecture, device: str) -> float:
    """An estimate for all mutants of one sequence."""
    model = case.model().to(device)
    inputs = [t.to(device) for t in (case.sequences(BATCH), *case.args(BATCH))]
    model(*inputs)
    return seconds(lambda: model(*inputs), device) / BATCH * EDITS * case.length


def precompute_seconds(case: Architecture, device: str) -> tuple[float, bool]:
    """And whether the whole model runs naively afterwards."""
    model, made = case.model(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", yuzu.YuzuWarning)
        args = case.args() or None
        found = seconds(lambda: made.append(yuzu.precompute(model, case.length, args=args, device=device)), device)
    return found, made[0].decisions.naive_model is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ARCHITECTURES)}; default all")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--most", type=float, default=10.0, help="seconds of precompute; default 10")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in ARCHITECTURES]
    if unknown:
        parser.error(f"no architecture is called {', '.join(unknown)}")
    yuzu.precompute(torch.nn.Conv1d(4, 2, 3), 20, device=options.device)
    print("| model | precompute, s | naive ISM of one sequence, s | then runs naively |\n|---|---|---|---|")
    longest = 0.0
    for name in options.names or ARCHITECTURES:
        case = ARCHITECTURES[name]
        found, naive = precompute_seconds(case, options.device)
        longest = max(longest, found)
        whole = naive_seconds(case, options.device)
        print(f"| {name} | {found:.1f} | {whole:.1f} | {'yes' if naive else ''} |", flush=True)
    sys.exit(longest > options.most)


if __name__ == "__main__":
    main()
