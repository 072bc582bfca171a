"""Captures and runs in several threads: neither spoils the other, and neither waits for ever."""

import copy
import threading
import time

import pytest
import torch

import yuzu
from tests.oracle import assert_same
from tests.small_models import Profile, randomized, sequences
from yuzu._engine.gate import running, tracing

L = 40


def in_thread(job):
    """Start a job; a function that waits for its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(job()), daemon=True)
    thread.start()

    def result(seconds=60):
        thread.join(seconds)
        assert not thread.is_alive(), "it waits for ever"
        return results[0]

    result.thread = thread
    return result


@pytest.mark.parametrize("way", [yuzu.yuzu_ism, yuzu.hybrid_ism])
def test_a_plan_does_not_run_while_another_thread_captures(way):
    """`torch.export` switches oneDNN off for the whole process: last digits would differ from run to run."""
    model, X = randomized(Profile()).eval(), sequences(1, L)
    made = yuzu.precompute(model, L, device="cpu")
    expected = way(model, X, made, device="cpu")
    before = torch.backends.mkldnn.set_flags(False)
    try:
        with tracing():
            result = in_thread(lambda: way(model, X, made, device="cpu"))
            result.thread.join(0.5)
            assert result.thread.is_alive(), "it ran meanwhile"
            torch.backends.mkldnn.set_flags(*before)
    finally:
        torch.backends.mkldnn.set_flags(*before)
    assert_same(result(), expected)


def test_runs_that_follow_one_another_let_a_capture_in():
    stop = threading.Event()

    def run():
        while not stop.is_set():
            with running():
                time.sleep(0.02)

    def capture():
        with tracing():
            return "captured"

    threads = [in_thread(run) for _ in range(3)]
    try:
        assert in_thread(capture)(20) == "captured"
    finally:
        stop.set()
    for thread in threads:
        thread()


def test_one_inside_the_other_and_two_captures():
    """A run may hold another, and so may a capture; a thread that runs may still enter again while one waits to capture."""
    inside, waiting = threading.Event(), threading.Event()

    def run():
        with running():
            inside.set()
            assert waiting.wait(20)
            time.sleep(0.1)
            with running():
                return "ran"

    def capture():
        assert inside.wait(20)
        waiting.set()
        with tracing(), tracing(), running():
            return "captured"

    results = [in_thread(job) for job in (run, capture, capture)]
    assert [result(20) for result in results] == ["ran", "captured", "captured"]
    with running(), running():
        pass


def test_captures_and_runs_at_once_are_bitwise_the_same():
    template, X = randomized(Profile()).eval(), sequences(1, L)
    made = yuzu.precompute(template, L, device="cpu")
    expected = yuzu.yuzu_ism(template, X, made, device="cpu")
    models = [copy.deepcopy(template) for _ in range(4)]  # each is captured at its first use
    results = [in_thread(lambda m=m: [yuzu.yuzu_ism(m, X, made, device="cpu") for _ in range(5)]) for m in models]
    for result in results:
        for found in result():
            assert_same(found, expected)
