"""Padding and rolls: with a constant windows move along; with the values' own, or around, they are picked anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from yuzu._engine.handlers.contract import Rule, View
from yuzu._engine.handlers.interpolate import Resampled, places_of
from yuzu._engine.handlers.registry import handles
from yuzu._engine.handlers.values import OnRows
from yuzu._engine.handlers.view import Moved, Rearranged
from yuzu._engine.layout import ROWS, Layout
from yuzu._engine.window import Geometry


@handles("aten.pad", "aten.constant_pad_nd")
def pad(view: View) -> Rule | str:
    """Padding with a constant, or cropping with negative sizes."""
    node = view.node
    sizes = list(node.args[1])
    if node.op == "aten.pad" and node.argument(2, "mode", "constant") != "constant":
        return _pad_with_own(view)
    if len(sizes) // 2 >= view.rank:
        return "it pads the batch"
    layout = view.movable(node.args[0])
    if not node.mutated or layout.kind != "windows" or layout.composite:
        return Rearranged(view, ROWS, lambda rows: F.pad(rows, sizes))
    place = 2 * (view.rank - 1 - layout.axis)
    left = sizes[place] if place < len(sizes) else 0
    others = sizes.copy()
    others[place : place + 2] = [0, 0]
    length = view.shape[layout.axis]
    geometry = Geometry(1, 1, left, 1, layout.length, length)
    out = Layout("windows", layout.axis, length)

    def pad_rest(tensor: torch.Tensor) -> torch.Tensor:
        rows = F.pad(out.natural(tensor.flatten(0, 1)), others)
        return out.position_first(rows).unflatten(0, tensor.shape[:2])

    return Moved(view, out, geometry, pad_rest if any(others) else None)


def _pad_with_own(view: View) -> Rule | str:
    """Padding with the values' own: mirrored, repeated or from the other end."""
    node, padded = view.node, len(view.node.args[1]) // 2
    if padded >= view.rank:
        return "it pads the batch"
    if not node.mutated:
        return OnRows(view)
    layout = view.movable(node.args[0])

    def padded_rows(rows: torch.Tensor) -> torch.Tensor:
        return node.target(rows, *node.args[1:], **node.kwargs)

    if layout.kind != "windows" or layout.composite:
        return Rearranged(view, ROWS, padded_rows)
    if layout.axis < view.rank - padded:
        return Rearranged(view, layout, padded_rows)
    if padded > 1 or layout.axis != view.rank - 1:
        return Rearranged(view, ROWS, padded_rows)
    return Resampled(view, layout, places_of(view, layout.length).astype(np.int64)[None])


@handles("aten.roll")
def roll(view: View) -> Rule | str:
    node = view.node
    shifts, axes = _listed(node.named("shifts")), [a % view.rank for a in _listed(node.named("dims"))]
    if not axes or 0 in axes:
        return "it moves rows of the batch"
    if not node.mutated:
        return OnRows(view)
    layout = view.movable(node.args[0])
    if layout.kind != "windows" or layout.composite or (layout.axis in axes and len(axes) > 1):
        return Rearranged(view, ROWS, lambda rows: rows.roll(shifts, axes))
    if layout.axis not in axes:
        return Rearranged(view, layout, lambda rows: rows.roll(shifts, axes))
    return Resampled(view, layout, np.roll(np.arange(layout.length), shifts[0])[None])


def _listed(value: Any) -> list[int]:
    return [value] if isinstance(value, int) else list(value or ())
