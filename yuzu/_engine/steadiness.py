"""Where a rounding error may stand for a zero: where nothing that follows makes much of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from yuzu._engine.handlers.affine import Product, Scaled
from yuzu._engine.handlers.contract import Rule

if TYPE_CHECKING:
    from yuzu._engine.plan import Plan

# that are not linear, and whose slope is bounded where values are; that of a root, a logarithm, a quotient, a norm or a
# comparison is not
OPERATIONS = {
    f"aten.{name}"
    for name in (
        "relu relu6 leaky_relu prelu _prelu_kernel elu celu selu gelu silu mish softplus log_sigmoid glu sigmoid tanh "
        "hardtanh hardsigmoid hardswish softmax _softmax log_softmax _log_softmax logsumexp exp sin cos abs clamp "
        "clamp_min clamp_max maximum minimum max min amax amin max_pool1d max_pool2d max_pool1d_with_indices "
        "max_pool2d_with_indices avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_max_pool1d upsample_nearest1d flip"
    ).split()
}


def find_steady(plan: Plan) -> list[bool]:
    """For each node, whether a small error in its change leaves small errors in all outputs."""
    steady = [True] * len(plan.graph.nodes)
    for node in reversed(plan.graph.nodes):
        for reader in plan.graph.consumers[node.index]:
            if plan.readers[reader] and plan.graph.nodes[reader].mutated:
                steady[node.index] &= steady[reader] and _is_steady(plan.rules[reader])
    return steady


def _is_steady(rule: Rule | None) -> bool:
    if rule is None or rule.node.dtype is None or not rule.node.dtype.is_floating_point:
        return False
    return not rule.reads_reference or isinstance(rule, Scaled | Product) or rule.node.op in OPERATIONS
