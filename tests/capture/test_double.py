"""Running in float64 what names a dtype, and weights that are tensors of a class of their own."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu
from tests.capture.dtypes import Casts, Trunk, made, own_naive
from tests.oracle import errors, oracle
from tests.small_models import randomized, sequences
from yuzu._engine.capture.double import InDouble

L = 30


class Branch(nn.Module):
    """Another function in another dtype."""

    def __init__(self, refuses=False):
        super().__init__()
        self.refuses = refuses
        self.conv, self.fc = nn.Conv1d(4, 6, 5, padding=2), nn.Linear(6, 2)

    def forward(self, x):
        h = self.conv(x).relu()
        if h.dtype == torch.float64:
            if self.refuses:
                raise TypeError("float32 only")
            h = h * h
        return self.fc(h.mean(2))


@pytest.mark.parametrize(
    "refuses, words",
    [
        (False, "in float64 computes something else than the model"),
        (True, "does not run in float64 (TypeError: float32"),
    ],
)
def test_a_copy_in_float64_that_is_not_the_model(recwarn, refuses, words):
    model, X = randomized(Branch(refuses)).eval(), sequences(1, L)
    precomputation = yuzu.precompute(model, L, device="cpu")
    checked = yuzu.check(model, X, precomputation, device="cpu")
    assert words in checked.summary and "is as naive ISM, to rounding" in checked.summary
    assert checked.yuzu_relative_error < 1e-4 and checked.naive_relative_error == 0
    assert not recwarn.list and "naive" not in precomputation.summary()


def test_check_says_where_yuzu_is_wrong(monkeypatch):
    """Neither a copy that does not run nor rounding excuses it."""
    module = sys.modules["yuzu.check"]
    model, X = randomized(Branch(refuses=True)).eval(), sequences(1, L)
    original = module.run_planned
    monkeypatch.setattr(module, "run_planned", lambda *args, **kwargs: original(*args, **kwargs) * 1.01)
    assert "is NOT as naive ISM" in yuzu.check(model, X, device="cpu").summary
    assert "is LESS accurate than naive ISM" in yuzu.check(made(Casts, torch.float32), X, device="cpu").summary


class HalfTable(nn.Module):
    """An embedding in half precision: its rows are exact, and the difference of two is none of them."""

    def __init__(self):
        super().__init__()
        self.table, self.conv, self.fc = nn.Embedding(4, 6).half(), nn.Conv1d(6, 6, 5), nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(self.conv(self.table(x.argmax(1)).transpose(1, 2).float()).relu().mean(2))


def test_a_table_in_half_precision():
    model, X = randomized(HalfTable()).eval(), sequences(2, L)
    with InDouble():
        truth = oracle(model, X)["delta"]
    with pytest.warns(yuzu.errors.YuzuWarning, match="its values are exact in torch.float16"):
        found = yuzu.yuzu_ism(model, X, output="delta", device="cpu")
    assert errors(found, truth)[0] <= max(1e-5, errors(own_naive(model, X), truth)[0])


def test_weights_of_eight_bits():
    """They are cast as they are read; sequences have the dtype of the others."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 4, 5).to(torch.float8_e4m3fn), requires_grad=False)
            self.fc = nn.Linear(6, 2)

        def forward(self, x):
            return self.fc(F.conv1d(x, self.weight.to(x.dtype)).relu().mean(2))

    torch.manual_seed(0)
    model, X = Model().eval(), sequences(1, L)
    assert errors(yuzu.yuzu_ism(model, X, output="delta", device="cpu"), oracle(model, X)["delta"])[0] < 1e-5


class Packed(torch.Tensor):
    """A quantised weight as torchao has them: whole numbers, and a scale for each row."""

    @staticmethod
    def __new__(cls, numbers, scale):
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype)

    def __init__(self, numbers, scale):
        self.numbers, self.scale = numbers, scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        weight = next(a for a in torch.utils._pytree.tree_leaves(args) if isinstance(a, Packed))
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            again = torch.utils._pytree.tree_map(lambda t: func(t), (weight.numbers, weight.scale))
            return type(weight)(*again)
        raise NotImplementedError(str(func))

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            x, weight, bias = args
            y = (x @ weight.numbers.T.to(x.dtype)) * weight.scale.flatten()
            return y.to(x.dtype) + bias
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class Closed(Packed):
    """One that does not say what is in it."""


class Open(Packed):
    """One that does."""

    def __tensor_flatten__(self):
        return ["numbers", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner, meta, size, stride):
        return Open(inner["numbers"], inner["scale"])


@pytest.mark.parametrize("kind", [Open, Closed])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantised_weights(kind, dtype):
    model, X = randomized(Trunk(dtype, dtype)).own().eval(), sequences(2, L)
    scale = model.fc.weight.detach().abs().amax(1, keepdim=True) / 127
    weight = kind((model.fc.weight.detach() / scale).round().to(torch.int8), scale)
    numbers, scale = weight.numbers.clone(), weight.scale.clone()
    model.fc.weight = nn.Parameter(weight, requires_grad=False)
    model_copy = copy.deepcopy(Trunk(torch.float64, torch.float64)).double()
    model_copy.conv.load_state_dict({k: v.double() for k, v in model.conv.state_dict().items()})
    with torch.no_grad():
        model_copy.fc.weight.copy_(numbers.double() * scale.double())
        model_copy.fc.bias.copy_(model.fc.bias.double())
    truth = oracle(model_copy, X)["delta"]
    precomputation = yuzu.precompute(model, L, device="cpu")
    found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device="cpu")
    checked = yuzu.check(model, X, precomputation, device="cpu")
    assert errors(found, truth)[0] <= max(1e-5, 1.2 * errors(own_naive(model, X), truth)[0])
    assert "LESS" not in checked.summary and "NOT" not in checked.summary
    assert kind is Closed or "The whole model runs naively" not in precomputation.summary()
    assert torch.equal(model.fc.weight.numbers, numbers) and torch.equal(model.fc.weight.scale, scale)
    with torch.no_grad():
        model.fc.weight.scale.mul_(2)  # a change is seen
    again = yuzu.yuzu_ism(model, X, precomputation, output="delta", device="cpu")
    assert errors(again, 2 * found)[0] < (1e-3 if dtype == torch.float32 else 0.2)  # beside the same bias
