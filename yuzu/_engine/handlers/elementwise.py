"""Pointwise operations, and others that run on values: normalisation, look-up in tables, attention.

Operations with a formula of their own are in `formulas` and `affine`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any

import torch

from yuzu._engine import ops
from yuzu._engine.context import Context
from yuzu._engine.graph import Ref
from yuzu._engine.handlers.contract import Rule, View
from yuzu._engine.handlers.registry import handles
from yuzu._engine.handlers.values import Local, OnRows
from yuzu._engine.kernels.precision import small_products
from yuzu._engine.layout import CONSTANT, ROWS, Change, Layout
from yuzu._engine.window import Window

# PyTorch multiplies blocks of keys in attention. On two cores (AMD) oneDNN took 4 times as long as MKL for 62 to 150
# keys of 16 to 32 channels, as long for 256 of 64, and 0.6 to 0.7 of the time for 512 to 1,536 of 64.
FEW_KEYS = 256


class Attention(OnRows):
    """Scaled dot-product attention on whole mutants."""

    def __init__(self, view: View) -> None:
        super().__init__(view, widens=False)
        self.keys = view.shape_of(self.node.argument(1, "key"))[-2]

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        with small_products(run.device) if self.keys < FEW_KEYS else contextlib.nullcontext():
            return super().run(run, changes, window)


@handles("pointwise", *ops.with_fact("pointwise"))
def pointwise(view: View) -> Rule | str:
    """Every operation that PyTorch tags as pointwise, and some that it should."""
    found = common_layout(view)
    if isinstance(found, str):
        return found
    return OnRows(view) if found.kind == "rows" else Local(view, found)


def common_layout(view: View, statistics: Collection[int] = ()) -> Layout | str:
    """The layout of the result of a broadcasting operation on several operands, or why there is none.

    It is windowed if all mutated operands have their positions on the same axis, counted from the last. Those of
    ``statistics`` have no positions, and are broadcast along them.
    """
    rank = view.rank
    shape = view.node.shape
    assert shape is not None
    layouts = []
    for ref in view.tensors():
        layout = view.layout(ref)
        operand = view.source(ref).shape or ()
        if layout == CONSTANT:
            if len(operand) == rank and operand[0] != 1:
                return "an operand without a batch axis has more than one row"
            continue
        if len(operand) != rank:
            return "the operands' batch axes do not lie on top of each other"
        if view.mutated(ref):
            layouts.append((layout, operand))
    if not layouts:
        return ROWS
    windowed = [found for found in layouts if found[0].kind == "windows"]
    if statistics and windowed:
        axis = windowed[0][0].axis
        broadcast = [
            view.source(ref).shape
            for ref in view.tensors()
            if ref.index in statistics and view.layout(ref).kind == "rows" and (view.source(ref).shape or ())[axis] == 1
        ]
        layouts = [found for found in layouts if not (found[0].kind == "rows" and found[1] in broadcast)]
    first = layouts[0][0]
    if any(layout.kind != "windows" for layout, _ in layouts):
        return ROWS
    if any(
        (la.axis, la.length, la.outer, la.inner) != (first.axis, first.length, first.outer, first.inner)
        for la, _ in layouts
    ):
        return ROWS
    if shape[first.axis] != first.length * first.outer * first.inner:
        return ROWS  # broadcast along the positions
    return first


def axes_of(value: Any, rank: int) -> tuple[int, ...]:
    """An axis argument as non-negative axes; None and the empty list mean all."""
    if value is None or value == []:
        return tuple(range(rank))
    return tuple(a % rank for a in ([value] if isinstance(value, int) else value))


@handles("aten.glu", "aten.cumprod", "aten.logcumsumexp")
def along_one_axis(view: View) -> Rule | str:
    """Local if their axis is not the axis of positions."""
    node = view.node
    axis = node.argument(1, "dim", -1)
    return _along(view, [axis % view.rank])


@handles("aten.layer_norm", "aten.native_layer_norm", "aten.rms_norm")
def layer_norm(view: View) -> Rule | str:
    count = len(view.node.args[1])
    if any(view.layout(ref) != CONSTANT for ref in view.tensors() if ref != view.node.args[0]):
        return "the weights of the normalisation depend on an input"
    return _along(view, list(range(view.rank - count, view.rank)))


@handles("aten.embedding", "aten.one_hot")
def numbered(view: View) -> Rule | str:
    """A row of a table, or of the unit matrix, for each integer: its axis comes last."""
    args = view.node.args
    return looked_up(view, *args[:2]) if view.node.op == "aten.embedding" else looked_up(view, None, args[0])


def looked_up(view: View, table: Any, numbers: Ref) -> Rule | str:
    """The rule for rows of a table (None: of the unit matrix) in the places of integers."""
    if view.layout(table) != CONSTANT:
        return "its table depends on an input"
    if view.source(numbers).dtype in (torch.bool, torch.uint8):
        return "it picks by a mask"
    layout = view.layout(numbers)
    if layout == CONSTANT:
        return "its numbers do not depend on the sequences"
    if not view.node.mutated or layout.kind != "windows" or layout.composite:
        return OnRows(view, widens=False)
    return Local(view, layout, broadcast=False, widens=False)


@handles("aten.prelu", "aten._prelu_kernel")
def prelu(view: View) -> Rule | str:
    if view.layout(view.node.args[1]) != CONSTANT:
        return "the slopes depend on an input"
    layout = view.layout(view.node.args[0])
    if not view.node.mutated or layout.kind != "windows" or layout.axis < 2 or layout.composite:
        return OnRows(view)
    return Local(view, layout, broadcast=False)


@handles(
    "aten.group_norm",
    "aten.instance_norm",
    "aten.scaled_dot_product_attention",
)
def row_by_row(view: View) -> Rule | str:
    """Operations that mix positions but never rows of the batch."""
    node = view.node
    if node.op == "aten.scaled_dot_product_attention":
        if isinstance(found := common_layout(view), str):
            return found
        return Attention(view)
    return OnRows(view)


def _along(view: View, axes: list[int]) -> Rule | str:
    layout = view.layout(view.node.args[0])
    if 0 in axes:
        return "it works along the batch"
    if not view.node.mutated or layout.kind != "windows" or layout.composite or layout.axis in axes:
        return OnRows(view)
    return Local(view, layout, broadcast=False)
