"""Speed and error of pairs, scans and design, beside running the model on every mutant.

    python benchmarks/edits.py                                  # all, as docs/benchmarks.md has it
    python benchmarks/edits.py --only pairs --length 120        # fewer pairs
    python benchmarks/edits.py --only scans --length 300 --repeats 1
    python benchmarks/edits.py --threads 1 --out benchmarks/results/cpu-edits.json

Naive times are those of a sample of mutants, in batches of 128, times the number of mutants: naive ISM of all pairs
would take minutes. Both run in turn, and the least of ``--repeats`` counts. Errors are relative L2 errors of the
interaction, or the difference, against the model in float64, on some positions; naive float32's stand beside them.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

import yuzu
from yuzu import design, scan
from yuzu.examples import load_ctcf_model, load_ctcf_peaks
from yuzu.models import Basset, BPNet

BATCH = 128  # mutants in one naive forward pass
SAMPLE = 4 * BATCH  # mutants that are run naively
CHECKED = 12  # positions of the interactions, and of the deletions, that are compared with float64
WIDTHS = list(range(1, 11))


def random_sequence(length: int) -> torch.Tensor:
    letters = torch.randint(4, (1, length), generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.one_hot(letters, 4).permute(0, 2, 1).float()


def counts(y: torch.Tensor) -> torch.Tensor:
    """The sum of a profile."""
    return y.sum((1, 2))


def run(model: torch.nn.Module, mutants: torch.Tensor, func: Callable | None) -> torch.Tensor:
    with torch.no_grad():
        found = [model(some) for some in mutants.split(BATCH)]
    return torch.cat([y if func is None else func(y) for y in found])


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def in_turn(
    ours: Callable[[], object], model: torch.nn.Module, X: torch.Tensor, func: Callable | None, repeats: int
) -> tuple[float, ...]:
    """The least seconds of our call, and of a naive mutant."""
    mutants = X.repeat(SAMPLE, 1, 1)
    ours()  # makes weights' layouts
    times = [(seconds(ours), seconds(lambda: run(model, mutants, func)) / SAMPLE) for _ in range(repeats)]
    return tuple(min(column) for column in zip(*times, strict=True))


def relative(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


def interactions(model: torch.nn.Module, X: torch.Tensor, places: range, func: Callable) -> torch.Tensor:
    """``y(ab) - y(a) - y(b) + y(0)`` of all pairs of substitutions, a mutant at a time, ``(W, C, W, C)``."""
    eye, edits = torch.eye(4, dtype=X.dtype), [(p, c) for p in places for c in range(4)]
    singles = X.repeat(len(edits), 1, 1)
    for row, (p, c) in zip(singles, edits, strict=True):
        row[:, p] = eye[c]
    zero, alone = run(model, X, func), run(model, singles, func)
    found = torch.zeros(len(edits), len(edits), dtype=X.dtype)
    for row, (p, c) in enumerate(edits):
        both = singles.clone()
        both[:, :, p] = eye[c]
        pairs = torch.tensor([q != p and X[0, c, p] == 0 and X[0, d, q] == 0 for q, d in edits])
        found[row] = torch.where(pairs, run(model, both, func) - alone[row] - alone + zero, 0)
    return found.view(len(places), 4, len(places), 4)


def pairs_of(length: int, repeats: int) -> dict:
    """All pairs of substitutions of a sequence in the example BPNet."""
    model, X = BPNet(4).eval(), random_sequence(length)
    precomputation = yuzu.precompute(model, length, device="cpu")
    given = {"func": counts, "device": "cpu"}
    ours, mutant = in_turn(lambda: yuzu.epistasis(model, X, precomputation, **given), model, X, counts, repeats)
    number = length * (length - 1) // 2 * 9
    places = range(length // 2 - CHECKED // 2, length // 2 + CHECKED // 2)
    truth = interactions(copy.deepcopy(model).double(), X.double(), places, counts)
    span = {"start": places.start, "end": places.stop, "device": "cpu"}
    found = yuzu.epistasis(model, X, precomputation, func=counts, **span)[0]
    profile = yuzu.epistasis(model, X, precomputation, **span)[0].double().sum((4, 5))
    return {
        "job": f"all pairs, BPNet, {length} bp, counts",
        "mutants": number,
        "seconds": ours,
        "naive": number * mutant,
        "error": relative(found, truth),
        "error of the profile's, summed": relative(profile, truth),
        "naive error": relative(interactions(model, X, places, counts), truth),
    }


def scans_of(name: str, length: int, repeats: int) -> list[dict]:
    """Scans of a sequence in Basset or the example BPNet."""
    model = Basset(4, seq_len=length).eval() if name == "Basset" else BPNet(4).eval()
    func = counts if name == "BPNet" else None
    X = random_sequence(length)
    precomputation = yuzu.precompute(model, length, device="cpu")
    given = {"precomputation": precomputation, "func": func, "device": "cpu"}
    jobs = {
        "deletions of 1 to 10 bp": (lambda: scan.deletion(model, X, WIDTHS, **given), 10 * length - 45),
        "insertions of 10 bp": (lambda: scan.insertion(model, X, "GATAAGATAA", **given), length),
        "20 bp blanked": (lambda: scan.blanking(model, X, 20, **given), length - 19),
        "5 bp shuffled, 8 samples": (lambda: scan.shuffling(model, X, 5, random_state=0, **given), 8 * (length - 4)),
        "10 bp motif written": (lambda: scan.tiling(model, X, "GATAAGATAA", **given), length - 9),
    }
    double, results = copy.deepcopy(model).double(), []
    places = [*range(0, length - 10, max((length - 10) // CHECKED, 1))]
    mutants = torch.stack([torch.cat([X[0, :, :p], X[0, :, p + 10 :], torch.zeros(4, 10)], 1) for p in places])

    def errors_of(func: Callable | None) -> tuple[float, float]:
        """Of deletions of 10 bp, and naive float32's own."""
        truth = run(double, mutants.double(), func) - run(double, X.double(), func)
        naive = run(model, mutants, func) - run(model, X, func)
        found = scan.deletion(model, X, 10, **{**given, "func": func})[10][0, places]
        return relative(found, truth), relative(naive, truth)

    for job, (ours, number) in jobs.items():
        taken, mutant = in_turn(ours, model, X, func, repeats)
        row = {"job": f"{job}, {name}, {length} bp", "mutants": number, "seconds": taken, "naive": number * mutant}
        if "deletions" in job:
            row["error"], row["naive error"] = errors_of(None)
            if func is not None:
                row["error of counts"], row["naive error of counts"] = errors_of(func)
        results.append(row)
    return results


def design_of(repeats: int) -> list[dict]:
    """Five steps of greedy design on the packaged CTCF model."""
    model, X = load_ctcf_model(), load_ctcf_peaks().X[-1:]
    precomputation = yuzu.precompute(model, 100, device="cpu")
    ours, mutant = in_turn(lambda: design.greedy(model, X, 0, 5, precomputation, device="cpu"), model, X, None, repeats)
    return [{"job": "5 steps of design, CTCF model, 100 bp", "mutants": 1500, "seconds": ours, "naive": 1500 * mutant}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=("pairs", "scans", "design"), default=("pairs", "scans", "design"))
    parser.add_argument("--length", type=int, help="positions; default 400 for pairs and 1,000 for scans")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict] = []
    load = os.getloadavg()[0]
    if "pairs" in options.only:
        rows.append(pairs_of(options.length or 400, options.repeats))
    for name in ("Basset", "BPNet") if "scans" in options.only else ():
        rows += scans_of(name, options.length or 1000, options.repeats)
    if "design" in options.only:
        rows += design_of(options.repeats)
    for row in rows:
        errors = "".join(f"; {key} {value:.1e}" for key, value in row.items() if "error" in key)
        print(f"{row['job']}: {row['mutants']:,} mutants in {row['seconds']:.3g} s, naive {row['naive']:.3g} s, "
              f"{row['naive'] / row['seconds']:.1f} x{errors}")  # fmt: skip
    if options.out:
        machine = {"system": platform.platform(), "threads": options.threads, "load_before": load}
        machine["date"] = time.strftime("%Y-%m-%d")
        options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
