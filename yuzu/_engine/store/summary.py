"""The summary of a precomputation as text: what was asked for, and what runs how, and why."""

from __future__ import annotations

from typing import Any

from yuzu._engine.plan.table import COLUMNS
from yuzu._engine.store.settings import Settings


def table(settings: Settings, decisions: dict[str, Any]) -> str:
    """The summary as text."""
    head = (
        f"Precomputation for sequences of {settings.n_choices} characters x {settings.seq_len} positions, "
        f"{settings.dtype.removeprefix('torch.')} "
        f"on {settings.device}, conv={settings.conv!r}, precision={settings.precision!r}"
    )
    if decisions["naive_model"] is not None:
        return f"{head}\nThe whole model runs naively: {decisions['naive_model']}"
    lines = [list(COLUMNS), *decisions["layers"]]
    widths = [max(len(str(line[i])) for line in lines) for i in range(len(COLUMNS))]
    used = [
        i for i in range(len(COLUMNS)) if any(line[i] for line in lines[1:]) or i < 4
    ]  # the last field of a row is the node
    text = ["  ".join(str(line[i]).ljust(widths[i]) for i in used).rstrip() for line in lines]
    text.insert(1, "-" * max(map(len, text)))
    notes = [f"{decisions['sites']} positions are carried at once."]
    if decisions["precision"] != settings.precision:
        notes.append(f"{settings.precision!r} products are far off here, so they are {decisions['precision']!r}.")
    if decisions.get("alpha") is not None:
        notes.append(
            f"Gaussian probes: alpha={decisions['alpha']:g}, largest condition number {decisions['condition']:.3g}, "
            "correlation with naive ISM "
            f"{decisions['correlation']:.6f}."
        )
    return "\n".join([head, *notes, *text])
