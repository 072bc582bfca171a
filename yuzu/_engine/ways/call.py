"""The input of a way to run a convolution, and the sizes that decide whether the way applies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from yuzu._engine.context import Context
from yuzu._engine.kernels.products import in_low_precision
from yuzu._engine.window import Window

FEW_CHANNELS = 8  # output channels up to which the folded and the banded way take several positions at once
BLOCK_POSITIONS = 8  # the most positions that one product takes or yields, unless output channels are few


@dataclass
class Call:
    """The input of a way: one convolution of differences.

    Attributes
    ----------
    run: Context
        Keeps tensors that are made from weights.
    key: hashable
        Identifies the layer.
    x: torch.Tensor, shape=(S, A, w, Cin)
        Differences on windows.
    window: Window
        The window of ``x``.
    kernel: torch.Tensor, shape=(Cout, Cin / groups, k)
    sources: sequence of torch.Tensor
        The weights that ``kernel`` was made from.
    dilation, groups: int
    codes: torch.Tensor or None, shape=(S, A)
        The letters, if ``x`` is one substitution: see `Change`.
    low_precision_result: bool
        The result may stay in the dtype of low-precision products.
    wanted: tuple of two ints or None
        First and stop of the positions of the result that are read, counted from its beginning; None for all.
    """

    run: Context
    key: Any
    x: torch.Tensor
    window: Window
    kernel: torch.Tensor
    sources: Sequence[torch.Tensor]
    dilation: int = 1
    groups: int = 1
    codes: torch.Tensor | None = None
    low_precision_result: bool = False
    wanted: tuple[int, int] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the result."""
        return (
            in_low_precision(self.kernel[:0], self.run.precision).dtype
            if self.low_precision_result
            else self.kernel.dtype
        )

    @property
    def reach(self) -> int:
        """Distance between the first and the last input position that one output position reads."""
        return (self.kernel.shape[2] - 1) * self.dilation

    @property
    def positions(self) -> tuple[int, int]:
        """First and stop of the positions of the result that are read."""
        return self.wanted or (0, self.x.shape[2] + self.reach)

    def taps(self) -> list[tuple[int, int, int]]:
        """For each tap: the position of the result to which it takes the first position of ``x``; then first and stop
        of the positions of ``x`` that it reads for the wanted positions.
        """
        first, stop = self.positions
        found = []
        for place in range(self.reach, -1, -max(self.dilation, 1)):
            low = max(first - place, 0)
            found.append((place, low, max(min(stop - place, self.x.shape[2]), low)))
        return found

    def rows(self) -> torch.Tensor:
        """``x`` as ``(S*A, w, Cin)``, contiguous."""
        return self.x.reshape(-1, *self.x.shape[2:]).contiguous()

    def derived(self, way: str, make: Callable[[], Any]) -> Any:
        """A value made from the kernel, kept until the weights change."""
        return self.run.derived((self.key, way, self.dtype), self.sources, make)


@dataclass(frozen=True)
class Shape:
    """The sizes that decide whether a way applies, and whether it may win: window width, kernel and channels."""

    width: int
    kernel: int
    dilation: int
    channels_in: int
    channels_out: int
    groups: int

    @property
    def few(self) -> bool:
        """Tell whether output channels are few."""
        return self.channels_out <= FEW_CHANNELS

    @property
    def reached(self) -> float:
        """The number of output positions that a window reaches, over the number of its own positions."""
        return (self.width + (self.kernel - 1) * self.dilation) / max(self.width, 1)
