"""Figures are closed after each test of pictures."""

import pytest


@pytest.fixture(autouse=True)
def close_figures():
    yield
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.close("all")
