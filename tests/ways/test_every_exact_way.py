"""Every exact way of running convolutions is exact."""

import re

import pytest
import torch

from tests.capturing import capturing_once
from tests.oracle import assert_right
from tests.small_models import sequences
from yuzu import precompute, yuzu_ism


@pytest.fixture(scope="module", params=["auto", "windows", "cyclic", "banded", "fold"])
def exact_way(request, several, device):
    with capturing_once():
        return request.param, precompute(several, 40, conv=request.param, device=device)


@pytest.mark.parametrize("output", ["l2", "delta", "prediction"])
def test_every_exact_way_is_exact(several, exact_way, device, output):
    X = sequences(2, 40, seed=3)
    X[0, :, 0] = 0  # an N at the end, and a soft column
    X[1, :, 20] = 0.25
    result = yuzu_ism(several, X, exact_way[1], output=output, device=device)
    assert_right(result, several, X, output=output, device=device)


def test_every_exact_way_with_ranges_and_part(several, exact_way, device):
    X, table = sequences(2, 40, seed=3), torch.arange(16.0).reshape(4, 4) / 16
    ranges = [(0, 4), (17, 21), (19, 23), (36, 40)]
    result = yuzu_ism(several, X, exact_way[1], ranges=ranges, replace_with=table, output="delta", device=device)
    assert_right(result, several, X, ranges=ranges, replace_with=table, output="delta", device=device)
    result = yuzu_ism(several, X, exact_way[1], start=-7, end=-1, device=device)
    assert_right(result, several, X, start=-7, end=-1, device=device)


def test_the_asked_for_way_is_the_one_used(several, exact_way):
    way, precomputation = exact_way
    if way != "auto":
        assert re.search(rf"^conv[23].*\b{way}\b", precomputation.summary(), re.M), precomputation.summary()


@pytest.mark.parametrize("way", ["windows", "cyclic", "banded", "fold"])
def test_every_exact_way_in_float64(several64, captured_once, way):
    model, X = several64, sequences(2, 40, seed=4)
    assert_right(yuzu_ism(model, X, precompute(model, 40, conv=way), output="delta"), model, X, output="delta")
