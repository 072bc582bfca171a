"""Random states and settings of torch are left alone, and the same call gives the same bits."""

import copy
import logging
import random
import warnings

import numpy as np
import pytest
import torch

import yuzu
from tests.oracle import assert_same
from tests.small_models import Net, Profile, randomized, sequences
from tests.untouched import Boom, Noisy, raise_at_call

L = 30

OUTPUTS = ("l2", "delta", "prediction")


def test_random_state_is_untouched(call, device):
    model, X = randomized(Noisy()).train(), sequences(1, L)
    torch.manual_seed(123), np.random.seed(123), random.seed(123)
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    on_cuda = torch.cuda.get_rng_state() if device == "cuda" else None
    call(model, X, device=device)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1][1]) and np.random.get_state()[2] == before[1][2]
    assert random.getstate() == before[2]
    assert on_cuda is None or torch.equal(torch.cuda.get_rng_state(), on_cuda)


@pytest.mark.parametrize("conv", ["auto", "cyclic", "gaussian"])
def test_random_state_is_untouched_by_every_way(net, captured_once, conv):
    model = net
    torch.manual_seed(123), np.random.seed(123), random.seed(123)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    alpha = 1.5 if conv == "gaussian" else None
    yuzu.precompute(model, L, conv=conv, alpha=alpha, random_state=5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1]) and random.getstate() == before[2]


def test_random_state_is_untouched_by_an_error():
    model = randomized(Noisy())
    before = torch.get_rng_state()
    with pytest.raises(Boom):
        yuzu.yuzu_ism(model, sequences(1, L), func=raise_at_call(2))
    assert torch.equal(torch.get_rng_state(), before)


def world():
    loggers = [
        logging.getLogger(),
        *(v for v in logging.Logger.manager.loggerDict.values() if isinstance(v, logging.Logger)),
    ]
    return {
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": torch.get_default_dtype(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "matmul": torch.get_float32_matmul_precision(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.enabled),
        "mkldnn": torch.backends.mkldnn.enabled,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        "anomaly": torch.is_anomaly_enabled(),
        "filters": list(warnings.filters),
        "loggers": {
            log.name: (log.disabled, len(log.handlers)) for log in loggers if log.name.startswith(("root", "torch"))
        },
    }


def test_settings_of_torch_are_untouched(call):
    model, X = randomized(Net()).eval(), sequences(1, L)
    yuzu.precompute(torch.nn.Conv1d(4, 1, 3), L)  # imports done
    before = world()
    call(model, X)
    with pytest.raises((ValueError, RuntimeError)):
        call(torch.nn.Conv1d(5, 2, 3), X)
    after = world()
    new = {name: value for name, value in after["loggers"].items() if name not in before["loggers"]}
    assert not any(disabled for disabled, _ in new.values())
    after["loggers"] = {name: value for name, value in after["loggers"].items() if name not in new}
    assert after == before


@pytest.mark.parametrize("conv", ["auto", "windows", "banded", "fold", "cyclic", "gaussian"])
def test_the_same_precomputation_gives_the_same_bits(profile, captured_once, conv):
    model, X = profile, sequences(3, L)
    X[1, :, 6] = 0
    alpha = 1.5 if conv == "gaussian" else None
    precomputation = yuzu.precompute(model, L, conv=conv, alpha=alpha)
    other = copy.deepcopy(model) if conv == "auto" else model
    for output in OUTPUTS:
        first = yuzu.yuzu_ism(model, X, precomputation, output=output)
        torch.manual_seed(99)
        assert_same(yuzu.yuzu_ism(model, X, precomputation, output=output), first)
        assert_same(yuzu.yuzu_ism(other, X, precomputation, output=output), first)


def test_other_calls_in_between_leave_no_trace():
    model, X = randomized(Profile()).eval(), sequences(2, L)
    precomputation = yuzu.precompute(model, L)
    first = yuzu.yuzu_ism(model, X, precomputation, output="delta")
    yuzu.yuzu_ism(model, sequences(3, L, seed=5), precomputation, output="prediction", batch_size=2)
    yuzu.yuzu_ism(model, X, precomputation, ranges=[(3, 8), (4, 9)], replace_with="ACGTA")
    yuzu.yuzu_ism(model, torch.zeros(1, 4, L), precomputation, start=4, end=7)
    with pytest.raises(Boom):
        yuzu.yuzu_ism(model, X, precomputation, func=raise_at_call(2))
    assert_same(yuzu.yuzu_ism(model, X, precomputation, output="delta"), first)
