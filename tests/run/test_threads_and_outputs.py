"""Threads that ask for other outputs of one model."""

import sys
import threading

import torch
from torch import nn

import yuzu
from tests.small_models import sequences

L = 15


def test_threads_that_ask_for_other_outputs():
    model, X = nn.Sequential(nn.Conv1d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * (L - 2), 40)).eval(), sequences(1, L)
    made = yuzu.precompute(model, L, device="cpu")
    whole = yuzu.yuzu_ism(model, X, made, output="delta", device="cpu")
    wrong, interval = [], sys.getswitchinterval()

    def work(first):
        for i in range(40):
            target = (first + 7 * i) % 40
            try:
                found = yuzu.yuzu_ism(model, X, made, output="delta", target=target, device="cpu")
                if not torch.allclose(found, whole[..., target], atol=1e-6):
                    wrong.append(target)
            except Exception as error:
                wrong.append(repr(error))

    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(3 * i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
