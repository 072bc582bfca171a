"""The results that do not depend on the inputs after the sequence, so that they are computed once for all their values.

These are the reference of nodes that the other inputs do not reach; and changes, up to a node that reads a reference
which they do reach. A linear layer that they enter still changes by the same amount.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from yuzu._engine.choice import Choice
from yuzu._engine.handlers.contract import Rule
from yuzu._engine.plan.flow import Flow


@dataclass(frozen=True)
class Sharing:
    """The nodes that depend on the inputs after the sequence.

    Attributes
    ----------
    values: frozenset of int
        The nodes whose reference depends on the other inputs.
    changes: frozenset of int
        The mutated nodes whose change depends on them.
    border: frozenset of int
        The nodes whose change does not depend on them, but is read by a node whose change does.
    """

    values: frozenset[int]
    changes: frozenset[int]
    border: frozenset[int]


def reads_reference(rule: Rule | None, choice: Choice) -> bool:
    """Tell whether a node's change depends on reference values, and not only on the changes before it."""
    return rule is None or rule.reads_reference or choice.exact_zeros or choice.watched


def find_sharing(flow: Flow, choices: Sequence[Choice]) -> Sharing:
    """Follow the other inputs through the nodes."""
    nodes = flow.graph.nodes
    values: set[int] = set()
    changes: set[int] = set()
    border: set[int] = set()
    for node in nodes:
        i = node.index
        joined = node.kind == "extra" or any(s in values for s in node.inputs)
        if joined:
            values.add(i)
        if not node.mutated or not flow.readers[i]:
            continue
        sources = [s for s in flow.reads[i] if nodes[s].mutated]
        if any(s in changes for s in sources) or (joined and reads_reference(flow.rules[i], choices[i])):
            changes.add(i)
            border.update(sources)
    return Sharing(frozenset(values), frozenset(changes), frozenset(border - changes))
