"""Values that a crop throws away spoil nothing."""

import numpy as np
import pytest
import torch
from torch import nn

import yuzu
from tests.oracle import assert_right
from tests.small_layers import Model
from yuzu._engine.store.in_use import InUse

# what the check of precompute finds wrong would run naively, and be right all the same
pytestmark = pytest.mark.filterwarnings("error::yuzu.YuzuWarning")


@pytest.mark.parametrize("conv", ["auto", "windows", "fold", "banded", "blocks", "whole", "cyclic"])
def test_what_is_infinite_where_a_crop_throws_it_away_spoils_nothing(conv, monkeypatch):
    """Mutants from 13 to 33 have the logarithm of a negative number at 23, which no output reads."""
    monkeypatch.setattr(InUse, "sites_at_once", lambda self, mutations, references=1, laid_out=0: 7)

    def forward(x, first, second):
        y = first(x)
        return second(torch.where(torch.arange(60) == 23, y - 0.98, y).log())[:, :, 31:51]

    model = Model(forward, nn.Conv1d(4, 3, 21, padding=10, bias=False), nn.Conv1d(3, 1, 9, padding=4)).double()
    with torch.no_grad():
        model.layers[0].weight.zero_()[:, 0] = 1 / 21
    X = torch.zeros(1, 4, 60, dtype=torch.float64)
    X[:, 0] = 1
    precomputation = yuzu.precompute(model, 60, conv=conv, device="cpu")
    found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device="cpu")
    assert np.isfinite(np.asarray(found)).all()
    assert_right(found, model, X, output="delta")
