"""The windows of a plan's nodes for the edits of a chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yuzu._engine.plan.flow import Flow
from yuzu._engine.window import Window

Span = tuple[int, int]
Windows = list[Window | None]


@dataclass(frozen=True)
class Edited:
    """Edits of ``width`` positions that begin at ``position``."""

    position: np.ndarray
    width: int


def find_windows(flow: Flow, needed: Sequence[Span], spreads: Sequence[Span | None], edits: Edited) -> Windows:
    """Find the window of every windowed node for some edits; None for other nodes."""
    position, width = edits.position, edits.width
    windows: Windows = [None] * len(flow.graph.nodes)
    for node in flow.graph.nodes:
        i = node.index
        if not node.mutated or flow.layouts[i].kind != "windows":
            continue
        length = flow.layouts[i].length
        if node.kind == "sequence":
            windows[i] = Window.fit(position, position + width, needed[i], length, (position, position + width))
            continue
        rule = flow.rules[i]
        assert rule is not None
        given = [windows[s] for s in rule.sources]
        present = [w if w is not None and w.width > 0 else None for w in given]
        if all(w is None for w in present):
            windows[i] = Window.fit(np.zeros_like(position), np.zeros_like(position), needed[i], length)
            continue
        spread, natural = spreads[i], None
        if spread is not None and all(w is None or w.natural is not None for w in given):
            natural = position + spread[0], position + width + spread[1]
        windows[i] = Window.fit(*rule.window(present), needed[i], length, natural)
    return windows


def find_reach(flow: Flow, windows: Windows, count: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of ``count`` edits, tell whether it reaches any output; and whether it lies so far from both ends that
    all its windows follow the common pattern.
    """
    reach, regular = np.zeros(count, dtype=bool), np.ones(count, dtype=bool)
    for node in flow.graph.nodes:
        i, at = node.index, windows[node.index]
        if not node.mutated or not flow.readers[i] or at is None:
            continue
        if at.regular is not None:
            regular &= at.regular
        to_rows = any(flow.graph.nodes[c].mutated and flow.layouts[c].kind != "windows" for c in flow.consumers[i])
        # a whole value changes only where a window before it does
        if i in flow.graph.output_nodes or to_rows:
            reach |= at.stop > at.first
    return reach, regular
