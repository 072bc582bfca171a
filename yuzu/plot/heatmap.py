"""Heat maps of all substitutions, with the reference letters marked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from yuzu.plot.checks import (
    as_matrix,
    check_alphabet,
    check_axes,
    check_choice,
    check_offset,
    check_positive,
    reference_rows,
    require_matplotlib,
    single_rows,
)
from yuzu.plot.layout import add_bar, new_axes, show_positions, size_in_inches, width_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.image import AxesImage

MARKS = ("auto", "letters", "dots", "none")


class ISMAxes(NamedTuple):
    """The axes that `plot_ism` drew on.

    Attributes
    ----------
    heatmap : matplotlib.axes.Axes
        The axes of the heat map.
    colorbar : matplotlib.axes.Axes or None
        The axes of its colour bar; None without one.
    """

    heatmap: Axes
    colorbar: Axes | None


def plot_ism(
    scores: np.ndarray | torch.Tensor,
    ax: Axes | None = None,
    *,
    reference: str | np.ndarray | torch.Tensor | None = None,
    mark: str = "auto",
    alphabet: str | None = None,
    offset: int = 0,
    vmax: float | None = None,
    cmap: str | Colormap | None = None,
    colorbar: bool = True,
    title: str | None = None,
    label: str | None = "delta",
    start: int | None = None,
) -> ISMAxes:
    """Draw the scores of all substitutions as a heat map, with the reference letters marked.

    A row for each character and a column for each position, on a colour scale symmetric around zero, which is white.
    If several positions fall on one pixel, the score with the largest absolute value is drawn.

    Parameters
    ----------
    scores : numpy.ndarray or torch.Tensor, shape (C, L)
        A value for each substitution, e.g. one sequence of `yuzu_ism(..., output="delta")`, of any dtype. Finite.
    ax : matplotlib.axes.Axes, optional
        The axes to draw on. The colour bar takes its room from them. Default: a new figure, 0.13 inches wide for each
        position, at least 4 and at most 30 inches.
    reference : str or numpy.ndarray or torch.Tensor, shape (C, L), optional
        The observed sequence, as a string or one-hot. Default: the characters of those positions where `scores` has
        exactly one zero, as differences from the reference have.
    mark : str
        How the reference is marked: "letters", "dots", "none", or "auto", the default: letters where there is room,
        else dots. Dots are left out while a position is narrower than 3 pixels, where they would hide the colours.
        Zooming in brings dots and letters back.
    alphabet : str, optional
        The characters in the order of the rows. Default: `ACGT` for C = 4, `ACDEFGHIKLMNPQRSTVWY` for C = 20.
    offset : int
        The coordinate of the first position on the x-axis. Default: 0. `start` is its older name.
    vmax : float, optional
        The value of the darkest colour; the scale goes from `-vmax` to `vmax`. Default: the largest absolute value.
    cmap : str or matplotlib.colors.Colormap, optional
        A diverging colour map. Default: blue over white to red.
    colorbar : bool
        True draws a colour bar. Default: True.
    title, label : str, optional
        The title and the label of the colour bar. Defaults: none and "delta".

    Returns
    -------
    ISMAxes
        The named tuple `(heatmap, colorbar)` of matplotlib axes. `heatmap` is `ax` if it was given.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If `scores` or `reference` has the wrong shape or holds NaN or infinity, if `reference` has other characters
        than those of the alphabet and N, if `alphabet` is needed and missing or does not fit C, if `mark` is not one of
        those named, if `vmax` is not positive, if `offset` is no integer, or if `ax` is not one axes. (A `YuzuError`.)

    Examples
    --------
    >>> import numpy as np
    >>> from yuzu.plot import plot_ism
    >>> axes = plot_ism(np.array([[0.0, -1.0], [-2.0, 0.5], [0.5, 0.0], [-1.0, -1.0]]), reference="AG")
    >>> axes.colorbar.get_ylabel()
    'delta'
    """
    require_matplotlib("plot_ism")
    check_axes(ax)
    values = as_matrix("scores", scores)
    letters = check_alphabet(alphabet, len(values))
    if reference is None:
        observed = single_rows(values == 0)
    else:
        observed = reference_rows(reference, letters, values.shape, "scores")
    check_choice("mark", mark, MARKS)
    check_positive("vmax", vmax)
    offset = check_offset(offset, start)

    if ax is None:
        ax = new_axes(width_for(values.shape[1]), 0.2 * max(len(values), 4) + 0.6)
    bar = add_bar(ax) if colorbar else None
    draw_ism(ax, bar, values, observed, letters, offset, MapStyle(vmax, cmap, label, mark))
    if title is not None:
        ax.set_title(title)
    return ISMAxes(ax, bar)


@dataclass(frozen=True)
class MapStyle:
    """The look of a heat map: its colours, the label of their bar, and the mark of the reference."""

    vmax: float | None
    cmap: str | Colormap | None
    label: str | None
    mark: str


def draw_ism(
    ax: Axes, bar: Axes | None, values: np.ndarray, observed: np.ndarray, letters: str, start: int, style: MapStyle
) -> None:
    """Draw the heat map of `values`, (C, L), with the rows `observed`, (L,), marked, and its colour bar."""
    limit = style.vmax or float(np.abs(values).max()) or 1.0
    image = draw_map(ax, bar, values, start, (-limit, limit), style.cmap, style.label)
    if style.mark != "none":
        mark_reference(ax, image, values, observed, letters, start, style.mark)
    row = size_in_inches(ax)[1] * 72 / len(values)  # points
    ax.set_yticks(range(len(values)), list(letters), fontsize=float(np.clip(0.85 * row, 3, 8)), family="monospace")
    ax.tick_params(axis="y", length=0)


def draw_map(
    ax: Axes,
    bar: Axes | None,
    values: np.ndarray,
    start: int,
    limits: tuple[float, float],
    cmap: str | Colormap | None,
    label: str | None,
) -> AxesImage:
    """Draw a matrix (rows, L) in colours, row 0 on top, and its colour bar if there are axes for it."""
    from matplotlib.colors import Normalize

    from yuzu.plot.artists import MapImage

    rows, length = values.shape
    image = MapImage(
        ax,
        cmap=diverging() if cmap is None else cmap,
        norm=Normalize(*limits),
        interpolation="nearest",
        origin="upper",
        extent=(start - 0.5, start + length - 0.5, rows - 0.5, -0.5),
    )
    image.set_data(values)
    image.set_clip_path(ax.patch)
    ax.add_image(image)
    ax.set_ylim(rows - 0.5, -0.5)
    show_positions(ax, start, length)
    ax.set_xlabel("position")
    if bar is not None:
        # Only the ends and zero: more labels, or longer ones, would stand out above and below a low bar.
        drawn = ax.figure.colorbar(image, cax=bar, ticks=sorted({*limits, 0.0}), format="%.2g")
        drawn.outline.set_visible(False)
        bar.tick_params(labelsize=8, length=2)
        bar.set_ylabel(label or "", fontsize=9)
    return image


def mark_reference(
    ax: Axes, image: AxesImage, values: np.ndarray, observed: np.ndarray, letters: str, start: int, mark: str
) -> None:
    """Mark the cell of each observed character; row -1 means none."""
    from yuzu.plot.artists import ReferenceMarks

    positions = np.flatnonzero(observed >= 0)
    rows = observed[positions]
    # A mark must stand out from its cell, which is coloured if scores of the reference are not 0.
    luminance = image.to_rgba(values[rows, positions])[..., :3] @ [0.299, 0.587, 0.114]
    marks = ReferenceMarks(
        [letters[row] for row in rows],
        np.stack([start + positions, rows], axis=1),
        mark,
        facecolors=[("black" if light > 0.45 else "white") for light in luminance],
        offset_transform=ax.transData,
    )
    ax.add_collection(marks, autolim=False)


def diverging() -> Colormap:
    """Blue over white to red."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = ["#08306b", "#2f79b5", "#9ac8e0", "#ffffff", "#f7b799", "#ca4842", "#67001f"]
    return LinearSegmentedColormap.from_list("yuzu", stops)
