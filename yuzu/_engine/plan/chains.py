"""Chains of pointwise operations that a steep operation recomputes: it runs on the input of the chain before it, in
place of the chain's result: ``f(g(R + D)) - f(g(R))``.

A mutant's value is its reference plus a difference. If it is small beside the reference, few of its digits are left. A
ReLU's zero loses nothing, since ``R + D`` is exactly zero. But the reference of ``relu(x) + 1e-6`` is rounded, and no
difference from it can represent ``1e-6``. A logarithm of that would have an error that naive ISM never has.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

from yuzu._engine import ops
from yuzu._engine.graph import Node
from yuzu._engine.handlers.contract import Rule
from yuzu._engine.layout import Layout
from yuzu._engine.plan.conditioning import is_well_conditioned

LONGEST = 8  # operations of a chain, at most: an operation with other readers is computed once more


@dataclass(frozen=True)
class _Rules:
    """The input of a search for chains."""

    nodes: list[Node]
    layouts: list[Layout]
    rules: list[Rule | None]


def over_chains(nodes: list[Node], layouts: list[Layout], rules: list[Rule | None]) -> list[Rule | None]:
    """The rules, in which every steep pointwise operation computes the chain before it from the mutants' values."""
    given, found = _Rules(nodes, layouts, rules), list(rules)
    for rule in rules:
        if rule is not None and rule.numerics.on_values and _is_steep(rule):
            chain = _chain_before(given, rule)
            other = rule.over([nodes[i] for i in sorted(chain)], nodes, layouts) if chain else None
            found[rule.node.index] = other or rule
    return found


def _is_steep(rule: Rule) -> bool:
    node = rule.node
    return node.mutated and _is_pointwise(node) and not ops.of(node.op).chooses and not is_well_conditioned(rule)


def _is_pointwise(node: Node) -> bool:
    return node.op.startswith("aten.") and ops.is_pointwise(node.op, node.target)


def _chain_before(given: _Rules, rule: Rule) -> set[int]:
    inside, waiting = set[int](), deque(rule.node.inputs)
    while waiting and len(inside) < LONGEST:
        i = waiting.popleft()
        if i not in inside and _can_be_inside(given, i, rule):
            inside.add(i)
            waiting.extend(given.nodes[i].inputs)
    return inside


def _can_be_inside(given: _Rules, index: int, reader: Rule) -> bool:
    node, rule = given.nodes[index], given.rules[index]
    if not node.mutated or rule is None or ops.of(node.op).small_of_small:
        return False
    if "recomputable" not in vars(type(rule)) or not rule.recomputable:
        return False  # a user's rule may inherit from one of ours, so it runs as it is
    if not (_is_pointwise(node) or ops.of(node.op).softmax) or not node.floating:
        return False
    if any(isinstance(a, torch.dtype) for a in (*node.args, *node.kwargs.values())):
        return False  # would convert float64 back
    if reader.layout.kind == "windows" and rule.layout != reader.layout:
        return False
    adds = rule.only_adds()
    if adds is None:
        return True
    # The carried change of `a - b` is more precise than a difference of its values. Recomputing a sum whose terms no
    # chain computes gains nothing; it is often a residual connection with many readers.
    return adds and any(_can_be_inside(given, i, reader) for i in rule.sources)


__all__ = ["over_chains"]
