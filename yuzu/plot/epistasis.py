"""Maps of the interactions of all pairs of positions, with the sequence's logo along both axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from yuzu.dependency_map import strongest
from yuzu.errors import YuzuError
from yuzu.plot.checks import (
    as_array,
    as_matrix,
    check_alphabet,
    check_axes,
    check_offset,
    check_positive,
    require_matplotlib,
)
from yuzu.plot.heatmap import diverging, draw_map
from yuzu.plot.layout import add_bar, new_axes, size_in_inches, surround, width_for
from yuzu.plot.logo import draw_logo, draw_lying_logo

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

LOGO = 0.55  # inches of a logo's height
WIDEST_MAP = 12.0  # inches of a new figure


class EpistasisAxes(NamedTuple):
    """The axes that `plot_epistasis` drew on.

    Attributes
    ----------
    map : matplotlib.axes.Axes
        The axes of the map.
    above, beside : matplotlib.axes.Axes or None
        The axes of the logos, above the map and at its left; None without them.
    colorbar : matplotlib.axes.Axes or None
        The axes of its colour bar; None without one.
    """

    map: Axes
    above: Axes | None
    beside: Axes | None
    colorbar: Axes | None


def plot_epistasis(
    interaction: np.ndarray | torch.Tensor,
    ax: Axes | None = None,
    *,
    attribution: np.ndarray | torch.Tensor | None = None,
    alphabet: str | None = None,
    colors: dict[str, str] | None = None,
    offset: int = 0,
    vmax: float | None = None,
    cmap: str | Colormap | None = None,
    colorbar: bool = True,
    title: str | None = None,
    label: str | None = "interaction",
) -> EpistasisAxes:
    """Draw the strongest interaction of each pair of positions, with a logo along both axes.

    Of all substitutions at two positions, and of all outputs, the interaction of the largest absolute value is drawn,
    on a colour scale symmetric around zero, which is white. A map without negative values, such as a dependency map,
    has a scale from zero.

    Parameters
    ----------
    interaction : numpy.ndarray or torch.Tensor, shape (W, C, W, C, O...) or (W, W)
        The interactions of one sequence, from `yuzu.epistasis`, or a map, such as one of `yuzu.dependency_map`. Finite.
    ax : matplotlib.axes.Axes, optional
        The axes to draw on. The logos and the colour bar take their room from them. Default: a new figure, 0.13 inches
        for each position, at least 4 and at most 12 inches.
    attribution : numpy.ndarray or torch.Tensor, shape (C, W), optional
        The heights of the letters of the logos, such as projected ISM scores or the one-hot sequence itself. Default:
        no logos.
    alphabet : str, optional
        The characters in the order of the rows of `attribution`. Default: `ACGT` for C = 4, `ACDEFGHIKLMNPQRSTVWY` for
        C = 20.
    colors : dict, optional
        From character to a matplotlib colour; overrides the default colours of the letters it names.
    offset : int
        The coordinate of the first position. Default: 0.
    vmax : float, optional
        The value of the darkest colour. Default: the largest absolute value.
    cmap : str or matplotlib.colors.Colormap, optional
        A colour map. Default: blue over white to red, or white to red for a scale from zero.
    colorbar : bool
        True draws a colour bar. Default: True.
    title, label : str, optional
        The title and the label of the colour bar. Defaults: none and "interaction".

    Returns
    -------
    EpistasisAxes
        The named tuple `(map, above, beside, colorbar)` of matplotlib axes. `map` is `ax` if it was given.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If `interaction` or `attribution` has the wrong shape or holds NaN or infinity, if `alphabet` is needed and
        missing or does not fit C, if `vmax` is not positive, if `offset` is no integer, or if `ax` is not one axes. (A
        `YuzuError`.)

    Examples
    --------
    >>> import yuzu
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> model, X = load_ctcf_model(), load_ctcf_peaks().X[:1]  # (1, 4, 100)
    >>> pairs = yuzu.epistasis(model, X, start=45, end=60, target=0)
    >>> axes = yuzu.plot.plot_epistasis(pairs[0], attribution=X[0, :, 45:60], offset=45)
    >>> axes.map.get_xlabel(), axes.colorbar.get_ylabel()
    ('position', 'interaction')
    """
    require_matplotlib("plot_epistasis")
    check_axes(ax)
    values = _map("interaction", interaction)
    length = len(values)
    heights = letters = None
    if attribution is not None:
        heights = as_matrix("attribution", attribution)
        if heights.shape[1] != length:
            raise YuzuError(
                f"attribution: got shape {heights.shape}, want (C, {length}), with the positions of interaction"
            )
        letters = check_alphabet(alphabet, len(heights))
    check_positive("vmax", vmax)
    offset = check_offset(offset)

    if ax is None:
        width = min(width_for(length), WIDEST_MAP)
        ax = new_axes(width, width - (0.6 if colorbar else 0.0))
    above = beside = bar = None
    if heights is not None and letters is not None:
        above, beside, bar = surround(ax, min(LOGO, size_in_inches(ax)[1] / 5), colorbar)
    elif colorbar:
        bar = add_bar(ax)
    _draw(ax, bar, values, offset, vmax, cmap, label)
    if heights is not None and letters is not None and above is not None and beside is not None:
        draw_logo(above, heights, letters, colors, offset, None)
        draw_lying_logo(beside, heights, letters, colors, offset)
        for part in (above, beside):
            part.set_axis_off()
        ax.set_ylabel("")
    if title is not None:
        (ax if above is None else above).set_title(title)
    return EpistasisAxes(ax, above, beside, bar)


def _map(name: str, interaction: np.ndarray | torch.Tensor) -> np.ndarray:
    """The value that is drawn for each pair of positions, ``(W, W)``."""
    values = as_array(name, interaction)
    if values.ndim == 2 and values.shape[0] == values.shape[1] > 0:
        return values
    if values.ndim < 4 or values.shape[0] != values.shape[2] or values.shape[1] != values.shape[3] or 0 in values.shape:
        raise YuzuError(
            f"{name}: got shape {values.shape}, want (W, C, W, C, ...), those of one sequence, or a map (W, W)"
        )
    found: np.ndarray = strongest(values[None])[0].numpy()
    return found


def _draw(
    ax: Axes,
    bar: Axes | None,
    values: np.ndarray,
    offset: int,
    vmax: float | None,
    cmap: str | Colormap | None,
    label: str | None,
) -> None:
    from matplotlib.ticker import MaxNLocator

    length = len(values)
    limit = vmax or float(np.abs(values).max()) or 1.0
    signed = bool((values < 0).any())
    image = draw_map(ax, bar, values, offset, (-limit if signed else 0.0, limit), cmap or _colors(signed), label)
    image.set_extent((offset - 0.5, offset + length - 0.5, offset + length - 0.5, offset - 0.5))
    ax.set_ylim(offset + length - 0.5, offset - 0.5)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.set_ylabel("position")


def _colors(signed: bool) -> Colormap:
    """Blue over white to red, or its upper half."""
    from matplotlib.colors import LinearSegmentedColormap

    both = diverging()
    return both if signed else LinearSegmentedColormap.from_list("yuzu from zero", both(np.linspace(0.5, 1, 128)))
