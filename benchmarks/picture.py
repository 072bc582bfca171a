"""Draw seconds for a sequence, yuzu beside its peers, from a benchmark's results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Okabe and Ito's colours, which colour-blind readers can tell apart; their lightness differs too.
SERIES = {
    "yuzu highest": ("yuzu, float32", "#0072B2"),
    "yuzu medium": ("yuzu, bfloat16 products", "#56B4E9"),
    "tangermeme fast": ("tangermeme 1.6.0, fast=True", "#E69F00"),
    "published yuzu": ("yuzu-ism 0.0.1", "#009E73"),
    "tangermeme": ("tangermeme 1.6.0, fast=False", "#CC79A7"),
    "naive": ("naive ISM, best batch size", "#444444"),
}
BAR, GAP = 0.15, 0.14  # inches: a bar, and the space between models


def draw(results: dict[str, Any], path: Path) -> bool:
    """Write the picture; False where no case of the table was measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = [case for case in results["cases"] if case["purpose"] == "table"]
    if not cases:
        return False
    series = [label for label in SERIES if any(label in case["rows"] for case in cases)]
    counts = [sum(label in case["rows"] for label in series) for case in cases]
    inches = sum(counts) * BAR + len(cases) * GAP
    figure, axes = pyplot.subplots(figsize=(8, inches + 1.2), layout="constrained")
    seconds = [row["seconds_per_sequence"] for case in cases for row in case["rows"].values() if "seconds" in row]
    left = min(seconds, default=0.01) / 2
    top, ticks, names, drawn = 0.0, [], [], set()
    for case, count in zip(cases, counts, strict=True):
        present = [label for label in series if label in case["rows"]]
        for place, label in enumerate(present):
            name, colour = SERIES[label]
            row, y = case["rows"][label], top + (place + 0.5) * BAR
            if "seconds" not in row:
                why = "not available" if row["failure"].startswith("not available") else "not measured"
                axes.text(left * 1.05, y, f"{name}: {why}", va="center", fontsize=6, color="#444444")
                continue
            value, (low, high) = row["seconds_per_sequence"], row["range"]
            axes.barh(
                y,
                value - left,
                BAR * 0.86,
                left=left,
                color=colour,
                label=None if label in drawn else name,
                xerr=[[value - low], [high - value]],
                error_kw={"linewidth": 0.7, "ecolor": "#888888"},
            )
            drawn.add(label)
            axes.text(high * 1.06, y, f"{value:.2g} s" if value < 10 else f"{value:.0f} s", va="center", fontsize=6.5)
        ticks.append(top + count * BAR / 2)
        names.append(f"{case['model']}\n{case['length']:,} positions")
        top += count * BAR + GAP
    axes.set_xscale("log")
    axes.set_xlim(left, max(seconds, default=1) * 2.2)
    axes.set_ylim(top - GAP / 2, -GAP / 2)
    axes.set_yticks(ticks, names, fontsize=8)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(
        "seconds for all substitutions in a sequence, all outputs; thin lines: range of repeats", fontsize=8
    )
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", linewidth=0.4, color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    machine = results["machine"]
    hardware = machine.get("gpu") or f"{cases[0]['cores']} core{'s' * (cases[0]['cores'] > 1)} of {machine['cpu']}"
    figure.suptitle(f"In-silico saturation mutagenesis on {hardware}", fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return True
