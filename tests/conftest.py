"""Shared fixtures, and the oracle: in-silico saturation mutagenesis by brute force, written without the library.

Environment: ``YUZU_TEST_THREADS`` is the number of threads torch may use (default 1). With ``YUZU_TEST_DEVICES=cuda``
the tests on CUDA fail where there is no such device, instead of being skipped; with ``YUZU_TEST_DEVICES=cpu`` they are
always skipped.
"""

import contextlib
import copy
import dataclasses
import gc
import os
import sys

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before yuzu is imported: kernels are tested on the CPU
import torch.nn.functional as F
from torch.utils import _pytree as pytree

torch.set_num_threads(int(os.environ.get("YUZU_TEST_THREADS", "1")))
gc.set_threshold(
    100_000, 20, 50
)  # torch.export makes many objects: with Python's default a fifth of the time is collection

EXACT = 1e-5  # relative L2 error that is always good enough in float32
LARGEST = 1e-4  # largest error of any one score, relative to the largest score
FLOAT64 = 1e-10  # both, in float64


@pytest.fixture(scope="session", params=["cpu", "cuda"])
def device(request):
    """Each device in turn."""
    wanted = os.environ.get("YUZU_TEST_DEVICES", "")
    if request.param == "cuda":
        if wanted == "cpu":
            pytest.skip("YUZU_TEST_DEVICES=cpu")
        if not torch.cuda.is_available():
            if "cuda" in wanted:
                pytest.fail(f"YUZU_TEST_DEVICES={wanted} asks for CUDA, which is not available")
            pytest.skip("CUDA is not available")
    return request.param


@pytest.fixture(autouse=True)
def plans_are_not_compared_with_small_models(monkeypatch):
    """By the clock, and on a busy machine, a plan of a small model may lose to the model; tests are about the plan."""
    from yuzu._engine.tune import measure

    monkeypatch.setattr(measure, "WORTH_COMPARING", max(measure.WORTH_COMPARING, 2.0))


@pytest.fixture(autouse=True)
def stages_are_not_said_on_slow_machines(monkeypatch):
    """What takes more than three seconds says so on standard error, which tests compare with nothing."""
    from yuzu._engine import progress

    monkeypatch.setattr(progress, "PATIENCE", 600.0)


def decide(made, **changes):
    """Have a precomputation decide otherwise, also where it is in use already."""
    made.decisions = dataclasses.replace(made.decisions, **changes)
    for known in made._used.values():
        for one in known:
            one.used.decisions = made.decisions
            one.used._forget_plan()


_captured = {}


@contextlib.contextmanager
def capturing_once():
    """Capture a model once, however often it is precomputed in other ways: most of a small model's time goes there.

    Only for tests that are not about capturing, nor about what is kept or refused.
    """
    # where a precomputation is made, and where it is put to use
    modules = [sys.modules[f"yuzu._engine.store.{name}"] for name in ("making", "precomputation")]
    original = modules[0].capture

    def capture(model, shape, *rest):
        key = (id(model), tuple(shape))
        if key not in _captured:
            _captured[key] = (original(model, shape, *rest), model)  # with the model, so that its id stays its own
        return _captured[key][0]

    for module in modules:
        module.capture = capture
    try:
        yield
    finally:
        for module in modules:
            module.capture = original


@pytest.fixture
def captured_once():
    with capturing_once():
        yield


def sequences(n, length, n_choices=4, seed=0, dtype=torch.float32):
    """Random one-hot sequences ``(n, C, L)``."""
    letters = torch.randint(n_choices, (n, length), generator=torch.Generator().manual_seed(seed))
    return F.one_hot(letters, n_choices).permute(0, 2, 1).to(dtype)


def randomized(model, seed=0):
    """The model with every parameter and buffer drawn anew from a seed: no bias is zero, no running variance one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                value = 0.5 + noise.abs()
            elif tensor.dim() > 1:
                value = noise / (tensor[0].numel() ** 0.5) * 1.5
            elif name.endswith("weight"):
                value = 1 + 0.3 * noise
            else:
                value = 0.3 * noise
            tensor.copy_(value)
    return model


def oracle(
    model,
    X,
    *,
    args=(),
    func=None,
    target=None,
    start=0,
    end=None,
    ranges=None,
    replace_with=None,
    dtype=torch.float64,
    device="cpu",
    one_by_one=False,
):
    """Run ``model`` on every mutant of every sequence: a sequence and its mutants in one batch, or each alone.

    Returns the predictions and the signed deltas, each in the container that the model (after ``func``) returns, and
    the L2 scores. ``replace_with`` is a ``(C, width)`` tensor here.
    """
    twin = copy.deepcopy(model).to(device=device, dtype=dtype).eval()
    X = torch.as_tensor(X).to(device=device, dtype=dtype)
    args = [torch.as_tensor(a).to(device) for a in args]
    args = [a.to(dtype) if a.is_floating_point() else a for a in args]
    n, c, length = X.shape
    if ranges is None and replace_with is None:
        positions = range(length)[start:end]
        edits = [(p, p + 1, torch.eye(c)[a][:, None]) for a in range(c) for p in positions]
        shape = (c, len(positions))
    else:
        places = [(p, p + 1) for p in range(length)[start:end]] if ranges is None else ranges
        given = torch.zeros(c, places[0][1] - places[0][0]) if replace_with is None else replace_with
        edits = [(first, stop, given) for first, stop in places]
        shape = (len(places),)

    def run(rows, i):
        y = twin(rows, *(a[i : i + 1].expand(len(rows), *a.shape[1:]).clone() for a in args))
        leaves, spec = pytree.tree_flatten(y if func is None else func(y))
        leaves = [leaf if target is None else leaf[(slice(None), target)] for leaf in leaves]
        return [leaf.detach().double().cpu() for leaf in leaves], spec

    predictions, deltas = [], []
    with torch.no_grad():
        for i in range(n):
            rows = X[i : i + 1].repeat(1 + len(edits), 1, 1)  # the first is the reference
            for row, (first, stop, written) in zip(rows[1:], edits, strict=True):
                row[:, first:stop] = written.to(row)
            if one_by_one:
                found = [run(row[None], i) for row in rows]
                leaves, spec = [torch.cat(leaf) for leaf in zip(*(f[0] for f in found), strict=True)], found[0][1]
            else:
                leaves, spec = run(rows, i)
            predictions.append([y[1:].reshape(*shape, *y.shape[1:]) for y in leaves])
            deltas.append([(y[1:] - y[:1]).reshape(*shape, *y.shape[1:]) for y in leaves])
    prediction = [torch.stack(leaf) for leaf in zip(*predictions, strict=True)]
    delta = [torch.stack(leaf) for leaf in zip(*deltas, strict=True)]
    squares = sum(d.reshape(n, *shape, -1).square().sum(-1) for d in delta)
    return {
        "prediction": pytree.tree_unflatten(prediction, spec),
        "delta": pytree.tree_unflatten(delta, spec),
        "l2": squares.sqrt(),
    }


def errors(result, truth):
    """Relative L2 error, and largest error over the largest value."""
    result, truth = torch.as_tensor(result).double(), torch.as_tensor(truth).double()
    assert result.shape == truth.shape, f"shape {tuple(result.shape)}, expected {tuple(truth.shape)}"
    assert bool(torch.isfinite(result).all()), "result is not finite"
    difference = result - truth
    if float(truth.abs().max()) == 0:
        return float(difference.norm()), float(difference.abs().max())
    return float(difference.norm() / truth.norm()), float(difference.abs().max() / truth.abs().max())


def assert_close(result, truth, tolerance=EXACT, largest=LARGEST):
    """Both errors of every tensor of the result, which must sit in the same container as the truth."""
    found, spec = pytree.tree_flatten(result)
    wanted, wanted_spec = pytree.tree_flatten(truth)
    assert spec == wanted_spec, f"container {spec}, expected {wanted_spec}"
    for a, b in zip(found, wanted, strict=True):
        relative, worst = errors(a, b)
        assert relative <= tolerance, f"relative L2 error {relative:.2e} > {tolerance:.2e}"
        assert worst <= largest, f"largest error {worst:.2e} of the largest score > {largest:.2e}"


def assert_right(result, model, X, *, output="l2", device="cpu", **kwargs):
    """The result against brute force in float64: within 1e-5, or float32 brute force's own error if that is larger.

    For a float64 model within 1e-10.
    """
    truth = oracle(model, X, **kwargs)[output]
    assert any(float(t.abs().max()) > 1e-3 for t in pytree.tree_leaves(truth)), "the test is empty: nothing changes"
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if dtype == torch.float64:
        for leaf in pytree.tree_leaves(result):
            assert torch.as_tensor(leaf).dtype == torch.float64
        assert_close(result, truth, FLOAT64, FLOAT64)
        return
    assert pytree.tree_structure(result) == pytree.tree_structure(truth)
    for i, (leaf, t) in enumerate(zip(pytree.tree_leaves(result), pytree.tree_leaves(truth), strict=True)):
        assert torch.as_tensor(leaf).dtype == torch.float32
        tolerance = EXACT
        if errors(leaf, t)[0] > tolerance:
            naive = oracle(model, X, dtype=torch.float32, device=device, **kwargs)[output]
            tolerance = max(tolerance, errors(pytree.tree_leaves(naive)[i], t)[0])
        assert_close(leaf, t, tolerance, LARGEST)


def assert_same(a, b):
    """Bitwise equality of two results, container and kind of array included."""
    found, spec = pytree.tree_flatten(a)
    wanted, wanted_spec = pytree.tree_flatten(b)
    assert spec == wanted_spec
    for x, y in zip(found, wanted, strict=True):
        assert type(x) is type(y) and x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def one_hot(text, alphabet="ACGT"):
    """``(C, len(text))``, written out by hand."""
    table = torch.zeros(len(alphabet), len(text))
    for i, letter in enumerate(text):
        table[alphabet.index(letter), i] = 1
    return table


class Net(torch.nn.Module):
    """Convolutions, batch norm, pooling, dropout and two linear layers: ``(n, 3)`` or ``(n, n_outputs)``."""

    def __init__(self, length=30, n_choices=4, n_outputs=3, width=6):
        super().__init__()
        self.conv1 = torch.nn.Conv1d(n_choices, width, 5, padding=2)
        self.norm = torch.nn.BatchNorm1d(width)
        self.relu1 = torch.nn.ReLU()
        self.pool = torch.nn.MaxPool1d(2)
        self.conv2 = torch.nn.Conv1d(width, width, 3, padding=1)
        self.relu2 = torch.nn.ReLU()
        self.dropout = torch.nn.Dropout(0.5)
        self.fc1 = torch.nn.Linear(width * (length // 2), 8)
        self.fc2 = torch.nn.Linear(8, n_outputs)

    def forward(self, X):
        X = self.pool(self.relu1(self.norm(self.conv1(X))))
        X = self.dropout(self.relu2(self.conv2(X)))
        return self.fc2(torch.relu(self.fc1(X.flatten(1))))


class Profile(torch.nn.Module):
    """A BPNet in small: a profile ``(n, 2, L)`` and log counts ``(n, 1)``."""

    def __init__(self, n_choices=4, width=5):
        super().__init__()
        self.first = torch.nn.Conv1d(n_choices, width, 5, padding=2)
        self.dilated = torch.nn.Conv1d(width, width, 3, padding=2, dilation=2)
        self.profile = torch.nn.Conv1d(width, 2, 5, padding=2)
        self.counts = torch.nn.Linear(width, 1)

    def forward(self, X):
        X = torch.relu(self.first(X))
        X = X + torch.relu(self.dilated(X))
        return self.profile(X), self.counts(X.mean(2))


@pytest.fixture(scope="session")
def net():
    """One `Net` for sequences of length 30."""
    return randomized(Net(), seed=1).eval()


@pytest.fixture(scope="session")
def profile():
    """One `Profile`; its output has two tensors."""
    return randomized(Profile(), seed=2).eval()
