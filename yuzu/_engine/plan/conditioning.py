"""The conditioning of a graph: the nodes after which a small error stays small, so that a rounding error may stand for
a zero; and the nodes whose zeros must be exact, because a later operation is steep.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

import torch

from yuzu._engine import ops
from yuzu._engine.graph import Node, Ref
from yuzu._engine.handlers.contract import Rule
from yuzu._engine.plan.flow import Flow


def find_well_conditioned(flow: Flow) -> list[bool]:
    """For each node, tell whether a small error in its change leaves small errors in all outputs."""
    conditioned = [True] * len(flow.graph.nodes)
    for node in reversed(flow.graph.nodes):
        for reader in flow.consumers[node.index]:
            if flow.readers[reader] and flow.graph.nodes[reader].mutated:
                conditioned[node.index] &= conditioned[reader] and is_well_conditioned(flow.rules[reader])
    return conditioned


def is_well_conditioned(rule: Rule | None) -> bool:
    """Tell whether a small error in the inputs of a rule leaves a small error in its result."""
    if rule is None or not rule.node.floating:
        return False
    return not rule.reads_reference or rule.numerics.well_conditioned or ops.of(rule.node.op).bounded_slope


def find_exact_zeros(flow: Flow) -> list[Rule]:
    """Find the rules whose result may be exactly zero in a mutant, because all its terms are, and whose zero may reach
    an operation that is not well-conditioned. A bias leaves no such zeros.
    """
    nodes = flow.graph.nodes
    zeros: list[bool] = []
    for node in nodes:
        read = any(zeros[i] for i in node.inputs if nodes[i].mutated)
        zeros.append(node.kind == "sequence" or (node.mutated and _may_be_zero(node, read)))
    matters = _reaching_steep(flow, zeros)
    return [
        rule
        for rule in flow.rules
        if rule is not None
        and matters[rule.node.index]
        and zeros[rule.node.index]
        and any(zeros[i] for i in rule.sources)
        and flow.readers[rule.node.index]
        and rule.knows_zeros()
    ]


def find_fading(flow: Flow, plain: Callable[[int], bool], watched: Container[int] = frozenset()) -> frozenset[int]:
    """Find the nodes that multiply with weights and whose terms may all nearly vanish in a mutant, where an operation
    that is not well-conditioned may show that. ``plain`` tells whether the constants that a node adds are negligible.
    """
    nodes = flow.graph.nodes
    small: list[bool] = []
    for node in nodes:
        reads = any(small[i] for i in node.inputs if nodes[i].mutated)
        facts = ops.of(node.op)
        passes = not facts.nonzero or facts.batch_norm
        found = node.kind == "sequence" or (node.mutated and (not node.floating or facts.makes_zeros))
        found = found or (node.mutated and reads and passes and (not adds_constants(node) or plain(node.index)))
        small.append(found)
    matters = _reaching_steep(flow, small, watched)
    return frozenset(
        rule.node.index
        for rule in flow.rules
        if rule is not None and rule.knows_terms() and small[rule.node.index] and matters[rule.node.index]
    )


def adds_constants(node: Node) -> bool:
    """Tell whether a node adds a constant for each channel to a product."""
    facts = ops.of(node.op)
    return facts.batch_norm or (facts.bias is not None and node.argument(facts.bias, "bias") is not None)


def constants_of(node: Node, value_of: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """The constants that a node adds."""
    place = ops.of(node.op).bias
    if place is not None:
        return value_of(node.argument(place, "bias").index)
    training_free = node.op == "aten._native_batch_norm_legit_no_training"
    weight, bias, mean, variance = (value_of(r.index) if isinstance(r, Ref) else None for r in node.args[1:5])
    if mean is None or variance is None:
        return torch.full((), torch.inf)
    shift = mean * torch.rsqrt(variance + node.args[6 if training_free else 7])
    shift = shift if weight is None else shift * weight
    return -shift if bias is None else bias - shift


def _reaching_steep(flow: Flow, passes: Sequence[bool], watched: Container[int] = frozenset()) -> list[bool]:
    """For each node, tell whether its result reaches an operation that is not well-conditioned, directly or through
    nodes that pass on its smallness (``passes``). A ``watched`` node counts as one that is not well-conditioned.
    """
    nodes = flow.graph.nodes
    matters = [False] * len(nodes)
    for node in reversed(nodes):
        for reader in flow.consumers[node.index]:
            if flow.readers[reader] and nodes[reader].mutated:
                steep = reader in watched or not is_well_conditioned(flow.rules[reader])
                matters[node.index] |= steep or (passes[reader] and matters[reader])
    return matters


def _may_be_zero(node: Node, read: bool) -> bool:
    """Tell whether elements of a result may be zero other than by chance; ``read`` if those of its inputs may."""
    facts = ops.of(node.op)
    if not node.floating or facts.makes_zeros:
        return True
    return read and not facts.nonzero and (facts.bias is None or node.argument(facts.bias, "bias") is None)
