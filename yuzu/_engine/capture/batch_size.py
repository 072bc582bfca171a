"""Finds the batch size among the integers of a program, for a model that makes a plain integer of it.

Such a model, with ``x.reshape(len(x), -1)`` for example, cannot be traced for any batch size. It is traced for two. An
integer that is a multiple of the first size in the first program, and the same multiple of the second size in the
second, is that multiple of the batch size. All else must be the same in both.
"""

from __future__ import annotations

import operator
from typing import Any

import torch

Shapes = dict[torch.fx.Node, tuple[int | None, ...]]


class Unlike(Exception):
    """The two programs differ in more than the batch size."""


def find_batch_size(program: Any, other: Any, sizes: tuple[int, int]) -> Shapes:
    """Let a program that was exported for a batch of ``sizes[0]`` take the batch size from its sequences. ``other`` is
    the same model's program for a batch of ``sizes[1]``. Returns the shapes of the program's nodes, None on the batch's
    axis and -1 for a multiple of it.

    Raises
    ------
    Unlike
        If the programs differ in anything else.
    """
    graph = program.graph
    mine, theirs = list(graph.nodes), list(other.graph.nodes)
    if [(node.op, node.target) for node in mine] != [(node.op, node.target) for node in theirs]:
        raise Unlike("the operations depend on the batch size")
    for name, value in program.constants.items():
        if isinstance(value, torch.Tensor) and not torch.equal(value, other.constants[name]):
            raise Unlike("the constants depend on the batch size")
    place = {node: i for i, node in enumerate(theirs)}
    inputs = [s.arg.name for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"]
    sequences = next(node for node in mine if node.name == inputs[0])
    last_input = [node for node in mine if node.op == "placeholder"][-1]
    multiples: dict[int, torch.fx.Node] = {}

    def multiple(factor: int) -> torch.fx.Node:
        if factor not in multiples:
            size = last_input if factor == 1 else multiple(1)
            with graph.inserting_after(size):
                multiples[factor] = (
                    graph.call_function(torch.ops.aten.sym_size.int, (sequences, 0))
                    if factor == 1
                    else graph.call_function(operator.mul, (size, factor))
                )
        return multiples[factor]

    def matched(a: Any, b: Any) -> Any:
        if isinstance(a, torch.fx.Node):
            if not isinstance(b, torch.fx.Node) or mine[place[b]] is not a:
                raise Unlike("the operands depend on the batch size")
            return a
        if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
            return type(a)(matched(*both) for both in zip(a, b, strict=True))
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            return {key: matched(value, b[key]) for key, value in a.items()}
        if type(a) is type(b) and (a == b or (a != a and b != b)):  # NaN is not equal to itself
            return a
        if type(a) is int and type(b) is int and a % sizes[0] == 0 and a // sizes[0] * sizes[1] == b:
            return multiple(a // sizes[0])
        raise Unlike(f"{a!r} becomes {b!r} with the batch size")

    def shape(a: Any, b: Any) -> tuple[int | None, ...]:
        if len(a) != len(b):
            raise Unlike("the numbers of axes depend on the batch size")
        return tuple(x if x == y else None if (x, y) == sizes else -1 for x, y in zip(a, b, strict=True))

    shapes: Shapes = {}
    for node, like in zip(mine, theirs, strict=True):
        node.args, node.kwargs = matched(node.args, like.args), matched(node.kwargs, like.kwargs)
        values = node.meta.get("val"), like.meta.get("val")
        if all(isinstance(value, torch.Tensor) for value in values):
            shapes[node] = shape(values[0].shape, values[1].shape)
    results = [node for node in mine[-1].all_input_nodes if node in shapes]
    if any(shapes[node][:1] != (None,) for node in results):
        raise Unlike("the batch is not the first axis of a result")
    return shapes
