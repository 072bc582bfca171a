"""The positions of a layer that a mutation reaches.

A mutation changes an interval of positions of every layer, ``first[i] <= position < stop[i]`` for site ``i``. A *site*
is one place in one sequence at which edits are made; all edits at a site have the same window. One tensor carries all
sites of a chunk, so they get a common ``width``. The carried window of each site begins at ``start``. Windows lie
inside the sequence, so a convolution's zero padding is never taken for a position. They hold the part of a site's
interval that the model's output needs, ``low <= position < high``.

The arithmetic uses integers and is exact. With kernel ``k``, stride ``s``, padding ``p`` and dilation ``d`` the
output position ``j`` reads the inputs ``j*s - p + t*d`` for ``0 <= t < k``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Integers = np.ndarray
KEPT_BYTES = 2000  # bytes of a window with few sites: the headers of its arrays and tables, and the keys of `cached`
MOST_WIDENED = 1.125  # width of windows that all lie alike, over the narrowest width: at most
WIDTHS = 16  # different widths between a width and twice as much, for windows that an end cuts off


@dataclass(frozen=True)
class Geometry:
    """The way in which an operation reads along positions: ``kernel, stride, padding`` (left), ``dilation`` and both
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
        """The outputs that read any input of ``[first, stop)``, not cut to the output's length."""
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

    def read_by(self, window: Window) -> Window:
        """The inputs that the outputs on a window read, including those outside of the sequence."""
        width = (window.width - 1) * self.stride + self.reach + 1
        return Window.at(window.start * self.stride - self.padding, width)


@dataclass(eq=False)
class Window:
    """The positions carried for each site of a chunk, at one layer.

    Attributes
    ----------
    first, stop: integer arrays, shape=(S,)
        The interval that each site reaches; ``stop <= first`` if it reaches nothing that is needed.
    start: integer array, shape=(S,)
        The position at which the carried window begins. It never decreases if the sites' positions never decrease.
    width: int
        Positions carried for every site; 0 if no site reaches anything.
    regular: boolean array, shape=(S,)
        The window lies towards its site as a neighbour's window does: no end of the sequence cuts it off, nor, unless
        windows lie alike, an end of the positions that the output needs.
    natural: tuple of two integer arrays of shape=(S,), or None
        ``first`` and ``stop`` in an endless sequence of which all positions are needed, if the windows lie alike
        towards them at this layer and at all layers before it. All that such windows hold is right, needed or not.
    """

    first: Integers
    stop: Integers
    start: Integers
    width: int
    regular: Integers | None = None
    natural: tuple[Integers, Integers] | None = None
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def fit(
        cls,
        first: Integers,
        stop: Integers,
        needed: tuple[int, int],
        length: int,
        natural: tuple[Integers, Integers] | None = None,
    ) -> Window:
        """Make windows of the narrowest common width that holds ``[first, stop)``, cut to ``needed``, for every site.

        With ``natural`` intervals the windows lie alike towards these, if that costs little: each begins at the same
        distance from the beginning of its interval, although some then reach beyond the needed positions. So nothing
        has to move from one layer to the next to line windows up.
        """
        low, high = needed
        reached, first, stop = first, np.maximum(first, low), np.minimum(stop, high)
        width = int((stop - first).max(initial=0))
        if width <= 0:
            return cls(first, stop, np.full_like(first, low), 0)
        cut = ((first <= low) | (stop >= high))[stop - first == width].all()  # it cuts off even the widest
        if natural is not None:
            begin, end = natural
            distance = int((first - begin)[stop > first].min())
            wide = int((stop - begin)[stop > first].max()) - distance
            if wide <= min(MOST_WIDENED * width, length):
                if cut:
                    wide = max(wide, min(_common_width(wide), int(end[0] - begin[0]), length))
                place = begin + distance
                start = np.clip(place, 0, max(length - wide, 0))
                # a window that an end of the sequence moves must hold its whole interval there
                if np.where(start > place, place + wide >= end, (start == place) | (distance == 0)).all():
                    at_ends = ((begin < 0) & (low == 0)) | ((end > length) & (high == length))
                    return cls(first, stop, start, wide, ~at_ends, natural)
        if cut:
            width = min(_common_width(width), high - low)
        start = np.clip(first, low, high - width)
        return cls(first, stop, start, width, start == reached)

    @classmethod
    def at(cls, start: Integers, width: int) -> Window:
        """Make a window that starts exactly at ``start`` and may overhang the sequence (to read, not to carry)."""
        return cls(start, start + width, start, width)

    @property
    def step(self) -> int | None:
        """The constant distance between the starts of neighbouring sites; None if it is not constant."""
        if "step" not in self._cache:
            if len(self.start) < 2:
                step: int | None = 0
            else:
                steps = np.diff(self.start)
                step = int(steps[0]) if (steps == steps[0]).all() else None
            self._cache["step"] = step
        return self._cache["step"]

    def kept_bytes(self, with_tables: bool) -> int:
        """Estimate its bytes, with the tables that `cached` will hold: some indices for every position, if the windows
        are not evenly spaced.
        """
        sites = len(self.start)
        return KEPT_BYTES + 48 * sites + (24 * sites * self.width if with_tables and self.step is None else 0)

    def cached(self, key: Any, make: Any) -> Any:
        """The result of the first ``make()`` for a ``key``: index tables are the same for every sequence."""
        value = self._cache.get(key)
        if value is None:
            value = self._cache[key] = make()
        return value

    def offset_to(self, other: Window) -> int | None:
        """``other.start - self.start`` if it is the same for all sites, else None."""

        def find() -> tuple[int | None]:
            difference = other.start - self.start
            same = len(difference) == 0 or bool((difference == difference[0]).all())
            return (int(difference[0]) if same and len(difference) else 0 if same else None,)

        return self.cached(("offset", id(other)), lambda: (find(), other))[0][0]


def _common_width(width: int) -> int:
    """Round a width up slightly, so that windows near an end share few widths although each site's window has its own.
    Libraries prepare a kernel for each shape, which takes longer than running it, and keep it.
    """
    step = 1 << max(width.bit_length() - WIDTHS.bit_length(), 0)
    return -(-width // step) * step


def union(windows: list[Window]) -> tuple[Integers, Integers]:
    """The smallest interval of every site that holds its intervals in all ``windows``; empty intervals do not count."""
    huge = np.iinfo(np.int64).max // 4
    firsts = [np.where(w.stop > w.first, w.first, huge) for w in windows]
    stops = [np.where(w.stop > w.first, w.stop, -huge) for w in windows]
    first, stop = np.minimum.reduce(firsts), np.maximum.reduce(stops)
    empty = stop <= first
    return np.where(empty, 0, first), np.where(empty, 0, stop)
