"""Workers: killed at any moment, failing sequences, memory that is too little."""

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
import torch

from tests.oracle import assert_close
from tests.runs.small import one_hot, small_call
from yuzu import YuzuError, naive_ism
from yuzu.runs import status
from yuzu.runs.call import Call
from yuzu.runs.store import Store
from yuzu.runs.worker import work

zarr = pytest.importorskip("zarr", reason="stores of runs need zarr")

KILLS = int(os.environ.get("YUZU_TEST_KILLS", "10"))


def scores(task, name="scores"):
    return Store(task.path).group[name][:]


def files(task):
    """The files of blocks, with what changes when one is written again."""
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (task.path / "scores").glob("c.*")}


def forked(task, *more):
    """A worker in a process of its own: forked, for importing torch takes seconds."""
    process = multiprocessing.get_context("fork").Process(target=work, args=(task, *more), daemon=True)
    process.start()
    return process


@pytest.mark.parametrize("output, folds", [("delta", 1), ("l2", 2), ("hypothetical", 1)])
def test_a_quiet_run_is_exact(small_run, output, folds):
    task = small_run(n=10, output=output, folds=folds)
    work(task)
    kind = "delta" if output == "hypothetical" else output
    models, X = small_call(output, folds).models, one_hot(10)
    each = torch.stack([naive_ism(m.double(), X.double(), output=kind, device="cpu").float() for m in models])
    if output == "hypothetical":
        each = each - each.mean(2, keepdim=True)
    assert_close(torch.from_numpy(scores(task)), each.mean(0))
    if folds > 1:
        assert_close(torch.from_numpy(scores(task, "scores_by_model")), each.transpose(0, 1))
    assert np.array_equal(scores(task, "sequences"), X.numpy()) and status(task.path).complete
    assert not list((task.path / ".yuzu" / "claims").iterdir())


def held(task, pid):
    """Tell whether a process holds a block."""
    for path in (task.path / ".yuzu" / "claims").glob("[0-9]*"):
        try:
            if json.loads(path.read_text())["pid"] == pid:
                return True
        except FileNotFoundError:  # it is done just now
            continue
    return False


def test_workers_that_are_killed_at_random_lose_nothing(small_run, monkeypatch):
    """Equal bit for bit to a quiet run, and no block is written again once it is there. ``YUZU_TEST_KILLS=30`` kills
    more often than CI does.
    """
    quiet, task = small_run("quiet.zarr"), small_run("killed.zarr")
    work(quiet)
    original, pause = Call.scores, 0.015 * KILLS

    def slow(self, X, made):
        time.sleep(pause)  # for the workers not to be done before they are killed
        return original(self, X, made)

    monkeypatch.setattr(Call, "scores", slow)
    chance, seen, orphans = random.Random(0), {}, 0
    running = [forked(task), forked(task)]
    for _ in range(KILLS):
        victim = chance.randrange(2)
        while not held(task, running[victim].pid):
            assert running[victim].is_alive(), "it ended before it was killed"
        time.sleep(chance.uniform(0, 1.2 * pause))
        os.kill(running[victim].pid, signal.SIGKILL)
        running[victim].join()
        assert running[victim].exitcode == -signal.SIGKILL
        orphans += held(task, running[victim].pid)
        now = files(task)
        assert all(now[path] == known for path, known in seen.items()), "a block was done again"
        seen = now
        running[victim] = forked(task)
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0, 0] and orphans > KILLS / 3 and len(seen) < 50
    monkeypatch.undo()
    now = files(task)
    assert all(now[path] == known for path, known in seen.items()) and len(now) == 50
    for name in ("scores", "sequences", "failure", "name"):
        assert np.array_equal(scores(task, name), scores(quiet, name)), name
    own = task.path / ".yuzu"
    assert not list((own / "claims").glob("[0-9]*")) and not list((own / "parts").iterdir())


def test_two_at_once_share_the_work(small_run, monkeypatch):
    task = small_run(n=60)
    counted = multiprocessing.get_context("fork").Value("i", 0)
    original = Call.scores

    def counts(self, X, made):
        with counted.get_lock():
            counted.value += len(X)
        time.sleep(0.02)
        return original(self, X, made)

    monkeypatch.setattr(Call, "scores", counts)
    both = [forked(task), forked(task)]
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert status(task.path).complete and counted.value == 60


def test_shards_together_are_the_whole(small_run):
    task, whole = small_run("shards.zarr", n=30), small_run("whole.zarr", n=30)
    work(whole)
    for shard in range(3):
        work(dataclasses.replace(task, shard=(shard, 3)))
        assert len(Store(task.path).done()) == [3, 6, 8][shard]
    assert np.array_equal(scores(task), scores(whole))


@pytest.fixture
def failing(monkeypatch):
    """Make `Call.scores` fail as a function of the sequences says."""
    original = Call.scores

    def install(fails):
        def scored(self, X, made):
            fails(X)
            return original(self, X, made)

        monkeypatch.setattr(Call, "scores", scored)

    return install


def test_too_little_memory_halves_the_block(small_run, failing):
    task, whole = small_run("little.zarr", n=20, block=8), small_run("much.zarr", n=20, block=8)
    work(whole)
    sizes = []

    def fails(X):
        sizes.append(len(X))
        if len(X) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    failing(fails)
    work(task)
    assert sizes[:4] == [8, 4, 2, 2] and not status(task.path).failed
    assert_close(torch.from_numpy(scores(task)), torch.from_numpy(scores(whole)))


@pytest.mark.parametrize(
    "error, reason", [(MemoryError(), "out of memory for one sequence"), (KeyError("x"), "KeyError: 'x'")]
)
def test_a_failing_sequence_stops_nothing(small_run, failing, error, reason):
    task, whole = small_run("failing.zarr", n=20, block=8), small_run("whole.zarr", n=20, block=8)
    work(whole)
    bad = one_hot(20)[5]

    def fails(X):
        if (X == bad).all((1, 2)).any():
            raise error

    failing(fails)
    work(task)
    found = status(task.path)
    assert found.complete and found.failures == [("s5", reason)] and found.failed == 1
    others = np.arange(20) != 5
    assert np.isnan(scores(task)[5]).all()
    assert_close(torch.from_numpy(scores(task)[others]), torch.from_numpy(scores(whole)[others]))
    assert f"s5: {reason}" in (task.path / ".yuzu" / "log.txt").read_text()


def test_scores_that_are_not_finite_are_a_failure(small_run, monkeypatch):
    task = small_run(n=8)
    original = Call.scores

    def scored(self, X, made):
        found, each = original(self, X, made)
        found[1, 0, 3] = np.inf
        return found, each

    monkeypatch.setattr(Call, "scores", scored)
    work(task)
    assert [name for name, _ in status(task.path).failures] == ["s1", "s5"]
    assert np.isnan(scores(task)[[1, 5]]).all() and np.isfinite(scores(task)[[0, 2, 3, 4]]).all()


def test_a_run_where_everything_fails_stops(small_run, failing):
    task = small_run(n=40)

    def fails(X):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    failing(fails)
    with pytest.raises(YuzuError, match="16 sequences failed one after another.*illegal memory access"):
        work(task)
    found = status(task.path)
    assert found.done == 12, "the block in which it stopped is not done"


def test_a_full_disk_is_told_and_nothing_is_damaged(small_run, monkeypatch):
    task = small_run(n=20)
    original, left = os.fsync, [3]

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        original(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(YuzuError, match="cannot be written: .*No space left.*start the same job again"):
            work(task)
    assert len(Store(task.path).done()) == 3
    assert {path.name for path in (task.path / "scores").iterdir()} == {"zarr.json", *(f"c.{i}.0.0.0" for i in range(3))}
    work(task)
    assert status(task.path).complete
