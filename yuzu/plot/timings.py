"""Timing charts: seconds of several methods on several models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from yuzu.errors import YuzuError, shown
from yuzu.plot.checks import check_axes, require_matplotlib
from yuzu.plot.layout import new_axes, size_in_inches

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers can tell apart; their lightness differs too.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#444444", "#56B4E9", "#D55E00", "#F0E442")
GAP = 0.9  # rows: the space between models
BAND = "#f4f4f4"  # behind the rows of one model


class _Row(NamedTuple):
    """One method on one model: its place from the top, and its seconds or the words that stand in their place."""

    method: str
    model: str
    place: float
    seconds: np.ndarray | None
    words: str


def plot_timings(
    seconds: Mapping[str, Mapping[str, float | Sequence[float] | str]],
    ax: Axes | None = None,
    *,
    baseline: str | None = None,
    colors: Mapping[str, str] | None = None,
    title: str | None = None,
    xlabel: str | None = "seconds",
    legend: bool = True,
) -> Axes:
    """Draw the seconds of several methods on several models as dots on a logarithmic axis.

    Models stand one below another in the order in which they are first named, and the methods within each in the order
    of `seconds`. Each dot is labelled with its seconds and, with a `baseline`, how many times as fast as that it is
    (the baseline itself has its seconds alone). A logarithmic axis has no zero, so that lengths of bars would mean
    nothing.

    Parameters
    ----------
    seconds : mapping from method to mapping from model
        To a positive number of seconds; to several, of which the dot shows the median and a thin line the range; or to
        a few words in place of the dot, such as "not measured". A method may lack models: it has no row there.
    ax : matplotlib.axes.Axes, optional
        The axes to draw on. Default: a new figure, 8 inches wide and as high as the rows need.
    baseline : str, optional
        The method whose seconds are divided by those of the others to give their speed-up, on the models it was
        measured on. Default: none, and no speed-up.
    colors : mapping from method to matplotlib colour, optional
        Overrides the default colours of the methods it names.
    title, xlabel : str, optional
        Defaults: none and "seconds".
    legend : bool
        True draws a legend below the axes, if there are two methods or more. Default: True.

    Returns
    -------
    matplotlib.axes.Axes
        The axes that were drawn on: `ax` if it was given.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If `seconds` is empty, or holds a number that is not positive and finite; if `baseline` is none of its methods,
        or if `ax` is not one axes. (A `YuzuError`.)

    Examples
    --------
    >>> from yuzu.plot import plot_timings
    >>> ax = plot_timings({"yuzu": {"Basset": [0.25, 0.26, 0.31]}, "naive": {"Basset": 9.1}}, baseline="naive")
    >>> [text.get_text() for text in ax.texts]
    ['0.26 s, 35×', '9.1 s']
    """
    require_matplotlib("plot_timings")
    check_axes(ax)
    table = _check_seconds(seconds)
    if baseline is not None and baseline not in table:
        raise YuzuError(f"baseline: got {shown(baseline)}, want one of the methods {', '.join(map(repr, table))}")
    rows, centres = _arrange(table)
    bottom = rows[-1].place + 0.5

    own = ax is None
    if ax is None:
        ax = new_axes(8.0, 0.16 * bottom + (1.3 if legend and len(table) > 1 else 0.8))
    chosen = {method: COLORS[i % len(COLORS)] for i, method in enumerate(table)} | dict(colors or {})
    points = size_in_inches(ax)[1] * 72 / (bottom + GAP)  # of a row
    font = float(np.clip(0.62 * points, 4.0, 8.0))
    labels = [_label(row, table, baseline) for row in rows]
    left = _set_limits(ax, rows, labels, font)
    _draw_bands(ax, rows)
    _draw_rows(ax, rows, labels, chosen, left, font)
    ax.set_ylim(bottom + GAP / 2, -GAP / 2)
    ax.set_yticks(list(centres.values()), list(centres), fontsize=8)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=8)
    ax.set_xlabel(xlabel or "", fontsize=8)
    ax.grid(axis="x", linewidth=0.4, color="#dddddd")
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    if title is not None:
        ax.set_title(title, fontsize=10)
    if legend and len(table) > 1:
        room = 7.0 if own else size_in_inches(ax)[0]  # layout will make new axes about as wide
        _draw_legend(ax, {method: chosen[method] for method in table}, room, below=bool(xlabel))
    return ax


def _check_seconds(seconds: Any) -> dict[str, dict[str, np.ndarray | str]]:
    """The same with arrays of seconds, each of them positive."""
    if not isinstance(seconds, Mapping) or not all(isinstance(row, Mapping) for row in seconds.values()):
        raise YuzuError(
            f"seconds: got {type(seconds).__name__}, want a mapping from method to a mapping from model to seconds"
        )
    table: dict[str, dict[str, np.ndarray | str]] = {}
    for method, row in seconds.items():
        table[method] = {}
        for model, value in row.items():
            if isinstance(value, str):
                table[method][model] = value
                continue
            times = np.atleast_1d(np.asarray(value, dtype=np.float64))
            if times.ndim != 1 or times.size == 0 or not np.all(np.isfinite(times) & (times > 0)):
                raise YuzuError(
                    f"seconds: got {shown(value)} for {method!r} on {model!r}, want positive numbers or words"
                )
            table[method][model] = times
    if not any(not isinstance(times, str) for row in table.values() for times in row.values()):
        raise YuzuError("seconds: got no number, want at least one method with the seconds of one model")
    return table


def _arrange(table: dict[str, dict[str, np.ndarray | str]]) -> tuple[list[_Row], dict[str, float]]:
    """The rows from the top, one unit high each, and the centre of each model."""
    models = list(dict.fromkeys(model for row in table.values() for model in row))
    rows: list[_Row] = []
    centres, top = {}, 0.0
    for model in models:
        methods = [method for method in table if model in table[method]]
        for place, method in enumerate(methods):
            found = table[method][model]
            words = f"{method}: {found}" if isinstance(found, str) else ""
            rows.append(_Row(method, model, top + place + 0.5, None if isinstance(found, str) else found, words))
        centres[model] = top + len(methods) / 2
        top += len(methods) + GAP
    return rows, centres


def _label(row: _Row, table: dict[str, dict[str, np.ndarray | str]], baseline: str | None) -> str:
    """The text beside a dot, or in its place."""
    if row.seconds is None:
        return row.words
    value = float(np.median(row.seconds))
    text = f"{_digits(value)} s"
    slow = table[baseline].get(row.model, "") if baseline is not None and baseline != row.method else ""
    return text if isinstance(slow, str) else f"{text}, {_digits(float(np.median(slow)) / value)}×"


def _digits(value: float) -> str:
    """Two significant digits, and all of those before the point."""
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def _set_limits(ax: Axes, rows: list[_Row], labels: list[str], font: float) -> float:
    """Set a logarithmic axis with room for the labels; returns its left end."""
    from matplotlib.ticker import LogLocator, NullFormatter

    known = np.concatenate([row.seconds for row in rows if row.seconds is not None])
    left = float(known.min()) / 2
    width = size_in_inches(ax)[0] * 72
    shares = [(len(text) * 0.62 * font + 11) / width for text in labels]
    needed = [
        (0.0 if row.seconds is None else float(np.log10(row.seconds.max() / left))) / max(1 - share, 0.2)
        for row, share in zip(rows, shares, strict=True)
    ]
    decades = max(needed)
    ax.set_xscale("log")
    ax.set_xlim(left, left * 10**decades)
    if decades < 2:  # hardly a power of ten to put a tick at
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    return left


def _draw_bands(ax: Axes, rows: list[_Row]) -> None:
    """A pale band behind the rows of each model."""
    for model in dict.fromkeys(row.model for row in rows):
        places = [row.place for row in rows if row.model == model]
        ax.axhspan(min(places) - 0.5, max(places) + 0.5, color=BAND, linewidth=0, zorder=0)


def _draw_rows(ax: Axes, rows: list[_Row], labels: list[str], colors: dict[str, str], left: float, font: float) -> None:
    """A dot for each median, a line for its range, and the label after them."""
    for row, label in zip(rows, labels, strict=True):
        end, space = left, 3.0
        if row.seconds is not None:
            value, low, end = float(np.median(row.seconds)), float(row.seconds.min()), float(row.seconds.max())
            color, radius = colors[row.method], 0.36 * font
            ax.scatter([value], [row.place], s=(2 * radius) ** 2, color=color, linewidths=0, zorder=3)
            if end > low:
                ax.hlines(row.place, low, end, color=color, linewidth=1.0, zorder=2)
            space += radius
        ax.annotate(
            label,
            (end, row.place),
            xytext=(space, 0),
            textcoords="offset points",
            va="center",
            fontsize=font,
            color="black" if row.seconds is not None else "#444444",
        )


def _draw_legend(ax: Axes, colors: dict[str, str], room: float, below: bool) -> None:
    """The methods in rows below the axes, as many in a row as fit into `room`, in inches."""
    from matplotlib.lines import Line2D
    from matplotlib.transforms import ScaledTranslation

    widest = max(map(len, colors)) * 8 * 0.55 + 40  # points
    columns = int(np.clip(room * 72 / widest, 1, len(colors)))
    columns = -(-len(colors) // -(-len(colors) // columns))  # rows of equal length
    down = ScaledTranslation(0, -(36 if below else 22) / 72, ax.figure.dpi_scale_trans)
    ax.legend(
        handles=[
            Line2D([], [], color=color, label=method, marker="o", linestyle="none") for method, color in colors.items()
        ],
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        bbox_transform=ax.transAxes + down,
        borderaxespad=0.0,
        ncols=columns,
        frameon=False,
        fontsize=8,
    )
