"""New figures, axes divided into parts, and the ticks of positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from yuzu.plot.checks import check_zoom

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.gridspec import GridSpecFromSubplotSpec, SubplotSpec

GAP = BAR = 0.1  # inches: between heat map and colour bar, and the width of the bar
BAR_LABELS = 0.55  # inches: the numbers and the label of a colour bar
POSITION = 0.13  # inches of a position in a new figure
WIDEST = 30.0  # inches; longer sequences get narrower positions
LONGEST, SHOWN = 200, 150  # positions: a longer logo in a new figure shows so many of them


def new_axes(width: float, height: float) -> Axes:
    """The axes of a new figure; sizes in inches."""
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    return ax


def width_for(length: int) -> float:
    """Inches of a new figure that shows so many positions."""
    return float(np.clip(POSITION * length + 1.5, 4.0, WIDEST))


def shown_positions(heights: np.ndarray, zoom: Any, new: bool) -> tuple[int, int]:
    """The first and the stop of the positions of a logo ``(C, L)`` that are shown.

    They are those asked for, else all. A ``new`` figure of a long sequence shows those with the largest scores.
    """
    length = heights.shape[1]
    asked = check_zoom(zoom, length)
    if isinstance(asked, tuple):
        return asked
    if asked is False or not new or length <= LONGEST:
        return 0, length
    sums = np.convolve(np.abs(heights).sum(axis=0), np.ones(SHOWN), mode="valid")
    first = int(sums.argmax())
    return first, first + SHOWN


def show_part(ax: Axes, offset: int, shown: tuple[int, int], length: int) -> str:
    """Zoom to the positions ``shown``, of so many; the label of their axis, which says so."""
    first, stop = shown
    if stop - first == length:
        return "position"
    ax.set_xlim(offset + first - 0.5, offset + stop - 0.5)
    return f"position ({stop - first:,} of {length:,})"


def size_in_inches(ax: Axes) -> tuple[float, float]:
    box = ax.get_window_extent()
    return box.width / ax.figure.dpi, box.height / ax.figure.dpi


def divide(ax: Axes, heights: tuple[float, float, float], colorbar: bool) -> tuple[Axes, Axes | None]:
    """Divide these axes: they keep the upper part, and the lower part and its colour bar are returned.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    heights : tuple of three floats
        Relative heights of the upper part, the space between, and the lower part.
    colorbar : bool
        True gives the lower part a bar at its right.

    Returns
    -------
    tuple of matplotlib.axes.Axes
        The lower part, which shares its positions with the upper one, and the bar or None.
    """
    grid = _grid_within(ax, heights, colorbar)
    lower = _add(ax, grid[2, 0], shared=True)
    return lower, _add(ax, grid[2, 2]) if colorbar else None


def surround(ax: Axes, logo: float, colorbar: bool) -> tuple[Axes, Axes, Axes | None]:
    """Axes above and at the left of these, of ``logo`` inches, which share their positions; and a bar or None at the
    right.
    """
    width, height = size_in_inches(ax)
    columns = [GAP, BAR] if colorbar else []
    if colorbar and ax.figure.get_layout_engine() is None:
        columns.append(BAR_LABELS)
    space = GAP / 2
    grid = _own_cell(ax).subgridspec(
        3,
        3 + len(columns),
        height_ratios=[logo, space, max(height - logo - space, 0.5)],
        width_ratios=[logo, space, max(width - logo - space - sum(columns), 0.5), *columns],
        hspace=0,
        wspace=0,
    )
    ax.set_subplotspec(grid[2, 2])
    above, beside = _add(ax, grid[0, 2], shared=True), _add(ax, grid[2, 0], shared=True, rows=True)
    return above, beside, _add(ax, grid[2, 4]) if colorbar else None


def add_bar(ax: Axes) -> Axes:
    """Axes for a colour bar, at the right of these axes, which make room for it."""
    return _add(ax, _grid_within(ax, (1.0,), colorbar=True)[0, 2])


def _grid_within(ax: Axes, heights: tuple[float, ...], colorbar: bool) -> GridSpecFromSubplotSpec:
    """A grid in the place of these axes, which keep its first cell; its third column is for the bar."""
    # Rows and columns of their own keep the parts apart. Constrained layout takes hspace and wspace as shares of the
    # whole figure, which would be far too much in a tall one.
    columns = [GAP, BAR] if colorbar else []
    if colorbar and ax.figure.get_layout_engine() is None:
        columns.append(BAR_LABELS)  # a layout engine finds this room by itself
    grid = _own_cell(ax).subgridspec(
        len(heights),
        1 + len(columns),
        height_ratios=heights,
        width_ratios=[max(size_in_inches(ax)[0] - sum(columns), 0.5), *columns],
        hspace=0,
        wspace=0,
    )
    ax.set_subplotspec(grid[0, 0])
    return grid


def _add(ax: Axes, cell: SubplotSpec, shared: bool = False, rows: bool = False) -> Axes:
    """More axes in the figure, which may share the positions along the x-axis, or along the y-axis for ``rows``."""
    figure = ax.figure
    current = figure.gca()
    added = figure.add_subplot(cell, sharex=ax if shared and not rows else None, sharey=ax if shared and rows else None)
    figure.sca(current)  # add_subplot made its axes pyplot's current ones, and a caller may draw on the others next
    return added


def _own_cell(ax: Axes) -> SubplotSpec:
    """The grid cell of these axes; axes placed by hand get a grid of one cell where they are."""
    cell = ax.get_subplotspec()
    if cell is None:
        box = ax.get_position()
        grid = ax.figure.add_gridspec(1, 1, left=box.x0, right=box.x1, bottom=box.y0, top=box.y1)
        cell = grid[0, 0]
    return cell


def show_positions(ax: Axes, start: int, length: int) -> None:
    """Set limits and ticks of an x-axis of positions: integers, as many as there is room for."""
    from matplotlib.ticker import MaxNLocator

    ax.set_xlim(start - 0.5, start + length - 0.5)
    label = len(f"{start + length - 1:,}") * 0.09 + 0.25  # inches, with some space
    ticks = int(np.clip(size_in_inches(ax)[0] / label, 1, 10))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=ticks, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    # Matplotlib's own formatter subtracts a common offset, which makes a genome's coordinates unreadable.
    ax.xaxis.set_major_formatter("{x:,.0f}")
