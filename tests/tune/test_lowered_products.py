"""`precompute` measures what products in bfloat16 do to a few mutants, and leaves them where they are plainly wrong."""


import importlib

import numpy as np
import pytest
import torch
from torch import nn

import yuzu
from tests.laws.random_models import random_model
from tests.oracle import assert_right, errors, oracle
from tests.small_models import sequences
from yuzu._engine.derived import Derived
from yuzu._engine.graph import Weights
from yuzu._engine.handlers import over_positions
from yuzu._engine.kernels import products as low_precision_products
from yuzu._engine.plan.plan import make_plan
from yuzu._engine.rewrite.all import capture
from yuzu._engine.run.run import Run
from yuzu._engine.tune.verify import compare, error_of_products
from yuzu._engine.ways import call as convolution_call
from yuzu._engine.ways import convolution as convolution_ways
from yuzu._engine.ways import few_output_channels

L = 60
CPU = torch.device("cpu")


def convolutions():
    torch.manual_seed(0)
    layers = [nn.Conv1d(4, 32, 7, padding=3), nn.ReLU(), nn.Conv1d(32, 32, 5, padding=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv1d(32, 32, 3, padding=1)).eval()


def rows():
    torch.manual_seed(0)
    layers = [nn.Conv1d(4, 8, 7, padding=3), nn.Flatten(), nn.Linear(8 * L, 64), nn.ReLU(), nn.Linear(64, 5)]
    return nn.Sequential(*layers).eval()


MODELS = {"convolutions": convolutions, "rows": rows}


@pytest.fixture
def broken_bfloat16(monkeypatch):
    """Products in bfloat16 that are wrong, as a library's kernel for a new processor may be."""

    def wrong(weight, precision):
        return weight.to(torch.bfloat16) * -2 if precision == "medium" and weight.dtype == torch.float32 else weight

    for module in (low_precision_products, convolution_call, convolution_ways, few_output_channels, over_positions):
        monkeypatch.setattr(module, "in_low_precision", wrong)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("conv", ["auto", "windows", "fold", "gaussian"])
def test_wrong_products_are_not_used(name, conv, broken_bfloat16, device, tmp_path):
    model, X = MODELS[name](), sequences(2, L)
    with pytest.warns(yuzu.YuzuWarning, match=r"precision='medium' runs as 'highest'.*off by \d+%"):
        made = yuzu.precompute(model, L, precision="medium", conv=conv, device=device)
    assert made.settings.precision == "medium" and made.decisions.precision == "highest"
    assert "'medium' products are far off here, so they are 'highest'" in made.summary()
    found = yuzu.yuzu_ism(model, X, made, output="delta", device=device)
    made.save(tmp_path / "made.yuzu")
    again = yuzu.Precomputation.load(tmp_path / "made.yuzu", device=device)
    loaded = yuzu.yuzu_ism(model, X, again, output="delta", device=device)
    if conv == "gaussian":  # which approximates
        for result in (found, loaded):
            assert errors(result, oracle(model, X)["delta"])[0] < 1e-2
    else:
        for result in (found, loaded):
            assert_right(result, model, X, output="delta", device=device)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("conv", ["auto", "windows", "fold", "banded", "blocks", "whole", "cyclic"])
@pytest.mark.filterwarnings("error::yuzu.YuzuWarning")
def test_right_products_are_used(name, conv, device):
    model, X = MODELS[name](), sequences(2, L)
    made = yuzu.precompute(model, L, precision="medium", conv=conv, device=device)
    assert made.decisions.precision == "medium" and "far off" not in made.summary()
    assert 1e-5 < errors(yuzu.yuzu_ism(model, X, made, output="delta", device=device), oracle(model, X)["delta"])[0] < 2e-2


@pytest.mark.parametrize(
    ("channels", "precision", "expected"),
    [
        (1, "medium", torch.float32),
        (16, "medium", torch.float32),
        (low_precision_products.LEAST_LOW_PRECISION_CHANNELS - 1, "medium", torch.float32),
        (low_precision_products.LEAST_LOW_PRECISION_CHANNELS, "medium", torch.bfloat16),
        (64, "medium", torch.bfloat16),
        (64, "high", torch.float32),
        (64, "highest", torch.float32),
    ],
)
def test_kernels_of_few_channels_are_not_lowered_on_a_cpu(channels, precision, expected):
    """oneDNN sums bfloat16 products of fewer than 32 wrongly on some processors."""
    assert low_precision_products.LEAST_LOW_PRECISION_CHANNELS >= 32
    assert low_precision_products.low_precision_kernel(torch.ones(64, channels, 3), precision).dtype == expected


@pytest.mark.filterwarnings("error::yuzu.YuzuWarning")
def test_without_verification_nothing_is_measured(broken_bfloat16):
    made = yuzu.precompute(convolutions(), L, precision="medium", verify=False, device="cpu")
    assert made.decisions.precision == "medium"


@pytest.mark.filterwarnings("error::yuzu.YuzuWarning")
@pytest.mark.parametrize(("low_precision", "full"), [(2.0, 1.9), (np.inf, np.inf)])
def test_differences_that_no_precision_gets_right(low_precision, full, monkeypatch):
    """They are rounding of a large reference, or too large for float32: nothing is gained by float32 products."""
    module = importlib.import_module("yuzu._engine.tune.ladder")
    monkeypatch.setattr(module, "error_of_products", lambda run, X, v: low_precision if run.precision == "medium" else full)
    assert yuzu.precompute(convolutions(), L, precision="medium", device="cpu").decisions.precision == "medium"


def measured(model, precision, X, args=()):
    """The verdict on a model, and the error of its products for the first of some sequences."""
    x, rest = X[:1].float(), tuple(a[:1].float() if a.is_floating_point() else a[:1] for a in args)
    model = model.float()
    plan = make_plan(capture(model, x.shape[1:], rest, torch.float32), precision)
    verdict = compare(model, plan, x, rest, CPU, keep=True)
    run = Run(plan, Weights(model, CPU), Derived(), CPU)
    run.set_reference(x, rest)
    return verdict, lambda: error_of_products(run, x, verdict)


@torch.no_grad()
def test_full_products_are_compared_with_nothing():
    model, x = convolutions(), sequences(1, L)
    verdict = compare(model, make_plan(capture(model, x.shape[1:], (), torch.float32), "highest"), x, (), CPU)
    assert verdict.node is None and not verdict.differences


@torch.no_grad()
@pytest.mark.parametrize("seed", range(12))
def test_the_error_of_any_architecture(seed):
    drawn = random_model(seed)
    verdict, error = measured(drawn.model, "highest", drawn.X, drawn.args)
    assert verdict.node is None
    assert all(torch.isfinite(t).all() for t in verdict.differences)
    assert error() < 1e-3


class Several(nn.Module):
    """A profile, truth values, classes, a row and what no mutation changes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(4, 32, 7, padding=3), nn.ReLU(), nn.Conv1d(32, 32, 5, padding=2))

    def forward(self, x):
        y = self.body(x)
        return y, y[:, 0] > 0, y.argmax(1), y.mean(2), x.sum(1)


@torch.no_grad()
@pytest.mark.parametrize(("precision", "least", "most"), [("highest", 0, 1e-5), ("medium", 1e-5, 3e-2)])
def test_the_error_of_all_outputs_together(precision, least, most):
    torch.manual_seed(0)
    model, X = Several(), sequences(1, L)
    verdict, error = measured(model, precision, X)
    assert verdict.node is None and len(verdict.differences) == 5
    # mutants at both ends and in the middle, two each; the differences of the profile are those that ISM finds
    places, truth = [0, L // 2, L - 1], oracle(Profile(model), X)["delta"]
    letters = X[0].argmax(0)
    rows = [truth[0, (letters[p] + step) % 4, p] for p in places for step in (1, 2)]
    np.testing.assert_allclose(verdict.differences[0], np.stack(rows), atol=1e-9)
    assert least <= error() < most
    for tensor in verdict.differences:
        tensor.mul_(-1)
    assert error() == pytest.approx(2, abs=0.1)
    for tensor in verdict.differences:
        tensor.zero_()
    assert error() == 0, "there is nothing to be wrong about"


class Profile(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)[0]


@torch.no_grad()
def test_the_error_beside_infinite_references():
    """What is infinite in the reference and in the mutants has no difference; what is so in one of them is wrong."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv1d(4, 32, 7, padding=3)

        def forward(self, x):
            y = self.body(x)
            return torch.where(torch.arange(L) % 2 == 0, -torch.inf, y), y

    torch.manual_seed(0)
    verdict, error = measured(Masked(), "highest", sequences(1, L))
    assert verdict.node is None and torch.isnan(verdict.differences[0]).any()
    assert error() < 1e-5
    verdict.differences[0].nan_to_num_(nan=0.0)
    assert error() == np.inf
