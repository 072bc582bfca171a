"""Blocks of positions and taps that are multiplied at points: what comes out, how exact it is, and what it takes."""

import itertools

import pytest
import torch
from torch import nn

import yuzu
from tests.oracle import assert_right, errors, oracle
from tests.small_models import sequences
from yuzu._engine.handlers.convolution import Convolution
from yuzu._engine.kernels import onednn as onednn_products
from yuzu._engine.tune import ways as trial_ways
from yuzu._engine.ways import winograd
from yuzu._engine.ways.call import Call, Shape
from yuzu._engine.ways.convolution import WAYS
from yuzu._engine.ways.winograd import Form

L = 60
FORMS = [Form(m, r) for m in range(2, 8) for r in range(2, 10 - m)]


class MadeOnce:
    """What a `Call` needs of a run."""

    precision = "highest"

    def __init__(self):
        self.kept = {}

    def derived(self, key, sources, make):
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]


def call_of(width, kernel, dilation, cin, cout, dtype, device, wanted=None, mutants=5):
    torch.manual_seed(width * 100 + kernel)
    x = torch.randn(mutants, 1, width, cin, dtype=dtype, device=device)
    weight = torch.randn(cout, cin, kernel, dtype=dtype, device=device)
    return Call(MadeOnce(), ("layer",), x, None, weight, [weight], dilation, 1, wanted=wanted)


def direct(call):
    """The convolution by PyTorch, in float64."""
    x, weight = call.x.flatten(0, 1).double().transpose(1, 2), call.kernel.double()
    found = nn.functional.conv1d(x, weight, padding=call.reach, dilation=call.dilation).transpose(1, 2)
    first, stop = call.positions
    return found[:, first:stop]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dilation", [1, 3])
def test_every_form_is_the_convolution(form, dilation, device, monkeypatch):
    monkeypatch.setattr(winograd, "best_form", lambda shape: form)
    for width, kernel in itertools.product([1, 2, 5, 6, 13], [2, 3, 7, 8]):
        reached = width + (kernel - 1) * dilation
        for wanted in (None, (1, reached), (reached // 2, reached // 2 + 1), (0, 1)):
            call = call_of(width, kernel, dilation, 3, 4, torch.float64, device, wanted)
            torch.testing.assert_close(winograd.winograd(call), direct(call), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("width,kernel", [(3, 9), (4, 9), (5, 7), (7, 7), (7, 11), (13, 3), (15, 3)])
def test_rounding_is_a_few_times_that_of_direct_products(width, kernel, device):
    call = call_of(width, kernel, 1, 128, 64, torch.float32, device)
    truth = direct(call)
    found, plain = (errors(way(call), truth)[0] for way in (winograd.winograd, WAYS["banded"].run))
    assert plain < found < 6 * plain < 5e-6, "exact to rounding, and by another sum than the direct one"


@pytest.mark.parametrize("width,kernel,dilation", [(3, 9, 1), (7, 11, 1), (15, 3, 1), (12, 7, 3), (13, 7, 3)])
def test_fewer_products_and_the_room_they_take(width, kernel, dilation, device):
    cin, cout = 96, 80
    shape = Shape(width, kernel, dilation, cin, cout, 1)
    form = winograd.best_form(shape)
    call = call_of(width, kernel, dilation, cin, cout, torch.float32, device)
    products = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "product", lambda x, w, out: products.append(x.shape[0] * w.numel()) or torch.mm(x, w, out=out))
        winograd.winograd(call)
    each = width // dilation if width % dilation == 0 else -(-width // dilation)
    assert sum(products) <= 0.8 * len(call.x) * each * dilation * kernel * cin * cout
    there = winograd._transforms(form, width, kernel, dilation, call.positions, torch.float32, call.x.device)
    held = max(there.evaluation.shape[0] * cin, there.interpolation.shape[1] * cout)
    assert held <= winograd.memory(shape) <= 1.5 * held
    (weights,) = call.run.kept.values()
    assert weights.numel() == winograd.memory_of_weights(shape)


def pooled():
    torch.manual_seed(0)
    layers = [nn.Conv1d(4, 96, 9, padding=4), nn.MaxPool1d(2), nn.ReLU(), nn.Conv1d(96, 128, 7, padding=3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * (L // 2), 3)).eval()


@pytest.fixture
def preferred(monkeypatch):
    """Trials that find it the fastest wherever it is tried; what they tried."""
    tried = []

    def seconds(rule, ways, run, window, sites):
        tried.append(list(ways))
        return {way: 1.0 if way == "winograd" else 2.0 for way in ways}

    monkeypatch.setattr(trial_ways, "times_of", seconds)
    return tried


def ways_of(made, model, length, device):
    plan = made.bind(model, length, 4, (), torch.device(device)).plan
    return [plan.choices[rule.node.index].way for rule in plan.rules if isinstance(rule, Convolution)]


def test_chosen_for_many_channels_and_by_a_trial(device, preferred):
    """Where the trial says so; what was derived is made anew when a weight changes in place."""
    model, X = pooled(), sequences(2, L)
    made = yuzu.precompute(model, L, device=device)
    assert ways_of(made, model, L, device)[1] == "winograd" and any("winograd" in ways for ways in preferred)
    assert "winograd" in made.summary()
    assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device=device), model, X, output="delta", device=device)
    with torch.no_grad():
        model[3].weight[5] *= 3
    assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device=device), model, X, output="delta", device=device)


class Followed(nn.Module):
    """A convolution that could be run so on activations, of which almost all are zero with a bias of -3.2, and what
    follows it.
    """

    def __init__(self, follows, bias):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv1d(4, 128, 9), nn.Conv1d(128, 128, 9, bias=False)
        self.last, self.follows = nn.Linear(128, 3), follows
        with torch.no_grad():
            self.first.weight *= 3
            self.first.bias.fill_(bias)

    def forward(self, x):
        return self.last(self.follows(self.second(self.first(x).relu())).mean(2))


UNSTEADY = {
    "norm": lambda y: nn.functional.normalize(y, dim=1),
    "comparison": lambda y: (y > 0).to(y.dtype),
    "root": lambda y: y.relu().sqrt(),
    "power": lambda y: y.relu() ** 0.25,
    "logarithm": lambda y: torch.log(y.relu() + 1e-8),
    "quotient": lambda y: y / (y.abs().sum(1, keepdim=True) + 1e-9),
    "sign, later": lambda y: torch.sign(nn.functional.avg_pool1d(y.tanh(), 2)),
    "choice": lambda y: torch.where(y > 0, 1.0, y),
    "whole numbers": lambda y: y.round(),
    "layer norm": lambda y: nn.functional.layer_norm(y.transpose(1, 2), (128,)).transpose(1, 2),
}
STEADY = {
    "rectifier": torch.relu,
    "smooth": lambda y: nn.functional.gelu(y) + torch.sigmoid(y) * y,
    "pools": lambda y: nn.functional.max_pool1d(y, 2)[:, :, 20:].softmax(1) * 1000,
    "sums": lambda y: torch.cat([y[:, :64] / 3, -y[:, 64:]], 1) * 2 - 1,
}


@pytest.mark.parametrize("name", [*UNSTEADY, *STEADY])
def test_zeros_stay_zeros_where_it_matters(name, device, preferred):
    """Rounding errors in place of zeros are far from small behind a norm: another way is taken there."""
    length = 200
    follows = {**UNSTEADY, **STEADY}[name]
    model, X = Followed(follows, -3.2 if name in UNSTEADY else -1.0).eval(), sequences(1, length)
    made = yuzu.precompute(model, length, device=device)
    assert ("winograd" in ways_of(made, model, length, device)) == (name in STEADY)
    if name in STEADY or name == "norm":  # which direct products do right here
        found = yuzu.yuzu_ism(model, X, made, output="delta", device=device)
        assert_right(found, model, X, output="delta", device=device)


def test_layers_that_are_alike_are_told_apart_by_what_follows(device, preferred):
    """The one in the middle is given the way of those around it only where it is as steady."""

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Conv1d(4, 128, 9, padding=4)
            self.heads = nn.ModuleList([nn.Conv1d(128, 128, 9, padding=4, bias=False) for _ in range(3)])
            self.last = nn.Linear(128, 3)

        def forward(self, x):
            y = self.first(x).relu()
            a, b, c = (head(y) for head in self.heads)
            return self.last((a.tanh() + nn.functional.normalize(b, dim=1) + c.sigmoid()).mean(2))

    model, X = Heads().eval(), sequences(1, L)
    made = yuzu.precompute(model, L, device=device)
    assert [way == "winograd" for way in ways_of(made, model, L, device)[1:]] == [True, False, True]
    assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device=device), model, X, output="delta", device=device)


def test_half_precision_and_layers_that_run_naively_do_not_try_it(device, preferred):
    model = pooled()
    made = yuzu.precompute(model.bfloat16(), L, device=device)
    assert "winograd" not in ways_of(made, model, L, device)
    model = pooled()
    made = yuzu.precompute(model, L, terminal_layers=(nn.Linear,), device=device)
    assert "winograd" not in ways_of(made, model, L, device), "who knows what follows"


def test_whatever_the_default_dtype_is(device):
    model, X = pooled(), sequences(2, L)
    try:
        torch.set_default_dtype(torch.float64)
        for cache in (winograd._points, winograd._transforms, winograd.best_form, onednn_products.is_faster):
            cache.cache_clear()
        for conv in ("auto", "winograd", "banded"):
            made = yuzu.precompute(model, L, conv=conv, device=device)
            found = yuzu.yuzu_ism(model, X, made, output="delta", device=device)
            assert_right(found, model, X, output="delta", device=device)
    finally:
        torch.set_default_dtype(torch.float32)


def test_lowered_products_and_few_channels_do_not_try_it():
    narrow, few = Shape(7, 7, 1, 300, 200, 1), Shape(7, 7, 1, 8, 200, 1)
    entry = WAYS["winograd"]
    assert entry.applies(narrow) is None and entry.may_win(narrow, False)
    assert not entry.may_win(narrow, True) and not entry.may_win(few, False)
    assert "longer" in entry.applies(Shape(winograd.MOST_WIDTH + 1, 7, 1, 128, 128, 1))
    assert "groups" in entry.applies(Shape(7, 7, 1, 128, 128, 2))
    assert "fewer products" in entry.applies(Shape(1, 7, 1, 128, 128, 1))


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_asked_for(precision, device):
    """Also in "medium", where float32 products are more than is asked for, and in float64."""
    model, X = pooled(), sequences(2, L)
    made = yuzu.precompute(model, L, conv="winograd", precision=precision, device=device)
    found = yuzu.yuzu_ism(model, X, made, output="delta", device=device)
    assert errors(found, oracle(model, X)["delta"])[0] < (1e-5 if precision == "highest" else 2e-2)
    double = model.double()
    made = yuzu.precompute(double, L, conv="winograd", precision=precision, device=device)
    assert_right(
        yuzu.yuzu_ism(double, X.double(), made, output="delta", device=device),
        double,
        X.double(),
        output="delta",
        device=device,
    )
