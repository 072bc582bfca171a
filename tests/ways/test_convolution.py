"""Ways of running convolutions: which is taken, and the memory that their weights take."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import yuzu
from tests.capturing import decide
from tests.covering import covering
from tests.oracle import assert_right, errors, oracle
from tests.small_layers import Model, by_way, chain
from tests.small_models import sequences
from yuzu._engine.edits import Mutations
from yuzu._engine.tune import ways as trial_ways
from yuzu._engine.ways import convolution as convolution_ways

# what the check of precompute finds wrong would run naively, and be right all the same
pytestmark = pytest.mark.filterwarnings("error::yuzu.YuzuWarning")

L = 40


@pytest.mark.parametrize("conv", ["auto", "banded", "blocks", "whole", "fold", "windows", "cyclic"])
def test_medium_precision_where_differences_stay_in_bfloat16(conv, device):
    layers = [
        nn.Conv1d(4, 32, 7, padding=3),
        nn.ReLU(),
        nn.Conv1d(32, 32, 5, padding=2),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 30, 8),
    ]
    model = nn.Sequential(*layers).eval()
    X = sequences(2, 60)
    precomputation = yuzu.precompute(model, 60, precision="medium", conv=conv, device=device)
    found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device=device)
    assert found.dtype == np.float32 or found.dtype == torch.float32
    wrong, _ = errors(found, oracle(model, X)["delta"])
    assert 1e-5 < wrong < 2e-2, "products in bfloat16, and only those"


def test_the_weight_of_a_whole_window_stays_small(device, monkeypatch):
    """Edits of ranges have windows of any width."""
    model = nn.Sequential(nn.Conv1d(4, 16, 7, padding=3), nn.ReLU(), nn.Conv1d(16, 16, 7, padding=3)).eval()
    X = sequences(1, 200)
    products = []
    product = convolution_ways.matrix_product
    monkeypatch.setattr(
        convolution_ways, "matrix_product", lambda x, w: products.append(w.numel()) or product(x, w)
    )
    made = yuzu.precompute(model, 200, conv="whole", device=device)
    assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device=device), model, X, output="delta", device=device)
    assert products and max(products) == 7 * 13 * 16 * 16
    products.clear()
    ranges = {"ranges": [(0, 120), (30, 150), (80, 200)], "output": "delta"}
    found = yuzu.yuzu_ism(model, X, made, device=device, **ranges)
    assert_right(found, model, X, device=device, **ranges)
    assert not products, "126 positions' weight would have 4 million numbers"


def test_weights_of_whole_windows_are_counted_and_not_hoarded(device):
    model = nn.Sequential(nn.Conv1d(4, 4, 5), nn.ReLU(), nn.Conv1d(4, 4, 5)).eval()
    X = sequences(1, 300)

    def bound(conv):
        made = yuzu.precompute(model, 300, conv=conv, device=device)
        return made, made.bind(model, 300, 4, (), torch.device(device))

    (whole, used), (_, other) = bound("whole"), bound("banded")
    sizes = []
    for width in (1, 20, 60, 100, 30, 2):
        edits = Mutations.asked(4, 300, ranges=[(i, i + width) for i in range(50)])
        found = yuzu.yuzu_ism(model, X, whole, ranges=[(i, i + width) for i in range(50)], device=device)
        assert found.shape == (1, 50)
        more = used.memory(edits).weights - other.memory(edits).weights
        of_layers = [w * (w + 4) * 16 for w in (width, width + 4)]
        assert more == 4 * 2 * sum(numbers for numbers in of_layers if numbers <= convolution_ways.WHOLE_NUMBERS)
        sizes.append(used.derived.nbytes)
    most = 4 * convolution_ways.WHOLE_KEPT * convolution_ways.WHOLE_NUMBERS
    assert sizes[0] < max(sizes) <= 2 * most + 10_000 and sizes[-1] < max(sizes)
    wide = Mutations.asked(4, 300, ranges=[(i, i + 250) for i in range(50)])
    assert used.sites_at_once(wide) == other.sites_at_once(wide) > 1


@pytest.mark.parametrize(
    *covering(
        geometry=[(2, 9), (3, 5), (3, 13), (4, 7)],  # kernel and dilation
        cut=[(14, 8), (3, 30), (0, 1), (30, 3)],
        conv=["windows", "taps"],
    )
)
def test_products_of_taps_for_what_is_wanted(conv, geometry, cut, device, monkeypatch):
    """If a crop leaves little of a wide convolution's result, only that part is computed."""
    kernel, dilation = geometry
    for name, value in (("TAPS_CHANNELS", 1), ("TAPS_WIDTH", 1), ("TAPS_SHARE", 0.95)):
        monkeypatch.setattr(convolution_ways, name, value)
    yielded = []
    taps = convolution_ways.taps

    def spied(call):
        result = taps(call)
        yielded.append(result.shape[1] / (call.x.shape[2] + call.reach))
        return result

    monkeypatch.setattr(convolution_ways, "taps", spied)
    entry = convolution_ways.WAYS["taps"]
    monkeypatch.setitem(convolution_ways.WAYS, "taps", dataclasses.replace(entry, run=spied))
    layers = [nn.Conv1d(4, 7, 5, padding=2), nn.Conv1d(7, 6, kernel, padding=10, dilation=dilation), nn.Conv1d(6, 3, 3)]

    def forward(x, first, second, last):
        return last(second(first(x).relu()).relu())[:, :, cut[0] : -cut[1]]

    model = Model(forward, *layers)
    X = sequences(2, L + 20)
    for dtype in (torch.float32, torch.float64):
        precomputation = yuzu.precompute(model.to(dtype), L + 20, conv=conv, device=device)
        decide(precomputation, sites=3)
        found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device=device)
        assert_right(found, model, X, output="delta", device=device)
    assert min(yielded) < 0.9, "some of what the windows reach is not wanted"
    precomputation = yuzu.precompute(model.float(), L + 20, conv=conv, precision="medium", device=device)
    decide(precomputation, sites=3)
    found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device=device)
    assert errors(found, oracle(model, X)["delta"])[0] < 2e-2


def test_many_taps_are_one_convolution_however_little_is_wanted(monkeypatch):
    """Their sums would be read, written and rounded once for each tap."""
    for name, value in (("TAPS_CHANNELS", 1), ("TAPS_WIDTH", 1), ("TAPS_SHARE", 1.0)):
        monkeypatch.setattr(convolution_ways, name, value)
    calls = []
    taps = convolution_ways.taps
    monkeypatch.setattr(convolution_ways, "taps", lambda call: calls.append(call) or taps(call))
    for kernel in (convolution_ways.MOST_TAPS, convolution_ways.MOST_TAPS + 1):
        calls.clear()
        layers = [nn.Conv1d(4, 6, 5, padding=2), nn.ReLU(), nn.Conv1d(6, 6, kernel, padding=20, dilation=5)]
        model = Model(lambda x, body: body(x)[:, :, 20:-3], nn.Sequential(*layers))
        X = sequences(1, L + 20)
        precomputation = yuzu.precompute(model, L + 20, conv="windows", device="cpu")
        decide(precomputation, sites=3)
        assert_right(yuzu.yuzu_ism(model, X, precomputation, output="delta", device="cpu"), model, X, output="delta")
        assert bool(calls) == (kernel <= convolution_ways.MOST_TAPS)


def test_windows_are_remembered_for_ways_that_yield_more_or_less(device):
    """One plan run by one way and then by another, as when it is verified and then measured."""
    model = Model(
        lambda x, first, second: second(first(x).relu())[:, :, 25:-3],
        nn.Conv1d(4, 6, 5, padding=2),
        nn.Conv1d(6, 6, 3, padding=13, dilation=13),
    ).double()
    X = sequences(1, L + 20).double()
    precomputation = yuzu.precompute(model, L + 20, conv="banded", device=device)
    decide(precomputation, sites=3)
    found = [yuzu.yuzu_ism(model, X, precomputation, output="delta", device=device)]
    bound = precomputation.bind(model, L + 20, 4, (), torch.device(device))
    for way in ("taps", "banded"):
        bound.plan = by_way(bound.plan, way)
        found.append(yuzu.yuzu_ism(model, X, precomputation, output="delta", device=device))
    for each in found:
        assert_right(each, model, X, output="delta", device=device)


def test_ways_are_tried_where_no_limit_is_set(monkeypatch):
    monkeypatch.setattr(trial_ways, "TRIAL_PRODUCTS", {})  # as on CUDA
    model = chain(nn.ReLU())
    X = sequences(2, L)
    assert_right(yuzu.yuzu_ism(model.double(), X, output="delta"), model, X, output="delta")
