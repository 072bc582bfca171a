"""`check` finds what is wrong and takes what `yuzu_ism` takes."""

import copy
import sys

import pytest
import torch

import yuzu
from tests.small_models import Net, randomized, sequences
from tests.store.models import Optional, break_handler
from yuzu import precompute

L = 30


def test_check(net, device):
    X = sequences(2, L)
    report = yuzu.check(net, X, device=device)
    assert isinstance(report, tuple) and len(report._fields) == 7
    assert report.yuzu_relative_error <= max(1e-5, report.naive_relative_error)
    assert 0 < report.naive_relative_error < 1e-4 and 0 < report.naive_largest_error < 1e-4
    assert report.yuzu_largest_error < 1e-4
    assert report.yuzu_seconds > 0 and report.naive_seconds > 0
    sentence = report[-1]
    assert isinstance(sentence, str) and sentence.endswith(".") and "float64" in sentence and str(report) == sentence


def test_check_takes_what_yuzu_ism_takes(profile):
    precomputation = precompute(profile, L)
    for X in (sequences(1, L).numpy(), sequences(3, L, dtype=torch.int8)):
        for positions in (1, 5, 10**6):
            assert yuzu.check(profile, X, precomputation, positions=positions).yuzu_largest_error < 1e-4
    model, a = randomized(Optional()), torch.tensor([[0.5], [2.0]])
    assert yuzu.check(model, sequences(2, L), args=(a,)).yuzu_largest_error < 1e-4
    protein = randomized(Net(16, 20, width=4)).eval()
    assert yuzu.check(protein, sequences(1, 16, 20)).yuzu_largest_error < 1e-4


def test_check_of_a_float64_model():
    model = randomized(Net()).double().eval()
    report = yuzu.check(model, sequences(1, L))
    assert report.yuzu_relative_error < 1e-10


@pytest.mark.parametrize(
    "ours, naive, words",
    [
        (2e-7, 3e-7, "is as accurate as naive ISM or better: "),
        (2e-4, 3e-4, "is as accurate as naive ISM or better: "),
        (4e-7, 3e-7, "is accurate to 4.0e-07, within the 1e-05 that is promised: "),
        (2e-5, 3e-7, "is LESS accurate than naive ISM: "),
    ],
)
def test_the_sentence_of_check_is_true(net, monkeypatch, ours, naive, words):
    errors = iter([(ours, 0.0), (naive, 0.0)])
    monkeypatch.setattr(sys.modules["yuzu.check"], "errors_against", lambda *_: next(errors))
    assert words in str(yuzu.check(net, sequences(1, L)))


def test_check_finds_what_is_wrong(monkeypatch, net):
    """An error of 3% in one channel, which a correlation hides, shows in the report and in its sentence."""
    good = yuzu.check(net, sequences(1, L))
    break_handler(monkeypatch, "aten.relu", lambda change: change * 1.03)
    model = copy.deepcopy(net)
    bad = yuzu.check(model, sequences(1, L), precompute(model, L, verify=False))
    assert bad.yuzu_relative_error > 5e-3 and bad.yuzu_largest_error > 5e-3
    assert bad.naive_relative_error < 1e-4
    assert ("LESS" in str(bad)) and ("LESS" not in str(good))
