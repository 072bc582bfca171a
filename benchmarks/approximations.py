"""Taylor ISM, hybrid ISM and exact ISM side by side: Pearson correlation with exact ISM, and seconds a sequence.

    python benchmarks/approximations.py            # prints the table, draws figs/approximations.png

On a model whose second half is attention, as Enformer's, on Basset, and on the trained CTCF classifier; the first two
with random weights. One output each, mean over sequences; seconds are the least of three runs after one to warm up,
``precompute`` left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import yuzu
from yuzu import models, taylor
from yuzu.examples import load_ctcf_model, load_ctcf_peaks

HERE = Path(__file__).resolve().parent
FIGURE = HERE.parent / "figs" / "approximations.png"
RESULTS = HERE / "results" / "cpu-approximations.json"
COLORS = {"Taylor": "#c44e52", "hybrid": "#4c72b0", "exact": "#555555"}


class Block(nn.Module):
    """A transformer's: attention over all positions and a feed-forward net, both with layer norm before."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projections, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.projections(self.norm1(x)).chunk(3, dim=-1)
        query, key, value = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.joined(attended)
        return x + self.feed_forward(self.norm2(x))


class EnformerLike(nn.Module):
    """A convolutional tower that pools 32 positions into one, four blocks of attention, and a head."""

    def __init__(self, width: int = 96, stages: int = 5, blocks: int = 4) -> None:
        super().__init__()
        sizes = [4] + [width] * stages
        self.tower = nn.ModuleList(
            nn.Conv1d(a, b, 15 if i == 0 else 5, padding=7 if i == 0 else 2)
            for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
        )
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.head = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.tower:
            x = F.max_pool1d(F.gelu(conv(x)), 2)
        return F.softplus(self.head(self.blocks(x.transpose(1, 2)))).mean(1)


def least_seconds(function: Callable[[], Any], sequences: int) -> tuple[torch.Tensor, float]:
    result, seconds = function(), []
    for _ in range(3):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return result, min(seconds) / sequences


def correlation(a: torch.Tensor, b: torch.Tensor, X: torch.Tensor) -> float:
    """Pearson's, over all substitutions of a sequence; the mean over sequences."""
    pairs = [torch.stack([x[:, other], y[:, other]]).flatten(1) for x, y, other in zip(a, b, X != 1, strict=True)]
    return sum(float(torch.corrcoef(pair)[0, 1]) for pair in pairs) / len(pairs)


def measured(name: str, model: nn.Module, X: torch.Tensor) -> dict[str, Any]:
    """Seconds and correlations of the three."""
    model.eval()
    made = yuzu.precompute(model, X.shape[2], device="cpu")
    exact, slow = least_seconds(lambda: taylor.ism(X, model, 0, precomputation=made, device="cpu"), len(X))
    first, fast = least_seconds(lambda: taylor.takegrad(X, model, 0, "tism", "cpu"), len(X))
    hybrid, between = least_seconds(lambda: yuzu.hybrid_ism(model, X, made, tracks=0, device="cpu"), len(X))
    row = {
        "model": name,
        "positions": X.shape[2],
        "sequences": len(X),
        "Taylor": {"seconds": fast, "correlation": correlation(first, exact, X)},
        "hybrid": {"seconds": between, "correlation": correlation(hybrid, exact, X)},
        "exact": {"seconds": slow, "correlation": 1.0},
    }
    cells = [f"{row[k]['seconds']:.3g} s, r = {row[k]['correlation']:.3f}" for k in ("Taylor", "hybrid")]
    print(f"| {name} | {X.shape[2]:,} | " + " | ".join(cells) + f" | {slow:.3g} s |", flush=True)
    return row


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Correlations at the left and seconds at the right, a row for each model in both."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from yuzu.plot import plot_timings

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.9), layout="constrained")
    names = [f"{row['model']}\n{row['positions']:,} bp" for row in rows]
    for at, row in enumerate(rows):
        for i, kind in enumerate(COLORS):
            value, place = row[kind]["correlation"], at + 0.26 * (i - 1)
            left.barh(place, value, 0.22, color=COLORS[kind], label=kind if at == 0 else None)
            left.text(value + 0.01, place, f"{value:.2f}", va="center", fontsize=7.5)
    left.set_yticks(range(len(rows)), names, fontsize=8)
    left.set_ylim(len(rows) - 0.5, -0.5)
    left.set_xlim(0, 1.1)
    left.set_xlabel("Pearson correlation with exact ISM", fontsize=8)
    left.tick_params(axis="x", labelsize=8)
    left.tick_params(axis="y", length=0)
    left.spines[["top", "right"]].set_visible(False)
    seconds = {kind: {name: row[kind]["seconds"] for name, row in zip(names, rows, strict=True)} for kind in COLORS}
    plot_timings(seconds, right, baseline="exact", colors=COLORS, xlabel="seconds a sequence", legend=False)
    right.set_yticks([])
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)

    def random(n: int, length: int) -> torch.Tensor:
        return F.one_hot(torch.randint(4, (n, length), generator=generator), 4).permute(0, 2, 1).float()

    print("| model | positions | Taylor ISM | hybrid ISM | exact ISM |\n|---|---|---|---|---|")
    rows = [
        measured("Enformer-like", EnformerLike(), random(2, 1024)),
        measured("Basset", models.Basset(4, seq_len=1000), random(2, 1000)),
        measured("CTCF", load_ctcf_model(), load_ctcf_peaks().X),
    ]
    RESULTS.write_text(json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=1) + "\n")
    draw(rows, FIGURE)
    print(f"\ndrawn: {FIGURE}")


if __name__ == "__main__":
    main()
