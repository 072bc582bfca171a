"""Recognises rows that are laid out anew by the strides of their memory, each for itself.

``as_strided`` with sliding windows becomes ``unfold``. The shift of scores by distance, as relative positions of
Transformer-XL, Enformer and Borzoi have it, is the same kind of layout. ``(a, b)`` is padded by a column, read as
``(b + 1, a)``, loses a row, and is read as ``(a, b)`` again. So row ``i`` begins one element earlier than the row
before it.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from yuzu._engine import ops
from yuzu._engine.graph import Node, Ref

aten = torch.ops.aten


class RowStrides:
    """A node's target: each row of a batch, read by ``strides`` of its memory from ``offset`` on."""

    def __init__(self, sizes: tuple[int, ...], strides: tuple[int, ...], offset: int) -> None:
        self.sizes, self.strides, self.offset = sizes, strides, offset

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.contiguous()
        whole = (rows.stride(0), *self.strides)
        return rows.as_strided((len(rows), *self.sizes), whole, rows.storage_offset() + self.offset)

    def __str__(self) -> str:
        return f"rows by strides {self.strides}, sizes {self.sizes}, offset {self.offset}"


def _as_strided(x: torch.Tensor, size: Any, stride: Any, offset: int | None = None) -> torch.Tensor:
    return x.contiguous().as_strided(size, stride, offset or 0)


def name_strides(node: Node, nodes: list[Node]) -> None:
    """Name ``as_strided`` by what it does to each row, where it keeps them apart."""
    source = nodes[node.args[0].index]
    size, stride, *offsets = node.args[1:]
    offset = offsets[0] if offsets and offsets[0] else 0
    node.target = _as_strided
    row = _row(source)
    if row is None or node.shape is None or node.shape[0] is not None or stride[0] != math.prod(row):
        return
    sizes, strides = list(size[1:]), list(stride[1:])
    if not all(isinstance(s, int) and s > 0 for s in sizes) or not all(isinstance(s, int) for s in (*strides, offset)):
        return
    found = None if offset else window_of_strides(row, sizes, strides)
    if found is not None:
        node.op, node.target, node.args, node.kwargs = "aten.unfold", aten.unfold.default, (node.args[0], *found), {}
    elif offset + sum((s - 1) * step for s, step in zip(sizes, strides, strict=True)) < math.prod(row):
        _read_by(node, node.args[0], RowStrides(tuple(sizes), tuple(strides), offset))


def name_relative_shift(node: Node, nodes: list[Node]) -> None:
    """Name the last of the operations that shift scores by distance."""
    last = nodes[node.args[0].index] if node.op == "aten.slice" else node
    again = _first(last, nodes) if ops.of(last.op).reshapes else None
    read = _first(again, nodes) if again is not None and again.op == "aten.slice" else None
    padded = _first(read, nodes) if read is not None and ops.of(read.op).reshapes else None
    source = _before_padding(padded, nodes) if padded is not None else None
    if again is None or read is None or source is None or source.shape is None or node.shape is None:
        return
    row = _row(source)
    if row is None or len(row) < 2 or last.shape != source.shape or read.shape is None or again.shape is None:
        return
    *heads, a, b = row
    rank, columns = len(source.shape), node.shape[-1]
    turned = read.shape == (*source.shape[:-2], b + 1, a) and again.shape == (*source.shape[:-2], b, a)
    first = again.argument(1, "dim", 0) % rank == rank - 2 and again.argument(2, "start") == 1
    left = node is last or (node.argument(1, "dim", 0) % rank == rank - 1 and not node.argument(2, "start"))
    plain = again.argument(4, "step", 1) == 1 and (node is last or node.argument(4, "step", 1) == 1)
    if not (turned and first and left and plain) or not isinstance(columns, int) or not 0 < columns <= b - a + 1:
        return
    beside = [math.prod(row[i + 1 :]) for i in range(len(heads))]
    sizes, strides = (*heads, a, columns), (*beside, b - 1, 1)
    _read_by(node, Ref(source.index), RowStrides(tuple(sizes), tuple(strides), a - 1))


def _before_padding(node: Node, nodes: list[Node]) -> Node | None:
    """The tensor that a node puts one column of zeros, or of anything else, in front of; None if it is no such node."""
    if node.op in ("aten.pad", "aten.constant_pad_nd"):
        alone = list(node.args[1][:2]) == [1, 0] and not any(node.args[1][2:])
        return _first(node, nodes) if alone else None
    if ops.of(node.op).joins and len(node.args[0]) == 2 and node.shape:
        column, rest = (nodes[ref.index] for ref in node.args[0])
        axis = node.argument(1, "dim", 0) % len(node.shape)
        return rest if axis == len(node.shape) - 1 and column.shape and column.shape[-1] == 1 else None
    return None


def _first(node: Node, nodes: list[Node]) -> Node | None:
    return nodes[node.args[0].index] if node.args and isinstance(node.args[0], Ref) else None


def _row(node: Node) -> list[int] | None:
    """The shape of one row; None if the batch is not in front, or a size is not known."""
    shape = node.shape or ()
    if len(shape) < 2 or shape[0] is not None or any(s is None or s < 1 for s in shape[1:]):
        return None
    return [int(s or 0) for s in shape[1:]]


def _read_by(node: Node, source: Ref, target: RowStrides) -> None:
    node.op, node.target, node.args, node.kwargs = "yuzu.row_strides", target, (source,), {}


def window_of_strides(sizes: list[int], taken: list[int], strides: list[int]) -> tuple[int, int, int] | None:
    """The axis (from 1 on), size and step of the windows that ``as_strided`` takes; None if it takes others."""
    own = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    if len(taken) != len(sizes) + 1 or not all(isinstance(s, int) for s in (*taken, *strides)):
        return None
    for axis, stride in enumerate(own):
        step = strides[axis] // stride
        alike = [*own[:axis], step * stride, *own[axis + 1 :], stride] == strides
        beside = [*taken[:axis], *taken[axis + 1 : -1]] == [*sizes[:axis], *sizes[axis + 1 :]]
        if alike and beside and step > 0 and taken[axis] == (sizes[axis] - taken[-1]) // step + 1:
            return axis + 1, taken[-1], step
    return None


__all__ = ["RowStrides", "name_relative_shift", "name_strides", "window_of_strides"]
