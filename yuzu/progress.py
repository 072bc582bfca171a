"""Progress bars: tqdm's, without its complaint in notebooks that lack ipywidgets, where it prints text instead."""

from __future__ import annotations

import warnings

from tqdm import TqdmWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

__all__ = ["tqdm"]
