"""The rules of a graph's nodes, and the readers of their results. All later decisions of a plan follow from these."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from yuzu._engine.graph import Graph
from yuzu._engine.handlers.contract import Rule
from yuzu._engine.layout import Layout


@dataclass(frozen=True)
class Flow:
    """A rule, or none, for every node that a mutation changes.

    Attributes
    ----------
    graph: Graph
    layouts: sequence of Layout
    rules: sequence of Rule or None
        None for a node that runs naively, and for one that no mutation reaches.
    reads: sequence of list of int
        The nodes that each node reads when it runs.
    consumers: sequence of list of int
        The nodes that read each node then, in order.
    readers: sequence of int
        The number of readers of each node, the graph's output included. A node without readers does not run.
    """

    graph: Graph
    layouts: Sequence[Layout]
    rules: Sequence[Rule | None]
    reads: Sequence[list[int]]
    consumers: Sequence[list[int]]
    readers: Sequence[int]

    def only_reader(self, index: int) -> Rule | None:
        """The rule of the node that reads a result, if it is the only one."""
        return self.rules[self.consumers[index][0]] if self.readers[index] == 1 and self.consumers[index] else None


def flow_of(graph: Graph, layouts: Sequence[Layout], rules: Sequence[Rule | None]) -> Flow:
    """Find the readers. The nodes inside a recomputed chain are not read, unless others read them."""
    nodes, outputs = graph.nodes, graph.output_nodes
    reads = [
        list(dict.fromkeys(node.inputs)) if rule is None else rule.reads()
        for node, rule in zip(nodes, rules, strict=True)
    ]
    consumers: list[list[int]] = [[] for _ in nodes]
    for node in reversed(nodes):
        if not node.mutated or consumers[node.index] or node.index in outputs:
            for i in reads[node.index]:
                consumers[i].insert(0, node.index)
    readers = [len(c) for c in consumers]
    for o in outputs:
        readers[o] += 1
    return Flow(graph, layouts, rules, reads, consumers, readers)


def last_reads_of(flow: Flow, to_the_end: Container[int] = ()) -> list[list[int]]:
    """For each node, the changes that it is the last to read; those of nodes ``to_the_end`` are kept until then. A node
    that no mutation reaches (``zeros_like``) runs when a naive node first needs it, so its inputs are kept to the end,
    too.
    """
    nodes, outputs, last = flow.graph.nodes, flow.graph.output_nodes, dict[int, int]()
    for node in nodes:
        for i in flow.reads[node.index] if flow.readers[node.index] else ():
            last[i] = node.index
    found: list[list[int]] = [[] for _ in nodes]
    for i, reader in last.items():
        unmutated = any(not nodes[c].mutated for c in flow.consumers[i])
        if i not in outputs and i not in to_the_end and nodes[i].mutated and not unmutated:
            found[reader].append(i)
    return found
