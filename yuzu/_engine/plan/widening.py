"""The results that are kept in float64, both reference and differences: sums, pools, products and the like before a
steep operation.

A mutant's value is its reference plus a difference. A sum of ReLU outputs may be a thousand times smaller in a mutant
than in the reference. Its difference, rounded to float32, has then lost three digits, which a logarithm, a root or a
quotient of it shows. The summed elements have not lost them: if a unit becomes zero, the difference after the ReLU is
exactly the negative of the reference. So all nodes after these elements, up to the steep operation, are computed in
float64. Products with weights stay in float32: see `find_fading`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from yuzu._engine import ops
from yuzu._engine.graph import Node
from yuzu._engine.handlers.contract import Rule
from yuzu._engine.layout import ROWS
from yuzu._engine.plan.conditioning import is_well_conditioned
from yuzu._engine.plan.flow import Flow

LARGE_EPSILON = 1e-6  # an epsilon of this size under a root keeps an operation from being steep


@dataclass(frozen=True)
class Widened:
    """The nodes that use float64.

    Attributes
    ----------
    kept: frozenset of int
        The nodes whose reference and change are kept in float64.
    run: frozenset of int
        The nodes that run in float64: those kept, and the steep nodes that read them.
    exact: frozenset of int
        The nodes whose reference alone is kept in float64: products with weights, of which a steep node reads few at a
        time.
    """

    kept: frozenset[int] = frozenset()
    run: frozenset[int] = frozenset()
    exact: frozenset[int] = frozenset()

    @functools.cached_property
    def precise(self) -> frozenset[int]:
        """The nodes whose reference is kept in float64."""
        return self.kept | self.exact

    def without(self, nodes: frozenset[int]) -> Widened:
        """The same without some nodes."""
        return Widened(self.kept - nodes, self.run - nodes, self.exact - nodes)


def may_widen(precision: str, device: str) -> bool:
    """Tell whether float64 is worth it: products are precise enough, and the device supports it."""
    full = ("highest", "high") if device == "cpu" else ("highest",)
    return precision in full and device in ("cpu", "cuda")


def find_widened(flow: Flow) -> Widened:
    """Find the nodes to compute in float64, on devices and with products for which that is worth it (`may_widen`)."""
    nodes, rules = flow.graph.nodes, flow.rules
    steep = _find_steep(flow)
    matters, near, summed = ([False] * len(nodes) for _ in range(3))
    for node in reversed(nodes):
        for reader in flow.consumers[node.index]:
            rule = rules[reader]
            if flow.readers[reader] and rule is not None and nodes[reader].mutated and _can_be_wide(rule):
                matters[node.index] |= matters[reader] or reader in steep
                near[node.index] |= (near[reader] and not rule.numerics.sums_positions) or reader in steep
                summed[node.index] |= near[reader] and rule.numerics.sums_positions
    kept, run, exact = set[int](), set[int](), set[int]()
    for node in nodes:
        rule, i = rules[node.index], node.index
        if rule is None or not node.mutated or not flow.readers[i]:
            continue
        known = kept | exact if near[i] or i in steep or rule.numerics.sums_positions else kept
        reads = _can_be_wide(rule) and not known.isdisjoint(rule.sources)
        if matters[i] and (reads or _loses_digits(rule)):
            kept.add(i)
        elif (near[i] or summed[i]) and node.dtype == torch.float32:
            if rule.numerics.weighted or (rule.per_channel is not None and not exact.isdisjoint(rule.sources)):
                exact.add(i)
        if i in kept or (reads and i in steep):
            run.add(i)
    return Widened(frozenset(kept), frozenset(run), frozenset(exact))


def _can_be_wide(rule: Rule) -> bool:
    node = rule.node
    own = type(rule).__module__.startswith("yuzu._engine.handlers.") and node.op.startswith(("aten.", "yuzu."))
    if not own or node.dtype != torch.float32:
        return False
    if any(isinstance(a, torch.dtype) for a in (*node.args, *node.kwargs.values())):
        return False  # would convert float64 back
    if rule.numerics.on_values:
        return rule.numerics.may_widen
    return not rule.numerics.weighted or (rule.layout == ROWS and all(layout == ROWS for layout in rule.source_layouts))


def _find_steep(flow: Flow) -> set[int]:
    """Find the nodes that amplify a small error; also products with the result of a steep node, such as a quotient."""
    steep, large = set[int](), set[int]()
    for rule in flow.rules:
        if rule is None:
            continue
        i, reads = rule.node.index, not large.isdisjoint(rule.sources)
        if _is_steep(rule) or (reads and rule.numerics.multiplies):
            steep.add(i)
        if _is_steep(rule) or (reads and (rule.family == "view" or rule.numerics.keeps_size)):
            large.add(i)
    return steep


def _is_steep(rule: Rule) -> bool:
    node = rule.node
    if not rule.numerics.on_values or is_well_conditioned(rule) or ops.of(node.op).gentle:
        return False
    place = ops.of(node.op).epsilon
    epsilon = 0.0 if place is None else node.argument(place, "eps", 1e-5)
    return epsilon < LARGE_EPSILON and not _is_whole_power(node)


def _is_whole_power(node: Node) -> bool:
    """Tell whether a node is a power of at least 1, whose slope is bounded near zero."""
    exponent = node.argument(1, "exponent")
    return node.op == "aten.pow" and isinstance(exponent, int | float) and exponent >= 1


def _loses_digits(rule: Rule) -> bool:
    """Tell whether a rule's result may be small beside the reference's although its inputs are exact."""
    if not _can_be_wide(rule):
        return False
    return rule.numerics.cancels and not ops.of(rule.node.op).small_of_small
