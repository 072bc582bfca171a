"""Values that are kept to be used again: how much of them, for how long, and with several threads."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from yuzu._engine.kept import Kept


class Thing:
    """Something that can be referred to weakly."""


def test_made_once():
    kept, made = Kept[str, list[int]](), []
    for _ in range(3):
        assert kept.made("key", lambda: made.append(1) or [7]) == [7]
    assert made == [1] and len(kept) == 1
    assert kept.get("another") is None


def test_what_was_not_used_for_longest_goes_first():
    kept = Kept[int, str](most=2)
    kept.put(1, "one"), kept.put(2, "two")
    assert kept.get(1) == "one"
    kept.put(3, "three")
    assert kept.keys() == [1, 3] and kept.values() == ["one", "three"]


def test_as_many_as_fit_into_bytes():
    kept = Kept[int, str](most_bytes=10)
    kept.put(1, "one", size=6), kept.put(2, "two", size=4)
    assert kept.keys() == [1, 2] and kept.nbytes == 10
    kept.put(2, "two", size=5)
    assert kept.keys() == [2] and kept.nbytes == 5, "the value that was replaced counts no more"
    kept.put(3, "too large", size=11)
    assert kept.keys() == [3] and kept.nbytes == 11, "the newest stays in any case"
    kept.put(4, "four", size=3)
    assert kept.keys() == [4]
    kept.forget(lambda key: key == 4)
    assert len(kept) == 0 and kept.nbytes == 0


def test_no_longer_than_the_owner_lives():
    kept, owner = Kept[int, Thing](), Thing()
    value = kept.put(id(owner), Thing(), size=8, owner=owner)
    alive, place = weakref.ref(value), id(owner)
    del value
    gc.disable()  # nothing waits to be collected
    try:
        assert kept.get(place) is alive() is not None
        del owner
        assert kept.get(place) is None and alive() is None and kept.nbytes == 0
    finally:
        gc.enable()


def test_an_owner_that_is_gone_takes_nothing_of_the_next_one():
    """A new object may have the place, and so the key, of an old one."""
    kept, old, new = Kept[str, str](), Thing(), Thing()
    kept.put("place", "old", owner=old)
    kept.put("place", "new", owner=new)
    del old
    assert kept.get("place") == "new"


def test_it_refers_to_itself_nowhere():
    kept, owner, value = Kept[int, Thing](), Thing(), Thing()
    kept.put(1, value, owner=owner)
    alive = weakref.ref(value)
    gc.disable()
    try:
        del kept, value
        assert alive() is None
    finally:
        gc.enable()
    del owner


@pytest.mark.parametrize("most", [None, 3])
def test_threads(most):
    kept, wrong = Kept[int, int](most), []

    def work(first):
        for i in range(2000):
            key = (first + i) % 7
            if kept.made(key, lambda key=key: key * key) != key * key:
                wrong.append(key)
            if i % 50 == 0:
                kept.forget(lambda k, key=key: k == key)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(kept) <= (most or 7)
