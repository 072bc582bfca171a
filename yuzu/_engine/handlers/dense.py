"""Linear layers and products of matrices. Along channels the product itself runs on the differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from yuzu._engine.context import Context
from yuzu._engine.graph import Ref
from yuzu._engine.handlers.affine import Linear
from yuzu._engine.handlers.contract import Rule, View
from yuzu._engine.handlers.elementwise import common_layout
from yuzu._engine.handlers.exact_zeros import is_zero
from yuzu._engine.handlers.facts import Numerics
from yuzu._engine.handlers.over_positions import OverPositions
from yuzu._engine.handlers.pooled_attention import summed_product
from yuzu._engine.handlers.registry import handles
from yuzu._engine.handlers.values import Local, OnRows
from yuzu._engine.kernels.products import low_precision_matrix, product
from yuzu._engine.layout import CONSTANT, ROWS, Change, Layout, rewindow
from yuzu._engine.window import Window


class OnChannels(Rule):
    """``x @ W^T`` along an axis that is not the positions, or on whole differences."""

    family = "dense"
    reads_reference = False
    numerics = Numerics(weighted=True)

    def __init__(self, view: View, layout: Layout, weight: int, transposed: bool) -> None:
        super().__init__(view, layout)
        self.weight, self.transposed = weight, transposed

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        assert change is not None
        weight = run.value(self.weight)

        def make() -> torch.Tensor:
            return low_precision_matrix(weight.T if self.transposed else weight, run.precision, weight.dtype)

        matrix = make() if run.precision != "medium" else run.derived(("channels", self.node.index), [weight], make)
        if window is None:
            tensor = run.whole(self.sources[0], change)
        else:
            assert change.window is not None
            tensor = rewindow(change.tensor, change.window, window)
        rows = tensor.reshape(-1, tensor.shape[-1])
        return product(rows, matrix).view(*tensor.shape[:-1], matrix.shape[1])

    def vanishes(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor | None:
        (change,), (source,), (layout,) = changes, self.sources, self.source_layouts
        return None if change is None else is_zero(run, source, layout, change, window).all(-1, keepdim=True)

    def terms(
        self, run: Context, changes: list[Change | None], window: Window | None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        (change,), (source,), (layout,) = changes, self.sources, self.source_layouts
        if change is None:
            return None
        if window is None:
            difference, reference = run.whole(source, change), run.of_sites(run.value(source))
        else:
            assert change.window is not None
            difference = rewindow(change.tensor, change.window, window)
            reference = run.on_window(source, layout, window)
        there = reference.abs().sum(-1, keepdim=True)
        return (difference + reference).abs().sum(-1, keepdim=True) - there, there


@handles("aten.linear")
def linear(view: View) -> Rule | str:
    node = view.node
    weight, bias = node.args[1], node.argument(2, "bias")
    if view.layout(weight) != CONSTANT or (isinstance(bias, Ref) and view.layout(bias) != CONSTANT):
        return "its weight depends on an input"
    return _by_matrix(view, node.args[0], weight.index, transposed=True)


def _by_matrix(view: View, x: Ref, weight: int, transposed: bool) -> Rule:
    layout = view.layout(x)
    if not view.node.mutated:
        return OnRows(view, widens=False)
    if layout.kind == "windows" and layout.axis == view.rank - 1:
        return OverPositions(view, weight, transposed)
    if layout.kind == "windows" and layout.composite:
        return OnRows(view, widens=False)
    return OnChannels(view, layout, weight, transposed)


@handles("aten.matmul", "aten.mm", "aten.bmm", "aten.addmm")
def matrix_product(view: View) -> Rule | str:
    """With a constant matrix on the right it is a linear layer; otherwise it runs on values, if the batch stays on the
    first axis.
    """
    node = view.node
    if node.op == "aten.addmm":
        bias, left, right = node.args[:3]
        if node.kwargs or view.layout(bias) != CONSTANT:
            return "addmm with factors or a mutated sum"
    else:
        left, right = node.args[0], node.args[1]
    ranks = [len(view.source(ref).shape or ()) for ref in (left, right)]
    if ranks == [view.rank, view.rank] and view.rank > 2 and node.op != "aten.addmm":
        summed = summed_product(view, left, right, (view.rank - 1, view.rank - 2))
        if summed is not None:
            return summed
    if view.mutated(left) and view.layout(right) == CONSTANT and ranks[1] == 2 and ranks[0] >= 2:
        return _by_matrix(view, left, right.index, transposed=False)
    if view.mutated(left) and view.layout(right) == CONSTANT and node.op != "aten.addmm" and ranks[0] == view.rank > 2:
        return _by_matrices(view, left, right)
    if view.mutated(left) and view.layout(right) == CONSTANT and ranks[1] == 1 and node.op == "aten.matmul":
        layout = view.layout(left)  # with a vector it is a sum over the last axis, which it drops
        local = layout.kind == "windows" and not layout.composite and layout.axis < ranks[0] - 1
        linear = node.floating and view.source(left).dtype == node.dtype
        return Linear(view, layout if local else ROWS, "dense") if linear else OnRows(view, widens=False)
    if view.layout(left) == CONSTANT and view.mutated(right) and node.op == "aten.matmul" and ranks == [2, view.rank]:
        return _matrix_times(view, right)
    for ref, rank in ((left, ranks[0]), (right, ranks[1])):
        batched = view.layout(ref) != CONSTANT
        if (
            batched
            and (rank != view.rank or rank < 3)
            and not (ref is left and rank == 2 and view.layout(right) == CONSTANT)
        ):
            return "the batch is not the first axis of both operands"
        if not batched and rank >= view.rank and rank > 2 and view.shape_of(ref)[0] != 1:
            return "a constant operand has as many axes as the result"
    return OnRows(view, widens=False)


def _matrix_times(view: View, right: Ref) -> Rule | str:
    """The rule for a constant matrix on the left: on windows, unless it sums over positions."""
    layout = view.layout(right)
    if view.rank < 3 or not view.node.floating or view.source(right).dtype != view.node.dtype:
        return OnRows(view, widens=False)
    local = layout.kind == "windows" and not layout.composite and layout.axis != view.rank - 2
    return Linear(view, layout if local else ROWS, "dense")


def _by_matrices(view: View, left: Ref, right: Ref) -> Rule | str:
    """The rule for a constant matrix for each head or group: on windows, unless it sums over positions, or has a matrix
    for each of them.
    """
    sizes = view.shape_of(right)
    matrices = (*[1] * (view.rank - len(sizes)), *sizes)
    if matrices[0] != 1:
        return "a constant operand has as many axes as the result"
    layout, node = view.layout(left), view.node
    along = layout.axis == view.rank - 2 or (layout.axis < view.rank - 2 and matrices[layout.axis] == 1)
    if layout.kind != "windows" or layout.composite or not along:
        layout = ROWS
    if not node.floating or view.source(left).dtype != node.dtype:
        return OnRows(view, widens=False)
    return ByMatrices(view, layout, "dense")


class ByMatrices(Linear):
    """``x @ W`` with a constant matrix for each head or group. All mutants of a group are the rows of one product;
    PyTorch would run one for each mutant and group.
    """

    def _of_rows(self, rows: torch.Tensor, other: Callable[[int], Any]) -> torch.Tensor:
        matrices = other(self.node.args[1].index)
        groups = matrices.shape[:-2]
        while len(groups) > 1 and groups[0] == 1:
            matrices, groups = matrices[0], groups[1:]
        if rows.dim() != len(groups) + 3 or rows.shape[1:-2] != groups:  # some groups share a matrix
            return super()._of_rows(rows, other)
        lines = rows.flatten(1, -3).transpose(0, 1)  # (G, N, M, K)
        found = torch.bmm(lines.flatten(1, 2), matrices.flatten(0, -3))
        return found.unflatten(1, lines.shape[1:3]).transpose(0, 1).unflatten(1, groups)


@handles("aten.baddbmm")
def product_and_sum(view: View) -> Rule | str:
    found = common_layout(view)
    return found if isinstance(found, str) else OnRows(view, widens=False)


@handles("aten.einsum")
def einsum(view: View) -> Rule | str:
    """Local if the position's letter is in the result and in one operand only; on values if rows stay rows."""
    node = view.node
    equation, operands = node.args[0].replace(" ", ""), list(node.args[1])
    if "..." in equation or "->" not in equation or len(node.args) > 2:
        return "its equation has an ellipsis or no result"
    inputs, result = equation.split("->")
    labels = inputs.split(",")
    batch = result[:1]
    for ref, label in zip(operands, labels, strict=True):
        if (view.layout(ref) != CONSTANT) != (label[:1] == batch) or batch in label[1:]:
            return "the batch is not the first axis of every operand"
    if len(operands) == 2:
        shared = [letter for letter in labels[0] if letter in labels[1] and letter not in result]
        for letter in shared:
            axes = labels[0].index(letter), labels[1].index(letter)
            summed = summed_product(view, operands[0], operands[1], axes)
            if summed is not None:
                return summed
    mutated: list[tuple[Any, str]] = [(r, la) for r, la in zip(operands, labels, strict=True) if view.mutated(r)]
    if len(mutated) == 1 and all(view.layout(r) == CONSTANT for r in operands if r != mutated[0][0]):
        layout, out = view.layout(mutated[0][0]), ROWS
        if layout.kind == "windows" and not layout.composite:
            letter = mutated[0][1][layout.axis]
            if letter in result and sum(label.count(letter) for label in labels) == 1:
                out = Layout("windows", result.index(letter), layout.length)
        # masks and integers are carried as values, so nothing is linear in them
        if node.floating and view.source(mutated[0][0]).dtype == node.dtype:
            return Linear(view, out, "dense")
        if out != ROWS:
            return Local(view, out, broadcast=False)
    return OnRows(view, widens=False)


__all__ = ["OnChannels", "OverPositions"]
