"""Find the CTCF motif in real binding sites: yuzu on a trained model, checked against naive ISM.

    python tutorials/demo.py [--out figs/ctcf.png] [--device cpu]

Scores every substitution in the forty peaks that ship with yuzu, times that and naive ISM, compares both with
naive ISM in float64, does the same for one longer sequence, and draws the CTCF peaks that the model is surest
of. Exits with an error if the scores are off by more than float32 rounding.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch

import yuzu
from yuzu.examples import CTCFPeaks, load_ctcf_model, load_ctcf_peaks
from yuzu.plot import plot_attribution

ROOT = Path(__file__).resolve().parents[1]
NAIVE_BATCH_SIZES = (32, 128, 512)
TOLERANCE = 1e-5  # relative L2 error; float32 rounding through this model stays well below
DRAWN = 4


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


def draw(peaks: CTCFPeaks, delta: torch.Tensor, logits: torch.Tensor, path: Path) -> None:
    """Logo over heat map for the CTCF peaks with the largest logits."""
    ctcf = torch.where(peaks.labels == 1, logits, -torch.inf)
    rows = ctcf.argsort(descending=True)[:DRAWN].tolist()
    effect = mean_effect(delta, peaks.X)
    figure, axes = plt.subplots(DRAWN, 1, figsize=(12, 2.15 * DRAWN + 0.7), layout="constrained")
    for number, (row, ax) in enumerate(zip(rows, axes, strict=True)):
        title = f"{peaks.names[row]}   (logit {logits[row]:.1f})"
        parts = plot_attribution(
            effect[row],
            delta[row],
            ax=ax,
            reference=peaks.X[row],
            ylabel="mean effect",
            heatmap_label="effect",
        )
        parts.logo.set_title(title, fontsize=11, loc="left")
        if parts.heatmap is not None and number < DRAWN - 1:
            parts.heatmap.set_xlabel("")
    figure.suptitle(
        "Every substitution in four held-out CTCF peaks, scored by a trained model\n"
        "letters: minus the mean effect of the three substitutions on the logit; "
        "heat map: the effect of each, blue lowers the logit; dots: the sequence",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def compare(model: torch.nn.Module, X: torch.Tensor, name: str, device: str | None) -> torch.Tensor:
    """Score `X` with yuzu and naively, print speed and error of both, and return yuzu's deltas, (n, 4, L)."""
    n, _, length = X.shape
    print(f"\n{name}: {n} x {length} bp, {3 * length * n} mutants")
    started = time.perf_counter()
    precomputation = yuzu.precompute(model, seq_len=length, device=device)
    precompute_seconds = time.perf_counter() - started

    def run_yuzu(verbose: bool = False) -> torch.Tensor:
        return yuzu.yuzu_ism(
            model, X, precomputation, output="delta", target=0, device=device, verbose=verbose
        )

    def run_naive(batch_size: int) -> torch.Tensor:
        return yuzu.naive_ism(model, X, output="delta", target=0, batch_size=batch_size, device=device)

    started = time.perf_counter()
    delta = run_yuzu(verbose=True)
    first_seconds = time.perf_counter() - started
    yuzu_seconds = seconds(run_yuzu)
    naive_seconds, batch_size = min((seconds(partial(run_naive, size)), size) for size in NAIVE_BATCH_SIZES)
    naive = run_naive(batch_size)
    exact = yuzu.naive_ism(copy.deepcopy(model).double(), X.double(), output="delta", target=0, device=device)
    yuzu_error, naive_error = errors(delta, exact), errors(naive, exact)

    print(precomputation.summary())
    print(f"precompute  {precompute_seconds:8.3f} s, once for a model and a length")
    print(f"yuzu_ism    {yuzu_seconds:8.3f} s ({first_seconds:.3f} s the first time)")
    print(f"naive_ism   {naive_seconds:8.3f} s at batch size {batch_size}, the best of {NAIVE_BATCH_SIZES}")
    print(f"speed-up    {naive_seconds / yuzu_seconds:8.1f} x")
    print("error against naive ISM in float64: relative L2, largest")
    print(f"yuzu_ism     {yuzu_error[0]:.1e}, {yuzu_error[1]:.1e}")
    print(f"naive_ism    {naive_error[0]:.1e}, {naive_error[1]:.1e}  (float32)")
    if not yuzu_error[0] < TOLERANCE:
        sys.exit(f"relative L2 error {yuzu_error[0]:.1e} is above {TOLERANCE}: please report this")
    return delta


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "figs" / "ctcf.png", help="(%(default)s)")
    parser.add_argument("--device", help="default: CUDA when available, else the CPU")
    arguments = parser.parse_args()

    model, peaks = load_ctcf_model(), load_ctcf_peaks()
    delta = compare(model, peaks.X, "the packaged peaks", arguments.device)
    # The longer the sequence, the smaller the part of it that a mutation reaches.
    joined = torch.cat(list(peaks.X[:10]), dim=-1)[None]
    compare(model, joined, "ten of them, end to end", arguments.device)

    with torch.inference_mode():
        logits = model(peaks.X)[:, 0]
    draw(peaks, delta, logits, arguments.out)
    print(f"\nwrote {arguments.out}")


if __name__ == "__main__":
    main()
