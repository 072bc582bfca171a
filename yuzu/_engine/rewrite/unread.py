"""Drops the nodes that nothing reads."""

from __future__ import annotations

from typing import Any

from yuzu._engine.graph import Node, Ref, map_refs


def without_unread(nodes: list[Node], outputs: list[Any]) -> tuple[list[Node], list[Any]]:
    """The nodes that an output depends on, renumbered, and the outputs' new indices."""
    read: set[int] = {o for o in outputs if isinstance(o, int)}
    for node in reversed(nodes):
        if node.index in read:
            read.update(node.inputs)
    new: dict[int, int] = {}
    kept: list[Node] = []
    for node in nodes:
        if node.index in read or node.kind in ("sequence", "extra"):
            new[node.index] = len(kept)
            node.args = map_refs(node.args, lambda ref: Ref(new[ref.index]))
            node.kwargs = map_refs(node.kwargs, lambda ref: Ref(new[ref.index]))
            node.index = len(kept)
            kept.append(node)
    return kept, [new[o] if isinstance(o, int) else o for o in outputs]


__all__ = ["without_unread"]
