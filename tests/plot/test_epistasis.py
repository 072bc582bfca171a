"""`plot_epistasis`: the map of pairs, and its logos."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from tests.small_models import sequences
from yuzu import dependency_map
from yuzu.errors import YuzuError
from yuzu.plot import plot_epistasis

matplotlib = pytest.importorskip("matplotlib")


def pairs(w=7, outputs=(), seed=0):
    values = np.random.default_rng(seed).normal(size=(w, 4, w, 4, *outputs))
    return values + np.moveaxis(values, (0, 1), (2, 3))


@pytest.mark.parametrize("outputs", [(), (3,)])
def test_each_pair_shows_its_strongest_interaction(outputs):
    values = pairs(outputs=outputs)
    axes = plot_epistasis(torch.from_numpy(values), offset=50)
    shown = axes.map.images[0].get_array()
    for i in range(7):
        for j in range(7):
            of_pair = values[i, :, j].ravel()
            assert shown[i, j] == of_pair[np.abs(of_pair).argmax()]
    assert axes.above is None and axes.beside is None
    limit = np.abs(shown).max()
    assert axes.map.images[0].get_clim() == (-limit, limit)
    assert axes.map.get_xlim() == (49.5, 56.5) and axes.map.get_ylim() == (56.5, 49.5)
    assert (axes.map.get_xlabel(), axes.map.get_ylabel(), axes.colorbar.get_ylabel()) == ("position", "position", "interaction")


def test_a_dependency_map_has_a_scale_from_zero():
    found = dependency_map(pairs()[None])[0]
    axes = plot_epistasis(found, colorbar=False, title="map", vmax=9)
    np.testing.assert_array_equal(axes.map.images[0].get_array(), found)
    assert axes.map.images[0].get_clim() == (0, 9) and axes.colorbar is None and axes.map.get_title() == "map"


def test_logos_stand_along_both_axes():
    heights = np.linspace(-1, 1, 7) * sequences(1, 7)[0].numpy()
    axes = plot_epistasis(pairs(), attribution=heights, offset=50, title="both")
    above, beside = axes.above.collections[0], axes.beside.collections[0]
    assert axes.above.get_title() == "both"
    assert axes.above.get_xlim() == axes.map.get_xlim() and axes.beside.get_ylim() == axes.map.get_ylim()
    for up, lying in zip(above.get_paths(), beside.get_paths(), strict=True):  # the same letters, x and y exchanged
        np.testing.assert_allclose(up.vertices, lying.vertices[:, ::-1])
        assert abs(up.vertices[:, 1]).max() <= 1 and up.vertices[:, 0].min() >= 49.5


@pytest.mark.parametrize("size", [(3, 3), (12, 12)])
def test_it_draws_at_every_size(size):
    figure, ax = plt.subplots(figsize=size)
    axes = plot_epistasis(pairs(120), ax, attribution=sequences(1, 120)[0])
    figure.canvas.draw()
    assert axes.map is ax
    box, top, side = (a.get_position() for a in (axes.map, axes.above, axes.beside))
    assert top.x0 == pytest.approx(box.x0) and side.y0 == pytest.approx(box.y0) and top.y0 >= box.y1 and side.x1 <= box.x0


BAD = {
    "three axes": (np.zeros((2, 4, 2)), {}, r"interaction: got shape \(2, 4, 2\), want \(W, C, W, C, \.\.\.\)"),
    "several sequences": (np.zeros((1, 7, 4, 7, 4)), {}, r"interaction: got shape \(1, 7, 4, 7, 4\)"),
    "NaN": (np.full((3, 3), np.nan), {}, r"interaction: got nan"),
    "attribution": (pairs(), {"attribution": np.zeros((4, 6))}, r"attribution: got shape \(4, 6\), want \(C, 7\)"),
    "alphabet": (pairs(), {"attribution": np.zeros((5, 7))}, r"alphabet: got None for 5 rows"),
    "vmax": (pairs(), {"vmax": 0}, r"vmax: got 0"),
    "offset": (pairs(), {"offset": "a"}, r"offset: got 'a'"),
    "ax": (pairs(), {"ax": 3}, r"ax: got int"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    values, asked, message = BAD[name]
    with pytest.raises(YuzuError, match=message):
        plot_epistasis(values, **asked)
