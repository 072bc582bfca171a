"""`plot_timings`: charts of seconds."""

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection

from yuzu.errors import YuzuError  # noqa: E402
from yuzu.plot import plot_timings  # noqa: E402

SECONDS = {
    "yuzu": {"Basset": [0.2, 0.3, 0.25], "BPNet": 0.01},
    "peer": {"Basset": "not measured", "SpliceAI": 3.0},
    "naive": {"Basset": 10.0, "BPNet": [1.0, 2.0, 9.0]},
}


def dots_of(ax):
    """The row, seconds and colour of each dot."""
    return [(*c.get_offsets()[0][::-1], tuple(c.get_facecolor()[0])) for c in ax.collections if isinstance(c, PathCollection)]


def test_dots_are_medians_below_their_models():
    ax = plot_timings(SECONDS, colors={"naive": "black"})
    centres = dict(zip([label.get_text() for label in ax.get_yticklabels()], ax.get_yticks(), strict=True))
    assert list(centres) == ["Basset", "BPNet", "SpliceAI"]
    dots = dots_of(ax)
    np.testing.assert_allclose([end for _, end, _ in dots], [0.25, 10, 0.01, 2, 3])
    # Basset has three rows, of which words take the middle one; BPNet has two; SpliceAI one.
    np.testing.assert_allclose([dots[0][0], dots[1][0]], centres["Basset"] + np.array([-1, 1]))
    np.testing.assert_allclose([dots[2][0], dots[3][0]], centres["BPNet"] + np.array([-0.5, 0.5]))
    assert dots[4][0] == pytest.approx(centres["SpliceAI"])
    assert dots[0][2] == dots[2][2] != dots[4][2]
    assert dots[1][2] == dots[3][2] == (0, 0, 0, 1)
    assert ax.get_xscale() == "log" and ax.get_ylim()[0] > ax.get_ylim()[1]


def test_thin_lines_are_the_range():
    ax = plot_timings(SECONDS)
    ranges = [line.get_segments()[0][:, 0] for line in ax.collections if isinstance(line, LineCollection)]
    np.testing.assert_allclose(ranges, [[0.2, 0.3], [1, 9]])


def test_labels_say_seconds_and_speed_up():
    texts = [text.get_text() for text in plot_timings(SECONDS).texts]
    assert texts == ["0.25 s", "peer: not measured", "10 s", "0.01 s", "2 s", "3 s"]
    texts = [text.get_text() for text in plot_timings(SECONDS, baseline="naive").texts]
    assert texts == ["0.25 s, 40×", "peer: not measured", "10 s", "0.01 s, 200×", "2 s", "3 s"]
    # No speed-up where the baseline was not measured.
    texts = [text.get_text() for text in plot_timings(SECONDS, baseline="peer").texts]
    assert texts == ["0.25 s", "peer: not measured", "10 s", "0.01 s", "2 s", "3 s"]


@pytest.mark.parametrize("width", [3, 8])
def test_labels_end_within_the_axes_and_begin_behind_the_range(width):
    ax = plot_timings(SECONDS, plt.subplots(figsize=(width, 4))[1], baseline="naive")
    ax.figure.canvas.draw()
    box = ax.get_window_extent()
    for text, behind in zip(ax.texts, [0.3, None, 10, 0.01, 9, 3], strict=True):
        extent = text.get_window_extent()
        assert box.x0 <= extent.x0 and extent.x1 <= box.x1 + 1
        if behind is not None:
            assert extent.x0 >= ax.transData.transform((behind, 0))[0]


def test_the_legend_names_the_methods():
    legend = plot_timings(SECONDS).get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["yuzu", "peer", "naive"]
    assert plot_timings(SECONDS, legend=False).get_legend() is None
    assert plot_timings({"yuzu": {"Basset": 1.0}}).get_legend() is None


@pytest.mark.parametrize("most", [1.5, 10.0, 1e5])
def test_the_axis_has_labelled_ticks(most):
    ax = plot_timings({"yuzu": {"a": 1.0, "b": most}})
    ax.figure.canvas.draw()
    low, high = ax.get_xlim()
    shown = [tick for tick, label in zip(ax.get_xticks(), ax.get_xticklabels(), strict=True) if label.get_text() and low <= tick <= high]
    assert len(shown) >= 2


@pytest.mark.parametrize(
    "seconds, message",
    [
        ({}, "seconds: got no number, want at least one method with the seconds of one model"),
        ({"yuzu": {"Basset": "not measured"}}, "seconds: got no number"),
        ({"yuzu": 3.0}, "seconds: got dict, want a mapping from method to a mapping from model to seconds"),
        ([1, 2], "seconds: got list, want a mapping"),
        ({"yuzu": {"Basset": 0.0}}, "seconds: got 0.0 for 'yuzu' on 'Basset', want positive numbers or words"),
        ({"yuzu": {"Basset": [1.0, float("nan")]}}, r"seconds: got \[1.0, nan\] for 'yuzu'"),
        ({"yuzu": {"Basset": []}}, r"seconds: got \[\] for 'yuzu'"),
    ],
)
def test_wrong_seconds(seconds, message):
    with pytest.raises(YuzuError, match=message):
        plot_timings(seconds)
    with pytest.raises(YuzuError, match="baseline: got 'best', want one of the methods 'yuzu', 'peer', 'naive'"):
        plot_timings(SECONDS, baseline="best")
    assert not plt.get_fignums()
