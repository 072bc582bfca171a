"""Takes a linear layer of joined tensors apart: ``W [a, b] = W_a a + W_b b``.

What a mutation does not change (a cell state, control tracks) then costs it nothing, and flattened positions stay
windows, which read only their slice of the weight.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch

from yuzu._engine.graph import Node, Ref, count_readers, map_refs

JOINS = {"aten.cat", "aten.concat"}
VIEWS = {"aten.view", "aten.reshape", "aten.flatten"}


def separate_joined(nodes: list[Node], outputs: list[Any]) -> tuple[list[Node], list[Any]]:
    """The nodes with such layers as sums, renumbered, and the outputs' new indices."""
    readers = count_readers(nodes, outputs)
    terms = {node.index: _terms(node, nodes, readers) for node in nodes}
    dropped = {node.args[0].index for node in nodes if terms[node.index]}

    found: list[Node] = []
    new: dict[int, int] = {}

    def add(node: Node, **changes: Any) -> int:
        found.append(dataclasses.replace(node, index=len(found), **changes))
        return len(found) - 1

    for node in nodes:
        if node.index in dropped:
            continue
        args, kwargs = (map_refs(a, lambda ref: Ref(new[ref.index])) for a in _kept_references(node, dropped))
        if not terms[node.index]:
            new[node.index] = add(node, args=args, kwargs=kwargs)
            continue
        join, weight = nodes[node.args[0].index], nodes[node.args[1].index]
        bias = node.argument(2, "bias")
        total = None
        for parts, columns in terms[node.index]:
            refs = [Ref(new[p]) for p in parts]
            flags = {"mutated": any(nodes[p].mutated for p in parts)}
            if len(refs) == 1:
                x = refs[0].index
            else:
                size = columns[1] - columns[0]
                axis = _axis(node, join)
                assert join.shape is not None
                shape = (*join.shape[:axis], size, *join.shape[axis + 1 :])
                x = add(join, args=(refs, *join.args[1:]), kwargs=join.kwargs, shape=shape, **flags)
            assert weight.shape is not None
            width = columns[1] - columns[0]
            piece = add(weight, columns=columns, shape=(weight.shape[0], width, *weight.shape[2:]))
            own = None if bias is None or total is not None else Ref(new[bias.index])
            rest = {k: v for k, v in kwargs.items() if k != "bias"}
            term = add(node, args=(Ref(x), Ref(piece), own, *args[3:]), kwargs=rest, **flags)
            if total is not None:
                plus = torch.ops.aten.add.Tensor
                mutated = found[total].mutated or flags["mutated"]
                term = add(node, op="aten.add", target=plus, args=(Ref(total), Ref(term)), kwargs={}, mutated=mutated)
            total = term
        assert total is not None
        new[node.index] = total
    return found, [new[o] if isinstance(o, int) else o for o in outputs]


def _kept_references(node: Node, dropped: set[int]) -> tuple[Any, Any]:
    """Arguments without the joins that are gone."""
    return map_refs((node.args, node.kwargs), lambda ref: None if ref.index in dropped else ref)


def _axis(node: Node, join: Node) -> int:
    """The axis of its input that a layer sums over."""
    return len(join.shape or ()) - 1 if node.op == "aten.linear" else 1


def _terms(node: Node, nodes: list[Node], readers: list[int]) -> list[tuple[list[int], tuple[int, int]]]:
    """The neighbouring parts of the join before a layer that stay together, and their columns of the weight; none where
    the layer stays as it is.
    """
    convolution = node.op in ("aten.conv1d", "aten.conv2d") and node.argument(6, "groups", 1) == 1
    if not (convolution or node.op == "aten.linear") or not node.mutated:
        return []
    if not isinstance(node.args[0], Ref) or not isinstance(node.args[1], Ref):
        return []
    join, weight = nodes[node.args[0].index], nodes[node.args[1].index]
    if join.op not in JOINS or readers[join.index] != 1 or not join.batched or weight.kind != "weight":
        return []
    rank = len(join.shape or ())
    if join.argument(1, "dim", 0) % max(rank, 1) != _axis(node, join) or (convolution and rank < 3):
        return []
    parts = [nodes[ref.index] for ref in join.args[0]]
    sizes = [(p.shape or ())[_axis(node, join)] if len(p.shape or ()) == rank else None for p in parts]
    same = all(p.dtype == node.dtype and p.batched for p in parts)
    if not same or any(s is None or s < 1 for s in sizes):
        return []
    flattened = [not convolution and p.mutated and p.op in VIEWS for p in parts]
    if all(p.mutated for p in parts) and not any(flattened):
        return []
    bounds = [0, *itertools.accumulate(int(s or 0) for s in sizes)]
    found = []
    for _, places in itertools.groupby(range(len(parts)), lambda i: (parts[i].mutated, i if flattened[i] else -1)):
        run = list(places)
        found.append(([parts[i].index for i in run], (bounds[run[0]], bounds[run[-1] + 1])))
    return found if len(found) > 1 else []


__all__ = ["separate_joined"]
