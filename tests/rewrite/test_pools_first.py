"""Pools that go before functions which keep the order of numbers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu
from tests.oracle import assert_right
from tests.small_layers import Model, chain, with_signs
from tests.small_models import sequences

# what the check of precompute finds wrong would run naively, and be right all the same
pytestmark = pytest.mark.filterwarnings("error::yuzu.YuzuWarning")

L = 40


def operations(model, length=L, dtype=torch.float64):
    """The operations of a model in the order in which its changes go through them."""
    precomputation = yuzu.precompute(model.to(dtype), length)
    return [layer.operation.split(" ")[0] for layer in precomputation.layers]

MOVED = {
    "relu": ([nn.ReLU()], nn.MaxPool1d(3), ["conv1d", "max_pool1d", "relu", "conv1d"]),
    "batch norm, relu": (
        [nn.BatchNorm1d(6), nn.ReLU()],
        nn.MaxPool1d(2),
        ["conv1d", "batch_norm", "max_pool1d", "relu", "conv1d"],
    ),
    "relu, batch norm": (
        [nn.ReLU(), nn.BatchNorm1d(6)],
        nn.MaxPool1d(4, 2, 1),
        ["conv1d", "mul", "max_pool1d", "mul", "relu", "batch_norm", "conv1d"],
    ),
    "two batch norms around a sigmoid": (
        [nn.BatchNorm1d(6), nn.Sigmoid(), nn.BatchNorm1d(6)],
        nn.MaxPool1d(3, 1),
        None,
    ),
    "two batch norms after": ([nn.Tanh(), nn.BatchNorm1d(6), nn.ELU(), nn.BatchNorm1d(6)], nn.MaxPool1d(2), None),
    "leaky, ceil": ([nn.LeakyReLU(0.1)], nn.MaxPool1d(3, 2, ceil_mode=True), None),
    "dilated": ([nn.ReLU6()], nn.MaxPool1d(3, 2, padding=1, dilation=2), None),
    "hardtanh": ([nn.Hardtanh(-0.3, 0.2), nn.SELU()], nn.MaxPool1d(5), None),
}


@pytest.mark.parametrize("name", list(MOVED))
def test_pools_go_before_functions_that_keep_order(name, device):
    layers, pool, wanted = MOVED[name]
    model = chain(*layers, pool)
    X = sequences(2, L)
    found = operations(copy.deepcopy(model))
    if wanted is not None:
        assert found == wanted
    assert found.index("max_pool1d") <= 3
    for dtype in (torch.float32, torch.float64):
        found = yuzu.yuzu_ism(model.to(dtype), X, output="delta", device=device)
        assert_right(found, model, X, output="delta", device=device)


def test_pools_in_two_dimensions_go_first_too():
    model = with_signs(
        nn.Sequential(
            nn.Unflatten(1, (1, 4)),
            nn.Conv2d(1, 5, (4, 5), padding=(0, 2)),
            nn.ReLU(),
            nn.BatchNorm2d(5),
            nn.MaxPool2d((1, 3)),
            nn.Flatten(),
            nn.Linear(5 * 13, 2),
        )
    )
    X = sequences(2, L)
    found = operations(copy.deepcopy(model))
    assert found.index("max_pool2d") < found.index("relu")
    assert_right(yuzu.yuzu_ism(model.double(), X, output="delta"), model, X, output="delta")


def negative_slope(x):
    return F.leaky_relu(x, -0.5)


def negative_alpha(x):
    return F.elu(x, -1.0)


@pytest.mark.parametrize("function", [negative_slope, negative_alpha, F.gelu, torch.abs, torch.square])
def test_pools_stay_behind_functions_that_do_not(function):
    model = Model(lambda x, conv: F.max_pool1d(function(conv(x)), 3), nn.Conv1d(4, 6, 5))
    X = sequences(2, L)
    assert operations(copy.deepcopy(model))[-1].startswith("max_pool1d")
    assert_right(yuzu.yuzu_ism(model.double(), X, output="delta"), model, X, output="delta")


def test_pools_stay_where_something_else_reads_what_they_would_overtake():
    def both(x, conv):
        y = conv(x).relu()
        return F.max_pool1d(y, 3), y.mean(2)

    model = Model(both, nn.Conv1d(4, 6, 5))
    X = sequences(2, L)
    assert operations(copy.deepcopy(model))[:3] == ["conv1d", "relu", "max_pool1d"]
    found = yuzu.yuzu_ism(model.double(), X, output="delta")
    assert_right(found, model, X, output="delta")


def test_what_a_pool_comes_right_behind_is_still_read_by_others():
    def forward(x, conv):
        y = conv(x)
        z = F.max_pool1d(y.relu(), 3)
        return z * 2, y.mean(2), (y - 1).relu()

    model = Model(forward, nn.Conv1d(4, 6, 5))
    X = sequences(2, L)
    found = operations(copy.deepcopy(model))
    assert found.index("max_pool1d") < found.index("relu")
    assert_right(yuzu.yuzu_ism(model.double(), X, output="delta"), model, X, output="delta")


def test_a_pool_whose_places_are_read_is_right():
    def unpooled(x, conv):
        y, places = F.max_pool1d(conv(x).relu(), 2, return_indices=True)
        return F.max_unpool1d(y, places, 2)

    model = Model(unpooled, nn.Conv1d(4, 6, 5)).double()
    X = sequences(1, L)
    with pytest.warns(yuzu.YuzuWarning):
        found = yuzu.yuzu_ism(model, X, output="delta")
    assert_right(found, model, X, output="delta")


def over_channels(x, conv, norm):
    return F.max_pool2d(norm(conv(x).relu()), (3, 1), 1, (1, 0))


def fewer_channels(x, conv, norm):
    return F.max_pool2d(norm(conv(x).relu()), (2, 1))


def of_a_mask(x, conv, norm):
    return F.max_pool1d(torch.sigmoid(conv(x) > 0), 2) * norm(conv(x))[:, :, :18]


def of_whole_numbers(x, conv, norm):
    return F.max_pool1d(torch.tanh((norm(conv(x)) * 3).round().long()), 2) * conv(x)[:, :, :18]


@pytest.mark.parametrize("function", [over_channels, fewer_channels, of_a_mask, of_whole_numbers])
def test_pools_that_cannot_go_first(function):
    model = with_signs(Model(function, nn.Conv1d(4, 6, 5), nn.BatchNorm1d(6))).double()
    X = sequences(2, L)
    with pytest.warns(yuzu.YuzuWarning, match=r"max_pool2d: |is of another type"):  # not: the model could not be captured
        found = yuzu.yuzu_ism(model, X, output="delta")
    assert_right(found, model, X, output="delta")
