"""Claims: one holder at a time, none for ever."""

import json
import os
import time

import pytest

from yuzu.runs.claims import Claims, host, living


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "claims").mkdir()
    return tmp_path / "claims"


def claim_of(folder, block, age=0.0, number=0, **who):
    path = folder / f"{block:08d}.{number}"
    path.write_text(json.dumps({"host": host(), "pid": os.getpid(), "began": "1", **who}))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_one_of_two_gets_a_block(folder):
    with Claims(folder) as one, Claims(folder) as other:
        assert one.take(3) and not other.take(3) and one.holds(3) and not other.holds(3)
        assert living(folder) == 1
        one.release(3)
        assert other.take(3) and not one.holds(3)
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "who, age, free",
    [
        ({}, 0, True),  # this machine's, of a process that began at another time: the number was given again
        ({"pid": 2**22 + 1}, 0, True),  # of no process
        ({"host": "other"}, 0, False),
        ({"host": "other"}, 90, True),  # not touched for long
    ],
)
def test_a_dead_workers_claim_is_taken_over(folder, who, age, free):
    claim_of(folder, 3, age, **who)
    with Claims(folder, timeout=60) as claims:
        assert claims.take(3) == free == claims.holds(3)
    assert bool(list(folder.iterdir())) != free


def test_a_claim_that_is_half_written_is_dead_only_after_a_while(folder):
    path = folder / "00000003.0"
    path.write_text('{"host"')
    with Claims(folder, timeout=60) as claims:
        assert not claims.take(3)
        os.utime(path, (time.time() - 90,) * 2)
        assert claims.take(3)


def test_a_worker_that_was_stopped_for_long_has_lost_its_block(folder):
    with Claims(folder, timeout=60) as slow, Claims(folder, timeout=60) as other:
        assert slow.take(3)
        mine = folder / "00000003.0"
        content = json.loads(mine.read_text())
        mine.write_text(json.dumps({**content, "host": "another"}))  # seen from another machine
        os.utime(mine, (time.time() - 90,) * 2)
        assert other.take(3) and other.holds(3) and not slow.holds(3)
        slow.release(3)
        assert other.holds(3), "it gives back only its own"


def test_claims_are_touched(folder, monkeypatch):
    monkeypatch.setattr("yuzu.runs.claims.BEAT", 0.01)
    with Claims(folder) as claims:
        assert claims.take(3)
        path = folder / "00000003.0"
        os.utime(path, (0, 0))
        end = time.time() + 10
        while path.stat().st_mtime == 0 and time.time() < end:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0
