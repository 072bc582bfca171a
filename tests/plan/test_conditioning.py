"""Steep functions of sums, pools and products that are far smaller in a mutant than in the reference: of a reference plus
a difference few digits are left there, where naive ISM sums small numbers. Sums are taken in float64; where all terms of
a product with weights nearly vanish, mutants are run naively.
"""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu
from tests.laws.random_models import Fn
from tests.oracle import assert_right, assert_right_or_known
from tests.small_models import randomized, sequences
from yuzu import models
from yuzu._engine.derived import Derived
from yuzu._engine.graph import Weights
from yuzu._engine.plan.conditioning import find_fading
from yuzu._engine.plan.plan import make_plan
from yuzu._engine.rewrite.all import capture
from yuzu._engine.run.run import Run
from yuzu._engine.store.in_use import InUse
from yuzu._engine.tune import memory as tune_memory
from yuzu.product import apply_pairwise

L, C = 40, 8
WIDE = dict(ranges=[(i, i + 28) for i in range(0, 13, 2)])  # zeros
HALF = dict(ranges=[(i, i + 14) for i in range(0, 26, 5)])


def model(between, end, bias=None, seed=0):
    """A convolution, sparse by a negative ``bias``, something between, and what is steep; untrained, so that batch norms
    and biases of zero add nothing.
    """
    torch.manual_seed(seed)
    first = nn.Conv1d(4, C, 7, padding=3, bias=bias is not None)
    with torch.no_grad():
        first.weight.mul_(3)
        if bias is not None:
            first.bias.fill_(bias)
    body = nn.Sequential(first, nn.ReLU(), between(), end())
    count = body.eval()(torch.zeros(1, 4, L)).flatten(1).shape[1]
    return nn.Sequential(body, nn.Flatten(), nn.Linear(count, 2)).eval()


@functools.cache
def model_of(pair):
    """One model for all mutations, so that it is precomputed once."""
    between, end, bias = pair
    return model(BETWEEN[between], END[end], bias, seed=3)


def unbiased(layer, bias=0.0):
    nn.init.constant_(layer.bias, bias)
    return layer


BETWEEN = {
    "nothing": nn.Identity,
    "convolution": lambda: nn.Conv1d(C, C, 5, padding=2, bias=False),
    "rectified": lambda: nn.Sequential(nn.Conv1d(C, C, 5, padding=2, bias=False), nn.ReLU()),
    "bias of zero": lambda: unbiased(nn.Conv1d(C, C, 5, padding=2)),
    "bias next to zero": lambda: unbiased(nn.Conv1d(C, C, 5, padding=2), 1e-4),
    "batch norm": lambda: nn.Sequential(nn.Conv1d(C, C, 5, padding=2, bias=False), nn.BatchNorm1d(C)),
    "transposed": lambda: unbiased(nn.ConvTranspose1d(C, C, 5, padding=2)),
    "on channels": lambda: Fn(lambda m, x: m.layer(x.mT).mT, layer=unbiased(nn.Linear(C, C))),
    "grouped": lambda: unbiased(nn.Conv1d(C, C, 5, padding=2, groups=2)),
    "square": lambda: Fn(lambda x: x * x),
    "softplus": nn.Softplus,
    "exponentials": lambda: Fn(lambda x: torch.exp(4 * x - 8)),
}
END = {
    "power average": lambda: nn.LPPool1d(3, 4, 2, ceil_mode=True),
    "logarithm of a mean": lambda: Fn(lambda x: torch.log(x.abs().mean(-1) + 1e-6)),
    "logarithm of channels": lambda: Fn(lambda x: torch.log(x.abs().sum(1, keepdim=True) + 1e-6)),
    "length": lambda: Fn(lambda x: torch.sqrt((x * x).sum(1) + 1e-12)),
    "length over positions": lambda: Fn(lambda x: torch.sqrt((x * x).sum(-1) + 1e-12)),
    "quotient of sums": lambda: Fn(lambda x: x[:, :4].sum(1) / (x.abs().sum(1) + 1e-6)),
    "normalised": lambda: Fn(lambda x: F.normalize(x, dim=1)),
    "shares": lambda: Fn(lambda x: x / (x.abs().sum(1, keepdim=True) + 1e-6)),
    "shares of positions": lambda: Fn(lambda x: x / (x.abs().sum(-1, keepdim=True) + 1e-6)),
    "log-sum-exp": lambda: Fn(lambda x: torch.log(torch.exp(5 * x - 10).sum(-1))),
    "log-softmax": lambda: Fn(lambda x: x - torch.log(torch.exp(x).sum(1, keepdim=True))),
    "deviation": lambda: Fn(lambda x: torch.sqrt((x - x.mean(1, keepdim=True)).square().mean(1) + 1e-10)),
    "inverse": lambda: Fn(lambda x: 0.1 / (x.abs().sum(1) + 1e-2)),
    "power": lambda: Fn(lambda x: (x.abs().sum(-1) + 1e-9).pow(0.5)),
    "harmonic mean": lambda: Fn(lambda x: 1 / (1 / (x.abs() + 1e-4)).mean(-1)),
    "geometric mean": lambda: Fn(lambda x: torch.exp(torch.log(x.abs() + 1e-5).mean(-1))),
    "root mean square norm": lambda: Fn(lambda x: x * torch.rsqrt((x * x).mean(1, keepdim=True) + 1e-8)),
    "logarithm of a square": lambda: Fn(lambda m, x: torch.log(m.layer(x) ** 2 + 1e-8), layer=nn.Conv1d(C, C, 3, bias=False)),
    "average pool": lambda: Fn(lambda x: torch.log(F.avg_pool1d(x.abs(), 4, 2) + 1e-6)),
    "adaptive pool": lambda: Fn(lambda x: torch.log(F.adaptive_avg_pool1d(x.abs(), 4) + 1e-6)),
    "cumulative": lambda: Fn(lambda x: torch.log(x.abs().cumsum(-1) + 1e-6)),
    "linear": lambda: Fn(lambda m, x: torch.log(m.layer(x.mean(-1)).abs() + 1e-7), layer=nn.Linear(C, 5, bias=False)),
    "weighted": lambda: Fn(
        lambda m, x: torch.log(torch.einsum("ncl,l->nc", x, m.weight).abs() + 1e-6), weight=nn.Parameter(torch.rand(L))
    ),
}  # fmt: skip
# The sums are of one sign: what cancels by chance is as uncertain in naive ISM. First what was wrong, then each once.
PAIRS = [
    ("rectified", "power average", None),
    ("square", "power average", -0.6),
    ("nothing", "power average", -1.2),
    ("exponentials", "power average", -0.6),
    ("batch norm", "logarithm of channels", -0.6),
    ("bias of zero", "logarithm of channels", None),
    ("bias of zero", "length", -1.2),
    ("transposed", "length", -1.2),
    ("grouped", "normalised", -1.2),
    ("square", "normalised", None),
    ("on channels", "normalised", -1.2),
    ("batch norm", "normalised", -1.2),
    ("transposed", "normalised", None),
    ("bias of zero", "shares", None),
    ("bias of zero", "shares", -1.2),
    ("square", "log-sum-exp", -0.6),
    ("softplus", "deviation", -0.6),
    ("batch norm", "inverse", -0.6),
    ("square", "inverse", -0.6),
    ("batch norm", "geometric mean", -0.6),
    ("nothing", "root mean square norm", None),
    ("nothing", "root mean square norm", -0.6),
    ("on channels", "root mean square norm", None),
    ("batch norm", "logarithm of a square", -1.2),
    ("bias of zero", "average pool", -1.2),
    ("batch norm", "adaptive pool", None),
    ("bias of zero", "adaptive pool", None),
    ("rectified", "linear", -1.2),
    *((between, end, None) for between, end in zip(BETWEEN, list(END)[-1 : -len(BETWEEN) - 1 : -1], strict=True)),
    *((between, end, -1.2) for between, end in zip(BETWEEN, END, strict=False)),
]


@pytest.mark.parametrize("mutations", [{}, WIDE, HALF], ids=["substitutions", "wide", "half"])
@pytest.mark.parametrize(("between", "end", "bias"), PAIRS)
def test_as_exact_as_naive(between, end, bias, mutations, device):
    net, X = model_of((between, end, bias)), sequences(2, L)
    X[1, :, 17:22] = 0  # N
    found = yuzu.yuzu_ism(net, X, output="delta", device=device, **mutations)
    if (between, end, bias) == ("batch norm", "geometric mean", -0.6) and not mutations:
        # near 1e-5 the logarithm makes much of the rounding of either
        assert_right_or_known(found, net, X, "1.44e-5 on some processors, naive float32 has 1.03e-5", output="delta")
    else:
        assert_right(found, net, X, output="delta", device=device, **mutations)


def doubted(monkeypatch):
    """The mutants that are run naively once more, and all that were run."""
    count = [0, 0]
    chunk = Run._returned

    def returned(self, changes):
        count[1] += self.sites.difference.shape[:2].numel()
        if self.doubtful is not None:
            count[0] += int(self.doubtful.sum())
        return chunk(self, changes)

    monkeypatch.setattr(Run, "_returned", returned)
    return count


@pytest.mark.parametrize("end", ["power average", "length over positions", "shares", "root mean square norm", "log-sum-exp"])
def test_sums_need_no_naive_run(end, monkeypatch):
    """Of positive numbers they are exact in float64, however many mutants they nearly vanish in."""
    net, X = model(BETWEEN["nothing"], END[end], -1.2), sequences(2, L)
    monkeypatch.setattr(InUse, "plan_without", lambda *_: pytest.fail("mutants were run naively"))
    made = yuzu.precompute(net, L, device="cpu")
    yuzu.yuzu_ism(net, X, made, device="cpu", **HALF)


def test_only_what_nearly_vanishes_is_run_naively(monkeypatch):
    net, X = model(BETWEEN["batch norm"], END["normalised"], -1.2, seed=3), sequences(2, L)
    made = yuzu.precompute(net, L, device="cpu")
    count = doubted(monkeypatch)
    yuzu.yuzu_ism(net, X, made, device="cpu")
    assert 0 < count[0] < count[1] / 2
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm1d):  # as if it were trained
            nn.init.constant_(layer.bias, 1.0)
    count[:] = [0, 0]
    yuzu.yuzu_ism(net, X, made, device="cpu")
    assert count[0] == 0 and count[1]


@pytest.mark.parametrize("output", ["l2", "prediction"])
@pytest.mark.parametrize(("between", "end"), [("batch norm", "normalised"), ("rectified", "power average")])
def test_other_outputs(between, end, output, device):
    net, X = model(BETWEEN[between], END[end], None, seed=3), sequences(2, L)
    found = yuzu.yuzu_ism(net, X, output=output, device=device, **HALF)
    assert_right(found, net, X, output=output, device=device, **HALF)


@pytest.mark.parametrize(("between", "end"), [("batch norm", "normalised"), ("rectified", "power average"), ("square", "shares")])
def test_in_float64(between, end, device):
    net, X = model(BETWEEN[between], END[end], -0.6, seed=3).double(), sequences(2, L, dtype=torch.float64)
    found = yuzu.yuzu_ism(net, X, output="delta", device=device)
    assert_right(found, net, X, output="delta", device=device)


class Branches(nn.Module):
    """What is kept in float64 is read by a convolution, a head of its own and an output, too."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(4, C, 7, padding=3), nn.Conv1d(C, C, 5, padding=2)
        self.head = nn.Linear(C * L, 3)

    def forward(self, x):
        x = torch.relu(self.first(x) - 0.6)
        pooled = F.avg_pool1d(x, 3, 1, 1)
        steep = torch.log(pooled + 1e-6)
        return self.head((self.second(pooled) + steep).flatten(1)), pooled, torch.sigmoid(pooled.mean(-1))


@pytest.mark.parametrize("mutations", [{}, HALF], ids=["substitutions", "half"])
def test_other_readers(mutations, device):
    net, X = randomized(Branches().eval()), sequences(2, L)
    found = yuzu.yuzu_ism(net, X, output="delta", device=device, **mutations)
    assert_right(found, net, X, output="delta", device=device, **mutations)
    func = {"func": lambda y: y[1] * 2}
    found = yuzu.yuzu_ism(net, X, output="delta", device=device, **func, **mutations)
    assert_right(found, net, X, output="delta", device=device, **func, **mutations)


class Given(nn.Module):
    """Another input decides how sparse the units are, and where they nearly vanish."""

    def __init__(self, pooled):
        super().__init__()
        self.first, self.second = nn.Conv1d(4, C, 7, padding=3, bias=False), nn.Conv1d(C, C, 5, padding=2, bias=False)
        self.head, self.pooled = nn.Linear(C * L, 2), pooled

    def forward(self, x, level):
        x = torch.relu(self.first(x) + level[:, :, None])
        x = F.avg_pool1d(x * x, 3, 1, 1).sqrt() if self.pooled else self.second(x)
        return self.head(F.normalize(x, dim=1).flatten(1))


@pytest.mark.parametrize("pooled", [False, True])
def test_another_input(pooled, device):
    net, X, levels = randomized(Given(pooled).eval()), sequences(2, L), (torch.tensor([[-0.2] * C, [-1.0] * C]),)
    every = apply_pairwise(yuzu.yuzu_ism, net, X, levels, device=device, output="delta", **HALF)
    for i in range(2):
        args = (levels[0][[i, i]],)
        assert_right(every[:, i], net, X, args=args, output="delta", device=device, **HALF)


def test_a_factor_that_a_kernel_has_taken_over(device):
    """The differences before it are not those of the node that the convolution reads."""

    class Taken(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv1d(4, C, 7, padding=3), nn.BatchNorm1d(C)
            self.second, self.head = unbiased(nn.Conv1d(C, C, 5, padding=2)), nn.Linear(C * L, 2)

        def forward(self, x):
            x = torch.relu(self.norm(torch.relu(self.first(x) - 0.6)) - 1.0)
            return self.head(F.normalize(self.second(x), dim=1).flatten(1))

    net, X = randomized(Taken().eval(), seed=5), sequences(2, L)
    with torch.no_grad():
        net.second.bias.zero_()
        net.norm.weight.copy_(torch.linspace(-2, 300, C))
    found = yuzu.yuzu_ism(net, X, output="delta", device=device, **HALF)
    assert_right(found, net, X, output="delta", device=device, **HALF)


@pytest.mark.parametrize(
    "net", [lambda: models.ToyNet(4), lambda: models.DeepSEA(4, 200), lambda: models.Basset(4, 600), lambda: models.BPNet(4)], ids=["ToyNet", "DeepSEA", "Basset", "BPNet"]
)
def test_models_without_anything_steep_are_left_alone(net):
    net = net().eval()
    plan = make_plan(capture(net, (4, 600 if isinstance(net, models.Basset) else 200), (), torch.float32))
    assert not plan.widened.run and not plan.widened.precise and not plan.may_fade
    assert not find_fading(plan, lambda _: True)


@pytest.mark.parametrize(
    ("end", "kept", "exact"),
    [
        ("power average", ["relu", "pow", "avg_pool1d", "abs", "relu"], ["conv1d"]),
        ("length", ["relu", "mul", "sum"], ["conv1d"]),
        ("length over positions", ["mul", "sum"], []),
        ("logarithm of a square", [], ["conv1d"]),
        ("linear", ["mean", "linear"], []),
    ],
)
def test_what_is_kept_in_float64(end, kept, exact):
    """From where digits are lost to what is steep; of products with weights on windows the reference alone."""
    plan = make_plan(capture(model(BETWEEN["rectified"], END[end]), (4, L), (), torch.float32))

    def names(indices):
        return [plan.graph.nodes[i].op.removeprefix("aten.") for i in sorted(indices)]

    assert (names(plan.widened.kept), names(plan.widened.exact)) == (kept, exact)


def test_memory_counts_what_is_kept_in_float64():
    sizes = []
    for end in ("power average", "average pool"):
        net = model(BETWEEN["rectified"], END[end])
        plan = make_plan(capture(net, (4, L), (), torch.float32))
        sizes.append([tune_memory.memory_of(plan, L, 4, 1, itemsize, 3).site for itemsize in (4, 8)])
    steady = make_plan(capture(model(BETWEEN["rectified"], lambda: nn.AvgPool1d(4, 2)), (4, L), (), torch.float32))
    least = tune_memory.memory_of(steady, L, 4, 1, 4, 3).site
    assert all(single > 1.5 * least for single, _ in sizes)


def test_lowered_products_stay_lowered():
    """Whose differences have three digits anyway."""
    net, X = model(BETWEEN["rectified"], END["length"]), sequences(1, L)
    plan = make_plan(capture(net, (4, L), (), torch.float32), "medium")
    device = torch.device("cpu")
    run = Run(plan, Weights(net, device), Derived(), device)
    assert not run.widened.run and run.set_reference(X, ()).wide is None


class OneChannelWithoutBias(nn.Module):
    """All terms of the first channel vanish in some mutants; a large bias of the second channel hides that."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(4, 2, 1, bias=False)
        self.first, self.second = nn.Conv1d(2, 2, 1, bias=False), nn.Conv1d(2, 2, 3, padding=1)
        with torch.no_grad():
            self.stem.weight[:] = torch.tensor([[1000.0, 0.0013, 3.1, 700.0], [1.0, 2.0, 3.0, 0.5]])[:, :, None]
            self.first.weight[:] = torch.tensor([[1.3, 0.0], [0.0, 1.0]])[:, :, None]
            self.second.weight.zero_()
            self.second.weight[0, 0, 1] = 0.7
            self.second.weight[1, 1] = 1.0
            self.second.bias[:] = torch.tensor([0.0, 300.0])

    def forward(self, x):
        y = self.second(torch.relu(self.first(torch.relu(self.stem(x)))))
        return torch.log(y[:, 0, ::6] + 1e-9)


def test_a_bias_of_one_channel_hides_nothing_of_another(device):
    net, X = OneChannelWithoutBias().eval(), sequences(2, L)
    made = yuzu.precompute(net, L, conv="windows", device=device)
    assert_right(yuzu.yuzu_ism(net, X, made, output="delta", device=device), net, X, output="delta", device=device)
