"""Translations of products, and of normalisations over the last axes."""

from __future__ import annotations

import torch

from yuzu._engine.graph import Node, Ref, map_refs
from yuzu._engine.rewrite.batch_first.form import Form
from yuzu._engine.rewrite.batch_first.translations import translates
from yuzu._engine.rewrite.batch_first.values import BatchFirst

aten = torch.ops.aten


@translates("linear")
def _linear(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    return _on_last_axes(new, node, 1)


@translates("layer_norm", "native_layer_norm", "rms_norm")
def _layer_norm(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    return _on_last_axes(new, node, len(node.args[1]))


def _on_last_axes(new: BatchFirst, node: Node, count: int) -> tuple[int, Form] | None:
    """An operation on the last axes of its first argument by constants."""
    held = new.source(node)
    others = [i for i in node.inputs if i != node.args[0].index]
    if held is None or not all(new.constant(Ref(i)) for i in others):
        return None
    index, form = held
    if form.axis >= len(new.nodes[node.args[0].index].shape or ()) - count:
        return None
    args, kwargs = map_refs((node.args[1:], node.kwargs), lambda ref: Ref(new.given[ref.index]))
    return new.same(node, form, (Ref(index), *args), kwargs)


@translates("matmul", "bmm", "mm")
def _matrix_product(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    left, right = node.args[:2]
    ranks = [len(new.nodes[ref.index].shape or ()) for ref in (left, right)]
    changes = {"op": "aten.matmul", "target": aten.matmul.default}
    if new.constant(right) and ranks[1] <= 2:
        held = new.source(node)
        if held is None or held[1].axis == ranks[0] - 1:
            return None
        return new.same(node, held[1], (Ref(held[0]), Ref(new.given[right.index])), {}, **changes)
    found = new.all_aligned(node, len(node.shape or ()), 2) if min(ranks) > 1 else None
    if found is None:
        return _rows_times_constants(new, node) if new.constant(right) else None
    return new.same(node, found[1], found[0][0], {}, **changes)


def _rows_times_constants(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    """``(H, B * T, D)`` times a constant ``(H, D, E)``: the batch lies among the rows of the matrices."""
    held, shape = new.source(node), list(node.shape or ())
    own = list(new.nodes[node.args[0].index].shape or ())
    if held is None or held[1].axis != len(shape) - 2 or len(own) != len(shape):
        return None
    (index, form), matrices = held, Ref(new.given[node.args[1].index])
    rows = form.outer * form.inner
    left = new.reshaped(index, (form.size, *own[:-2], rows, own[-1]))
    changes = {"op": "aten.matmul", "target": aten.matmul.default, "shape": (form.size, *shape[:-2], rows, shape[-1])}
    product, _ = new.same(node, form, (Ref(left), matrices), {}, **changes)
    return new.reshaped(product, form.shape(shape)), form


@translates("baddbmm")
def _product_and_sum(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    found = new.all_aligned(node, len(node.shape or ()), 2)
    if found is None or len(node.args) > 3 or node.kwargs:
        return None
    ((term, left, right), _), form = found
    product, _ = new.same(node, form, (left, right), {}, op="aten.matmul", target=aten.matmul.default)
    return new.same(node, form, (Ref(product), term), {}, op="aten.add", target=aten.add.Tensor)


@translates("scaled_dot_product_attention")
def _attention(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    found = new.all_aligned(node, len(node.shape or ()), 2)
    return None if found is None else new.same(node, found[1], *found[0])


@translates("einsum")
def _einsum(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    equation, operands = node.args[0].replace(" ", ""), node.args[1]
    if "." in equation or "->" not in equation or len(node.args) > 2:
        return None
    inputs, result = equation.split("->")
    labels = inputs.split(",")
    letters: set[tuple[str, int | None]] = set()
    places: list[Ref] = []
    for i, ref in enumerate(operands):
        if new.constant(ref):
            places.append(Ref(new.given[ref.index]))
            continue
        if ref.index not in new.held or new.held[ref.index][1].beside:
            return None
        index, form = new.held[ref.index]
        letter = labels[i][form.axis]
        letters.add((letter, form.size))
        labels[i] = letter + labels[i].replace(letter, "")
        places.append(Ref(index))
    if len(letters) != 1:
        return None
    ((letter, size),) = letters
    if any(letter in label for ref, label in zip(operands, labels, strict=True) if new.constant(ref)):
        return None
    if result.count(letter) != 1:
        return None
    equation = f"{','.join(labels)}->{letter}{result.replace(letter, '')}"
    return new.same(node, Form(result.index(letter), size=size), (equation, places))
