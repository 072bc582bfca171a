"""Factors and divisors that a convolution takes over."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import yuzu
from tests.oracle import assert_right, errors, oracle
from tests.small_layers import Model, with_signs
from tests.small_models import sequences
from yuzu._engine.handlers.pool import AveragePool
from yuzu._engine.plan.plan import make_plan
from yuzu._engine.rewrite.all import capture

# what the check of precompute finds wrong would run naively, and be right all the same
pytestmark = pytest.mark.filterwarnings("error::yuzu.YuzuWarning")

L = 40


@pytest.mark.parametrize("order", ["before", "after", "both"])
def test_factors_in_kernels_follow_the_weights(order):
    layers = [nn.Conv1d(6, 6, 3, padding=1)]
    if order != "after":
        layers.insert(0, nn.BatchNorm1d(6))
    if order != "before":
        layers.append(nn.BatchNorm1d(6))
    model = with_signs(nn.Sequential(nn.Conv1d(4, 6, 5), nn.ReLU(), *layers, nn.ReLU())).double()
    X = sequences(2, L)
    precomputation = yuzu.precompute(model, L)
    assert_right(yuzu.yuzu_ism(model, X, precomputation, output="delta"), model, X, output="delta")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_var.data.mul_(3.0)  # leaves no trace in version counters
            module.weight.data.neg_()
    assert_right(yuzu.yuzu_ism(model, X, precomputation, output="delta"), model, X, output="delta")


@pytest.mark.parametrize("signs", ["positive", "mixed"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_factors_past_a_rectifier(signs, dtype, device):
    """As in SpliceAI's residual blocks: what a batch norm reads is read by the skip connection too."""

    def forward(x, conv, norm, after, pool, last):
        y = conv(x)
        y = y + after(norm(y).relu())
        return last(pool(norm(y).relu()))

    layers = (nn.Conv1d(4, 6, 5), nn.BatchNorm1d(6), nn.Conv1d(6, 6, 3, padding=1), nn.MaxPool1d(2), nn.Conv1d(6, 2, 3))
    model = with_signs(Model(forward, *layers)).to(dtype)
    if signs == "positive":
        layers[1].weight.data.abs_().add_(0.1)
    X = sequences(2, L, dtype=dtype)
    precomputation = yuzu.precompute(model, L, device=device)
    plan = precomputation.bind(model, L, 4, (), torch.device(device)).plan
    divided = [node.op for node, choice in zip(plan.graph.nodes, plan.choices, strict=True) if choice.divisor is not None]
    assert divided == ["aten.relu"]
    for sign in (1, -1, 1e-30):
        layers[1].weight.data[:3].mul_(sign)
        found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device=device)
        assert_right(found, model, X, output="delta", device=device)
    medium = yuzu.precompute(model, L, precision="medium", device=device)
    wrong, _ = errors(yuzu.yuzu_ism(model, X, medium, output="delta", device=device), oracle(model, X)["delta"])
    assert wrong < 2e-2


def test_a_shared_convolution_keeps_its_own_kernel():
    """One convolution used before a batch norm and without one, in front of a pool and not."""
    def forward(x, conv, norm):
        y = norm(conv(x))
        return F.max_pool1d(norm(conv(y).relu()), 2), conv(y)

    model = with_signs(Model(forward, nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4))).double()
    X = sequences(2, L)
    found = yuzu.yuzu_ism(model, X, output="delta")
    assert_right(found, model, X, output="delta")


def average_counts(graph):
    """The divisors of its average pool."""
    return next(rule for rule in make_plan(graph).rules if isinstance(rule, AveragePool)).counts


@pytest.mark.parametrize("seed", range(60))
def test_divisors_of_average_pools(seed):
    rng = np.random.default_rng(seed)
    kernel = int(rng.integers(1, 12))
    stride, padding, ceil = int(rng.integers(1, 14)), int(rng.integers(kernel // 2 + 1)), bool(rng.integers(2))
    length = int(rng.integers(kernel, 40))
    layer = nn.AvgPool1d(kernel, stride, padding, ceil, count_include_pad=bool(rng.integers(2)))
    x = torch.rand(1, 4, length, dtype=torch.float64) + 1
    found = layer(x)
    starts = range(-padding, -padding + found.shape[2] * stride, stride)
    sums = torch.stack([x[:, :, max(i, 0) : i + kernel].sum(2) for i in starts], 2)
    counts = average_counts(capture(layer, (4, length), (), torch.float64))
    torch.testing.assert_close(sums / counts, found, rtol=1e-12, atol=0)


@pytest.mark.parametrize("count_include_pad", [True, False])
def test_divisors_of_a_wide_average_pool_take_no_room(count_include_pad):
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for tensor in pytree.tree_leaves(result):
                self.numbers = max(self.numbers, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
            return result

    graph = capture(nn.AvgPool1d(201, 1, 100, count_include_pad=count_include_pad), (4, 4000), (), torch.float64)
    with Largest() as seen:
        counts = average_counts(graph)
    assert 4000 <= seen.numbers <= 4 * 4000
    assert counts[2000] == 201 and counts[0] == counts[-1] == (201 if count_include_pad else 101)


def test_a_factor_of_another_dtype_leaves_the_kernel_its_own():
    class Halved(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.back = nn.Conv1d(4, 1, 5), nn.ConvTranspose1d(1, 2, 3, stride=2)
            self.scale = torch.tensor(0.5, dtype=torch.float64)

        def forward(self, x):
            return self.back(self.conv(x) * self.scale)

    model = Halved().eval()
    X = sequences(2, L)
    found = yuzu.yuzu_ism(model, X, output="delta")
    assert max(errors(found, yuzu.naive_ism(model, X, output="delta"))) < 1e-5
