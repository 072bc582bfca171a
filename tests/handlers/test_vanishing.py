"""Where a mutant's value is exactly zero and something steep follows, a residue of rounding would be taken for a value."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu
from tests.oracle import assert_right
from tests.small_models import randomized, sequences
from yuzu._engine.handlers import values
from yuzu._engine.plan.plan import make_plan
from yuzu._engine.rewrite.all import capture

L = 40
WIDE = dict(ranges=[(i, i + 28) for i in range(0, 13, 2)])  # zeros, fastISM's default mutation


class Body(nn.Module):
    """Something that sums, of convolutions without a bias, then something steep, then a head."""

    def __init__(self, sums, steep, bias=None):
        super().__init__()
        self.first = nn.Conv1d(4, 16, 5, padding=2, bias=bias is not None)
        self.sums, self.steep = sums, steep
        with torch.no_grad():
            length = steep(sums(torch.zeros(1, 16, L))).flatten(1).shape[1]
        self.head = nn.Linear(length, 2)
        self.bias = bias

    def settle(self):
        if self.bias is not None:
            nn.init.constant_(self.first.bias, self.bias)
        return self

    def forward(self, x):
        return self.head(self.steep(self.sums(torch.relu(self.first(x)))).flatten(1))


class Of(nn.Module):
    """A function of modules."""

    def __init__(self, function, *parts):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x):
        return self.function(x, *self.parts)


def conv(**settings):
    return nn.Conv1d(16, 16, **{"kernel_size": 5, "padding": 2, "bias": False, **settings})


SUMS = {
    "convolution": lambda: conv(),
    "dilated": lambda: conv(dilation=2, padding=4),
    "strided": lambda: conv(stride=2),
    "grouped": lambda: conv(groups=4),
    "depthwise": lambda: conv(groups=16),
    "average pool": lambda: nn.AvgPool1d(3, 2, 1),
    "maximum pool": lambda: nn.Sequential(conv(), nn.MaxPool1d(3, 2, 1)),
    "global mean": lambda: Of(lambda x: x.mean(-1)),
    "global maximum": lambda: Of(lambda x, c: c(x).amax(-1), conv()),
    "on channels": lambda: Of(lambda x, f: f(x.transpose(1, 2)).transpose(1, 2), nn.Linear(16, 16, bias=False)),
    "sum of channels": lambda: Of(lambda x: x.sum(1, keepdim=True)),
    "over positions": lambda: Of(lambda x, f: f(x), nn.Linear(L, 3, bias=False)),
    "dense": lambda: Of(lambda x, f: f(x.flatten(1)), nn.Linear(16 * L, 8, bias=False)),
    "on rows": lambda: Of(lambda x, f: f(x.mean(-1)), nn.Linear(16, 8, bias=False)),
    "product": lambda: Of(lambda x, a, b: a(x) * b(x), conv(), conv()),
    "on one axis of two": lambda: Of(
        lambda x, c: c(x.unsqueeze(2)).squeeze(2), nn.Conv2d(16, 16, (1, 5), padding=(0, 2), bias=False)
    ),
    "read whole on the second axis": lambda: Of(
        lambda x, c: c(x.unflatten(1, (8, 2))).flatten(1, 2), nn.Conv2d(8, 16, (2, 5), padding=(0, 2), bias=False)
    ),
    "quotient": lambda: Of(lambda x, c: c(x) / 3.7, conv()),
    "tanh": lambda: Of(lambda x, c: torch.tanh(c(x)), conv()),
    "residual": lambda: Of(lambda x, a, b: a(x) + b(x), conv(), conv(dilation=2, padding=4)),
}
STEEP = {
    "normalize": lambda x: F.normalize(x, dim=1),
    "sign": torch.sign,
    "mask": lambda x: x + (x.abs().mean(1, keepdim=True) > 0).float(),
    "root": lambda x: torch.sqrt(x.abs()),
}


# each sum before two steep functions, which do not depend on one another: what follows sees zeros, or does not
BEFORE = [(sums, list(STEEP)[(i + more) % len(STEEP)]) for i, sums in enumerate(SUMS) for more in (0, 1)]


@pytest.mark.parametrize(("sums", "steep"), BEFORE)
def test_zeros_of_wide_mutations(sums, steep, device):
    if (sums, steep) == ("global maximum", "sign"):
        pytest.skip("all maxima are positive, whatever is mutated")
    model, X = randomized(Body(SUMS[sums](), STEEP[steep]), seed=3).eval(), sequences(2, L)
    found = yuzu.yuzu_ism(model, X, output="delta", device=device, **WIDE)
    assert_right(found, model, X, output="delta", device=device, **WIDE)


@pytest.mark.parametrize("bias", [-1.0, -1.6])
@pytest.mark.parametrize("sums", ["convolution", "strided", "maximum pool", "global mean"])
def test_zeros_of_a_sparse_activation(sums, bias, device):
    model, X = randomized(Body(SUMS[sums](), STEEP["normalize"], bias), seed=11).eval().settle(), sequences(2, L)
    found = yuzu.yuzu_ism(model, X, output="delta", device=device)
    assert_right(found, model, X, output="delta", device=device)


@pytest.mark.parametrize("sums", ["convolution", "strided", "maximum pool", "global mean", "dense"])
@pytest.mark.parametrize("mutations", [{}, WIDE], ids=["substitutions", "wide"])
def test_zeros_of_the_reference_in_chunks_of_few_sites(sums, mutations, device):
    """A stretch of N, which is zero in the reference, too; and chunks of a site or two."""
    model, X = randomized(Body(SUMS[sums](), STEEP["normalize"]), seed=17).eval(), sequences(3, L)
    X[1, :, 8:30] = 0
    with pytest.raises(ValueError) as refusal:
        yuzu.precompute(model, L, max_memory=1, device=device)
    least = int(str(refusal.value).rsplit("that works is ", 1)[1].split()[0])
    made = yuzu.precompute(model, L, max_memory=2 * least, device=device)
    found = yuzu.yuzu_ism(model, X, made, output="delta", device=device, **mutations)
    assert_right(found, model, X, output="delta", device=device, **mutations)


@pytest.mark.parametrize("way", ["windows", "taps", "cyclic", "banded", "blocks", "whole", "fold", "winograd"])
def test_zeros_by_every_way(way, device):
    model, X = randomized(Body(SUMS["convolution"](), STEEP["normalize"]), seed=7).eval(), sequences(2, L)
    made = yuzu.precompute(model, L, conv=way, device=device)
    found = yuzu.yuzu_ism(model, X, made, output="delta", device=device, **WIDE)
    assert_right(found, model, X, output="delta", device=device, **WIDE)


@pytest.mark.parametrize("scale", [1, 50])
def test_zeros_before_a_layer_norm(scale, device):
    norm = Of(lambda x, n: n(x.transpose(1, 2)).transpose(1, 2), nn.LayerNorm(16))
    model, X = randomized(Body(SUMS["convolution"](), norm), seed=9).eval(), sequences(2, L)
    with torch.no_grad():
        model.sums.weight.mul_(scale)
    found = yuzu.yuzu_ism(model, X, output="delta", device=device, **WIDE)
    assert_right(found, model, X, output="delta", device=device, **WIDE)


def test_zeros_that_are_widened(device, monkeypatch):
    """A difference that is small is taken in float64, and a zero must be one beside the reference in float32."""

    class Widened(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList([nn.Conv1d(4, 16, 5, padding=2, bias=False), conv(), conv()])
            self.head = nn.Linear(16 * L, 1)

        def forward(self, x):
            first, second, third = self.parts
            x = F.gelu(second(F.silu(first(x))))
            return self.head(F.normalize(third(x), dim=1).flatten(1))

    model, X = randomized(Widened(), seed=13).eval(), sequences(2, L)
    monkeypatch.setattr(values, "SMALL", 1e9)  # as on a GPU, where it is always done
    found = yuzu.yuzu_ism(model, X, output="delta", device=device, **WIDE)
    assert_right(found, model, X, output="delta", device=device, **WIDE)


def test_not_where_no_zero_gets_through():
    """A batch norm between it and what is not steady moves zeros elsewhere."""
    norm = nn.Sequential(conv(), nn.BatchNorm1d(16), nn.ReLU())
    plan = make_plan(capture(Body(norm, STEEP["normalize"]).double().eval(), (4, L), (), torch.float64))
    assert not any(r is not None and plan.choices[r.node.index].exact_zeros and r.node.op == "aten.conv1d" for r in plan.rules)


def test_another_input_changes_what_is_zero(device):
    """A convolution's change depends on other inputs here, though it is linear."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv1d(4, 8, 3, padding=1, bias=False), nn.Conv1d(8, 8, 3, bias=False)
            self.head = nn.Linear(8 * (L - 2), 1)

        def forward(self, x, gate):
            x = torch.relu(self.first(x) + gate[:, :, None])
            return self.head(F.normalize(self.second(x), dim=1).flatten(1))

    model, X = randomized(Gated(), seed=11).eval(), sequences(2, L)
    args = (torch.tensor([[-0.5] * 8, [-1.5] * 8]),)
    found = yuzu.yuzu_ism(model, X, args=args, output="delta", device=device, **WIDE)
    assert_right(found, model, X, args=args, output="delta", device=device, **WIDE)


@pytest.mark.parametrize("steady", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_only_where_it_may_matter(steady, bias):
    """Nothing is counted behind a bias, nor before what is steady."""
    steep = torch.relu if steady else STEEP["normalize"]
    model = Body(conv(bias=bias), steep, 0.0 if bias else None).double().eval()
    plan = make_plan(capture(model, (4, L), (), torch.float64))
    settling = [r.node.op for r in plan.rules if r is not None and plan.choices[r.node.index].exact_zeros]
    assert ("aten.conv1d" in settling) == (not steady and not bias)
