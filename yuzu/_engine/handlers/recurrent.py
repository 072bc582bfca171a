"""Recurrent layers: states before a mutation's window are the reference's, so a mutant starts there.

With ``h[t] = f(h[t - 1], x[t])`` and an input that changes on ``[first, stop)``, the states before ``first`` do not
change. Each mutant is run from the reference's state there; for the reverse direction from the other end. It is run
until its states are the reference's again but for rounding, or to the end: half of the steps are saved, on average over
positions, and most of them where states are soon forgotten. The result is a difference of values.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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

BLOCKS = 32  # a mutant starts with a block of positions, and may stop after one; fewer save fewer steps
GATES = 6  # numbers that a step holds for each of its results: gates, states and input
SETTLED = 4  # states that differ by this many units in the last place are the same, but for rounding


class Recurrent(Rule):
    """A recurrence over positions, from the reference's state before each window."""

    family = "recurrent"
    numerics = Numerics(on_values=True, may_widen=False, cancels=True)

    def __init__(self, view: View) -> None:
        super().__init__(view, ROWS)
        self.recurrence: Recurrence = view.node.target
        self.weights = [ref.index for ref in view.node.args[1]]
        (layout,) = self.source_layouts
        self.step = max(-(-layout.length // BLOCKS), 1)

    def needed(self, low: int, high: int) -> list[tuple[int, int]]:
        return [(0, self.source_layouts[0].length)]

    def memory(self, choice: Choice, sizes: Sizes) -> RuleMemory:
        return RuleMemory(tables=sizes.result, largest=-(-GATES * sizes.result // BLOCKS))

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,), (source,), (layout,) = changes, self.sources, self.source_layouts
        assert change is not None and change.window is not None
        before, reverse, length = change.window, self.recurrence.reverse, layout.length
        x, y = run.reference.position_first(source, layout), run.value(self.node.index)
        tensor, first = change.tensor, before.start
        if reverse:  # all in the order of the recurrence
            x, y, tensor, first = x.flip(1), y.flip(1), tensor.flip(2), length - (before.start + before.width)
        edits = tensor.shape[1]
        mutants = _Mutants(
            tensor.flatten(0, 1), np.repeat(first, edits), np.repeat(np.asarray(run.sites.sequence), edits)
        )
        result = tensor.new_zeros(len(mutants.first), *y.shape[1:], dtype=y.dtype)
        self._fill(run, result, mutants, (x, y))
        result = result.unflatten(0, (-1, edits))
        return result.flip(2) if reverse else result

    def _fill(
        self, run: Context, result: torch.Tensor, mutants: _Mutants, reference: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        """Run block after block of positions, for the mutants that differ there from the reference."""
        x, y = reference
        weights = [run.value(i) for i in self.weights]
        kept = run.reference.made(("states", self.node.index), lambda: self._states(run, x, weights))
        starts = np.clip(mutants.first, 0, x.shape[1] - 1) // self.step
        live, states = np.zeros(0, dtype=np.int64), kept[0, :, :0]
        for block in range(int(starts.min()), len(kept)):
            low = block * self.step
            high = min(low + self.step, x.shape[1])
            enter = np.flatnonzero(starts == block)
            live = np.concatenate([live, enter])
            if not len(live):
                continue
            rows = on_device(mutants.sequence[live], run.device)
            entering = kept[block].index_select(1, rows[len(live) - len(enter) :])
            states = torch.cat([states, entering], 1)
            part = mutants.add_to(x[:, low:high].index_select(0, rows), live, low)
            given = [s.contiguous() for s in states.split(self._sizes(weights), 2)]
            found, after = self.recurrence.run(part, weights, given)
            result[on_device(live, run.device), low:high] = found.sub_(y[:, low:high].index_select(0, rows))
            states = torch.cat(after, 2)
            if block + 1 < len(kept):
                differ = _differ(states, kept[block + 1].index_select(1, rows))
                differ |= mutants.first[live] + mutants.width > high  # its window goes on
                live, states = live[differ], states[:, on_device(np.flatnonzero(differ), run.device)]

    def _sizes(self, weights: list[torch.Tensor]) -> list[int]:
        """The sizes of the states."""
        return [s.shape[2] for s in self.recurrence.zeros(weights[0][None, None], weights)]

    def _states(self, run: Context, x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
        """The reference's states before every ``step`` positions: ``(BLOCKS, 1, B, ...)``, all states side by side."""
        states, found = self.recurrence.zeros(x, weights), []
        for part in x.split(self.step, 1):
            found.append(torch.cat(states, 2))
            _, states = self.recurrence.run(part, weights, states)
        return torch.stack(found)


class _Mutants(NamedTuple):
    """The changes of all mutants, ``(mutants, width, C)``, where each begins, and which sequence each is one of."""

    change: torch.Tensor
    first: np.ndarray
    sequence: np.ndarray

    @property
    def width(self) -> int:
        return self.change.shape[1]

    def add_to(self, x: torch.Tensor, live: np.ndarray, low: int) -> torch.Tensor:
        """Add what some mutants change to their reference's values from position ``low`` on."""
        place = self.first[live][:, None] + np.arange(self.width) - low
        row, column = np.nonzero((place >= 0) & (place < x.shape[1]))
        if len(row):
            at, mutant, position, offset = (
                on_device(i, x.device) for i in (row, live[row], place[row, column], column)
            )
            x[at, position] += self.change[mutant, offset]
        return x


def _differ(states: torch.Tensor, reference: torch.Tensor) -> np.ndarray:
    """Tell which mutants' states ``(1, mutants, ...)`` differ from the reference's by more than rounding."""
    size = reference.abs()
    bound = SETTLED * torch.finfo(states.dtype).eps * torch.maximum(size, size.amax(2, keepdim=True).clamp(max=1))
    same = ((states - reference).abs() <= bound).all(2)  # NaN is never the same
    found: np.ndarray = ~same[0].cpu().numpy()
    return found


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
