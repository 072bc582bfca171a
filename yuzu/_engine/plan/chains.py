"""Where a steep operation is run on what stands before a stretch of operations on single numbers, in place of on its
result: ``f(g(R + D)) - f(g(R))``.

A mutant's value is its reference plus a difference, and where it is small beside the reference few of its digits are
left. Of a rectifier's zero nothing is lost, for ``R + D`` is exactly zero; but of ``relu(x) + 1e-6`` the reference is
rounded, and no difference from it says ``1e-6``. A logarithm of that is off by as much as naive ISM never is.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import torch

from yuzu._engine import ops
from yuzu._engine.graph import Node
from yuzu._engine.handlers.affine import Product, Scaled
from yuzu._engine.handlers.contract import Rule
from yuzu._engine.handlers.elementwise import Local, OfValues, OnRows
from yuzu._engine.handlers.formulas import Formula
from yuzu._engine.handlers.merge import Sum
from yuzu._engine.plan.conditioning import is_steady

if TYPE_CHECKING:
    from yuzu._engine.plan.plan import Plan

LONGEST = 8  # operations of a stretch: what others read, too, is computed once more
OWN = (Local, OnRows, Sum, Scaled, Product, Formula)  # a rule of a user's is run as it is


def take_over_stretches(plan: Plan) -> None:
    """Have every steep operation on single numbers compute the stretch before it, from the mutants' values before."""
    for rule in plan.rules:
        if isinstance(rule, Local | OnRows) and type(rule) in OWN and _is_steep(rule):
            inside = _stretch_before(plan, rule)
            if inside:
                rule.take_over([plan.graph.nodes[i] for i in sorted(inside)], plan.graph.nodes, plan.layouts)


def _is_steep(rule: OfValues) -> bool:
    node = rule.node
    return node.mutated and _is_pointwise(node) and not ops.of(node.op).chooses and not is_steady(rule)


def _is_pointwise(node: Node) -> bool:
    return node.op.startswith("aten.") and ops.is_pointwise(node.op, node.target)


def _stretch_before(plan: Plan, rule: Rule) -> set[int]:
    nodes, inside = plan.graph.nodes, set[int]()
    waiting = deque(rule.node.inputs)
    while waiting and len(inside) < LONGEST:
        i = waiting.popleft()
        if i not in inside and _can_be_inside(plan, i, rule):
            inside.add(i)
            waiting.extend(nodes[i].inputs)
    return inside


def _can_be_inside(plan: Plan, index: int, reader: Rule) -> bool:
    node, rule = plan.graph.nodes[index], plan.rules[index]
    if not node.mutated or type(rule) not in OWN or ops.of(node.op).small_of_small:
        return False
    assert rule is not None
    if not (_is_pointwise(node) or ops.of(node.op).softmax) or not node.floating:
        return False
    if any(isinstance(a, torch.dtype) for a in (*node.args, *node.kwargs.values())):
        return False  # would narrow what is widened
    if isinstance(reader, Local) and rule.layout != reader.layout:
        return False
    if isinstance(rule, Local) and not rule.broadcast:
        return False
    if not isinstance(rule, Sum) or len(rule.sources) == 1:
        return True
    # a difference of several is known better than what it is of; and a sum of what is in no stretch is as good as that,
    # and often more of what stands in a model for all that follows
    adds = all(factor > 0 for factor in rule.factors.values())
    return adds and any(_can_be_inside(plan, i, reader) for i in rule.sources)


__all__ = ["take_over_stretches"]
