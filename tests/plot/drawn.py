"""Numbers of a picture, read back from matplotlib."""

import numpy as np


def drawn(ax):
    """The matrix on the axes; NaN would be masked, and compare as equal to anything."""
    return np.ma.filled(ax.images[0].get_array(), np.nan)
