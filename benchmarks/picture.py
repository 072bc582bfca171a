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


def draw(results: dict[str, Any], path: Path) -> bool:
    """Write the picture; False where no case of the table was measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from yuzu.plot import plot_timings

    cases = [case for case in results["cases"] if case["purpose"] == "table"]
    if not any("seconds" in row for case in cases for row in case["rows"].values()):
        return False
    seconds: dict[str, dict[str, Any]] = {}
    for label, (name, _) in SERIES.items():
        for case in cases:
            if label in case["rows"]:
                model = f"{case['model']}\n{case['length']:,} positions"
                seconds.setdefault(name, {})[model] = shown(case["rows"][label])
    axes = plot_timings(
        seconds,
        colors=dict(SERIES.values()),
        xlabel="seconds for all substitutions in a sequence, all outputs; thin lines: range of repeats",
    )
    machine = results["machine"]
    hardware = machine.get("gpu") or f"{cases[0]['cores']} core{'s' * (cases[0]['cores'] > 1)} of {machine['cpu']}"
    axes.figure.suptitle(f"In-silico saturation mutagenesis on {hardware}", fontsize=10)
    path.parent.mkdir(exist_ok=True)
    axes.figure.savefig(path, dpi=150)
    pyplot.close(axes.figure)
    return True


def shown(row: dict[str, Any]) -> list[float] | str:
    """A row's seconds and the ends of their range, or why there are none."""
    if "seconds" not in row:
        return "not available" if row["failure"].startswith("not available") else "not measured"
    low, high = row["range"]
    return [low, row["seconds_per_sequence"], high]  # the middle one is the median
