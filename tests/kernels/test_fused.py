"""Layers that run as one: the kernel against its formula, and whole models. Without a GPU it runs in Triton's interpreter."""

import copy
import importlib
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import yuzu
from tests.capturing import decide
from tests.kernels.layers import Layers, blocks_of
from tests.laws.random_models import brute_force, random_model, relative_error, tensors_of
from tests.oracle import assert_right, errors, oracle
from tests.run.test_not_finite import assert_same_pattern
from tests.small_models import randomized, sequences
from yuzu._engine.handlers import convolution
from yuzu._engine.kernels import fused as fused_kernel
from yuzu._engine.kernels import triton as kernels_of
from yuzu._engine.named_edits import NamedEdits
from yuzu._engine.request import Selection
from yuzu._engine.store.trials import Asked, Pairs, Trials, run_trials

L = 48


@pytest.fixture
def runs(monkeypatch):
    """How many kernels were launched."""
    count, original = [], fused_kernel.convolve

    def convolve(*args, **kwargs):
        count.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(fused_kernel, "convolve", convolve)
    return count


def formula(x, weight, first, edits, width, dilation, stride, rectified, residual):
    """In float64, and in Python."""
    n, held, _ = x.shape
    result = torch.zeros(n, width, weight.shape[1], dtype=torch.float64)
    x, weight = x.double().cpu(), weight.double().cpu()
    for i in range(n):
        site = i // edits
        for j in range(width):
            for t in range(weight.shape[0]):
                read = j * stride + int(first[site]) + t * dilation
                if 0 <= read < held:
                    result[i, j] += weight[t] @ x[i, read]
            if rectified is not None:
                value = rectified.values[int(rectified.row[site]) + j].double().cpu()
                result[i, j] = torch.maximum(result[i, j] + value.clamp(max=0), -value.clamp(min=0))
            if residual is not None:
                read = j + int(residual.shift[site])
                if 0 <= read < residual.values.shape[1]:
                    result[i, j] += residual.values[i, read].double().cpu()
    return result

# channels before and after, taps, dilation, stride, width held, edits, sites; with a rectifier, with a residual
KERNELS = {
    "residual layer": (64, 64, 3, 4, 1, 13, 3, 5, True, True),
    "without a rectifier": (32, 32, 11, 1, 1, 5, 3, 40, False, True),
    "without a residual": (40, 24, 3, 2, 1, 9, 3, 7, True, False),
    "positions of a head": (64, 16, 20, 1, 8, 30, 3, 3, False, False),
    "stretches": (16, 16, 3, 32, 1, 45, 1, 17, True, True),
    "stretches wider than the dilation": (16, 20, 3, 16, 1, 50, 4, 6, True, True),
    "several strips": (32, 150, 3, 1, 1, 7, 1, 9, True, True),
    "a stride": (16, 16, 5, 1, 3, 17, 3, 4, True, False),
    "one site": (16, 16, 3, 1, 1, 1, 1, 1, False, False),
    "protein": (16, 16, 3, 2, 1, 6, 19, 5, True, True),
}  # fmt: skip


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("name", KERNELS)
def test_the_kernel_is_its_formula(name, precision, kernels):
    cin, cout, taps, dilation, stride, held, edits, sites, rectifies, adds = KERNELS[name]
    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "medium" else torch.float32
    width = (held + (taps - 1) * dilation) // stride + 3

    def numbers(low, high):
        return torch.randint(low, high, (sites,), dtype=torch.int32).to(kernels)

    x = torch.randn(sites * edits, held, cin).to(dtype).to(kernels)
    weight = (torch.randn(taps, cout, cin) / (taps * cin) ** 0.5).to(dtype).to(kernels)
    first = numbers(-(taps - 1) * dilation - 4, -(taps - 1) * dilation + 3)
    first[-1] = held + 5  # nothing is read at all
    rectified = fused_kernel.BeforeReLU(torch.randn(90 + width, cout).to(kernels), numbers(0, 90)) if rectifies else None
    residual = fused_kernel.Residual(torch.randn(len(x), held + 1, cout).to(kernels), numbers(-dilation - 3, 3)) if adds else None
    stretches = fused_kernel.spans_of(width, held, taps, dilation, int(first[0]))
    assert (len(stretches) > 1) == name.startswith("stretches")
    kept = x.clone()
    form = fused_kernel.Form(edits, width, dilation, stride, stretches)
    after = fused_kernel.After(rectified, residual, torch.float32)
    found = fused_kernel.convolve(x, weight, first, form, precision, after)
    truth = formula(x, weight, first, edits, width, dilation, stride, rectified, residual)
    assert found.shape == truth.shape and found.dtype == torch.float32 and torch.equal(x, kept)
    error = relative_error(found.cpu(), truth)
    # matrix units add up products of bfloat16 with fewer digits than float32 has: 1.1e-6 for 1,280 of them on an H200
    on_gpu = {"high": 2e-3, "medium": 5e-6, "highest": 1e-6}
    assert error < (on_gpu[precision] if kernels == "cuda" else 1e-6)
    lower = fused_kernel.convolve(x, weight, first, form, precision, replace(after, dtype=torch.bfloat16))
    assert lower.dtype == torch.bfloat16 and relative_error(lower.double().cpu(), truth) < 4e-3


def test_no_places_beyond_32_bits(monkeypatch, kernels):
    """Groups are smaller where a group's places would not fit: the result is the same."""
    torch.manual_seed(0)
    x, weight = torch.randn(12, 9, 16).to(kernels), torch.randn(3, 16, 16).to(kernels)
    first = torch.full((4,), -2, dtype=torch.int32).to(kernels)
    found = fused_kernel.convolve(x, weight, first, fused_kernel.Form(3, 11), "highest")
    monkeypatch.setattr(fused_kernel, "MOST_PLACES", 3 * 11 * 16 + 1)
    launched = []
    original = fused_kernel._span_table
    monkeypatch.setattr(fused_kernel, "_span_table", lambda *args: launched.append(args) or original(*args))
    assert relative_error(fused_kernel.convolve(x, weight, first, fused_kernel.Form(3, 11), "highest"), found) < 1e-6
    assert [mutants for _, _, mutants, *_ in launched] == [3], "one site in a group"


class Profile(nn.Module):
    """A BPNet: dilated residual layers, a profile of which the middle is kept, and counts of what that needs."""

    def __init__(self, n_outputs=1, layers=3):
        super().__init__()
        self.first = nn.Conv1d(4, 16, 7, padding=3)
        self.dilated = nn.ModuleList(nn.Conv1d(16, 16, 3, padding=2**i, dilation=2**i) for i in range(1, layers + 1))
        self.norm = nn.BatchNorm1d(16)
        self.profile, self.counts = nn.Conv1d(16, n_outputs, 9, padding=4), nn.Linear(16, 2)

    def forward(self, x):
        x = torch.relu(self.first(x))
        for i, layer in enumerate(self.dilated):
            y = layer(x)
            x = x + torch.relu(self.norm(y) if i == 1 else y)
        return self.profile(x)[:, :, 12:36], self.counts(x[:, :, 8:40].mean(2))

MODELS = {
    "profile": Profile,
    "two strands": lambda: Profile(2, 2),
    "wide windows": lambda: Profile(3, 4),
    "valid": lambda: Layers(lambda m, x: m.c(m.a(x).relu()).relu(), c=nn.Conv1d(16, 20, 4)),
    "strided": lambda: Layers(lambda m, x: m.c(x).relu(), c=nn.Conv1d(16, 17, 5, stride=3, padding=2)),
    "kernel of 1": lambda: Layers(lambda m, x: x + m.c(x).relu(), c=nn.Conv1d(16, 16, 1)),
    "same": lambda: Layers(lambda m, x: m.c(x).relu() + m.a(x), c=nn.Conv1d(16, 16, 6, padding="same")),
    "cropped": lambda: Layers(lambda m, x: m.b((x + m.a(x).relu())[:, :, 5:-7])[:, :, 1:]),
    "strided and cropped": lambda: Layers(lambda m, x: m.c(x).relu()[:, :, 2:9], c=nn.Conv1d(16, 17, 5, stride=3, padding=2)),
    "sum of both": lambda: Layers(lambda m, x: m.a(x).relu() + m.b(x).relu()),
    "what is computed later": lambda: Layers(lambda m, x: m.a(x).relu() + torch.sigmoid(x)),
    "two wait": lambda: Layers(lambda m, x: (m.a(x).relu() + x * 0.5) + (m.b(x).relu() + torch.tanh(x))),
    "the input goes": lambda: Layers(lambda m, x: m.b(y := m.a(x).relu()) + m.g(y), g=nn.Conv1d(16, 16, 1, groups=4)),
    "pre-activation": lambda: Layers(lambda m, x: x + m.b(m.n(m.a(m.m(x).relu())).relu()), n=nn.BatchNorm1d(16), m=nn.BatchNorm1d(16)),
    "flattened": lambda: Layers(lambda m, x: m.d((x + m.a(x).relu()).flatten(1)), d=nn.Linear(16 * L, 3)),
    "pooled": lambda: Layers(lambda m, x: m.b(nn.functional.max_pool1d(m.a(x).relu(), 3)).relu().amax(2)),
}  # fmt: skip


def asked(device, **settings):
    return dict(device=device, output="delta", **settings)


@pytest.mark.filterwarnings("error::yuzu.YuzuWarning")
@pytest.mark.parametrize("name", MODELS)
def test_models(name, kernels, runs):
    model, X = randomized(MODELS[name](), seed=4).eval(), sequences(1, L)
    X[0, :, 20] = 0  # an N
    made = yuzu.precompute(model, L, conv="fused", device=kernels)
    assert "fused" in made.decisions.ways.values()
    before = len(runs)
    assert_right(yuzu.yuzu_ism(model, X, made, **asked(kernels)), model, X, output="delta", device=kernels)
    assert len(runs) > before, "no kernel was launched"
    assert_right(yuzu.yuzu_ism(model, X, made, device=kernels, start=5, end=9), model, X, device=kernels, start=5, end=9)
    motif = dict(ranges=[(0, 4), (21, 25), (L - 4, L)], replace_with="TGAC")
    found = yuzu.yuzu_ism(model, X, made, **asked(kernels), **motif)
    letters = torch.eye(4)[:, [3, 2, 0, 1]]
    assert_right(found, model, X, output="delta", device=kernels, ranges=motif["ranges"], replace_with=letters)


@pytest.mark.parametrize("sites", [1, 20])
def test_chunks_across_sequences(sites, kernels, runs, monkeypatch):
    """Of positions of all sequences, when the ends leave little of most windows; one sequence has an N."""
    model, X = randomized(Profile(), seed=4).eval(), sequences(3, L)
    X[2, :, 11] = 0
    made = yuzu.precompute(model, L, conv="fused", device=kernels)
    decide(made, sites=sites)
    ism = importlib.import_module("yuzu._engine.store.scoring")
    original, seen = ism.batches, []

    def batches(group, at_once, regular, across):
        for part in original(group, at_once, regular, across=True):
            seen.append(part)
            yield part

    monkeypatch.setattr(ism, "batches", batches)
    found = yuzu.yuzu_ism(model, X, made, batch_size=3, end=16, **asked(kernels))
    assert_right(found, model, X, output="delta", device=kernels, end=16)
    if sites > 3:
        assert any(len(set(part.sequence)) == 3 and len(part.sequence) <= sites for part in seen)
    assert runs


@pytest.mark.parametrize("places", ["one", "many"])
def test_trials_of_many_sequences(places, kernels, runs):
    """With edits at one position of every sequence the reference is read on windows alone."""
    model, X = randomized(Profile(), seed=4).eval(), sequences(5, L)
    made = yuzu.precompute(model, L, conv="fused", device=kernels)
    position = np.full(10, 20) if places == "one" else np.tile([0, 20, 30, 47, 5], 2)
    edits = NamedEdits(np.repeat(np.arange(5), 2), position, np.arange(10)[:, None] % 4, np.arange(10))
    trials = Trials(X, (), [edits], Pairs(np.zeros(0, int), X[:0], np.zeros(0, int)))
    found = {}

    def take(outcome):
        for i, number in enumerate(outcome.number):
            found[number] = [change[i].cpu() for change in outcome.change]

    run_trials(model, made, trials, Asked(torch.device(kernels), Selection()), take)
    assert runs
    with torch.no_grad():
        double = copy.deepcopy(model).double()
        before, after = (tensors_of(double(x.double())) for x in (X[edits.row], edits.mutants(X)))
    for head, (a, b) in enumerate(zip(before, after, strict=True)):
        mine = torch.stack([found[number][head] for number in range(10)]).double()
        assert (mine - (b - a)).norm() <= 1e-5 * (b - a).norm()


def test_medium(kernels, runs):
    """Differences stay in bfloat16 between blocks; what leaves them is float32."""
    model, X = randomized(Profile(), seed=4).eval(), sequences(2, L)
    made = yuzu.precompute(model, L, conv="fused", precision="medium", device=kernels)
    assert made.decisions.precision == "medium"
    found = yuzu.yuzu_ism(model, X, made, **asked(kernels))
    for mine, truth in zip(found, oracle(model, X)["delta"], strict=True):
        assert mine.dtype == torch.float32 and 1e-5 < errors(mine, truth)[0] < 2e-2
    assert runs
    plan = made.bind(model, L, 4, (), torch.device(kernels)).plan
    low_precision = [block.low_precision_result(FakeRun(plan)) for block in blocks_of(plan)]
    assert low_precision == [True, True, True, False], "the profile is returned"


class FakeRun:
    precision = "medium"

    def __init__(self, plan):
        self.plan, self.choice = plan, plan.choices.__getitem__


@pytest.mark.parametrize("seed", range(1, 25, 4))
def test_random_architectures(seed, kernels, monkeypatch):
    """With convolutions of any number of channels."""
    monkeypatch.setattr(convolution, "LEAST_FUSED_CHANNELS", 1)
    drawn = random_model(seed)
    model, X, args = drawn.model, drawn.X, drawn.args
    with warnings.catch_warnings():
        warnings.simplefilter("error", yuzu.YuzuWarning)
        made = yuzu.precompute(model, X.shape[2], X.shape[1], args=args or None, device=kernels, conv="fused")
    found = tensors_of(yuzu.yuzu_ism(model, X, made, args=args or None, output="delta", device=kernels))
    truth, naive = brute_force(model, X, args), brute_force(model, X, args, torch.float32)
    for mine, theirs, t in zip(found, naive, truth, strict=True):
        allowed = max(1e-5 * float(t.norm()), float((theirs.double() - t).norm()), 1e-12)
        assert float((mine.double() - t).norm()) <= allowed, drawn.blocks


def test_the_models_weights_may_change(kernels):
    model, X = randomized(Profile(), seed=4).eval(), sequences(1, L)
    made = yuzu.precompute(model, L, conv="fused", device=kernels)
    yuzu.yuzu_ism(model, X, made, device=kernels, end=1)
    randomized(model, seed=9)
    found = yuzu.yuzu_ism(model, X, made, end=9, **asked(kernels))
    assert_right(found, model, X, output="delta", device=kernels, end=9)


def test_saved_for_a_machine_without_kernels(kernels, runs, monkeypatch, tmp_path):
    model, X = randomized(Profile(), seed=4).eval(), sequences(1, L)
    yuzu.precompute(model, L, conv="fused", device=kernels).save(tmp_path / "made")
    monkeypatch.setattr(kernels_of, "why_not", lambda device: "none here")
    made = yuzu.Precomputation.load(tmp_path / "made", device="cpu")
    assert "fused" in made.decisions.ways.values()
    del runs[:]
    assert_right(yuzu.yuzu_ism(model, X, made, **asked("cpu")), model, X, output="delta")
    assert not runs


@pytest.mark.filterwarnings("error::yuzu.YuzuWarning")
def test_asked_for_where_there_are_none(monkeypatch):
    monkeypatch.setattr(kernels_of, "why_not", lambda device: "none here")
    model, X = randomized(Profile(), seed=4).eval(), sequences(1, L)
    made = yuzu.precompute(model, L, conv="fused", device="cpu")
    assert "fused" not in made.decisions.ways.values()
    assert_right(yuzu.yuzu_ism(model, X, made, **asked("cpu")), model, X, output="delta")


def test_a_model_in_float64_runs_one_by_one(kernels, runs):
    model, X = randomized(Profile(), seed=4).double().eval(), sequences(1, L, dtype=torch.float64)
    made = yuzu.precompute(model, L, conv="fused", device=kernels)
    assert "fused" not in made.decisions.ways.values()
    assert_right(yuzu.yuzu_ism(model, X, made, **asked(kernels)), model, X, output="delta", device=kernels)
    assert not runs


@pytest.mark.parametrize(("precision", "wrong"), [("highest", 1.01), ("highest", float("nan")), ("medium", 2.0)])
def test_wrong_kernels_are_not_used(wrong, precision, kernels, monkeypatch):
    original = fused_kernel.convolve
    monkeypatch.setattr(fused_kernel, "convolve", lambda *args, **kwargs: original(*args, **kwargs) * wrong)
    model, X = randomized(Profile(), seed=4).eval(), sequences(1, L)
    with pytest.warns(yuzu.YuzuWarning, match="Layers run one by one.*(off by|not finite)"):
        made = yuzu.precompute(model, L, conv="fused", precision=precision, device=kernels)
    assert "fused" not in made.decisions.ways.values() and made.decisions.precision == precision
    found = yuzu.yuzu_ism(model, X, made, **asked(kernels))
    if precision == "highest":
        assert_right(found, model, X, output="delta", device=kernels)
    else:
        assert all(errors(f, t)[0] < 2e-2 for f, t in zip(found, oracle(model, X)["delta"], strict=True))


def test_kernels_that_fail_later(kernels, monkeypatch):
    """On a smaller GPU than they were chosen on, say: the layers run one by one, with a warning, and are right."""
    model, X = randomized(Profile(), seed=4).eval(), sequences(1, L)
    made = yuzu.precompute(model, L, conv="fused", device=kernels)

    def fails(*args, **kwargs):
        raise kernels_of.KernelError("Triton fails: OutOfResources: shared memory")

    monkeypatch.setattr(fused_kernel, "convolve", fails)
    with pytest.warns(yuzu.YuzuWarning, match="Layers run one by one.*shared memory"):
        found = yuzu.yuzu_ism(model, X, made, **asked(kernels))
    assert_right(found, model, X, output="delta", device=kernels)
    with warnings.catch_warnings():
        warnings.simplefilter("error", yuzu.YuzuWarning)
        again = yuzu.yuzu_ism(model, X, made, **asked(kernels))
    assert_right(again, model, X, output="delta", device=kernels)


def test_a_launch_that_fails_says_so(kernels, monkeypatch):
    def fails(*args, **kwargs):
        raise ValueError("no room\nand more")

    x, weight = torch.randn(3, 5, 16).to(kernels), torch.randn(3, 16, 16).to(kernels)
    first = torch.zeros(1, dtype=torch.int32).to(kernels)
    monkeypatch.setattr(fused_kernel, "fused_convolution", {(1,): fails})
    with pytest.raises(kernels_of.KernelError, match="Triton fails: ValueError: no room$"):
        fused_kernel.convolve(x, weight, first, fused_kernel.Form(3, 5), "highest")
    monkeypatch.setattr(fused_kernel, "MOST_PLACES", 3 * 5 * 16 - 1)
    with pytest.raises(kernels_of.KernelError, match="one site hold 240 elements"):
        fused_kernel.convolve(x, weight, first, fused_kernel.Form(3, 5), "highest")


class Rises(nn.Module):
    """Where the reference is as large as a mask, what is added is carried as values, and the convolution runs alone."""

    def __init__(self, channels):
        super().__init__()
        self.first, self.into, self.last = nn.Conv1d(4, 16, 5, padding=2), nn.Conv1d(16, channels, 1), nn.Conv1d(16, channels, 3, padding=1)
        self.rises = nn.Conv1d(4, channels, 9, padding=4)

    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.last(h) + (self.into(h) + torch.exp(self.rises(x)))


@pytest.mark.parametrize("channels", [4, 8])
@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_plans_that_share_weights(order, channels, kernels):
    """What a plan without some block lays out is not taken for another's."""
    model, X = randomized(Rises(channels), seed=4).eval(), torch.zeros(2, 4, L)
    with torch.no_grad():
        model.rises.weight.zero_()[:, 0] = 20 / 9  # e^20 for nothing but A
    X[0, 0] = 1
    X[1] = sequences(1, L)[0]
    made = yuzu.precompute(model, L, conv="fused", device=kernels)
    found = yuzu.yuzu_ism(model, X[order], made, batch_size=1, **asked(kernels))
    other = yuzu.yuzu_ism(model, X[order], yuzu.precompute(model, L, conv="windows", device=kernels), batch_size=1, **asked(kernels))
    one = order.index(1)
    assert_right(found[one : one + 1], model, X[1:], output="delta", device=kernels)
    assert torch.allclose(found, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


class Fragile(nn.Module):
    """A logarithm of what only a mutant falls below, before what runs as one."""

    def __init__(self, operation):
        super().__init__()
        self.operation = operation
        self.first, self.into = nn.Conv1d(4, 3, 5, padding=2, bias=False), nn.Conv1d(3, 16, 1)
        self.a, self.b = nn.Conv1d(16, 16, 5, padding=4, dilation=2), nn.Conv1d(16, 2, 3, padding=1)
        with torch.no_grad():
            self.first.weight.zero_()[:, 0] = 1 / 5

    def forward(self, x):
        y = self.first(x)
        y = self.into(self.operation(torch.where(torch.arange(L, device=x.device) == 23, y - 0.9, y)))
        return self.b(y + self.a(y).relu())


@pytest.mark.parametrize(
    ("operation", "output"),
    [(torch.log, "l2"), (torch.log, "prediction"), (torch.sqrt, "delta"), (lambda y: 1 / torch.relu(y), "delta")],
    ids=["log, l2", "log, prediction", "root", "inverse"],
)
def test_what_is_infinite_stays_so_and_nothing_else(operation, output, kernels, runs):
    torch.manual_seed(0)
    model, X = Fragile(operation), torch.zeros(1, 4, L)
    X[:, 0] = 1
    X[0, :, 30] = 0  # an N
    made = yuzu.precompute(model, L, conv="fused", device=kernels)
    found = yuzu.yuzu_ism(model, X, made, output=output, device=kernels)
    assert_same_pattern(found, oracle(model, X)[output], 1e-5)
    assert runs
