"""Find the CTCF motif in real binding sites: yuzu on a trained model, checked against naive ISM.

    python tutorials/demo.py [--out build/ctcf.png] [--device cpu]

Scores every substitution in the forty peaks that ship with yuzu, and in one longer sequence, times that and naive ISM,
compares both with naive ISM in float64, and draws the CTCF peaks that the model is surest of. Exits with an error if
the scores are off by more than float32 rounding.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch

import yuzu
from yuzu.examples import CTCFPeaks, load_ctcf_model, load_ctcf_peaks
from yuzu.plot import plot_attribution
from yuzu.sequence import one_hot_encode

ROOT = Path(__file__).resolve().parents[1]
NAIVE_BATCH_SIZES = (32, 128, 512)
TOLERANCE = 1e-5  # relative L2 error; float32 rounding through this model stays well below
DRAWN = 4
CTCF = "CCACCAGGGGGCGC"  # the consensus of the packaged peaks' motif
PU1 = "GGAAGT"  # the core of the other class's motif


def seconds(function: Callable[[], torch.Tensor], repeats: int = 3) -> float:
    """The least of a few timings."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def errors(scores: torch.Tensor, exact: torch.Tensor) -> tuple[float, float]:
    """Relative L2 error and largest absolute error."""
    difference = scores.double() - exact
    return (difference.norm() / exact.norm()).item(), difference.abs().max().item()


def mean_effect(delta: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
    """Minus the mean delta of the three substitutions, at the reference letter; all (n, 4, L).

    The delta of the reference letter itself is 0, so that the sum over letters runs over the three others.
    """
    return -delta.sum(dim=1, keepdim=True) / 3 * X


def best_match(effect: torch.Tensor, motif: str) -> tuple[float, int, str]:
    """The largest sum of effects ``(4, L)`` of a motif's own letters on either strand, where, and the strand."""
    reverse = motif[::-1].translate(str.maketrans("ACGT", "TGCA"))
    found = [
        (float((effect[:, i : i + len(motif)] * one_hot_encode(word)).sum()), i, strand)
        for word, strand in ((motif, "+"), (reverse, "-"))
        for i in range(effect.shape[1] - len(motif) + 1)
    ]
    return max(found)


def mark(ax: plt.Axes, begin: float, width: int, text: str, color: str) -> None:
    """A bar above the letters of a motif, with its name and strand."""
    height = ax.get_ylim()[1]
    ax.plot([begin - 0.5, begin + width - 0.5], [height, height], color=color, linewidth=3, clip_on=False)
    ax.text(begin + width - 0.2, height, text, color=color, fontsize=9, va="center")


def draw(peaks: CTCFPeaks, delta: torch.Tensor, logits: torch.Tensor, path: Path) -> None:
    """Logo over heat map for the CTCF peaks with the largest logits, on one scale and in genomic coordinates."""
    ctcf = torch.where(peaks.labels == 1, logits, -torch.inf)
    rows = ctcf.argsort(descending=True)[:DRAWN].tolist()
    effect = mean_effect(delta, peaks.X)
    low, high = effect[rows].min().item(), effect[rows].max().item()
    largest = delta[rows].abs().max().item()
    figure, axes = plt.subplots(DRAWN, 1, figsize=(12, 2.25 * DRAWN + 0.8), layout="constrained")
    for row, ax in zip(rows, axes, strict=True):
        chromosome, _, span = peaks.names[row].partition(":")
        first = int(span.partition("-")[0])
        parts = plot_attribution(
            effect[row],
            delta[row],
            ax=ax,
            reference=peaks.X[row],
            offset=first,
            ylim=(1.1 * low, 1.15 * high),
            vmax=largest,
            ylabel="minus the\nmean effect",
            heatmap_label="effect",
        )
        _, place, strand = best_match(effect[row], CTCF)
        mark(parts.logo, first + place, len(CTCF), f"CTCF, {strand} strand", "#555555")
        strength, place, strand = best_match(-effect[row], PU1)
        if strength > -2 * low:  # letters that hang together: their motif lowers the logit
            mark(parts.logo, first + place, len(PU1), f"PU.1, {strand} strand: speaks for the other class", "#b2182b")
        parts.logo.set_title(f"{chromosome}, logit {logits[row]:.1f}", fontsize=11, loc="left")
        assert parts.heatmap is not None
        parts.heatmap.set_xlabel(f"position on {chromosome}" if row == rows[-1] else "")
    figure.suptitle(
        "Every substitution in four held-out CTCF peaks, scored by a trained model (CTCF against PU.1)\n"
        "letters: minus the mean effect of the three substitutions on the logit; "
        "heat map: the effect of each, blue lowers the logit; dots: the sequence",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


class Comparison(NamedTuple):
    """Seconds and errors of one set of sequences, and yuzu's deltas ``(n, 4, L)``."""

    what: str
    planning: float
    yuzu: float
    naive: float
    batch_size: int
    yuzu_error: float
    naive_error: float
    delta: torch.Tensor
    precomputation: yuzu.Precomputation


def compare(model: torch.nn.Module, X: torch.Tensor, device: str | None) -> Comparison:
    """Score `X` with yuzu and naively, and both against naive ISM in float64."""
    n, _, length = X.shape
    what = f"{n} x {length:,} bp, {3 * length * n:,} mutants"
    print(f"scoring {what} ...", flush=True)
    started = time.perf_counter()
    precomputation = yuzu.precompute(model, seq_len=length, device=device)
    planning = time.perf_counter() - started

    def run_yuzu() -> torch.Tensor:
        return yuzu.yuzu_ism(model, X, precomputation, output="delta", target=0, device=device)

    def run_naive(batch_size: int) -> torch.Tensor:
        return yuzu.naive_ism(model, X, output="delta", target=0, batch_size=batch_size, device=device)

    delta = run_yuzu()
    yuzu_seconds = seconds(run_yuzu)
    naive_seconds, batch_size = min((seconds(partial(run_naive, size)), size) for size in NAIVE_BATCH_SIZES)
    exact = yuzu.naive_ism(copy.deepcopy(model).double(), X.double(), output="delta", target=0, device=device)
    yuzu_error, naive_error = (errors(scores, exact)[0] for scores in (delta, run_naive(batch_size)))
    if not yuzu_error < TOLERANCE:
        sys.exit(f"relative L2 error {yuzu_error:.1e} is above {TOLERANCE}: please report this")
    return Comparison(
        what, planning, yuzu_seconds, naive_seconds, batch_size, yuzu_error, naive_error, delta, precomputation
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "ctcf.png", help="(%(default)s)")
    parser.add_argument("--device", help="default: CUDA when available, else the CPU")
    arguments = parser.parse_args()

    model, peaks = load_ctcf_model(), load_ctcf_peaks()
    # The longer the sequence, the smaller the part of it that a mutation reaches.
    joined = torch.cat(list(peaks.X[:10]), dim=-1)[None]
    short, long = (compare(model, X, arguments.device) for X in (peaks.X, joined))

    print(f"\n{'':36}{'yuzu_ism':>11}{'naive ISM':>11}{'':>9}{'planning, once':>17}{'error':>9}{'naive':>9}")
    for one in (short, long):
        print(
            f"{one.what:36}{one.yuzu:9.3f} s{one.naive:9.3f} s{one.naive / one.yuzu:7.1f} x{one.planning:15.2f} s"
            f"{one.yuzu_error:9.0e}{one.naive_error:9.0e}"
        )
    sizes = sorted({one.batch_size for one in (short, long)})
    print(f"naive ISM at its best batch size ({' and '.join(map(str, sizes))}); errors: relative L2, against float64")
    print(f"\nhow the layers of the longer sequence run:\n\n{long.precomputation.summary()}")

    with torch.inference_mode():
        logits = model(peaks.X)[:, 0]
    draw(peaks, short.delta, logits, arguments.out)
    print(f"\nwrote {arguments.out}")


if __name__ == "__main__":
    main()
