"""Moves maximum pools in front of the monotone functions before them, which then work on fewer elements.

``max(f(x)) = f(max(x))`` where ``f`` never falls, and ``f(-max(-x))`` where it never rises. A batch norm falls in the
channels whose weight is negative, so with ``s`` the sign of the weight

    conv -> relu -> batch norm -> pool  =  conv -> s * -> pool -> s * -> relu -> batch norm

and the first factor goes into the convolution's weight. Only values at positions that no maximum picks are left out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from yuzu._engine import ops
from yuzu._engine.graph import Node, Ref, count_readers, map_refs


class Sign:
    """A factor for ``(N, C, ...)``: -1 where the product of batch norms' weights is negative, 1 elsewhere."""

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
    overtaken: dict[int, list[Node]] = {}  # by pool: the nodes that come after it from now on
    for node in nodes:
        if ops.of(node.op).maximum_pool and node.mutated and isinstance(node.args[0], Ref):
            chain = _overtaken(node, nodes, readers)
            if chain:
                overtaken[node.index] = chain
    late = {n.index for chain in overtaken.values() for n in chain}
    new = _NewNodes()
    for node in nodes:
        if node.index in overtaken:
            new.place[node.index] = new.add_before(node, overtaken[node.index])
        elif node.index not in late:
            new.place[node.index] = new.add(new.copied(node))
    return new.found, [new.place[o] if isinstance(o, int) else o for o in outputs]


class _NewNodes:
    """The new nodes, ``found``, and the ``place`` of each old one among them."""

    def __init__(self) -> None:
        self.found: list[Node] = []
        self.place: dict[int, int] = {}

    def add(self, node: Node) -> int:
        node.index = len(self.found)
        self.found.append(node)
        return node.index

    def copied(self, node: Node, first: int | None = None, **changes: Any) -> Node:
        """A node that reads the new nodes, and ``first`` instead of its first argument if that is given."""
        given = node.args if first is None else node.args[1:]
        args, kwargs = (map_refs(a, lambda ref: Ref(self.place[ref.index])) for a in (given, node.kwargs))
        args = args if first is None else (Ref(first), *args)
        return dataclasses.replace(node, args=args, kwargs=kwargs, **changes)

    def multiplied(self, value: int, sign: int) -> Node:
        args, target = (Ref(value), Ref(sign)), torch.ops.aten.mul.Tensor
        return dataclasses.replace(self.found[value], op="aten.mul", target=target, args=args, kwargs={})

    def add_before(self, pool: Node, chain: list[Node]) -> int:
        """Add a pool, and after it the nodes that were before it; the index of the last."""
        norms = [n for n in chain if ops.of(n.op).batch_norm]
        weights = [Ref(self.place[n.args[1].index]) for n in norms if isinstance(n.args[1], Ref)]
        assert pool.shape is not None
        last = self.place[chain[0].args[0].index]
        if weights:
            axes = len(pool.shape) - 2
            shape = (pool.shape[1], *[1] * axes)
            sign = self.add(Node(0, "call", "yuzu.sign", Sign(axes), tuple(weights), shape=shape, dtype=pool.dtype))
            last = self.add(dataclasses.replace(self.multiplied(last, sign), layer=pool.layer))
        last = self.add(self.copied(pool, last))
        if weights:
            last = self.add(self.multiplied(last, sign))
        for node in chain:
            last = self.add(self.copied(node, last, shape=pool.shape))
        return last


def _overtaken(pool: Node, nodes: list[Node], readers: list[int]) -> list[Node]:
    """The nodes before a pool that it can overtake, in their order."""
    spatial = 1 if "1d" in pool.op else 2
    if len(pool.shape or ()) != spatial + 2:
        return []  # without a batch axis, channels would be pooled
    chain: list[Node] = []
    at = nodes[pool.args[0].index]
    while readers[at.index] == 1 and at.mutated and _ordered(at, nodes):
        chain.insert(0, at)
        at = nodes[at.args[0].index]
    while chain and ops.of(chain[0].op).batch_norm:
        chain.pop(0)  # right after a convolution it costs nothing
    norms = [i for i, n in enumerate(chain) if ops.of(n.op).batch_norm]
    if norms and not _after_convolution(chain[0], nodes, readers):
        return chain[norms[-1] + 1 :]  # the factor would be one more pass over all positions
    return chain


def _after_convolution(node: Node, nodes: list[Node], readers: list[int]) -> bool:
    """Return whether a node reads a convolution that nothing else reads, perhaps through batch norms."""
    before = nodes[node.args[0].index]
    while ops.of(before.op).batch_norm:
        before = nodes[before.args[0].index]
    return ops.of(before.op).convolves and readers[before.index] == 1


def _ordered(node: Node, nodes: list[Node]) -> bool:
    """Return whether a node is a function of one tensor that is monotone in each channel."""
    if node.kind != "call" or not node.args or not isinstance(node.args[0], Ref):
        return False
    if nodes[node.args[0].index].dtype != node.dtype:
        return False  # a mask, or integers
    facts = ops.of(node.op)
    if facts.batch_norm:
        others = [nodes[r.index] for r in node.args[1:5] if isinstance(r, Ref)]
        fixed = facts.training is None or node.args[facts.training] is False  # not the batch's own statistics
        return fixed and all(n.kind == "weight" and n.dtype == node.dtype for n in others)
    numbers = [a for a in (*node.args[1:], *node.kwargs.values()) if a is not None]
    if not all(isinstance(a, int | float) for a in numbers):
        return False
    # slopes that a user could have made negative
    return facts.monotone and (node.op == "aten.hardtanh" or all(a >= 0 for a in numbers))


__all__ = ["pools_first"]
