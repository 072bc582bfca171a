"""Targets for speed and memory, and a check of measured cases against them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Times faster than a peer in the same run, on 2 cores, one sequence. No entry: nothing is asked for.
COLUMNS = {
    "naive, highest": ("naive", "yuzu highest"),
    "naive, medium": ("naive", "yuzu medium"),
    "tangermeme fast": ("tangermeme fast", "yuzu highest"),
    "published": ("published yuzu", "yuzu highest"),
}
TARGETS: dict[str, dict[str, float]] = {
    "ToyNet": {"naive, highest": 80, "tangermeme fast": 3, "published": 2},
    "DeepSEA": {"naive, highest": 20, "naive, medium": 40, "tangermeme fast": 2.8, "published": 2.5},
    "Basset": {"naive, highest": 40, "naive, medium": 80, "tangermeme fast": 2.8, "published": 4},
    "FactorizedBasset": {"naive, highest": 60, "naive, medium": 110, "tangermeme fast": 2.5, "published": 4},
    "BPNet": {"naive, highest": 60, "naive, medium": 140, "tangermeme fast": 5, "published": 7},
    "bpnet-lite": {"naive, highest": 25, "naive, medium": 50, "tangermeme fast": 5},
    "SpliceAI-400": {"naive, highest": 10, "tangermeme fast": 2.5},
}
TARGET_CORES = 2
# Seconds for a sequence of 2,114, count and profile heads together, on one H200.
CUDA_SECONDS = {
    "bpnet-lite": {"yuzu high": 0.015, "yuzu medium": 0.0075},
    "ChromBPNet": {"yuzu high": 0.110, "yuzu medium": 0.055},
}
PRECOMPUTE_SECONDS = 3.0
PRECOMPUTE_OVER_PUBLISHED = 10.0
ERROR = 1e-5  # or naive ISM's own in the same precision, where that is larger
MANY_SEQUENCES = 1.05  # time for a sequence among many over its time alone: no higher, with room for noise


@dataclass(frozen=True)
class Verdict:
    """One target: what was measured, what is wanted, and whether it is reached (None: not measured)."""

    name: str
    measured: float | None
    wanted: str
    passed: bool | None
    reason: str = ""

    def __str__(self) -> str:
        state = {True: "pass", False: "FAIL", None: "NOT MEASURED"}[self.passed]
        measured = "" if self.measured is None else f" {self.measured:.3g}"
        return f"{state}: {self.name}{measured}, wanted {self.wanted}{f' ({self.reason})' if self.reason else ''}"


def peak_bytes(length: int) -> float:
    """The most memory that a run may take beyond the model."""
    return 1e9 if length <= 1000 else 2e9


def median(case: dict[str, Any], label: str) -> float | None:
    """Seconds for a sequence of a row, or None where it has none."""
    return case["rows"].get(label, {}).get("seconds_per_sequence")


def ratio(case: dict[str, Any], column: str) -> float | None:
    """How many times faster yuzu is than the column's peer."""
    peer, ours = (median(case, label) for label in COLUMNS[column])
    return None if peer is None or ours is None else peer / ours


def verdicts(case: dict[str, Any]) -> list[Verdict]:
    """All targets that apply to a case: its speed where it is one of the table, and memory, precompute and errors."""
    found = []
    rows = case["rows"]
    for column, wanted in TARGETS.get(case["model"], {}).items() if case["judged"] == "table" else ():
        peer, ours = COLUMNS[column]
        if peer not in rows or ours not in rows:  # not asked for, or bfloat16 without instructions for it
            continue
        measured = ratio(case, column)
        reason = rows[peer].get("failure") or rows[ours].get("failure") or ""
        passed = None if measured is None else measured >= wanted
        found.append(Verdict(f"times faster than {column}", measured, f"{wanted:g}", passed, reason))
    if case["device"] == "cuda" and case["judged"] == "table":
        for label, most in CUDA_SECONDS.get(case["model"], {}).items():
            seconds = median(case, label)
            passed = None if seconds is None else seconds <= most
            found.append(Verdict(f"{label}, seconds a sequence", seconds, f"{most:g}", passed))
    published = rows.get("published yuzu", {})
    for label, row in rows.items():
        if not label.startswith("yuzu"):
            continue
        if row.get("failure"):
            found.append(Verdict(label, None, "to run", False, row["failure"]))
            continue
        found += _row_verdicts(case, label, row, published)
    return found


def _row_verdicts(case: dict[str, Any], label: str, row: dict[str, Any], published: dict[str, Any]) -> list[Verdict]:
    found = []
    seconds = row["precompute_seconds"]
    if case["judged"] != "nothing":
        found.append(Verdict(f"{label}, precompute seconds", seconds, "< 3", seconds < PRECOMPUTE_SECONDS))
        most = peak_bytes(case["length"])
        if case["device"] == "cpu" and case["sequences"] == 1:
            measured = row["peak_bytes"] / 1e9
            found.append(Verdict(f"{label}, peak GB", measured, f"< {most / 1e9:g}", row["peak_bytes"] < most))
    if case["judged"] == "table" and "precompute_seconds" in published and label == "yuzu highest":
        times = published["precompute_seconds"] / seconds
        name = f"{label}, precompute: times faster than published"
        passed = times > PRECOMPUTE_OVER_PUBLISHED
        found.append(Verdict(name, times, "> 10", passed, "" if passed else published.get("note", "")))
    error, naive = row.get("error_delta"), case["rows"].get("naive", {}).get("error_delta")
    if label == "yuzu highest" and error is not None and naive is not None:
        most = max(ERROR, naive)
        found.append(Verdict(f"{label}, relative error", error, f"<= {most:.1e}", error <= most))
    alone = case.get("seconds_alone")
    if label == "yuzu highest" and alone is not None:
        measured = row["seconds_per_sequence"] / alone
        name = f"time for a sequence, {case['sequences']} together over 1 alone"
        found.append(Verdict(name, measured, f"<= {MANY_SEQUENCES:g}", measured <= MANY_SEQUENCES))
    return found
