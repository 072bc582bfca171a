"""Random changes of models between random calls: what was made before is never served, and nothing is left changed."""

import contextlib
import copy
import functools
import pickle
from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import yuzu
from tests.oracle import assert_close, errors
from tests.small_models import randomized, sequences
from tests.untouched import snapshot
from yuzu._engine.capture.model_copy import evaluation_copy

L = 18


class Changing(nn.Module):
    """Two layers of one weight, a norm, a dropout, settings, and a function that it holds."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv1d(c, 5, 3, padding=1) for c in (4, 5, 5))
        self.norm, self.dropout, self.fc = nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3)
        self.third.weight = self.second.weight
        self.settings, self.factor, self.held = {"factor": [1.0]}, torch.tensor(0.7), torch.relu

    def forward(self, x):
        x = self.held(self.norm(self.first(x)))
        x = self.dropout(x + torch.tanh(self.second(x))) * self.settings["factor"][0]
        return self.fc(F.gelu(self.third(x)).mean(2)) * float(self.factor)


def in_place(model, number):
    with torch.no_grad():
        model.second.weight.add_(number * torch.rand(model.second.weight.shape, generator=torch.Generator()))


def other_data(model, number):
    model.fc.weight.data = model.fc.weight.data * (1 + number)


def state_loaded(model, number):
    model.load_state_dict({k: v * (1 + number) if v.is_floating_point() else v for k, v in model.state_dict().items()})


def other_layer(model, number):
    dilation = 1 + int(4 * number) % 2
    layer = randomized(nn.Conv1d(4, 5, 5, padding=2 * dilation, dilation=dilation), int(99 * number))
    model.first = layer.to(model.fc.weight.dtype)


def other_dilation(model, number):
    model.third.dilation = model.third.padding = (1 + int(9 * number) % 3,)


def other_settings(model, number):
    model.norm.eps, model.dropout.p, model.settings["factor"][0] = number / 10, number, 0.5 + number


def other_number(model, number):
    model.factor.fill_(0.5 + number)


def other_function(model, number):
    model.held = functools.partial(F.leaky_relu, negative_slope=number)


def closure(model, number):
    model.held = lambda x: torch.sigmoid(x * number)


def tied_or_not(model, number):
    weight = model.second.weight
    model.third.weight = nn.Parameter(weight.detach() * number) if model.third.weight is weight else weight


def hook(model, number):
    model.second.register_forward_hook(lambda module, inputs, output: output * (1 + number))


def no_hook(model, number):
    model.second._forward_hooks.clear()


def parametrized(model, number):
    if not parametrize.is_parametrized(model.first):  # PyTorch takes it back from all copies at once
        weight_norm(model.first)


def flags(model, number):
    list(model.modules())[int(7 * number)].train(number < 0.5)
    model.fc.bias.requires_grad_(number < 0.4)


def step(model, number):
    model(torch.ones(2, 4, L, dtype=model.fc.weight.dtype)).sum().backward()


def other_dtype(model, number):
    model.double() if number < 0.5 else model.float()


CHANGES = [
    in_place, other_data, state_loaded, other_layer, other_dilation, other_settings, other_number, other_function, closure, tied_or_not,
    hook, no_hook, parametrized, flags, step, other_dtype,
]  # fmt: skip
MODES = [
    contextlib.nullcontext,
    torch.no_grad,
    torch.inference_mode,
    torch.enable_grad,
    lambda: torch.autocast("cpu", torch.bfloat16),
]
CALLS = [
    {},
    {"output": "delta", "target": 1},
    {"output": "prediction", "start": 3, "end": 9},
    {"output": "delta", "ranges": [(0, 3), (9, 12)], "replace_with": "ACG"},
    {"target": [2, 0], "func": torch.exp, "batch_size": 1},
]


class Interrupted(BaseException):
    pass


def interrupt(output):
    raise Interrupted


def duplicate(model):
    try:
        return pickle.loads(pickle.dumps(model))
    except (pickle.PicklingError, AttributeError, RuntimeError):  # lambdas, parametrizations
        return copy.deepcopy(model)


def settings_of_torch():
    return (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_rng_state().numpy().tobytes(),
        np.random.get_state()[1].tobytes(),
    )


def compare(model, precomputation, random):
    """One call: right or refused, and with nothing changed."""
    X, call = sequences(random.randint(1, 2), L, seed=random.randint(1, 9)), random.choice(CALLS)
    truth = yuzu.naive_ism(evaluation_copy(model, dtype=torch.float64), X, device="cpu", **call)
    own, _ = errors(yuzu.naive_ism(model, X, device="cpu", **call), truth)
    before, world = snapshot(model), settings_of_torch()
    try:
        with random.choice(MODES)():
            if random.random() < 0.2:
                with contextlib.suppress(Interrupted):
                    yuzu.yuzu_ism(model, X, precomputation, device="cpu", **{**call, "func": interrupt})
            found = yuzu.yuzu_ism(model, X, precomputation, device="cpu", **call)
    except yuzu.PrecomputationError:
        assert precomputation is not None
    else:
        enough = 1e-10 if model.fc.weight.dtype == torch.float64 else 1e-5
        assert_close(found, truth, max(enough, own), 10 * max(enough, own))
    assert snapshot(model) == before and settings_of_torch() == world


@pytest.mark.parametrize("seed", range(1, 5))
def test_calls_between_changes(seed):
    random, log = Random(seed), []
    models, made = [randomized(Changing()), randomized(Changing(), 1)], [None]
    for _ in range(12):
        which = random.randrange(2)
        for change in random.choices(CHANGES, k=random.randint(1, 2)):
            log.append(f"{change.__name__} of model {which}")
            change(models[which], random.uniform(0.1, 0.9))
        if random.random() < 0.1:
            log.append(f"model {which} is a copy of the other")
            models[which] = duplicate(models[1 - which])
        if random.random() < 0.2:
            conv, memory = random.choice(["auto", "banded", "windows"]), random.choice([None, 1 << 22])
            precomputation = yuzu.precompute(models[which], L, conv=conv, max_memory=memory, device="cpu")
            made = [None, precomputation, pickle.loads(pickle.dumps(precomputation))]
        try:
            compare(models[which], random.choice(made), random)
        except BaseException as error:
            raise AssertionError(f"after {'; '.join(log)}") from error
