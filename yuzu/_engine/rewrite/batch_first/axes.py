"""Translations of operations that work along some axes, or reorder them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from yuzu._engine import ops
from yuzu._engine.graph import Node, OfSlice, Ref, map_refs
from yuzu._engine.rewrite.batch_first.form import Form
from yuzu._engine.rewrite.batch_first.translations import pointwise, translates
from yuzu._engine.rewrite.batch_first.values import BatchFirst

aten = torch.ops.aten


@translates("permute", "transpose", "movedim", "swapaxes")
def _permuted(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    held = new.source(node)
    if held is None:
        return None
    (index, form), order = held, order_of(node)
    moved = dataclasses.replace(form, axis=order.index(form.axis))
    split = range(form.axis + 1, form.axis + 1 + len(form.beside))
    places = [0, *(p for axis in order for p in (split if axis == form.axis else [form.place(axis)]))]
    if places == list(range(len(places))):
        return index, moved
    return new.same(node, moved, (Ref(index), places), {}, op="aten.permute", target=aten.permute.default)


def order_of(node: Node) -> list[int]:
    """The axes of the input of a node that permutes them, in the order in which its result has them."""
    rank = len(node.shape or ())
    if node.op == "aten.permute":
        return [a % rank for a in node.args[1]]
    if node.op != "aten.movedim":
        order = list(range(rank))
        a, b = node.args[1] % rank, node.args[2] % rank
        order[a], order[b] = order[b], order[a]
        return order
    given = [[a] if isinstance(a, int) else list(a) for a in node.args[1:3]]
    places = dict(zip((a % rank for a in given[1]), (a % rank for a in given[0]), strict=True))
    others = iter(a for a in range(rank) if a not in places.values())
    return [places[a] if a in places else next(others) for a in range(rank)]


@translates("repeat_interleave")
def _repeated_each(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    held, times, axis = new.source(node), node.argument(1, "repeats"), node.argument(2, "dim")
    if held is None or type(times) is not int or type(axis) is not int or times < 1:
        return None
    index, form = held
    axis %= len(node.shape or ())
    if axis != form.axis:
        return _along_axes(new, node)
    if form.inner > 1:
        return None
    inside = dataclasses.replace(form, inner=times)
    assert node.shape is not None
    shape = inside.shape(node.shape)
    place = form.axis + 1 + (form.outer > 1)
    one = new.reshaped(index, [*shape[:place], 1, *shape[place + 1 :]])
    if times == 1:
        return one, inside
    return new.same(node, inside, (Ref(one), [-1, *shape[1:]]), {}, op="aten.expand", target=aten.expand.default)


@translates(*(ops.with_fact("axes") - {"aten.repeat_interleave"}))
def _along_axes(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    """An operation along other axes than the batch's."""
    held = new.source(node)
    tensors = [i for i in node.inputs if new.nodes[i].shape is not None]
    if node.op in ("aten.max", "aten.min") and len(tensors) == 2:
        return pointwise(new, node)
    facts = ops.of(node.op)
    assert facts.axes is not None
    position, name = facts.axes
    given = node.argument(position, name, facts.default_axis)
    if held is None or not all(new.constant(Ref(i)) for i in node.inputs if i != node.args[0].index):
        return None
    (index, form), rank = held, len(new.nodes[node.args[0].index].shape or ())
    listed = [given] if type(given) is int else given
    if not isinstance(listed, list | tuple) or not listed:
        return None  # along all axes
    axes = [axis % rank for axis in listed]
    cut = node.target if isinstance(node.target, OfSlice) else None
    if form.axis in axes:
        return None
    moved: Any = form.place(axes[0]) if type(given) is int else [form.place(axis) for axis in axes]
    args, kwargs = _with_argument(node, position, name, moved, index)
    args, kwargs = map_refs((args[1:], kwargs), lambda ref: Ref(new.as_given(ref.index)))
    removed = len(node.shape or ()) < rank
    left = dataclasses.replace(form, axis=form.axis - removed * sum(axis < form.axis for axis in set(axes)))
    changes = {} if cut is None else {"target": OfSlice(cut.target, form.place(cut.axis), cut.start, cut.stop)}
    return new.same(node, left, (Ref(index), *args), kwargs, **changes)


def _with_argument(node: Node, position: int, name: str, value: Any, first: int) -> tuple[Any, Any]:
    """A node's arguments with another first one, and one exchanged."""
    args, kwargs = [Ref(first), *node.args[1:]], dict(node.kwargs)
    if len(args) > position:
        args[position] = value
    else:
        kwargs[name] = value
    return args, kwargs


@translates("cat", "concat", "stack")
def _joined(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    stacked, parts = node.op == "aten.stack", list(node.args[0])
    ranks = {len(new.nodes[ref.index].shape or ()) for ref in parts}
    if len(ranks) != 1 or any(new.constant(ref) for ref in parts):
        return None
    (rank,) = ranks
    form = new.common_form(parts, rank)
    if form is None:
        return None
    axis = node.argument(1, "dim", 0) % (rank + stacked)
    if not stacked and axis == form.axis:
        return None
    after = dataclasses.replace(form, axis=form.axis + (stacked and axis <= form.axis))
    return new.same(node, after, ([Ref(new.held[ref.index][0]) for ref in parts], after.place(axis)), {})


@translates("pad", "constant_pad_nd")
def _padded(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    held, rank = new.source(node), len(node.shape or ())
    if held is None or (node.op == "aten.pad" and node.argument(2, "mode", "constant") != "constant"):
        return None
    index, form = held
    given = [*node.args[1], *[0] * (2 * rank - len(node.args[1]))]
    sizes = [given[2 * (rank - 1 - axis) : 2 * (rank - axis)] for axis in range(rank)]  # by axis
    if any(sizes[form.axis]):
        return None
    flat = [size for pair in reversed(form.without(sizes, [0, 0])) for size in pair]
    return new.same(node, form, (Ref(index), flat, *node.args[2:]))


@translates("index")
def _picked(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    held = new.source(node)
    given = [(axis, index) for axis, index in enumerate(node.args[1]) if index is not None]
    if held is None or len(given) != 1 or not new.constant(given[0][1]):
        return None
    (index, form), ((axis, which),) = held, given
    if axis == form.axis or len(new.nodes[which.index].shape or ()) != 1:
        return None
    return new.same(node, form, (Ref(index), [*[None] * form.place(axis), Ref(new.given[which.index])]), {})


@translates("embedding", "one_hot")
def _numbered(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    place = int(node.op == "aten.embedding")
    numbers = node.args[place]
    if numbers.index not in new.held or not all(new.constant(arg) for arg in node.args[:place]):
        return None
    index, form = new.held[numbers.index]
    before = [Ref(new.given[arg.index]) for arg in node.args[:place]]
    return new.same(node, form, (*before, Ref(index), *node.args[place + 1 :]))


__all__ = ["order_of"]
