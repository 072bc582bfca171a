"""Puts the batch in front of a stack of members: ``torch.stack(y).mean(0)`` becomes ``torch.stack(y, 1).mean(1)``.

The axes of members and of the batch change places from the stack on, through functions of single numbers and operations
along other axes or the members (a softmax, a sort), as far as those that leave nothing of the members' axis or move it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container
from typing import Any

import torch

from yuzu._engine.graph import Node, OfSlice, Ref

# along the axes that an argument of these names gives
ALONG = {
    f"aten.{name}"
    for name in (
        "sum mean amax amin max min prod std var logsumexp any all argmax argmin median nanmedian mode kthvalue "
        "quantile nanquantile nansum count_nonzero norm linalg_vector_norm sort topk cummax cummin cumsum cumprod "
        "logcumsumexp softmax _softmax log_softmax _log_softmax select slice flip"
    ).split()
}
NAMES = ("dim", "dims")
MOVES = {"aten.permute", "aten.transpose"}
TURNED = {0: 1, 1: 0}


def stacks_behind_the_batch(nodes: list[Node], outputs: list[Any]) -> tuple[list[Node], list[Any]]:
    """The nodes with such stacks behind the batch, where all that reads them allows it."""
    nodes = [dataclasses.replace(node) for node in nodes]
    for node in nodes:
        if node.op == "aten.stack" and node.shape and node.argument(1, "dim", 0) == 0:
            for turned in _behind_the_batch(node, nodes, outputs):
                nodes[turned.index] = turned
    return nodes, outputs


def _behind_the_batch(stack: Node, nodes: list[Node], outputs: list[Any]) -> list[Node]:
    """The nodes that change; none where something reads the stack that cannot."""
    if stack.shape is None or stack.shape[1:2] not in ((None,), (-1,)) or stack.index in outputs:
        return []
    first = dataclasses.replace(stack, args=(stack.args[0], 1), kwargs={}, shape=_swapped(stack.shape))
    changed, inside = [first], {stack.index}
    for reader in nodes[stack.index + 1 :]:
        if inside.isdisjoint(reader.inputs):
            continue
        turned = _turned(reader, nodes, inside)
        if turned is None:
            return []
        changed.append(turned)
        if turned.shape != reader.shape:
            if reader.index in outputs:
                return []
            inside.add(reader.index)
    return changed


def _swapped(shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
    return shape[1], shape[0], *shape[2:]


def _turned(reader: Node, nodes: list[Node], inside: Container[int]) -> Node | None:
    """The node as it reads tensors with the batch in front; None where that is not known. Its shape stays if its result
    has the batch in front, either way.
    """
    if reader.shape is None:
        return None
    rank = len(nodes[reader.inputs[0]].shape or ())
    tensors = [nodes[i] for i in dict.fromkeys(reader.inputs) if nodes[i].shape is not None]
    if reader.op in MOVES and len(reader.inputs) == 1:
        order = list(range(rank))
        if reader.op == "aten.permute":
            order = [axis % rank for axis in reader.args[1]]
        else:
            a, b = reader.args[1] % rank, reader.args[2] % rank
            order[a], order[b] = order[b], order[a]
        if order[0] != 1:
            return None
        order = [TURNED.get(axis, axis) for axis in order]
        target = torch.ops.aten.permute.default
        return dataclasses.replace(reader, op="aten.permute", target=target, args=(reader.args[0], order), kwargs={})
    if isinstance(reader.target, OfSlice) and reader.target.axis != 1:
        cut = reader.target
        target = OfSlice(cut.target, TURNED.get(cut.axis, cut.axis), cut.start, cut.stop)
        return _along(dataclasses.replace(reader, target=target), rank)
    if reader.op in ALONG and len(tensors) == 1:
        return _along(reader, rank)
    if torch.Tag.pointwise in getattr(reader.target, "tags", ()) or reader.op == "aten.where":
        alike = all(t.index in inside or t.shape == () for t in tensors) and len(reader.shape) == rank
        ranks = {len(t.shape or ()) for t in tensors if t.index in inside}
        return dataclasses.replace(reader, shape=_swapped(reader.shape)) if alike and ranks == {rank} else None
    return None


def _along(reader: Node, rank: int) -> Node | None:
    name = next((n for n in NAMES if reader.named(n) is not None), None)
    given = None if name is None else reader.named(name)
    if name is None or reader.shape is None or not isinstance(reader.args[0], Ref):
        return None
    axes = [axis % rank for axis in ([given] if isinstance(given, int) else given)]
    if not axes or 1 in axes:
        return None  # all axes, or the batch's
    axes = [TURNED.get(axis, axis) for axis in axes]
    turned = reader.with_named(name, axes[0] if isinstance(given, int) else axes)
    gone = 1 in axes and len(reader.shape) < rank
    return turned if gone else dataclasses.replace(turned, shape=_swapped(reader.shape))


__all__ = ["stacks_behind_the_batch"]
