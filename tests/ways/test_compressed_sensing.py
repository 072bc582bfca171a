"""Gaussian probes: the correlation that was asked for, and warnings where it is out of reach."""

import re
import warnings

import pytest
import torch

from tests.oracle import assert_same, errors, oracle
from tests.small_models import Profile, randomized, sequences
from tests.store.models import pearson
from yuzu import precompute, yuzu_ism

L = 30


@pytest.mark.parametrize("output", ["l2", "delta"])
def test_gaussian_reaches_the_default_threshold(several, gaussian, device, output):
    X = sequences(2, 40, seed=3)
    result = yuzu_ism(several, X, gaussian, output=output, device=device)
    truth = oracle(several, X)[output]
    assert result.shape == truth.shape and pearson(result, truth) >= 0.9999
    assert errors(result, truth)[1] < 0.05  # a high correlation alone hides errors of single scores


def test_gaussian_is_used(several, gaussian):
    assert re.search(r"^conv2.*\bgaussian\b", gaussian.summary(), re.M), gaussian.summary()
    assert "alpha" in gaussian.summary()


def test_gaussian_keeps_the_reference_slots(several, gaussian, device):
    X = sequences(2, 40, seed=3)
    assert bool((yuzu_ism(several, X, gaussian, device=device)[X.bool()] == 0).all())


@pytest.mark.parametrize("threshold", [0.99, 0.999999])
def test_gaussian_reaches_the_threshold_asked_for(several, captured_once, threshold):
    X = sequences(2, 40, seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        precomputation = precompute(several, 40, conv="gaussian", threshold=threshold)
    assert pearson(yuzu_ism(several, X, precomputation, output="delta"), oracle(several, X)["delta"]) >= threshold


def test_gaussian_with_generous_alpha(several, captured_once):
    X = sequences(2, 40, seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        precomputation = precompute(several, 40, conv="gaussian", alpha=2.0)
    truth = oracle(several, X)["delta"]
    result = yuzu_ism(several, X, precomputation, output="delta")
    assert pearson(result, truth) >= 0.99999 and errors(result, truth)[1] < 1e-3


def test_gaussian_in_float64_is_nearly_exact(several64, captured_once):
    """Rounding costs accuracy, amplified by the condition: in float64 hardly anything is left of it."""
    model, X = several64, sequences(1, 40, seed=5)
    precomputation = precompute(model, 40, conv="gaussian", alpha=1.5)
    assert errors(yuzu_ism(model, X, precomputation, output="delta"), oracle(model, X)["delta"])[1] < 1e-7


def test_gaussian_badly_conditioned_alpha_warns():
    """With as many probes as nonzeros a square Gaussian matrix is nearly singular somewhere; it says how badly."""
    model = randomized(Profile(width=4)).eval()
    with pytest.warns(UserWarning, match=r"(?s)condition number.*correlation|correlation.*condition number"):
        precompute(model, L, conv="gaussian", alpha=1.0, threshold=1.0)


@pytest.mark.parametrize("condition, correlation, threshold, wanted", [
    (10.2, 0.9999999999993584, 1.0, r"ISM of 0\.999999999999, below threshold=1\.0\. .*condition number is 10\.2.*rounding.*lower threshold"),
    (1000.0, 0.98, 0.9999, r"ISM of 0\.980000, below threshold=0\.9999\. .*badly conditioned.*number is 1e\+03.*larger alpha"),
    (1000.0, 0.99989999, 0.9999, r"ISM of 0\.99989999, below threshold=0\.9999\. "),
])  # fmt: skip
def test_gaussian_warning_says_why(condition, correlation, threshold, wanted):
    from yuzu._engine.store.alpha_search import _too_low

    text = _too_low(1.5, condition, correlation, threshold)
    assert re.search(wanted, text) and ("badly" in text) == (condition >= 100), text
    assert "alpha=1.5" in text and "conv='cyclic' is exact" in text


def test_gaussian_that_only_rounding_keeps_from_the_threshold(several, captured_once):
    with pytest.warns(UserWarning, match=r"ISM of 0\.99999\d+, below threshold=1.*condition number is [\d.]+, which is small"):
        precompute(several, 40, conv="gaussian", alpha=3.0, threshold=1)


def test_gaussian_ranges_n_and_batches(several, gaussian, device):
    X = sequences(3, 40, seed=6)
    X[1, :, 7:9] = 0
    for options in ({}, {"ranges": [(0, 2), (18, 20), (19, 21)]}, {"start": 5, "end": 11}, {"batch_size": 2}):
        shared = {k: v for k, v in options.items() if k != "batch_size"}
        result = yuzu_ism(several, X, gaussian, output="delta", device=device, **options)
        assert pearson(result, oracle(several, X, **shared)["delta"]) >= 0.9999, options


def test_random_state_decides_the_probes(several, captured_once):
    X = sequences(1, 40, seed=7)
    results = []
    for state in (1, 1, 2):
        precomputation = precompute(several, 40, conv="gaussian", alpha=1.5, random_state=state)
        results.append(yuzu_ism(several, X, precomputation, output="delta"))
    assert_same(results[0], results[1])
    assert not torch.equal(results[0], results[2])
