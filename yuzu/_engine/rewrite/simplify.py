"""Rewrites a captured graph to the fewest kinds of operation, without changing a single value.

Copies and slices of everything are dropped. A ``split`` or ``unbind`` becomes slices. An operation with several results
becomes one with one result, where only the first is read or each can be computed by itself. A sum or mean along an axis
takes over the slice before it. Nodes that nothing reads are dropped.
"""

from __future__ import annotations

import dataclasses
import operator
import string
from typing import Any

import torch

from yuzu._engine import ops
from yuzu._engine.graph import END, Node, OfSlice, Ref, Result, count_readers, map_refs
from yuzu._engine.rewrite.row_index import find_row_indices
from yuzu._engine.rewrite.strides import name_relative_shift, name_strides
from yuzu._engine.rewrite.unread import without_unread

aten = torch.ops.aten


def as_complex(x: torch.Tensor) -> torch.Tensor:
    """Pairs of real numbers as complex ones, also where memory does not hold them in order."""
    return torch.view_as_complex(x.contiguous())


def simplify(nodes: list[Node], outputs: list[Any]) -> tuple[list[Node], list[Any]]:
    """The simplified nodes, renumbered, and the outputs' new indices."""
    nodes = [dataclasses.replace(node) for node in nodes]
    same = list(range(len(nodes)))  # for each node, the first that computes the same value
    read: dict[int, set[Any]] = {}  # the results of an operation that are read
    for node in nodes:
        if node.target is operator.getitem and isinstance(node.args[0], Ref):
            read.setdefault(node.args[0].index, set()).add(node.args[1])
    taken: dict[tuple[int, int], int] = {}  # the node of one result of an operation

    for node in nodes:
        if node.kind != "call":
            continue
        node.args = map_refs(node.args, lambda ref: Ref(same[ref.index]))
        node.kwargs = map_refs(node.kwargs, lambda ref: Ref(same[ref.index]))
        _use_plain_operation(node, nodes)
        member = _picked_of_stack(node, nodes)
        if member is not None:
            same[node.index] = member
        elif _is_copy(node, nodes):
            same[node.index] = node.args[0].index
        elif node.target is operator.getitem and isinstance(node.args[0], Ref) and isinstance(node.args[1], int):
            source, which = nodes[node.args[0].index], node.args[1]
            if (ops.of(source.op).splits and _pick_to_slice(node, source)) or source.kind != "call":
                continue
            if read[source.index] == {0} or ops.of(source.op).picked:
                same[node.index] = taken.setdefault((source.index, which), node.index)
                node.target, node.op, node.layer = Result(source.target, which), source.op, source.layer
                node.args, node.kwargs = source.args, source.kwargs

    outputs = [same[o] if isinstance(o, int) else o for o in outputs]
    find_row_indices(nodes)
    nodes, outputs = without_unread(nodes, outputs)
    _take_slices_over(nodes, count_readers(nodes, outputs))
    return without_unread(nodes, outputs)


def _use_plain_operation(node: Node, nodes: list[Node]) -> None:
    """Exchange an operation for a usual one that computes the same."""
    if node.op in ("aten.view", "aten._unsafe_view"):
        node.target = aten.reshape.default  # a view may have to copy once the copies before it are gone
    if node.op == "aten.instance_norm" and node.argument(5, "use_input_stats", True) is False:
        node.op, node.target = "aten.batch_norm", aten.batch_norm.default  # with the same arguments
    if node.op == "aten.view_as_complex":
        node.target = as_complex
    if node.op == "aten.as_strided":
        name_strides(node, nodes)
    if node.op == "aten.slice":
        name_relative_shift(node, nodes)
    if node.op == "aten.squeeze":
        _keep_batch_axis(node, nodes)
    if node.op == "aten.einsum":
        _write_out_equation(node, nodes)


def _write_out_equation(node: Node, nodes: list[Node]) -> None:
    """Give each axis of an einsum a letter: those under an ellipsis, and those of a result that is not written out."""
    equation, operands = node.args[0].replace(" ", ""), [nodes[ref.index] for ref in node.args[1]]
    labels, arrow, result = equation.partition("->")
    if ("..." not in equation and arrow) or any(operand.shape is None for operand in operands):
        return
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    own = [label.replace("...", "") for label in labels.split(",")]
    under = [len(o.shape or ()) - len(letters) for o, letters in zip(operands, own, strict=True)]
    most = max(under)
    if most > len(spare):
        return
    covered = "".join(spare[:most])
    if not arrow:
        once = sorted(letter for letter in set("".join(own)) if "".join(own).count(letter) == 1)
        result = ("..." if "..." in labels else "") + "".join(once)
    written = [
        label.replace("...", covered[most - count :]) for label, count in zip(labels.split(","), under, strict=True)
    ]
    node.args = (f"{','.join(written)}->{result.replace('...', covered)}", *node.args[1:])


def _keep_batch_axis(node: Node, nodes: list[Node]) -> None:
    """Let a squeeze name its axes, without the batch's, which it would remove from a batch of one."""
    (source,) = node.inputs
    shape = nodes[source].shape
    if shape is None:
        return
    given = node.argument(1, "dim", list(range(len(shape))))
    axes = [axis % len(shape) for axis in ([given] if isinstance(given, int) else given)] if shape else []
    if len(node.args) == 1 or any(shape[axis] is None or shape[axis] == -1 for axis in axes):
        node.target, node.args, node.kwargs = (
            aten.squeeze.dims,
            (node.args[0], [axis for axis in axes if shape[axis] == 1]),
            {},
        )


def _picked_of_stack(node: Node, nodes: list[Node]) -> int | None:
    """The tensor that a node picks out of a stack; None if it is no such node."""
    if node.op != "aten.select" or not isinstance(node.args[0], Ref):
        return None
    source, index = nodes[node.args[0].index], node.argument(2, "index")
    if source.op != "aten.stack" or not source.shape or not isinstance(index, int):
        return None
    axis, rank = source.argument(1, "dim", 0), len(source.shape)
    if node.argument(1, "dim", 0) % rank != axis % rank:
        return None
    picked = source.args[0][index]
    return picked.index if isinstance(picked, Ref) else None


def _is_copy(node: Node, nodes: list[Node]) -> bool:
    """Return whether a node returns its first argument."""
    if not node.args or not isinstance(node.args[0], Ref):
        return False
    source = nodes[node.args[0].index]
    if ops.of(node.op).copies:
        return True
    if ops.of(node.op).casts:
        return source.dtype == node.dtype and "device" not in node.kwargs
    if node.op == "aten.slice":
        start, end, step = node.argument(2, "start"), node.argument(3, "end"), node.argument(4, "step", 1)
        return start in (None, 0) and end in (None, END) and step == 1
    if node.op in ("aten.view", "aten.reshape", "aten.expand", "aten._unsafe_view", "aten.squeeze"):
        return source.shape == node.shape and source.shape is not None and -1 not in source.shape
    return False


def _take_slices_over(nodes: list[Node], readers: list[int]) -> None:
    """Let a sum or mean take over the slice before it, if nothing else reads that."""
    for node in nodes:
        if node.op not in ("aten.sum", "aten.mean") or not isinstance(node.argument(1, "dim"), list | tuple):
            continue
        cut = nodes[node.args[0].index]
        if cut.op != "aten.slice" or readers[cut.index] != 1 or cut.argument(4, "step", 1) != 1:
            continue
        source = nodes[cut.args[0].index]
        assert cut.shape is not None and source.shape is not None
        rank = len(cut.shape)
        axis, start = cut.argument(1, "dim", 0) % rank, cut.argument(2, "start") or 0
        size, held = source.shape[axis], cut.shape[axis]
        if axis not in [a % rank for a in node.argument(1, "dim")] or not isinstance(start, int):
            continue
        if size is None or held is None or size < 0 or held < 0:
            continue  # along the batch, or of a size that depends on it
        first = min(max(start + size, 0) if start < 0 else start, size)
        node.target = OfSlice(node.target, axis, first, first + held)
        node.op, node.args = f"yuzu.{node.op.removeprefix('aten.')}_of_slice", (cut.args[0], *node.args[1:])


def _pick_to_slice(node: Node, source: Node) -> bool:
    """Make one of the results of a split a slice, if its bounds are known; whether they are."""
    which = node.args[1]
    sizes = source.argument(1, "split_size", source.kwargs.get("split_sizes"))
    axis = source.argument(2, "dim", 0) if source.op != "aten.unbind" else source.argument(1, "dim", 0)
    if node.shape is None or not isinstance(axis, int) or which < 0:
        return False
    if source.op == "aten.unbind":
        node.target, node.op, node.args = aten.select.int, "aten.select", (source.args[0], axis, which)
        return True
    if source.op == "aten.split" and isinstance(sizes, int):
        start = which * sizes
    elif isinstance(sizes, tuple | list) and all(isinstance(size, int) for size in sizes):
        start = sum(sizes[:which])
    else:
        return False
    width = node.shape[axis]
    if width is None or width < 0:
        return False
    node.target, node.op, node.args = (
        aten.slice.Tensor,
        "aten.slice",
        (source.args[0], axis, start, start + width),
    )
    return True


__all__ = ["as_complex", "simplify"]
