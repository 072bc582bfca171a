"""Sequence logos: letters as tall as their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from yuzu.plot.checks import as_matrix, check_alphabet, check_axes, check_offset, require_matplotlib
from yuzu.plot.layout import new_axes, show_part, show_positions, shown_positions, width_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


def plot_logo(
    attribution: np.ndarray | torch.Tensor,
    ax: Axes | None = None,
    *,
    alphabet: str | None = None,
    colors: dict[str, str] | None = None,
    offset: int = 0,
    ylim: tuple[float, float] | None = None,
    title: str | None = None,
    ylabel: str | None = "attribution",
    zoom: tuple[int, int] | bool | None = None,
    start: int | None = None,
) -> Axes:
    """Draw an attribution as a sequence logo.

    Each nonzero entry of `attribution` is a letter as tall as the entry is large. Positive letters stand on the zero
    line, negative ones hang from it upside down, and several at one position are stacked with the largest furthest
    from zero.

    A long sequence is shown where its scores are largest: see ``zoom``. While a position is narrower than 4 pixels, as
    in a picture of all 2,000 positions, bars in the letters' colours stand for the letters. They become letters
    when one zooms in (``ax.set_xlim(900, 1000)``); PDF and SVG always hold letters.

    Parameters
    ----------
    attribution : numpy.ndarray or torch.Tensor, shape (C, L)
        The height of each letter at each position, of any dtype. Finite.
    ax : matplotlib.axes.Axes, optional
        The axes to draw on. Default: a new figure, 0.13 inches wide for each position, at least 4 and at most 30
        inches.
    alphabet : str, optional
        The characters in the order of the rows. Default: `ACGT` for C = 4, `ACDEFGHIKLMNPQRSTVWY` for C = 20.
    colors : dict, optional
        From character to a matplotlib colour; overrides the default colours of the letters it names.
    offset : int
        The coordinate of the first position on the x-axis. Default: 0. `start` is its older name.
    ylim : tuple of two floats, optional
        The limits of the y-axis, to share them between plots. Default: what the letters need.
    title, ylabel : str, optional
        The title and the label of the y-axis. Defaults: none and "attribution".
    zoom : tuple of two ints, False or None
        The positions to show, first and stop, counted from 0. False shows all. Default None: all, but of more than 200
        positions in a new figure the 150 with the largest scores; ``ax.set_xlim`` shows others.

    Returns
    -------
    matplotlib.axes.Axes
        The axes that were drawn on: `ax` if it was given.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If `attribution` has the wrong shape or holds NaN or infinity, if `alphabet` is needed and missing or does not
        fit C, if `offset` is no integer, if `zoom` is no part of the sequence, or if `ax` is not one axes. (A
        `YuzuError`.)

    Examples
    --------
    >>> import numpy as np
    >>> from yuzu.plot import plot_logo
    >>> ax = plot_logo(np.array([[1.0, 0.0], [0.0, 0.0], [0.0, -0.5], [0.0, 0.0]]), title="AG")
    >>> ax.get_xlabel()
    'position'
    """
    require_matplotlib("plot_logo")
    check_axes(ax)
    heights = as_matrix("attribution", attribution)
    letters = check_alphabet(alphabet, len(heights))
    offset = check_offset(offset, start)
    shown = shown_positions(heights, zoom, ax is None)
    if ax is None:
        ax = new_axes(width_for(shown[1] - shown[0]), 1.9)
    draw_logo(ax, heights, letters, colors, offset, ylim)
    ax.set_ylabel(ylabel or "")
    ax.set_xlabel(show_part(ax, offset, shown, heights.shape[1]))
    if title is not None:
        ax.set_title(title)
    return ax


def draw_logo(
    ax: Axes,
    heights: np.ndarray,
    letters: str,
    colors: dict[str, str] | None,
    start: int,
    ylim: tuple[float, float] | None,
) -> None:
    """Draw the letters of `heights`, (C, L), with the zero line, limits and ticks; no labels."""
    from matplotlib.ticker import MaxNLocator

    add_letters(ax, heights, letters, colors, start)
    ax.axhline(0, color="black", linewidth=0.6)
    ax.set_ylim(*(limits_of(heights) if ylim is None else ylim))
    show_positions(ax, start, heights.shape[1])
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4))
    ax.spines[["top", "right"]].set_visible(False)


def draw_lying_logo(ax: Axes, heights: np.ndarray, letters: str, colors: dict[str, str] | None, start: int) -> None:
    """Draw a logo whose positions run down the y-axis, with the zero line and limits; no ticks."""
    add_letters(ax, heights, letters, colors, start, upright=False)
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set_xlim(*limits_of(heights))


def add_letters(
    ax: Axes, heights: np.ndarray, letters: str, colors: dict[str, str] | None, start: int, upright: bool = True
) -> None:
    from yuzu.plot.artists import LetterCollection

    colors_of_rows = palette(letters, colors)
    rows, positions, bases = stack(heights)
    collection = LetterCollection(
        [letters[row] for row in rows],
        start + positions,
        bases,
        heights[rows, positions],
        upright,
        facecolors=[colors_of_rows[row] for row in rows],
    )
    ax.add_collection(collection, autolim=False)


def limits_of(heights: np.ndarray) -> tuple[float, float]:
    """Limits that show the letters of all positions, with a margin."""
    top = np.where(heights > 0, heights, 0).sum(axis=0).max()
    bottom = np.where(heights < 0, heights, 0).sum(axis=0).min()
    margin = 0.05 * (top - bottom) or 1.0
    return float(bottom - margin), float(top + margin)


def palette(letters: str, colors: dict[str, str] | None) -> list[str]:
    """The colour of each row."""
    defaults = DNA_COLORS if set(letters) <= set(DNA_COLORS) else PROTEIN_COLORS
    chosen = {**defaults, **(colors or {})}
    return [chosen.get(letter, "#4d4d4d") for letter in letters]


def stack(heights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
