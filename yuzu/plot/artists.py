"""Letters, marks, maps and ticks for matplotlib, which choose their form when the picture is drawn.

Sizes are known only then, for layout moves axes, and a reader zooms in. This module imports matplotlib, so the
functions of this package import it when they are called.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.ticker import Locator
from matplotlib.transforms import IdentityTransform

LETTER_WIDTH = 0.92  # positions; less than 1, so that neighbours do not touch
NARROW_LETTER = 4.0  # pixels; letters of narrower positions are pale smudges
NARROW_MARK = 3.0  # pixels; dots of narrower positions run into lines that hide the heat map
DOT = 1.8  # points: the diameter of a dot
MARK_LETTER = 7.0  # points: the height of a letter as mark


@lru_cache(maxsize=256)
def glyph(letter: str) -> tuple[np.ndarray, np.ndarray]:
    """The outline of a letter in the unit square: vertices, shape (n, 2), and matplotlib's codes, (n,)."""
    path = TextPath((0, 0), letter, size=1, prop=FontProperties(family="DejaVu Sans", weight="bold"))
    low, high = path.get_extents().get_points()
    size = np.maximum(high - low, 1e-6)
    # "I" would become a solid block at full width.
    narrow = max(0.3, min(1.0, 1.6 * size[0] / size[1]))
    vertices = (np.asarray(path.vertices) - low) / size
    vertices[:, 0] = 0.5 + (vertices[:, 0] - 0.5) * narrow
    return vertices, np.asarray(path.codes)


@lru_cache(maxsize=256)
def mark_glyph(letter: str) -> Path:
    """The outline of a letter in its own proportions, one unit high, around the origin."""
    path = TextPath((0, 0), letter, size=1, prop=FontProperties(family="DejaVu Sans"))
    low, high = path.get_extents().get_points()
    return Path((np.asarray(path.vertices) - (low + high) / 2) / max(high[1] - low[1], 1e-6), path.codes)


def pixels_per_cell(ax: Any) -> np.ndarray:
    """Width and height in pixels of one unit of the data, shape (2,)."""
    if ax is None:
        raise RuntimeError("this is on no axes")
    corners = ax.transData.transform([(0.0, 0.0), (1.0, 1.0)])
    size: np.ndarray = np.abs(corners[1] - corners[0])
    return size


def is_raster(renderer: Any) -> bool:
    """True if pixels are drawn. Readers zoom into a PDF or SVG, so that its size says nothing."""
    return hasattr(renderer, "buffer_rgba")


class LetterCollection(PathCollection):
    """The letters of a logo, one path each; bars of the same extent while positions are too narrow for letters.

    Parameters
    ----------
    letters : sequence of str
        The character of each of n letters.
    positions, bases, heights : numpy.ndarray, shape (n,)
        In data coordinates: the centre, the end at zero's side, and the height, negative to hang upside down.
    upright : bool
        False for positions along the y-axis, which points down: the letters then lie on their right sides.
    **named
        For PathCollection, such as the colours.
    """

    def __init__(
        self,
        letters: Sequence[str],
        positions: np.ndarray,
        bases: np.ndarray,
        heights: np.ndarray,
        upright: bool = True,
        **named: Any,
    ) -> None:
        paths, self._upright = [], upright
        scales = np.stack([np.full(len(heights), LETTER_WIDTH), heights], axis=1)
        offsets = np.stack([positions - LETTER_WIDTH / 2, bases], axis=1)
        for letter, scale, offset in zip(letters, scales, offsets, strict=True):
            outline, codes = glyph(letter)
            vertices = outline * scale + offset
            paths.append(Path(vertices if upright else vertices[:, ::-1], codes))
        super().__init__(paths, linewidths=0, **named)
        self.set_in_layout(False)  # layout need not measure every letter: all are clipped to the axes
        self._spans = np.stack([positions - 0.5, positions + 0.5, bases, bases + heights], axis=1)
        self._narrow = False
        self._bars: list[Path] = []

    def bars(self) -> list[Path]:
        """A rectangle for each letter, as wide as the position; made when first needed."""
        if not self._bars:
            corners = self._spans[:, [[0, 2], [0, 3], [1, 3], [1, 2], [0, 2]]]
            corners = corners if self._upright else corners[:, :, ::-1]
            self._bars = [Path(rectangle) for rectangle in corners]
        return self._bars

    def get_paths(self) -> Sequence[Path]:
        return self.bars() if self._narrow else super().get_paths()

    def draw(self, renderer: Any) -> None:
        # set_paths would mark the figure as changed, and interactive windows would draw it again and again.
        pixels = pixels_per_cell(self.axes)[0 if self._upright else 1]
        self._narrow = is_raster(renderer) and pixels < NARROW_LETTER
        try:
            super().draw(renderer)
        finally:
            self._narrow = False


class ReferenceMarks(PathCollection):
    """A mark in each cell of a heat map that holds the reference: its letter, else a dot, else nothing.

    Parameters
    ----------
    letters : sequence of str
        The character of each of n marks.
    offsets : numpy.ndarray, shape (n, 2)
        The cells' centres in data coordinates.
    mark : str
        "auto" for letters where there is room; "letters" or "dots" for only those.
    **named
        For PathCollection, such as the colours.
    """

    def __init__(self, letters: Sequence[str], offsets: np.ndarray, mark: str, **named: Any) -> None:
        super().__init__([mark_glyph(letter) for letter in letters], offsets=offsets, linewidths=0, **named)
        self.set_transform(IdentityTransform())  # sizes are in points; only the offsets are in data coordinates
        self.set_snap(False)  # else matplotlib moves "T" and "I" to full pixels, some of them bold and some not
        self._mark = mark
        self._dots: list[Path] | None = None

    def form(self, renderer: Any) -> tuple[str, float]:
        """The form to draw, "letters", "dots" or "none", and its height in points."""
        pixels = pixels_per_cell(self.axes)
        width, height = pixels / renderer.points_to_pixels(1.0)
        room = min(height * 0.75, width * 0.95)  # letters are about as wide as they are high
        if self._mark == "letters" or (self._mark == "auto" and room >= MARK_LETTER * 0.8):
            return "letters", min(room, MARK_LETTER)
        if is_raster(renderer) and pixels[0] < NARROW_MARK:
            return "none", 0.0
        return "dots", min(DOT, 0.6 * width)

    def get_paths(self) -> Sequence[Path]:
        return super().get_paths() if self._dots is None else self._dots

    def draw(self, renderer: Any) -> None:
        form, size = self.form(renderer)
        if form == "none" or not self.get_visible():
            return
        self.set_sizes([size**2])  # as for scatter: the square of the size in points
        self._dots = [Path.circle(radius=0.5)] if form == "dots" else None
        try:
            super().draw(renderer)
        finally:
            self._dots = None


class MapImage(AxesImage):
    """A matrix in colours, whose strongest cells show at every size.

    If several cells fall on one pixel, the one with the largest absolute value is drawn. Matplotlib's own methods do
    not fit: "nearest" draws a random one of them, so that a motif may vanish. "antialiased" blurs both directions as
    soon as one of them is too small, so that the four rows of DNA run into one another.
    """

    def draw(self, renderer: Any) -> None:
        ax, values = self.axes, self.get_array()
        if ax is None or values is None or not self.get_visible():
            return
        shape = np.array(values.shape)
        pixels = shape * pixels_per_cell(ax)[::-1] * renderer.get_image_magnification()
        # A hundredth of a pixel less is not worth half the resolution.
        height, width = np.clip(1.01 * pixels, 1, shape).astype(int)
        if (height, width) == values.shape:
            super().draw(renderer)
            return
        blocks = strongest(strongest(np.asarray(values), height, axis=0), width, axis=1)
        norm: Any = self.norm  # matplotlib's own annotations of the two differ
        small = AxesImage(
            ax, cmap=self.cmap, norm=norm, interpolation="nearest", origin="upper", extent=self.get_extent()
        )
        small.set_data(blocks)
        small.set_figure(ax.figure)
        small.set_transform(ax.transData)
        small.set_clip_path(ax.patch)
        small.draw(renderer)
        self.stale = False


def strongest(values: np.ndarray, blocks: int, axis: int) -> np.ndarray:
    """The entry with the largest absolute value in each of so many blocks of neighbours of about equal size."""
    count = values.shape[axis]
    if blocks == count:
        return values
    starts = np.arange(blocks) * count // blocks
    high, low = np.maximum.reduceat(values, starts, axis=axis), np.minimum.reduceat(values, starts, axis=axis)
    return np.where(high >= -low, high, low)


class RowLocator(Locator):
    """A tick at each row of a map, or at every second, fifth, ... so that labels do not touch.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    rows : int
        The number of rows; the first has the coordinate 0 on the y-axis.
    points : float
        The height of a label.
    """

    def __init__(self, ax: Axes, rows: int, points: float) -> None:
        self.ax, self.rows, self.points = ax, rows, points

    def __call__(self) -> list[float]:
        low, high = sorted(self.ax.get_ylim())
        height = self.ax.get_window_extent().height / self.ax.figure.dpi * 72
        least = (high - low) * 1.15 * self.points / height
        step = next(s * 10**e for e in range(12) for s in (1, 2, 5) if s * 10**e >= least)
        return [float(row) for row in range(0, self.rows, step) if low <= row <= high]

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        return self()
