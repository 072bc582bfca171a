"""Attention pooling with its division last: ``sum(softmax(x) v)`` becomes ``sum(exp(x - max) v) / sum(exp(x - max))``.

A softmax over positions changes all weights when one letter changes. Its exponentials change on a window only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from yuzu._engine.graph import Graph, Node, Ref

MOVES = ("aten.unsqueeze", "aten.transpose", "aten.permute", "aten.squeeze")


class ShiftedExp:
    """A node's target: ``exp(x - max(x))`` along an axis."""

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.exp(x - x.amax(self.axis, keepdim=True))

    def __str__(self) -> str:
        return f"exponentials less the maximum along {self.axis}"


@dataclass(frozen=True)
class Pooled:
    """A softmax whose weights are used once, in a sum over its axis.

    Attributes
    ----------
    softmax: int
    axis: int
        Of the softmax.
    moves: tuple of int
        The nodes that move its weights to where they are multiplied.
    product: int
        The node that multiplies them; also the sum, where one node does both.
    total: int
        The node that sums.
    """

    softmax: int
    axis: int
    moves: tuple[int, ...]
    product: int
    total: int


def find_pooled(graph: Graph, softmax: Node) -> Pooled | None:
    """Follow the weights of a softmax to the sum over its axis; None if they are used in another way."""
    rank = len(softmax.shape or ())
    axis, at, moves = softmax.argument(1, "dim", -1) % rank, softmax, list[int]()
    start = axis
    while True:
        readers = graph.consumers[at.index]
        if len(readers) != 1 or at.index in graph.output_nodes:
            return None
        reader = graph.nodes[readers[0]]
        if reader.inputs.count(at.index) != 1:
            return None
        if reader.op in MOVES:
            moved = axis_after(reader, axis, len(at.shape or ()))
            if moved is None:
                return None
            axis, at = moved, reader
            moves.append(reader.index)
        elif reader.op == "aten.mul":
            total = _sum_after(graph, reader, axis, at)
            return None if total is None else Pooled(softmax.index, start, tuple(moves), reader.index, total)
        elif reader.op in ("aten.matmul", "aten.bmm", "aten.einsum") and _sums(reader, at, axis):
            return Pooled(softmax.index, start, tuple(moves), reader.index, reader.index)
        else:
            return None


def axis_after(move: Node, axis: int, rank: int) -> int | None:
    """The place of an axis after a move of axes; None if the axis is lost."""
    if move.op == "aten.unsqueeze":
        return axis + (move.args[1] % (rank + 1) <= axis)
    if move.op == "aten.squeeze":
        given = move.argument(1, "dim")
        gone = {a % rank for a in ([given] if isinstance(given, int) else given or ())}
        return None if axis in gone or not gone else axis - sum(a < axis for a in gone)
    order = list(range(rank))
    if move.op == "aten.transpose":
        a, b = (place % rank for place in move.args[1:3])
        order[a], order[b] = order[b], order[a]
    else:
        order = [place % rank for place in move.args[1]]
    return order.index(axis)


def _sum_after(graph: Graph, product: Node, axis: int, weights: Node) -> int | None:
    """The sum over ``axis``, counted from the first of the weights, that alone reads a product."""
    readers = graph.consumers[product.index]
    other = [graph.nodes[i] for i in product.inputs if i != weights.index]
    if len(readers) != 1 or product.index in graph.output_nodes or len(other) != 1 or len(product.args) != 2:
        return None
    total, rank = graph.nodes[readers[0]], len(product.shape or ())
    if (
        total.op not in ("aten.sum", "aten.mean")
        or total.kwargs
        or not isinstance(total.argument(1, "dim"), list | tuple)
    ):
        return None
    if len(weights.shape or ()) != rank or total.inputs.count(product.index) != 1:
        return None
    axes = {a % rank for a in total.argument(1, "dim")}
    beside = [(weights.shape or ())[a] for a in axes - {axis}]  # each has a total of its own
    return total.index if axis in axes and all(size == 1 for size in beside) else None


def _sums(product: Node, weights: Node, axis: int) -> bool:
    """Tell whether a product of matrices sums over the axis of the weights."""
    rank = len(weights.shape or ())
    if product.op == "aten.einsum":
        labels, result = product.args[0].replace(" ", "").split("->")
        if "." in labels or len(product.args[1]) != 2:
            return False
        own = labels.split(",")[[ref.index for ref in product.args[1]].index(weights.index)]
        kept = [letter for letter in own if letter != own[axis]]
        return own[axis] not in result and all(k in result for k in kept) and kept == [r for r in result if r in kept]
    left = product.args[0] == Ref(weights.index)
    return rank == len(product.shape or ()) and axis == (rank - 1 if left else rank - 2)


def shape_beside(product: Node, weights: Node, axis: int) -> list[int] | None:
    """The shape in which the weights' total is broadcast against an ``einsum``; None for other products."""
    if product.op != "aten.einsum":
        return None
    labels, result = product.args[0].replace(" ", "").split("->")
    own = labels.split(",")[[ref.index for ref in product.args[1]].index(weights.index)]
    sizes = dict(zip(own, weights.shape or (), strict=True))
    del sizes[own[axis]]
    return [(-1 if sizes[r] is None else int(sizes[r] or 0)) if r in sizes else 1 for r in result]


__all__ = ["Pooled", "ShiftedExp", "axis_after", "find_pooled", "shape_beside"]
