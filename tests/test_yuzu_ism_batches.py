"""The contract of `yuzu_ism` and `naive_ism`: batches, neighbours, timings and progress do not change scores."""

import time
import warnings

import numpy as np
import pytest
import torch

import yuzu
from tests.contract import with_columns
from tests.oracle import assert_close, assert_same
from tests.small_models import Net, randomized, sequences

OUTPUTS = ("l2", "delta", "prediction")

L = 30


@pytest.fixture(scope="module", params=["float32", "float64"])
def pair(request):
    """A model, its precomputation, five sequences (one with N, one soft), and how much rounding may differ."""
    dtype = getattr(torch, request.param)
    model = randomized(Net(), seed=6).to(dtype).eval()
    X = with_columns(sequences(5, L, dtype=dtype), {(1, 4): [0] * 4, (1, 0): [0] * 4, (3, 9): [0.25] * 4})
    tolerance = 2e-6 if dtype == torch.float32 else 1e-13
    return model, X, yuzu.precompute(model, L), tolerance


@pytest.mark.parametrize("output", OUTPUTS)
def test_batch_size_does_not_matter(pair, output):
    model, X, precomputation, tolerance = pair
    expected = yuzu.yuzu_ism(model, X, precomputation, output=output)
    for batch_size in (1, 2, 3, 5, 100, np.int64(2)):
        result = yuzu.yuzu_ism(model, X, precomputation, output=output, batch_size=batch_size)
        assert_close(result, expected, tolerance, tolerance)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 1000])
def test_naive_batch_size_does_not_matter(pair, batch_size):
    model, X, _, tolerance = pair
    assert_close(yuzu.naive_ism(model, X, batch_size=batch_size), yuzu.naive_ism(model, X), tolerance, tolerance)


def test_neighbours_do_not_matter(pair, ism):
    model, X, _, tolerance = pair
    together = ism(model, X, output="delta")
    for i in range(len(X)):
        assert_close(ism(model, X[i : i + 1], output="delta"), together[i : i + 1], tolerance, tolerance)


def test_order_does_not_matter(pair, ism):
    model, X, _, tolerance = pair
    order = [3, 0, 4, 1, 2]
    assert_close(ism(model, X[order], output="delta"), ism(model, X, output="delta")[order], tolerance, tolerance)


def test_neighbours_of_wild_size_do_not_matter(pair):
    """A neighbour with values a million times larger must not cost accuracy (no scaling or probing across "
    "sequences)."""
    model, X, precomputation, tolerance = pair
    together = yuzu.yuzu_ism(model, torch.cat([X[:1], X[1:2] * 1e6]), precomputation)
    assert_close(together[:1], yuzu.yuzu_ism(model, X[:1], precomputation), tolerance, tolerance)


def test_given_and_kept_precomputation_agree(pair):
    model, X, precomputation, tolerance = pair
    assert_close(yuzu.yuzu_ism(model, X), yuzu.yuzu_ism(model, X, precomputation), tolerance, tolerance)
    assert_same(yuzu.yuzu_ism(model, X, precomputation=precomputation), yuzu.yuzu_ism(model, X, precomputation))


def test_return_timings(net):
    X = sequences(5, L)
    precomputation = yuzu.precompute(net, L)
    begin = time.perf_counter()
    returned = yuzu.yuzu_ism(net, X, precomputation, batch_size=2, return_timings=True)
    elapsed = time.perf_counter() - begin
    assert type(returned) is tuple and len(returned) == 3
    scores, layers, within = returned
    assert_same(scores, yuzu.yuzu_ism(net, X, precomputation, batch_size=2))
    assert type(layers) is list and type(within) is list and len(layers) == len(within) == 3
    assert {len(b) for b in layers} == {len(layers[0])} == {len(b) for b in within} and len(layers[0]) >= 5
    assert all(isinstance(s, float) and s >= 0 for b in layers for s in b)
    assert 0 < sum(map(sum, layers)) <= elapsed
    for batch in within:
        assert type(batch) is list
        for parts in batch:
            assert parts is None


class Branching(torch.nn.Module):
    def forward(self, X):
        y = X.cumsum(2)[:, 0] ** 2
        return y * 2 if bool(y.sum() > -1) else y


@pytest.mark.parametrize("batch_size, batches", [(None, 1), (1, 3), (2, 2), (8, 1)])
def test_return_timings_of_a_model_that_runs_naively(batch_size, batches):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Branching()
        precomputation = yuzu.precompute(model, L)
    X = sequences(3, L)
    scores, layers, within = yuzu.yuzu_ism(model, X, precomputation, batch_size=batch_size, return_timings=True)
    assert [len(b) for b in layers] == [1] * batches and within == [[None]] * batches
    assert_same(scores, yuzu.naive_ism(model, X))


def test_return_timings_with_numpy_and_containers(profile):
    X = sequences(1, L)
    scores, layers, within = yuzu.yuzu_ism(profile, X.numpy(), output="delta", return_timings=True)
    assert type(scores) is tuple and all(type(s) is np.ndarray for s in scores)
    assert len(layers) == len(within) == 1


def test_progress_goes_to_stderr(ism, net, capfd):
    X = sequences(2, L)
    ism(net, X)
    capfd.readouterr()
    silent = ism(net, X, verbose=False)
    assert capfd.readouterr() == ("", "")
    loud = ism(net, X, verbose=True)
    out, err = capfd.readouterr()
    assert out == "" and "2/2" in err
    assert_same(loud, silent)
