"""Selects outputs: only the chosen rows of the last layer's weight are used."""

from __future__ import annotations

import dataclasses

import torch

from yuzu._engine.graph import Graph, Node, Ref

LAST_LAYERS = {"aten.linear", "aten.conv1d"}


def select_outputs(graph: Graph, chosen: tuple[int, ...]) -> Graph | None:
    """The graph of a model with one output tensor ``(N, T, ...)``, with only the rows ``chosen`` of the axis ``T``.

    Nodes keep their places. None where another operation makes that axis than a linear layer or a convolution with
    weights of its own, or a sum of these, followed by functions of elements and new axes after it.
    """
    if len(graph.outputs) != 1 or not isinstance(graph.outputs[0], int):
        return None
    nodes = list(graph.nodes)
    readers = [len(c) for c in graph.consumers]
    readers[graph.outputs[0]] += 1
    waiting = [graph.outputs[0]]
    while waiting:
        at = nodes[waiting.pop()]
        if readers[at.index] != 1 or at.shape is None:
            return None
        nodes[at.index] = dataclasses.replace(at, shape=(at.shape[0], len(chosen), *at.shape[2:]))
        if at.op in LAST_LAYERS and _makes_rows(at):
            weights = [ref for ref in (at.args[1], at.argument(2, "bias")) if ref is not None]
        elif _adds(at, nodes):
            waiting.extend(at.inputs)
            continue
        elif _keeps_rows(at):
            waiting.append(at.args[0].index)
            continue
        else:
            return None
        for ref in weights:
            weight = nodes[ref.index]
            if weight.kind != "weight" or readers[weight.index] != 1 or weight.shape is None or weight.rows is not None:
                return None
            nodes[weight.index] = dataclasses.replace(weight, rows=chosen, shape=(len(chosen), *weight.shape[1:]))
    return Graph(nodes, graph.outputs, graph.rebuild, graph.container, graph.route)


def _makes_rows(node: Node) -> bool:
    """Return whether each row of the weight makes one entry of axis 1."""
    if node.op == "aten.linear":
        return len(node.shape or ()) == 2
    return node.argument(6, "groups", 1) == 1


def _adds(node: Node, nodes: list[Node]) -> bool:
    """Return whether a node is the sum of two tensors of its own shape."""
    sides = node.inputs
    return node.op == "aten.add" and len(sides) == 2 and all(nodes[i].shape == node.shape for i in sides)


def _keeps_rows(node: Node) -> bool:
    """Return whether a node is a function of one tensor that treats every row of axis 1 alike."""
    if node.kind != "call" or not node.args or not isinstance(node.args[0], Ref) or len(node.inputs) != 1:
        return False
    if node.op == "aten.unsqueeze":
        rank = len(node.shape or ())
        return node.args[1] % rank > 1
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


__all__ = ["select_outputs"]
