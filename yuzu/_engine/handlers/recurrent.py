"""Recurrent layers: states before a mutation's window are the reference's, so a mutant starts there.

With ``h[t] = f(h[t - 1], x[t])`` and an input that changes on ``[first, stop)``, the states before ``first`` do not
change. Each mutant is run from the reference's state there; for the reverse direction from the other end. The
reference is run beside it, in the same batch. A mutant whose states equal the reference's in every bit is dropped:
nothing changes any more. Half of the steps are saved, on average over positions, and more where states do become equal.
The result is a difference of values.
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
        self.input_size = self.step * view.shape_of(view.node.args[0])[2]  # of one mutant in a block

    def needed(self, low: int, high: int) -> list[tuple[int, int]]:
        return [(0, self.source_layouts[0].length)]

    def memory(self, choice: Choice, sizes: Sizes) -> RuleMemory:
        return RuleMemory(tables=sizes.result, largest=-(-GATES * sizes.result // BLOCKS) + 2 * self.input_size)

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,), (layout,) = changes, self.source_layouts
        assert change is not None and change.window is not None
        before, reverse, length = change.window, self.recurrence.reverse, layout.length
        tensor, first = change.tensor, before.start
        if reverse:  # all in the order of the recurrence
            tensor, first = tensor.flip(2), length - (before.start + before.width)
        edits = tensor.shape[1]
        mutants = _Mutants(
            tensor.flatten(0, 1), np.repeat(first, edits), np.repeat(np.asarray(run.sites.sequence), edits)
        )
        y = run.value(self.node.index)
        result = tensor.new_zeros(len(mutants.first), *y.shape[1:], dtype=y.dtype)
        self._fill(run, result, mutants)
        result = result.unflatten(0, (-1, edits))
        return result.flip(2) if reverse else result

    def _fill(self, run: Context, result: torch.Tensor, mutants: _Mutants) -> None:
        """Run block after block of positions, for the references and for the mutants that differ from them there."""
        key = (self.node.index, "in the order of the recurrence")
        x, weights = run.reference.made(key, lambda: self._input(run)), [run.value(i) for i in self.weights]
        kept = run.reference.made((self.node.index, "states"), lambda: self._states(x, weights))
        sequences, own = np.unique(mutants.sequence, return_inverse=True)  # own: each mutant's place among them
        count, starts = len(sequences), np.clip(mutants.first, 0, x.shape[1] - 1) // self.step
        live = np.zeros(0, dtype=np.int64)
        # the states of the references, then of the mutants
        states = kept[int(starts.min())].index_select(1, on_device(sequences, run.device))
        for block in range(int(starts.min()), len(kept)):
            if not len(live) and block > starts.max():
                break
            low, high = block * self.step, min((block + 1) * self.step, x.shape[1])
            enter = np.flatnonzero(starts == block)
            live = np.concatenate([live, enter])
            states = torch.cat([states, states.index_select(1, on_device(own[enter], run.device))], 1)
            rows = np.concatenate([sequences, mutants.sequence[live]])
            part = x[:, low:high].index_select(0, on_device(rows, run.device))
            mutants.add_to(part[count:], live, low)
            given = [s.contiguous() for s in states.split(self._sizes(weights), 2)]
            found, after = self.recurrence.run(part, weights, given)
            states, beside = torch.cat(after, 2), on_device(own[live], run.device)
            result[on_device(live, run.device), low:high] = found[count:] - found.index_select(0, beside)
            if high < x.shape[1]:
                differ = (states[0, count:] != states[0].index_select(0, beside)).any(1).cpu().numpy()
                differ |= mutants.first[live] + mutants.width > high  # its window goes on
                stay = np.concatenate([np.arange(count), count + np.flatnonzero(differ)])
                live, states = live[differ], states.index_select(1, on_device(stay, run.device))

    def _input(self, run: Context) -> torch.Tensor:
        """The reference's input, ``(B, L, C)``, in the order of the recurrence."""
        x = run.reference.position_first(self.sources[0], self.source_layouts[0])
        return x.flip(1) if self.recurrence.reverse else x

    def _sizes(self, weights: list[torch.Tensor]) -> list[int]:
        """The sizes of the states."""
        return [s.shape[2] for s in self.recurrence.zeros(weights[0][None, None], weights)]

    def _states(self, x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
        """The reference's states before every ``step`` positions: ``(blocks, 1, B, ...)``, all states side by side."""
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

    def add_to(self, x: torch.Tensor, live: np.ndarray, low: int) -> None:
        """Add what some mutants change to their reference's values ``x``, which begin at position ``low``, in place."""
        place = self.first[live][:, None] + np.arange(self.width) - low
        row, column = np.nonzero((place >= 0) & (place < x.shape[1]))
        if len(row):
            change = self.change[on_device(live[row], x.device), on_device(column, x.device)]
            x[on_device(row, x.device), on_device(place[row, column], x.device)] += change


@handles("yuzu.recurrence")
def recurrence(view: View) -> Rule | str:
    node = view.node
    weights: list[Any] = node.args[1]
    if any(view.layout(ref) != CONSTANT for ref in weights if isinstance(ref, Ref)):
        return "its weights depend on an input"
    layout = view.layout(node.args[0])
    if layout.kind != "windows" or layout.composite or spatial_axis(layout) != 1:
        return OnRows(view, widens=False)
    return Recurrent(view)
