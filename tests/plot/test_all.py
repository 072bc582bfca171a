"""What holds for every function of `yuzu.plot`: where it draws, what it leaves alone, and what it refuses."""

import builtins
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

matplotlib = pytest.importorskip("matplotlib")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

import yuzu.plot  # noqa: E402
from yuzu.errors import YuzuError  # noqa: E402

SCORES = np.random.default_rng(0).normal(size=(4, 30))
PAIRS = np.random.default_rng(1).normal(size=(12, 4, 12, 4))
SECONDS = {"yuzu": {"Basset": [0.2, 0.3], "BPNet": 0.1}, "naive": {"Basset": 9.0, "BPNet": "not measured"}}

# A call with its data, given the axes and, where the data are arrays, what makes them.
CASES = {
    "plot_attribution": lambda ax, make: yuzu.plot.plot_attribution(make(SCORES), make(SCORES), ax=ax),
    "plot_logo": lambda ax, make: yuzu.plot.plot_logo(make(SCORES), ax=ax),
    "plot_ism": lambda ax, make: yuzu.plot.plot_ism(make(SCORES), ax=ax),
    "plot_tracks": lambda ax, make: yuzu.plot.plot_tracks(make(SCORES), ax=ax),
    "plot_comparison": lambda ax, make: yuzu.plot.plot_comparison(make(SCORES), make(SCORES**3), ax=ax),
    "plot_epistasis": lambda ax, make: yuzu.plot.plot_epistasis(make(PAIRS + PAIRS.transpose(2, 3, 0, 1)), ax=ax),
    "plot_timings": lambda ax, make: yuzu.plot.plot_timings(SECONDS, ax=ax),
}
every = pytest.mark.parametrize("name", CASES)


def first_axes(result):
    return result[0] if isinstance(result, tuple) else result


def content(ax):
    """What is drawn on axes, in numbers: images, points, extents of paths, bars, texts."""
    paths = [path.get_extents().extents for c in ax.collections for path in c.get_paths()[:50]]
    return (
        [image.get_array().tolist() for image in ax.images],
        [np.asarray(c.get_offsets()).tolist() for c in ax.collections],
        np.round(paths, 6).tolist(),
        [patch.get_extents().extents.tolist() for patch in ax.patches],
        [text.get_text() for text in ax.texts],
    )


def test_every_public_function_is_tested_here():
    assert {name for name in yuzu.plot.__all__ if name.startswith("plot_")} == set(CASES)


@every
def test_given_axes_are_used_and_returned(name):
    figure, axes = plt.subplots(2, 2)
    result = CASES[name](axes[0, 1], np.asarray)
    assert first_axes(result) is axes[0, 1]
    assert axes[0, 1].has_data() or axes[0, 1].images
    assert not any(other.has_data() for other in (axes[0, 0], axes[1, 0], axes[1, 1]))
    parts = [part for part in (result if isinstance(result, tuple) else ()) if isinstance(part, matplotlib.axes.Axes)]
    assert set(figure.axes) == {*axes.flat, *parts}


@every
def test_without_axes_there_is_one_new_figure(name):
    result = CASES[name](None, np.asarray)
    assert len(plt.get_fignums()) == 1
    assert first_axes(result).figure is plt.gcf()


@every
def test_no_global_state_changes_where_axes_are_given(name):
    figure, axes = plt.subplots(1, 2)
    other = plt.figure()
    elsewhere = other.add_subplot()
    before = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CASES[name](axes[0], np.asarray)
        figure.canvas.draw()
    assert dict(matplotlib.rcParams) == before
    assert plt.gcf() is other and plt.gca() is elsewhere
    assert plt.get_fignums() == [figure.number, other.number]
    assert not elsewhere.has_data()
    # The next call of pyplot on that figure draws where it would have drawn.
    assert figure.gca() is axes[1]


@every
def test_figures_without_pyplot_work(name):
    figure = Figure()
    CASES[name](figure.add_subplot(), np.asarray)
    figure.canvas.draw()
    assert not plt.get_fignums()


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_draw_what_arrays_draw(name, dtype):
    array = CASES[name](plt.subplots()[1], lambda scores: scores.astype(str(dtype).removeprefix("torch.")))
    tensor = CASES[name](plt.subplots()[1], lambda scores: torch.tensor(scores, dtype=dtype, requires_grad=True))
    assert content(first_axes(array)) == content(first_axes(tensor))


@every
@pytest.mark.parametrize("layout", [None, "constrained", "tight"])
def test_in_a_grid_parts_stay_in_their_column_and_row(name, layout):
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout=layout)
    CASES[name](axes[0, 0], np.asarray)
    mine = [ax for ax in figure.axes if ax not in (axes[0, 1], axes[1, 0], axes[1, 1])]
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    neighbour = axes[0, 1].get_tightbbox(renderer)
    below = axes[1, 0].get_window_extent()
    for part in mine:
        box = part.get_tightbbox(renderer)
        assert box.x1 <= neighbour.x0 + 1
        assert part.get_window_extent().y0 >= below.y1 - 1


@every
@pytest.mark.parametrize("wrong", [[], "axes", 3])
def test_something_else_than_axes_is_refused(name, wrong):
    with pytest.raises(YuzuError, match=rf"ax: got {type(wrong).__name__}, want one matplotlib.axes.Axes or None"):
        CASES[name](wrong, np.asarray)
    with pytest.raises(YuzuError, match=r"ax: got ndarray, want one"):
        CASES[name](plt.subplots(2)[1], np.asarray)


@every
def test_without_matplotlib_the_error_says_what_to_install(name, monkeypatch):
    real_import = builtins.__import__

    def without_matplotlib(module, *rest, **named):
        if module.split(".")[0] == "matplotlib":
            raise ImportError(module)
        return real_import(module, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ImportError, match=rf"^{name} draws with matplotlib.*pip install matplotlib$"):
        CASES[name](None, np.asarray)


@pytest.mark.parametrize("name_of", ["offset", "start"])
@pytest.mark.parametrize("start", ["a", 1.5, True, float("nan"), [3]], ids=str)
def test_offsets_that_are_no_integers(start, name_of):
    for name in ("plot_attribution", "plot_ism", "plot_logo", "plot_tracks"):
        with pytest.raises(YuzuError, match=f"{name_of}: got .*, want an integer"):
            getattr(yuzu.plot, name)(np.eye(4), **{name_of: start})


@pytest.mark.parametrize("start", [3, np.int64(3), 3.0, np.float32(3)], ids=repr)
def test_starts_that_are_integers(start):
    for name in ("plot_attribution", "plot_ism", "plot_logo", "plot_tracks"):
        drawn = getattr(yuzu.plot, name)(np.eye(4), start=start)
        ax = drawn[0] if isinstance(drawn, tuple) else drawn
        assert ax.get_xlim() == (2.5, 6.5)
        plt.close(ax.figure)


def test_importing_the_package_does_not_import_matplotlib():
    import subprocess
    import sys

    code = "import sys, yuzu.plot; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_reached_from_the_package_without_its_import():
    code = """
import sys, yuzu
assert not {"yuzu.plot", "yuzu.models", "yuzu.examples", "matplotlib"} & set(sys.modules)
assert yuzu.plot.plot_logo is __import__("yuzu.plot").plot.plot_logo
assert "yuzu.models" not in sys.modules
assert yuzu.models.Basset is __import__("yuzu.models").models.Basset
assert yuzu.examples.CTCFClassifier is __import__("yuzu.examples").examples.CTCFClassifier
assert not hasattr(yuzu, "plots")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
