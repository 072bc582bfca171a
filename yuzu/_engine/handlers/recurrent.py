"""Recurrent layers: states before a mutation's window are the reference's, so a mutant starts there.

With ``h[t] = f(h[t - 1], x[t])`` and an input that changes on ``[first, stop)``, the states before ``first`` do not
change. Each mutant is run from the reference's state there to the end; for the reverse direction from the other end.
The result is a difference of values, exact but for rounding. Half of the steps are saved, on average over positions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from yuzu._engine.choice import Choice
from yuzu._engine.context import Context
from yuzu._engine.graph import Recurrence, Ref
from yuzu._engine.handlers.contract import Rule, View, spatial_axis
from yuzu._engine.handlers.facts import Numerics, RuleMemory, Sizes
from yuzu._engine.handlers.registry import handles
from yuzu._engine.handlers.values import OnRows
from yuzu._engine.layout import CONSTANT, ROWS, Change, on_device
from yuzu._engine.window import Window

STARTS = 16  # places at which the reference's states are kept, and mutants start; fewer save fewer steps
GATES = 6  # numbers that a step holds for each of its results: gates, states and input


class Recurrent(Rule):
    """A recurrence over positions, from the reference's state before each window."""

    family = "recurrent"
    numerics = Numerics(on_values=True, may_widen=False, cancels=True)

    def __init__(self, view: View) -> None:
        super().__init__(view, ROWS)
        self.recurrence: Recurrence = view.node.target
        self.weights = [ref.index for ref in view.node.args[1]]
        (layout,) = self.source_layouts
        self.step = max(-(-layout.length // STARTS), 1)

    def needed(self, low: int, high: int) -> list[tuple[int, int]]:
        return [(0, self.source_layouts[0].length)]

    def memory(self, choice: Choice, sizes: Sizes) -> RuleMemory:
        return RuleMemory(tables=sizes.result, largest=GATES * sizes.result)

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,), (source,), (layout,) = changes, self.sources, self.source_layouts
        assert change is not None and change.window is not None
        before, reverse, length = change.window, self.recurrence.reverse, layout.length
        x, y = run.reference.position_first(source, layout), run.value(self.node.index)
        tensor, first = change.tensor, before.start
        if reverse:  # all in the order of the recurrence
            x, y, tensor, first = x.flip(1), y.flip(1), tensor.flip(2), length - (before.start + before.width)
        result = tensor.new_zeros(*tensor.shape[:2], *y.shape[1:], dtype=y.dtype)
        starts = np.clip(first, 0, length - 1) // self.step
        for start in np.unique(starts):
            sites = np.flatnonzero(starts == start)
            part = self._from(run, int(start), (x, y), tensor[on_device(sites, run.device)], (sites, first[sites]))
            result[on_device(sites, run.device), :, int(start) * self.step :] = part
        return result.flip(2) if reverse else result

    def _from(
        self,
        run: Context,
        start: int,
        reference: tuple[torch.Tensor, torch.Tensor],
        tensor: torch.Tensor,
        sites: tuple[np.ndarray, np.ndarray],
    ) -> torch.Tensor:
        """The change from one of the kept states on, for some sites, the first positions of whose windows are given."""
        (x, y), (which, first), begin = reference, sites, start * self.step
        rows = on_device(run.sites.sequence[which], run.device)
        edits, width = tensor.shape[1:3]
        mutants = x[:, begin:].index_select(0, rows).unsqueeze(1).repeat(1, edits, 1, 1)
        place = on_device(first - begin, run.device)[:, None] + torch.arange(width, device=run.device)
        site = torch.arange(len(which), device=run.device)[:, None]
        mutants[site, :, place] += tensor.movedim(2, 1)
        weights = [run.value(i) for i in self.weights]
        kept = run.reference.made(("states", self.node.index), lambda: self._states(run, x, weights))[start]
        states = [s.index_select(1, rows).repeat_interleave(edits, 1) for s in kept.split(self._sizes(weights), 2)]
        found, _ = self.recurrence.run(mutants.flatten(0, 1), weights, [s.contiguous() for s in states])
        return found.unflatten(0, (len(which), edits)) - y[:, begin:].index_select(0, rows).unsqueeze(1)

    def _sizes(self, weights: list[torch.Tensor]) -> list[int]:
        """The sizes of the states."""
        return [s.shape[2] for s in self.recurrence.zeros(weights[0][None, None], weights)]

    def _states(self, run: Context, x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
        """The reference's states before every ``step`` positions: ``(STARTS, 1, B, ...)``, all states side by side."""
        states, found = self.recurrence.zeros(x, weights), []
        for part in x.split(self.step, 1):
            found.append(torch.cat(states, 2))
            _, states = self.recurrence.run(part, weights, states)
        return torch.stack(found)


@handles("yuzu.recurrence")
def recurrence(view: View) -> Rule | str:
    node = view.node
    weights: list[Any] = node.args[1]
    if any(view.layout(ref) != CONSTANT for ref in weights if isinstance(ref, Ref)):
        return "its weights depend on an input"
    layout = view.layout(node.args[0])
    if not node.mutated or layout.kind != "windows" or layout.composite or spatial_axis(layout) != 1:
        return OnRows(view, widens=False)
    return Recurrent(view)
