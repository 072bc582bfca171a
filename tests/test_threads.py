"""Threads that share a model or a precomputation."""

import copy
import logging
import threading

import pytest

import yuzu
from tests.oracle import assert_right, assert_same, oracle
from tests.small_models import Profile, randomized, sequences
from tests.untouched import Noisy, snapshot

L = 30


def in_threads(jobs):
    """Start all jobs at the same moment; their results in order."""
    results, failures = [None] * len(jobs), []
    barrier = threading.Barrier(len(jobs))

    def work(i):
        try:
            barrier.wait()
            results[i] = jobs[i]()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    return results


def test_threads_share_a_model_and_a_precomputation():
    model = randomized(Profile()).train()
    precomputation = yuzu.precompute(model, L)
    inputs = [sequences(2, L, seed=i) for i in range(4)]
    kinds = ["l2", "delta", "prediction", "delta"]
    before = snapshot(model)

    def job(i):
        kwargs = {"ranges": [(p, p + 3) for p in range(20)], "replace_with": "ACG"} if i == 3 else {}
        return lambda: [yuzu.yuzu_ism(model, inputs[i], precomputation, output=kinds[i], **kwargs) for _ in range(8)]

    alone = [job(i)()[0] for i in range(4)]
    together = in_threads([job(i) for i in range(4)])
    for i in range(4):
        for result in together[i]:
            assert_same(result, alone[i])
    assert snapshot(model) == before


def test_threads_that_bind_at_the_same_time():
    """The first use of a precomputation with a model prepares it; several threads may be the first."""
    template = randomized(Profile()).eval()
    precomputation = yuzu.precompute(template, L)
    model, X = copy.deepcopy(template), sequences(1, L)
    expected = yuzu.yuzu_ism(template, X, precomputation)
    for result in in_threads([lambda: yuzu.yuzu_ism(model, X, precomputation)] * 3):
        assert_same(result, expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_threads_without_a_precomputation():
    models = [randomized(Profile(), seed=i).train() for i in range(2)]
    X = sequences(1, L)
    results = in_threads([lambda m=m: yuzu.yuzu_ism(m, X) for m in models for _ in range(2)])
    for i, result in enumerate(results):
        assert_right(result, models[i // 2], X)
    assert all(m.training for m in models)
    assert not logging.getLogger("torch").disabled


def test_threads_naive_and_yuzu_together():
    model, X = randomized(Noisy()).train(), sequences(1, L)
    precomputation = yuzu.precompute(model, L)
    truth = oracle(model, X)["l2"]
    jobs = [lambda: yuzu.naive_ism(model, X), lambda: yuzu.yuzu_ism(model, X, precomputation)] * 2
    for result in in_threads(jobs):
        assert float((result - truth).abs().max() / truth.max()) < 1e-4
    assert model.training
