"""Operations without a formula of their own, where a mutation moves their argument by some 1e-4 of it: subtracting two float32 values would
leave three digits.
"""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu
from tests.capturing import decide
from tests.laws.random_models import Fn
from tests.oracle import errors
from tests.small_models import sequences
from yuzu._engine.handlers import values
from yuzu._engine.run import run

LENGTH = 60


class Faint(nn.Module):
    """Values around 1 that one letter moves by little, ``(n, 6, L)``."""

    def __init__(self, scale: float = 1e-3) -> None:
        super().__init__()
        self.scale = scale
        self.convolution = nn.Conv1d(4, 6, 9, padding=4)
        self.level = nn.Parameter(torch.linspace(0.3, 1.7, 6)[:, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.level + self.scale * torch.tanh(self.convolution(x))


def behind(operation: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Faint(), operation).eval()


WINDOWS: dict[str, Callable[[], nn.Module]] = {
    **{
        a.__name__: a
        for a in (nn.GELU, nn.SiLU, nn.Softplus, nn.Mish, nn.LogSigmoid, nn.Softsign, nn.Hardswish, nn.LeakyReLU, nn.PReLU, nn.ReLU6)
    },
    "GELU by tanh": lambda: nn.GELU(approximate="tanh"),
    "logarithm": lambda: Fn(lambda x: torch.log(x)),
    "root": lambda: Fn(lambda x: x.sqrt()),
    "quotient": lambda: Fn(lambda x: 1 / x),
    "operand that is not mutated": lambda: Fn(lambda m, x: torch.pow(x, m.exponent), exponent=nn.Parameter(torch.rand(LENGTH) + 1)),
    "chosen": lambda: Fn(lambda x: torch.where(x > 1, F.silu(x), F.softplus(x))),
    "norm of channels": lambda: Fn(lambda m, x: m.norm(x.transpose(1, 2)).transpose(1, 2), norm=nn.LayerNorm(6)),
    "gate": lambda: nn.GLU(1),
    "sum of exponentials": lambda: Fn(lambda x: x.logsumexp(1)),
}  # fmt: skip
ROWS: dict[str, Callable[[], nn.Module]] = {
    "GELU": lambda: nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.GELU()),
    "SiLU of sums": lambda: Fn(lambda x: F.silu(x.mean(2))),
    "norm of groups": lambda: nn.GroupNorm(2, 6),
    "norm of rows": lambda: Fn(lambda x: F.layer_norm(x, x.shape[1:])),
    "length": lambda: Fn(lambda x: x.norm(dim=2)),
    "a vector beside it": lambda: Fn(lambda m, x: torch.pow(x.mean(2), m.exponent), exponent=nn.Parameter(torch.rand(6) + 1)),
}


# these need no float64
WITH_FORMULAS = {"GELU", "GELU by tanh", "SiLU", "SiLU of sums", "length"}


@pytest.mark.parametrize("name", [*WINDOWS, *(f"rows: {name}" for name in ROWS)])
def test_small_differences_keep_their_digits(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    operation = ROWS[name.removeprefix("rows: ")] if name.startswith("rows") else WINDOWS[name]
    model, X = behind(operation()), sequences(2, LENGTH)
    X[1, :, 30] = 0  # an N
    truth = yuzu.naive_ism(copy.deepcopy(model).double(), X.double(), output="delta", device="cpu")
    made = yuzu.precompute(model, LENGTH, device=device)
    assert not [layer for layer in made.layers if layer.handler == "naive"]
    found = yuzu.yuzu_ism(model, X, made, output="delta", device=device)
    error, _ = errors(found, truth)
    decide(made, sites=7)
    in_chunks, _ = errors(yuzu.yuzu_ism(model, X, made, output="delta", device=device), truth)
    assert in_chunks < 2e-6

    assert error < 2e-6
    if name.removeprefix("rows: ") in WITH_FORMULAS:
        return
    monkeypatch.setattr(values.OfValues, "may_widen", lambda *_: False)
    monkeypatch.setattr(run, "may_widen", lambda *_: False)
    plain, _ = errors(yuzu.yuzu_ism(model, X, made, output="delta", device=device), truth)
    assert error < plain / 3, (error, plain)


@pytest.mark.parametrize("precision, small, wide", [("highest", True, True), ("high", True, True), ("highest", False, False), ("medium", True, False)])
def test_float64_only_where_it_pays(precision: str, small: bool, wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = behind(nn.Mish()) if small else nn.Sequential(nn.Conv1d(4, 6, 9, padding=4), nn.Mish())
    asked = set()

    class Spy(values.Local):
        def _difference(self, *args, **kwargs):
            asked.add(kwargs["wide"])
            return super()._difference(*args, **kwargs)

    monkeypatch.setattr("yuzu._engine.handlers.elementwise.Local", Spy)
    made = yuzu.precompute(model, LENGTH, device="cpu", precision=precision, verify=False)
    asked.clear()
    yuzu.yuzu_ism(model, sequences(1, LENGTH), made, device="cpu")
    assert (True in asked) == wide and False in asked


@torch.library.custom_op("test_small_differences::narrow", mutates_args=(), tags=(torch.Tag.pointwise,))
def narrow(x: torch.Tensor) -> torch.Tensor:
    assert x.dtype == torch.float32, "this operator has a kernel for float32 only"
    return x * x


@narrow.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@pytest.mark.parametrize(
    "operation", [narrow, lambda x: torch.linalg.vector_norm(x, dim=1, dtype=torch.float32)], ids=["a custom operator", "a dtype of its own"]
)
def test_operations_that_refuse_float64_get_none(operation: Callable[..., torch.Tensor], device: str) -> None:
    """Also where differences are small only for other inputs than those that `precompute` saw."""
    model = Fn(lambda m, x, level: operation(m.convolution(x) + level[:, :, None]), convolution=nn.Conv1d(4, 6, 9, padding=4)).eval()
    made = yuzu.precompute(model, LENGTH, args=(torch.zeros(1, 1),), device=device)
    X, level = sequences(2, LENGTH), torch.full((2, 1), 100.0)
    found = yuzu.yuzu_ism(model, X, made, args=(level,), output="delta", device=device)
    naive = yuzu.naive_ism(model, X, args=(level,), output="delta", device=device)
    assert errors(found, naive)[0] < 1e-3


@pytest.mark.parametrize("scale", [1e-7, 1e-8])
def test_differences_below_the_last_digit(scale: float, device: str) -> None:
    """Of which a subtraction in float32 leaves nothing."""
    model = nn.Sequential(Faint(scale), Fn(lambda x: x.sqrt())).eval()
    X = sequences(1, LENGTH)
    truth = yuzu.naive_ism(copy.deepcopy(model).double(), X.double(), output="delta", device="cpu")
    found = yuzu.yuzu_ism(model, X, yuzu.precompute(model, LENGTH, device=device), output="delta", device=device)
    assert errors(found, truth)[0] < 2e-6


def test_a_mutant_that_is_no_number_leaves_the_others_their_digits() -> None:
    """One of three letters at one place takes the logarithm of a negative number."""
    place = torch.zeros(LENGTH)
    place[20] = 1

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return F.silu(m.faint(x) + 1e-3 * torch.log(1.5 - 2 * m.place * x[:, :1]))

    torch.manual_seed(0)
    model, X = Fn(forward, faint=Faint(), place=place).eval(), sequences(1, LENGTH)
    X[0, :, 20] = torch.tensor([0.0, 1, 0, 0])
    truth = torch.as_tensor(yuzu.naive_ism(copy.deepcopy(model).double(), X.double(), output="delta", device="cpu"))
    made = yuzu.precompute(model, LENGTH, device="cpu", verify=False)
    found = torch.as_tensor(yuzu.yuzu_ism(model, X, made, output="delta", device="cpu"))
    finite = torch.isfinite(truth)
    assert not finite[0, 0, 20].all() and (torch.isfinite(found) == finite).all()
    others = torch.arange(LENGTH) != 20  # whose letters are run naively
    assert errors(found[:, :, others], truth[:, :, others])[0] < 2e-6


def test_memory_counts_what_float64_takes() -> None:
    """Of models whose one difference is small or none may be, the former holds wider tensors."""
    from yuzu._engine.tune.memory import memory_of

    sizes = []
    for activation in (nn.Mish, nn.ReLU):
        model = behind(activation())
        bound = yuzu.precompute(model, LENGTH, device="cpu").bind(model, LENGTH, 4, (), torch.device("cpu"))
        sizes.append([memory_of(bound.plan, LENGTH, 4, 1, itemsize, 3).site for itemsize in (4, 8)])
    (mish, mish_double), (relu, relu_double) = sizes
    assert mish > 1.5 * relu and mish_double == relu_double
