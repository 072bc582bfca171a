"""Draw `statistics.png` and `recurrences.png`: what is left of a window after a norm, and in a recurrent layer.

    python figs/draw_past_windows.py

Every line is computed, by small networks with random weights: nothing is sketched.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.func import jvp

HERE = Path(__file__).parent
LENGTH, SITE = 600, 300
INK, MUTED, LINE = "#222222", "#6b6b6b", "#b9b9b9"
WHOLE, WINDOW, SERIES, LEFT = "#222222", "#e4572e", "#3b6ea5", "#8d99ae"


def sequences() -> tuple[Tensor, Tensor]:
    """A random sequence, and the same with another letter at `SITE`."""
    letters = torch.randint(4, (LENGTH,), generator=torch.Generator().manual_seed(1))
    X = F.one_hot(letters, 4).T[None].double()
    mutant = X.clone()
    mutant[0, :, SITE] = mutant[0, :, SITE].roll(1)
    return X, mutant


class Normalising(nn.Module):
    """Two blocks of a convolution, a norm over the whole plane, and GELU; the norms' statistics may be given."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, channels, 11, padding=5)
        self.convs = nn.ModuleList(nn.Conv1d(channels, channels, 9, padding=4) for _ in range(2))

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The values, and the mean and the scale of each norm, which are taken as ``given`` if they are."""
        x, found = F.gelu(self.first(x)), []
        for i, conv in enumerate(self.convs):
            y = conv(x)
            mean, scale = y.mean(), (y.var(unbiased=False) + 1e-3).rsqrt()
            found += [mean, scale]
            if given is not None:
                mean, scale = given[2 * i], given[2 * i + 1]
            x = x + F.gelu((y - mean) * scale)
        return x, torch.stack(found)


def size(values: Tensor) -> Tensor:
    """The root mean square over channels, at each position."""
    return values[0].square().mean(0).sqrt()


def draw_statistics(path: Path) -> None:
    """One letter's change after two norms, taken apart."""
    torch.manual_seed(0)
    model = Normalising().double()
    X, mutant = sequences()
    with torch.no_grad():
        reference, s = model(X)
        changed, moved = model(mutant)
    ds = moved - s
    first = jvp(lambda t: model(X, t)[0], (s,), (ds,))[1].detach()
    second = jvp(lambda t: jvp(lambda u: model(X, u)[0], (t,), (ds,))[1], (s,), (ds,))[1].detach()
    change = changed - reference
    lines = [
        ("mutant minus reference", change, WHOLE, 1.6),
        ("less the terms of first order", change - first, SERIES, 1.1),
        ("less those of second order, too: the remainder", change - first - second / 2, WINDOW, 1.1),
    ]
    figure, axes = plt.subplots(figsize=(8, 3.6), constrained_layout=True)
    for label, values, colour, width in lines:
        axes.semilogy(size(values).clamp(min=1e-14), color=colour, lw=width, label=label)
    axes.axvspan(SITE - 13, SITE + 14, color=WINDOW, alpha=0.12, lw=0)
    axes.annotate("window", (SITE + 16, 2e-1), color=WINDOW, va="center")
    dress(axes, "size of the change (log scale)")
    axes.set_title(f"One letter of {LENGTH}, after two norms over all positions and channels", loc="left", fontsize=11)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.98), fontsize=9)
    axes.set_ylim(1e-11, 1e2)
    figure.savefig(path, dpi=160)


def draw_recurrences(path: Path) -> None:
    """One letter's change of the states of an LSTM, in both directions."""
    torch.manual_seed(0)
    conv = nn.Conv1d(4, 16, 11, padding=5)
    lstm = nn.LSTM(16, 32, batch_first=True, bidirectional=True)
    X, mutant = sequences()
    with torch.no_grad():
        states = [lstm(conv(x.float()).relu().transpose(1, 2))[0].transpose(1, 2) for x in (X, mutant)]
    change = states[1] - states[0]
    figure, rows = plt.subplots(2, 1, figsize=(8, 3.8), sharex=True, constrained_layout=True)
    for axes, part, label in zip(rows, (change[:, :32], change[:, 32:]), ("forward", "reverse"), strict=True):
        sizes = size(part)
        equal = sizes == 0
        axes.semilogy(torch.where(equal, torch.nan, sizes), color=WHOLE, lw=1.3)
        axes.axvspan(SITE - 5, SITE + 6, color=WINDOW, alpha=0.25, lw=0)
        whole_height = axes.get_xaxis_transform()
        there = equal.tolist()
        axes.fill_between(range(LENGTH), 0, 1, where=there, color=LEFT, alpha=0.2, lw=0, transform=whole_height)
        dress(axes, label)
        axes.set_ylim(1e-9, 1)
    title = "Change of an LSTM's states; grey: equal to the reference's in every bit"
    rows[0].set_title(title, loc="left", fontsize=11)
    rows[0].set_xlabel("")
    figure.savefig(path, dpi=160)


def dress(axes: Axes, label: str) -> None:
    """Labels and spines alike in both pictures."""
    axes.set_xlim(0, LENGTH)
    axes.set_xlabel("position", color=MUTED)
    axes.set_ylabel(label, color=MUTED)
    axes.tick_params(colors=MUTED, labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)


if __name__ == "__main__":
    draw_statistics(HERE / "statistics.png")
    draw_recurrences(HERE / "recurrences.png")
