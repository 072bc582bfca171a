"""Operations whose every output position is a weighted sum of a few input positions: interpolation, and moves that are
not shifts, such as a roll or a mirrored pad.

They are linear, so they take differences to differences: exact, for every scale and ``align_corners``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from yuzu._engine.context import Context
from yuzu._engine.graph import map_refs
from yuzu._engine.handlers.contract import Rule, Spans, View, spatial_axis
from yuzu._engine.handlers.registry import handles
from yuzu._engine.handlers.whole_rows import resized
from yuzu._engine.layout import Change, Layout, on_device
from yuzu._engine.window import Integers, Window


class Resampled(Rule):
    """Output ``j`` is the sum over ``k`` of ``shares[k, j] * input[places[k, j]]``; without ``shares`` these are 1, and
    a place of -1 stands for zero.
    """

    family = "view"
    reads_reference = False

    def __init__(self, view: View, before: Layout, places: np.ndarray, shares: np.ndarray | None = None) -> None:
        super().__init__(view, Layout("windows", before.axis, places.shape[1]))
        self.places, self.shares = places, shares
        self.read = Reached(places, before.length)
        self.keeps_finite = self.read.alike  # only then do all windows lie alike

    def window(self, windows: Spans) -> tuple[Integers, Integers]:
        (window,) = windows
        assert window is not None
        return self.read.by(window.first, window.stop)

    def needed(self, low: int, high: int) -> list[tuple[int, int]]:
        taken = self.places[:, low:high]
        taken = taken[taken >= 0]
        return [(int(taken.min()), int(taken.max()) + 1) if taken.size else (0, 0)]

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        assert change is not None and change.window is not None and window is not None
        return self.summed(change.tensor, change.window, window, self.shares)

    def summed(self, tensor: torch.Tensor, before: Window, window: Window, shares: np.ndarray | None) -> torch.Tensor:
        """The sum over windows ``(S, A, w, ...)`` of numbers that are zero outside of them."""
        output = window.start[:, None] + np.arange(window.width)
        tail = [1] * (tensor.dim() - 3)
        result = None
        for k, places in enumerate(self.places):

            def table(k: int = k, places: np.ndarray = places) -> tuple[torch.Tensor, torch.Tensor, Window]:
                place = places[output] - before.start[:, None]
                inside = (places[output] >= 0) & (place >= 0) & (place < before.width)
                index = on_device(np.where(inside, place, 0), tensor.device)
                return index, on_device(~inside, tensor.device), before

            index, outside, _ = window.cached(("read", self.node.index, k, id(before)), table)
            taken = _taken(tensor, index).masked_fill_(outside.view(len(output), 1, -1, *tail), 0)
            if shares is not None:
                share = on_device(shares[k][output], tensor.device).to(tensor.dtype)
                taken = taken.mul_(share.view(len(output), 1, -1, *tail))
            result = taken if result is None else result.add_(taken)
        assert result is not None
        return result


def _taken(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The positions ``index`` ``(S, w')`` of ``(S, A, w, ...)``: a copy."""
    sites, edits, width = tensor.shape[:3]
    first = torch.arange(sites * edits, device=tensor.device).view(sites, edits, 1) * width
    rows = tensor.reshape(sites * edits * width, -1).index_select(0, (first + index[:, None]).reshape(-1))
    return rows.view(sites, edits, -1, *tensor.shape[3:])


class Reached:
    """The outputs that read some of the inputs: the first, and the one after the last.

    Attributes
    ----------
    alike: bool
        They lie at the same distance from every input, as those of a shift do.
    near: bool
        Neighbours among the inputs are mostly read by neighbours among the outputs.
    """

    def __init__(self, places: np.ndarray, length: int) -> None:
        self.length, (_, outputs) = length, places.shape
        first, stop = np.full(length, outputs), np.zeros(length, dtype=np.int64)
        output = np.broadcast_to(np.arange(outputs), places.shape)[places >= 0]
        np.minimum.at(first, places[places >= 0], output)
        np.maximum.at(stop, places[places >= 0], output + 1)
        distance, end = first - np.arange(length), stop - np.arange(length)
        at = length // 2
        inside = stop > first
        self.alike = bool(inside[at] and (distance[inside] >= distance[at]).all() and (end[inside] <= end[at]).all())
        # over 1, 2, 4, ... inputs from each one on
        self.first, self.stop = [first], [stop]
        while 2 << len(self.first) - 1 <= length:
            half = 1 << len(self.first) - 1
            self.first.append(np.minimum(self.first[-1][:-half], self.first[-1][half:]))
            self.stop.append(np.maximum(self.stop[-1][:-half], self.stop[-1][half:]))
        few = min(3, len(self.first) - 1)
        spread = np.maximum(self.stop[few] - self.first[few], 0)
        self.near = bool(np.median(spread) <= max(16, outputs // 4))

    def by(self, first: Integers, stop: Integers) -> tuple[Integers, Integers]:
        """The outputs that read any input of ``[first, stop)``."""
        first, stop = np.clip(first, 0, self.length), np.clip(stop, 0, self.length)
        lowest, highest = np.zeros_like(first), np.zeros_like(first)
        level = np.where(stop > first, np.frexp(np.maximum(stop - first, 1))[1] - 1, -1)
        for k, (least, most) in enumerate(zip(self.first, self.stop, strict=True)):
            here = level == k
            left, right = first[here], stop[here] - (1 << k)
            lowest[here] = np.minimum(least[left], least[right])
            highest[here] = np.maximum(most[left], most[right])
        none = highest <= lowest
        return np.where(none, 0, lowest), np.where(none, 0, highest)


def places_of(view: View, length: int) -> np.ndarray:
    """The places among the inputs, as fractions, that an operation on ``(N, C, L)`` takes its outputs from."""
    ramp = torch.arange(length, dtype=torch.float64, device="cpu")[None, None]
    arguments: Any = map_refs((view.node.args, view.node.kwargs), lambda _: ramp)
    return view.node.target(*arguments[0], **arguments[1])[0, 0].numpy()


@handles("aten.upsample_linear1d")
def upsample_linear(view: View) -> Rule | str:
    """``(1 - t) x[i] + t x[i + 1]`` with ``i + t`` the output's place among the inputs."""
    before = view.movable(view.node.args[0])
    if spatial_axis(before) != 2:
        return resized(view)
    place = places_of(view, before.length)
    left = np.clip(np.floor(place).astype(np.int64), 0, before.length - 1)
    share = place - left
    right = np.where(share > 0, np.minimum(left + 1, before.length - 1), -1)
    return Resampled(view, before, np.stack([left, right]), np.stack([1 - share, share]))


__all__ = ["Resampled", "places_of"]
