"""What is rearranged to do less work computes the same: pools before activations, factors in kernels, chunks of the
middle and of the ends, dense layers by positions, differences that stay in bfloat16."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import FLOAT64, assert_close, assert_right, decide, errors, oracle, sequences
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import yuzu
from yuzu._engine.capture.export import capture
from yuzu._engine.edits import Mutations, batches
from yuzu._engine.graph import Weights
from yuzu._engine.handlers import dense
from yuzu._engine.handlers.dense import DENSE_WAYS
from yuzu._engine.handlers.pool import AveragePool
from yuzu._engine.plan.plan import make_plan
from yuzu._engine.run.run import Derived, Run
from yuzu._engine.store.in_use import PLANS_KEPT, InUse
from yuzu._engine.tune import measure
from yuzu._engine.ways import convolution as convolution_ways
from yuzu._engine.ways import few_output_channels

L = 40
# what the check of precompute finds wrong would run naively, and be right all the same
pytestmark = pytest.mark.filterwarnings("error::yuzu.YuzuWarning")


class Model(nn.Module):
    """A function of the sequence and of the layers that it uses."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


def operations(model, length=L, dtype=torch.float64):
    """The operations of a model in the order in which its changes go through them."""
    precomputation = yuzu.precompute(model.to(dtype), length)
    return [layer.operation.split(" ")[0] for layer in precomputation.layers]


def with_signs(model):
    """Random weights; those of batch norms of both signs, and one of zero."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.weight.data = torch.randn(module.num_features, generator=generator)
            module.weight.data[0] = 0.0
            module.bias.data = torch.randn(module.num_features, generator=generator)
            module.running_mean = torch.randn(module.num_features, generator=generator)
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
    return model.eval()


def chain(*layers, tail=True):
    return with_signs(nn.Sequential(nn.Conv1d(4, 6, 5, padding=2), *layers, *([nn.Conv1d(6, 3, 3)] if tail else [])))


MOVED = {
    "relu": ([nn.ReLU()], nn.MaxPool1d(3), ["conv1d", "max_pool1d", "relu", "conv1d"]),
    "batch norm, relu": (
        [nn.BatchNorm1d(6), nn.ReLU()],
        nn.MaxPool1d(2),
        ["conv1d", "batch_norm", "max_pool1d", "relu", "conv1d"],
    ),
    "relu, batch norm": (
        [nn.ReLU(), nn.BatchNorm1d(6)],
        nn.MaxPool1d(4, 2, 1),
        ["conv1d", "mul", "max_pool1d", "mul", "relu", "batch_norm", "conv1d"],
    ),
    "two batch norms around a sigmoid": (
        [nn.BatchNorm1d(6), nn.Sigmoid(), nn.BatchNorm1d(6)],
        nn.MaxPool1d(3, 1),
        None,
    ),
    "two batch norms after": ([nn.Tanh(), nn.BatchNorm1d(6), nn.ELU(), nn.BatchNorm1d(6)], nn.MaxPool1d(2), None),
    "leaky, ceil": ([nn.LeakyReLU(0.1)], nn.MaxPool1d(3, 2, ceil_mode=True), None),
    "dilated": ([nn.ReLU6()], nn.MaxPool1d(3, 2, padding=1, dilation=2), None),
    "hardtanh": ([nn.Hardtanh(-0.3, 0.2), nn.SELU()], nn.MaxPool1d(5), None),
}


@pytest.mark.parametrize("name", list(MOVED))
def test_pools_go_before_functions_that_keep_order(name, device):
    layers, pool, wanted = MOVED[name]
    model = chain(*layers, pool)
    X = sequences(2, L)
    found = operations(copy.deepcopy(model))
    if wanted is not None:
        assert found == wanted
    assert found.index("max_pool1d") <= 3
    for dtype in (torch.float32, torch.float64):
        found = yuzu.yuzu_ism(model.to(dtype), X, output="delta", device=device)
        assert_right(found, model, X, output="delta", device=device)


def test_pools_in_two_dimensions_go_first_too():
    model = with_signs(
        nn.Sequential(
            nn.Unflatten(1, (1, 4)),
            nn.Conv2d(1, 5, (4, 5), padding=(0, 2)),
            nn.ReLU(),
            nn.BatchNorm2d(5),
            nn.MaxPool2d((1, 3)),
            nn.Flatten(),
            nn.Linear(5 * 13, 2),
        )
    )
    X = sequences(2, L)
    found = operations(copy.deepcopy(model))
    assert found.index("max_pool2d") < found.index("relu")
    assert_right(yuzu.yuzu_ism(model.double(), X, output="delta"), model, X, output="delta")


def negative_slope(x):
    return F.leaky_relu(x, -0.5)


def negative_alpha(x):
    return F.elu(x, -1.0)


@pytest.mark.parametrize("function", [negative_slope, negative_alpha, F.gelu, torch.abs, torch.square])
def test_pools_stay_behind_functions_that_do_not(function):
    model = Model(lambda x, conv: F.max_pool1d(function(conv(x)), 3), nn.Conv1d(4, 6, 5))
    X = sequences(2, L)
    assert operations(copy.deepcopy(model))[-1].startswith("max_pool1d")
    assert_right(yuzu.yuzu_ism(model.double(), X, output="delta"), model, X, output="delta")


def test_pools_stay_where_something_else_reads_what_they_would_overtake():
    def both(x, conv):
        y = conv(x).relu()
        return F.max_pool1d(y, 3), y.mean(2)

    model = Model(both, nn.Conv1d(4, 6, 5))
    X = sequences(2, L)
    assert operations(copy.deepcopy(model))[:3] == ["conv1d", "relu", "max_pool1d"]
    found = yuzu.yuzu_ism(model.double(), X, output="delta")
    assert_right(found, model, X, output="delta")


def test_what_a_pool_comes_right_behind_is_still_read_by_others():
    def forward(x, conv):
        y = conv(x)
        z = F.max_pool1d(y.relu(), 3)
        return z * 2, y.mean(2), (y - 1).relu()

    model = Model(forward, nn.Conv1d(4, 6, 5))
    X = sequences(2, L)
    found = operations(copy.deepcopy(model))
    assert found.index("max_pool1d") < found.index("relu")
    assert_right(yuzu.yuzu_ism(model.double(), X, output="delta"), model, X, output="delta")


def test_a_pool_whose_places_are_read_is_right():
    def unpooled(x, conv):
        y, places = F.max_pool1d(conv(x).relu(), 2, return_indices=True)
        return F.max_unpool1d(y, places, 2)

    model = Model(unpooled, nn.Conv1d(4, 6, 5)).double()
    X = sequences(1, L)
    with pytest.warns(yuzu.YuzuWarning):
        found = yuzu.yuzu_ism(model, X, output="delta")
    assert_right(found, model, X, output="delta")


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
    assert sum(getattr(rule, "factor", None) is not None and rule.node.op == "aten.relu" for rule in plan.rules) == 1
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


@pytest.mark.parametrize("way", DENSE_WAYS)
@pytest.mark.parametrize("positions_last", [True, False])
@pytest.mark.parametrize("number, length", [(1, 60), (3, 24)])
@pytest.mark.parametrize("spread", [1, 4000, 1 << 24])
def test_dense_layers_by_every_way(way, positions_last, number, length, spread, monkeypatch):
    monkeypatch.setattr(dense, "SPREAD_BYTES", spread)  # one site in a block, a few, all

    def bind(self, *args, _bind=InUse.__init__, **kwargs):
        _bind(self, *args, **kwargs)
        for rule in self.plan.rules if self.plan is not None else []:
            if rule is not None and way in rule.all_ways():
                rule.way = way

    def forward(x, conv, linear):
        y = F.max_pool1d(conv(x), 4)
        return linear(y.flatten(1) if positions_last else y.transpose(1, 2).flatten(1))

    model = Model(forward, nn.Conv1d(4, 5, 5, padding=2), nn.Linear(5 * (length // 4), 3)).double()
    X = sequences(number, length)
    monkeypatch.setattr(InUse, "__init__", bind)
    precomputation = yuzu.precompute(model, length)
    assert_right(yuzu.yuzu_ism(model, X, precomputation, output="delta"), model, X, output="delta")
    some = yuzu.yuzu_ism(model, X, precomputation, output="delta", start=3, end=-2)
    assert max(errors(some, oracle(model, X, start=3, end=-2)["delta"])) < 1e-10


def test_the_middle_and_the_ends_get_chunks_of_their_own():
    mutations = Mutations.asked(4, 100)
    (group,) = mutations.groups((torch.arange(200) % 4).view(2, 100))
    regular = np.zeros(100, dtype=bool)
    regular[10:95] = True
    parts = list(batches(group, 60, regular))
    seen = np.concatenate([part.sequence * 100 + part.position for part in parts])
    assert sorted(seen) == list(range(200)), "every site once"
    assert all(len(part.position) <= 60 for part in parts)
    assert all(len(set(part.sequence)) == 1 for part in parts)
    assert all(len(set(regular[part.position])) == 1 for part in parts)
    together = list(batches(group, 400, regular))
    assert len(together) == 1, "short sequences share a chunk"
    half = list(batches(group, 60, np.arange(100) < 5))
    assert len(half) == 4, "where nearly all lie near an end, nothing is split off"


@pytest.mark.parametrize("conv", ["auto", "banded", "blocks", "whole", "fold", "windows", "cyclic"])
def test_medium_precision_where_differences_stay_in_bfloat16(conv, device):
    layers = [
        nn.Conv1d(4, 32, 7, padding=3),
        nn.ReLU(),
        nn.Conv1d(32, 32, 5, padding=2),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 30, 8),
    ]
    model = nn.Sequential(*layers).eval()
    X = sequences(2, 60)
    precomputation = yuzu.precompute(model, 60, precision="medium", conv=conv, device=device)
    found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device=device)
    assert found.dtype == np.float32 or found.dtype == torch.float32
    wrong, _ = errors(found, oracle(model, X)["delta"])
    assert 1e-5 < wrong < 2e-2, "products in bfloat16, and only those"


@pytest.mark.parametrize("dilation", [1, 3, 50])
@pytest.mark.parametrize("channels", [1, 3, 8])
@pytest.mark.parametrize("kernel", [1, 2, 7, 30])
@pytest.mark.parametrize("way", ["banded", "blocks", "whole", "fold", "fold in one product"])
def test_few_output_channels(dilation, channels, kernel, way, device, monkeypatch):
    if way == "fold in one product":
        block = {1: 16, 3: 5, 8: 3}[channels]
        monkeypatch.setattr(few_output_channels, "folded_block", lambda shape, lowers: block)
    reach = (kernel - 1) * dilation
    model = nn.Sequential(
        nn.Conv1d(4, 6, 5, padding=2), nn.ReLU(), nn.Conv1d(6, channels, kernel, padding=reach, dilation=dilation)
    ).eval()
    X = sequences(2, L)
    for dtype in (torch.float32, torch.float64):
        precomputation = yuzu.precompute(model.to(dtype), L, conv=way.split()[0], device=device)
        found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device=device)
        assert_right(found, model, X, output="delta", device=device)
    precomputation = yuzu.precompute(model.float(), L, conv=way.split()[0], precision="medium", device=device)
    found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device=device)
    assert errors(found, oracle(model, X)["delta"])[0] < 2e-2


def test_the_weight_of_a_whole_window_stays_small(device, monkeypatch):
    """Edits of ranges have windows of any width."""
    model = nn.Sequential(nn.Conv1d(4, 16, 7, padding=3), nn.ReLU(), nn.Conv1d(16, 16, 7, padding=3)).eval()
    X = sequences(1, 200)
    products = []
    product = convolution_ways.matrix_product
    monkeypatch.setattr(
        convolution_ways, "matrix_product", lambda x, w: products.append(w.numel()) or product(x, w)
    )
    made = yuzu.precompute(model, 200, conv="whole", device=device)
    assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device=device), model, X, output="delta", device=device)
    assert products and max(products) == 7 * 13 * 16 * 16
    products.clear()
    ranges = {"ranges": [(0, 120), (30, 150), (80, 200)], "output": "delta"}
    found = yuzu.yuzu_ism(model, X, made, device=device, **ranges)
    assert_right(found, model, X, device=device, **ranges)
    assert not products, "126 positions' weight would have 4 million numbers"


def test_weights_of_whole_windows_are_counted_and_not_hoarded(device):
    model = nn.Sequential(nn.Conv1d(4, 4, 5), nn.ReLU(), nn.Conv1d(4, 4, 5)).eval()
    X = sequences(1, 300)

    def bound(conv):
        made = yuzu.precompute(model, 300, conv=conv, device=device)
        return made, made.bind(model, 300, 4, (), torch.device(device))

    (whole, used), (_, other) = bound("whole"), bound("banded")
    sizes = []
    for width in (1, 20, 60, 100, 30, 2):
        edits = Mutations.asked(4, 300, ranges=[(i, i + width) for i in range(50)])
        found = yuzu.yuzu_ism(model, X, whole, ranges=[(i, i + width) for i in range(50)], device=device)
        assert found.shape == (1, 50)
        more = used.memory(edits).weights - other.memory(edits).weights
        of_layers = [w * (w + 4) * 16 for w in (width, width + 4)]
        assert more == 4 * 2 * sum(numbers for numbers in of_layers if numbers <= convolution_ways.WHOLE_NUMBERS)
        sizes.append(used.derived.nbytes)
    most = 4 * convolution_ways.WHOLE_KEPT * convolution_ways.WHOLE_NUMBERS
    assert sizes[0] < max(sizes) <= 2 * most + 10_000 and sizes[-1] < max(sizes)
    wide = Mutations.asked(4, 300, ranges=[(i, i + 250) for i in range(50)])
    assert used.sites_at_once(wide) == other.sites_at_once(wide) > 1


@pytest.mark.parametrize("conv", ["windows", "taps"])
@pytest.mark.parametrize(("kernel", "dilation"), [(2, 9), (3, 5), (3, 13), (4, 7)])
@pytest.mark.parametrize("cut", [(14, 8), (3, 30), (0, 1), (30, 3)])
def test_products_of_taps_for_what_is_wanted(conv, kernel, dilation, cut, device, monkeypatch):
    """Where a crop leaves little of what wide convolutions yield, only that is computed."""
    for name, value in (("TAPS_CHANNELS", 1), ("TAPS_WIDTH", 1), ("TAPS_SHARE", 0.95)):
        monkeypatch.setattr(convolution_ways, name, value)
    yielded = []
    taps = convolution_ways.taps

    def spied(call):
        result = taps(call)
        yielded.append(result.shape[1] / (call.x.shape[2] + call.reach))
        return result

    monkeypatch.setattr(convolution_ways, "taps", spied)
    entry = convolution_ways.WAYS["taps"]
    monkeypatch.setitem(convolution_ways.WAYS, "taps", dataclasses.replace(entry, run=spied))
    layers = [nn.Conv1d(4, 7, 5, padding=2), nn.Conv1d(7, 6, kernel, padding=10, dilation=dilation), nn.Conv1d(6, 3, 3)]

    def forward(x, first, second, last):
        return last(second(first(x).relu()).relu())[:, :, cut[0] : -cut[1]]

    model = Model(forward, *layers)
    X = sequences(2, L + 20)
    for dtype in (torch.float32, torch.float64):
        precomputation = yuzu.precompute(model.to(dtype), L + 20, conv=conv, device=device)
        decide(precomputation, sites=3)
        found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device=device)
        assert_right(found, model, X, output="delta", device=device)
    assert min(yielded) < 0.9, "some of what the windows reach is not wanted"
    precomputation = yuzu.precompute(model.float(), L + 20, conv=conv, precision="medium", device=device)
    decide(precomputation, sites=3)
    found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device=device)
    assert errors(found, oracle(model, X)["delta"])[0] < 2e-2


def test_many_taps_are_one_convolution_however_little_is_wanted(monkeypatch):
    """Their sums would be read, written and rounded once for each tap."""
    for name, value in (("TAPS_CHANNELS", 1), ("TAPS_WIDTH", 1), ("TAPS_SHARE", 1.0)):
        monkeypatch.setattr(convolution_ways, name, value)
    calls = []
    taps = convolution_ways.taps
    monkeypatch.setattr(convolution_ways, "taps", lambda call: calls.append(call) or taps(call))
    for kernel in (convolution_ways.MOST_TAPS, convolution_ways.MOST_TAPS + 1):
        calls.clear()
        layers = [nn.Conv1d(4, 6, 5, padding=2), nn.ReLU(), nn.Conv1d(6, 6, kernel, padding=20, dilation=5)]
        model = Model(lambda x, body: body(x)[:, :, 20:-3], nn.Sequential(*layers))
        X = sequences(1, L + 20)
        precomputation = yuzu.precompute(model, L + 20, conv="windows", device="cpu")
        decide(precomputation, sites=3)
        assert_right(yuzu.yuzu_ism(model, X, precomputation, output="delta", device="cpu"), model, X, output="delta")
        assert bool(calls) == (kernel <= convolution_ways.MOST_TAPS)


def test_windows_are_remembered_for_ways_that_yield_more_or_less(device):
    """One plan run by one way and then by another, as when it is verified and then measured."""
    model = Model(
        lambda x, first, second: second(first(x).relu())[:, :, 25:-3],
        nn.Conv1d(4, 6, 5, padding=2),
        nn.Conv1d(6, 6, 3, padding=13, dilation=13),
    ).double()
    X = sequences(1, L + 20).double()
    precomputation = yuzu.precompute(model, L + 20, conv="banded", device=device)
    decide(precomputation, sites=3)
    found = [yuzu.yuzu_ism(model, X, precomputation, output="delta", device=device)]
    plan = precomputation.bind(model, L + 20, 4, (), torch.device(device)).plan
    for way in ("taps", "banded"):
        for rule in plan.rules:
            if rule is not None and rule.all_ways():
                rule.way = way
        found.append(yuzu.yuzu_ism(model, X, precomputation, output="delta", device=device))
    for each in found:
        assert_right(each, model, X, output="delta", device=device)


def test_a_layer_of_another_dtype_than_the_sequence():
    """Its ways are tried in its own dtype."""

    def forward(x, first, second):
        return F.conv1d(first(x).relu().double(), second.weight.double()).float()

    model = Model(forward, nn.Conv1d(4, 8, 101, padding=50), nn.Conv1d(8, 4, 7)).eval()
    X = sequences(1, 120)
    for precision in ("highest", "medium"):
        precomputation = yuzu.precompute(model, 120, precision=precision, device="cpu")
        found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device="cpu")
        assert errors(found, oracle(model, X)["delta"])[0] < (1e-5 if precision == "highest" else 2e-2)


@pytest.mark.parametrize("settings", [{}, {"stride": 3}, {"dilation": 2, "padding": 6}, {"bias": False}])
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_the_reference_of_few_output_channels(settings, channels, monkeypatch):
    """Computed channels last: the model's own values."""
    model = nn.Sequential(nn.Conv1d(4, 16, 5), nn.ReLU(), nn.Conv1d(16, channels, 16, **settings)).eval()
    X = sequences(3, 2 * L)
    calls = []
    conv2d = torch.conv2d
    monkeypatch.setattr(torch, "conv2d", lambda *args: calls.append(args) or conv2d(*args))
    run = bound_run(model, X)
    assert calls, "not as the model does it"
    (output,) = run.plan.graph.output_nodes
    found, wanted = run.value(output), model(X).detach()
    assert found.shape == wanted.shape and found.is_contiguous()
    assert_close(found, wanted)


def bound_run(model, X):
    """A run with the reference of some sequences."""
    bound = yuzu.precompute(model, X.shape[2], device="cpu").bind(model, X.shape[2], 4, (), torch.device("cpu"))
    run = Run(bound.plan, bound.weights(), bound.derived, torch.device("cpu"))
    run.set_reference(X, ())
    return run


@pytest.mark.parametrize("conv", ["windows", "banded", "fold"])
def test_calls_leave_nothing_behind(conv, device):
    """Index tables are kept for the next call, but never made again for every call."""
    crop = nn.Sequential(nn.Conv1d(4, 5, 9), nn.ReLU(), nn.Conv1d(5, 2, 5, dilation=3))
    model = Model(lambda x, body: body(x)[:, :, 5:-4], crop).double()
    X = sequences(2, L)
    precomputation = yuzu.precompute(model, L, conv=conv, device=device)
    plan = precomputation.bind(model, L, 4, (), torch.device(device)).plan

    def kept():
        windows = [w for found, _ in plan.remembered._kept.values() for w in found if w is not None]
        entries = [value for w in windows for value in w._cache.values()]
        return len(entries), sum(t.nbytes for t in torch.utils._pytree.tree_leaves(entries) if isinstance(t, torch.Tensor))

    counts = []
    for _ in range(4):
        found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device=device)
        counts.append(kept())
    assert counts[1:] == counts[1:2] * 3
    assert_right(found, model, X, output="delta", device=device)


@pytest.mark.parametrize("conv", ["windows", "banded", "blocks", "whole", "fold", "cyclic"])
@pytest.mark.parametrize(("channels", "kernel"), [(2, 32), (4, 16), (4, 24), (6, 16), (8, 8), (8, 12), (12, 8)])
def test_medium_precision_with_few_channels(conv, channels, kernel, device):
    """Sizes at which oneDNN's bfloat16 convolutions are wrong."""
    for outputs, stride in ((2, 1), (16, 1), (16, 2)):
        last = nn.Conv1d(channels, outputs, kernel, stride, padding=kernel - 1)
        model = nn.Sequential(nn.Conv1d(4, channels, 7, padding=3), nn.ReLU(), last).eval()
        X = sequences(1, L)
        precomputation = yuzu.precompute(model, L, precision="medium", conv=conv, device=device)
        found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device=device)
        wrong, _ = errors(found, oracle(model, X)["delta"])
        assert wrong < 2e-2


@pytest.mark.parametrize("sign", [1, -2])
def test_sums_written_over_one_of_their_terms(sign):
    def forward(x, first, second):
        y = first(x).relu()
        z = torch.add(second(y), y, alpha=sign)
        crop = torch.add(second(z)[:, :, 5:-5], z[:, :, 5:-5], alpha=sign)
        return torch.sub(y[:, :, 5:-5], crop, alpha=0.5)

    model = Model(forward, nn.Conv1d(4, 6, 5, padding=2), nn.Conv1d(6, 6, 3, padding=2, dilation=2)).double()
    X = sequences(2, L)
    assert_right(yuzu.yuzu_ism(model, X, output="delta"), model, X, output="delta")


def test_what_carrying_differences_cannot_speed_up_runs_naively(monkeypatch, tmp_path, recwarn):
    """Attention from the first layer on: the model itself takes less for a mutant than the engine around it."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4 * L, 64), nn.GELU(), nn.Linear(64, 2)).eval()
    X = sequences(2, L)
    monkeypatch.setattr(measure, "WORTH_COMPARING", 0.0)
    kept = yuzu.precompute(model, L)
    monkeypatch.setattr(measure, "naive_is_faster", lambda *args: (1e-9, 7))
    precomputation = yuzu.precompute(model, L)
    assert "runs naively: that takes" in precomputation.summary()
    precomputation.save(tmp_path / "naive.yuzu")
    loaded = yuzu.Precomputation.load(tmp_path / "naive.yuzu")
    for used in (kept, precomputation, loaded):
        assert_right(yuzu.yuzu_ism(model, X, used, output="delta"), model, X, output="delta")
    assert "naively" not in yuzu.precompute(model, L, conv="fold").summary(), "a way was asked for"
    assert not recwarn.list, "nothing is wrong with the model"


def test_a_model_is_compared_with_itself(device):
    """The comparison times the model as it is: a huge plan loses to it and a tiny one does not."""
    model = nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * (L - 2), 1)).to(device).eval()
    X = sequences(1, L)
    with torch.no_grad():
        assert measure.naive_is_faster(model, X, (), torch.device(device), 1e-12, 16) is None
        found = measure.naive_is_faster(model, X, (), torch.device(device), 10.0, 16)
    assert found is not None and 0 < found[0] < 10 and found[1] == 16


def heads():
    body = [nn.Conv1d(4, 6, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2)]
    yield "linear", nn.Sequential(*body, nn.Flatten(), nn.Linear(6 * (L // 2), 7), nn.Sigmoid())
    yield "without a bias", nn.Sequential(*body, nn.Flatten(), nn.Linear(6 * (L // 2), 7, bias=False))
    yield "tracks", nn.Sequential(*body, nn.Conv1d(6, 7, 3), nn.Softplus(), nn.Unflatten(2, (-1, 1)))
    yield "grouped", nn.Sequential(*body, nn.Conv1d(6, 6, 3, groups=3))
    yield "softmax", nn.Sequential(*body, nn.Flatten(), nn.Linear(6 * (L // 2), 7), nn.Softmax(1))


@pytest.mark.parametrize("target", [0, -2, [4, 1], slice(1, 6, 2)])
@pytest.mark.parametrize("name, model", list(heads()))
def test_outputs_that_nobody_asked_for(name, model, target):
    model = copy.deepcopy(model).double().eval()
    X = sequences(2, L)
    precomputation = yuzu.precompute(model, L)
    for output in ("delta", "prediction", "l2"):
        found = yuzu.yuzu_ism(model, X, precomputation, output=output, target=target)
        assert_close(found, oracle(model, X, target=target)[output], FLOAT64, FLOAT64)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    found = yuzu.yuzu_ism(model, X, precomputation, output="delta", target=target)
    assert_close(found, oracle(model, X, target=target)["delta"], FLOAT64, FLOAT64)
    whole = yuzu.yuzu_ism(model, X, precomputation, output="delta")
    assert_close(whole, oracle(model, X)["delta"], FLOAT64, FLOAT64)


def test_only_the_chosen_rows_are_multiplied():
    model = nn.Sequential(nn.Conv1d(4, 6, 5), nn.Flatten(), nn.Linear(6 * (L - 4), 50), nn.Tanh()).eval()
    bound = yuzu.precompute(model, L).bind(model, L, 4, (), torch.device("cpu"))
    narrowed = bound.for_outputs([3, -1])
    shapes = [node.shape for node in narrowed.plan.graph.nodes]
    assert (2, 6 * (L - 4)) in shapes and (50, 6 * (L - 4)) not in shapes
    assert narrowed.plan.graph.nodes[-1].shape == (None, 2)
    assert bound.for_outputs(slice(None)) is None, "all of them"
    assert bound.for_outputs([50]) is None, "there is none"


def test_plans_of_some_outputs_are_kept_in_bounds():
    """The oldest makes room, and is made anew when it is asked for again."""
    outputs = PLANS_KEPT + 3
    model = nn.Sequential(nn.Conv1d(4, 3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(3 * (L - 4), outputs)).double().eval()
    X = sequences(1, L)
    made = yuzu.precompute(model, L, device="cpu")
    bound = made.bind(model, L, 4, (), torch.device("cpu"))
    truth = oracle(model, X)["delta"]
    for target in [*range(outputs), 0]:
        found = yuzu.yuzu_ism(model, X, made, output="delta", target=target, device="cpu")
        assert_close(found, truth[..., target], FLOAT64, FLOAT64)
        assert len(bound._of_outputs) <= PLANS_KEPT
    assert len(bound._of_outputs) == PLANS_KEPT and bound._of_outputs.keys()[-1] == (0,)


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


def test_a_weight_that_is_used_twice_is_not_narrowed():
    def tied(x, conv, linear):
        y = conv(x).mean(2)
        return linear(linear(y).relu())

    model = Model(tied, nn.Conv1d(4, 6, 5), nn.Linear(6, 6)).double()
    X = sequences(2, L)
    found = yuzu.yuzu_ism(model, X, output="delta", target=2)
    assert_close(found, oracle(model, X, target=2)["delta"], FLOAT64, FLOAT64)


def over_channels(x, conv, norm):
    return F.max_pool2d(norm(conv(x).relu()), (3, 1), 1, (1, 0))


def fewer_channels(x, conv, norm):
    return F.max_pool2d(norm(conv(x).relu()), (2, 1))


def of_a_mask(x, conv, norm):
    return F.max_pool1d(torch.sigmoid(conv(x) > 0), 2) * norm(conv(x))[:, :, :18]


def of_whole_numbers(x, conv, norm):
    return F.max_pool1d(torch.tanh((norm(conv(x)) * 3).round().long()), 2) * conv(x)[:, :, :18]


@pytest.mark.parametrize("function", [over_channels, fewer_channels, of_a_mask, of_whole_numbers])
def test_pools_that_cannot_go_first(function):
    model = with_signs(Model(function, nn.Conv1d(4, 6, 5), nn.BatchNorm1d(6))).double()
    X = sequences(2, L)
    with pytest.warns(yuzu.YuzuWarning, match=r"max_pool2d: |is of another type"):  # not: the model could not be captured
        found = yuzu.yuzu_ism(model, X, output="delta")
    assert_right(found, model, X, output="delta")


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


def test_ways_are_tried_where_no_limit_is_set(monkeypatch):
    monkeypatch.setattr(measure, "TRIAL_PRODUCTS", {})  # as on CUDA
    model = chain(nn.ReLU())
    X = sequences(2, L)
    assert_right(yuzu.yuzu_ism(model.double(), X, output="delta"), model, X, output="delta")


def test_what_is_made_from_weights_is_kept_once(monkeypatch):
    model = chain(nn.ReLU(), nn.Conv1d(6, 16, 5), nn.ReLU(), tail=False)
    X = sequences(1, 200)
    precomputation = yuzu.precompute(model, 200)
    yuzu.yuzu_ism(model, X, precomputation)
    bound = precomputation.bind(model, 200, 4, (), torch.device("cpu"))
    before = bound.derived.nbytes
    for start in (0, 3, 50, 190):
        yuzu.yuzu_ism(model, X, precomputation, start=start, end=start + 7)
    assert bound.derived.nbytes == before, "windows of other widths need no other weights"


@pytest.mark.parametrize("sites", [1, 7, 25, 60])
@pytest.mark.parametrize("number", [1, 3])
def test_chunks_of_the_middle_and_of_the_ends(sites, number, monkeypatch):
    """Both ends, borders between chunks, several sequences, an N: whatever the size of a chunk."""
    monkeypatch.setattr(InUse, "sites_at_once", lambda self, mutations, references=1, laid_out=0: sites)

    def forward(x, first, second, linear):
        y = F.max_pool1d(first(x).relu(), 3, 2, 1)
        y = y + second(y).relu()
        return linear(F.max_pool1d(y, 2).flatten(1)), F.avg_pool1d(y, 3)

    layers = (nn.Conv1d(4, 5, 7, padding=3), nn.Conv1d(5, 5, 5, padding=4, dilation=2), nn.Linear(5 * 30, 3))
    model = Model(forward, *layers).double()
    X = sequences(number, 120)
    X[0, :, 57] = 0
    bound = yuzu.precompute(model, 120)
    regular = bound.bind(model, 120, 4, (), torch.device("cpu")).plan.reach(np.arange(120), 1)[1]
    assert 40 < regular.sum() < 110, "there is a middle, and there are ends"
    for start, end in ((0, None), (50, 113)):
        found = yuzu.yuzu_ism(model, X, bound, output="delta", start=start, end=end)
        assert_right(found, model, X, output="delta", start=start, end=end)


def one_storage(offset: int) -> nn.Module:
    """Layers whose weights are pieces of one tensor, as flattened parameters are."""
    flat = torch.randn(offset + 12 * 4 * 5 + 12 * 12 * 9)
    first, second = nn.Conv1d(4, 12, 5, padding=2), nn.Conv1d(12, 12, 9, padding=4)
    first.weight = nn.Parameter(flat[offset : offset + 240].view(12, 4, 5))
    second.weight = nn.Parameter(flat[offset + 240 :].view(12, 12, 9))
    return nn.Sequential(first, nn.ReLU(), second).eval()


@pytest.mark.parametrize("offset", [0, 1, 2, 3])
@pytest.mark.parametrize("change", ["a swap", "one number", "not a number"])
def test_changed_weights_that_lie_at_odd_places(offset, change):
    model = one_storage(offset)
    X = sequences(1, L)
    precomputation = yuzu.precompute(model, L, conv="banded", device="cpu")
    before = yuzu.yuzu_ism(model, X, precomputation, output="delta", device="cpu")
    weight = model[2].weight.data
    assert weight.storage_offset() == offset + 240, "else the test is of nothing"
    if change == "a swap":
        weight[:2] = weight[:2].flip(0).clone()
    else:
        weight[3, 4, 5] = 7.0 if change == "one number" else float("nan")
    found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device="cpu")
    if change == "not a number":
        assert torch.as_tensor(found).isnan().any() and not torch.as_tensor(before).isnan().any()
    else:
        assert_right(found, model, X, output="delta", device="cpu")


@pytest.mark.parametrize("channels", [16, 20, 24, 28, 32])
@pytest.mark.parametrize(("kernel", "stride", "outputs", "before"), [(8, 8, 32, 15), (4, 4, 32, 15), (9, 1, 4, 72), (9, 1, 4, 71)])
def test_medium_precision_with_no_padding_left(channels, kernel, stride, outputs, before, device):
    """Sizes at which oneDNN's bfloat16 convolutions are wrong with a long stride."""
    first = nn.Conv1d(4, channels, before, padding=before // 2)
    model = nn.Sequential(first, nn.ReLU(), nn.Conv1d(channels, outputs, kernel, stride)).eval()
    X = sequences(1, 120)
    for conv in ("auto", "fold"):
        precomputation = yuzu.precompute(model, 120, precision="medium", conv=conv, device=device)
        found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device=device)
        wrong, _ = errors(found, oracle(model, X)["delta"])
        assert wrong < 2e-2


@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize("groups", [1, 16])
@pytest.mark.parametrize("kernel", [1, 3])
def test_what_is_kept_is_not_the_weight_itself(precision, groups, kernel):
    """Whoever swaps a weight's tensor for an equal one may write over the old one."""
    model = nn.Sequential(nn.Conv1d(4, 16, 7, padding=3), nn.ReLU(), nn.Conv1d(16, 32, kernel, groups=groups)).eval()
    X = sequences(1, L)
    precomputation = yuzu.precompute(model, L, precision=precision, device="cpu")
    before = yuzu.yuzu_ism(model, X, precomputation, output="delta", device="cpu")
    old = model[2].weight.data
    model[2].weight.data = old.clone()
    old.mul_(-3)
    assert_close(yuzu.yuzu_ism(model, X, precomputation, output="delta", device="cpu"), before, 1e-6)


@pytest.mark.parametrize("conv", ["auto", "windows", "fold", "banded", "blocks", "whole", "cyclic"])
def test_what_is_infinite_where_a_crop_throws_it_away_spoils_nothing(conv, monkeypatch):
    """Mutants from 13 to 33 have the logarithm of a negative number at 23, which no output reads."""
    monkeypatch.setattr(InUse, "sites_at_once", lambda self, mutations, references=1, laid_out=0: 7)

    def forward(x, first, second):
        y = first(x)
        return second(torch.where(torch.arange(60) == 23, y - 0.98, y).log())[:, :, 31:51]

    model = Model(forward, nn.Conv1d(4, 3, 21, padding=10, bias=False), nn.Conv1d(3, 1, 9, padding=4)).double()
    with torch.no_grad():
        model.layers[0].weight.zero_()[:, 0] = 1 / 21
    X = torch.zeros(1, 4, 60, dtype=torch.float64)
    X[:, 0] = 1
    precomputation = yuzu.precompute(model, 60, conv=conv, device="cpu")
    found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device="cpu")
    assert np.isfinite(np.asarray(found)).all()
    assert_right(found, model, X, output="delta")


def flattened(channels=6, out=40):
    layers = nn.Conv1d(4, channels, 5, padding=2), nn.ReLU(), nn.Flatten(), nn.Linear(channels * L, out)
    return nn.Sequential(*layers).eval()


def test_large_weights_leave_room_for_chunks(monkeypatch):
    """Weights that fill the memory which runs get by themselves: as of models with a dense layer on all positions."""
    model = flattened()
    weights = sum(p.nbytes for p in model.parameters())
    monkeypatch.setattr("yuzu._engine.settings.LEAST_MEMORY", 2 * weights)
    made = yuzu.precompute(model, L, device="cpu")
    assert made.settings.max_memory == 4 * weights
    bound = made.bind(model, L, 4, (), torch.device("cpu"))
    mutations = Mutations.asked(4, L)
    assert bound.memory(mutations).weights > 2 * weights, "all of what would be there"
    assert bound.sites_at_once(mutations) > 1
    strict = yuzu.precompute(model, L, device="cpu", max_memory=3 * weights)
    assert strict.settings.max_memory == 3 * weights


def test_the_first_call_finds_weights_laid_out(device):
    model, X = flattened(), sequences(1, L)
    made = yuzu.precompute(model, L, device=device)
    derived = made.bind(model, L, 4, (), torch.device(device)).derived
    before = {key: id(value) for key, (_, value) in derived._kept.items()}
    assert before
    found = yuzu.yuzu_ism(model, X, made, output="delta", device=device)
    after = {key: id(value) for key, (_, value) in derived._kept.items()}
    assert all(after[key] == before[key] for key in before), "nothing is made again"
    assert_right(found, model, X, output="delta", device=device)
    with torch.no_grad():
        model[3].weight.mul_(-2.5)
        model[0].weight.add_(0.1)
    assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device=device), model, X, output="delta", device=device)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_single_chunk_reads_the_whole_weight_as_it_lies(transposed):
    """Verification lays out no second weight in float64."""
    body, weight = nn.Conv1d(4, 6, 5, padding=2), torch.randn(6 * L, 3)

    class ByMatrix(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.linear = body, nn.Linear(6 * L, 3)
            self.register_buffer("matrix", weight)

        def forward(self, x):
            x = self.body(x).relu().flatten(1)
            return self.linear(x) if transposed else x @ self.matrix

    model = ByMatrix().double().eval()
    graph = capture(model, (4, L), (), torch.float64)
    X = torch.as_tensor(sequences(1, L)).double()
    changes, laid_out = [], []
    for once in (False, True):
        derived = Derived()
        run = Run(make_plan(graph), Weights(model, torch.device("cpu")), derived, torch.device("cpu"))
        run.once = once
        run.set_reference(X, ())
        sites = measure.example_sites(run.plan, 9, 3, 4, L, run, 0)
        (change,) = run.chunk(sites)
        changes.append(change.tensor)
        laid_out.append(any("dense" in str(key) for key in derived._kept))
    torch.testing.assert_close(changes[0], changes[1], rtol=1e-12, atol=1e-12)
    assert laid_out == [True, False]


def test_plans_for_some_outputs_remember_windows_within_the_bounds_of_one(monkeypatch):
    model, X = nn.Sequential(nn.Conv1d(4, 6, 9), nn.Flatten(), nn.Linear(6 * (L - 8), 30)).eval(), sequences(1, L)
    made = yuzu.precompute(model, L, device="cpu")
    bound = made._used.values()[0][0].used
    remembered = bound.plan.remembered
    for target in range(12):
        found = yuzu.yuzu_ism(model, X, made, output="delta", target=target, device="cpu")
        assert_close(found, oracle(model, X, target=target)["delta"], 1e-5, 1e-5)
    plans = [other.plan for (other,) in bound._of_outputs.values()]
    assert len(plans) == 12 and all(plan.remembered is remembered for plan in plans)
    assert len({mine for mine, _ in remembered._kept}) > 1, "each plan finds its own"
    monkeypatch.setattr("yuzu._engine.plan.plan.WINDOWS_BYTES", remembered._bytes // 2)
    yuzu.yuzu_ism(model, X, made, output="delta", target=20, device="cpu")
    assert 0 < remembered._bytes <= sum(size for _, size in remembered._kept.values())


def test_plans_with_nodes_run_naively_do_not_pile_up():
    model = nn.Sequential(*(nn.Conv1d(4, 4, 3, padding=1) for _ in range(PLANS_KEPT + 3))).eval()
    bound = yuzu.precompute(model, L, device="cpu")._used.values()[0][0].used
    convolutions = [node.index for node in bound.plan.graph.nodes if node.op == "aten.conv1d"]
    for node in convolutions:
        assert bound.plan_without([node], "its value is infinite").naive.keys() == {node}
    assert bound._naive_plans.keys() == [(node,) for node in convolutions[-PLANS_KEPT:]]
