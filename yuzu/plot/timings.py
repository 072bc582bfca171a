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
GAP = 0.9  # of a bar: the space between models


class _Bar(NamedTuple):
    """One bar: where it is, and its seconds or the words that stand in its place."""

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
    """Draw the seconds of several methods on several models as bars on a logarithmic axis.

    Models stand one below another in the order in which they are first named, and the methods within each in the order
    of `seconds`. Each bar is labelled with its seconds and, with a `baseline`, how many times as fast as that it is
    (the baseline itself has its seconds alone).

    Parameters
    ----------
    seconds : mapping from method to mapping from model
        To a positive number of seconds; to several, of which the bar shows the median and a thin line the range; or to
        a few words in place of the bar, such as "not measured". A method may lack models: it has no bar there.
    ax : matplotlib.axes.Axes, optional
        Where to draw. Default: a new figure, 8 inches wide and as high as the bars need.
    baseline : str, optional
        The method whose seconds are divided by those of the others to give their speed-up, on the models it was
        measured on. Default: none, and no speed-up.
    colors : mapping from method to matplotlib colour, optional
        Overrides the default colours of the methods it names.
    title, xlabel : str, optional
        Defaults: none and "seconds".
    legend : bool
        Whether there is a legend below the axes, if there are two methods or more. Default: True.

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
    bars, centres = _arrange(table)
    bottom = bars[-1].place + 0.5

    own = ax is None
    if ax is None:
        ax = new_axes(8.0, 0.16 * bottom + (1.3 if legend and len(table) > 1 else 0.8))
    chosen = {method: COLORS[i % len(COLORS)] for i, method in enumerate(table)} | dict(colors or {})
    points = size_in_inches(ax)[1] * 72 / (bottom + GAP)  # of a bar
    font = float(np.clip(0.62 * points, 4.0, 8.0))
    labels = [_label(bar, table, baseline) for bar in bars]
    left = _set_limits(ax, bars, labels, font)
    _draw_bars(ax, bars, labels, chosen, left, font)
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


def _arrange(table: dict[str, dict[str, np.ndarray | str]]) -> tuple[list[_Bar], dict[str, float]]:
    """The bars from the top, one unit high each, and the centre of each model."""
    models = list(dict.fromkeys(model for row in table.values() for model in row))
    bars: list[_Bar] = []
    centres, top = {}, 0.0
    for model in models:
        methods = [method for method in table if model in table[method]]
        for place, method in enumerate(methods):
            found = table[method][model]
            words = f"{method}: {found}" if isinstance(found, str) else ""
            bars.append(_Bar(method, model, top + place + 0.5, None if isinstance(found, str) else found, words))
        centres[model] = top + len(methods) / 2
        top += len(methods) + GAP
    return bars, centres


def _label(bar: _Bar, table: dict[str, dict[str, np.ndarray | str]], baseline: str | None) -> str:
    """What stands beside a bar, or in its place."""
    if bar.seconds is None:
        return bar.words
    value = float(np.median(bar.seconds))
    text = f"{_digits(value)} s"
    slow = table[baseline].get(bar.model, "") if baseline is not None and baseline != bar.method else ""
    return text if isinstance(slow, str) else f"{text}, {_digits(float(np.median(slow)) / value)}×"


def _digits(value: float) -> str:
    """Two significant digits, and all of those before the point."""
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def _set_limits(ax: Axes, bars: list[_Bar], labels: list[str], font: float) -> float:
    """A logarithmic axis with room for the labels; returns where bars begin."""
    from matplotlib.ticker import LogLocator, NullFormatter

    known = np.concatenate([bar.seconds for bar in bars if bar.seconds is not None])
    left = float(known.min()) / 2
    width = size_in_inches(ax)[0] * 72
    shares = [(len(text) * 0.62 * font + 8) / width for text in labels]
    needed = [
        (0.0 if bar.seconds is None else float(np.log10(bar.seconds.max() / left))) / max(1 - share, 0.2)
        for bar, share in zip(bars, shares, strict=True)
    ]
    decades = max(needed)
    ax.set_xscale("log")
    ax.set_xlim(left, left * 10**decades)
    if decades < 2:  # hardly a power of ten to put a tick at
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    return left


def _draw_bars(ax: Axes, bars: list[_Bar], labels: list[str], colors: dict[str, str], left: float, font: float) -> None:
    for bar, label in zip(bars, labels, strict=True):
        end = left
        if bar.seconds is not None:
            value, low, end = float(np.median(bar.seconds)), bar.seconds.min(), float(bar.seconds.max())
            ax.barh(
                bar.place,
                value - left,
                0.86,
                left=left,
                color=colors[bar.method],
                xerr=[[value - low], [end - value]] if end > low else None,
                error_kw={"linewidth": 0.7, "ecolor": "#888888"},
            )
        ax.annotate(
            label,
            (end, bar.place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=font,
            color="black" if bar.seconds is not None else "#444444",
        )


def _draw_legend(ax: Axes, colors: dict[str, str], room: float, below: bool) -> None:
    """The methods in rows below the axes, as many in a row as fit into `room`, in inches."""
    from matplotlib.patches import Patch
    from matplotlib.transforms import ScaledTranslation

    widest = max(map(len, colors)) * 8 * 0.55 + 40  # points
    columns = int(np.clip(room * 72 / widest, 1, len(colors)))
    columns = -(-len(colors) // -(-len(colors) // columns))  # rows of equal length
    down = ScaledTranslation(0, -(36 if below else 22) / 72, ax.figure.dpi_scale_trans)
    ax.legend(
        handles=[Patch(color=color, label=method) for method, color in colors.items()],
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        bbox_transform=ax.transAxes + down,
        borderaxespad=0.0,
        ncols=columns,
        frameon=False,
        fontsize=8,
    )
