"""`plot_tracks`: tracks by positions."""

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np
import pytest
import torch

import yuzu.attribution  # noqa: E402
from tests.plot.drawn import drawn
from yuzu.errors import YuzuError  # noqa: E402
from yuzu.plot import plot_tracks  # noqa: E402


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
