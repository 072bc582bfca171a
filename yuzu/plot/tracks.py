"""A map of many outputs: tracks by positions, like tracks next to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from yuzu.errors import YuzuError
from yuzu.plot.checks import as_array, check_axes, check_choice, check_offset, check_positive, require_matplotlib
from yuzu.plot.heatmap import diverging, draw_map
from yuzu.plot.layout import add_bar, new_axes, width_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

ORDERED_LEAVES = 300  # tracks: optimal leaf ordering takes 0.06 s for these, and 1.4 s for 919
LABEL = 7.0  # points: the height of a track's label
REDUCTIONS = {"mean_effect": "mean effect", "largest": "largest absolute effect"}


class TracksAxes(NamedTuple):
    """The axes that `plot_tracks` drew on, and the order of the tracks.

    Attributes
    ----------
    heatmap : matplotlib.axes.Axes
        The axes of the map.
    colorbar : matplotlib.axes.Axes or None
        The axes of its colour bar; None without one.
    order : numpy.ndarray, shape (tracks,), int64
        The track in each row, from the top: ``scores[order]`` is what is drawn.
    """

    heatmap: Axes
    colorbar: Axes | None
    order: np.ndarray


def plot_tracks(
    scores: np.ndarray | torch.Tensor,
    ax: Axes | None = None,
    *,
    labels: Sequence[str] | None = None,
    cluster: bool = True,
    reduce: str = "mean_effect",
    scale: str = "shared",
    offset: int = 0,
    vmax: float | None = None,
    cmap: str | Colormap | None = None,
    colorbar: bool = True,
    title: str | None = None,
    label: str | None = None,
    start: int | None = None,
) -> TracksAxes:
    """Draw the scores of many outputs as a map with a row for each track and a column for each position.

    With `cluster`, tracks of like shape are next to each other: hierarchical clustering with average linkage of the
    distance ``1 - r``, where ``r`` is Pearson's correlation over positions. A constant track correlates with nothing
    (``r = 0``) but other constant ones. Up to 300 tracks are put in the optimal order of the leaves. Memory grows with
    the square of the number of tracks: 14 MB for 919, 450 MB for 5,313.

    If several tracks or positions fall on one pixel, the one with the largest absolute value is drawn.

    Parameters
    ----------
    scores : numpy.ndarray or torch.Tensor, shape (tracks, L) or (tracks, C, L)
        A value for each track and position, or the differences ``d`` of each substitution, of any dtype. Finite.
    ax : matplotlib.axes.Axes, optional
        The axes to draw on. The colour bar takes its room from them. Default: a new figure, up to 14 by 10 inches.
    labels : sequence of str, optional
        A name for each track, in the order of `scores`. Where there is no room for all, every second, fifth, ... is
        shown. Default: the number of the track, from 0.
    cluster : bool
        True puts like tracks next to each other; False keeps the order of `scores`. Default: True.
    reduce : str
        How ``C`` characters become one value: "mean_effect", the default, is ``-sum(d) / (C - 1)`` over characters,
        minus the mean of the substitutions, as in `yuzu.attribution.mean_effect`; "largest" is ``max(abs(d))``. Both
        take ``d`` to be 0 at the reference. Not used for shape (tracks, L).
    scale : str
        "shared", the default: the colours mean the same in all tracks. "track": each track is divided by its largest
        absolute value, so that weak ones are seen too.
    offset : int
        The coordinate of the first position on the x-axis. Default: 0. `start` is its older name.
    vmax : float, optional
        The value of the darkest colour. The scale goes from `-vmax` to `vmax`, or from 0 if no value is negative.
        Default: the largest absolute value.
    cmap : str or matplotlib.colors.Colormap, optional
        Default: blue over white to red, or white to red if no value is negative.
    colorbar : bool
        True draws a colour bar. Default: True.
    title, label : str, optional
        The title and the label of the colour bar. Defaults: none, and what the colours mean.

    Returns
    -------
    TracksAxes
        The named tuple `(heatmap, colorbar, order)`: the axes, of which `heatmap` is `ax` if it was given, and the
        track in each row.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If `scores` has the wrong shape or holds NaN or infinity, if there is not one label a track, if `reduce` or
        `scale` is not one of those named, if `vmax` is not positive, if `offset` is no integer, or if `ax` is not one
        axes. (A `YuzuError`.)

    Examples
    --------
    >>> import numpy as np
    >>> from yuzu.plot import plot_tracks
    >>> scores = np.array([[0.0, 1.0, 2.0, 0.0], [3.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.9, 0.0]])
    >>> axes = plot_tracks(scores, labels=["liver", "brain", "lung"])
    >>> abs(int(np.flatnonzero(axes.order == 0)[0]) - int(np.flatnonzero(axes.order == 2)[0]))
    1
    """
    require_matplotlib("plot_tracks")
    check_axes(ax)
    check_choice("reduce", reduce, tuple(REDUCTIONS))
    check_choice("scale", scale, ("shared", "track"))
    check_positive("vmax", vmax)
    offset = check_offset(offset, start)
    array = as_array("scores", scores)
    values = _reduced(array, reduce)
    names = _check_labels(labels, len(values))
    if scale == "track":
        largest = np.abs(values).max(axis=1, keepdims=True)
        values = values / np.where(largest > 0, largest, 1.0)
    if label is None:
        label = REDUCTIONS[reduce] if array.ndim == 3 else "score"
        label += ", relative to each track's largest" if scale == "track" else ""

    order = _clustered(values) if cluster else np.arange(len(values))
    if ax is None:
        ax = new_axes(min(width_for(values.shape[1]), 14.0), float(np.clip(0.14 * len(values) + 0.9, 2.0, 10.0)))
    bar = add_bar(ax) if colorbar else None
    limit = vmax or float(np.abs(values).max()) or 1.0
    signed = bool(values.min() < 0)
    if cmap is None and not signed:
        cmap = _upper_half(diverging())
    draw_map(ax, bar, values[order], offset, (-limit if signed else 0.0, limit), cmap, label)
    _label_rows(ax, [names[track] for track in order])
    if title is not None:
        ax.set_title(title)
    return TracksAxes(ax, bar, order)


def _reduced(array: np.ndarray, reduce: str) -> np.ndarray:
    """One value a track and position."""
    if array.ndim not in (2, 3) or array.size == 0 or (array.ndim == 3 and array.shape[1] < 2):
        raise YuzuError(
            f"scores: got shape {array.shape}, want (tracks, L), or (tracks, C, L) with at least two characters, "
            "none of them empty"
        )
    if array.ndim == 2:
        return array
    values: np.ndarray = np.abs(array).max(axis=1)
    if reduce == "mean_effect":
        values = -array.sum(axis=1) / (array.shape[1] - 1)
    return values


def _check_labels(labels: Any, tracks: int) -> list[str]:
    if labels is None:
        return [str(track) for track in range(tracks)]
    if isinstance(labels, str) or len(labels) != tracks:
        got = repr(labels) if isinstance(labels, str) else f"{len(labels)} labels"
        raise YuzuError(f"labels: got {got}, want a sequence of {tracks}, one a track")
    return [str(name) for name in labels]


def _clustered(values: np.ndarray) -> np.ndarray:
    """The order of the tracks, shape (tracks,), in which like ones are neighbours."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    tracks = len(values)
    if tracks < 3:
        return np.arange(tracks)
    centred = values - values.mean(axis=1, keepdims=True)
    size = np.linalg.norm(centred, axis=1)
    constant = size <= 1e-12 * np.abs(values).max(axis=1)  # the mean is rounded, so that not even these are exactly 0
    shapes = np.where(constant[:, None], 0.0, centred / np.where(constant, 1.0, size)[:, None])
    distance = np.clip(1.0 - shapes @ shapes.T, 0.0, 2.0)
    distance[np.ix_(constant, constant)] = 0.0
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=tracks <= ORDERED_LEAVES)
    order: np.ndarray = leaves_list(tree).astype(np.int64)
    return order


def _upper_half(cmap: Colormap) -> Colormap:
    from matplotlib.colors import ListedColormap

    return ListedColormap(cmap(np.linspace(0.5, 1.0, 128)))


def _label_rows(ax: Axes, names: list[str]) -> None:
    """The names of the rows, as many as there is room for."""
    from yuzu.plot.artists import RowLocator

    ax.yaxis.set_major_locator(RowLocator(ax, len(names), LABEL))
    ax.yaxis.set_major_formatter(lambda y, _: names[round(y)] if 0 <= round(y) < len(names) else "")
    ax.tick_params(axis="y", labelsize=LABEL, length=2 if len(names) > 1 else 0)
