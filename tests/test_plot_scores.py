"""`yuzu.plot`: tracks by positions, two scores against each other, and timing charts."""

import numpy as np
import pytest
import scipy.stats
import torch

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.collections import LineCollection, PathCollection  # noqa: E402

import yuzu.attribution  # noqa: E402
from yuzu.errors import YuzuError  # noqa: E402
from yuzu.plot import plot_comparison, plot_timings, plot_tracks  # noqa: E402


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def drawn(ax):
    """The matrix on the axes; NaN would be masked, and compare as equal to anything."""
    return np.ma.filled(ax.images[0].get_array(), np.nan)


# Tracks


def families(count=30, length=60, groups=3, seed=0):
    """Tracks of a few shapes and many sizes, shuffled; and the shape of each."""
    rng = np.random.default_rng(seed)
    shapes = rng.normal(size=(groups, length))
    group = rng.permutation(np.arange(count) % groups)
    return shapes[group] * rng.uniform(0.1, 10, (count, 1)) + 0.01 * rng.normal(size=(count, length)), group


@pytest.mark.parametrize("count", [30, 400])  # optimal leaf ordering, and not
def test_like_tracks_are_neighbours(count):
    scores, group = families(count)
    axes = plot_tracks(scores)
    assert axes.order.dtype == np.int64 and sorted(axes.order) == list(range(count))
    assert np.count_nonzero(np.diff(group[axes.order])) == 2
    np.testing.assert_array_equal(drawn(axes.heatmap), scores[axes.order])


def test_without_clustering_the_order_stays():
    scores, _ = families()
    axes = plot_tracks(scores, cluster=False)
    np.testing.assert_array_equal(axes.order, np.arange(30))
    np.testing.assert_array_equal(drawn(axes.heatmap), scores)


@pytest.mark.parametrize("seed", range(6))
def test_constant_tracks_are_neighbours_and_the_others_stay_together(seed):
    # Two opposite shapes: every constant track is as far from either as it would be from the other constant ones,
    # were these not taken to be alike.
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.arange(15) % 3)
    scores = np.array([1.0, -1.0, 0.0])[group, None] * rng.normal(size=40) + rng.normal(size=(15, 1))
    assert np.count_nonzero(np.diff(group[plot_tracks(scores).order])) == 2


def test_few_tracks_are_in_the_optimal_order():
    centres = np.random.default_rng(0).permutation(24)
    scores = np.exp(-(((np.arange(24) - centres[:, None]) / 3) ** 2))
    steps = np.diff(centres[plot_tracks(scores).order])
    assert (steps > 0).all() or (steps < 0).all()


@pytest.mark.parametrize("shape", [(1, 5), (2, 5), (1, 1), (3, 1), (919, 1000)])
def test_any_number_of_tracks(shape):
    scores = np.random.default_rng(0).normal(size=shape)
    axes = plot_tracks(scores)
    assert sorted(axes.order) == list(range(shape[0]))
    assert len(axes.heatmap.images) == 1 and not axes.heatmap.collections
    axes.heatmap.figure.canvas.draw()


def test_all_zeros_are_drawn_white():
    axes = plot_tracks(np.zeros((4, 6)))
    np.testing.assert_allclose(axes.heatmap.images[0].to_rgba(0.0)[:3], 1, atol=0.02)


def test_characters_are_reduced_by_the_formulas():
    rng = np.random.default_rng(0)
    X = np.eye(4)[rng.integers(0, 4, (1, 20))].transpose(0, 2, 1)
    delta = rng.normal(size=(5, 4, 20)) * (1 - X)
    mean = plot_tracks(torch.tensor(delta), cluster=False)
    wanted = yuzu.attribution.mean_effect(delta, np.repeat(X, 5, axis=0)).sum(axis=1)
    np.testing.assert_allclose(drawn(mean.heatmap), wanted, atol=1e-12)
    assert mean.colorbar.get_ylabel() == "mean effect"
    largest = plot_tracks(delta, cluster=False, reduce="largest")
    np.testing.assert_array_equal(drawn(largest.heatmap), np.abs(delta).max(axis=1))
    assert largest.colorbar.get_ylabel() == "largest absolute effect"


def test_the_scale_is_symmetric_or_begins_at_zero():
    signed = plot_tracks(np.array([[1.0, -4.0], [0.0, 2.0]])).heatmap.images[0]
    assert signed.get_clim() == (-4, 4)
    positive = plot_tracks(np.array([[1.0, 4.0], [0.0, 2.0]])).heatmap.images[0]
    assert positive.get_clim() == (0, 4)
    np.testing.assert_allclose(positive.to_rgba(0.0)[:3], 1, atol=0.02)
    np.testing.assert_allclose(positive.to_rgba(4.0), signed.to_rgba(4.0), atol=0.02)
    assert plot_tracks(np.array([[1.0, -4.0]]), vmax=2).heatmap.images[0].get_clim() == (-2, 2)


def test_a_scale_for_each_track():
    scores = np.array([[0.0, 0.0, 0.0], [1.0, -2.0, 0.0], [0.0, 10.0, 5.0]])
    axes = plot_tracks(scores, scale="track", cluster=False)
    np.testing.assert_array_equal(drawn(axes.heatmap), [[0, 0, 0], [0.5, -1, 0], [0, 1, 0.5]])


def shown_rows(ax):
    """Each label within the axes, by row."""
    ax.figure.canvas.draw()
    return {
        round(tick.get_position()[1]): tick.get_text()
        for tick in ax.get_yticklabels()
        if -0.5 <= tick.get_position()[1] <= max(ax.get_ylim())
    }


def test_labels_follow_the_order():
    scores, _ = families(10)
    names = [f"cell {track}" for track in range(10)]
    axes = plot_tracks(scores, labels=names)
    assert shown_rows(axes.heatmap) == {row: names[track] for row, track in enumerate(axes.order)}
    assert shown_rows(plot_tracks(scores, cluster=False).heatmap) == {row: str(row) for row in range(10)}


def test_labels_are_thinned_until_they_do_not_touch():
    scores, _ = families(300)
    axes = plot_tracks(scores, plt.subplots(figsize=(5, 3))[1])
    rows = shown_rows(axes.heatmap)
    assert 5 < len(rows) < 40
    assert all(label == str(axes.order[row]) for row, label in rows.items())
    boxes = sorted(
        (label.get_window_extent().y0, label.get_window_extent().y1) for label in axes.heatmap.get_yticklabels()
    )
    assert all(lower[1] <= upper[0] + 1 for lower, upper in zip(boxes, boxes[1:], strict=False))
    axes.heatmap.set_ylim(10.5, -0.5)
    assert list(shown_rows(axes.heatmap)) == list(range(11))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(scores=np.zeros(4)), r"scores: got shape \(4,\), want \(tracks, L\), or \(tracks, C, L\)"),
        (dict(scores=np.zeros((0, 4))), r"scores: got shape \(0, 4\)"),
        (dict(scores=np.zeros((3, 1, 4))), r"scores: got shape \(3, 1, 4\), want .* at least two characters"),
        (dict(scores=np.full((2, 4), np.inf)), r"scores: got inf at \[0, 0\], want finite"),
        (dict(scores=np.zeros((3, 4)), labels=["a"]), r"labels: got 1 labels, want a sequence of 3, one a track"),
        (dict(scores=np.zeros((3, 4)), labels="abc"), r"labels: got 'abc', want a sequence of 3"),
        (dict(scores=np.zeros((3, 4)), reduce="sum"), r"reduce: got 'sum', want one of 'mean_effect', 'largest'"),
        (dict(scores=np.zeros((3, 4)), scale="row"), r"scale: got 'row', want one of 'shared', 'track'"),
        (dict(scores=np.zeros((3, 4)), vmax=0), r"vmax: got 0, want a positive number"),
    ],
)
def test_wrong_tracks(arguments, message):
    with pytest.raises(YuzuError, match=message):
        plot_tracks(**arguments)
    assert not plt.get_fignums()


# Comparison


def pair(shape=(2, 4, 20), seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    return x, np.exp(x) + 0.3 * rng.normal(size=shape)


def test_points_are_where_the_scores_are_and_the_correlations_are_scipys():
    x, y = pair()
    ax = plot_comparison(x, y, xlabel="naive", ylabel="Taylor", title="a title")
    (points,) = ax.collections
    np.testing.assert_array_equal(points.get_offsets(), np.stack([x.ravel(), y.ravel()], axis=1))
    pearson, spearman = scipy.stats.pearsonr(x.ravel(), y.ravel())[0], scipy.stats.spearmanr(x.ravel(), y.ravel())[0]
    assert abs(pearson - spearman) > 0.01
    assert ax.texts[0].get_text() == f"Pearson {pearson:.3f}\nSpearman {spearman:.3f}\nn = 160"
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("naive", "Taylor", "a title")


def test_entries_that_are_zero_in_both_are_left_out_unless_asked_for():
    x, y = np.array([0.0, 0.0, 1.0, 2.0, 3.0]), np.array([0.0, 1.0, 0.0, 2.0, 4.0])
    ax = plot_comparison(x, y)
    assert len(ax.collections[0].get_offsets()) == 4
    assert ax.texts[0].get_text().startswith(f"Pearson {scipy.stats.pearsonr(x[1:], y[1:])[0]:.3f}")
    ax = plot_comparison(x, y, skip_zeros=False)
    assert len(ax.collections[0].get_offsets()) == 5
    assert ax.texts[0].get_text().startswith(f"Pearson {scipy.stats.pearsonr(x, y)[0]:.3f}")


@pytest.mark.parametrize("factor, identity, drawn", [(1, None, True), (2.9, None, True), (3.1, None, False), (50, True, True), (1, False, False)])
def test_the_line_of_equal_values_is_drawn_on_one_scale(factor, identity, drawn):
    x = np.random.default_rng(0).normal(size=100)
    ax = plot_comparison(x, factor * x, identity=identity)
    assert len(ax.lines) == drawn
    if drawn:
        assert ax.get_xlim() == ax.get_ylim() and ax.get_aspect() == 1
        np.testing.assert_array_equal(ax.lines[0].get_xdata(), ax.get_xlim())
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), ax.get_xlim())
        assert ax.get_xlim()[0] < min(x.min(), factor * x.min())


def test_many_entries_are_a_density():
    x = np.random.default_rng(0).normal(size=20_001)
    ax = plot_comparison(x, x + 1)
    (hexagons,) = ax.collections
    assert hexagons.get_array().sum() == 20_001 and hexagons.get_array().min() >= 1
    assert len(hexagons.get_array()) < 5000
    assert ax.get_xlim() == ax.get_ylim()
    assert len(plot_comparison(x[1:], x[1:]).collections[0].get_offsets()) == 20_000
    assert len(plot_comparison(x, x, style="points").collections[0].get_offsets()) == 20_001
    assert plot_comparison(x[:50], x[:50], style="density").collections[0].get_array().sum() == 50


def test_falling_scores_have_their_correlations_at_the_right():
    x = np.arange(1.0, 9.0)
    rising, falling = plot_comparison(x, x).texts[0], plot_comparison(x, -x).texts[0]
    assert rising.get_position()[0] < 0.1 and rising.get_ha() == "left"
    assert falling.get_position()[0] > 0.9 and falling.get_ha() == "right"
    assert falling.get_text() == "Pearson -1.000\nSpearman -1.000\nn = 8"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("x, y", [([1.0, 1.0], [2.0, 3.0]), ([1.0], [2.0]), ([1.0], [1.0])])
def test_a_constant_has_no_correlation(x, y):
    text = plot_comparison(np.array(x), np.array(y)).texts[0].get_text()
    assert text == f"Pearson undefined\nSpearman undefined\nn = {len(x)}"


@pytest.mark.parametrize(
    "x, y, message",
    [
        (np.zeros((4, 3)), np.zeros((3, 4)), r"y: got shape \(3, 4\), want \(4, 3\), the shape of x"),
        (np.array([1.0, np.nan]), np.ones(2), r"x: got nan at \[1\], want finite"),
        (np.ones((2, 2)), np.array([[1, 2], [np.inf, 0]]), r"y: got inf at \[1, 0\], want finite"),
        (np.zeros(3), np.zeros(3), r"x: got no entry that is not 0 in both x and y, want at least one"),
    ],
)
def test_wrong_scores(x, y, message):
    with pytest.raises(YuzuError, match=message):
        plot_comparison(x, y)
    with pytest.raises(YuzuError, match="style: got 'dots', want one of 'auto', 'points', 'density'"):
        plot_comparison(x, y, style="dots")
    assert not plt.get_fignums()


# Timings

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
