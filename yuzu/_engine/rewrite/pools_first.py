"""Moves maximum pools in front of the functions before them that keep or reverse order, which then work on less.

``max(f(x)) = f(max(x))`` where ``f`` never falls, and ``f(-max(-x))`` where it never rises. A batch norm falls in the
channels whose weight is negative, so with ``s`` the sign of the weight

    conv -> relu -> batch norm -> pool  =  conv -> s * -> pool -> s * -> relu -> batch norm

and the first factor goes into the convolution's kernel. Only values at positions that no maximum picks are left out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from yuzu._engine.graph import Node, Ref, count_readers, map_refs

MAXIMUM_POOLS = {
    "aten.max_pool1d",
    "aten.max_pool2d",
    "aten.max_pool1d_with_indices",
    "aten.max_pool2d_with_indices",
}
NEVER_FALLING = {
    "aten.relu",
    "aten.relu6",
    "aten.hardtanh",
    "aten.sigmoid",
    "aten.tanh",
    "aten.selu",
    "aten.leaky_relu",
    "aten.elu",
}
BATCH_NORMS = {"aten.batch_norm", "aten._native_batch_norm_legit_no_training"}
CONVOLUTIONS = {"aten.conv1d", "aten.conv2d"}


class Sign:
    """1 where the product of batch norms' weights is not negative, -1 elsewhere, to multiply ``(N, C, ...)`` with."""

    def __init__(self, axes: int) -> None:
        self.axes = axes  # after the channels

    def __call__(self, *weights: torch.Tensor) -> torch.Tensor:
        total = weights[0]
        for weight in weights[1:]:
            total = total.sign() * weight.sign()
        ones = torch.ones_like(total)
        return torch.where(total < 0, -ones, ones).reshape(-1, *[1] * self.axes)

    def __str__(self) -> str:
        return f"sign of the weights before {self.axes} axes"


def pools_first(nodes: list[Node], outputs: list[Any]) -> tuple[list[Node], list[Any]]:
    """The nodes with maximum pools as early as they can be, renumbered, and the outputs' new indices."""
    readers = count_readers(nodes, outputs)

    moved: dict[int, list[Node]] = {}  # by pool: what goes behind it
    for node in nodes:
        if node.op in MAXIMUM_POOLS and node.mutated and isinstance(node.args[0], Ref):
            behind = _overtaken(node, nodes, readers)
            if behind:
                moved[node.index] = behind
    late = {n.index for behind in moved.values() for n in behind}

    found: list[Node] = []
    new: dict[int, int] = {}

    def add(node: Node) -> int:
        node.index = len(found)
        found.append(node)
        return node.index

    def copied(node: Node, first: int | None = None, **changes: Any) -> Node:
        """A node that reads the new nodes, and ``first`` in the place of its first argument if that is given."""
        given = node.args if first is None else node.args[1:]
        args, kwargs = (map_refs(a, lambda ref: Ref(new[ref.index])) for a in (given, node.kwargs))
        args = args if first is None else (Ref(first), *args)
        return dataclasses.replace(node, args=args, kwargs=kwargs, **changes)

    def multiplied(value: int, sign: int) -> Node:
        target = torch.ops.aten.mul.Tensor
        return dataclasses.replace(found[value], op="aten.mul", target=target, args=(Ref(value), Ref(sign)), kwargs={})

    for node in nodes:
        if node.index in late:
            continue
        if node.index not in moved:
            new[node.index] = add(copied(node))
            continue
        behind = moved[node.index]
        source = behind[0].args[0].index
        weights = [Ref(new[n.args[1].index]) for n in behind if n.op in BATCH_NORMS and isinstance(n.args[1], Ref)]
        assert node.shape is not None
        last = new[source]
        if weights:
            axes = len(node.shape) - 2
            shape = (node.shape[1], *[1] * axes)
            sign = add(Node(0, "call", "yuzu.sign", Sign(axes), tuple(weights), shape=shape, dtype=node.dtype))
            last = add(dataclasses.replace(multiplied(last, sign), layer=node.layer))
        last = add(copied(node, last))
        if weights:
            last = add(multiplied(last, sign))
        for each in behind:
            last = add(copied(each, last, shape=node.shape))
        new[node.index] = last
    return found, [new[o] if isinstance(o, int) else o for o in outputs]


def _overtaken(pool: Node, nodes: list[Node], readers: list[int]) -> list[Node]:
    """The nodes before ``pool`` that it can go in front of, in their order."""
    spatial = 1 if "1d" in pool.op else 2
    if len(pool.shape or ()) != spatial + 2:
        return []  # without a batch axis, channels would be pooled
    chain: list[Node] = []
    at = nodes[pool.args[0].index]
    while readers[at.index] == 1 and at.mutated and _ordered(at, nodes):
        chain.insert(0, at)
        at = nodes[at.args[0].index]
    while chain and chain[0].op in BATCH_NORMS:
        chain.pop(0)  # right behind a convolution it costs nothing
    norms = [i for i, n in enumerate(chain) if n.op in BATCH_NORMS]
    if norms and not _behind_convolution(chain[0], nodes, readers):
        return chain[norms[-1] + 1 :]  # the factor would be one more pass over all positions
    return chain


def _behind_convolution(node: Node, nodes: list[Node], readers: list[int]) -> bool:
    """Whether a node reads a convolution that nothing else reads, perhaps through batch norms."""
    before = nodes[node.args[0].index]
    while before.op in BATCH_NORMS:
        before = nodes[before.args[0].index]
    return before.op in CONVOLUTIONS and readers[before.index] == 1


def _ordered(node: Node, nodes: list[Node]) -> bool:
    """Whether a node is a function of one tensor, never falling in some channels and never rising in the others."""
    if node.kind != "call" or not node.args or not isinstance(node.args[0], Ref):
        return False
    if nodes[node.args[0].index].dtype != node.dtype:
        return False  # of a mask or whole numbers
    if node.op in BATCH_NORMS:
        others = [nodes[r.index] for r in node.args[1:5] if isinstance(r, Ref)]
        fixed = node.op != "aten.batch_norm" or node.args[5] is False  # not the batch's own statistics
        return fixed and all(n.kind == "weight" and n.dtype == node.dtype for n in others)
    numbers = [a for a in (*node.args[1:], *node.kwargs.values()) if a is not None]
    if not all(isinstance(a, int | float) for a in numbers):
        return False
    # slopes that a user could have made negative
    return node.op in NEVER_FALLING and (node.op == "aten.hardtanh" or all(a >= 0 for a in numbers))


__all__ = ["pools_first"]
