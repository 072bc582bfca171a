"""Linear interpolation along positions.

Output ``j`` is ``(1 - t) x[i] + t x[i + 1]`` with ``i + t`` its place among the inputs, which never decreases with
``j``. The operation is linear, so it takes differences to differences: exact, for every scale and ``align_corners``.
"""

from __future__ import annotations

import numpy as np
import torch

from yuzu._engine.context import Context
from yuzu._engine.graph import map_refs
from yuzu._engine.handlers.contract import Rule, Spans, View, spatial_axis
from yuzu._engine.handlers.registry import handles
from yuzu._engine.handlers.whole_rows import resized
from yuzu._engine.layout import Change, Layout, on_device
from yuzu._engine.window import Integers, Window


class Interpolated(Rule):
    """Two neighbours of each output position, weighted."""

    family = "view"
    reads_reference = False
    keeps_finite = True

    def __init__(self, view: View, before: Layout) -> None:
        super().__init__(view, Layout("windows", before.axis, view.shape[before.axis]))
        # applied to the inputs' own positions, the operation gives each output's place among them
        ramp = torch.arange(before.length, dtype=torch.float64, device="cpu")[None, None]
        arguments = map_refs((self.node.args, self.node.kwargs), lambda _: ramp)
        place = self.node.target(*arguments[0], **arguments[1])[0, 0].numpy()
        self.left = np.clip(np.floor(place).astype(np.int64), 0, before.length - 1)
        self.share = place - self.left
        self.right = np.minimum(self.left + (self.share > 0), before.length - 1)

    def window(self, windows: Spans) -> tuple[Integers, Integers]:
        (window,) = windows
        assert window is not None
        first = np.searchsorted(self.right, window.first)
        return first, np.where(window.stop > window.first, np.searchsorted(self.left, window.stop), first)

    def needed(self, low: int, high: int) -> list[tuple[int, int]]:
        return [(int(self.left[low]), int(self.right[high - 1]) + 1)]

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        assert change is not None and change.window is not None and window is not None
        before, device = change.window, change.tensor.device
        output = window.start[:, None] + np.arange(window.width)
        share = on_device(self.share[output], device).to(change.tensor.dtype)
        tail = [1] * (change.tensor.dim() - 3)
        result = change.tensor.new_zeros(())
        for read, weight in ((self.left[output], 1 - share), (self.right[output], share)):
            place = read - before.start[:, None]
            inside = on_device((place >= 0) & (place < before.width), device)
            index = on_device(np.clip(place, 0, before.width - 1), device).view(len(output), 1, -1, *tail)
            taken = torch.take_along_dim(change.tensor, index, 2)
            result = result + taken * (weight * inside).view(len(output), 1, -1, *tail)
        return result


@handles("aten.upsample_linear1d")
def upsample_linear(view: View) -> Rule | str:
    before = view.movable(view.node.args[0])
    if spatial_axis(before) != 2:
        return resized(view)
    return Interpolated(view, before)
