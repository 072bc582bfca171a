"""Finds what may run as one on a GPU: a convolution, the rectifier, the sum and the crop behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from yuzu._engine.handlers.affine import Scaled
from yuzu._engine.handlers.contract import Rule
from yuzu._engine.handlers.convolution import Convolution
from yuzu._engine.handlers.formulas import Rectifier
from yuzu._engine.handlers.fused import Block
from yuzu._engine.handlers.merge import Sum
from yuzu._engine.handlers.view import Moved
from yuzu._engine.layout import Layout

if TYPE_CHECKING:
    from yuzu._engine.plan.plan import Plan

LEAST_CHANNELS = 16  # before the convolution: a product of fewer is mostly zeros


def find_blocks(plan: Plan) -> list[Block]:
    """The blocks of a plan, each as long as it can be; a sum of two convolutions' results is the later one's."""
    found: list[Block] = []
    taken: set[int] = set()
    for rule in reversed(plan.rules):
        if isinstance(rule, Convolution) and _fits(rule) and plan.readers[rule.node.index]:
            found.append(_extended(plan, rule, taken))
            taken.update(found[-1].nodes)
    return found[::-1]


def _fits(rule: Convolution) -> bool:
    channels = rule.channels[0]
    plain = rule.groups == 1 and rule.height is None and rule.node.dtype == torch.float32 and not rule.settles
    return plain and channels >= LEAST_CHANNELS and _plain(rule.layout) and _plain(rule.source_layouts[0])


def _plain(layout: Layout) -> bool:
    return layout.kind == "windows" and layout.axis == 2 and not layout.composite


def _extended(plan: Plan, convolution: Convolution, taken: set[int]) -> Block:
    nodes = [convolution.node.index]
    after, passed = _next(plan, nodes[-1], convolution)
    rectifier = total = None
    if isinstance(after, Rectifier) and after.factor is None and after.node.index not in plan.widened.run:
        rectifier = after
        nodes += [*passed, after.node.index]
        after, passed = _next(plan, nodes[-1], convolution)
    if isinstance(after, Sum) and after.node.index not in taken and _adds_one(plan, after, [*nodes, *passed]):
        total = after
        nodes += [*passed, after.node.index]
    crop = _crop_after(plan, nodes[-1])
    if crop is not None:
        nodes.append(crop.node.index)
    return Block(convolution, rectifier, total, nodes, 0 if crop is None else -crop.geometry.padding)


def _next(plan: Plan, index: int, convolution: Convolution) -> tuple[Rule | None, list[int]]:
    """The rule of the only node that reads a result, behind factors that the kernel has taken over, and those."""
    passed: list[int] = []
    while plan.readers[index] == 1 and plan.consumers[index]:
        (index,) = plan.consumers[index]
        rule = plan.rules[index]
        if rule is None or rule.layout != convolution.layout or not _together(plan, index, convolution.node.index):
            break
        if not (isinstance(rule, Scaled) and rule.per_channel in convolution.factors_after):
            return rule, passed
        passed.append(index)
    return None, []


def _together(plan: Plan, index: int, other: int) -> bool:
    """Whether two nodes can be run at once: what depends on another input is run once for each of its values, the rest
    once for all.
    """
    same = (index in plan.sharing.changes) == (other in plan.sharing.changes)
    return same and plan.graph.nodes[index].dtype == plan.graph.nodes[other].dtype


def _crop_after(plan: Plan, index: int) -> Moved | None:
    """A crop along positions that is all that reads a result."""
    if plan.readers[index] != 1 or not plan.consumers[index]:
        return None
    rule = plan.rules[plan.consumers[index][0]]
    if not isinstance(rule, Moved) or not _plain(rule.layout) or not _together(plan, rule.node.index, index):
        return None
    g = rule.geometry
    return rule if g.stride == 1 and g.padding <= 0 and rule.rest is None else None


def _adds_one(plan: Plan, total: Sum, inside: list[int]) -> bool:
    """Whether a sum adds one other tensor of the same shape to what is inside."""
    others = [s for s in total.sources if s not in inside]
    shape = total.node.shape
    if total.node.index in plan.widened.run:
        return False
    if len(total.sources) != 2 or len(others) != 1 or any(f != 1 for f in total.factors.values()):
        return False
    return plan.graph.nodes[others[0]].shape == shape and plan.layouts[others[0]] == total.layout
