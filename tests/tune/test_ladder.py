"""The order in which `precompute` falls back, and the record of what it decides."""

from __future__ import annotations

import json

import pytest

from yuzu._engine.store import files
from yuzu._engine.store.decisions import Decisions, Layer, Probing
from yuzu._engine.tune import ladder
from yuzu._engine.tune.ladder import Rung, descend
from yuzu._engine.tune.subject import RunsNaively


def test_the_first_rung_that_is_needed_is_taken_and_the_top_is_tried_again(monkeypatch):
    asked = []

    def off(name, attempts):
        return lambda trial, attempt: asked.append((name, attempt)) or ("off" if attempt in attempts else "")

    last = off("last", {"first", "second", "third"})
    rungs = (
        Rung(off("top", {"second"}), lambda trial, attempt, off: "third"),
        Rung(last, lambda trial, attempt, off: "second" if attempt == "first" else None),
        Rung(last, lambda trial, attempt, off: "fourth"),
    )
    monkeypatch.setattr(ladder, "RUNGS", rungs)
    assert descend(None, "first") == "fourth"
    # each attempt is asked for once by each kind of error
    assert asked == [
        ("top", "first"),
        ("last", "first"),
        ("top", "second"),
        ("top", "third"),
        ("last", "third"),
        ("top", "fourth"),
        ("last", "fourth"),
    ]


def test_below_the_last_rung_the_model_runs_naively(monkeypatch):
    def naively(trial, attempt, off):
        raise RunsNaively(off, disagrees=True)

    monkeypatch.setattr(ladder, "RUNGS", (Rung(lambda trial, attempt: "wrong here", naively),))
    with pytest.raises(RunsNaively, match="wrong here"):
        descend(None, "first")


def test_the_ladder_goes_down_to_naive_ism():
    names = [rung.below.__name__ for rung in ladder.RUNGS]
    assert names == ["_without_kernels", "_in_full_precision", "_one_layer_naively", "_by_first_ways", "_naively"]


def test_decisions_are_read_as_they_were_written():
    layer = Layer("body.0", "conv1d (kernel 3)", "convolution", "1 -> 3", "12", "gaussian", "40%", "", 7)
    probing = Probing(1.25, {7: 12}, 0.99995, 31.5)
    full = Decisions(
        "digest", "medium", (("a", "b"), ("c", "d")), None, False, {5: "why"}, {7: "gaussian"}, 48, 64, (layer,), probing
    )
    for decisions in (full, Decisions("digest", "highest", naive_model="too small", disagrees=True)):
        assert files._decisions(json.loads(json.dumps(files._stored(decisions)))) == decisions
