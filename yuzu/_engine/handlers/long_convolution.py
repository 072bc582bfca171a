"""Long convolutions that a model computes by Fourier transforms, along positions.

With the signal ``h`` of the filter, an input's difference ``D[i]`` adds ``D[i] h[j - i]`` to output ``j``. A few input
positions are multiplied with the signal one by one. Of more, the window alone is transformed. A running sum is the
convolution with ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from yuzu._engine.choice import Choice
from yuzu._engine.context import Context
from yuzu._engine.handlers.affine import Linear
from yuzu._engine.handlers.contract import Reading, Rule, View
from yuzu._engine.handlers.elementwise import along_one_axis
from yuzu._engine.handlers.facts import Numerics, RuleMemory, Sizes
from yuzu._engine.handlers.registry import handles
from yuzu._engine.handlers.values import OnRows
from yuzu._engine.layout import CONSTANT, ROWS, Change, Layout, read_windows, rewindow
from yuzu._engine.rewrite.long_convolutions import LongConvolution
from yuzu._engine.window import Geometry, Window

FEW_POSITIONS = 16  # a transform takes about as long as multiplying with the signal so often
LARGEST_PRIME = 5  # of the lengths of transforms
SIZES = 4  # of windows, between a width and twice as much


class OnWholeRows(Linear):
    """The operation itself, on whole differences or along another axis."""

    def terms(self, run: Context, changes: list[Change | None], window: Window | None) -> None:
        return None

    def knows_terms(self) -> bool:
        return False


class AlongPositions(Reading):
    """Output ``j`` reads the inputs from ``j - reach + 1`` to ``j``."""

    family = "convolution"
    reads_reference = False
    keeps_finite = True
    numerics = Numerics(weighted=True)

    def __init__(self, view: View, before: Layout, target: LongConvolution) -> None:
        super().__init__(view, Layout("windows", before.axis, target.size))
        self.geometry = Geometry(target.reach, 1, target.reach - 1, 1, before.length, target.size)
        self.target, self.frequencies = target, view.node.args[1].index

    def memory(self, choice: Choice, sizes: Sizes) -> RuleMemory:
        return RuleMemory(weights=8 * SIZES * sizes.result, blocks=8)

    def detail(self) -> str:
        return f"reach {self.target.reach}"

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        assert change is not None and change.window is not None and window is not None
        few = change.window.width <= FEW_POSITIONS
        return (self._one_by_one if few else self._transformed)(run, change.tensor, change.window, window)

    def _of_filter(self, run: Context, key: str, make: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """A tensor made from the signal ``(reach, ...)``, positions first."""
        frequencies = run.value(self.frequencies)

        def signal() -> torch.Tensor:
            exact = self.target.signal(frequencies.to(torch.complex128))
            ones = [1] * (len(self.node.shape or ()) - exact.dim())
            rows = self.layout.position_first(exact.reshape(*ones, *exact.shape))[0, : self.target.reach]
            return make(rows).to(frequencies.real.dtype if key == "signal" else frequencies.dtype).contiguous()

        return run.derived((key, self.node.index), [frequencies], signal)

    def _one_by_one(self, run: Context, tensor: torch.Tensor, before: Window, window: Window) -> torch.Tensor:
        reach, first, beside = self.target.reach, np.zeros(len(window.start), dtype=np.int64), self.layout.length

        def padded(signal: torch.Tensor) -> torch.Tensor:
            zeros = signal.new_zeros(beside, *signal.shape[1:])
            return torch.cat([zeros, signal, zeros])

        signal = self._of_filter(run, "signal", padded).unsqueeze(0)
        result: torch.Tensor | None = None
        for i in range(before.width):
            place = np.clip(window.start - before.start - i, -window.width, reach)  # beyond it all is zero
            h = read_windows(signal, Window.at(place + beside, window.width), first, 0).unsqueeze(1)
            part = tensor[:, :, i : i + 1]
            result = part * h if result is None else result.addcmul_(part, h)
        assert result is not None
        return result

    def _transformed(self, run: Context, tensor: torch.Tensor, before: Window, window: Window) -> torch.Tensor:
        x, ahead = _held(tensor, before, window)
        # few different sizes, since a transform of the signal is kept for each
        held = x.shape[2]
        step = 1 << max(held.bit_length() - SIZES.bit_length(), 0)
        width = -(-held // step) * step
        taps = min(self.target.reach, width)
        size = _fast(width + taps - 1)
        h = self._of_filter(run, f"transform of {taps}, {size}", lambda signal: torch.fft.rfft(signal[:taps], size, 0))
        found = torch.fft.irfft(torch.fft.rfft(x, size, 2) * h, size, 2)
        return found[:, :, ahead : ahead + window.width].to(run.value(self.node.index).dtype)


class RunningSum(Reading):
    """``cumsum`` along positions: the running sum of the differences."""

    family = "reduce"
    reads_reference = False
    keeps_finite = True
    numerics = Numerics(cancels=True)

    def __init__(self, view: View, layout: Layout) -> None:
        super().__init__(view, layout)
        self.geometry = Geometry(layout.length, 1, layout.length - 1, 1, layout.length, layout.length)

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        assert change is not None and change.window is not None and window is not None
        x, ahead = _held(change.tensor, change.window, window)
        return x.cumsum(2)[:, :, ahead : ahead + window.width]


def _held(tensor: torch.Tensor, before: Window, window: Window) -> tuple[torch.Tensor, int]:
    """The differences among the outputs on a window and before them, and how many positions come before them."""
    ahead = max(int((window.start - before.start).max()), 0)
    held = window.cached(("held", ahead), lambda: Window.at(window.start - ahead, ahead + window.width))
    return rewindow(tensor, before, held), ahead


def _fast(size: int) -> int:
    """The next length that has no prime factor above `LARGEST_PRIME`."""
    while True:
        rest = size
        for prime in range(2, LARGEST_PRIME + 1):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1


@handles("yuzu.long_convolution")
def long_convolution(view: View) -> Rule | str:
    node, target = view.node, view.node.target
    source, frequencies = node.args
    if view.layout(frequencies) != CONSTANT or view.layout(source) == CONSTANT:
        return "its filter depends on an input"
    if not node.mutated:
        return OnRows(view)
    layout, along = view.movable(source), target.axis % view.rank
    plain = layout.kind == "windows" and not layout.composite
    if plain and layout.axis != along:
        return OnWholeRows(view, layout, "convolution")
    overlaps = layout.length + target.reach - 1 > target.size
    if not plain or overlaps or layout.length > target.size:
        return OnWholeRows(view, ROWS, "convolution")
    return AlongPositions(view, layout, target)


@handles("aten.cumsum")
def running_sum(view: View) -> Rule | str:
    node, source = view.node, view.node.args[0]
    axis, layout = node.named("dim") % view.rank, view.movable(source)
    alike = node.floating and view.source(source).dtype == node.dtype
    if node.mutated and alike and layout.kind == "windows" and not layout.composite and axis == layout.axis:
        return RunningSum(view, layout)
    return along_one_axis(view)


__all__: list[Any] = []
