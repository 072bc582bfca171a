"""What a way to run a convolution is given, and the sizes that decide whether it applies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from yuzu._engine.context import Context
from yuzu._engine.kernels.products import lowered
from yuzu._engine.window import Window

FEW_CHANNELS = 8  # up to here the folded and the banded way take several positions at once
BLOCK_POSITIONS = 8  # positions that a product takes or yields at once, at most


@dataclass
class Call:
    """What a way is given.

    Attributes
    ----------
    run: Context
        For tensors made from weights.
    key: hashable
        Tells the layer apart.
    x: torch.Tensor, shape=(S, A, w, Cin)
        Differences on windows.
    window: Window
        Of ``x``.
    kernel: torch.Tensor, shape=(Cout, Cin / groups, k)
    sources: sequence of torch.Tensor
        The weights that ``kernel`` was made from.
    dilation, groups: int
    codes: torch.Tensor or None, shape=(S, A)
        See `Change`: there when ``x`` is one substitution of letters.
    lowered_result: bool
        Whether the result may stay in the dtype of lowered products.
    wanted: tuple of two ints or None
        First and stop of the positions of the result, counted from its beginning, that are read; None for all.
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
    lowered_result: bool = False
    wanted: tuple[int, int] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the result."""
        return lowered(self.kernel[:0], self.run.precision).dtype if self.lowered_result else self.kernel.dtype

    @property
    def reach(self) -> int:
        return (self.kernel.shape[2] - 1) * self.dilation

    @property
    def positions(self) -> tuple[int, int]:
        """First and stop of the positions of the result that are read."""
        return self.wanted or (0, self.x.shape[2] + self.reach)

    def taps(self) -> list[tuple[int, int, int]]:
        """For each tap the position of the result that it takes the first of ``x`` to, and first and stop of what it
        reads of ``x`` for the positions that are wanted.
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
        """Something made from the kernel, kept while the weights stay."""
        return self.run.derived((self.key, way, self.dtype), self.sources, make)


@dataclass(frozen=True)
class Shape:
    """The sizes that decide whether a way applies, and may win: window width, kernel, channels."""

    width: int
    kernel: int
    dilation: int
    channels_in: int
    channels_out: int
    groups: int

    @property
    def few(self) -> bool:
        return self.channels_out <= FEW_CHANNELS

    @property
    def reached(self) -> float:
        """How many times its own positions a window reaches."""
        return (self.width + (self.kernel - 1) * self.dilation) / max(self.width, 1)
