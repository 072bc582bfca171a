"""Peak resident memory of `precompute` and `yuzu_ism` beside what they may use, for the architectures of the field.

    python benchmarks/peak_memory.py                          # all of them, with the default of 1 GiB
    python benchmarks/peak_memory.py --only SpliceAI DanQ --max-memory 256

Each architecture is run in a process of its own, on the CPU, and each row tells by how much that process grew at most
since its start: while it planned, and while it scored positions at both ends and in the middle of a sequence. At the
start the model is there, PyTorch is loaded, and a small model has been planned and scored, so that what `torch.export`
and oneDNN load at their first use is there, too. The result is taken off. The limit speaks of tensors. What else there
is, the graph that `torch.export` makes of Python objects, and the kernels that oneDNN prepares for each shape and
keeps, 1,024 of them at most, `--slack` allows for.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
SECONDS = 900  # at most, for one architecture


def positions_of(length: int, count: int) -> list[tuple[int, int]]:
    """Ranges of ``count`` positions at both ends and in the middle of a sequence; all of a short one."""
    if 3 * count >= length:
        return [(0, length)]
    middle = (length - count) // 2
    return [(0, count), (middle, middle + count), (length - count, length)]


def measure(name: str, max_memory: int | None, positions: int, output: str) -> dict[str, Any]:
    """One architecture, in this process."""
    import torch
    from common import Memory
    from models import ARCHITECTURES

    import yuzu

    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    small = torch.nn.Sequential(torch.nn.Conv1d(4, 8, 5), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(368, 1))
    yuzu.yuzu_ism(small.eval(), torch.eye(4)[torch.arange(50) % 4].T[None].numpy(), device="cpu")
    case = ARCHITECTURES[name]
    model, X, args = case.model(), case.sequences(), case.args()
    memory, begin = Memory("cpu"), time.perf_counter()
    try:
        made = yuzu.precompute(model, case.length, args=args, max_memory=max_memory, device="cpu")
    except ValueError as error:
        if "the least that works is" not in str(error):
            raise
        return {"refused": str(error), "precompute_bytes": memory.peak()}
    row: dict[str, Any] = {"allowed_bytes": made.settings.max_memory, "seconds": time.perf_counter() - begin}
    row["precompute_bytes"], result = memory.peak(), 0
    planned = Memory("cpu")
    for first, stop in positions_of(case.length, positions):
        scores = yuzu.yuzu_ism(model, X, made, args=args, start=first, end=stop, output=output, device="cpu")
        result += sum(part.nbytes for part in torch.utils._pytree.tree_leaves(scores))
        del scores
    more, before = planned.peak() - result, planned.before - memory.before
    row |= {"ism_bytes": before + more, "ism_more_bytes": more, "result_bytes": result}
    row |= {"after_bytes": Memory("cpu").before - memory.before, "naive": made.decisions.naive_model}
    return row | {key: getattr(made.decisions, key) for key in ("sites", "naive_batch")}


def run(name: str, options: argparse.Namespace, max_memory: int | None) -> dict[str, Any]:
    """One architecture, in a process of its own."""
    job = json.dumps({"name": name, "max_memory": max_memory, "positions": options.positions, "output": options.output})
    paths = [str(HERE.parent), str(HERE), str(HERE / "peers"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, __file__, "--job", job]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return {"failure": f"it took more than {SECONDS} s"}
    if done.returncode:
        return {"failure": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def line(name: str, row: dict[str, Any], slack: int) -> tuple[str, bool]:
    """A row of the table, and whether it keeps to what was allowed."""
    if "failure" in row:
        return f"| {name} | failed: {row['failure']} | | | | | |", False
    if "refused" in row:
        return f"| {name} | refused: {row['refused']} | {row['precompute_bytes'] / 1e6:.0f} | | | | |", True
    most = max(row["precompute_bytes"], row["ism_bytes"])
    good = most <= row["allowed_bytes"] + slack
    names = ("allowed_bytes", "precompute_bytes", "ism_bytes", "after_bytes", "result_bytes")
    cells = [f"{row[key] / 1e6:.0f}" for key in names]
    return f"| {name} | {' | '.join(cells)} | {'pass' if good else 'FAIL'} |", good


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--max-memory", type=int, metavar="MiB", help="default: what precompute chooses")
    parser.add_argument("--positions", type=int, default=100, help="at each end and in the middle; default 100")
    parser.add_argument("--output", default="l2", choices=["l2", "delta", "prediction"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slack", type=int, default=128, metavar="MiB", help="beside what is allowed; default 128")
    parser.add_argument("--out", type=Path, help="a JSON file for all numbers")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(measure(**json.loads(options.job))))
        return 0
    sys.path[:0] = [str(HERE.parent), str(HERE)]
    from models import ARCHITECTURES

    names = options.only or list(ARCHITECTURES)
    if unknown := set(names) - set(ARCHITECTURES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(ARCHITECTURES)}")
    print("| architecture | allowed MB | precompute | yuzu_ism | after it | result | |\n" + "|---" * 7 + "|")
    rows, all_good = {}, True
    for name in names:
        rows[name] = run(name, options, None if options.max_memory is None else options.max_memory * MIB)
        text, good = line(name, rows[name], options.slack * MIB)
        all_good &= good
        print(text, flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all_good else 1


if __name__ == "__main__":
    raise SystemExit(main())
