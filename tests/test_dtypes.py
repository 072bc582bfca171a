"""Models of more than one dtype, of tables in another, and of weights that run operations by themselves."""

import contextlib
import copy
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from conftest import errors, oracle, randomized, sequences
from torch import nn

import yuzu
from yuzu._engine.capture.double import InDouble

L = 30


class Dtypes(nn.Module):
    """What the forward casts to is written down, so that a float64 twin can be made by hand."""

    def __init__(self, low=torch.bfloat16, high=torch.float32):
        super().__init__()
        self.low, self.high = low, high
        self.conv, self.fc = nn.Conv1d(4, 6, 5, padding=2), nn.Linear(6 * (L // 2), 3)

    def own(self):
        self.conv.to(self.low)
        self.fc.to(self.high)
        return self

    def double_by_hand(self):
        twin = copy.deepcopy(self).double()
        for name, value in vars(twin).items():
            if isinstance(value, torch.dtype):
                setattr(twin, name, torch.float64)
        return twin


class Trunk(Dtypes):
    """A trunk in less precision than the head."""

    def forward(self, x):
        return self.fc(F.max_pool1d(self.conv(x.to(self.low)).relu(), 2).to(self.high).flatten(1))


class HeadFirst(Trunk):
    """The same, with the head's weights registered first, so that sequences are in its dtype."""

    def __init__(self, *dtypes):
        super().__init__(*dtypes)
        fc = self._modules.pop("fc")
        conv = self._modules.pop("conv")
        self.fc, self.conv = fc, conv


class Island(Dtypes):
    """Float32 in the middle, as norms and softmaxes are kept, and a lower dtype around it."""

    def __init__(self, *dtypes):
        super().__init__(*dtypes)
        self.norm, self.last = nn.GroupNorm(2, 6), nn.Linear(6, 2)

    def own(self):
        super().own()
        self.fc.to(self.low)
        self.last.to(self.low)
        return self

    def forward(self, x):
        h = self.norm(self.conv(x.to(self.low)).to(self.high)).to(self.low)
        w = h.to(self.high).softmax(2).to(self.low)
        return self.last((h * w).sum(2))


class Table(Dtypes):
    """A matrix in the other dtype, held as a buffer, scanned and read beside a layer of the model's own."""

    def __init__(self, *dtypes):
        super().__init__(*dtypes)
        self.register_buffer("pwm", torch.randn(6, 4, 7))
        self.register_buffer("place", torch.randn(L // 2))

    def own(self):
        self.conv.to(self.high), self.fc.to(self.high)
        self.pwm = self.pwm.to(self.low)
        self.place = self.place.to(self.low)
        return self

    def forward(self, x):
        x = x.to(self.high)
        scan = F.conv1d(x.to(self.low), self.pwm, padding=3).to(self.high)
        h = F.max_pool1d((self.conv(x) + scan).relu(), 2)
        return self.fc((h * self.place).to(self.high).flatten(1))


class Parameter(Table):
    """The matrix is a parameter, and the first one: sequences are in its dtype."""

    def __init__(self, *dtypes):
        super().__init__(*dtypes)
        pwm = self._buffers.pop("pwm")
        modules, self._modules = self._modules, {}
        self.pwm = nn.Parameter(pwm)
        self._modules = modules

    def own(self):
        pwm, self._parameters["pwm"] = self.pwm.data.to(self.low), None
        super_pwm = nn.Parameter(pwm)
        self.conv.to(self.high), self.fc.to(self.high)
        self._parameters["pwm"] = super_pwm
        self.place = self.place.to(self.low)
        return self


class Casts(Dtypes):
    """All weights in one dtype; the forward says float32, as a norm written out by hand does."""

    def own(self):
        return self.to(self.high)

    def forward(self, x):
        h = self.conv(x.to(self.high))
        h = h.to(self.high) - h.to(self.high).mean(1, keepdim=True)
        h = h * torch.rsqrt(h.pow(2).mean(1, keepdim=True) + 1e-5)
        return self.fc(F.max_pool1d(h.to(self.high), 2).flatten(1))


class Regions(Dtypes):
    """A region of autocast in forward."""

    def own(self):
        return self.to(self.high)

    def forward(self, x):
        with torch.autocast("cpu", dtype=self.low, enabled=self.low != torch.float64):
            h = self.conv(x).relu()
        return self.fc(F.max_pool1d(h, 2).to(self.high).flatten(1))


def made(kind, low, high=torch.float32, seed=0):
    torch.manual_seed(seed)
    return randomized(kind(low, high), seed).own().eval()


def own_naive(model, X):
    """By hand, in the model's own dtypes."""
    first = next(t.dtype for t in model.parameters())
    with torch.no_grad():
        found = []
        for x in X.to(first):
            rows = x.repeat(4 * L, 1, 1)
            for k in range(len(rows)):
                rows[k, :, k % L], rows[k, k // L, k % L] = 0, 1
            found.append((model(rows).double() - model(x[None]).double()).unflatten(0, (4, L)))
    return torch.stack(found)


def assert_as_good_as_naive(found, model, X):
    """Against a twin in float64 that is made by hand: as near as the model's own numbers are, or within 1e-5."""
    truth = oracle(model.double_by_hand(), X)["delta"]
    assert float(truth.abs().max()) > 1e-3
    naive = errors(own_naive(model, X), truth)[0]
    assert errors(found, truth)[0] <= max(1e-5, 1.2 * naive)


MIXED = [
    (Trunk, torch.bfloat16, torch.float32),
    (Trunk, torch.float16, torch.float32),
    (Trunk, torch.float64, torch.float32),
    (Trunk, torch.bfloat16, torch.float64),
    (HeadFirst, torch.bfloat16, torch.float32),
    (HeadFirst, torch.float64, torch.float32),
    (Island, torch.float16, torch.float32),
    (Table, torch.float64, torch.float32),
    (Table, torch.bfloat16, torch.float32),
    (Parameter, torch.float64, torch.float32),
    (Casts, torch.bfloat16, torch.float32),
    (Casts, torch.bfloat16, torch.float64),
    (Regions, torch.bfloat16, torch.float32),
]


@pytest.mark.parametrize("kind, low, high", MIXED)
def test_models_of_several_dtypes(kind, low, high):
    model, X = made(kind, low, high), sequences(2, L)
    before = {name: (t.dtype, t.clone()) for name, t in model.state_dict().items()}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        precomputation = yuzu.precompute(model, L, device="cpu")
        found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device="cpu")
        checked = yuzu.check(model, X, precomputation, device="cpu")
        naive = yuzu.naive_ism(model, X, output="delta", device="cpu")
    assert not any("agree" in str(w.message) or "raised" in str(w.message) for w in said), [
        str(w.message) for w in said
    ]
    assert_as_good_as_naive(found, model, X)
    assert_as_good_as_naive(naive, model, X)
    assert "LESS" not in checked.summary and "NOT" not in checked.summary
    assert "against float64" in checked.summary
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name][0] and torch.equal(tensor, before[name][1])


# ---- tables and masks that forward makes


class Attention(nn.Module):
    """Attention over pooled positions with a mask that forward makes."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask
        self.conv, self.out = nn.Conv1d(4, 8, 5, padding=2), nn.Linear(8, 2)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        z = F.max_pool1d(self.conv(x).relu(), 2).transpose(1, 2)
        q, k, v = (f(z).unflatten(2, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(q))
        return self.out(z.transpose(1, 2).flatten(2).mean(1))


def far(q):
    n = q.shape[2]
    return (torch.arange(n)[:, None] - torch.arange(n)).abs()


KEPT = torch.randn(15, 15, generator=torch.Generator().manual_seed(0))
MASKS = {
    "zeros": lambda q: torch.zeros(15, 15).masked_fill(far(q) > 4, float("-inf")),
    "zeros in the dtype of the queries": lambda q: torch.zeros(15, 15, dtype=q.dtype).masked_fill(far(q) > 4, -1e9),
    "for each head": lambda q: -far(q).float() * torch.tensor([0.5, 0.25])[:, None, None],
    "expanded": lambda q: (far(q) * -0.1).expand(len(q), 2, 15, 15),
    "float32 by name": lambda q: (far(q).to(torch.float32) / 3).neg(),
    "triangle": lambda q: torch.full((15, 15), float("-inf")).triu(3),
    "drawn between two numbers": lambda q: torch.linspace(-2, 0, 15).expand(15, 15),
    "from outside": lambda q: KEPT,
    "boolean": lambda q: far(q) < 5,
}


@pytest.mark.parametrize(
    "dtype, name",
    [(torch.float32, name) for name in MASKS]
    + [(torch.float64, "from outside"), (torch.bfloat16, "zeros in the dtype of the queries")],
)
def test_masks_that_forward_makes(name, dtype):
    """The queries of a copy in float64 meet them: PyTorch gives other numbers then, without a word."""
    model, X = randomized(Attention(MASKS[name])).eval().to(dtype), sequences(1, L)
    try:
        with torch.no_grad():
            model(X.to(dtype))
    except RuntimeError:
        pytest.skip("this PyTorch refuses the mask beside queries of another dtype")
    # of a float64 model what PyTorch makes of it is what the user has
    with contextlib.nullcontext() if dtype == torch.float64 else InDouble():
        truth = oracle(model, X)["delta"]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        precomputation = yuzu.precompute(model, L, device="cpu")
        found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device="cpu")
        checked = yuzu.check(model, X, precomputation, device="cpu")
    said = [str(w.message) for w in said]
    assert not any("agree" in words for words in said), said
    naive = errors(own_naive(model, X), truth)[0]
    assert errors(found, truth)[0] <= max(1e-5, 1.2 * naive)
    assert "against float64" in checked.summary and "LESS" not in checked.summary
    assert checked.naive_relative_error < (1e-3 if dtype != torch.bfloat16 else 1)


TABLES = {
    "cosines": lambda h: h + torch.cos(torch.arange(L) * 0.3),
    "of a list": lambda h: h * torch.tensor([0.1, 0.2, 0.3] * (L // 3)),
    "two tables": lambda h: h * (torch.tensor([0.1, 0.7] * (L // 2)) * torch.tensor([0.3, 0.9] * (L // 2))).sin(),
    "in the dtype of what it is added to": lambda h: h + torch.full((L,), 0.3, dtype=h.dtype).cumsum(0),
    "product": lambda h: h @ torch.eye(L, dtype=h.dtype).roll(1, 0),
    "cast": lambda h: (h.float() * 3).to(h.dtype),
    "made like it": lambda h: h - torch.ones_like(h, dtype=torch.float32) / 3,
}


@pytest.mark.parametrize(
    "dtype, name",
    [(torch.float32, name) for name in TABLES]
    + [(torch.float64, name) for name in ("two tables", "product", "cast")]
    + [(torch.bfloat16, name) for name in ("cosines", "cast")],
)
def test_tables_that_forward_makes(name, dtype):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv1d(4, 6, 5, padding=2), nn.Linear(6, 2)

        def forward(self, x):
            h = TABLES[name](self.conv(x)).relu()
            return self.fc(h.mean(2).to(x.dtype))

    model, X = randomized(Model()).eval().to(dtype), sequences(1, L)
    # float32 tables of a float64 model are its own, and a cast rounds
    with contextlib.nullcontext() if dtype == torch.float64 and name != "cast" else InDouble():
        truth = oracle(model, X)["delta"]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        precomputation = yuzu.precompute(model, L, device="cpu")
        found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device="cpu")
        checked = yuzu.check(model, X, precomputation, device="cpu")
    assert not any("agree" in str(w.message) for w in said), [str(w.message) for w in said]
    naive = errors(own_naive(model, X), truth)[0]
    assert errors(found, truth)[0] <= max(1e-10 if dtype == torch.float64 else 1e-5, 1.2 * naive)
    assert "against float64" in checked.summary and "LESS" not in checked.summary


# ---- what a copy in float64 does not do


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


# ---- weights that are tensors of a class of their own


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
    twin = copy.deepcopy(Trunk(torch.float64, torch.float64)).double()
    twin.conv.load_state_dict({k: v.double() for k, v in model.conv.state_dict().items()})
    with torch.no_grad():
        twin.fc.weight.copy_(numbers.double() * scale.double())
        twin.fc.bias.copy_(model.fc.bias.double())
    truth = oracle(twin, X)["delta"]
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
