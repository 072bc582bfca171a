"""Makes nodes that hold values with the batch in front."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from yuzu._engine import ops
from yuzu._engine.graph import Node, Ref, map_refs
from yuzu._engine.rewrite.batch_first.form import Form, batch_axes

aten = torch.ops.aten


class BatchFirst:
    """The nodes that were made so far, and the value of each old node in them.

    Attributes
    ----------
    nodes: list of Node
        The old nodes.
    found: list of Node
        The new ones.
    held: dict of int to (int, Form)
        For an old node, the new node that has its value with the batch in front, and its form in the model.
    given: dict of int to int
        For an old node, the new node that has its value as the model has it.
    sizes: dict of int to (int, int or None, int)
        For a node that is a number: it is so many times (third) the size (first, a new node) of a batch (second, as in
        `Form`).
    """

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.found: list[Node] = []
        self.held: dict[int, tuple[int, Form]] = {}
        self.given: dict[int, int] = {}
        self.sizes: dict[int, tuple[int, int | None, int]] = {}

    def copy(self, node: Node) -> None:
        """Keep a node as it is. It reads values as the model has them."""
        index = self.emit(node)
        self.given[node.index] = index
        if node.batched and batch_axes(node.shape) == [0]:
            assert node.shape is not None
            self.held[node.index] = index, Form(size=node.shape[0])

    def emit(self, node: Node) -> int:
        """Add an old node, which reads values as the model has them; its new index."""
        args, kwargs = map_refs((node.args, node.kwargs), lambda ref: Ref(self.as_given(ref.index)))
        self.found.append(dataclasses.replace(node, index=len(self.found), args=args, kwargs=kwargs))
        return len(self.found) - 1

    def as_given(self, i: int) -> int:
        """The new index of a value as the model has it, which is made where it is missing."""
        if i in self.given:
            return self.given[i]
        node = self.nodes[i]
        if all(j in self.given for j in node.inputs):
            self.given[i] = self.emit(node)  # by the model's own operation
            return self.given[i]
        index, form = self.held[i]
        assert node.shape is not None
        before = form.axis + (form.outer > 1)
        rank = len(self.found[index].shape or ())
        order = [*range(1, before + 1), 0, *range(before + 1, rank)]
        shape = form.shape(node.shape)
        index = self.add(node, aten.permute.default, (Ref(index), order), shape=tuple(shape[a] for a in order))
        if form.beside:
            sizes = [-1 if axis == form.axis else size for axis, size in enumerate(node.shape)]
            index = self.add(node, aten.reshape.default, (Ref(index), sizes), shape=node.shape)
        self.given[i] = index
        return index

    def add(self, like: Node, target: Any, args: tuple[Any, ...], **changes: Any) -> int:
        """Add an operation with the shape, dtype and layer of a node, but for ``changes``; its index."""
        leaf = {"kind": "call", "key": None, "value": None, "rows": None, "columns": None}
        changes = {**leaf, "op": ops.name_of(target), "target": target, "args": args, "kwargs": {}, **changes}
        self.found.append(dataclasses.replace(like, index=len(self.found), **changes))
        return len(self.found) - 1

    def same(self, node: Node, form: Form, args: Any, kwargs: Any = None, **changes: Any) -> tuple[int, Form]:
        """Add a node's operation with other arguments; its index, and the form of its result in the model."""
        assert node.shape is not None
        kwargs = node.kwargs if kwargs is None else kwargs
        changes = {"args": tuple(args), "kwargs": kwargs, "shape": form.shape(node.shape), **changes}
        self.found.append(dataclasses.replace(node, index=len(self.found), **changes))
        return len(self.found) - 1, form

    def source(self, node: Node) -> tuple[int, Form] | None:
        """The first argument with the batch in front, and its form; None where it has none."""
        return self.held.get(node.args[0].index) if isinstance(node.args[0], Ref) else None

    def constant(self, item: Any) -> bool:
        """Return whether an argument is the same for every batch."""
        return not isinstance(item, Ref) or not self.nodes[item.index].batched

    def reshaped(self, index: int, shape: Sequence[int | None]) -> int:
        """A new node's value in another shape, whose first axis may be the batch's."""
        like = self.found[index]
        if like.shape == tuple(shape):
            return index
        sizes = [-1 if axis == 0 and size in (None, -1) else size for axis, size in enumerate(shape)]
        return self.add(like, aten.reshape.default, (Ref(index), sizes), shape=tuple(shape))

    def common_form(self, refs: Sequence[Ref], rank: int) -> Form | None:
        """The form that all operands have when they are broadcast to ``rank`` axes; None if they differ in it."""
        forms = set()
        for ref in refs:
            node = self.nodes[ref.index]
            if not node.batched or node.shape is None:
                continue
            if ref.index not in self.held:
                return None
            form = self.held[ref.index][1]
            forms.add(dataclasses.replace(form, axis=form.axis + rank - len(node.shape)))
        return forms.pop() if len(forms) == 1 and all(form.axis >= 0 for form in forms) else None

    def aligned(self, ref: Ref, rank: int, form: Form) -> Ref | None:
        """An operand in a shape to be broadcast with others of ``form``, which have ``rank`` axes in the model; None if
        that is impossible.
        """
        node = self.nodes[ref.index]
        if node.shape is None:
            return Ref(self.as_given(ref.index))
        missing = rank - len(node.shape)
        if missing < 0:
            return None
        if not node.batched:
            full = [*[1] * missing, *node.shape]
            if missing > form.axis or not node.shape:
                return Ref(self.given[ref.index])
            return Ref(self.reshaped(self.given[ref.index], form.without(full))) if full[form.axis] == 1 else None
        index, own = self.held[ref.index]
        shape = own.shape(node.shape)
        return Ref(self.reshaped(index, (shape[0], *[1] * missing, *shape[1:])))

    def all_aligned(self, node: Node, rank: int, least: int = 0) -> tuple[Any, Form] | None:
        """The arguments of an operation on operands that are broadcast, and their form; None where that is not one, or
        fewer axes than ``least`` come after the batch.
        """
        refs = [Ref(i) for i in node.inputs]
        form = self.common_form(refs, rank)
        if form is None or form.axis >= rank - least:
            return None
        places = {ref.index: self.aligned(ref, rank, form) for ref in refs}
        if any(place is None for place in places.values()):
            return None
        return map_refs((node.args, node.kwargs), lambda ref: places[ref.index]), form


__all__ = ["BatchFirst"]
