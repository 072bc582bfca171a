"""One slow measurement does not make a model naive."""

import sys

from torch import nn

import yuzu


def test_one_slow_measurement_does_not_make_a_model_naive(monkeypatch):
    """A busy machine may slow the trial of chunks and not that of the model: it is measured again."""
    measure = sys.modules["yuzu._engine.tune.chunks"]
    original, calls = measure._chunk_seconds, []

    def slow(run, sites, hopeless):
        calls.append(len(sites.sequence))
        seconds, found = original(run, sites, hopeless)
        return (seconds + 3.0 if naive_yet == [] else seconds), found

    monkeypatch.setattr(measure, "WORTH_COMPARING", 0.01)
    naive_yet = []
    monkeypatch.setattr(measure, "_chunk_seconds", slow)
    compared = measure.naive_is_faster
    monkeypatch.setattr(measure, "naive_is_faster", lambda *a: (naive_yet.append(compared(*a)), naive_yet[0])[1])
    model = nn.Sequential(nn.Conv1d(4, 32, 9, padding=4), nn.ReLU(), nn.Conv1d(32, 32, 9, padding=4), nn.Flatten(), nn.Linear(32 * 400, 3))
    made = yuzu.precompute(model.eval(), 400, device="cpu")
    assert naive_yet[0] is not None and made.decisions.naive_model is None
