"""The local part of a model: a mutation changes its values on a window only. The rest mixes all positions."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from yuzu._engine.graph import Graph, Node, Ref, map_refs
from yuzu._engine.plan.plan import Plan


@dataclass(frozen=True)
class LocalPart:
    """The local part of a model as a graph of its own.

    Attributes
    ----------
    graph: Graph
        Computes the values at the border, which are its outputs, and nothing else.
    border: list of int
        The nodes of those values in the whole graph, in the order of ``graph.outputs``. They change on windows only,
        and are returned, or read by a node that changes everywhere.
    kept: list of int
        For each node of ``graph``, its place in the whole graph.
    whole: bool
        No part of the model follows the border.
    """

    graph: Graph
    border: list[int]
    kept: list[int]
    whole: bool


def local_part(plan: Plan) -> LocalPart:
    """Cut a plan's graph where its windows end."""
    nodes = plan.graph.nodes
    local = [False] * len(nodes)
    for node in nodes:
        if not node.mutated or plan.layouts[node.index].kind != "windows":
            continue
        if node.dtype is not None and node.dtype.is_complex:
            continue  # gradients are taken at real numbers
        mutated = [i for i in node.inputs if nodes[i].mutated]
        local[node.index] = node.kind == "sequence" or all(local[i] for i in mutated)
    outputs = set(plan.graph.output_nodes)
    border = []
    for node in nodes:
        read = node.index in outputs or any(nodes[c].mutated and not local[c] for c in plan.graph.consumers[node.index])
        if local[node.index] and node.floating and read:  # a mask has no derivative
            border.append(node.index)
    needed = set(border)
    for node in reversed(nodes):
        if node.index in needed:
            needed.update(node.inputs)
    kept = sorted(needed)
    mutated_outputs = {o for o in outputs if nodes[o].mutated}
    return LocalPart(_only(plan.graph, kept, border), border, kept, mutated_outputs == set(border))


def _only(graph: Graph, kept: list[int], wanted: list[int]) -> Graph:
    """The nodes ``kept``, renumbered, with the outputs ``wanted``."""
    places = {old: new for new, old in enumerate(kept)}

    def moved(node: Node) -> Node:
        args, kwargs = (map_refs(a, lambda ref: Ref(places[ref.index])) for a in (node.args, node.kwargs))
        return dataclasses.replace(node, index=places[node.index], args=args, kwargs=kwargs)

    nodes = [moved(graph.nodes[i]) for i in kept]
    return Graph(nodes, [places[i] for i in wanted], list, f"list of {len(wanted)}", graph.route)
