"""`plot_comparison`: two scores against each other."""

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np
import pytest
import scipy.stats

from yuzu.errors import YuzuError  # noqa: E402
from yuzu.plot import plot_comparison  # noqa: E402

matplotlib = pytest.importorskip("matplotlib")


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
