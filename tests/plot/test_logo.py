"""Logos, alone and over heat maps, against what should have been drawn: outlines, colours, places."""

import numpy as np
import pytest
import torch

matplotlib = pytest.importorskip("matplotlib")

import matplotlib.pyplot as plt  # noqa: E402

from yuzu.errors import YuzuError  # noqa: E402
from yuzu.plot import DNA_COLORS, plot_attribution, plot_logo  # noqa: E402
from yuzu.plot.artists import glyph  # noqa: E402


def random_case(n_choices=4, length=30, seed=0):
    """A one-hot sequence, deltas that are 0 at it, and the mean effect at each position."""
    rng = np.random.default_rng(seed)
    observed = np.eye(n_choices)[rng.integers(0, n_choices, length)].T
    delta = rng.normal(size=(n_choices, length)) * (1 - observed)
    return observed, delta, -delta.sum(axis=0) / (n_choices - 1) * observed


def letters_of(ax):
    """Extents (x0, y0, x1, y1) of every letter, shape (letters, 4), and their colours."""
    (collection,) = ax.collections
    extents = [path.get_extents().extents for path in collection.get_paths()]
    return np.array(extents).reshape(-1, 4), collection.get_facecolors()


def test_one_letter_for_each_nonzero_entry_at_its_place_and_height():
    observed, _, attribution = random_case()
    attribution[:, 3] = 0
    extents, colors = letters_of(plot_attribution(attribution).logo)
    heights = attribution.sum(axis=0)
    positions = np.flatnonzero(heights)
    assert len(extents) == len(positions) == 29
    np.testing.assert_allclose(extents[:, [0, 2]].mean(axis=1).sum(), positions.sum(), atol=1e-6)
    for (x0, y0, x1, y1), color in zip(extents, colors, strict=True):
        position = round((x0 + x1) / 2)
        height = heights[position]
        assert position - 0.5 < x0 < x1 < position + 0.5
        np.testing.assert_allclose([y0, y1], sorted([0, height]), atol=1e-9)
        letter = "ACGT"[observed[:, position].argmax()]
        np.testing.assert_allclose(color, matplotlib.colors.to_rgba(DNA_COLORS[letter]))


def test_letters_of_one_position_are_stacked_by_sign_with_the_largest_outside():
    attribution = np.array([[2.0], [-1.0], [1.0], [-3.0]])
    extents, colors = letters_of(plot_attribution(attribution).logo)
    spans = {
        letter: extents[(colors == matplotlib.colors.to_rgba(DNA_COLORS[letter])).all(axis=1)][0, [1, 3]]
        for letter in "ACGT"
    }
    np.testing.assert_allclose(spans["G"], [0, 1], atol=1e-9)
    np.testing.assert_allclose(spans["A"], [1, 3], atol=1e-9)
    np.testing.assert_allclose(spans["C"], [-1, 0], atol=1e-9)
    np.testing.assert_allclose(spans["T"], [-4, -1], atol=1e-9)


def test_negative_letters_hang_upside_down():
    up, down = (plot_attribution([[0.0], [0.0], [0.0], [sign]]).logo.collections[0] for sign in (1.0, -1.0))
    np.testing.assert_allclose(up.get_paths()[0].vertices * [1, -1], down.get_paths()[0].vertices)


def test_heat_map_has_rows_in_order_and_a_scale_symmetric_around_white():
    _, delta, attribution = random_case()
    delta[2, 5] = -7.5
    axes = plot_attribution(attribution, delta)
    (image,) = axes.heatmap.images
    np.testing.assert_array_equal(image.get_array(), delta)
    assert image.get_clim() == (-7.5, 7.5)
    np.testing.assert_allclose(image.to_rgba(0.0)[:3], (1, 1, 1), atol=0.01)
    red, blue = image.to_rgba(7.5), image.to_rgba(-7.5)
    assert red[0] > red[2] and blue[2] > blue[0]
    assert [label.get_text() for label in axes.heatmap.get_yticklabels()] == list("ACGT")
    # Row 0 on top: the y-axis runs downwards.
    bottom, top = axes.heatmap.get_ylim()
    assert bottom > top
    assert axes.heatmap.get_xlim() == axes.logo.get_xlim() == (-0.5, 29.5)
    assert axes.colorbar.get_ylabel() == "delta"


def test_a_heat_map_of_zeros_is_white():
    observed, delta, _ = random_case()
    axes = plot_attribution(observed, np.zeros_like(delta))
    np.testing.assert_allclose(axes.heatmap.images[0].to_rgba(0.0)[:3], (1, 1, 1), atol=0.01)


@pytest.mark.parametrize("how", ["inferred", "string", "lower case", "one-hot", "tensor"])
def test_reference_letters_have_dots(how):
    observed, delta, attribution = random_case()
    text = "".join("ACGT"[row] for row in observed.argmax(axis=0))
    reference = {
        "inferred": None,
        "string": text,
        "lower case": text.lower(),
        "one-hot": observed.astype(bool),
        "tensor": torch.tensor(observed),
    }[how]
    axes = plot_attribution(attribution, delta, reference=reference)
    (dots,) = axes.heatmap.collections
    np.testing.assert_array_equal(dots.get_offsets()[:, 0], np.arange(30))
    np.testing.assert_array_equal(dots.get_offsets()[:, 1], observed.argmax(axis=0))


def test_positions_without_a_character_have_no_dot():
    observed, delta, attribution = random_case()
    observed[:, 4] = 0
    text = "".join("ACGT"[column.argmax()] if column.any() else "N" for column in observed.T)
    for reference in (observed, text):
        axes = plot_attribution(attribution, delta, reference=reference)
        assert list(axes.heatmap.collections[0].get_offsets()[:, 0]) == [p for p in range(30) if p != 4]


def test_start_moves_the_coordinates_of_both():
    observed, delta, attribution = random_case()
    axes = plot_attribution(attribution, delta, start=1000)
    extents, _ = letters_of(axes.logo)
    assert 999.5 < extents[:, 0].min() and extents[:, 2].max() < 1029.5
    assert axes.heatmap.get_xlim() == (999.5, 1029.5)
    assert axes.heatmap.collections[0].get_offsets()[0, 0] == 1000


def test_protein_and_other_alphabets():
    observed, delta, attribution = random_case(n_choices=20, length=50)
    axes = plot_attribution(attribution, delta)
    labels = "".join(label.get_text() for label in axes.heatmap.get_yticklabels())
    assert labels == "ACDEFGHIKLMNPQRSTVWY"
    assert len(letters_of(axes.logo)[0]) == 50
    _, delta, attribution = random_case(n_choices=5, length=10)
    axes = plot_attribution(attribution, delta, alphabet="ACGT-", colors={"-": "pink"})
    assert axes.heatmap.get_yticklabels()[4].get_text() == "-"


def test_colors_override_the_defaults():
    _, colors = letters_of(plot_attribution([[1.0], [0], [0], [0]], colors={"A": "black"}).logo)
    np.testing.assert_allclose(colors, [[0, 0, 0, 1]])


def test_tensors_that_need_gradients_are_read_and_left_alone():
    attribution = torch.tensor([[1.0, 0], [0, 2], [0, 0], [0, 0]], requires_grad=True)
    before = attribution.detach().clone()
    extents, _ = letters_of(plot_attribution(attribution, attribution.detach().half()).logo)
    assert len(extents) == 2
    assert torch.equal(attribution, before) and attribution.requires_grad


@pytest.mark.parametrize("kind", ["subplot", "by hand"])
@pytest.mark.parametrize("colorbar", [True, False])
def test_given_axes_are_divided_and_nothing_leaves_them(kind, colorbar):
    _, delta, attribution = random_case()
    figure = plt.figure(figsize=(8, 4))
    ax = figure.add_subplot(2, 1, 2) if kind == "subplot" else figure.add_axes((0.1, 0.1, 0.8, 0.5))
    box = ax.get_position()
    axes = plot_attribution(attribution, delta, ax=ax, colorbar=colorbar)
    assert axes.logo is ax
    assert (axes.colorbar is not None) == colorbar
    parts = [part.get_position() for part in axes if part is not None]
    for part in parts:
        assert part.x0 >= box.x0 - 1e-6 and part.x1 <= box.x1 + 1e-6
        assert part.y0 >= box.y0 - 1e-6 and part.y1 <= box.y1 + 1e-6
    assert parts[0].y0 > parts[1].y1  # the logo is over the heat map
    assert parts[0].x0 == pytest.approx(parts[1].x0) and parts[0].x1 == pytest.approx(parts[1].x1)


def test_an_attribution_of_zeros_draws_an_empty_logo():
    axes = plot_attribution(np.zeros((4, 7)))
    assert letters_of(axes.logo)[0].shape == (0, 4)
    assert axes.heatmap is None and axes.colorbar is None
    axes.logo.figure.canvas.draw()


@pytest.mark.parametrize("n_choices", [4, 20])
def test_all_letters_of_2000_positions_are_one_collection(n_choices):
    scores = np.random.default_rng(0).normal(size=(n_choices, 2000))
    before = glyph.cache_info().misses
    ax = plot_logo(scores)
    assert len(ax.collections) == 1 and not ax.patches and not ax.texts
    assert len(ax.collections[0].get_paths()) == n_choices * 2000
    # The font is read once for each letter, not for each of the thousands drawn.
    assert glyph.cache_info().misses - before <= n_choices


def drawn_paths(collection):
    """The paths that matplotlib got to draw, as it draws to pixels."""
    taken = []
    real = collection.get_paths
    collection.get_paths = lambda: taken.append(real()) or taken[-1]
    collection.figure.canvas.draw()
    del collection.get_paths
    return taken[-1]


def test_letters_too_narrow_to_read_are_bars_until_one_zooms_in():
    observed, _, attribution = random_case(length=2000)
    ax = plot_logo(attribution, plt.subplots(figsize=(8, 2))[1])
    (letters,) = ax.collections
    bars = drawn_paths(letters)
    assert len(bars) == 2000 and all(len(bar.vertices) == 5 for bar in bars)
    np.testing.assert_allclose(bars[7].get_extents().x0, 6.5)
    np.testing.assert_allclose(bars[7].get_extents().x1, 7.5)
    heights = [bar.get_extents().y1 + bar.get_extents().y0 for bar in bars]  # one end of each is 0
    np.testing.assert_allclose(heights, attribution.sum(axis=0), atol=1e-12)
    ax.set_xlim(100, 200)
    assert drawn_paths(letters) is letters.get_paths()
    assert any(len(path.vertices) > 5 for path in letters.get_paths())


def test_a_vector_picture_of_2000_positions_holds_letters(tmp_path):
    _, _, attribution = random_case(length=2000)
    attribution = np.abs(attribution).max(axis=0) * np.eye(4)[1][:, None]  # only C, which has curves
    ax = plot_logo(attribution)
    ax.figure.savefig(tmp_path / "letters.svg")
    text = (tmp_path / "letters.svg").read_text()
    assert text.count("Q ") > 2000  # quadratic curves: bars have none


def test_plot_logo_draws_the_logo_of_plot_attribution():
    _, delta, attribution = random_case()
    alone, above = plot_logo(attribution, start=5), plot_attribution(attribution, delta, start=5).logo
    np.testing.assert_array_equal(letters_of(alone)[0], letters_of(above)[0])
    np.testing.assert_array_equal(letters_of(alone)[1], letters_of(above)[1])
    assert alone.get_ylim() == above.get_ylim() and alone.get_xlim() == above.get_xlim()


@pytest.mark.parametrize("start, length, label", [(0, 2000, "1,000"), (168_054_108, 100, "168,054,160")])
def test_ticks_are_whole_coordinates(start, length, label):
    ax = plot_logo(np.ones((4, length)), offset=start, zoom=False)
    ax.figure.canvas.draw()
    labels = [tick.get_text() for tick in ax.get_xticklabels()]
    assert label in labels and len(labels) <= 12


def test_ylim_title_and_labels_are_taken():
    ax = plot_logo(np.ones((4, 3)), ylim=(-1, 9), title="a title", ylabel="effect")
    assert (ax.get_ylim(), ax.get_title(), ax.get_ylabel()) == ((-1, 9), "a title", "effect")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(attribution=np.zeros(4)), r"attribution: got shape \(4,\), want the two axes \(C, L\)"),
        (dict(attribution=np.zeros((4, 0))), r"attribution: got shape \(4, 0\)"),
        (dict(attribution=np.full((4, 3), np.nan)), r"attribution: got nan at \[0, 0\], want finite"),
        (
            dict(attribution=np.zeros((4, 3)), heatmap=np.zeros((4, 4))),
            r"heatmap: got shape \(4, 4\), want \(4, 3\), the shape of attribution",
        ),
        (
            dict(attribution=np.zeros((4, 3)), heatmap=np.full((4, 3), np.inf)),
            r"heatmap: got inf at \[0, 0\]",
        ),
        (dict(attribution=np.zeros((5, 3))), r"alphabet: got None for 5 rows"),
        (
            dict(attribution=np.zeros((4, 3)), alphabet="ACG"),
            r"alphabet: got 'ACG', want one character for each of the 4 rows",
        ),
        (
            dict(attribution=np.zeros((4, 3)), reference="ACGT"),
            r"reference: got 4 characters, want 3, one a position",
        ),
        (dict(attribution=np.zeros((4, 3)), reference=np.zeros((4, 2))), r"reference: got shape \(4, 2\)"),
        (dict(attribution=np.zeros((4, 3)), vmax=0), r"vmax: got 0, want a positive number"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_drawn(arguments, message):
    with pytest.raises(YuzuError, match=message):
        plot_attribution(**arguments)
    assert not plt.get_fignums()


@pytest.mark.parametrize("draw", [plot_logo, lambda *a, **k: plot_attribution(*a, a[0], **k).logo], ids=["logo", "attribution"])
def test_a_long_logo_shows_its_largest_scores(draw):
    scores = np.full((4, 2114), 0.01)
    scores[2, 1400:1420] = 1
    ax = draw(scores, offset=1000)
    first, stop = (int(limit + 0.5) for limit in ax.get_xlim())
    assert stop - first == 150 and first <= 2400 and stop >= 2420
    assert "150 of 2,114" in ax.get_xlabel() + "".join(other.get_xlabel() for other in ax.figure.axes)
    for zoom, limits in (((10, 40), (1010, 1040)), (False, (1000, 3114))):
        assert tuple(int(limit + 0.5) for limit in draw(scores, offset=1000, zoom=zoom).get_xlim()) == limits
    _, given = plt.subplots()
    assert int(draw(scores, ax=given).get_xlim()[1] + 0.5) == 2114, "axes of one's own show all"


@pytest.mark.parametrize("zoom", [(3, 3), (-1, 4), (0, 31), 5, True, (0, 2.5), "ab"], ids=str)
def test_parts_that_do_not_exist(zoom):
    for draw in (plot_logo, plot_attribution):
        with pytest.raises(ValueError, match="zoom: got"):
            draw(np.ones((4, 30)), zoom=zoom)
