"""The user's model is left as it was, by errors too."""

import copy
import threading

import pytest
import torch

import yuzu
from tests.oracle import assert_right, assert_same
from tests.small_models import Net, randomized, sequences
from tests.untouched import Boom, Noisy, count, raise_at_call, snapshot

L = 30

OUTPUTS = ("l2", "delta", "prediction")


def awkward_model():
    """In training mode but for one frozen part, some gradients present, hooks of every kind, one parameter frozen."""
    model = randomized(Net(), seed=1).train()
    model.norm.eval()
    model.fc1.eval()
    model(sequences(4, L)).sum().backward()
    model.conv2.weight.grad = None
    model.conv1.bias.requires_grad_(False)
    model.conv1.register_forward_hook(lambda module, inputs, output: None)
    model.fc2.register_forward_pre_hook(lambda module, inputs: None)
    model.fc2.register_full_backward_hook(lambda module, grad_in, grad_out: None)
    model.fc1.weight.register_hook(lambda grad: grad)
    model.register_state_dict_pre_hook(lambda *args: None)
    return model


def test_model_is_untouched(call, device):
    model, X = awkward_model(), sequences(2, L)
    before = snapshot(model)
    for _ in range(2):
        call(model, X, device=device)
        assert snapshot(model) == before


@pytest.mark.parametrize("output", OUTPUTS)
def test_model_is_untouched_by_every_option(output):
    model, X = awkward_model(), sequences(3, L)
    X[0, :, 4] = 0
    before = snapshot(model)
    precomputation = yuzu.precompute(model, L, terminal_layers=(torch.nn.MaxPool1d,))
    for function in (lambda *a, **k: yuzu.yuzu_ism(*a, precomputation, **k), yuzu.naive_ism):
        function(model, X, output=output, start=3, end=9, target=1)
        function(model, X, output=output, ranges=[(0, 3)], func=lambda y: y.exp())
    precomputation.summary()
    assert snapshot(model) == before


def test_a_module_used_twice_is_untouched(call):
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv1d(4, 4, 3, padding=1)
            self.again = self.conv
            self.layers = torch.nn.ModuleList([self.conv, torch.nn.ReLU()])

        def forward(self, X):
            return self.again(self.layers[1](self.conv(X))).mean(2)

    model = randomized(Twice()).train()
    before = snapshot(model)
    call(model, sequences(1, L))
    assert snapshot(model) == before and model.again is model.conv is model.layers[0]


class Fragile(torch.nn.Module):
    """Raises when it meets a 7. It looks at content, so it cannot be captured."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 3, 3)
        self.norm = torch.nn.BatchNorm1d(3)

    def forward(self, X):
        y = self.norm(self.conv(X))
        if bool((X == 7).any()):
            raise Boom("half way")
        return y.amax(2)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["yuzu_ism", "naive_ism"])
def test_model_is_untouched_when_the_model_raises(name):
    model, X = randomized(Fragile()).train(), sequences(2, L)
    function = getattr(yuzu, name)
    before = snapshot(model)
    expected = function(model, X)
    assert_right(expected, model, X)
    X[1, 2, 5] = 7  # the first sequence goes well
    with pytest.raises(Boom, match="half way"):
        function(model, X)
    X[1, 2, 5] = 0
    with pytest.raises(Boom, match="half way"):  # the reference goes well
        function(model, X, ranges=[(0, 1), (8, 9)], replace_with=[0, 0, 0, 7])
    assert snapshot(model) == before and torch.is_grad_enabled()
    assert_same(function(model, X[:1]), expected[:1].clone())


class FragileLayer(torch.nn.Module):
    """An ordinary model, but for a hook of the user's that may raise."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 3, 3)
        self.fc = torch.nn.Linear(3, 2)

    def forward(self, X):
        return self.fc(self.conv(X).amax(2))


def test_model_is_untouched_when_a_hook_raises(call):
    model = randomized(FragileLayer()).train()

    def hook(module, inputs):
        raise Boom("half way")

    model.fc.register_forward_pre_hook(hook)
    before = snapshot(model)
    with pytest.raises(Exception, match="half way"):
        call(model, sequences(1, L))
    assert snapshot(model) == before and torch.is_grad_enabled()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ["yuzu_ism", "naive_ism"])
def test_model_is_untouched_when_func_raises(name, count):
    model, X = awkward_model(), sequences(2, L)
    function = getattr(yuzu, name)
    expected = function(model, X, output="delta")
    before = snapshot(model)
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            enabled = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
            with pytest.raises(Boom, match="half way"):
                function(model, X, output="delta", func=raise_at_call(count))
            assert enabled == (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    assert snapshot(model) == before
    assert_same(function(model, X, output="delta"), expected)


@pytest.mark.parametrize("name", ["yuzu_ism", "naive_ism"])
def test_a_wrong_target_leaves_the_model_untouched(name):
    model = awkward_model()
    before = snapshot(model)
    with pytest.raises(ValueError, match="target"):
        getattr(yuzu, name)(model, sequences(1, L), target=3)
    assert snapshot(model) == before


def test_a_model_that_cannot_run_is_untouched(call):
    model = awkward_model()
    before = snapshot(model)
    with pytest.raises(Exception):  # noqa: B017 - which one is the business of other tests
        call(model, sequences(1, L + 4))
    assert snapshot(model) == before


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_that_keeps_its_own_state_is_untouched(call):
    """Writes of forward to its model must not reach the user's model."""

    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv1d(4, 3, 3)
            self.register_buffer("seen", torch.zeros(3))
            self.calls = 0
            self.log = []

        def forward(self, X):
            y = self.conv(X).amax(2)
            self.calls += 1
            self.log.append(tuple(y.shape))
            self.seen.add_(1)
            return y

    model, X = randomized(Counting()), sequences(1, L)
    before = snapshot(model)
    call(model, X)
    assert snapshot(model) == before and model.calls == 0 and model.log == []


class Writing(Net):
    """Writes to one of its own tensors at each call."""

    def __init__(self, write, **attributes):
        super().__init__()
        self.write, self.seen = write, torch.zeros(3)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, X):
        self.write(self)
        return super().forward(X)


def keep_norm(model):
    model.conv1.weight.data = torch.renorm(model.conv1.weight.data, 2, 0, 0.5)


def keep_small(model):
    with torch.no_grad():
        model.conv1.weight.clamp_(-0.1, 0.1)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("lock", [False, True], ids=["copies", "refuses to be copied"])
@pytest.mark.parametrize("write", [keep_norm, keep_small, count])
def test_a_model_that_writes_to_its_tensors_is_untouched(call, write, lock):
    model, X = Writing(write, **({"lock": threading.Lock(), "log": []} if lock else {})), sequences(1, L)
    before = snapshot(model)
    call(model, X)
    assert snapshot(model) == before and not model.seen.any()
    if call is yuzu.yuzu_ism:
        found = call(model, X, output="delta")
        plain = Writing(lambda model: None)
        plain.load_state_dict(model.state_dict())
        write(plain)
        assert_right(found, plain.eval(), X, output="delta")


def test_a_layer_that_is_never_copied_is_untouched(call):
    class Shared(torch.nn.Dropout):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def __deepcopy__(self, memo):
            return self

        def forward(self, X):
            return super().forward(X) * self.weight

    model, X = torch.nn.Sequential(Shared(), randomized(Net())), sequences(1, L)
    before = snapshot(model)
    call(model, X)
    assert snapshot(model) == before


def test_a_model_on_its_device_stays_there(call, device):
    model = randomized(Net()).to(device).eval()
    call(model, sequences(1, L), device="cpu")
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {device}


@pytest.mark.parametrize("name", ["yuzu_ism", "naive_ism"])
def test_evaluation_semantics_in_training_mode(name, device):
    model, X = randomized(Noisy()).train(), sequences(2, L)
    function = getattr(yuzu, name)
    for output in OUTPUTS:
        assert_right(function(model, X, output=output, device=device), model, X, output=output, device=device)
    in_training = function(model, X, device=device)
    assert_same(function(copy.deepcopy(model).eval(), X, device=device), in_training)
    assert model.training and model.dropout.training


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("wrap", [torch.nn.Identity, torch.nn.Sequential])
def test_evaluation_semantics_of_a_scripted_model_in_training_mode(wrap):
    plain, X = randomized(torch.nn.Sequential(torch.nn.Dropout(), Net())), sequences(1, L)
    scripted = torch.jit.script(plain.train())
    model = scripted if wrap is torch.nn.Identity else wrap(scripted)
    for function in (yuzu.yuzu_ism, yuzu.naive_ism):
        assert_right(function(model, X, output="delta"), plain, X, output="delta")
        assert scripted.training


def test_precomputation_made_in_training_mode_serves_evaluation_mode():
    model, X = randomized(Noisy()).train(), sequences(1, L)
    precomputation = yuzu.precompute(model, L)
    expected = yuzu.yuzu_ism(model, X, precomputation)
    model.eval()
    assert_same(yuzu.yuzu_ism(model, X, precomputation), expected)
    assert_right(expected, model, X)
