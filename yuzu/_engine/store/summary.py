"""The summary of a precomputation as text: what was asked for, and how and why each layer is run as it is."""

from __future__ import annotations

from yuzu._engine.plan.table import COLUMNS
from yuzu._engine.settings import Settings
from yuzu._engine.store.decisions import Decisions


def table(settings: Settings, decisions: Decisions) -> str:
    """The summary as text."""
    head = (
        f"Precomputation for sequences of {settings.n_choices} characters x {settings.seq_len} positions, "
        f"{settings.dtype.removeprefix('torch.')} "
        f"on {settings.device}, conv={settings.conv!r}, precision={settings.precision!r}"
    )
    if decisions.naive_model is not None:
        return f"{head}\nThe whole model runs naively: {decisions.naive_model}"
    lines = [COLUMNS, *(tuple(map(str, layer[:-1])) for layer in decisions.layers)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    used = [i for i in range(len(COLUMNS)) if i < 4 or any(line[i] for line in lines[1:])]
    text = ["  ".join(line[i].ljust(widths[i]) for i in used).rstrip() for line in lines]
    text.insert(1, "-" * max(map(len, text)))
    notes = [f"{decisions.sites} positions are carried at once."]
    if decisions.kept:
        notes.append(decisions.kept)
    if decisions.statistics is not None:
        past = decisions.statistics
        notes.append(
            f"Windows are carried past {past.numbers} statistics, by series of second order, where at least "
            f"{past.least_positions} positions of a sequence are mutated."
            if past.numbers
            else "Attention pooling divides by the sum of its weights last, so windows reach it."
        )
    if decisions.precision != settings.precision:
        notes.append(f"{settings.precision!r} products are far off here, so they are {decisions.precision!r}.")
    if decisions.probing is not None:
        notes.append(
            f"Gaussian probes: alpha={decisions.probing.alpha:g}, largest condition number "
            f"{decisions.probing.condition:.3g}, correlation with naive ISM {decisions.probing.correlation:.6f}."
        )
    return "\n".join([head, *notes, *text])
