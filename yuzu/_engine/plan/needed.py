"""The positions that the outputs need of each node, and how far a mutation spreads on the way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from yuzu._engine.handlers.contract import Rule
from yuzu._engine.plan.flow import Flow
from yuzu._engine.window import Window

Spread = tuple[int, int]


def find_needed(flow: Flow) -> list[tuple[int, int]]:
    """Find the positions of each windowed node that the outputs depend on."""
    nodes = flow.graph.nodes
    empty = (1 << 60, -1)
    needed = [empty] * len(nodes)

    def include(i: int, low: int, high: int) -> None:
        if flow.layouts[i].kind == "windows" and high > low:
            needed[i] = (min(needed[i][0], low), max(needed[i][1], high))

    for o in flow.graph.output_nodes:
        include(o, 0, flow.layouts[o].length)
    for node in reversed(nodes):
        rule = flow.rules[node.index]
        if not node.mutated or not flow.readers[node.index] or node.kind == "sequence":
            continue
        if rule is None:
            for i in node.inputs:
                include(i, 0, flow.layouts[i].length)
            continue
        low, high = needed[node.index] if rule.layout.kind == "windows" else (0, rule.layout.length)
        if rule.layout.kind == "windows" and high <= low:
            continue
        spans = zip(rule.sources, rule.source_layouts, rule.needed(low, high), strict=True)
        for source, as_read, (a, b) in spans:
            whole = flow.layouts[source].kind == "windows" and as_read.kind != "windows"  # read as rows
            include(source, 0 if whole else a, flow.layouts[source].length if whole else b)
    return [(0, 0) if n == empty else n for n in needed]


def find_spreads(flow: Flow) -> list[Spread | None]:
    """Find how far from an edit each node's windows begin and end, away from the ends of the sequence. For edits of ``p
    <= position < q`` they are ``[p + spread[0], q + spread[1])``. None if that differs between positions, or if an
    operation on the way may turn finite values into values that are not finite.
    """
    spreads: list[Spread | None] = []
    for node in flow.graph.nodes:
        rule = flow.rules[node.index]
        if node.kind == "sequence":
            spreads.append((0, 0))
        elif node.mutated and rule is not None and flow.layouts[node.index].kind == "windows":
            spreads.append(_spread_after(flow, rule, spreads))
        else:
            spreads.append(None)
    return spreads


def _spread_after(flow: Flow, rule: Rule, spreads: Sequence[Spread | None]) -> Spread | None:
    sources = {i: spreads[i] for i in rule.sources if flow.layouts[i].kind == "windows"}
    known = {i: spread for i, spread in sources.items() if spread is not None}
    if not rule.keeps_finite or not known or len(known) < len(sources):
        return None
    # three neighbours reveal a stride; two widths tell whether the end moves with the end of the edit
    lowest = max(-begin for begin, _ in known.values())
    if any(lowest + 4 + end > flow.layouts[i].length for i, (_, end) in known.items()):
        return None
    edit = lowest + np.arange(3)
    found = []
    for width in (1, 2):
        windows = {i: Window.at(edit + begin, width + end - begin) for i, (begin, end) in known.items()}
        first, stop = rule.window([windows.get(i) for i in rule.sources])
        found.append((first - edit, stop - edit - width))
    spread = int(found[0][0][0]), int(found[0][1][0])
    return spread if all((f == spread[0]).all() and (s == spread[1]).all() for f, s in found) else None
