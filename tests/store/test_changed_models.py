"""A model that changes after it was precomputed: its weights of now are used, and another architecture is noticed."""

import collections
import copy
import functools
import gc
import sys
import types
import warnings
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.oracle import assert_close, assert_right, errors, oracle
from tests.small_models import Net, Profile, randomized, sequences
from tests.store.models import Optional, in_place, pearson
from yuzu import PrecomputationError, naive_ism, precompute, yuzu_ism

L = 30


@pytest.fixture(scope="module", params=["auto", "windows", "banded", "fold", "cyclic", "gaussian"])
def trained(request):
    """A model whose weights the tests below change, and one precomputation from before all changes."""
    model = randomized(Net(), seed=20).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alpha = 1.5 if request.param == "gaussian" else None
        precomputation = precompute(model, L, conv=request.param, alpha=alpha)
    given = (precomputation, None) if request.param == "auto" else (precomputation,)
    for p in given:
        yuzu_ism(model, sequences(1, L), p)  # whatever is derived from weights is derived now
    return model, given, request.param


def train_a_step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    model(sequences(4, L, seed=30)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def through_data(model):
    for p in model.parameters():
        p.data.mul_(1.2)


def assign_data(model):
    for p in model.parameters():
        p.data = p.data.flip(0).clone()


def through_numpy(model):
    for p in model.parameters():
        p.detach().numpy()[...] *= 1.1


def one_column(model):
    model.conv1.weight.data[:, 0, 1] += 0.7


def replace_parameters(model):
    for module in (model.conv1, model.conv2, model.fc1):
        module.weight = torch.nn.Parameter(module.weight.detach() * 1.1 + 0.01)


def load_state(model):
    model.load_state_dict(randomized(Net(), seed=31).state_dict())


def assign_state(model):
    model.load_state_dict(randomized(Net(), seed=32).state_dict(), assign=True)


def batch_statistics(model):
    model.norm.running_mean.add_(0.5)
    model.norm.running_var.mul_(2)


def replace_statistics(model):
    model.norm.running_mean = torch.full((6,), 0.1)
    model.norm.running_var = torch.full((6,), 0.7)


def training_forward_pass(model):
    model.train()
    model(sequences(8, L, seed=33))  # moves the running statistics
    model.eval()

WEIGHT_CHANGES = [
    train_a_step,
    in_place,
    through_data,
    assign_data,
    through_numpy,
    one_column,
    replace_parameters,
    load_state,
    assign_state,
    batch_statistics,
    replace_statistics,
    training_forward_pass,
]


@pytest.mark.parametrize("change", WEIGHT_CHANGES)
def test_the_weights_of_now_are_used(trained, change):
    model, given, way = trained
    X = sequences(1, L, seed=8)
    before = yuzu_ism(model, X, given[0], output="delta")
    change(model)
    for precomputation in given:
        result, truth = yuzu_ism(model, X, precomputation, output="delta"), oracle(model, X)["delta"]
        if way == "gaussian":
            assert pearson(result, truth) >= 0.9999 and errors(result, truth)[1] < 0.01
        else:
            assert_right(result, model, X, output="delta")
    assert errors(before, truth)[0] > 1e-3, "the test is empty: the change does not show"


def test_one_precomputation_for_two_models_of_one_architecture():
    a, b, X = randomized(Net(), seed=40).eval(), randomized(Net(), seed=41).eval(), sequences(2, L)
    precomputation = precompute(a, L)
    for model in (b, a, b):
        assert_right(yuzu_ism(model, X, precomputation, output="delta"), model, X, output="delta")


def test_weights_that_are_zero_when_precomputed():
    """Nothing may be concluded from the weights' values, such as that a channel is dead."""
    model, X = Net().eval(), sequences(2, L)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    precomputation = precompute(model, L)
    assert bool((yuzu_ism(model, X, precomputation) == 0).all())
    randomized(model, seed=50)
    assert_right(yuzu_ism(model, X, precomputation), model, X)


def test_reparametrized_weights(net):
    """Weight norm computes the weight from two parameters at every forward pass."""
    model = randomized(Profile(), seed=3).eval()
    torch.nn.utils.parametrizations.weight_norm(model.dilated)
    X = sequences(2, L)
    precomputation = precompute(model, L)
    assert_right(yuzu_ism(model, X, precomputation), model, X)
    with torch.no_grad():
        model.dilated.parametrizations.weight.original0.mul_(1.5)
    assert_right(yuzu_ism(model, X, precomputation), model, X)


class Settings(torch.nn.Module):
    """A model that reads settings of its own at every forward pass."""

    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv1d(4, 5, 3, padding=1)
        self.conv2 = torch.nn.Conv1d(5, 5, 3, padding=1)
        self.act = torch.nn.ReLU()
        self.pool = torch.nn.MaxPool1d(3, stride=1, padding=1)
        self.fc = torch.nn.Linear(5, 2)
        self.scale = 1.0
        self.function = torch.relu
        self.config = types.SimpleNamespace(shift=0.0, power=1)
        self.table = {"gain": [1.0]}

    def forward(self, X):
        X = self.pool(self.act(self.conv1(X)))
        X = self.function(self.conv2(X)) * self.scale * self.table["gain"][0] + self.config.shift
        return self.fc((X**self.config.power).mean(2))


def exchange_layer(model):
    model.conv2 = randomized(torch.nn.Conv1d(5, 5, 5, padding=2), seed=9)


def exchange_layer_of_equal_shapes(model):
    model.conv2 = randomized(torch.nn.Conv1d(5, 5, 3, padding=2, dilation=2), seed=9)


def change_dilation_in_place(model):
    model.conv2.dilation, model.conv2.padding = (2,), (2,)


def exchange_activation(model):
    model.act = torch.nn.GELU()


def exchange_pool(model):
    model.pool = torch.nn.AvgPool1d(3, stride=1, padding=1)


def change_pool_in_place(model):
    model.pool.kernel_size, model.pool.padding = 5, 2


def drop_bias(model):
    model.conv2.bias = None


def change_scale(model):
    model.scale = 2.5


def change_function(model):
    model.function = torch.tanh


def change_config_object(model):
    model.config.power = 3


def change_nested_setting(model):
    model.table["gain"][0] = 3.0


def register_hook(model):
    model.conv1.register_forward_hook(lambda module, inputs, y: y.abs())


def replace_forward(model):
    model.forward = types.MethodType(lambda self, X: self.fc(self.conv2(self.conv1(X)).mean(2)), model)


def replace_forward_of_a_layer(model):
    model.act.forward = lambda X: torch.sigmoid(X)

LAYER_CHANGES = [
    exchange_layer,
    exchange_layer_of_equal_shapes,
    change_dilation_in_place,
    exchange_activation,
    exchange_pool,
    change_pool_in_place,
    drop_bias,
    change_function,
    register_hook,
    replace_forward,
    replace_forward_of_a_layer,
]

SETTING_CHANGES = [change_scale, change_config_object, change_nested_setting]


@pytest.fixture(scope="module")
def made_for_settings():
    return precompute(Settings().eval(), L)


@pytest.mark.parametrize("change", LAYER_CHANGES + SETTING_CHANGES)
def test_changed_architecture(made_for_settings, change):
    """Without a precomputation a new one is made; a given one is refused. Never a result of the old architecture."""
    model, X = randomized(Settings(), seed=70).eval(), sequences(2, L)
    before = yuzu_ism(model, X, output="delta")
    change(model)
    result = yuzu_ism(model, X, output="delta")
    assert errors(oracle(model, X)["delta"], before)[0] > 1e-2, "the test is empty: the change does not show"
    assert_right(result, model, X, output="delta")
    if change in LAYER_CHANGES[::2]:
        with pytest.raises(PrecomputationError, match="architecture"):
            yuzu_ism(model, X, made_for_settings)


@pytest.mark.parametrize("change", SETTING_CHANGES)
def test_changed_setting_with_a_precomputation(made_for_settings, change):
    """A number that forward reads may be refused or used, but its old value is never used."""
    model, X = randomized(Settings(), seed=70).eval(), sequences(2, L)
    assert_right(yuzu_ism(model, X, made_for_settings), model, X)
    change(model)
    try:
        result = yuzu_ism(model, X, made_for_settings, output="delta")
    except PrecomputationError as error:
        assert "architecture" in str(error)
    else:
        assert_right(result, model, X, output="delta")


class Slots:
    __slots__ = ("slope",)

    def __init__(self):
        self.slope = 0.1


class Leaky:
    def __init__(self):
        self.slope = 0.1

    def run(self, x):
        return F.leaky_relu(x, self.slope)


class Reading(torch.nn.Module):
    """Applies what it holds between two layers."""

    settings = types.MappingProxyType({})

    def __init__(self, held, apply):
        super().__init__()
        self.conv, self.fc = torch.nn.Conv1d(4, 5, 3, padding=1), torch.nn.Linear(5, 2)
        self.held, self.apply_held = held, apply

    def forward(self, X):
        return self.fc(self.apply_held(self, self.conv(X)).mean(2))


class OfItsClass(Reading):
    settings = types.SimpleNamespace(slope=0.1)
    table = {"slope": 0.1}

    def activate(self, x):
        return F.leaky_relu(x, self.settings.slope) * self.table["slope"]


def of_closure():
    slope = 0.1

    def leaky(x):
        return F.leaky_relu(x, slope)

    def change(model):
        nonlocal slope
        slope = 0.8

    return leaky, change

OUTSIDE = 0.1

outer = torch.nn.Linear(L, L)

leaky, change_closure = of_closure()


def change_outside(model):
    global OUTSIDE
    OUTSIDE = 0.8


def exchange_outer_weight(model):
    outer.weight = torch.nn.Parameter(torch.randn(L, L, generator=torch.Generator().manual_seed(3)))


def by_number(number):
    return lambda model, x: x * float(number(model.held))


def slope_of(settings):
    return lambda model, x: F.leaky_relu(x, settings(model).slope)

HELD = {
    "partial": (
        lambda: functools.partial(F.leaky_relu, negative_slope=0.1),
        lambda model, x: model.held(x),
        lambda model: setattr(model, "held", functools.partial(F.leaky_relu, negative_slope=0.8)),
    ),
    "object with slots": (Slots, slope_of(lambda model: model.held), lambda model: setattr(model.held, "slope", 0.8)),
    "array": (
        lambda: np.ones(L, dtype=np.float32),
        lambda model, x: x * torch.as_tensor(model.held),
        lambda model: model.held.__setitem__(slice(5), 3),
    ),
    "deque": (
        lambda: collections.deque([1]),
        by_number(lambda held: held[0]),
        lambda model: model.held.__setitem__(0, 3),
    ),
    "tensor read as a number": (
        lambda: torch.tensor(2.0),
        by_number(lambda held: held),
        lambda model: model.held.fill_(5),
    ),
    "layer in a list": (
        lambda: [torch.nn.LeakyReLU(0.1)],
        lambda model, x: model.held[0](x),
        lambda model: setattr(model.held[0], "negative_slope", 0.8),
    ),
    "method of an object": (
        lambda: Leaky().run,
        lambda model, x: model.held(x),
        lambda model: setattr(model.held.__self__, "slope", 0.8),
    ),
    "closure": (lambda: leaky, lambda model, x: model.held(x), change_closure),
    "layer elsewhere": (lambda: None, lambda model, x: outer(x), exchange_outer_weight),
    "number elsewhere": (lambda: None, lambda model, x: F.leaky_relu(x, OUTSIDE), change_outside),
    "object of the class": (
        lambda: None,
        lambda model, x: model.activate(x),
        lambda model: setattr(OfItsClass.settings, "slope", 0.8),
    ),
    "table of the class": (
        lambda: None,
        lambda model, x: model.activate(x),
        lambda model: OfItsClass.table.update(slope=0.8),
    ),
    "method of the class": (
        lambda: None,
        lambda model, x: model.activate(x),
        lambda model: setattr(OfItsClass, "activate", lambda self, x: torch.tanh(x)),
    ),
}


@pytest.mark.parametrize("name", HELD)
def test_changes_of_whatever_forward_reads(name):
    make, apply, change = HELD[name]
    model, X = randomized(OfItsClass(make(), apply), seed=71).eval(), sequences(1, L)
    precomputation = precompute(model, L, device="cpu")
    before = yuzu_ism(model, X, output="delta", device="cpu")
    change(model)
    truth = naive_ism(model, X, output="delta", device="cpu")  # not of a copy, which has what it holds of its own
    assert errors(truth, before)[0] > 1e-2, "the test is empty: the change does not show"
    assert_close(yuzu_ism(model, X, output="delta", device="cpu"), truth, 1e-5, 1e-4)
    try:
        found = yuzu_ism(model, X, precomputation, output="delta", device="cpu")
    except PrecomputationError as error:
        assert "architecture" in str(error)
    else:
        assert_close(found, truth, 1e-5, 1e-4)

conv1 = 0  # not what forward reads as ``self.conv1``


def test_what_trains_or_collects_is_captured_once(monkeypatch):
    """Collected values, an optimizer's state and random numbers decide nothing, and capturing takes time."""
    model, X, collected = randomized(Settings(), seed=72), sequences(1, L), []
    model.conv1.register_forward_hook(lambda module, inputs, output: collected.append(output))
    model.optimizer, model.random = torch.optim.Adam(model.parameters()), np.random.default_rng(0)
    yuzu_ism(model, X, device="cpu")
    monkeypatch.setattr("yuzu._engine.store.precomputation.capture", lambda *args: pytest.fail("it is captured again"))
    for number in range(2):
        monkeypatch.setattr(sys.modules[__name__], "conv1", number + 1)
        model.random.random()
        model(X).sum().backward()
        model.optimizer.step()
        found = yuzu_ism(model, X, output="delta", device="cpu")
        assert_close(found, naive_ism(model, X, output="delta", device="cpu"), 1e-5, 1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_reference_to_what_is_gone():
    gone = Leaky()
    model = randomized(Settings(), seed=73)
    truth, X = copy.deepcopy(model), sequences(1, L)
    model.parent = weakref.proxy(gone)
    del gone
    assert_right(yuzu_ism(model, X, output="delta"), truth, X, output="delta")


class Tied(torch.nn.Module):
    """Two convolutions of one weight."""

    slope = 0.25

    def __init__(self):
        super().__init__()
        self.first, self.second = (torch.nn.Conv1d(4, 4, 5, padding=2) for _ in range(2))
        self.second.weight = self.first.weight

    def forward(self, X):
        X = torch.nn.functional.leaky_relu(self.first(X), self.slope)
        return torch.nn.functional.leaky_relu(self.second(X), self.slope).mean(-1)


def untied(model):
    model.second.weight = torch.nn.Parameter(torch.randn(4, 4, 5))


def made_one(model):
    model.second = model.first


def another_slope(model):
    type(model).slope = 2.0


@pytest.mark.parametrize("change", [untied, made_one, another_slope])
def test_what_is_no_longer_shared(change, monkeypatch):
    """Which tensors and modules are the same, and attributes of classes, are part of what a plan is made for."""
    monkeypatch.setattr(Tied, "slope", 0.25)
    model, X = randomized(Tied(), seed=4).eval(), sequences(2, L)
    model.second.weight = model.first.weight
    made = precompute(model, L)
    assert_right(yuzu_ism(model, X), model, X)
    change(model)
    assert_right(yuzu_ism(model, X), model, X)
    try:
        found = yuzu_ism(model, X, made)
    except PrecomputationError as error:
        assert "architecture" in str(error)
    else:
        assert_right(found, model, X)


def test_changed_back_and_forth():
    model, X = randomized(Settings(), seed=71).eval(), sequences(1, L)
    first, other = model.conv2, randomized(torch.nn.Conv1d(5, 5, 5, padding=2), seed=9)
    for layer in (first, other, first, other):
        model.conv2 = layer
        assert_right(yuzu_ism(model, X), model, X)


def test_changed_dtype():
    model, X = randomized(Net(), seed=72).eval(), sequences(1, L)
    precomputation = precompute(model, L)
    yuzu_ism(model, X)
    model.double()
    assert_right(yuzu_ism(model, X), model, X)  # at float64's accuracy
    with pytest.raises(PrecomputationError, match=r"dtype.*float32.*float64"):
        yuzu_ism(model, X, precomputation)
    model.float()
    assert_right(yuzu_ism(model, X), model, X)
    assert_right(yuzu_ism(model, X, precomputation), model, X)


def test_changed_length():
    model = randomized(Profile(), seed=73).eval()
    for length in (30, 31, 30, 24):
        X = sequences(1, length)
        assert_right(yuzu_ism(model, X), model, X)


def test_changed_inputs():
    model, X = randomized(Optional(), seed=74), sequences(2, L)
    a, b = torch.tensor([[0.5], [2.0]]), torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    for args in ((), (a,), (b,), (a, b), (), (a,)):
        assert_right(yuzu_ism(model, X, args=args), model, X, args=args)


def model_at_an_old_id(X):
    """A new model, not yet initialized, where one that `yuzu_ism` knew has been; None if the address went elsewhere."""
    old = randomized(Settings(), seed=1).eval()
    yuzu_ism(old, X)
    address, alive = id(old), weakref.ref(old)
    del old
    gc.collect()
    shells = [object.__new__(Settings) for _ in range(20_000)]
    assert alive() is None, "something keeps the old model alive"
    return next((shell for shell in shells if id(shell) == address), None)


def test_new_model_at_an_old_id():
    X = sequences(1, L)
    model = next((m for m in (model_at_an_old_id(X) for _ in range(20)) if m is not None), None)
    assert model is not None, "no address was given out again: the test is empty"
    model.__init__()
    model.function = torch.tanh
    randomized(model, seed=2).eval()
    assert_right(yuzu_ism(model, X), model, X)
