"""Recognises an index that each row of a batch has for itself: ``x[torch.arange(len(x)), :, place]``.

The numbers of the rows depend on the size of the batch, but the values that are picked do not. The operation becomes
one that makes the numbers itself, for the batch that it is given.
"""

from __future__ import annotations

from typing import Any

import torch

from yuzu._engine import ops
from yuzu._engine.graph import Node, Ref

INTEGERS = (torch.int64, torch.int32)


class PickInRows:
    """A node's target: ``x[rows, ...]`` with more indices on ``axes``, and the rows' numbers with ``rank`` axes."""

    def __init__(self, axes: tuple[int, ...], rank: int) -> None:
        self.axes, self.rank = axes, rank

    def __call__(self, x: torch.Tensor, *indices: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(x.shape[0], device=x.device)
        index: list[Any] = [slice(None)] * x.dim()
        index[0] = rows.view(-1, *[1] * (self.rank - 1))
        for axis, given in zip(self.axes, indices, strict=True):
            index[axis] = given
        return x[tuple(index)]

    def __str__(self) -> str:
        return f"index of rows on axes {self.axes}, rank {self.rank}"


def find_row_indices(nodes: list[Node]) -> None:
    """Let the nodes that pick by numbers of rows make these themselves."""
    for node in nodes:
        if node.op != "aten.index" or not node.shape or node.shape[0] is not None or node.args[1][0] is None:
            continue
        given = [(axis, ref) for axis, ref in enumerate(node.args[1]) if ref is not None and axis > 0]
        rows = nodes[node.args[1][0].index]
        source, rank = nodes[node.args[0].index], len(rows.shape or ())
        if not given or (source.shape or (1,))[0] is not None or not _numbers_rows(rows, nodes):
            continue
        if all(_beside_rows(nodes[ref.index], rank) for _, ref in given):
            node.op, node.target = "yuzu.index_of_rows", PickInRows(tuple(axis for axis, _ in given), rank)
            node.args, node.kwargs = (node.args[0], *(ref for _, ref in given)), {}


def _keeps_numbers(node: Node) -> bool:
    """Return whether a node gives its numbers another shape or dtype."""
    facts = ops.of(node.op)
    return facts.reshapes or (facts.casts and node.op != "aten.type_as") or node.op == "aten.unsqueeze"


def _beside_rows(index: Node, rank: int) -> bool:
    """Return whether an index has its own numbers for each row, or the same for all."""
    shape = index.shape or ()
    own = len(shape) == rank and shape[0] in (None, 1)
    return index.dtype in INTEGERS and (own or len(shape) < rank) and -1 not in shape


def _numbers_rows(node: Node, nodes: list[Node]) -> bool:
    """Return whether a node is 0, 1, 2 ... for the rows of the batch, with axes of one element after that."""
    while _keeps_numbers(node) and node.shape and node.shape[0] is None and all(s == 1 for s in node.shape[1:]):
        node = nodes[node.args[0].index]
    if node.op != "aten.arange" or node.dtype not in INTEGERS:
        return False
    end = node.named("end")
    size = nodes[end.index] if isinstance(end, Ref) else node
    if size.op != "aten.sym_size" or size.argument(1, "dim") != 0 or node.named("start") not in (None, 0):
        return False
    return node.named("step") in (None, 1) and (nodes[size.args[0].index].shape or (1,))[0] is None


__all__ = ["PickInRows", "find_row_indices"]
