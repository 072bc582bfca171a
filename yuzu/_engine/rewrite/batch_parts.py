"""Takes a batch apart that holds every sequence several times, such as both strands:

    net(torch.cat([x, rc(x)])) -> net(x), net(rc(x))

A mutation would reach two rows of such a batch, one of them at another position. Where every operation on the batch
treats rows by themselves, each part is run by itself, as if the model had called ``net`` twice.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from yuzu._engine import ops
from yuzu._engine.graph import END, Node, Ref, Result, map_refs
from yuzu._engine.rewrite.batch_first import batch_first, treat_rows_alone
from yuzu._engine.rewrite.unread import without_unread

RESHAPES = ops.with_fact("reshapes") | {"aten.expand"}
stack = torch.ops.aten.stack.default


class Inseparable(Exception):
    """The batch is used in a way that cannot be divided among its parts."""


@dataclass
class Parts:
    """The nodes that hold the parts of a batch, which lie one after the other (``x1 x2 y1 y2``) or row by row (``x1 y1
    x2 y2``).
    """

    nodes: list[int]
    row_by_row: bool


def take_batch_apart(nodes: list[Node], outputs: list[Any]) -> tuple[list[Node], list[Any]]:
    """The nodes with each part of such a batch by itself, renumbered, and the outputs' new indices. All stays as it was
    where that may not be the same.
    """
    if not any(node.shape and node.shape[0] == -1 for node in nodes):
        return without_unread(nodes, outputs)
    try:
        taken = _Taken(nodes)
        new = [taken.new_of(o) for o in outputs]
    except Inseparable:
        return nodes, outputs
    if not treat_rows_alone(taken.found, taken.of_parts):
        return nodes, outputs
    found, new, _ = batch_first(taken.found, new)
    return without_unread(found, new)


class _Taken:
    """The rewriting: ``found`` are the new nodes, ``of_parts`` the indices of those that work on a part."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.found: list[Node] = []
        self.new: dict[int, int] = {}
        self.parts: dict[int, Parts] = {}
        self.cuts: dict[int, Parts] = {}  # operations that return all parts
        self.sizes: set[int] = set()  # numbers computed from the size of the joined batch
        self.of_parts: list[int] = []
        for node in nodes:
            self._take(node)

    def new_of(self, output: Any) -> Any:
        """The new index of a returned node."""
        if isinstance(output, int) and output not in self.new:
            raise Inseparable
        return self.new[output] if isinstance(output, int) else output

    def _take(self, node: Node) -> None:
        read = [i for i in node.inputs if i in self.parts]
        begun = None if read else self._begun(node)
        if begun is not None:
            self.parts[node.index] = begun
        elif node.target is operator.getitem and node.inputs and node.inputs[0] in self.cuts:
            self.new[node.index] = self.cuts[node.inputs[0]].nodes[node.args[1]]
        elif (read or self.sizes.intersection(node.inputs)) and self._multiple(Ref(node.index)) is not None:
            self.sizes.add(node.index)  # only a slice may read it
        elif not read:
            self._add(node, self._renewed(node, self.new))
        elif not self._ended(node):
            self._each(node, [self.parts[i] for i in read])

    def _add(self, node: Node, arguments: Any, **changes: Any) -> int:
        args, kwargs = arguments
        added = dataclasses.replace(node, index=len(self.found), args=args, kwargs=kwargs, **changes)
        if added.inputs:  # one of the parts may come from another input
            added.mutated &= any(self.found[i].mutated for i in added.inputs)
        self.found.append(added)
        self.new.setdefault(node.index, added.index)
        return added.index

    def _renewed(self, node: Node, new: Mapping[int, int | None]) -> Any:
        def renew(ref: Ref) -> Ref:
            index = new.get(ref.index)
            if index is None:
                raise Inseparable
            return Ref(index)

        return map_refs((node.args, node.kwargs), renew)

    def _begun(self, node: Node) -> Parts | None:
        """The parts that a node joins along the batch; None if it is no such node."""
        if not node.shape or node.shape[0] != -1 or not node.inputs:
            return None
        source, row_by_row = node, False
        if node.op in RESHAPES:
            source = self.nodes[node.inputs[0]]
            if source.op != "aten.stack" or source.shape is None or node.shape[1:] != source.shape[2:]:
                return None
            axis = source.argument(1, "dim", 0) % len(source.shape)
            if axis > 1:
                return None
            row_by_row = axis == 1
        elif not ops.of(node.op).joins or node.argument(1, "dim", 0) % len(node.shape) != 0:
            return None
        joined = [self.nodes[ref.index] for ref in source.args[0]]
        alike = all(n.shape == (None, *node.shape[1:]) and n.dtype == node.dtype for n in joined)
        if not alike or any(n.index not in self.new for n in joined):
            return None
        return Parts([self.new[n.index] for n in joined], row_by_row)

    def _multiple(self, size: Any) -> int | None:
        """The number by which the batch's size is multiplied to give ``size``; None where it is not known."""
        if not isinstance(size, Ref):
            return 0 if size == 0 else None
        node = self.nodes[size.index]
        if node.op == "aten.sym_size" and node.argument(1, "dim") == 0:
            source = self.nodes[node.inputs[0]]
            if source.index in self.parts:
                return len(self.parts[source.index].nodes)
            return 1 if source.shape and source.shape[0] is None else None
        if node.target in (operator.mul, operator.floordiv) and len(node.inputs) == 1:
            ((number,), known) = [a for a in node.args if isinstance(a, int)], self._multiple(Ref(node.inputs[0]))
            if known is not None and node.target is operator.mul:
                return known * number
            if known is not None and isinstance(node.args[0], Ref) and known % number == 0:
                return known // number
        return None

    def _ended(self, node: Node) -> bool:
        """Take a node that picks one part, or puts the parts on an axis of their own; whether it is one."""
        source = self.nodes[node.inputs[0]]
        parts = self.parts.get(source.index)
        if parts is None:
            return False
        if self._cut(node, parts):
            return True
        which = self._part_of_slice(node, parts)
        if which is not None and 0 <= which < len(parts.nodes):
            self.new[node.index] = parts.nodes[which]
            return True
        if node.op in RESHAPES and source.shape is not None:
            axis = 1 if parts.row_by_row else 0
            shape = [None, *source.shape[1:]]
            shape.insert(axis, len(parts.nodes))
            if node.shape == tuple(shape):
                self._add(node, (([Ref(i) for i in parts.nodes], axis), {}), op="aten.stack", target=stack)
                return True
        return False

    def _cut(self, node: Node, parts: Parts) -> bool:
        """Take a node that splits the batch into its parts; whether it is one."""
        splits = ops.of(node.op).splits and node.op != "aten.unbind"
        if not splits or node.argument(2, "dim", 0) != 0 or parts.row_by_row:
            return False
        size = node.args[1]
        sizes = [size] if node.op != "aten.split_with_sizes" else size
        one_each = all(self._multiple(s) == 1 for s in sizes)
        if not (size == len(parts.nodes) if node.op == "aten.chunk" else one_each):
            return False
        if isinstance(node.target, Result):
            self.new[node.index] = parts.nodes[node.target.place]
        else:
            self.cuts[node.index] = parts
        return True

    def _part_of_slice(self, node: Node, parts: Parts) -> int | None:
        """The number of the part that a node slices out of the batch; None where it is not one part."""
        if node.op != "aten.slice" or node.argument(1, "dim", 0) != 0:
            return None
        count = len(parts.nodes)
        start, end, step = node.argument(2, "start") or 0, node.argument(3, "end"), node.argument(4, "step", 1)
        to_the_end = end in (None, END) or self._multiple(end) == count
        if parts.row_by_row:
            return start if step == count and to_the_end and isinstance(start, int) else None
        bounds = self._multiple(start), count if to_the_end else self._multiple(end)
        first, stop = (b + count if b is not None and b < 0 else b for b in bounds)  # from the end
        return first if first is not None and stop == first + 1 and step == 1 else None

    def _each(self, node: Node, read: list[Parts]) -> None:
        """Run a node's operation on each part."""
        first = read[0]
        alike = all((len(p.nodes), p.row_by_row) == (len(first.nodes), first.row_by_row) for p in read)
        others = [self.nodes[i] for i in node.inputs if i not in self.parts]
        if not alike or not node.shape or node.shape[0] != -1:
            raise Inseparable
        whole = any(size is None or size < 0 for size in node.shape[1:])
        # a number that depends on the batch certainly means the joined batch in a reshape only
        if whole or any(n.batched and (n.shape is not None or node.op not in RESHAPES) for n in others):
            raise Inseparable
        changes: dict[str, Any] = {"shape": (None, *node.shape[1:])}
        if node.op in RESHAPES:
            source = self.nodes[node.inputs[0]]
            held = [math.prod(int(s or 0) for s in (shape or ())[1:]) for shape in (source.shape, node.shape)]
            if node.op != "aten.expand" and held[0] != held[1]:
                raise Inseparable  # rows become others
            operation = "expand" if node.op == "aten.expand" else "reshape"
            target = getattr(torch.ops.aten, operation).default
            args = node.args[0], [-1, *node.shape[1:]]
            node = dataclasses.replace(node, op=f"aten.{operation}", target=target, args=args, kwargs={})
        made = []
        for k in range(len(first.nodes)):
            new = {i: self.parts[i].nodes[k] if i in self.parts else self.new.get(i) for i in node.inputs}
            made.append(self._add(node, self._renewed(node, new), **changes))
        del self.new[node.index]
        self.of_parts += made
        self.parts[node.index] = Parts(made, first.row_by_row)


__all__ = ["take_batch_apart"]
