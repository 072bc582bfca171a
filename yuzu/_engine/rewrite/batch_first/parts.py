"""Operations on several rows of each sequence, as an encoder of its segments has them: ``(B * P, C, L) -> conv1d``."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from yuzu._engine import ops
from yuzu._engine.graph import Node, Ref, map_refs
from yuzu._engine.rewrite.batch_first.form import Form, batch_axes
from yuzu._engine.rewrite.batch_first.values import BatchFirst

aten = torch.ops.aten


class OnParts:
    """A node's target: an operation on rows, of which ``beside`` axes after the batch's hold several.

    Attributes
    ----------
    target: callable
    op: str
        Its name.
    beside: int
    """

    def __init__(self, target: Any, op: str, beside: int) -> None:
        self.target, self.op, self.beside = target, op, beside

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result = self.target(x.flatten(0, self.beside), *args, **kwargs)
        return result.unflatten(0, x.shape[: self.beside + 1])

    def __str__(self) -> str:
        return f"{self.target} on parts along {self.beside} axes"


def on_parts(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    """An operation that the table says treats rows by themselves, on a batch with several rows for each sequence; its
    index, and the form of its result in the model. A bias is added after a convolution, which is linear without it.
    """
    held, facts = new.source(node) if node.args else None, ops.of(node.op)
    if held is None or facts.by_rows is None or batch_axes(node.shape) != [0]:
        return None
    (index, form), source = held, new.nodes[node.args[0].index]
    others = [i for i in node.inputs if i != source.index]
    if form.axis != 0 or not form.beside or form.size is not None or not all(new.constant(Ref(i)) for i in others):
        return None
    if len(source.shape or ()) < facts.by_rows or not keeps_rows_apart(node, len(source.shape or ())):
        return None
    args, kwargs = map_refs((node.args[1:], node.kwargs), lambda ref: Ref(new.given[ref.index]))
    bias = node.argument(facts.bias, "bias") if facts.convolves and facts.bias is not None else None
    if bias is not None:
        bare = dataclasses.replace(node, args=(None, *args), kwargs=kwargs).with_named("bias", None)
        args, kwargs = bare.args[1:], bare.kwargs
    target = OnParts(node.target, node.op, len(form.beside))
    found, form = new.same(node, form, (Ref(index), *args), kwargs, op="yuzu.on_parts", target=target)
    if bias is None:
        return found, form
    channels = new.nodes[bias.index].shape or ()
    added = new.reshaped(new.given[bias.index], (*channels, *[1] * (len(node.shape or ()) - 2)))
    return new.same(node, form, (Ref(found), Ref(added)), {}, op="aten.add", target=aten.add.Tensor)


def keeps_rows_apart(node: Node, rank: int) -> bool:
    """Return whether the arguments of an operation do not make it mix rows."""
    facts = ops.of(node.op)
    if facts.batch_norm and facts.training is not None and node.argument(facts.training, "training") is not False:
        return False  # by the statistics of the batch
    return not any(_is_first(node.named(name), rank) for name in ("dim", "dimension"))


def _is_first(axis: Any, rank: int) -> bool:
    """Return whether an axis, or one of several, is the first."""
    if axis is None:
        return False
    return any(a % rank == 0 for a in ([axis] if isinstance(axis, int) else axis))


__all__ = ["OnParts", "keeps_rows_apart", "on_parts"]
