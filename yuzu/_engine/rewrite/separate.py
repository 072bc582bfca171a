"""Takes a linear layer of joined tensors apart: ``W [a, b] = W_a a + W_b b``.

A part that no mutation changes, such as a cell state, is then computed once. Flattened positions stay windows, which
read only their slice of the weight.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch

from yuzu._engine import ops
from yuzu._engine.graph import Node, Ref, count_readers, map_refs

Term = tuple[list[int], tuple[int, int]]  # parts of a join, and their columns of the weight


def separate_joined(nodes: list[Node], outputs: list[Any]) -> tuple[list[Node], list[Any]]:
    """The nodes with such layers as sums, renumbered, and the outputs' new indices."""
    readers = count_readers(nodes, outputs)
    terms = {node.index: _terms(node, nodes, readers) for node in nodes}
    dropped = {node.args[0].index for node in nodes if terms[node.index]}
    new = _NewNodes(nodes)
    for node in nodes:
        if node.index in dropped:
            continue
        args, kwargs = (map_refs(a, lambda ref: Ref(new.place[ref.index])) for a in _kept_references(node, dropped))
        if terms[node.index]:
            new.place[node.index] = new.add_sum(node, terms[node.index], args, kwargs)
        else:
            new.place[node.index] = new.add(node, args=args, kwargs=kwargs)
    return new.found, [new.place[o] if isinstance(o, int) else o for o in outputs]


class _NewNodes:
    """The new nodes, ``found``, and the ``place`` of each old one among them."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.found: list[Node] = []
        self.place: dict[int, int] = {}

    def add(self, node: Node, **changes: Any) -> int:
        self.found.append(dataclasses.replace(node, index=len(self.found), **changes))
        return len(self.found) - 1

    def add_sum(self, node: Node, terms: list[Term], args: Any, kwargs: Any) -> int:
        """Add a layer as a sum over the parts of the join before it; the index of the sum."""
        join, weight = self.nodes[node.args[0].index], self.nodes[node.args[1].index]
        assert weight.shape is not None
        bias = node.argument(2, "bias")
        rest = {k: v for k, v in kwargs.items() if k != "bias"}
        total = None
        for parts, columns in terms:
            mutated = any(self.nodes[p].mutated for p in parts)
            x = self._joined(node, join, (parts, columns), mutated)
            shape = (weight.shape[0], columns[1] - columns[0], *weight.shape[2:])
            piece = self.add(weight, columns=columns, shape=shape)
            own = None if bias is None or total is not None else Ref(self.place[bias.index])
            term = self.add(node, args=(Ref(x), Ref(piece), own, *args[3:]), kwargs=rest, mutated=mutated)
            if total is not None:
                target, both = torch.ops.aten.add.Tensor, (Ref(total), Ref(term))
                mutated = self.found[total].mutated or mutated
                term = self.add(node, op="aten.add", target=target, args=both, kwargs={}, mutated=mutated)
            total = term
        assert total is not None
        return total

    def _joined(self, node: Node, join: Node, term: Term, mutated: bool) -> int:
        """The index of the parts of a term, joined if they are several."""
        parts, (first, stop) = term
        refs = [Ref(self.place[p]) for p in parts]
        if len(refs) == 1:
            return refs[0].index
        axis = _axis(node, join)
        assert join.shape is not None
        shape = (*join.shape[:axis], stop - first, *join.shape[axis + 1 :])
        return self.add(join, args=(refs, *join.args[1:]), kwargs=join.kwargs, shape=shape, mutated=mutated)


def _kept_references(node: Node, dropped: set[int]) -> tuple[Any, Any]:
    """A node's arguments, without the joins that are gone."""
    return map_refs((node.args, node.kwargs), lambda ref: None if ref.index in dropped else ref)


def _axis(node: Node, join: Node) -> int:
    """The axis of its input that a layer sums over."""
    return len(join.shape or ()) - 1 if node.op == "aten.linear" else 1


def _terms(node: Node, nodes: list[Node], readers: list[int]) -> list[Term]:
    """The terms of a layer after a join: neighbouring parts that stay together, with their columns of the weight. None
    where the layer stays as it is.
    """
    convolution = ops.of(node.op).convolves and node.argument(6, "groups", 1) == 1
    if not (convolution or node.op == "aten.linear") or not node.mutated:
        return []
    if not isinstance(node.args[0], Ref) or not isinstance(node.args[1], Ref):
        return []
    join, weight = nodes[node.args[0].index], nodes[node.args[1].index]
    if not ops.of(join.op).joins or readers[join.index] != 1 or not join.batched or weight.kind != "weight":
        return []
    rank = len(join.shape or ())
    if join.argument(1, "dim", 0) % max(rank, 1) != _axis(node, join) or (convolution and rank < 3):
        return []
    parts = [nodes[ref.index] for ref in join.args[0]]
    sizes = [(p.shape or ())[_axis(node, join)] if len(p.shape or ()) == rank else None for p in parts]
    same = all(p.dtype == node.dtype and p.batched for p in parts)
    if not same or any(s is None or s < 1 for s in sizes):
        return []
    flattened = [not convolution and p.mutated and ops.of(p.op).flattens for p in parts]
    if all(p.mutated for p in parts) and not any(flattened):
        return []
    bounds = [0, *itertools.accumulate(int(s or 0) for s in sizes)]
    found = []
    for _, places in itertools.groupby(range(len(parts)), lambda i: (parts[i].mutated, i if flattened[i] else -1)):
        run = list(places)
        found.append(([parts[i].index for i in run], (bounds[run[0]], bounds[run[-1] + 1])))
    return found if len(found) > 1 else []


__all__ = ["separate_joined"]
