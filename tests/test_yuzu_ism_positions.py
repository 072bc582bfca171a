"""The contract of `yuzu_ism` and `naive_ism`: ``start``, ``end``, ``ranges`` and ``replace_with``."""

import numpy as np
import pytest
import torch

import yuzu
from tests.oracle import assert_close, assert_right, assert_same
from tests.small_models import one_hot, sequences

OUTPUTS = ("l2", "delta", "prediction")

L = 30

SPANS = [
    (0, None),
    (5, 12),
    (5, -5),
    (-8, None),
    (-8, -2),
    (None, 7),
    (None, None),
    (0, 10**6),
    (-(10**6), 3),
    (29, 30),
    (-1, None),
    (0, 1),
]


@pytest.mark.parametrize("start, end", SPANS)
def test_start_and_end(ism, net, start, end):
    X = sequences(2, L)
    result = ism(net, X, start=start, end=end, output="delta")
    positions = range(L)[start:end]
    assert result.shape == (2, 4, len(positions), 3)
    assert_close(result, ism(net, X, output="delta")[:, :, start:end], 2e-6, 2e-6)
    assert_right(ism(net, X, start=start, end=end), net, X, start=start, end=end)


@pytest.mark.parametrize("start, end", [(5, 5), (10, 5), (L, None), (0, -L), (-1, -1), (100, 200)])
def test_empty_selection_raises(ism, net, start, end):
    with pytest.raises(ValueError, match=rf"start={start}.*end={end}"):
        ism(net, sequences(1, L), start=start, end=end)

RANGES = {
    "apart": [(0, 3), (9, 12), (L - 3, L)],
    "overlapping and unsorted": [(20, 23), (4, 7), (5, 8), (4, 7)],
    "one": [(11, 14)],
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", RANGES)
def test_ranges_alone_write_zeros(ism, net, device, name, output):
    X, ranges = sequences(2, L), RANGES[name]
    result = ism(net, X, ranges=ranges, output=output, device=device)
    assert result.shape == ((2, len(ranges)) if output == "l2" else (2, len(ranges), 3))
    assert_right(result, net, X, ranges=ranges, output=output, device=device)

REPLACEMENTS = {
    "string": ("GAT", one_hot("GAT")),
    "string with N": ("GnT", one_hot("GAT") * torch.tensor([1, 0, 1])),
    "N alone": ("NNN", torch.zeros(4, 3)),
    "per character": ([0.25] * 4, torch.full((4, 3), 0.25)),
    "one character": (np.array([0, 0, 1, 0]), one_hot("GGG")),
    "matrix": (np.arange(12.0).reshape(4, 3) / 10, torch.arange(12.0).reshape(4, 3) / 10),
    "tensor": (torch.arange(12.0).reshape(4, 3) / 10, torch.arange(12.0).reshape(4, 3) / 10),
    "int8 matrix": (one_hot("TTA").to(torch.int8), one_hot("TTA")),
    "bfloat16 matrix": (one_hot("CAG").bfloat16(), one_hot("CAG")),
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", REPLACEMENTS)
def test_ranges_with_replacement(ism, net, name, output):
    given, written = REPLACEMENTS[name]
    X, ranges = sequences(2, L), RANGES["overlapping and unsorted"]
    result = ism(net, X, ranges=ranges, replace_with=given, output=output)
    assert_right(result, net, X, ranges=ranges, replace_with=written, output=output)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("given", ["T", [0.1, 0.2, 0.3, 0.4], np.zeros((4, 1))], ids=["string", "soft", "matrix"])
def test_replacement_alone_is_every_single_position(ism, net, given, output):
    X = sequences(2, L)
    written = one_hot(given) if isinstance(given, str) else torch.tensor(np.asarray(given)).reshape(4, 1).float()
    result = ism(net, X, replace_with=given, output=output)
    assert result.shape == ((2, L) if output == "l2" else (2, L, 3))
    assert_right(result, net, X, replace_with=written, output=output)
    part = ism(net, X, replace_with=given, start=-9, end=-2, output=output)
    assert part.shape[:2] == (2, 7)
    assert_right(part, net, X, replace_with=written, start=-9, end=-2, output=output)


def test_replacement_by_what_is_there_changes_nothing(ism, net):
    X = sequences(1, L)
    text = "".join("ACGT"[i] for i in X[0].argmax(0))
    scores = ism(net, X, ranges=[(4, 10), (5, 11)], replace_with=text[4:10])
    assert float(scores[0, 1]) > 1e-2
    assert float(scores[0, 0]) <= (0 if ism is yuzu.yuzu_ism else 1e-6)  # naive float32 subtracts two runs


def test_whole_sequence_as_one_range(ism, net):
    X, other = sequences(2, L), sequences(1, L, seed=77)[0]
    assert_right(
        ism(net, X, ranges=[(0, L)], replace_with=other, output="delta"),
        net,
        X,
        ranges=[(0, L)],
        replace_with=other,
        output="delta",
    )


def test_ranges_as_array(ism, net):
    X = sequences(1, L)
    expected = ism(net, X, ranges=RANGES["apart"])
    for kind in (np.array, torch.tensor, tuple, lambda r: [list(x) for x in r]):
        assert_same(ism(net, X, ranges=kind(RANGES["apart"])), expected)


def test_ranges_with_several_outputs_func_and_target(ism, profile):
    X, ranges = sequences(2, L), RANGES["apart"]
    result = ism(profile, X, ranges=ranges, replace_with="TGA", output="delta")
    assert_right(result, profile, X, ranges=ranges, replace_with=one_hot("TGA"), output="delta")
    result = ism(profile, X, ranges=ranges, replace_with="TGA", func=lambda y: y[0], target=1, output="delta")
    assert result.shape == (2, 3, L)
    assert_right(
        result, profile, X, ranges=ranges, replace_with=one_hot("TGA"), func=lambda y: y[0], target=1, output="delta"
    )


def test_order_of_ranges_does_not_matter(ism, net):
    X = sequences(2, L)
    ranges = [(p, p + 4) for p in range(0, 26, 3)]
    forward = ism(net, X, ranges=ranges, replace_with="ACGT", output="delta")
    backward = ism(net, X, ranges=ranges[::-1], replace_with="ACGT", output="delta")
    assert_close(backward.flip(1), forward, 2e-6, 2e-6)
