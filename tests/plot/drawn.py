"""What was drawn."""

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def drawn(ax):
    """The matrix on the axes; NaN would be masked, and compare as equal to anything."""
    return np.ma.filled(ax.images[0].get_array(), np.nan)
