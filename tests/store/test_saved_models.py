"""Models whose precomputation is saved, loaded or kept give the same bits."""

import pytest
import torch
from torch import nn

from tests.oracle import assert_right, assert_same
from tests.small_models import Net, randomized, sequences
from yuzu import Precomputation, precompute, yuzu_ism

L = 36


@pytest.mark.parametrize("kind", ["average pooling", "stride", "no bias"])
def test_save_and_load(tmp_path, captured_once, kind):
    layers = {
        "average pooling": [nn.Conv1d(4, 3, 5), nn.AvgPool1d(2)],
        "stride": [nn.Conv1d(4, 3, 5, stride=3)],
        "no bias": [nn.Conv1d(4, 3, 5, bias=False)],
    }[kind]
    model, X = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)), sequences(2, L)
    with torch.no_grad():
        model(X)
    randomized(model)
    precomputation = precompute(model, L)
    precomputation.save(tmp_path / "file")
    loaded = Precomputation.load(tmp_path / "file")
    result = yuzu_ism(model, X, loaded, output="delta")
    assert_same(result, yuzu_ism(model, X, precomputation, output="delta"))
    assert_right(result, model, X, output="delta")


def test_a_kept_precomputation_is_not_stale():
    model, X = randomized(Net(L)).eval(), sequences(1, L)
    assert_right(yuzu_ism(model, X), model, X)
    model.conv2 = randomized(nn.Conv1d(6, 6, 7, padding=3), seed=5)  # a layer exchanged
    assert_right(yuzu_ism(model, X), model, X)
    model.conv2 = randomized(nn.Conv1d(6, 6, 3, padding=2, dilation=2), seed=6)  # one of the old one's shapes
    assert_right(yuzu_ism(model, X), model, X)
    model.pool = nn.AvgPool1d(2)
    assert_right(yuzu_ism(model, X), model, X)
    model.double()  # the dtype changed
    assert_right(yuzu_ism(model, X), model, X)
    model.float()
    with torch.no_grad():
        model.conv1.weight.mul_(-1)  # the weights changed
    assert_right(yuzu_ism(model, X), model, X)
