"""What runs how, and why: the rows of a summary."""

from __future__ import annotations

import numpy as np

from yuzu._engine.handlers.convolution import Convolution
from yuzu._engine.plan.plan import Plan
from yuzu._engine.run.run import Run

COLUMNS = ("layer", "operation", "handler", "window", "probes", "way", "time", "why naive")


def rows(plan: Plan, run: Run, seconds: list[float]) -> list[list[str]]:
    """One row for each operation that a mutation changes, with the node's number after the columns."""
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
        way = rule.way if rule is not None else ""
        probes = ""
        if isinstance(rule, Convolution):
            way = "table" if first_layer and rule.geometry.stride == 1 and rule.groups == 1 else rule.way
            if way == "cyclic" and window is not None:
                probes = str((before[0] + rule.geometry.reach) * run.sites.difference.shape[1])
        detail = rule.detail() if rule is not None else ""
        found.append(
            [
                node.layer,
                node.op.removeprefix("aten.") + (f" ({detail})" if detail else ""),
                rule.family if rule is not None else "naive",
                f"{max(before) if before else 'all'} -> {after}",
                probes,
                way,
                f"{seconds[node.index] / total:.0%}",
                plan.reasons.get(node.index, ""),
                str(node.index),
            ]
        )
    return found
