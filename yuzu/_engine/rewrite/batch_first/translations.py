"""The translations of operations: from a node to one that works with the batch in front.

A translation returns the index of the new node and the form of its result in the model, or None where it has none. If
the batch is in front already, a translation proves that the operation treats rows by themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from yuzu._engine.graph import Node, Ref
from yuzu._engine.rewrite.batch_first.form import Form
from yuzu._engine.rewrite.batch_first.values import BatchFirst

Translation = Callable[[BatchFirst, Node], "tuple[int, Form] | None"]
_TRANSLATIONS: dict[str, Translation] = {}


def translates(*names: str) -> Callable[[Translation], Translation]:
    """Register a translation of operations, by their names."""

    def register(translation: Translation) -> Translation:
        _TRANSLATIONS.update({name if "." in name else f"aten.{name}": translation for name in names})
        return translation

    return register


def translation_of(node: Node) -> Translation | None:
    """The translation of a node's operation; None if it has none."""
    found = _TRANSLATIONS.get(node.op)
    if found is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return pointwise
    return found


@translates(
    *"to _to_copy zeros_like ones_like full_like leaky_relu hardswish log_sigmoid where masked_fill".split(),
    *"__and__ __or__ __xor__".split(),
)
def pointwise(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    found = new.all_aligned(node, len(node.shape or ()))
    return None if found is None else new.same(node, found[1], *found[0])


@translates("type_as")
def _of_type(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    held = new.source(node)
    if held is None:
        return None
    other = new.held.get(node.args[1].index, (None,))[0]  # only its type matters
    other = new.as_given(node.args[1].index) if other is None else other
    return new.same(node, held[1], (Ref(held[0]), Ref(other)))


@translates("view_as_complex", "view_as_real")
def _as_pairs(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    held = new.source(node)
    if held is None or held[1].axis >= len(node.shape or ()):
        return None
    return new.same(node, held[1], (Ref(held[0]),))


__all__ = ["pointwise", "translates", "translation_of"]
