"""Ratio of yuzu_ism to naive ISM and to tangermeme's fast path, and errors, for the architectures of `models`.

    python benchmarks/models_benchmark.py                          # all of them, up to an hour
    python benchmarks/models_benchmark.py DanQ "Attention pool"    # some; their rows replace those in the file
    python benchmarks/models_benchmark.py --redraw                 # the table of the file

One sequence, float32, two cores. Each architecture runs in a process of its own, of `--limit` seconds at most; how it
is measured stands in `models_measured`. Rows are written as they come, to ``benchmarks/results/cpu-models.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE), str(HERE / "peers")]

from benchmark import default_cores, machine  # noqa: E402
from models import ARCHITECTURES  # noqa: E402
from models_measured import Job, measure  # noqa: E402

CENTRE = (857, 1257)  # the 400 positions in the middle of 2,114, Cherimoya's default for attributions
GIB = 1 << 30
# the architecture, the mutated positions and what `precompute` may use, None for the default of all three
ROWS: dict[str, tuple[str, int, int | None, int | None]] = {
    **{name: (name, 0, None, None) for name in ARCHITECTURES if name != "Cherimoya, log counts"},
    "Cherimoya, 8 GiB": ("Cherimoya", 0, None, 8 * GIB),
    "Cherimoya, central 400": ("Cherimoya", *CENTRE, None),
    "Cherimoya, log counts, central 400": ("Cherimoya, log counts", *CENTRE, None),
    "Cherimoya, log counts, central 400, 8 GiB": ("Cherimoya, log counts", *CENTRE, 8 * GIB),
}
# over naive ISM; rows of an architecture's variants have a comma in their names, and do not count in the mean
TARGETS = {
    **{"Cherimoya": 6.0, "Cherimoya, central 400": 6.0, "Cherimoya, log counts, central 400": 6.0},
    **{"Attention pool": 10.0},
    **{"DanQ": 1.8, "DREAM-RNN": 1.8, "ConvGRU": 1.8},
    **{"DanQ, settling": 4.0, "DREAM-RNN, settling": 4.0, "ConvGRU, settling": 4.0},
    **{"LegNet": 1.0, "HyenaDNA": 1.0, "Enformer": 1.0, "Borzoi": 1.0, "ConvTransformer": 1.0, "SATORI": 1.0},
    **{"DilatedAttention": 1.0, "NucleotideTransformer": 1.0},
}
LEAST, MEAN = 0.97, 8.0  # for any row; for the geometric mean
RIGHT = 1e-5  # an error that is right in any case; a larger one is, up to naive ISM's own


def run(label: str, options: argparse.Namespace) -> dict[str, Any]:
    """A row, measured in a process of its own."""
    name, start, end, most = ROWS[label]
    given = (options.repeats, options.naive_seconds, options.whole_seconds, not options.no_peers)
    job = Job(name, start, end, *given, max_memory=most)
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
    # no peer is to pay for memory that the C library hands back to the system and gets anew
    environment |= {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}
    command, load = [sys.executable, __file__, "--job", json.dumps(dataclasses.asdict(job))], os.getloadavg()[0]
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=options.limit)
    except subprocess.TimeoutExpired:
        return {"failure": f"it took more than {options.limit:g} s", "load_before": load}
    if done.returncode:
        return {"failure": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1], "load_before": load}
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return row | {"load_before": load, "row_seconds": time.perf_counter() - begin}


def ratios(row: dict[str, Any], peer: str) -> list[float]:
    """How many times as long a peer takes, turn by turn."""
    return [a / b for a, b in zip(row["seconds"].get(peer, []), row["seconds"]["yuzu"], strict=False)]


def ratio(row: dict[str, Any], peer: str = "naive") -> str:
    found = ratios(row, peer)
    if not found:
        return "-"
    middle, low, high = (
        f"{x:.2g}" if x < 100 else f"{x:.0f}" for x in (statistics.median(found), min(found), max(found))
    )
    return f"{middle} ({low}-{high})"


def wrong(row: dict[str, Any]) -> bool:
    """Tell whether an output's error is above 1e-5 and naive ISM's own. A model that runs naively has naive ISM's, in
    batches of another size.
    """
    if row["naive_model"] is not None:
        return False
    pairs = zip(row["errors"], row["naive_errors"], strict=True)
    return any(not error <= max(RIGHT, naive) for error, naive in pairs)


def verdict(label: str, row: dict[str, Any]) -> str:
    """``"pass"``, or the target and that it is missed."""
    if "failure" in row:
        return "failed"
    target, found = TARGETS.get(label, LEAST), statistics.median(ratios(row, "naive"))
    missed = [f"{target:g} wanted"] if found < target else []
    return ", ".join(missed + (["error"] if wrong(row) else [])) or "pass"


def line(label: str, row: dict[str, Any]) -> str:
    """A row of the table."""
    if "failure" in row:
        return f"| {label} | failed: {row['failure']} |" + " |" * 10
    taken, timed = ({name: statistics.median(s) for name, s in row["seconds"].items()}, row["timed_positions"])
    sampled = "" if timed["yuzu"] == row["positions"] else "*"
    largest = sorted(row["naive_percent"].items(), key=lambda pair: -pair[1])[:3]
    parts = [f"{name} {percent:.0f}%" for name, percent in largest if percent >= 1]
    parts = ["all"] if row["naive_model"] else parts
    cells = [
        label,
        f"{row['positions']:,}",
        ratio(row),
        ratio(row, "tangermeme"),
        f"{taken['yuzu']:.3g}{sampled}",
        f"{taken['naive']:.3g}",
        f"{row['precompute_seconds']:.1f}",
        f"{row['peak_bytes'] / 1e6:.0f}",
        "; ".join(f"{a:.0e} / {b:.0e}" for a, b in zip(row["errors"], row["naive_errors"], strict=True)),
        ", ".join(parts),
        "" if row["statistics"] is None else str(row["statistics"]),
        verdict(label, row),
    ]
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| model | positions | over naive | over tangermeme, fast | s | naive, s | precompute, s | peak MB "
    "| error / naive's | naively, share of time | statistics | |\n" + "|---" * 12 + "|"
)


def finish(rows: dict[str, dict[str, Any]]) -> int:
    """Print the geometric mean and what is missing; the exit status is 1 where a target is missed."""
    counted = [statistics.median(ratios(r, "naive")) for n, r in rows.items() if "," not in n and "failure" not in r]
    if not counted:
        return 1
    mean = math.exp(sum(map(math.log, counted)) / len(counted))
    print(f"\nGeometric mean of {len(counted)} architectures: {mean:.1f} ({MEAN:g} wanted)")
    if absent := [label for label in ROWS if label not in rows]:
        print(f"Not measured: {', '.join(absent)}")
    for label, row in rows.items():
        if reason := row.get("tangermeme", {}).get("reason"):
            print(f"- {label}, tangermeme: {reason}")
        for said in row.get("warnings", []):
            print(f"- {label}: {said}")
    missed = [label for label, row in rows.items() if verdict(label, row) != "pass"]
    print(f"{len(missed)} rows miss a target: {', '.join(missed)}" if missed else "all rows reach their targets")
    return 1 if missed or mean < MEAN or absent else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="ROW", help=f"of {'; '.join(ROWS)}. Default all")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each peer; default 3")
    parser.add_argument("--naive-seconds", type=float, default=10.0, help="of naive ISM's samples; default 10")
    parser.add_argument("--whole-seconds", type=float, default=45.0, help="of one whole yuzu_ism; default 45")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of a row; default 300")
    parser.add_argument("--threads", type=int, default=default_cores(), help="default 2")
    parser.add_argument("--no-peers", action="store_true", help="without tangermeme")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu-models.json")
    parser.add_argument("--redraw", action="store_true", help="print the table of the file, and run nothing")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(measure(Job(**json.loads(options.job)))))
        return 0
    if unknown := [name for name in options.names if name not in ROWS]:
        parser.error(f"no row is called {', '.join(unknown)}")
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"rows": {}}
    if not options.redraw:
        options.device = "cpu"
        results["machine"] = machine(options)
    print(
        f"{results['machine']['cpu']}, {options.threads} threads, load {results['machine']['load_before']:.1f}\n{HEAD}"
    )
    for label in options.names or ROWS:
        if not options.redraw:
            results["rows"][label] = run(label, options)
            results["rows"] = {name: results["rows"][name] for name in ROWS if name in results["rows"]}
            options.out.write_text(json.dumps(results, indent=1) + "\n")
        if label in results["rows"]:
            print(line(label, results["rows"][label]), flush=True)
    return finish(results["rows"])


if __name__ == "__main__":
    raise SystemExit(main())
