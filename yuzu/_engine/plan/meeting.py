"""The pairs of edits whose effects may do more together than apart.

The interaction of two edits, ``y(ab) - y(a) - y(b) + y(0)``, is zero in every linear operation whose inputs have none.
In any other operation it is zero at positions that one of the two edits does not reach. So two edits have none in the
output if their windows never overlap in an operation that is not linear.
"""

from __future__ import annotations

import numpy as np

from yuzu._engine.plan.plan import Plan
from yuzu._engine.plan.windows import Edited, find_windows


def find_meeting(plan: Plan, positions: np.ndarray, width: int) -> np.ndarray:
    """Tell for each pair of edits of ``width`` positions, ``(P, P)``, whether it may have an interaction."""
    if plan.statistics.count:  # any edit moves these, and with them all positions
        return np.ones((len(positions), len(positions)), dtype=bool)
    windows = find_windows(plan, plan.needed, plan.spreads, Edited(positions, width))
    meeting = np.zeros((len(positions), len(positions)), dtype=bool)
    for node in plan.graph.nodes:
        i = node.index
        if node.kind != "call" or not node.mutated or not plan.readers[i]:
            continue
        rule, at = plan.rules[i], windows[i]
        if rule is not None and not rule.reads_reference:  # what does not depend on the reference is linear
            continue
        if at is None:
            return np.ones_like(meeting)
        first, stop = at.first, at.stop
        reached = stop > first
        meeting |= (first < stop[:, None]) & (first[:, None] < stop) & reached & reached[:, None]
    return meeting
