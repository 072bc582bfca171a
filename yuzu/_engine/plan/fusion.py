"""Finds the fused groups, which may run as one on a GPU: a convolution, and the ReLU, the sum and the crop after it."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from yuzu._engine.choice import Choice
from yuzu._engine.handlers.contract import Rule
from yuzu._engine.handlers.fused import FusedGroup
from yuzu._engine.layout import Layout
from yuzu._engine.plan.flow import Flow
from yuzu._engine.plan.sharing import Sharing


@dataclass(frozen=True)
class _Given:
    """The input of the search: the nodes, and all decisions about them."""

    flow: Flow
    choices: Sequence[Choice]
    sharing: Sharing
    widened: Container[int]

    def together(self, index: int, other: int) -> bool:
        """Tell whether two nodes can run at once. A node that depends on another input than the sequence runs once for
        each of that input's values, others run once for all.
        """
        same = (index in self.sharing.changes) == (other in self.sharing.changes)
        return same and self.flow.graph.nodes[index].dtype == self.flow.graph.nodes[other].dtype


def find_groups(
    flow: Flow, choices: Sequence[Choice], sharing: Sharing, widened: Container[int]
) -> dict[int, FusedGroup]:
    """Find the group of each node that is in one. Groups are as long as possible. A sum of two convolutions' results
    belongs to the later convolution.
    """
    given = _Given(flow, choices, sharing, widened)
    found: list[FusedGroup] = []
    taken: set[int] = set()
    for rule in reversed(flow.rules):
        if rule is not None and flow.readers[rule.node.index] and _fits(given, rule):
            found.append(_extended(given, rule, taken))
            taken.update(found[-1].nodes)
    return {i: group for group in reversed(found) for i in group.nodes}


def _fits(given: _Given, rule: Rule) -> bool:
    plain = rule.fused_as == "convolution" and not given.choices[rule.node.index].exact_zeros
    return plain and _plain(rule.layout) and _plain(rule.source_layouts[0])


def _plain(layout: Layout) -> bool:
    return layout.kind == "windows" and layout.axis == 2 and not layout.composite


def _extended(given: _Given, convolution: Rule, taken: set[int]) -> FusedGroup:
    nodes = [convolution.node.index]
    after, passed = _next(given, nodes[-1], convolution)
    relu = total = None
    if after is not None and after.fused_as == "relu":
        index = after.node.index
        if given.choices[index].divisor is None and index not in given.widened:
            relu = after
            nodes += [*passed, index]
            after, passed = _next(given, nodes[-1], convolution)
    if after is not None and after.node.index not in taken and _adds_one(given, after, [*nodes, *passed]):
        total = after
        nodes += [*passed, after.node.index]
    crop = _crop_after(given, nodes[-1])
    if crop is not None:
        nodes.append(crop.node.index)
    return FusedGroup.of(convolution, relu, total, crop, nodes)


def _next(given: _Given, index: int, convolution: Rule) -> tuple[Rule | None, list[int]]:
    """The rule of a result's only reader, past factors that the convolution has absorbed; and the nodes of these."""
    flow, passed = given.flow, list[int]()
    absorbed = given.choices[convolution.node.index].after
    while flow.readers[index] == 1 and flow.consumers[index]:
        (index,) = flow.consumers[index]
        rule = flow.rules[index]
        if rule is None or rule.layout != convolution.layout or not given.together(index, convolution.node.index):
            break
        if rule.per_channel is None or rule.per_channel not in absorbed:
            return rule, passed
        passed.append(index)
    return None, []


def _crop_after(given: _Given, index: int) -> Rule | None:
    """The crop along positions that is the only reader of a result; None if there is none."""
    rule = given.flow.only_reader(index)
    if rule is None or rule.fused_as != "crop" or not _plain(rule.layout):
        return None
    return rule if given.together(rule.node.index, index) else None


def _adds_one(given: _Given, total: Rule, inside: list[int]) -> bool:
    """Tell whether a rule adds one other tensor of the same shape to the result of the nodes inside."""
    if total.fused_as != "sum" or total.node.index in given.widened:
        return False
    others = [s for s in total.sources if s not in inside]
    same = len(others) == 1 and given.flow.graph.nodes[others[0]].shape == total.node.shape
    return same and given.flow.layouts[others[0]] == total.layout
