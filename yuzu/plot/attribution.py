"""A sequence logo over the heat map of all substitutions."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from yuzu.plot.checks import (
    as_matrix,
    check_alphabet,
    check_axes,
    check_offset,
    check_positive,
    reference_rows,
    require_matplotlib,
    single_rows,
)
from yuzu.plot.heatmap import MapStyle, draw_ism
from yuzu.plot.layout import divide, new_axes, show_part, shown_positions, width_for
from yuzu.plot.logo import draw_logo

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap


class AttributionAxes(NamedTuple):
    """The axes that `plot_attribution` drew on.

    Attributes
    ----------
    logo : matplotlib.axes.Axes
        The axes of the sequence logo.
    heatmap : matplotlib.axes.Axes or None
        The axes of the heat map, which share their positions with the logo; None without a heat map.
    colorbar : matplotlib.axes.Axes or None
        The axes of the heat map's colour bar; None without a colour bar.
    """

    logo: Axes
    heatmap: Axes | None
    colorbar: Axes | None


def plot_attribution(
    attribution: np.ndarray | torch.Tensor,
    heatmap: np.ndarray | torch.Tensor | None = None,
    ax: Axes | None = None,
    *,
    reference: str | np.ndarray | torch.Tensor | None = None,
    alphabet: str | None = None,
    colors: dict[str, str] | None = None,
    offset: int = 0,
    ylim: tuple[float, float] | None = None,
    vmax: float | None = None,
    cmap: str | Colormap | None = None,
    colorbar: bool = True,
    title: str | None = None,
    ylabel: str | None = "attribution",
    heatmap_label: str | None = "delta",
    zoom: tuple[int, int] | bool | None = None,
    start: int | None = None,
) -> AttributionAxes:
    """Draw an attribution as a sequence logo, over a heat map of all substitutions if one is given.

    Each nonzero entry of `attribution` is a letter as tall as the entry is large. Positive letters stand on
    the zero line, negative ones hang from it upside down, and several at one position are stacked with the
    largest furthest from zero. An attribution with one nonzero entry per position (the observed character)
    gives the usual logo. `plot_logo` draws the logo alone and says what becomes of very long ones, `plot_ism` the heat
    map.

    Parameters
    ----------
    attribution : numpy.ndarray or torch.Tensor, shape (C, L)
        The height of each letter at each position. Finite.
    heatmap : numpy.ndarray or torch.Tensor, shape (C, L), optional
        A value for each substitution, e.g. one sequence of `yuzu_ism(..., output="delta")`. Finite. It has a
        colour scale of its own, symmetric around zero, which is white. Default: no heat map.
    ax : matplotlib.axes.Axes, optional
        The axes to draw on. With a heat map these axes are divided: the logo keeps the upper part. Default: a new
        figure as wide as the sequence asks for.
    reference : str or numpy.ndarray or torch.Tensor, shape (C, L), optional
        The observed sequence, as a string or one-hot; the heat map marks its letters with dots, unless a position is
        narrower than 3 pixels. Default: the characters of those positions where `attribution` has exactly one nonzero
        entry.
    alphabet : str, optional
        The characters in the order of the rows. Default: `ACGT` for C = 4, `ACDEFGHIKLMNPQRSTVWY` for C = 20.
    colors : dict, optional
        From character to a matplotlib colour; overrides the default colours of the letters it names.
    offset : int
        The coordinate of the first position on the x-axis. Default: 0. `start` is its older name.
    ylim : tuple of two floats, optional
        The limits of the logo's y-axis, to share them between plots. Default: what the letters need.
    vmax : float, optional
        The value of the darkest colour of the heat map, whose scale goes from `-vmax` to `vmax`. Default: the
        largest absolute value of `heatmap`.
    cmap : str or matplotlib.colors.Colormap, optional
        A diverging colour map. Default: blue over white to red.
    colorbar : bool
        True draws a colour bar. Default: True.
    title, ylabel, heatmap_label : str, optional
        The title, the label of the logo's y-axis and the label of the colour bar. Defaults: none,
        "attribution", "delta".
    zoom : tuple of two ints, False or None
        The positions to show, first and stop, counted from 0. False shows all. Default None: all, but of more than 200
        positions in a new figure the 150 with the largest scores; ``ax.set_xlim`` shows others.

    Returns
    -------
    AttributionAxes
        The named tuple `(logo, heatmap, colorbar)` of matplotlib axes; None for those not drawn.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If `attribution`, `heatmap` or `reference` has the wrong shape or holds NaN or infinity, if `reference` has
        other characters than those of the alphabet and N, if `alphabet` is needed and missing or does not fit C, if
        `vmax` is not positive, if `offset` is no integer, or if `zoom` is no part of the sequence. (A `YuzuError`.)

    Examples
    --------
    >>> import numpy as np
    >>> from yuzu.plot import plot_attribution
    >>> delta = np.array([[0., -1., -2.], [-1., 0., -2.], [-1., -1., 0.], [-1., -1., -2.]])
    >>> observed = np.eye(4)[:, :3]
    >>> axes = plot_attribution(-delta.sum(axis=0) / 3 * observed, delta)
    >>> axes.heatmap.get_xlabel()
    'position'
    """
    require_matplotlib("plot_attribution")
    check_axes(ax)
    heights = as_matrix("attribution", attribution)
    n_choices, length = heights.shape
    letters = check_alphabet(alphabet, n_choices)
    values = None if heatmap is None else as_matrix("heatmap", heatmap, heights.shape)
    if reference is None:
        observed = single_rows(heights != 0)
    else:
        observed = reference_rows(reference, letters, heights.shape, "attribution")
    check_positive("vmax", vmax)
    offset = check_offset(offset, start)

    shown = shown_positions(heights, zoom, ax is None)
    rows = 0.17 * max(n_choices, 4)  # inches of the heat map
    if ax is None:
        ax = new_axes(width_for(shown[1] - shown[0]), 1.6 + (0.3 if values is None else rows + 0.5))
    draw_logo(ax, heights, letters, colors, offset, ylim)
    ax.set_ylabel(ylabel or "")
    if title is not None:
        ax.set_title(title)
    if values is None:
        ax.set_xlabel(show_part(ax, offset, shown, length))
        return AttributionAxes(ax, None, None)

    below, bar = divide(ax, (1.1, 0.06, rows), colorbar)
    style = MapStyle(vmax, cmap, heatmap_label, mark="dots")
    draw_ism(below, bar, values, observed, letters, offset, style)
    below.set_xlabel(show_part(ax, offset, shown, length))
    ax.tick_params(axis="x", labelbottom=False, length=0)
    ax.spines["bottom"].set_visible(False)
    return AttributionAxes(ax, below, bar)
