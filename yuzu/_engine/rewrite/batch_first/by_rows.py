"""Proves that operations treat the rows of a batch by themselves: each row of a result depends on the same rows alone.

An operation of which that is not certain counts as one that mixes rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from yuzu._engine import ops
from yuzu._engine.graph import Node, Ref
from yuzu._engine.rewrite.batch_first.parts import keeps_rows_apart
from yuzu._engine.rewrite.batch_first.rewriting import Rewriting
from yuzu._engine.rewrite.batch_first.translations import translation_of


def treat_rows_alone(nodes: list[Node], which: Iterable[int]) -> bool:
    """Return whether the nodes in ``which`` certainly treat rows by themselves, if their inputs do."""
    new = Rewriting(nodes)  # the nodes that translations add to it are not used
    return all(_treats_rows_alone(new, nodes[i]) for i in which)


def _treats_rows_alone(new: Rewriting, node: Node) -> bool:
    shape = node.shape or (1,)
    if shape[0] is not None or any(size is None or size < 0 for size in shape[1:]):
        return False
    if any(new.nodes[i].shape is None and new.nodes[i].batched for i in node.inputs):
        return False  # a number that depends on how many rows there are
    if ops.has_users_handler(node.op):
        return not _names_an_axis([*node.args, *node.kwargs.values()])
    if ops.is_pointwise(node.op, node.target) or node.op == "aten.rsub":  # not all of its overloads are tagged
        return new.all_aligned(node, len(shape)) is not None
    if node.op == "aten.pad" and node.argument(2, "mode", "constant") != "constant":
        return len(node.args[1]) // 2 < len(shape)
    if node.op == "aten.index":
        return _first_has_rows(new, node, 1) and node.args[1][0] is None
    if node.op == "aten.tile" and len(node.args[1]) < len(shape):
        return _first_has_rows(new, node, len(shape))
    if node.op == "aten.addmm":
        bias, left, right = node.args[:3]
        held = new.held.get(left.index)
        return held is not None and held[1].plain and new.constant(bias) and new.constant(right)
    translation = translation_of(node)
    if translation is not None:
        result = translation(new, node)
        return result is not None and result[1].plain
    return _known_by_rows(new, node)


def _known_by_rows(new: Rewriting, node: Node) -> bool:
    """Return whether the table says that an operation treats rows by themselves, with arguments like these."""
    facts = ops.of(node.op)
    if facts.by_rows is None or not _first_has_rows(new, node, facts.by_rows):
        return False
    return keeps_rows_apart(node, len(new.nodes[node.args[0].index].shape or ()))


def _first_has_rows(new: Rewriting, node: Node, rank: int) -> bool:
    """Return whether the first argument has the batch in front and at least ``rank`` axes, and no other has a batch."""
    if not node.args or not isinstance(node.args[0], Ref):
        return False
    first = new.nodes[node.args[0].index]
    others = [i for i in node.inputs if i != first.index]
    held = new.held.get(first.index)
    rows = held is not None and held[1].plain and len(first.shape or ()) >= rank
    return rows and all(new.constant(Ref(i)) for i in others)


def _names_an_axis(given: list[Any]) -> bool:
    """Return whether an argument may be the number of an axis."""
    return any(_names_an_axis(list(a)) if isinstance(a, list | tuple) else type(a) is int for a in given)


__all__ = ["treat_rows_alone"]
