"""Two scores of the same substitutions against each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from yuzu.errors import YuzuError
from yuzu.plot.checks import as_array, check_axes, check_choice, require_matplotlib
from yuzu.plot.layout import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MANY = 20_000  # points; more hide one another, and a PDF of them opens slowly
SAME_SCALE = 3.0  # largest ratio of two ranges that count as one scale
COLOR = "#2f79b5"


def plot_comparison(
    x: np.ndarray | torch.Tensor,
    y: np.ndarray | torch.Tensor,
    ax: Axes | None = None,
    *,
    xlabel: str | None = "x",
    ylabel: str | None = "y",
    title: str | None = None,
    skip_zeros: bool = True,
    identity: bool | None = None,
    style: str = "auto",
    color: str = COLOR,
) -> Axes:
    """Draw two scores of the same entries against each other, with their correlations.

    The correlations of Pearson and Spearman and the number of entries stand in the upper left corner, over all entries
    that are drawn.

    Parameters
    ----------
    x, y : numpy.ndarray or torch.Tensor, of any one shape
        The two scores, such as deltas of yuzu and of another method, (n, C, L), of any dtype. Finite.
    ax : matplotlib.axes.Axes, optional
        The axes to draw on. Default: a new figure, 4 inches wide.
    xlabel, ylabel, title : str, optional
        Defaults: "x", "y" and no title.
    skip_zeros : bool
        True leaves entries that are exactly 0 in both out of the picture and the correlations. In deltas these are the
        reference letters, which every method knows to change nothing. Default: True.
    identity : bool, optional
        True gives both axes the same limits and draws the line of equal values. Default: True if the largest absolute
        values of the two differ by a factor of 3 at most.
    style : str
        "points"; "density", hexagons that are darker the more entries fall in, on a logarithmic scale; or "auto", the
        default: density for more than 20,000 entries.
    color : str
        The colour of the points. Default: blue.

    Returns
    -------
    matplotlib.axes.Axes
        The axes that were drawn on: `ax` if it was given.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the shapes of `x` and `y` differ, one of them holds NaN or infinity, or no entry is left; if `style` is not
        one of those named, or if `ax` is not one axes. (A `YuzuError`.)

    Examples
    --------
    >>> import numpy as np
    >>> from yuzu.plot import plot_comparison
    >>> ax = plot_comparison(np.array([0.0, 1.0, 2.0, 4.0]), np.array([0.0, 1.0, 3.0, 4.0]), xlabel="naive ISM")
    >>> print(ax.texts[0].get_text())
    Pearson 0.929
    Spearman 1.000
    n = 3
    """
    require_matplotlib("plot_comparison")
    check_axes(ax)
    check_choice("style", style, ("auto", "points", "density"))
    left, right = as_array("x", x), as_array("y", y)
    if left.shape != right.shape:
        raise YuzuError(f"y: got shape {right.shape}, want {left.shape}, the shape of x")
    left, right = left.ravel(), right.ravel()
    if skip_zeros:
        kept = (left != 0) | (right != 0)
        left, right = left[kept], right[kept]
    if left.size == 0:
        unless = " that is not 0 in both x and y" if skip_zeros else ""
        raise YuzuError(f"x: got no entry{unless}, want at least one")

    if ax is None:
        ax = new_axes(4.0, 4.0)
    sizes = [float(np.abs(values).max()) for values in (left, right)]
    if identity is None:
        identity = 0 < max(sizes) <= SAME_SCALE * min(sizes)
    if identity:
        _draw_identity(ax, left, right)
    if style == "density" or (style == "auto" and left.size > MANY):
        _draw_density(ax, left, right)
    else:
        size = float(np.clip(200 / np.sqrt(left.size), 2, 16))
        ax.scatter(left, right, s=size, color=color, alpha=0.6, linewidths=0)
    _write_correlations(ax, left, right)
    ax.set_xlabel(xlabel or "")
    ax.set_ylabel(ylabel or "")
    if title is not None:
        ax.set_title(title)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _draw_identity(ax: Axes, left: np.ndarray, right: np.ndarray) -> None:
    """Give both axes the same limits, and draw the line of equal values."""
    low, high = min(left.min(), right.min()), max(left.max(), right.max())
    margin = 0.04 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    ax.set_xlim(*limits)
    ax.set_ylim(*limits)
    ax.set_aspect("equal", adjustable="box")
    ax.plot(limits, limits, color="#888888", linewidth=0.8, zorder=3)


def _draw_density(ax: Axes, left: np.ndarray, right: np.ndarray) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    # The lightest colour still shows on white, so that no single entry is lost.
    cmap = LinearSegmentedColormap.from_list("yuzu density", ["#c3d9ea", COLOR, "#08306b"])
    limits = (ax.get_xlim(), ax.get_ylim()) if ax.get_aspect() != "auto" else None
    ax.hexbin(left, right, gridsize=60, bins="log", mincnt=1, cmap=cmap, linewidths=0.2)
    if limits is not None:
        ax.set_xlim(*limits[0])
        ax.set_ylim(*limits[1])


def _write_correlations(ax: Axes, left: np.ndarray, right: np.ndarray) -> None:
    """Write both correlations in the corner that correlated points leave empty."""
    from scipy.stats import pearsonr, spearmanr

    lines, falls = [], False
    for name, function in (("Pearson", pearsonr), ("Spearman", spearmanr)):
        if min(np.ptp(left), np.ptp(right)) > 0:
            r = float(function(left, right)[0])
            falls |= r < 0
            lines.append(f"{name} {r:.3f}")
        else:
            lines.append(f"{name} undefined")  # a constant correlates with nothing
    ax.text(
        0.97 if falls else 0.03,
        0.97,
        "\n".join([*lines, f"n = {left.size:,}"]),
        transform=ax.transAxes,
        ha="right" if falls else "left",
        va="top",
        fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1.5},
        zorder=4,
    )
