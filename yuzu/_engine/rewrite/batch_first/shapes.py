"""Translations of operations that give values another shape, or make them of sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from yuzu._engine.graph import Node, Ref
from yuzu._engine.rewrite.batch_first.form import Form, batch_axes
from yuzu._engine.rewrite.batch_first.translations import translates
from yuzu._engine.rewrite.batch_first.values import BatchFirst


@translates("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")
def _reshaped(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    """Elements before the batch stay before it, and those after it stay after it, with other axes."""
    held, shape = new.source(node), node.shape
    axes = batch_axes(shape)
    if held is None or shape is None or len(axes) != 1 or 0 in shape:
        return None
    (index, form), source, (axis,) = held, new.nodes[node.args[0].index], axes
    sizes, own = [size or 1 for size in shape], [size or 1 for size in source.shape or ()]
    before, after = form.outer * math.prod(own[: form.axis]), form.inner * math.prod(own[form.axis + 1 :])
    left, right = math.prod(sizes[:axis]), math.prod(sizes[axis + 1 :])
    if before % left or after % right:
        return None  # rows become others
    result = Form(axis, before // left, after // right, form.size)
    if source.op == "aten.stack" and axis == 0 and result.beside:
        return None  # a batch of several, which is taken apart
    return new.reshaped(index, result.shape(shape)), result


def _batch_among(new: BatchFirst, sizes: Sequence[Any], shape: Sequence[int | None]) -> tuple[int, Form] | None:
    """The batch's among the sizes to make a tensor of: its new index, and the form of the tensor."""
    axes = batch_axes(shape)
    if len(axes) != 1 or len(sizes) != len(shape):
        return None
    (axis,) = axes
    if not isinstance(sizes[axis], Ref) or sizes[axis].index not in new.sizes:
        return None
    base, size, times = new.sizes[sizes[axis].index]
    return base, Form(axis, 1, times, size)


def _sizes(base: int, form: Form, sizes: Sequence[Any], times: Sequence[Any] = ()) -> list[Any]:
    """Sizes with the batch's in front."""
    return [Ref(base), *sizes[: form.axis], *(times or form.beside), *sizes[form.axis + 1 :]]


@translates("expand")
def _expanded(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    ref, shape = node.args[0], node.shape or ()
    source = new.nodes[ref.index]
    if not source.batched:
        found = _batch_among(new, node.args[1], shape)
        return None if found is None else _made_of_one(new, node, *found, list(shape))
    form = new.common_form([ref], len(shape))
    if form is None or batch_axes(shape) != [form.axis]:
        return None
    aligned = new.aligned(ref, len(shape), form)
    assert aligned is not None
    if new.found[aligned.index].shape == form.shape(shape):
        return aligned.index, form
    return new.same(node, form, (aligned, [-1, *form.shape(shape)[1:]]), {})


@translates("repeat", "tile")
def _repeated(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    ref, shape = node.args[0], node.shape or ()
    if not new.nodes[ref.index].batched:
        found = _batch_among(new, node.args[1], shape)
        return None if found is None else _made_of_one(new, node, *found, node.args[1])
    held, times = new.source(node), node.args[1]
    if held is None or len(times) != len(new.nodes[ref.index].shape or ()) or times[held[1].axis] != 1:
        return None
    index, form = held
    return new.same(node, form, (Ref(index), [1, *form.without(times)]), {})


def _made_of_one(new: BatchFirst, node: Node, base: int, form: Form, sizes: list[Any]) -> tuple[int, Form] | None:
    """A row for each sequence, from a constant that has one for all."""
    constant = new.nodes[node.args[0].index]
    full = [*[1] * (len(sizes) - len(constant.shape or ())), *(constant.shape or ())]
    if full[form.axis] != 1:
        return None
    one = new.reshaped(new.given[constant.index], [1, *form.without(full)])
    return new.same(node, form, (Ref(one), _sizes(base, form, sizes)), {})


@translates("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
def _filled(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    place = int(node.op.startswith("aten.new_"))
    found = _batch_among(new, node.args[place], node.shape or ())
    if found is None:
        return None
    base, form = found
    like = [Ref(new.held[r.index][0] if r.index in new.held else new.as_given(r.index)) for r in node.args[:place]]
    return new.same(node, form, (*like, _sizes(base, form, node.args[place]), *node.args[place + 1 :]))
