"""Windows drawn at random."""

import numpy as np
from hypothesis import settings

quickly = settings(max_examples=150, deadline=None, derandomize=True)


def hull(mask: np.ndarray) -> tuple[int, int]:
    found = np.flatnonzero(mask)
    return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, 0)
