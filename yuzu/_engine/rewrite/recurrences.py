"""Splits recurrent layers into one recurrence for each layer and direction.

``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` are captured as one operation that returns all states of the last layer, and the
last states of every layer. Each part is a function of positions that a handler can start in the middle of a sequence.
The last states are the outputs at the last position, or at the first one for the reverse direction. A layer stays as it
is if it starts from states other than zeros, if something reads the last cell states of an LSTM, if its input is packed
or not ``(N, L, C)`` with the model's own batch, or if it is in training.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import torch

from yuzu._engine.graph import Node, Recurrence, Ref, Result, map_refs

aten = torch.ops.aten
TARGETS = {aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input}
ZEROS = {"aten.zeros", "aten.new_zeros", "aten.zeros_like"}
FULL = {"aten.full": 1, "aten.new_full": 2, "aten.full_like": 1}  # the place of the value among the arguments
MOVES = {"aten.expand", "aten.repeat", "aten.unsqueeze", "aten.clone", "aten.contiguous", "aten.to", "aten._to_copy"}
Taken = dict[int, list[Node]]  # for each recurrent node, the nodes that take one of its results


def split_recurrences(nodes: list[Node], outputs: list[Any]) -> tuple[list[Node], list[Any]]:
    """The nodes with such layers split, renumbered, and the outputs' new indices."""
    taken = _taken(nodes, outputs)
    split = {i: results for i, results in taken.items() if _fits(nodes, nodes[i], results)}
    if not split:
        return nodes, outputs
    new = _NewNodes(nodes)
    owners = {result.index: i for i, results in split.items() for result in results}
    for node in nodes:
        if node.index in split and not _is_result(node):
            continue  # its results are made where they are taken
        if node.index in owners:
            new.place[node.index] = new.result(nodes[owners[node.index]], node)
        else:
            new.place[node.index] = new.copy(node)
    return new.found, [new.place[o] if isinstance(o, int) else o for o in outputs]


def _is_result(node: Node) -> bool:
    return isinstance(node.target, Result)


def _taken(nodes: list[Node], outputs: list[Any]) -> Taken:
    """The recurrent nodes, each with the nodes that take one of its results; those that something else reads are not
    among them.
    """
    found: Taken = {}
    for node in nodes:
        target = node.target.target if isinstance(node.target, Result) else node.target
        if node.kind == "call" and target in TARGETS:
            found[node.index] = [node] if _is_result(node) else []
    for node in nodes:
        for i in node.inputs:
            if i in found and not _is_result(nodes[i]):
                if node.target is operator.getitem and isinstance(node.args[1], int):
                    found[i].append(node)
                else:
                    found[i].append(dataclasses.replace(node, args=(None, -1)))  # which no result is
    return {i: results for i, results in found.items() if results and (i not in outputs or _is_result(nodes[i]))}


def _place(result: Node) -> int:
    """Which of the results a node takes."""
    return result.target.place if isinstance(result.target, Result) else result.args[1]


def _fits(nodes: list[Node], node: Node, results: list[Node]) -> bool:
    """Tell whether a recurrent layer starts from zeros, and only its outputs and last (hidden) states are read."""
    x, states, _, _, _, _, train, _, batch_first = node.args
    starts = [nodes[ref.index] for ref in (states if isinstance(states, tuple | list) else [states])]
    shape = nodes[x.index].shape
    plain = not train and not node.kwargs and shape is not None and len(shape) == 3 and node.mutated
    batch = shape[0 if batch_first else 1] if plain and shape is not None else -1
    return plain and batch is None and all(_zero(nodes, s) for s in starts) and {_place(r) for r in results} <= {0, 1}


def _zero(nodes: list[Node], node: Node) -> bool:
    """Tell whether a node is zero whatever the model reads."""
    if node.op in FULL:
        value = node.args[FULL[node.op] :]
        return bool(value) and value[0] == 0
    if node.op in MOVES:
        return _zero(nodes, nodes[node.inputs[0]])
    return node.op in ZEROS


class _NewNodes:
    """The new nodes, ``found``, and the ``place`` of each old one among them."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.found: list[Node] = []
        self.place: dict[int, int] = {}
        self._layers: dict[tuple[str, str], tuple[int, list[int]]] = {}  # of those that were split

    def copy(self, node: Node) -> int:
        args, kwargs = (map_refs(a, lambda ref: Ref(self.place[ref.index])) for a in (node.args, node.kwargs))
        self.found.append(dataclasses.replace(node, index=len(self.found), args=args, kwargs=kwargs))
        return len(self.found) - 1

    def add(self, like: Node, op: Any, args: tuple[Any, ...], shape: tuple[int | None, ...]) -> int:
        """Add an operation of the same layer."""
        name = "yuzu.recurrence" if isinstance(op, Recurrence) else f"aten.{op._schema.name.split('::')[1]}"
        made = dataclasses.replace(
            like, index=len(self.found), op=name, target=op, args=args, kwargs={}, shape=shape, mutated=True
        )
        self.found.append(made)
        return made.index

    def result(self, node: Node, result: Node) -> int:
        """Add the outputs of a recurrent layer, or its last states."""
        key = (str(_operation(node)), str(node.args))
        if key not in self._layers:
            self._layers[key] = self._split(node, result.dtype)
        outputs, last = self._layers[key]
        if _place(result) == 1:
            shape = self.found[last[0]].shape or ()
            return self.add(self.found[last[0]], aten.stack.default, ([Ref(i) for i in last],), (len(last), *shape))
        if node.args[8]:
            return outputs
        n, length, size = self.found[outputs].shape or ()
        return self.add(self.found[outputs], aten.transpose.int, (Ref(outputs), 0, 1), (length, n, size))

    def _split(self, node: Node, dtype: torch.dtype | None) -> tuple[int, list[int]]:
        """The outputs ``(N, L, ...)`` of a recurrent layer, and the last states of each layer and direction."""
        source, _, weights, _, layers, _, _, both, batch_first = node.args
        x, directions = self.place[source.index], 2 if both else 1
        like = dataclasses.replace(node, dtype=dtype)
        n, length, size = self.found[x].shape or ()
        if not batch_first:
            length, n = n, length
            x = self.add(like, aten.transpose.int, (Ref(x), 0, 1), (n, length, size))
        each = len(weights) // (layers * directions)
        last: list[int] = []
        for layer in range(layers):
            made = []
            for direction in range(directions):
                first = (layer * directions + direction) * each
                own = [Ref(self.place[ref.index]) for ref in weights[first : first + each]]
                hidden = self.found[own[1].index].shape or ()
                size = hidden[1]  # of what a step reads of the last one: after the projection, if there is one
                recurrence = Recurrence(_operation(node), has_biases=bool(node.args[3]), reverse=direction == 1)
                made.append(self.add(like, recurrence, (Ref(x), own), (n, length, size)))
                end = 0 if direction == 1 else int(length or 0) - 1
                last.append(self.add(like, aten.select.int, (Ref(made[-1]), 1, end), (n, size)))
            x = made[0]
            if directions == 2:
                total = sum(int((self.found[i].shape or ())[2] or 0) for i in made)
                x = self.add(like, aten.cat.default, ([Ref(i) for i in made], 2), (n, length, total))
        return x, last


def _operation(node: Node) -> Any:
    return node.target.target if isinstance(node.target, Result) else node.target


__all__ = ["split_recurrences"]
