"""Which positions of a layer a mutation reaches.

A mutation changes an interval of positions of every layer, ``first[i] <= position < stop[i]`` for site ``i``
(a *site* is one place in one sequence at which edits are made; every edit at a site has the same window). All
sites of a chunk are carried in one tensor, so they get a common ``width``; ``start`` is where the carried
window of each site begins. Windows lie inside the positions that the model output needs, ``low <= start`` and
``start + width <= high``, so a convolution's zero padding is never taken for a position.

The arithmetic is integer and exact. With kernel ``k``, stride ``s``, padding ``p`` and dilation ``d`` the
output position ``j`` reads the inputs ``j*s - p + t*d`` for ``0 <= t < k``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Integers = np.ndarray


@dataclass(frozen=True)
class Geometry:
    """How an operation reads along positions: ``kernel, stride, padding`` (left), ``dilation`` and both
    lengths.
    """

    kernel: int
    stride: int
    padding: int
    dilation: int
    input_length: int
    output_length: int

    @property
    def reach(self) -> int:
        """Distance between the first and the last input position that one output position reads."""
        return (self.kernel - 1) * self.dilation

    def outputs_of(self, first: Integers, stop: Integers) -> tuple[Integers, Integers]:
        """The outputs that read any input of ``[first, stop)``, not yet cut to the output's length."""
        lowest = -((self.reach - self.padding - first) // self.stride)
        highest = (stop - 1 + self.padding) // self.stride
        return lowest, np.where(stop > first, highest + 1, lowest)

    def inputs_of(self, low: int, high: int) -> tuple[int, int]:
        """The inputs inside the sequence that the outputs ``[low, high)`` read."""
        if high <= low:
            return 0, 0
        first = low * self.stride - self.padding
        stop = (high - 1) * self.stride - self.padding + self.reach + 1
        first, stop = max(first, 0), min(stop, self.input_length)
        return (first, stop) if stop > first else (0, 0)


@dataclass(eq=False)
class Window:
    """The positions carried for each site of a chunk, at one layer.

    Attributes
    ----------
    first, stop: integer arrays, shape=(S,)
        What each site reaches; ``stop <= first`` where it reaches nothing that is needed.
    start: integer array, shape=(S,)
        Where the carried window begins; never decreasing when the sites' positions never decrease.
    width: int
        Positions carried for every site; 0 when no site reaches anything.
    regular: boolean array, shape=(S,)
        Where the window begins at the very first position that the site reaches: where no end of the sequence is near.
    """

    first: Integers
    stop: Integers
    start: Integers
    width: int
    regular: Integers | None = None
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def fit(cls, first: Integers, stop: Integers, low: int, high: int) -> Window:
        """The narrowest common width that holds ``[first, stop)`` cut to ``[low, high)`` for every site."""
        reached = first
        first = np.maximum(first, low)
        stop = np.minimum(stop, high)
        widths = stop - first
        width = int(widths.max(initial=0))
        if width <= 0:
            return cls(first, stop, np.full_like(first, low), 0)
        start = np.clip(first, low, high - width)
        return cls(first, stop, start, width, start == reached)

    @classmethod
    def at(cls, start: Integers, width: int) -> Window:
        """A window that starts exactly at ``start`` and may overhang the sequence (for reading, not for
        carrying).
        """
        return cls(start, start + width, start, width)

    @property
    def step(self) -> int | None:
        """The constant distance between the starts of neighbouring sites, or None when it is not constant."""
        if "step" not in self._cache:
            if len(self.start) < 2:
                step: int | None = 0
            else:
                steps = np.diff(self.start)
                step = int(steps[0]) if (steps == steps[0]).all() else None
            self._cache["step"] = step
        return self._cache["step"]

    @property
    def table_bytes(self) -> int:
        """About what it takes with the tables that `cached` comes to hold: some indices for every position where the
        windows are not evenly spaced.
        """
        sites = len(self.start)
        return 32 * sites + (0 if self.step is not None else 24 * sites * self.width)

    def cached(self, key: Any, make: Any) -> Any:
        """What ``make()`` gave the first time for ``key``: index tables are the same for every sequence."""
        value = self._cache.get(key)
        if value is None:
            value = self._cache[key] = make()
        return value

    def offset_to(self, other: Window) -> int | None:
        """``other.start - self.start`` when it is the same for all sites, else None."""

        def find() -> tuple[int | None]:
            difference = other.start - self.start
            same = len(difference) == 0 or bool((difference == difference[0]).all())
            return (int(difference[0]) if same and len(difference) else 0 if same else None,)

        return self.cached(("offset", id(other)), lambda: (find(), other))[0][0]


def union(windows: list[Window]) -> tuple[Integers, Integers]:
    """The smallest interval of every site that holds its intervals in all ``windows``; empty ones do not
    count.
    """
    huge = np.iinfo(np.int64).max // 4
    firsts = [np.where(w.stop > w.first, w.first, huge) for w in windows]
    stops = [np.where(w.stop > w.first, w.stop, -huge) for w in windows]
    first, stop = np.minimum.reduce(firsts), np.maximum.reduce(stops)
    empty = stop <= first
    return np.where(empty, 0, first), np.where(empty, 0, stop)
