"""The rows of a summary: how each operation runs, and why."""

from __future__ import annotations

import numpy as np

from yuzu._engine.plan.plan import Plan

COLUMNS = ("layer", "operation", "handler", "window", "probes", "way", "time", "why naive")


def rows(plan: Plan, edits: int, seconds: list[float]) -> list[list[str]]:
    """Make one row for each operation that a mutation changes: the `COLUMNS`, then the node's number."""
    shape = next(n.shape for n in plan.graph.nodes if n.kind == "sequence")
    assert shape is not None and shape[2] is not None
    windows = plan.windows(np.array([shape[2] // 2]), 1)
    total = sum(seconds) or 1.0
    found = []
    for node in plan.graph.nodes:
        if node.kind != "call" or not node.mutated or not plan.readers[node.index]:
            continue
        rule = plan.rules[node.index]
        before = [w.width for w in (windows[i] for i in plan.reads[node.index]) if w is not None]
        window = windows[node.index]
        after = str(window.width) if window is not None else "all"
        first_layer = rule is not None and rule.sources and plan.graph.nodes[rule.sources[0]].kind == "sequence"
        way, probes = plan.choices[node.index].way, None
        if rule is not None:
            way = rule.shown_way(way, bool(first_layer))
            probes = rule.probes(way, before[0], edits) if window is not None and before else None
        detail = rule.detail() if rule is not None else ""
        found.append(
            [
                node.layer,
                node.op.removeprefix("aten.") + (f" ({detail})" if detail else ""),
                rule.family if rule is not None else "naive",
                f"{max(before) if before else 'all'} -> {after}",
                "" if probes is None else str(probes),
                way,
                f"{seconds[node.index] / total:.0%}",
                plan.reasons.get(node.index, ""),
                str(node.index),
            ]
        )
    return found
