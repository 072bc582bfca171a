"""`yuzu.plot.plot_ism`: the colours and rows of the heat map, the marks of the reference, and small cells."""

import numpy as np
import pytest
import torch

matplotlib = pytest.importorskip("matplotlib")

import matplotlib.pyplot as plt  # noqa: E402

from yuzu.errors import YuzuError  # noqa: E402
from yuzu.plot import plot_attribution, plot_ism  # noqa: E402
from yuzu.plot.artists import strongest  # noqa: E402


def random_case(n_choices=4, length=30, seed=0):
    rng = np.random.default_rng(seed)
    observed = np.eye(n_choices)[rng.integers(0, n_choices, length)].T
    return observed, rng.normal(size=(n_choices, length)) * (1 - observed)


def pixels(ax):
    """What was drawn within the axes, shape (height, width, 3), from the top."""
    ax.figure.canvas.draw()
    box = ax.get_window_extent()
    image = np.asarray(ax.figure.canvas.buffer_rgba())[..., :3]
    height = image.shape[0]
    return image[round(height - box.y1) : round(height - box.y0), round(box.x0) : round(box.x1)]


@pytest.mark.parametrize("n_choices, letters", [(4, "ACGT"), (20, "ACDEFGHIKLMNPQRSTVWY")])
def test_rows_colours_and_limits(n_choices, letters):
    _, delta = random_case(n_choices)
    delta[1, 2] = 9.0
    axes = plot_ism(delta, start=100)
    (image,) = axes.heatmap.images
    np.testing.assert_array_equal(image.get_array(), delta)
    assert image.get_clim() == (-9, 9)
    assert [label.get_text() for label in axes.heatmap.get_yticklabels()] == list(letters)
    bottom, top = axes.heatmap.get_ylim()
    assert bottom > top
    assert axes.heatmap.get_xlim() == (99.5, 129.5)
    assert axes.colorbar.get_ylabel() == "delta"
    assert [tick.get_text() for tick in axes.colorbar.get_yticklabels()] == ["-9", "0", "9"]


def test_the_pixels_have_the_colours_of_the_cells():
    delta = np.array([[0.0, 3.0], [-3.0, 0.0], [1.5, 0.0], [0.0, -1.5]])
    axes = plot_ism(delta, mark="none", colorbar=False)
    picture = pixels(axes.heatmap)
    height, width, _ = picture.shape
    for row in range(4):
        for position in range(2):
            seen = picture[int((row + 0.5) * height / 4), int((position + 0.5) * width / 2)]
            wanted = axes.heatmap.images[0].to_rgba(delta[row, position])[:3]
            np.testing.assert_allclose(seen / 255, wanted, atol=0.01)


def test_vmax_and_cmap_and_a_heat_map_without_bar():
    _, delta = random_case()
    axes = plot_ism(delta, vmax=0.5, cmap="PuOr", colorbar=False, title="a title")
    (image,) = axes.heatmap.images
    assert image.get_clim() == (-0.5, 0.5) and image.get_cmap().name == "PuOr"
    assert axes.colorbar is None and axes.heatmap.get_title() == "a title"


def test_a_sequence_of_2000_is_one_image_and_one_collection():
    for n_choices in (4, 20):
        _, delta = random_case(n_choices, 2000)
        ax = plot_ism(delta).heatmap
        assert len(ax.images) == len(ax.collections) == 1
        ax.figure.canvas.draw()


@pytest.mark.parametrize("how", ["inferred", "string", "one-hot", "tensor"])
def test_the_reference_is_marked(how):
    observed, delta = random_case()
    text = "".join("ACGT"[row] for row in observed.argmax(axis=0)).lower()
    reference = {"inferred": None, "string": text, "one-hot": observed, "tensor": torch.tensor(observed)}[how]
    scores = delta if how == "inferred" else delta + 1
    (marks,) = plot_ism(scores, reference=reference, start=7).heatmap.collections
    np.testing.assert_array_equal(marks.get_offsets()[:, 0], 7 + np.arange(30))
    np.testing.assert_array_equal(marks.get_offsets()[:, 1], observed.argmax(axis=0))


def test_columns_with_several_zeros_and_unknown_characters_have_no_mark():
    _, delta = random_case()
    delta[:, 3] = 0
    (marks,) = plot_ism(delta).heatmap.collections
    assert list(marks.get_offsets()[:, 0]) == [p for p in range(30) if p != 3]
    (marks,) = plot_ism(delta, reference="N" * 29 + "A").heatmap.collections
    np.testing.assert_array_equal(marks.get_offsets(), [[29, 0]])
    for alphabet in ("ACGT", "acgt"):
        (marks,) = plot_ism(delta, alphabet=alphabet, reference="n" * 28 + "Cg").heatmap.collections
        np.testing.assert_array_equal(marks.get_offsets(), [[28, 1], [29, 2]])
    (marks,) = plot_ism(np.ones((20, 4)), reference="NXxA").heatmap.collections
    np.testing.assert_array_equal(marks.get_offsets(), [[0, 11], [3, 0]])


def form_of(ax):
    ax.figure.canvas.draw()
    return ax.collections[0].form(ax.figure.canvas.get_renderer())[0]


def test_marks_are_letters_where_there_is_room_then_dots_then_nothing():
    _, delta = random_case(length=2000)
    ax = plot_ism(delta, plt.subplots(figsize=(10, 2))[1]).heatmap
    assert form_of(ax) == "none"
    ax.set_xlim(0, 150)
    assert form_of(ax) == "dots"
    ax.set_xlim(0, 30)
    assert form_of(ax) == "letters"


def test_mark_chooses_the_form():
    _, delta = random_case(length=10)
    assert form_of(plot_ism(delta, mark="dots").heatmap) == "dots"
    assert not plot_ism(delta, mark="none").heatmap.collections
    _, delta = random_case(length=2000)
    assert form_of(plot_ism(delta, mark="letters").heatmap) == "letters"
    observed, delta = random_case(length=10)
    assert form_of(plot_attribution(observed, delta).heatmap) == "dots"


def test_marks_are_drawn_in_their_cells_and_stand_out_from_them():
    scores = np.full((4, 10), -5.0)  # the darkest blue
    scores[:, 5:] = 0.0
    axes = plot_ism(scores, reference="A" * 10, mark="dots")
    colors = axes.heatmap.collections[0].get_facecolors()[:, :3]
    np.testing.assert_array_equal(colors[:5], 1.0)
    np.testing.assert_array_equal(colors[5:], 0.0)
    picture = pixels(axes.heatmap)
    height, width, _ = picture.shape
    dark = (picture[: height // 4, width // 2 + 3 : -3] < 100).all(axis=-1)
    rest = (picture[height // 4 :, width // 2 + 3 : -3] < 100).all(axis=-1)
    assert dark[3:].any() and not rest[:-3].any()


def test_strongest_keeps_the_largest_absolute_value_of_each_block():
    values = np.array([[1.0, -3.0, 2.0, 0.5, 0.25], [0.0, 0.0, -1.0, 4.0, -9.0]])
    np.testing.assert_array_equal(strongest(values, 3, axis=1), [[1, -3, 0.5], [0, -1, -9]])
    np.testing.assert_array_equal(strongest(values, 1, axis=0), [[1, -3, 2, 4, -9]])
    assert strongest(values, 2, axis=0) is values


@pytest.mark.parametrize("position", [0, 1, 1234, 1999])
def test_a_single_effect_is_seen_where_positions_are_narrower_than_pixels(position):
    scores = np.zeros((4, 2000))
    scores[2, position] = -1.0
    axes = plot_ism(scores, plt.subplots(figsize=(4, 2))[1], mark="none")
    axes.heatmap.set_axis_off()  # the frame would cover the outermost pixels
    picture = pixels(axes.heatmap)
    height, width, _ = picture.shape
    blue = (picture[..., 2].astype(int) - picture[..., 0] > 50).any(axis=1)
    rows = np.flatnonzero(blue)
    # All of row 2 and nothing of its neighbours.
    assert abs(rows.min() - height / 2) <= 2 and abs(rows.max() - height * 3 / 4) <= 2
    column = np.flatnonzero((picture[int(0.6 * height), :, 2].astype(int) - picture[int(0.6 * height), :, 0]) > 50)
    assert len(column) <= 3 and abs(column.mean() - position / 2000 * width) < 5


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(scores=np.zeros(4)), r"scores: got shape \(4,\), want the two axes \(C, L\)"),
        (dict(scores=np.full((4, 2), np.nan)), r"scores: got nan at \[0, 0\], want finite"),
        (dict(scores="ACGT"), r"scores: got str, want an array of numbers"),
        (dict(scores=np.zeros((5, 3))), r"alphabet: got None for 5 rows"),
        (dict(scores=np.zeros((4, 3)), reference="ACGT"), r"reference: got 4 characters, want 3"),
        (dict(scores=np.zeros((4, 3)), reference="AJC"), r"reference: got 'J' at position 1, want characters of ACGT or N"),
        (dict(scores=np.zeros((4, 3)), reference="NXC"), r"reference: got 'X' at position 1, want characters of ACGT or N"),
        (dict(scores=np.zeros((4, 3)), alphabet="ACGU", reference="ACT"), r"reference: got 'T' at position 2"),
        (dict(scores=np.zeros((20, 3)), reference="ACJ"), r"reference: got 'J' at position 2, want .* or X"),
        (dict(scores=np.zeros((4, 3)), reference=np.zeros((4, 2))), r"want \(4, 3\), the shape of scores"),
        (dict(scores=np.zeros((4, 3)), mark="crosses"), r"mark: got 'crosses', want one of 'auto', 'letters'"),
        (dict(scores=np.zeros((4, 3)), vmax=-1), r"vmax: got -1, want a positive number"),
        (dict(scores=np.zeros((4, 3)), vmax=np.inf), r"vmax: got inf, want a positive number"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_drawn(arguments, message):
    with pytest.raises(YuzuError, match=message):
        plot_ism(**arguments)
    assert not plt.get_fignums()
