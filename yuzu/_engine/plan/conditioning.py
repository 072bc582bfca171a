"""Where a rounding error may stand for a zero: where nothing that follows makes much of it; and where zeros must be
made exact, because something does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from yuzu._engine.graph import Node, Ref
from yuzu._engine.handlers.contract import Rule
from yuzu._engine.plan.flow import Flow

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
# whose results are not zero, other than by chance
NONZERO = {
    f"aten.{name}"
    for name in (
        "exp sigmoid softplus log_sigmoid softmax _softmax log_softmax _log_softmax logsumexp cos batch_norm "
        "native_batch_norm _native_batch_norm_legit_no_training"
    ).split()
}
# that make zeros of other numbers
MAKES_ZEROS = {
    f"aten.{name}"
    for name in (
        "relu relu6 clamp clamp_min clamp_max hardtanh hardsigmoid hardswish threshold hardshrink softshrink where "
        "masked_fill maximum minimum round floor ceil trunc sign sgn"
    ).split()
}
# whose results are small only where what they read is, or exactly zero
SMALL_OF_SMALL = {
    f"aten.{name}"
    for name in "relu leaky_relu prelu _prelu_kernel gelu silu mish hardswish selu softshrink hardshrink".split()
}
BATCH_NORMS = {f"aten.{name}" for name in "batch_norm native_batch_norm _native_batch_norm_legit_no_training".split()}
BIAS = {"conv1d": 2, "conv2d": 2, "conv_transpose1d": 2, "linear": 2, "addmm": 0, "layer_norm": 3, "group_norm": 3}


def find_well_conditioned(flow: Flow) -> list[bool]:
    """For each node, whether a small error in its change leaves small errors in all outputs."""
    conditioned = [True] * len(flow.graph.nodes)
    for node in reversed(flow.graph.nodes):
        for reader in flow.consumers[node.index]:
            if flow.readers[reader] and flow.graph.nodes[reader].mutated:
                conditioned[node.index] &= conditioned[reader] and is_well_conditioned(flow.rules[reader])
    return conditioned


def is_well_conditioned(rule: Rule | None) -> bool:
    """Whether a small error before a rule leaves a small one behind it."""
    if rule is None or not rule.node.floating:
        return False
    return not rule.reads_reference or rule.numerics.well_conditioned or rule.node.op in OPERATIONS


def find_exact_zeros(flow: Flow) -> list[Rule]:
    """The rules whose result may be exactly zero in a mutant because all that it is made of is, where that zero may
    reach something that is not steady. A bias leaves no such zeros.
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


def find_fading(flow: Flow, plain: Callable[[int], bool]) -> frozenset[int]:
    """What multiplies with weights, where something that is not steady may show that all its terms nearly vanish in a
    mutant; ``plain`` says of a node that adds constants whether they are next to nothing.
    """
    nodes = flow.graph.nodes
    small: list[bool] = []
    for node in nodes:
        reads = any(small[i] for i in node.inputs if nodes[i].mutated)
        passes = node.op not in NONZERO or node.op in BATCH_NORMS
        found = node.kind == "sequence" or (node.mutated and (not node.floating or node.op in MAKES_ZEROS))
        found = found or (node.mutated and reads and passes and (not adds_constants(node) or plain(node.index)))
        small.append(found)
    matters = _reaching_steep(flow, small)
    return frozenset(
        rule.node.index
        for rule in flow.rules
        if rule is not None and rule.knows_terms() and small[rule.node.index] and matters[rule.node.index]
    )


def adds_constants(node: Node) -> bool:
    """Whether it adds a number for each channel to a product."""
    place = BIAS.get(node.op.removeprefix("aten."))
    return node.op in BATCH_NORMS or (place is not None and node.argument(place, "bias") is not None)


def constants_of(node: Node, value_of: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """The numbers that it adds."""
    if node.op not in BATCH_NORMS:
        return value_of(node.argument(BIAS[node.op.removeprefix("aten.")], "bias").index)
    training_free = node.op == "aten._native_batch_norm_legit_no_training"
    weight, bias, mean, variance = (value_of(r.index) if isinstance(r, Ref) else None for r in node.args[1:5])
    if mean is None or variance is None:
        return torch.full((), torch.inf)
    shift = mean * torch.rsqrt(variance + node.args[6 if training_free else 7])
    shift = shift if weight is None else shift * weight
    return -shift if bias is None else bias - shift


def _reaching_steep(flow: Flow, passes: Sequence[bool]) -> list[bool]:
    """Which nodes are read by what is not steady, also by way of what ``passes`` their smallness on."""
    nodes = flow.graph.nodes
    matters = [False] * len(nodes)
    for node in reversed(nodes):
        for reader in flow.consumers[node.index]:
            if flow.readers[reader] and nodes[reader].mutated:
                matters[node.index] |= not is_well_conditioned(flow.rules[reader]) or (
                    passes[reader] and matters[reader]
                )
    return matters


def _may_be_zero(node: Node, read: bool) -> bool:
    """Whether numbers of its result may be zero other than by chance; ``read``: those of what it reads may."""
    if not node.floating or node.op in MAKES_ZEROS:
        return True
    place = BIAS.get(node.op.removeprefix("aten."))
    return read and node.op not in NONZERO and (place is None or node.argument(place, "bias") is None)
