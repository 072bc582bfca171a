"""Keeps the batch on the first axis of every value, where a model moves it to another one.

    (B, T, E) -> transpose -> (T, B, E) -> linear -> view (T, B * H, D) -> transpose -> (B * H, T, D)

is what `nn.MultiheadAttention` does with its queries; here it becomes

    (B, T, E) -> linear -> view (B, T, H, D) -> permute (B, H, T, D)

so that handlers, which know rows on the first axis only, see an ordinary graph. A value whose batch the model has on
another axis is made with the batch in front, and a `Form` says on which axis the model has it. Numbers of axes are
translated. An axis that holds the batch and others, like ``B * H``, is taken apart. An operation without a translation
reads its inputs as the model has them, and runs as it did before.
"""

from __future__ import annotations

import operator
from typing import Any

import torch

from yuzu._engine.graph import Node, Ref
from yuzu._engine.rewrite.batch_first.form import batch_axes
from yuzu._engine.rewrite.batch_first.parts import on_parts
from yuzu._engine.rewrite.batch_first.translations import translation_of
from yuzu._engine.rewrite.batch_first.values import BatchFirst

aten = torch.ops.aten


def batch_first(nodes: list[Node], outputs: list[Any]) -> tuple[list[Node], list[Any], dict[int, int]]:
    """The nodes with the batch in front, renumbered; the outputs' new indices; and the new index of every node that is
    held with the batch in front. Where the model has it there anyway, all is returned as it was.
    """
    if all(batch_axes(node.shape) in ([], [0]) and (node.shape or (None,))[0] != -1 for node in nodes):
        return nodes, outputs, {node.index: node.index for node in nodes}
    new = Rewriting(nodes)
    outputs = [new.as_given(o) if isinstance(o, int) else o for o in outputs]
    return new.found, outputs, {i: index for i, (index, _) in new.held.items()}


class Rewriting(BatchFirst):
    """The nodes of a model, translated one after the other."""

    def __init__(self, nodes: list[Node]) -> None:
        super().__init__(nodes)
        for node in nodes:
            self._take(node)

    def _take(self, node: Node) -> None:
        if node.shape is None or not node.batched or node.kind != "call":
            if not self._take_size(node):
                self.copy(node)
            return
        read = [self.held.get(i) for i in node.inputs if self.nodes[i].batched and self.nodes[i].shape is not None]
        forms = [held[1] for held in read if held is not None]
        as_it_is = len(forms) == len(read) and all(form.plain for form in forms) and batch_axes(node.shape) == [0]
        if not as_it_is or (node.shape[0] == -1 and all(form.size is None for form in forms)):
            translation = translation_of(node)
            result = translation(self, node) if translation is not None else None
            result = on_parts(self, node) if result is None else result
            if result is not None:
                self.held[node.index] = result
                if result[1].plain:
                    self.given[node.index] = result[0]
                return
        self.copy(node)

    def _take_size(self, node: Node) -> bool:
        """Take a node that is known to be a multiple of a batch's size as such; whether it is one."""
        if node.op == "aten.sym_size" and node.inputs[0] in self.held:
            (source,) = node.inputs
            index, form = self.held[source]
            if node.argument(1, "dim") % len(self.nodes[source].shape or ()) != form.axis:
                return False
            size = self.add(node, aten.sym_size.int, (Ref(index), 0), shape=None, dtype=None, mutated=False)
            self.sizes[node.index] = size, form.size, form.outer * form.inner
            if form.outer * form.inner > 1:
                args = (Ref(size), form.outer * form.inner)
                size = self.add(node, operator.mul, args, shape=None, dtype=None, mutated=False)
            self.given[node.index] = size
            return True
        if node.target is operator.mul and len(node.inputs) == 1 and node.inputs[0] in self.sizes:
            numbers = [a for a in node.args if isinstance(a, int)]
            base, size_of, times = self.sizes[node.inputs[0]]
            if len(numbers) == 1 and numbers[0] > 0:
                self.sizes[node.index] = base, size_of, times * numbers[0]
        return False


__all__ = ["Rewriting", "batch_first"]
