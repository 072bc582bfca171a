"""A store is made by one worker, whole; and jobs through submitit."""

import multiprocessing
import sys
import time

import pytest

from tests.runs.small import one_hot, small_call
from yuzu import YuzuError, command_line
from yuzu.runs import job as jobs
from yuzu.runs import status
from yuzu.runs.ism import given_sequences
from yuzu.runs.job import Job, begin
from yuzu.runs.store import Store

pytest.importorskip("zarr", reason="stores of runs need zarr")


def made_by(path):
    X = one_hot(8)
    begin(path, Job(small_call, {}, block=4), small_call(), lambda: given_sequences(X, None, "ACGT"))


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """Count the stores that are made, slowly, in all processes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = multiprocessing.get_context("fork").Value("i", 0)
    original = jobs._make

    def slow(*arguments):
        with found.get_lock():
            found.value += 1
        time.sleep(0.3)
        original(*arguments)

    monkeypatch.setattr(jobs, "_make", slow)
    return found


def test_one_of_several_workers_makes_the_store(counted, tmp_path):
    path = tmp_path / "s.zarr"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=made_by, args=(path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0] and counted.value == 1
    assert Store(path).blocks == 2 and sorted(p.name for p in tmp_path.iterdir()) == ["cache", "s.zarr"]


def test_a_maker_that_is_killed_is_replaced(counted, tmp_path):
    path = tmp_path / "s.zarr"
    worker = multiprocessing.get_context("fork").Process(target=made_by, args=(path,))
    worker.start()
    while not counted.value:
        time.sleep(0.01)
    worker.kill()
    worker.join()
    assert not path.exists()
    (tmp_path / ".s.zarr.abc.part").mkdir()  # as when it is killed later
    made_by(path)
    assert not (tmp_path / ".s.zarr.abc.part").exists()
    assert counted.value == 2 and Store(path).n == 8
    assert not (tmp_path / ".s.zarr.begun").exists()


def test_an_error_leaves_nothing(counted, tmp_path, monkeypatch):
    def fails(*_):
        raise FileNotFoundError("there is no such thing")

    monkeypatch.setattr(jobs, "_make", fails)
    with pytest.raises(YuzuError, match="s.zarr cannot be written: there is no such thing"):
        made_by(tmp_path / "s.zarr")
    assert not list(tmp_path.iterdir())


def test_a_submitted_job_does_the_run(job, tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit", reason="it hands jobs to schedulers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = [*job[1][:7], "--out", "s.zarr", "--device", "cpu", "--submit", "local"]
    assert command_line.main([*arguments, "--jobs", "1", "--wait"]) == 0
    said = capsys.readouterr().out
    assert "logs in s.zarr.jobs; follow: yuzu status s.zarr" in said and "5 sequences in s.zarr" in said
    assert status("s.zarr").complete and len(list((tmp_path / "s.zarr.jobs").glob("*result.pkl"))) == 1


@pytest.mark.parametrize(
    "options, message",
    [
        (["--shard", "0/2"], "give either --shard or --submit"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--setting", "timeout"], "--setting must be NAME=VALUE"),
        (["--setting", "nonsense=1"], "local takes no jobs"),
        (["--model", "net.py:missing"], "net.py has no missing"),
    ],
)
def test_errors_of_submitting(job, options, message, capsys):
    pytest.importorskip("submitit", reason="it hands jobs to schedulers")
    assert command_line.main([*job[1][:7], "--out", "s.zarr", "--submit", "local", *options]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_submitit_is_missing(job, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert command_line.main([*job[1][:7], "--out", "s.zarr", "--submit", "local"]) == 2
    assert "--submit: jobs of a scheduler need submitit: pip install 'yuzu-ism[submit]'" in capsys.readouterr().err
