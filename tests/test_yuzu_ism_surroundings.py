"""`yuzu_ism` and `naive_ism` in whatever surroundings: gradient modes, hooks, wrapped modules, settings of torch."""

import copy
import gc
import logging
import types
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import yuzu
from tests.oracle import assert_close, assert_right, assert_same, oracle
from tests.small_models import Net, one_hot, randomized, sequences

L = 30


def test_an_ordinary_model_gives_no_warning_and_no_output(capfd):
    model, X = randomized(Net(), seed=8).eval(), sequences(1, L)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        precomputation = yuzu.precompute(model, L)
        yuzu.yuzu_ism(model, X, precomputation)
        yuzu.yuzu_ism(model, X)
        yuzu.naive_ism(model, X)
        yuzu.check(model, X, precomputation)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_under_any_gradient_mode(ism, context):
    """The model can be trained afterwards, also when everything happened in inference mode (no inference tensors are "
    "left in it)."""
    model, X = randomized(Net(), seed=9).eval(), sequences(2, L)
    with context():
        result = ism(model, X)
    assert_right(result.clone(), model, X)
    model(X).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(p.grad, alpha=-0.01)
    assert_right(ism(model, X), model, X)


def test_inference_precompute_then_use_outside():
    model, X = randomized(Net(), seed=9).eval(), sequences(2, L)
    with torch.inference_mode():
        precomputation = yuzu.precompute(model, L)
        yuzu.yuzu_ism(model, X, precomputation)
    assert_right(yuzu.yuzu_ism(model, X, precomputation), model, X)


def test_default_dtype_does_not_matter(ism, net):
    X = sequences(1, L)
    expected = ism(net, X)
    torch.set_default_dtype(torch.float64)
    try:
        assert_same(ism(net, X), expected)
        assert_close(
            ism(net, X, ranges=[(0, 2)], replace_with="AC"),
            oracle(net, X, ranges=[(0, 2)], replace_with=one_hot("AC").float())["l2"],
        )
    finally:
        torch.set_default_dtype(torch.float32)


def test_hooks_of_the_user_are_part_of_the_model(ism):
    model, X = randomized(Net(), seed=10).eval(), sequences(1, L)
    handle = model.conv1.register_forward_hook(lambda module, inputs, y: y.clamp(max=0.2))
    assert_right(ism(model, X), model, X)
    handle.remove()
    assert_right(ism(model, X), model, X)


@pytest.mark.parametrize(
    "make", [torch.jit.script, lambda m: torch.jit.trace(m, sequences(1, L)), torch.nn.DataParallel]
)
def test_wrapped_modules(ism, net, make):
    """Any module will do; one that cannot be captured runs naively, and it is said."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that scripting is going out of use
        wrapped = make(copy.deepcopy(net))
        result = ism(wrapped, sequences(1, L), output="delta")
    assert_right(result, net, sequences(1, L), output="delta")


def test_autocast_of_the_caller_does_not_matter(ism, device):
    """``precision="highest"`` is float32 throughout; bfloat16 is asked for by ``precision="medium"``."""
    model, X = randomized(Net(), seed=11).eval(), sequences(1, L)
    with torch.autocast(device, dtype=torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("error")
        result = ism(model, X, output="delta", device=device)
    assert_right(result, model, X, output="delta", device=device)


def test_default_device_of_the_caller_does_not_matter(ism, net):
    """``torch.set_default_device`` is where the caller's new tensors go; what is computed where is said by ``device``."""
    model, X = copy.deepcopy(net), sequences(1, L)
    with torch.device("meta"):
        result = ism(model, X, output="delta", device="cpu")
    assert result.device.type == "cpu"
    assert_right(result, net, X, output="delta")


def test_deterministic_algorithms_of_the_caller(ism, profile):
    X = sequences(2, L)
    torch.use_deterministic_algorithms(True)
    try:
        result = ism(profile, X, output="delta")
    finally:
        torch.use_deterministic_algorithms(False)
    assert_right(result, profile, X, output="delta")


def test_kept_for_as_many_lengths_as_memory_allows_and_no_longer_than_the_model():
    from yuzu._engine.store import obtain

    def kept():
        return len(obtain.kept_of_models.get(place) or ())

    model = nn.Sequential(nn.Conv1d(4, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1)).eval()
    place = id(model)
    most = obtain.KEPT_OF_A_MODEL
    for length in range(10, 12 + most):
        yuzu.yuzu_ism(model, sequences(1, length), device="cpu")
    assert kept() == most
    del model
    gc.collect()
    assert not kept()


def test_a_handler_registered_after_the_first_call_is_used():
    from yuzu._engine.handlers import registry

    handler = registry._REGISTRY.pop("aten.avg_pool1d")
    model, X = nn.Sequential(nn.Conv1d(4, 3, 5), nn.AvgPool1d(3, 1), nn.Conv1d(3, 2, 3)).eval(), sequences(1, L)
    try:
        with pytest.warns(yuzu.YuzuWarning, match="no handler for aten.avg_pool1d"):
            yuzu.yuzu_ism(model, X, device="cpu")
    finally:
        yuzu.handles("aten::avg_pool1d")(handler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = yuzu.yuzu_ism(model, X, output="delta", device="cpu")
        yuzu.precompute(model, L, device="cpu")
    assert_right(found, model, X, output="delta")


def small(**attributes):
    model = nn.Sequential(nn.Conv1d(4, 3, 3), nn.ReLU(), nn.Conv1d(3, 2, 3)).eval()
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def diamond(height):
    """Objects of which each is reached in two ways by the one above it: 2^height ways to the last."""
    below = types.SimpleNamespace()
    for _ in range(height):
        below = types.SimpleNamespace(one=below, other=below)
    return below


@pytest.mark.parametrize(
    "value", [np, torch, logging.getLogger(), diamond(60)], ids=["numpy", "torch", "logger", "diamond"]
)
def test_whatever_a_model_holds(value):
    model, X = small(held=value), sequences(1, L)
    found = yuzu.yuzu_ism(model, X, output="delta", device="cpu")
    del model.held  # the oracle copies the model
    assert_right(found, model, X, output="delta")


def test_a_constant_of_a_python_module_is_noticed():
    class Scaled(nn.Module):
        def __init__(self, settings):
            super().__init__()
            self.settings, self.conv = settings, nn.Conv1d(4, 3, 3)

        def forward(self, x):
            return self.conv(x).relu() * self.settings.factor

    settings = types.ModuleType("settings")
    settings.factor = 2
    model, X = Scaled(settings).eval(), sequences(1, L)
    for settings.factor in (2, 3):
        found = yuzu.yuzu_ism(model, X, output="delta", device="cpu")
        assert_close(found, yuzu.naive_ism(model, X, output="delta", device="cpu"), 1e-5, 1e-5)


class Counting(nn.Module):
    """Counts its calls, and keeps what it computed."""

    def __init__(self):
        super().__init__()
        self.conv, self.calls, self.losses = nn.Conv1d(4, 3, 3), 0, []

    def forward(self, x):
        self.calls += 1
        self.conv.kept = self.kept = self.conv(x)
        return self.kept.relu().mean(2)


def test_a_model_that_counts_is_precomputed_once(monkeypatch):
    from yuzu._engine.store import obtain

    made, original = [], obtain.make
    monkeypatch.setattr(obtain, "make", lambda *a, **k: made.append(a) or original(*a, **k))
    model, X = Counting().eval(), sequences(1, L)
    for _ in range(4):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = yuzu.yuzu_ism(model, X, output="delta", device="cpu")
        assert_right(found, model, X, output="delta")
        with torch.no_grad():
            model(X)
        model.losses.append(0.1)
    assert len(made) == 1
    model.conv = nn.Conv1d(4, 3, 5)
    assert_right(yuzu.yuzu_ism(model, X, output="delta", device="cpu"), model, X, output="delta")
    assert len(made) == 2, "another layer is another architecture"


def test_weights_made_in_inference_mode():
    with torch.inference_mode():
        model = small()
    X = sequences(1, L)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = yuzu.yuzu_ism(model, X, output="delta", device="cpu")
    same = small()
    same.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    assert_right(found, same, X, output="delta")
