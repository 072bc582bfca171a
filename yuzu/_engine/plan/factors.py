"""Factors that a convolution absorbs. A factor for each channel right before or right after a convolution becomes part
of its weight, even with a ReLU between them.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

from yuzu._engine.choice import Choice
from yuzu._engine.plan.flow import Flow


def absorb_factors(flow: Flow, choices: Sequence[Choice], widened: Container[int]) -> list[Choice]:
    """Absorb such factors, but none of nodes that are ``widened``. Returns the new choices."""
    found = list(choices)
    for rule in flow.rules:
        if rule is None or rule.per_channel is None or len(rule.sources) != 1:
            continue
        index, factor = rule.node.index, rule.per_channel
        if not flow.readers[index] or index in widened or found[index].exact_zeros:
            continue  # an exact zero is the negative of its own reference, without a factor
        source = rule.sources[0]
        while found[source].absorbed and flow.readers[source] == 1:
            source = flow.rules[source].sources[0]  # type: ignore[union-attr]
        before = flow.rules[source]
        if before is not None and before.absorbs_after:
            if found[source].exact_zeros:
                continue
            if flow.readers[source] == 1 and before.layout == rule.layout:
                found[source] = replace(found[source], after=(*found[source].after, factor))
                found[index] = replace(found[index], absorbed=True)
                continue
        if index in flow.graph.output_nodes or len(flow.consumers[index]) != 1:
            continue
        reader = flow.rules[flow.consumers[index][0]]
        between = reader if reader is not None and reader.passes_factor and reader.layout == rule.layout else None
        after = reader if between is None else flow.only_reader(between.node.index)
        if after is None or not after.absorbs_before or found[after.node.index].exact_zeros:
            continue
        found[after.node.index] = replace(found[after.node.index], before=(*found[after.node.index].before, factor))
        found[index] = replace(found[index], absorbed=True)
        if between is not None:
            found[between.node.index] = replace(found[between.node.index], divisor=factor)
    return found
