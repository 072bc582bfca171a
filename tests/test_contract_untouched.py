"""Nothing of the user's is changed: not the model, not the random state, not torch's settings; not by an error either.

And what follows from that: threads, determinism, evaluation semantics.
"""

import copy
import logging
import random
import threading
import warnings

import numpy as np
import pytest
import torch
from conftest import Net, Profile, assert_right, assert_same, oracle, randomized, sequences

import yuzu

L = 30
OUTPUTS = ("l2", "delta", "prediction")


def precompute_only(model, X, **kwargs):
    kwargs.pop("func", None)
    return yuzu.precompute(model, X.shape[2], **kwargs)


def check_only(model, X, **kwargs):
    kwargs.pop("func", None)
    return yuzu.check(model, X, positions=3, **kwargs)


CALLS = {"precompute": precompute_only, "yuzu_ism": yuzu.yuzu_ism, "naive_ism": yuzu.naive_ism, "check": check_only}


@pytest.fixture(params=CALLS)
def call(request):
    return CALLS[request.param]


def snapshot(model):
    """Everything about a model that a caller could notice, by identity and by value."""
    seen = {}
    for name, module in model.named_modules(remove_duplicate=False):
        seen[name] = {
            "class": type(module),
            "identity": id(module),
            "training": module.training,
            "attributes": {k: id(v) for k, v in module.__dict__.items() if k != "training"},
            "children": [(k, id(m)) for k, m in module._modules.items()],
            "hooks": {k: [(i, id(h)) for i, h in v.items()] for k, v in module.__dict__.items() if k.endswith("hooks")},
            "plain": {k: v for k, v in module.__dict__.items() if isinstance(v, int | float | str | tuple)},
        }
        for kind in ("_parameters", "_buffers"):
            for key, tensor in module.__dict__[kind].items():
                if tensor is None:
                    continue
                grad = tensor.grad
                seen[f"{name}.{key}"] = {
                    "identity": id(tensor),
                    "address": tensor.data_ptr(),
                    "bits": tensor.detach().cpu().numpy().tobytes(),
                    "version": tensor._version,
                    "dtype": tensor.dtype,
                    "device": tensor.device,
                    "requires_grad": tensor.requires_grad,
                    "leaf": tensor.is_leaf,
                    "inference": tensor.is_inference(),
                    "grad": None if grad is None else (id(grad), grad.numpy().tobytes(), grad._version),
                    "hooks": None if tensor._backward_hooks is None else list(tensor._backward_hooks),
                }
    return seen


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


class Boom(Exception):
    pass


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


def raise_at_call(count):
    calls = []

    def func(y):
        calls.append(1)
        if len(calls) == count:
            raise Boom("half way")
        return y

    return func


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
    """What forward writes to the model must not arrive at the user's."""

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


def count(model):
    model.seen.add_(1)


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


# evaluation semantics


class Noisy(torch.nn.Module):
    """Dropout as a module, as a function and over channels; batch norm; and a branch on the flag itself."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 6, 5, padding=2)
        self.norm = torch.nn.BatchNorm1d(6)
        self.dropout = torch.nn.Dropout(0.5)
        self.channels = torch.nn.Dropout1d(0.5)
        self.fc = torch.nn.Linear(6, 2)

    def forward(self, X):
        X = self.channels(torch.relu(self.norm(self.conv(X))))
        X = torch.nn.functional.dropout(X, 0.3, training=self.training)
        y = self.fc(self.dropout(X).mean(2))
        return y + 100 * X.amax(2)[:, :2] if self.training else y


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


# the world outside of the model


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


# determinism and threads


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
