"""What picks along one axis by an index that no input reaches: the complement of letters, ``x[:, [3, 2, 1, 0]]``, some
of the tracks, some of the positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from yuzu._engine.delta import CONSTANT, ROWS, Change, on_device
from yuzu._engine.graph import Ref
from yuzu._engine.handlers.contract import Rule, View, handles
from yuzu._engine.handlers.elementwise import looked_up
from yuzu._engine.handlers.view import Rearranged
from yuzu._engine.window import Window

if TYPE_CHECKING:
    from yuzu._engine.run import Run


class Positions(Rule):
    """Some of the positions: whole differences, zero for the mutations that do not reach them."""

    family = "view"
    keeps_finite = True
    reads_reference = False
    carries_values = True

    def __init__(self, view: View, index: int) -> None:
        super().__init__(view, ROWS)
        self.index = index

    def run(self, run: Run, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,), (layout,) = changes, self.source_layouts
        assert change is not None and change.window is not None
        tensor, index = change.tensor, run.value(self.index)
        if change.mutant:
            return _picked(run.mutants(self.sources[0], change), layout.axis, index)
        start = on_device(change.window.start, run.device)[:, None]
        place = torch.where(index < 0, index + layout.length, index) - start
        outside = (place < 0) | (place >= change.window.width)
        sites = torch.arange(len(place), device=run.device)[:, None]
        # advanced indices around a slice come first: (S, J, A, ...)
        picked = tensor[sites, :, place.masked_fill(outside, 0)]
        picked.masked_fill_(outside.view(*outside.shape, *[1] * (picked.dim() - 2)), 0)
        return layout.natural(picked.transpose(1, 2).flatten(0, 1)).unflatten(0, tensor.shape[:2])


@handles("aten.index", "aten.index_select")
def pick(view: View) -> Rule | str:
    node = view.node
    source = node.args[0]
    if node.op == "aten.index" and view.layout(source) == CONSTANT and len(node.args[1]) == 1:
        return looked_up(view, source, node.args[1][0]) if node.mutated else "it picks rows of a table"
    rank = len(view.shape_of(source))
    axis, index = _of_one_axis(view, rank)
    if index is None:
        return "it has an index of several axes, or one that is not a list of whole numbers"
    if axis == 0:
        return "it picks rows of the batch"
    if view.layout(index) != CONSTANT:
        return "its index depends on the input"
    if view.layout(source) == CONSTANT:
        return "what it picks from does not depend on the input"
    layout = view.layout(source)
    if not node.mutated or layout.kind != "windows" or layout.composite:
        layout = ROWS
    elif axis == layout.axis:
        return Positions(view, index.index)
    return Rearranged(view, layout, lambda rows, index: _picked(rows, axis, index), index.index)


def _picked(rows: torch.Tensor, axis: int, index: torch.Tensor) -> torch.Tensor:
    """Like `index_select`, but negative numbers count from the end."""
    return rows.movedim(axis, 0)[index].movedim(0, axis)


def _of_one_axis(view: View, rank: int) -> tuple[int, Ref | None]:
    """The axis, and its index if that is one row of whole numbers."""
    node = view.node
    if node.op == "aten.index":
        given: list[Any] = [(axis, index) for axis, index in enumerate(node.args[1]) if index is not None]
    else:
        given = [(node.argument(1, "dim") % rank, node.argument(2, "index"))]
    if len(given) != 1:
        return 0, None
    ((axis, index),) = given
    whole = view.source(index).dtype in (torch.int64, torch.int32) and len(view.shape_of(index)) == 1
    return axis, index if whole else None
