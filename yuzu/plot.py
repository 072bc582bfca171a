"""Pictures of attributions: a sequence logo over the heat map of all substitutions.

Needs matplotlib, which is an optional extra: ``pip install 'yuzu-ism[plot]'``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from yuzu.errors import YuzuError
from yuzu.sequence import DNA, PROTEIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.colors import Colormap
    from matplotlib.gridspec import SubplotSpec

__all__ = ["AttributionAxes", "plot_attribution"]

ALPHABETS = {len(letters): letters for letters in (DNA, PROTEIN)}

DNA_COLORS = {"A": "#1a9641", "C": "#2b5fa8", "G": "#f0a30a", "T": "#d7263d", "U": "#d7263d"}

# Amino acids by chemistry: hydrophobic, polar, basic, acidic, aromatic, and the special three.
PROTEIN_COLORS = {
    letter: color
    for letters, color in [
        ("AILMV", "#4d4d4d"),
        ("STNQ", "#1a9641"),
        ("KRH", "#2b5fa8"),
        ("DE", "#d7263d"),
        ("FWY", "#8e44ad"),
        ("CGP", "#e08a00"),
    ]
    for letter in letters
}

LETTER_WIDTH = 0.92  # of one position, so that neighbours do not touch


class AttributionAxes(NamedTuple):
    """What `plot_attribution` drew on.

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
    start: int = 0,
    ylim: tuple[float, float] | None = None,
    vmax: float | None = None,
    cmap: str | Colormap | None = None,
    colorbar: bool = True,
    title: str | None = None,
    ylabel: str | None = "attribution",
    heatmap_label: str | None = "delta",
) -> AttributionAxes:
    """Draw an attribution as a sequence logo, over a heat map of all substitutions if one is given.

    Each nonzero entry of `attribution` is a letter as tall as the entry is large. Positive letters stand on
    the zero line, negative ones hang from it upside down, and several at one position are stacked with the
    largest furthest from zero. An attribution with one nonzero entry per position (the observed character)
    gives the usual logo.

    Parameters
    ----------
    attribution : numpy.ndarray or torch.Tensor, shape (C, L)
        The height of each letter at each position. Finite.
    heatmap : numpy.ndarray or torch.Tensor, shape (C, L), optional
        A value for each substitution, e.g. one sequence of `yuzu_ism(..., output="delta")`. Finite. It has a
        colour scale of its own, symmetric around zero, which is white. Default: no heat map.
    ax : matplotlib.axes.Axes, optional
        Where to draw. With a heat map these axes are divided: the logo keeps the upper part. Default: a new
        figure as wide as the sequence asks for.
    reference : str or numpy.ndarray or torch.Tensor, shape (C, L), optional
        The observed sequence, as a string or one-hot; the heat map marks its letters with dots. Default: the
        characters of those positions where `attribution` has exactly one nonzero entry.
    alphabet : str, optional
        The characters in the order of the rows. Default: `ACGT` for C = 4, `ACDEFGHIKLMNPQRSTVWY` for C = 20.
    colors : dict, optional
        From character to a matplotlib colour; overrides the default colours of the letters it names.
    start : int
        The coordinate of the first position on the x-axis. Default: 0.
    ylim : tuple of two floats, optional
        The limits of the logo's y-axis, to share them between plots. Default: what the letters need.
    vmax : float, optional
        The value of the darkest colour of the heat map, whose scale goes from `-vmax` to `vmax`. Default: the
        largest absolute value of `heatmap`.
    cmap : str or matplotlib.colors.Colormap, optional
        A diverging colour map. Default: blue over white to red.
    colorbar : bool
        Whether the heat map has a colour bar. Default: True.
    title, ylabel, heatmap_label : str, optional
        The title, the label of the logo's y-axis and the label of the colour bar. Defaults: none,
        "attribution", "delta".

    Returns
    -------
    AttributionAxes
        The named tuple `(logo, heatmap, colorbar)` of matplotlib axes; None for those that are not there.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If `attribution`, `heatmap` or `reference` has the wrong shape or holds NaN or infinity, if `alphabet`
        is needed and missing or does not fit C, or if `vmax` is not positive. (A `YuzuError`.)

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
    _require_matplotlib()
    heights = _as_matrix("attribution", attribution)
    n_choices, length = heights.shape
    letters = _check_alphabet(alphabet, n_choices)
    palette = _palette(letters, colors)
    values = None if heatmap is None else _as_matrix("heatmap", heatmap, shape=heights.shape)
    observed = _reference_rows(reference, heights, letters)
    if vmax is not None and not vmax > 0:
        raise YuzuError(f"vmax: got {vmax!r}, want a positive number or None")

    axes = _make_axes(ax, n_choices, length, with_heatmap=values is not None, with_colorbar=colorbar)
    _draw_logo(axes.logo, heights, letters, palette, start, ylim)
    axes.logo.set_ylabel(ylabel or "")
    if title is not None:
        axes.logo.set_title(title)
    if values is None:
        axes.logo.set_xlabel("position")
    else:
        _draw_heatmap(axes, values, observed, letters, start, vmax, cmap, heatmap_label)
    return axes


# Input


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "plot_attribution draws with matplotlib, which is not installed: pip install 'yuzu-ism[plot]'"
        ) from error


def _as_matrix(name: str, value: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().double().numpy()
    matrix = np.asarray(value, dtype=np.float64)
    if matrix.ndim != 2 or matrix.size == 0:
        raise YuzuError(f"{name}: got shape {matrix.shape}, want the two axes (C, L), neither of them empty")
    if shape is not None and matrix.shape != shape:
        raise YuzuError(f"{name}: got shape {matrix.shape}, want {shape}, the shape of attribution")
    finite = np.isfinite(matrix)
    if not finite.all():
        row, position = np.argwhere(~finite)[0].tolist()
        raise YuzuError(f"{name}: got {matrix[row, position]} at [{row}, {position}], want finite numbers")
    return matrix


def _check_alphabet(alphabet: str | None, n_choices: int) -> str:
    if alphabet is None:
        if n_choices not in ALPHABETS:
            raise YuzuError(
                f"alphabet: got None for {n_choices} rows, want a string with one character a row; only 4 "
                f"({DNA}) and 20 ({PROTEIN}) have a default"
            )
        return ALPHABETS[n_choices]
    if len(alphabet) != n_choices:
        raise YuzuError(f"alphabet: got {alphabet!r}, want one character for each of the {n_choices} rows")
    return alphabet


def _palette(letters: str, colors: dict[str, str] | None) -> list[str]:
    defaults = DNA_COLORS if set(letters) <= set(DNA_COLORS) else PROTEIN_COLORS
    chosen = {**defaults, **(colors or {})}
    return [chosen.get(letter, "#4d4d4d") for letter in letters]


def _reference_rows(reference: Any, heights: np.ndarray, letters: str) -> np.ndarray:
    """The row of the observed character at each position, shape (L,); -1 where there is none."""
    n_choices, length = heights.shape
    if isinstance(reference, str):
        if len(reference) != length:
            raise YuzuError(f"reference: got {len(reference)} characters, want {length}, one a position")
        return np.array([letters.find(letter) for letter in reference.upper()])
    source = heights if reference is None else _as_matrix("reference", reference, shape=heights.shape)
    return np.where((source != 0).sum(axis=0) == 1, np.abs(source).argmax(axis=0), -1)


# Axes


def _make_axes(
    ax: Axes | None, n_choices: int, length: int, with_heatmap: bool, with_colorbar: bool
) -> AttributionAxes:
    import matplotlib.pyplot as plt

    rows = 0.17 * max(n_choices, 4)  # inches of the heat map
    if ax is None:
        width = float(np.clip(0.13 * length + 1.5, 4.0, 30.0))
        height = 1.6 + (rows + 0.5 if with_heatmap else 0.3)
        _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    if not with_heatmap:
        return AttributionAxes(ax, None, None)

    # Rows and columns of their own keep the parts apart: constrained layout takes hspace and wspace as shares
    # of the whole figure, which would tear them far apart in a tall one.
    width = ax.get_window_extent().width / ax.figure.dpi
    grid = _own_cell(ax).subgridspec(
        3,
        3 if with_colorbar else 1,
        height_ratios=[1.1, 0.06, rows],
        width_ratios=[max(width - 0.2, 0.5), 0.1, 0.1] if with_colorbar else None,
        hspace=0,
        wspace=0,
    )
    ax.set_subplotspec(grid[0, 0])
    below = ax.figure.add_subplot(grid[2, 0], sharex=ax)
    bar = ax.figure.add_subplot(grid[2, 2]) if with_colorbar else None
    return AttributionAxes(ax, below, bar)


def _own_cell(ax: Axes) -> SubplotSpec:
    """The grid cell of these axes; axes placed by hand get a grid of one cell where they are."""
    cell = ax.get_subplotspec()
    if cell is None:
        box = ax.get_position()
        grid = ax.figure.add_gridspec(1, 1, left=box.x0, right=box.x1, bottom=box.y0, top=box.y1)
        cell = grid[0, 0]
    return cell


# Logo


@lru_cache(maxsize=256)
def _glyph(letter: str) -> tuple[np.ndarray, np.ndarray]:
    """The outline of a letter in the unit square: vertices, shape (n, 2), and matplotlib's codes, (n,)."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    path = TextPath((0, 0), letter, size=1, prop=FontProperties(family="DejaVu Sans", weight="bold"))
    low, high = path.get_extents().get_points()
    size = np.maximum(high - low, 1e-6)
    # "I" would become a solid block at full width.
    narrow = max(0.3, min(1.0, 1.6 * size[0] / size[1]))
    vertices = (np.asarray(path.vertices) - low) / size
    vertices[:, 0] = 0.5 + (vertices[:, 0] - 0.5) * narrow
    return vertices, np.asarray(path.codes)


def _stack(heights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, position and lower end (towards zero) of each letter: three arrays of shape (letters,).

    Within a position the letters of one sign are stacked from the smallest, next to zero, to the largest.
    """
    order = np.argsort(np.abs(heights), axis=0, kind="stable")
    ordered = np.take_along_axis(heights, order, axis=0)
    base = np.zeros_like(ordered)
    for sign in (1, -1):
        part = np.where(sign * ordered > 0, ordered, 0)
        base += np.where(part != 0, np.cumsum(part, axis=0) - part, 0)
    rank, position = np.nonzero(ordered)
    return order[rank, position], position, base[rank, position]


def _logo_collection(heights: np.ndarray, letters: str, palette: list[str], start: int) -> PathCollection:
    from matplotlib.collections import PathCollection
    from matplotlib.path import Path

    paths = []
    rows, positions, bases = _stack(heights)
    for row, position, base in zip(rows, positions, bases, strict=True):
        outline, codes = _glyph(letters[row])
        offset = (start + position - LETTER_WIDTH / 2, base)
        paths.append(Path(outline * (LETTER_WIDTH, heights[row, position]) + offset, codes))
    return PathCollection(paths, facecolors=[palette[row] for row in rows], linewidths=0)


def _draw_logo(
    ax: Axes,
    heights: np.ndarray,
    letters: str,
    palette: list[str],
    start: int,
    ylim: tuple[float, float] | None,
) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.add_collection(_logo_collection(heights, letters, palette, start), autolim=False)
    ax.axhline(0, color="black", linewidth=0.6)
    if ylim is None:
        top = np.where(heights > 0, heights, 0).sum(axis=0).max()
        bottom = np.where(heights < 0, heights, 0).sum(axis=0).min()
        margin = 0.05 * (top - bottom) or 1.0
        ylim = (bottom - margin, top + margin)
    ax.set_ylim(*ylim)
    ax.set_xlim(start - 0.5, start + heights.shape[1] - 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4))
    ax.spines[["top", "right"]].set_visible(False)


# Heat map


def _diverging() -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    stops = ["#08306b", "#2f79b5", "#9ac8e0", "#ffffff", "#f7b799", "#ca4842", "#67001f"]
    return LinearSegmentedColormap.from_list("yuzu", stops)


def _draw_heatmap(
    axes: AttributionAxes,
    values: np.ndarray,
    observed: np.ndarray,
    letters: str,
    start: int,
    vmax: float | None,
    cmap: str | Colormap | None,
    label: str | None,
) -> None:
    ax = axes.heatmap
    if ax is None:
        raise RuntimeError("no axes were made for the heat map")
    n_choices, length = values.shape
    limit = vmax or float(np.abs(values).max()) or 1.0
    image = ax.imshow(
        values,
        cmap=_diverging() if cmap is None else cmap,
        vmin=-limit,
        vmax=limit,
        aspect="auto",
        interpolation="nearest",
        extent=(start - 0.5, start + length - 0.5, n_choices - 0.5, -0.5),
    )
    marked = np.flatnonzero(observed >= 0)
    ax.scatter(start + marked, observed[marked], s=2.5, color="black", linewidths=0)
    ax.set_yticks(range(n_choices), list(letters), fontsize=8, family="monospace")
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("position")
    axes.logo.tick_params(axis="x", labelbottom=False, length=0)
    axes.logo.spines["bottom"].set_visible(False)
    if axes.colorbar is not None:
        # Only the ends and zero: more labels, or longer ones, would stand out above and below a low bar.
        bar = ax.figure.colorbar(image, cax=axes.colorbar, ticks=[-limit, 0, limit], format="%.2g")
        bar.outline.set_visible(False)
        axes.colorbar.tick_params(labelsize=8, length=2)
        axes.colorbar.set_ylabel(label or "", fontsize=9)
