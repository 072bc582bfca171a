"""Jobs that take long say what they are doing, others nothing."""

import contextlib
import io
import sys
import time

import pytest
from torch import nn

import yuzu
from tests.small_models import sequences
from yuzu._engine import progress


@pytest.fixture
def soon(monkeypatch):
    """A job is long after 50 ms."""
    monkeypatch.setattr(progress, "PATIENCE", 0.05)


def model():
    return nn.Sequential(nn.Conv1d(4, 3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 26, 2))


def test_a_long_stage_is_said_while_it_lasts(soon, capfd):
    with progress.Stages("job", at_once=False) as stage:
        stage("first")
        time.sleep(0.3)
        said = capfd.readouterr()
        stage("second")
    assert "job: first [00:" in said.err and said.out == ""
    assert "job: second" in capfd.readouterr().err


def test_a_short_job_says_nothing(capfd):
    with progress.Stages("job", at_once=False) as stage:
        stage("first")
    time.sleep(0.1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("at_once", [False, True])
def test_hushed_jobs_say_nothing(soon, capfd, at_once):
    with progress.hushed(), progress.Stages("job", at_once) as stage:
        stage("first")
        time.sleep(0.2)
    assert capfd.readouterr() == ("", "")
    with progress.hushed(False), progress.Stages("job", at_once) as stage:
        stage("first")
        time.sleep(0.2)
    assert "job: first" in capfd.readouterr().err


def test_nothing_is_said_after_the_end(soon, capfd):
    with pytest.raises(ZeroDivisionError), progress.Stages("job", at_once=False) as stage:
        stage("first")
        1 / 0  # noqa: B018
    time.sleep(0.15)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("stream", [None, "elsewhere"])
def test_it_goes_to_standard_error_as_it_was_at_the_beginning(soon, capfd, monkeypatch, stream):
    there = None if stream is None else io.StringIO()
    monkeypatch.setattr(sys, "stderr", there)
    with progress.Stages("job", at_once=True) as stage:
        with contextlib.redirect_stderr(io.StringIO()) as inner:  # as capture does
            stage("first")
            stage("second")
            time.sleep(0.15)
    assert inner.getvalue() == "" and capfd.readouterr() == ("", "")
    assert there is None or "second" in there.getvalue()


def test_precompute_says_its_stages_when_asked(capfd):
    made = yuzu.precompute(model(), 30, device="cpu", verbose=True)
    out, err = capfd.readouterr()
    assert out == made.summary() + "\n"
    for stage in ("running the model", "tracing the model", "comparing with naive ISM", "trying"):
        assert f"precompute: {stage}" in err


def test_precompute_that_takes_long_says_so(capfd, monkeypatch):
    capture = sys.modules["yuzu._engine.store.making"].capture

    def slow(*args):
        time.sleep(0.4)
        return capture(*args)

    monkeypatch.setattr(sys.modules["yuzu._engine.store.making"], "capture", slow)
    monkeypatch.setattr(progress, "PATIENCE", 0.2)
    yuzu.precompute(model(), 30, device="cpu")
    out, err = capfd.readouterr()
    assert out == "" and "precompute: tracing the model" in err


def test_precompute_of_a_small_model_is_silent(capfd, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 60.0)  # on whatever machine
    yuzu.precompute(model(), 30, device="cpu")
    assert capfd.readouterr() == ("", "")


WRONG = {
    "a target that does not exist": {"target": 7},
    "a func that returns no tensor": {"func": lambda y: "no tensor"},
    "a func that drops the batch": {"func": lambda y: y.sum()},
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("ism", [yuzu.yuzu_ism, yuzu.naive_ism])
def test_the_bar_of_a_call_that_fails_never_appears(ism, planned, name, capfd):
    made, given = model(), sequences(2, 30)
    settings = {"precomputation": yuzu.precompute(made, 30, device="cpu")} if planned and ism is yuzu.yuzu_ism else {}
    capfd.readouterr()
    with progress.hushed(), pytest.raises(yuzu.YuzuError):
        ism(made, given, verbose=True, device="cpu", **settings, **WRONG[name])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("ism", [yuzu.yuzu_ism, yuzu.naive_ism])
def test_the_bar_counts_sequences(ism, capfd):
    ism(model(), sequences(3, 30), verbose=True, device="cpu")
    assert "3/3" in capfd.readouterr().err
    ism(model(), sequences(3, 30), device="cpu")
    assert "sequence" not in capfd.readouterr().err
