"""Picking along one axis by a constant index: the complement of letters, ``x[:, [3, 2, 1, 0]]``, some of the tracks,
some of the positions. Positions stay windows if the index is known before the run, and is no buffer that may change.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from yuzu._engine.context import Context
from yuzu._engine.graph import Graph, evaluate
from yuzu._engine.handlers.contract import Rule, View
from yuzu._engine.handlers.elementwise import looked_up
from yuzu._engine.handlers.interpolate import Resampled
from yuzu._engine.handlers.registry import handles
from yuzu._engine.handlers.view import Rearranged
from yuzu._engine.layout import CONSTANT, ROWS, Change, on_device
from yuzu._engine.window import Window

WHOLE_NUMBERS = (torch.int64, torch.int32)


class Positions(Rule):
    """Some of the positions: whole differences, zero for the mutations that do not reach them."""

    family = "view"
    keeps_finite = True
    reads_reference = False
    carries_values = True

    def __init__(self, view: View, index: int, shape: tuple[int, ...]) -> None:
        super().__init__(view, ROWS)
        self.index, self.shape = index, shape

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,), (layout,) = changes, self.source_layouts
        assert change is not None and change.window is not None
        tensor, index = change.tensor, run.value(self.index).flatten()
        if change.mutant:
            return _picked(run.mutants(self.sources[0], change), layout.axis, run.value(self.index))
        start = on_device(change.window.start, run.device)[:, None]
        place = torch.where(index < 0, index + layout.length, index) - start
        outside = (place < 0) | (place >= change.window.width)
        sites = torch.arange(len(place), device=run.device)[:, None]
        # advanced indices around a slice come first: (S, J, A, ...)
        picked = tensor[sites, :, place.masked_fill(outside, 0)]
        picked.masked_fill_(outside.view(*outside.shape, *[1] * (picked.dim() - 2)), 0)
        rows = layout.natural(picked.transpose(1, 2).flatten(0, 1)).unflatten(layout.axis, self.shape)
        return rows.unflatten(0, tensor.shape[:2])


@handles("aten.index", "aten.index_select")
def pick(view: View) -> Rule | str:
    node = view.node
    source = node.args[0]
    if node.op == "aten.index" and view.layout(source) == CONSTANT and len(node.args[1]) == 1:
        return looked_up(view, source, node.args[1][0]) if node.mutated else "it picks rows of a table"
    rank = len(view.shape_of(source))
    if node.op == "aten.index":
        given: list[Any] = [(axis, index) for axis, index in enumerate(node.args[1]) if index is not None]
    else:
        given = [(node.argument(1, "dim") % rank, node.argument(2, "index"))]
    if any(view.source(index).dtype not in WHOLE_NUMBERS for _, index in given):
        return "it picks by a mask"
    if any(axis == 0 for axis, _ in given):
        return "it picks rows of the batch"
    if any(view.layout(index) != CONSTANT for _, index in given):
        return "its index depends on the input"
    if view.layout(source) == CONSTANT:
        return "what it picks from does not depend on the input"
    if len(given) > 1:
        return _picked_together(view, given)
    ((axis, index),) = given
    layout, sizes = view.layout(source), view.shape_of(index)
    if not node.mutated or layout.kind != "windows" or layout.composite:
        layout = ROWS
    elif axis == layout.axis:
        return _windows_of(view, index.index) or Positions(view, index.index, sizes)
    elif axis < layout.axis:
        layout = replace(layout, axis=layout.axis + len(sizes) - 1)
    return Rearranged(view, layout, lambda rows, index: _picked(rows, axis, index), index.index)


def _windows_of(view: View, index: int) -> Rule | None:
    """The rule for positions that a known index picks, if neighbours among them stay neighbours; None otherwise."""
    layout, given = view.movable(view.node.args[0]), _known(view.graph, index)
    if layout.kind != "windows" or given is None or given.dim() != 1:
        return None
    places = given.numpy().astype(np.int64)
    rule = Resampled(view, layout, np.where(places < 0, places + layout.length, places)[None])
    return rule if rule.read.near else None


def _known(graph: Graph, index: int) -> torch.Tensor | None:
    """The value of a node that depends on no weight and no input; None for another one."""
    node = graph.nodes[index]
    if node.kind == "constant" and node.value is not None:
        return node.value.cpu()
    if node.kind != "call" or node.batched or node.shape is None:
        return None
    values = {i: _known(graph, i) for i in node.inputs}
    if any(value is None for value in values.values()):
        return None
    return evaluate(node, values.__getitem__, torch.device("cpu"))


def _picked(rows: torch.Tensor, axis: int, index: torch.Tensor) -> torch.Tensor:
    """Like `index_select`, but negative numbers count from the end, and the index may be a table."""
    places: Any = (*[slice(None)] * axis, index)
    return rows[places]


def _picked_together(view: View, given: list[Any]) -> Rule:
    """Picking along several axes, such as the upper triangle of a matrix."""

    def picked(rows: torch.Tensor, *indices: torch.Tensor) -> torch.Tensor:
        found = dict(zip((axis for axis, _ in given), indices, strict=True))
        return rows[tuple(found.get(axis, slice(None)) for axis in range(rows.dim()))]

    axes, (layout, rank) = [axis for axis, _ in given], (view.layout(view.node.args[0]), view.rank)
    beside = axes == list(range(axes[0], axes[0] + len(axes)))
    if view.node.mutated and layout.kind == "windows" and not layout.composite and layout.axis not in axes and beside:
        before = len(view.shape_of(view.node.args[0])) - rank if layout.axis > axes[0] else 0
        return Rearranged(view, replace(layout, axis=layout.axis - before), picked, *(i.index for _, i in given))
    return Rearranged(view, ROWS, picked, *(index.index for _, index in given))
