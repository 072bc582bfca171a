"""Warnings stand at the caller's line."""

import warnings

import torch

import yuzu
from tests.run.small import WritesUncaptured
from tests.small_models import randomized, sequences

L = 15


def test_the_first_warning_is_at_the_callers_line():
    model = randomized(WritesUncaptured(), seed=1).eval()
    for call in (
        lambda: yuzu.precompute(model, L, args=(torch.zeros(1, 3),), device="cpu"),
        lambda: yuzu.hybrid_ism(model, sequences(1, L), args=(torch.zeros(1, 3),), device="cpu"),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        ours = [w for w in caught if issubclass(w.category, yuzu.YuzuWarning)]
        assert ours and all(w.filename == __file__ for w in ours)
