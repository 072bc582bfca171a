"""Models of more than one dtype, and tables and masks that forward makes."""

import contextlib
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu
from tests.capture.dtypes import Casts, Dtypes, Trunk, made, own_naive
from tests.oracle import errors, oracle
from tests.small_models import randomized, sequences
from yuzu._engine.capture.double import InDouble

L = 30


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


class Regions(Dtypes):
    """A region of autocast in forward."""

    def own(self):
        return self.to(self.high)

    def forward(self, x):
        with torch.autocast("cpu", dtype=self.low, enabled=self.low != torch.float64):
            h = self.conv(x).relu()
        return self.fc(F.max_pool1d(h, 2).to(self.high).flatten(1))


def assert_as_good_as_naive(found, model, X):
    """Against a copy in float64 that is made by hand: as near as the model's own numbers are, or within 1e-5."""
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
