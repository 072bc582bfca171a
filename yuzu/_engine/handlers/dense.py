"""Linear layers.

On channels: the product itself, on the differences. Over positions (after a flatten, or along the last axis):
only the window's positions are nonzero, so each site's window is multiplied with the matching slice of the
weight; sites that share a window share the slice, and the slices are read from the weight where it lies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from yuzu._engine.delta import CONSTANT, ROWS, Change, Layout, on_device, rewindow
from yuzu._engine.graph import Ref
from yuzu._engine.handlers.contract import Rule, View, handles
from yuzu._engine.handlers.convolution_ways import lowered, product
from yuzu._engine.handlers.elementwise import Local, OnRows
from yuzu._engine.window import Window

if TYPE_CHECKING:
    from yuzu._engine.run import Run


class OnChannels(Rule):
    """``x @ W^T`` along an axis that is not the positions, or on whole differences."""

    family = "dense"

    def __init__(self, view: View, layout: Layout, weight: int, transposed: bool) -> None:
        super().__init__(view, layout)
        self.weight, self.transposed = weight, transposed

    def run(self, run: Run, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        assert change is not None
        weight = run.value(self.weight)

        def make() -> torch.Tensor:
            return lowered(weight.T if self.transposed else weight, run.precision)

        matrix = make() if run.precision != "medium" else run.derived(("channels", self.node.index), [weight], make)
        if window is None:
            tensor = run.whole(self.sources[0], change)
        else:
            assert change.window is not None
            tensor = rewindow(change.tensor, change.window, window)
        rows = tensor.reshape(-1, tensor.shape[-1])
        return product(rows, matrix, run.precision).view(*tensor.shape[:-1], matrix.shape[1])


class OverPositions(Rule):
    """``x @ W^T`` where ``x``'s last axis holds the positions (with ``outer`` and ``inner`` channels around
    them).
    """

    family = "dense"

    def __init__(self, view: View, weight: int, transposed: bool) -> None:
        super().__init__(view, ROWS)
        self.weight, self.transposed = weight, transposed

    def run(self, run: Run, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        (layout,) = self.source_layouts
        assert change is not None and change.window is not None
        weight = run.value(self.weight)
        here = change.window

        def position_major() -> torch.Tensor:
            """``(out, L * channels)`` with positions slowest."""
            matrix = weight if self.transposed else weight.T
            matrix = (
                matrix.unflatten(1, (layout.outer, layout.length, layout.inner))
                .permute(0, 2, 1, 3)
                .reshape(matrix.shape[0], -1)
            )
            return lowered(matrix, run.precision).contiguous()

        as_it_lies = self.transposed and layout.outer == 1 and run.precision != "medium" and weight.is_contiguous()
        matrix = weight if as_it_lies else run.derived(("dense", self.node.index), [weight], position_major)
        channels = layout.outer * layout.inner
        tensor = change.tensor
        sites, edits, width = tensor.shape[:3]
        if layout.composite:
            # (S, A, w, before..., outer, inner): the axes before the flattened one stay
            before = tensor.shape[3:-2]
            x = tensor.movedim(2, -3).reshape(sites, edits, *before, width * channels)
        else:
            before = tensor.shape[3:]
            x = tensor.movedim(2, -1)
        x = x.reshape(sites, -1, width * channels)
        result = _sliced_product(x, matrix, here, channels, run)
        return result.view(sites, edits, *before, -1)


def _sliced_product(x: torch.Tensor, matrix: torch.Tensor, window: Window, channels: int, run: Run) -> torch.Tensor:
    """``(S, M, w * channels)`` times the slice of ``matrix`` ``(out, L * channels)`` at each site's window:
    ``(S, M, out)``.
    """
    depth = x.shape[2]
    lines = matrix.stride(0)

    def groups() -> tuple[list[tuple[int, int, int, int, int]], tuple[torch.Tensor, torch.Tensor] | None]:
        """Runs of evenly spaced distinct starts (first and stop site, first start, step, and sites a start) of the
        sites in rising order of their starts; and that order with its inverse, where it is not their own: several
        sequences, mirrored windows.
        """
        order = np.argsort(window.start, kind="stable")
        starts, first, counts = np.unique(window.start[order], return_index=True, return_counts=True)
        found = []
        i = 0
        while i < len(starts):
            j = i + 1
            step = int(starts[j] - starts[i]) if j < len(starts) else 0
            while j < len(starts) and counts[j] == counts[i] and starts[j] - starts[j - 1] == step:
                j += 1
            count = int(counts[i])
            found.append((int(first[i]), int(first[i]) + count * (j - i), int(starts[i]), step, count))
            i = j
        if (order == np.arange(len(order))).all():
            return found, None
        return found, (on_device(order, x.device), on_device(np.argsort(order), x.device))

    precision = run.precision
    runs, order = window.cached(("slices", x.device), groups)
    x = x if order is None else x.index_select(0, order[0])
    results = []
    for begin, stop, start, step, count in runs:
        number = (stop - begin) // count
        slices = matrix.as_strided(
            (number, depth, matrix.shape[0]), (step * channels, 1, lines), matrix.storage_offset() + start * channels
        )
        rows = x[begin:stop].reshape(number, -1, depth)
        if number == 1:
            result = product(rows[0], slices[0], precision)
        elif precision == "medium" and x.dtype == torch.float32:
            result = torch.bmm(rows.to(matrix.dtype), slices).float()
        else:
            result = torch.bmm(rows, slices)
        results.append(result.view(stop - begin, -1, matrix.shape[0]))
    whole = results[0] if len(results) == 1 else torch.cat(results)
    return whole if order is None else whole.index_select(0, order[1])


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
        return OnRows(view)
    if layout.kind == "windows" and layout.axis == view.rank - 1:
        return OverPositions(view, weight, transposed)
    if layout.kind == "windows" and layout.composite:
        return OnRows(view)
    return OnChannels(view, layout, weight, transposed)


@handles("aten.matmul", "aten.mm", "aten.bmm", "aten.addmm")
def matrix_product(view: View) -> Rule | str:
    """By a constant matrix on the right it is a linear layer; otherwise on values, where the batch stays on
    the first axis.
    """
    node = view.node
    if node.op == "aten.addmm":
        bias, left, right = node.args[:3]
        if node.kwargs or view.layout(bias) != CONSTANT:
            return "addmm with factors or a mutated sum"
    else:
        left, right = node.args[0], node.args[1]
    ranks = [len(view.source(ref).shape or ()) for ref in (left, right)]
    if view.mutated(left) and view.layout(right) == CONSTANT and ranks[1] == 2 and ranks[0] >= 2:
        return _by_matrix(view, left, right.index, transposed=False)
    for ref, rank in ((left, ranks[0]), (right, ranks[1])):
        batched = view.layout(ref) != CONSTANT
        if (
            batched
            and (rank != view.rank or rank < 3)
            and not (ref is left and rank == 2 and view.layout(right) == CONSTANT)
        ):
            return "the batch is not the first axis of both operands"
        if not batched and rank >= view.rank and rank > 2:
            return "a constant operand has as many axes as the result"
    return OnRows(view)


@handles("aten.einsum")
def einsum(view: View) -> Rule | str:
    """Local where the position's letter stands in the result and in one operand only; on values where rows
    stay rows.
    """
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
    mutated: list[tuple[Any, str]] = [(r, la) for r, la in zip(operands, labels, strict=True) if view.mutated(r)]
    if len(mutated) == 1:
        layout = view.layout(mutated[0][0])
        if layout.kind == "windows" and not layout.composite:
            letter = mutated[0][1][layout.axis]
            once = sum(label.count(letter) for label in labels) == 1
            others_constant = all(view.layout(r) == CONSTANT for r in operands if r != mutated[0][0])
            if once and letter in result and others_constant:
                return Local(view, Layout("windows", result.index(letter), layout.length), broadcast=False)
    return OnRows(view)


__all__ = ["OnChannels", "OverPositions"]
