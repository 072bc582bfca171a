"""A model runs naively where carrying differences is no faster."""

import pytest
import torch
from torch import nn

import yuzu
from tests.oracle import assert_right
from tests.small_models import sequences
from yuzu._engine.tune import chunks, tuning

# what the check of precompute finds wrong would run naively, and be right all the same
pytestmark = pytest.mark.filterwarnings("error::yuzu.YuzuWarning")

L = 40


def test_what_carrying_differences_cannot_speed_up_runs_naively(monkeypatch, tmp_path, recwarn):
    """Attention from the first layer on: the model itself takes less for a mutant than the engine around it."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4 * L, 64), nn.GELU(), nn.Linear(64, 2)).eval()
    X = sequences(2, L)
    monkeypatch.setattr(chunks, "WORTH_COMPARING", 0.0)
    kept = yuzu.precompute(model, L)
    monkeypatch.setattr(chunks, "naive_is_faster", lambda *args: (1e-9, 7))
    precomputation = yuzu.precompute(model, L)
    assert "runs naively: that takes" in precomputation.summary()
    precomputation.save(tmp_path / "naive.yuzu")
    loaded = yuzu.Precomputation.load(tmp_path / "naive.yuzu")
    for used in (kept, precomputation, loaded):
        assert_right(yuzu.yuzu_ism(model, X, used, output="delta"), model, X, output="delta")
    assert "naively" not in yuzu.precompute(model, L, conv="fold").summary(), "a way was asked for"
    assert not recwarn.list, "nothing is wrong with the model"


def test_a_model_is_compared_with_itself(device):
    """The comparison times the model as it is: a huge plan loses to it and a tiny one does not."""
    model = nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * (L - 2), 1)).to(device).eval()
    X = sequences(1, L)
    with torch.no_grad():
        assert chunks.naive_is_faster(model, X, (), torch.device(device), 1e-12, 16) is None
        found = chunks.naive_is_faster(model, X, (), torch.device(device), 10.0, 16)
    assert found is not None and 0 < found[0] < 10 and found[1] == 16


def constant_cost(run, examples, size, hopeless=0.0):
    """Stands for measurements: a millisecond for a site."""
    return 1e-3, [0.0] * len(run.plan.graph.nodes)


@pytest.mark.parametrize(("faster", "error", "kept"), [(1.3, 1e-3, True), (1.3, 1e-5, False), (2.0, 1e-3, False)])
def test_accuracy_is_not_given_away_for_little(faster, error, kept, monkeypatch, tmp_path):
    """Differences are carried if naive ISM loses digits and is only a little faster, and the summary says so."""
    model = nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * (L - 2), 2)).eval()
    monkeypatch.setattr(chunks, "WORTH_COMPARING", 0.0)
    monkeypatch.setattr(chunks, "cost_of_chunk", constant_cost)
    monkeypatch.setattr(chunks, "naive_is_faster", lambda *args: (args[4] / faster, 7))
    monkeypatch.setattr(tuning, "_naive_error", lambda *args: error)
    made = yuzu.precompute(model, L)
    assert ("although" in made.summary()) == kept
    assert (made.decisions.naive_model is None) == kept
    made.save(tmp_path / "made.yuzu")
    assert yuzu.Precomputation.load(tmp_path / "made.yuzu").decisions.kept == made.decisions.kept


def test_the_error_of_naive_ism_is_measured(monkeypatch):
    """The verdict's differences are those of naive ISM in float64."""
    found = []
    measured = tuning._naive_error
    monkeypatch.setattr(tuning, "_naive_error", lambda *args: found.append(measured(*args)) or found[-1])
    monkeypatch.setattr(chunks, "WORTH_COMPARING", 0.0)
    monkeypatch.setattr(chunks, "cost_of_chunk", constant_cost)
    monkeypatch.setattr(chunks, "naive_is_faster", lambda *args: (args[4] / 1.1, 7))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * (L - 2), 2)).eval()
    yuzu.precompute(model, L)
    with torch.no_grad():
        model[3].bias += 1e4  # the outputs' rounding grows, their differences stay
    yuzu.precompute(model, L)
    assert 0 < found[0] < 1e-5 and found[1] > 1e-4
