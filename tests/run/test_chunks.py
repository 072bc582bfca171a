"""Chunks of the middle and of the ends of sequences, and sums in place."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu
from tests.oracle import assert_right, errors, oracle
from tests.small_layers import Model
from tests.small_models import sequences
from yuzu._engine.edits import Mutations, batches
from yuzu._engine.store.in_use import InUse

# what the check of precompute finds wrong would run naively, and be right all the same
pytestmark = pytest.mark.filterwarnings("error::yuzu.YuzuWarning")

L = 40


def test_the_middle_and_the_ends_get_chunks_of_their_own():
    mutations = Mutations.asked(4, 100)
    (group,) = mutations.groups((torch.arange(200) % 4).view(2, 100))
    regular = np.zeros(100, dtype=bool)
    regular[10:95] = True
    parts = list(batches(group, 60, regular))
    seen = np.concatenate([part.sequence * 100 + part.position for part in parts])
    assert sorted(seen) == list(range(200)), "every site once"
    assert all(len(part.position) <= 60 for part in parts)
    assert all(len(set(part.sequence)) == 1 for part in parts)
    assert all(len(set(regular[part.position])) == 1 for part in parts)
    together = list(batches(group, 400, regular))
    assert len(together) == 1, "short sequences share a chunk"
    half = list(batches(group, 60, np.arange(100) < 5))
    assert len(half) == 4, "where nearly all lie near an end, nothing is split off"


def test_a_layer_of_another_dtype_than_the_sequence():
    """Its ways are tried in its own dtype."""

    def forward(x, first, second):
        return F.conv1d(first(x).relu().double(), second.weight.double()).float()

    model = Model(forward, nn.Conv1d(4, 8, 101, padding=50), nn.Conv1d(8, 4, 7)).eval()
    X = sequences(1, 120)
    for precision in ("highest", "medium"):
        precomputation = yuzu.precompute(model, 120, precision=precision, device="cpu")
        found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device="cpu")
        assert errors(found, oracle(model, X)["delta"])[0] < (1e-5 if precision == "highest" else 2e-2)


@pytest.mark.parametrize("sign", [1, -2])
def test_sums_written_over_one_of_their_terms(sign):
    def forward(x, first, second):
        y = first(x).relu()
        z = torch.add(second(y), y, alpha=sign)
        crop = torch.add(second(z)[:, :, 5:-5], z[:, :, 5:-5], alpha=sign)
        return torch.sub(y[:, :, 5:-5], crop, alpha=0.5)

    model = Model(forward, nn.Conv1d(4, 6, 5, padding=2), nn.Conv1d(6, 6, 3, padding=2, dilation=2)).double()
    X = sequences(2, L)
    assert_right(yuzu.yuzu_ism(model, X, output="delta"), model, X, output="delta")


@pytest.mark.parametrize("sites", [1, 7, 25, 60])
@pytest.mark.parametrize("number", [1, 3])
def test_chunks_of_the_middle_and_of_the_ends(sites, number, monkeypatch):
    """Both ends, borders between chunks, several sequences, an N: whatever the size of a chunk."""
    monkeypatch.setattr(InUse, "sites_at_once", lambda self, mutations, references=1, laid_out=0: sites)

    def forward(x, first, second, linear):
        y = F.max_pool1d(first(x).relu(), 3, 2, 1)
        y = y + second(y).relu()
        return linear(F.max_pool1d(y, 2).flatten(1)), F.avg_pool1d(y, 3)

    layers = (nn.Conv1d(4, 5, 7, padding=3), nn.Conv1d(5, 5, 5, padding=4, dilation=2), nn.Linear(5 * 30, 3))
    model = Model(forward, *layers).double()
    X = sequences(number, 120)
    X[0, :, 57] = 0
    bound = yuzu.precompute(model, 120)
    regular = bound.bind(model, 120, 4, (), torch.device("cpu")).plan.reach(np.arange(120), 1)[1]
    assert 40 < regular.sum() < 110, "there is a middle, and there are ends"
    for start, end in ((0, None), (50, 113)):
        found = yuzu.yuzu_ism(model, X, bound, output="delta", start=start, end=end)
        assert_right(found, model, X, output="delta", start=start, end=end)
