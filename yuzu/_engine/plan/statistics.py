"""Finds the statistics of a graph, and the rules of what follows them.

A statistic is a value of few numbers for each sequence that all positions make and all positions read: the mean of a
norm, its scale, a gate. Where a windowed node reads one, every position changes, but outside of its window a mutant
differs from the reference by the statistics alone. See `yuzu._engine.handlers.statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from yuzu._engine.graph import Graph, Node
from yuzu._engine.handlers import Rule, View, find_rule
from yuzu._engine.handlers.statistics import smooth_rule
from yuzu._engine.layout import ROWS, Layout
from yuzu._engine.plan.flow import Flow
from yuzu._engine.rewrite.norms_apart import NORMS, SOFTMAX, norms_apart
from yuzu._engine.rewrite.pooled_softmax import find_pooled

# A series has a term for each pair of numbers, and each takes about as long as a mutant at the layers after it. So
# there is at most one pair for each position, which has three mutants. No sequence has more than MOST_NUMBERS.
MOST_NUMBERS, PAIRS_OF_A_POSITION = 64, 1.0


def most_numbers(length: int) -> int:
    """The most numbers of a sequence that windows are carried past."""
    return min(MOST_NUMBERS, math.isqrt(int(2 * PAIRS_OF_A_POSITION * length)))


@dataclass(frozen=True)
class Statistics:
    """The statistics of a plan.

    Attributes
    ----------
    first: mapping of int to int
        The place of each statistic's first number among all numbers, in the order of the nodes.
    count: int
        All numbers of a sequence.
    before: mapping of int to tuple of int
        The statistics that a windowed node depends on outside of its window, in their order, for each that does.
    leading: frozenset of int
        The nodes that a statistic is computed from, and the statistics.
    """

    first: Mapping[int, int] = field(default_factory=dict)
    count: int = 0
    before: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    leading: frozenset[int] = frozenset()

    def after(self, index: int) -> bool:
        """Tell whether a node is windowed and follows statistics."""
        return index in self.before


class Found:
    """The statistics found so far, while the rules of a graph are found node by node."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._before: dict[int, tuple[int, ...]] = {}  # of the nodes that have any

    def candidates(self, layouts: Sequence[Layout]) -> frozenset[int]:
        """The nodes that may be statistics."""
        nodes = self.graph.nodes[: len(layouts)]
        return frozenset(n.index for n, layout in zip(nodes, layouts, strict=True) if _is_small(n, layout))

    def of(self, view: View, rule: Rule | str) -> Rule | str:
        """Note the statistics before a node. Returns its rule, or the one that is right after these."""
        if not isinstance(rule, Rule) or not view.node.mutated:
            return rule
        found = {s for i in rule.sources for s in self._before.get(i, ())}
        windowed = rule.layout.kind == "windows"
        if windowed:
            found |= {i for i in rule.sources if view.layouts[i] == ROWS}
        if not found:
            return rule
        right = rule if rule.linear or rule.after_statistics else smooth_rule(view, rule) if windowed else None
        if right is None:  # on the mutants' whole values
            layouts = [ROWS if i in self._before else layout for i, layout in enumerate(view.layouts)]
            return find_rule(replace(view, layouts=layouts, statistics=frozenset()))
        if windowed:
            self._before[view.node.index] = tuple(sorted(found))
        return right

    def done(self) -> Statistics:
        """All statistics."""
        first: dict[int, int] = {}
        count = 0
        for s in sorted({s for before in self._before.values() for s in before}):
            first[s] = count
            count += _numbers(self.graph.nodes[s])
        leading = set(first)
        for node in reversed(self.graph.nodes):
            if node.index in leading:
                leading.update(node.inputs)
        return Statistics(first, count, self._before, frozenset(leading))


def _numbers(node: Node) -> int:
    return math.prod(size or 0 for size in (node.shape or ())[1:])


def _is_small(node: Node, layout: Layout) -> bool:
    return layout == ROWS and node.mutated and node.floating and 0 < _numbers(node) <= MOST_NUMBERS


def with_norms_apart(
    graph: Graph, plan_of: Callable[[Graph, Mapping[int, int]], Flow]
) -> tuple[Graph, Mapping[int, int], tuple[int, ...]]:
    """The graph in which all norms of windowed values over positions are taken apart, and attention pooling; the new
    index of each node; and the nodes of ``graph`` that were taken apart. ``plan_of`` plans a graph, given the new index
    of each node.

    A norm taken apart leaves windows, so that the norms after it may be of windowed values, too.
    """
    chosen: set[int] = set()
    apart: Graph = graph
    same: Mapping[int, int] = {n.index: n.index for n in graph.nodes}
    while True:
        flow = plan_of(apart, same)
        kinds = set()
        for node in graph.nodes:
            here = same[node.index]
            if node.op in NORMS | SOFTMAX and node.index not in chosen and flow.rules[here] is not None:
                if flow.layouts[same[node.args[0].index]].kind == "windows" and flow.layouts[here] == ROWS:
                    kinds.add(_kind(node))
        more = {n.index for n in graph.nodes if n.op in NORMS and n.mutated and _kind(n) in kinds}
        more |= {n.index for n in graph.nodes if n.op in SOFTMAX and _kind(n) in kinds and find_pooled(graph, n)}
        more -= chosen
        if not more:
            return apart, same, tuple(sorted(chosen))
        chosen |= more
        apart, same = norms_apart(graph, chosen)


def _kind(node: Node) -> tuple[object, ...]:
    """Norms of one kind are taken apart together, and each softmax by itself."""
    if node.op in SOFTMAX:
        return node.op, node.index
    over = node.args[1] if len(node.args) > 1 else None
    return (
        node.op,
        len(node.shape or ()),
        len(over) if isinstance(over, list | tuple) else over if node.op == "aten.group_norm" else None,
    )


__all__ = ["Found", "Statistics", "most_numbers", "with_norms_apart"]
