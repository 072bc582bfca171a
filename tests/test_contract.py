"""The public contract of `yuzu_ism` and `naive_ism`: what goes in, what comes out, and that it is right.

Right means: against brute force in float64 (`conftest.oracle`), which shares no code with the library.
"""

import collections
import copy
import functools
import gc
import inspect
import logging
import time
import types
import warnings

import numpy as np
import pytest
import torch
from conftest import (
    Net,
    Profile,
    assert_close,
    assert_right,
    assert_same,
    errors,
    one_hot,
    oracle,
    randomized,
    sequences,
)
from torch import nn
from torch.utils import _pytree as pytree

import yuzu

OUTPUTS = ("l2", "delta", "prediction")
L = 30


@pytest.fixture(params=["yuzu_ism", "naive_ism"])
def ism(request):
    """Everything that both functions promise is asked of both."""
    return getattr(yuzu, request.param)


class Container(torch.nn.Module):
    """Returns what ``pack`` makes of a convolution, a dense output and one number a sequence."""

    def __init__(self, pack):
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 5, 5, padding=2)
        self.fc = torch.nn.Linear(5 * L, 3)
        self.pack = pack

    def forward(self, X):
        X = torch.tanh(self.conv(X))
        dense = self.fc(X.flatten(1))
        return self.pack(X, dense, dense.exp().sum(1))


Named = collections.namedtuple("Named", ["profile", "dense"])
CONTAINERS = {
    "tuple": lambda a, b, c: (a, b),
    "tuple of one": lambda a, b, c: (b,),
    "list": lambda a, b, c: [b, a, c],
    "dict": lambda a, b, c: {"z": a, "a": b},
    "nested": lambda a, b, c: {"heads": (a, [b, {"scalar": c}]), "again": b},
    "namedtuple": lambda a, b, c: Named(a, b),
    "the same tensor twice": lambda a, b, c: (b, b),
    "scalar": lambda a, b, c: c,
    "profile": lambda a, b, c: a,
}


@pytest.fixture(scope="module")
def containers():
    return {name: randomized(Container(pack), seed=3).eval() for name, pack in CONTAINERS.items()}


@functools.cache
def net_of(length, n_choices, dtype=torch.float32):
    """One `Net` for each kind of sequence, so that `yuzu_ism` prepares it once."""
    return randomized(Net(length, n_choices, width=4)).to(dtype).eval()


# names and signatures


def test_public_names():
    from yuzu import Precomputation, PrecomputationError, YuzuError, check, naive_ism, precompute, yuzu_ism

    assert issubclass(YuzuError, ValueError) and issubclass(PrecomputationError, YuzuError)
    assert isinstance(Precomputation, type) and all(map(callable, (check, naive_ism, precompute, yuzu_ism)))


def _precompute(
    model, seq_len, n_choices=4, *, args=None, alpha=None, threshold=0.9999, conv="auto", precision="highest",
    terminal_layers=(), max_memory=None, device=None, random_state=None, verify=True, verbose=False,
): ...  # fmt: skip


def _yuzu_ism(
    model, X_0, precomputation=None, *, args=None, output="l2", target=None, func=None, start=0, end=None, ranges=None,
    replace_with=None, batch_size=None, device=None, return_timings=False, verbose=False,
): ...  # fmt: skip


def _naive_ism(
    model, X_0, *, args=None, output="l2", target=None, func=None, start=0, end=None, ranges=None, replace_with=None,
    batch_size=128, device=None, verbose=False,
): ...  # fmt: skip


def _check(model, X_0, precomputation=None, *, args=None, positions=32, device=None): ...


SIGNATURES = {"precompute": _precompute, "yuzu_ism": _yuzu_ism, "naive_ism": _naive_ism, "check": _check}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    mine = inspect.signature(getattr(yuzu, name)).parameters
    contract = inspect.signature(SIGNATURES[name]).parameters
    for parameter in contract.values():
        assert parameter.name in mine, f"{name} has no {parameter.name}"
        assert (mine[parameter.name].kind, mine[parameter.name].default) == (parameter.kind, parameter.default), (
            parameter.name
        )
    positional = [p.name for p in contract.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in mine.values() if p.kind is p.POSITIONAL_OR_KEYWORD] == positional


def test_precomputation_methods():
    for name, arguments in {"save": ["self", "path"], "summary": ["self"]}.items():
        assert list(inspect.signature(getattr(yuzu.Precomputation, name)).parameters) == arguments
    load = inspect.signature(yuzu.Precomputation.load).parameters
    assert list(load) == ["path", "device"] and load["device"].default is None


# what goes in, what comes out


@pytest.mark.parametrize("output", OUTPUTS)
def test_one_output_is_right(ism, net, device, output):
    X = sequences(2, L)
    result = ism(net, X, output=output, device=device)
    assert result.shape == ((2, 4, L) if output == "l2" else (2, 4, L, 3))
    assert_right(result, net, X, output=output, device=device)


@pytest.mark.parametrize("output", OUTPUTS)
def test_two_outputs_are_right(ism, profile, device, output):
    X = sequences(2, L)
    result = ism(profile, X, output=output, device=device)
    if output == "l2":
        assert result.shape == (2, 4, L)
    else:
        assert type(result) is tuple and [r.shape for r in result] == [(2, 4, L, 2, L), (2, 4, L, 1)]
    assert_right(result, profile, X, output=output, device=device)


def test_l2_is_the_default(ism, net):
    X = sequences(1, L)
    assert_same(ism(net, X), ism(net, X, output="l2"))


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_containers(ism, containers, container, output):
    model, X = containers[container], sequences(2, L, seed=5)
    assert_right(ism(model, X, output=output), model, X, output=output)


@pytest.mark.parametrize("output", OUTPUTS)
def test_numpy_in_numpy_out(ism, net, containers, output):
    X = sequences(2, L)
    result = ism(net, X.numpy(), output=output)
    assert type(result) is np.ndarray
    assert_same(result, ism(net, X, output=output).numpy())
    if output != "l2":
        nested = ism(containers["nested"], X.numpy(), output=output)
        assert all(type(leaf) is np.ndarray for leaf in pytree.tree_leaves(nested))
        assert len(pytree.tree_leaves(nested)) == 4


@pytest.mark.parametrize("output", OUTPUTS)
def test_torch_in_cpu_torch_out(ism, net, device, output):
    result = ism(net, sequences(1, L), output=output, device=device)
    assert type(result) is torch.Tensor and result.device.type == "cpu" and not result.requires_grad


def test_sequences_on_the_device_give_cpu_results(ism, net, device):
    X = sequences(1, L)
    result = ism(net, X.to(device), device=device)
    assert result.device.type == "cpu"
    assert_same(result, ism(net, X, device=device))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "bool", "int16", "int32", "int64", "float16", "float32", "float64"])
def test_input_dtypes(ism, net, dtype):
    X = sequences(2, L)
    expected = ism(net, X)
    assert_same(ism(net, X.to(getattr(torch, dtype))), expected)
    assert_same(ism(net, X.numpy().astype(dtype)), expected.numpy())


@pytest.mark.parametrize("output", OUTPUTS)
def test_float64_model(ism, device, output):
    model, X = net_of(L, 4, torch.float64), sequences(2, L)
    for given in (X, X.double(), X.to(torch.int8)):
        result = ism(model, given, output=output, device=device)
        assert result.dtype == torch.float64
    assert_right(result, model, X, output=output, device=device)
    assert ism(model, X.numpy(), output=output, device=device).dtype == np.float64


def test_bfloat16_model_gives_float32(ism):
    model = randomized(Net()).to(torch.bfloat16).eval()
    X = sequences(1, L)
    result = ism(model, X, output="delta")
    assert result.dtype == torch.float32
    truth = oracle(model, X)["delta"]  # of the rounded weights, in float64
    assert errors(result, truth)[1] < 0.1


def test_model_without_parameters(ism):
    class Count(torch.nn.Module):
        def forward(self, X):
            return torch.nn.functional.avg_pool1d(X, 3).square().sum(2)

    X = sequences(2, 12)
    assert_right(ism(Count(), X, output="delta"), Count(), X, output="delta")
    assert ism(Count(), X.double()).dtype == torch.float32


@pytest.mark.parametrize("layout", ["channels last", "reverse complement", "read-only", "every other", "Fortran order"])
def test_numpy_layouts(ism, net, layout):
    X = sequences(4, L).numpy()
    views = {
        "channels last": np.ascontiguousarray(X.transpose(0, 2, 1)).transpose(0, 2, 1),
        "reverse complement": X[:, ::-1, ::-1],
        "read-only": X.copy(),
        "every other": X[::2],
        "Fortran order": np.asfortranarray(X),
    }
    view = views[layout]
    if layout == "read-only":
        view.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = ism(net, view)
    assert_same(result, ism(net, view.copy()))


def test_torch_views_and_gradients(ism, net):
    X = sequences(4, L)
    expected = ism(net, X)
    assert_same(ism(net, X.permute(0, 2, 1).contiguous().permute(0, 2, 1)), expected)
    assert_same(ism(net, X[::2]), ism(net, X[::2].clone()))
    X.requires_grad_()
    result = ism(net, X)
    assert not result.requires_grad and X.grad is None and X.requires_grad
    assert_same(result, expected)


def test_input_is_not_written_to(ism, net):
    X = sequences(3, L)
    before, version = X.clone(), X._version
    for output in OUTPUTS:
        ism(net, X, output=output)
        ism(net, X.numpy(), output=output)
        ism(net, X, output=output, ranges=[(3, 6)], replace_with="ACG")
    assert torch.equal(X, before) and X._version == version


def test_results_own_their_memory(net):
    X = sequences(1, L)
    first = yuzu.yuzu_ism(net, X)
    kept = first.clone()
    second = yuzu.yuzu_ism(net, sequences(1, L, seed=9))
    second.fill_(7)
    assert torch.equal(first, kept)


# the reference character


def test_reference_slots(ism, net, device):
    X = sequences(3, L)
    here = X.bool()
    l2, delta, prediction = (ism(net, X, output=output, device=device) for output in OUTPUTS)
    assert bool((l2[here] == 0).all()) and bool((delta.permute(0, 1, 2, 3)[here] == 0).all())
    assert bool((l2[~here] > 0).any())
    with torch.no_grad():
        y = copy.deepcopy(net).double()(X.double())
    for i in range(3):
        slots = prediction[i][here[i]]
        assert slots.shape == (L, 3) and bool((slots == slots[0]).all())
        assert errors(slots[0], y[i])[1] < 1e-6


def test_the_three_outputs_agree(ism, net, profile):
    X = sequences(2, L)
    l2, delta, prediction = (ism(net, X, output=output) for output in OUTPUTS)
    reference = prediction[:, 0, 0] - delta[:, 0, 0]
    assert_close(prediction - delta, reference[:, None, None].expand_as(delta), 1e-6, 1e-6)
    assert_close(l2, delta.double().norm(dim=3), 1e-6, 1e-6)
    a, b = ism(profile, X, output="delta")
    both = torch.cat([a.flatten(3), b.flatten(3)], 3).double()
    assert_close(ism(profile, X), both.norm(dim=3), 1e-6, 1e-6)


# outputs that do not depend on the sequence


class PartlyConstant(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 3, 5)
        self.bias = torch.nn.Parameter(torch.tensor([1.5, -2.0]))

    def forward(self, X):
        return self.conv(X).amax(2), self.bias.expand(X.shape[0], 2)


@pytest.fixture(scope="module")
def partly_constant():
    return randomized(PartlyConstant())


@pytest.mark.parametrize("output", OUTPUTS)
def test_output_that_does_not_depend_on_the_sequence(ism, partly_constant, output):
    model, X = partly_constant, sequences(2, 15)
    result = ism(model, X, output=output)
    assert_right(result, model, X, output=output)
    assert not any(leaf.requires_grad for leaf in pytree.tree_leaves(result))
    if output == "delta":
        assert result[1].shape == (2, 4, 15, 2) and bool((result[1] == 0).all())
    if output == "prediction":
        assert bool((result[1] == model.bias).all())


@pytest.mark.parametrize("output", OUTPUTS)
def test_model_that_does_not_depend_on_the_sequence(ism, output):
    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.tensor([1.5, -2.0]))

        def forward(self, X):
            return self.bias.expand(len(X), 2)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is gained here may be said
        result = ism(Constant(), sequences(2, 12), output=output)
    assert result.shape == ((2, 4, 12) if output == "l2" else (2, 4, 12, 2))
    wanted = torch.tensor([1.5, -2.0]).expand(2, 4, 12, 2) if output == "prediction" else torch.zeros(result.shape)
    assert torch.equal(result, wanted)


def test_only_some_positions_reach_the_output(ism):
    """A cropped model: mutations outside of its receptive field change nothing, exactly."""

    class Cropped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv1d(4, 3, 3)

        def forward(self, X):
            return torch.relu(self.conv(X))[:, :, 10:15]

    model, X = randomized(Cropped()), sequences(2, 40)
    for output in OUTPUTS:
        assert_right(ism(model, X, output=output), model, X, output=output)
    delta = yuzu.yuzu_ism(model, X, output="delta")
    assert bool((delta[:, :, :10] == 0).all()) and bool((delta[:, :, 17:] == 0).all())
    assert bool((delta[:, :, 10:17] != 0).any())


# func


def weighted(y):
    """chrombpnet's profile score: mean-centred logits, weighted by their softmax."""
    logits = y[0].flatten(1)
    return ((logits - logits.mean(1, keepdim=True)) * torch.softmax(logits, 1)).sum(1)


FUNCS = {
    "select the second": lambda y: y[1],
    "select the first": lambda y: y[0],
    "log": lambda y: torch.log(y[1].square() + 1),
    "weighted profile": weighted,
    "several": lambda y: {"profile": y[0].mean(2), "counts": (y[1], y[1].exp())},
    "swap": lambda y: (y[1], y[0]),
    "one row of the profile": lambda y: y[0][:, 1],
    "standardized profile": lambda y: (y[0] - y[0].mean((1, 2), keepdim=True)) / y[0].std((1, 2), keepdim=True),
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", FUNCS)
def test_func(ism, profile, device, name, output):
    X, func = sequences(2, L, seed=4), FUNCS[name]
    assert_right(
        ism(profile, X, func=func, output=output, device=device), profile, X, func=func, output=output, device=device
    )


def test_func_sees_the_whole_output_as_the_model_returns_it(ism, containers):
    seen = []

    def func(y):
        assert type(y) is dict and set(y) == {"heads", "again"}
        a, (b, c) = y["heads"]
        rows = {len(t) for t in (a, b, c["scalar"], y["again"])}
        assert type(y["heads"]) is tuple and type(y["heads"][1]) is list and len(rows) == 1
        assert a.shape[1:] == (5, L) and b.shape[1:] == (3,)
        seen.append(rows.pop())
        return b

    X = sequences(2, L)
    result = ism(containers["nested"], X, func=func, output="delta")
    assert sum(seen) >= 2 + 2 * 3 * L  # the references and every mutant
    assert_right(result, containers["nested"], X, func=lambda y: y["heads"][1][0], output="delta")


def test_func_comes_before_target(ism, profile):
    X, func = sequences(2, L), lambda y: y[0].transpose(1, 2)
    for target in (7, slice(3, 9), [0, L - 1]):
        result = ism(profile, X, func=func, target=target, output="delta")
        assert_right(result, profile, X, func=func, target=target, output="delta")


def test_func_that_mutates_what_it_is_given(ism, profile):
    """A user's func may work in place; nothing that is used again may be handed to it."""

    def func(y):
        y[0].mul_(2).add_(1)
        return y[0].relu_()

    X = sequences(2, L)
    pure = ism(profile, X, func=lambda y: torch.relu(2 * y[0] + 1), output="delta")
    assert_close(ism(profile, X, func=func, output="delta"), pure, 1e-6, 1e-6)


# target

TARGETS = [
    0,
    2,
    -1,
    np.int64(1),
    slice(None),
    slice(1, None),
    slice(-2, None),
    slice(None, None, 2),
    [1],
    [2, 0],
    [-1, 1],
    [0, 0],
]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_target(ism, net, target, output):
    X = sequences(2, L)
    result = ism(net, X, target=target, output=output)
    if output != "l2":
        assert result.shape == (2, 4, L, *torch.empty(3)[target].shape)
    assert_right(result, net, X, target=target, output=output)


@pytest.mark.parametrize("output", OUTPUTS)
def test_target_on_a_profile(ism, containers, device, output):
    X = sequences(2, L)
    for target in (3, slice(1, 3), [4, 0]):
        result = ism(containers["profile"], X, target=target, output=output, device=device)
        assert_right(result, containers["profile"], X, target=target, output=output, device=device)


def test_target_int_drops_the_axis_and_a_list_keeps_it(ism, net):
    X = sequences(1, L)
    one, kept = ism(net, X, target=1, output="delta"), ism(net, X, target=[1], output="delta")
    assert one.shape == (1, 4, L) and kept.shape == (1, 4, L, 1)
    assert_same(one, kept[..., 0].contiguous())
    assert_close(ism(net, X, target=1), one.abs(), 1e-7, 1e-7)


@pytest.mark.parametrize("target", [np.array(1), torch.tensor(1), [torch.tensor(2), np.array(0)]], ids=repr)
def test_target_of_numbers_in_arrays(ism, net, target):
    plain = [2, 0] if isinstance(target, list) else 1
    assert_same(ism(net, sequences(1, L), target=target), ism(net, sequences(1, L), target=plain))


# start and end

SPANS = [
    (0, None),
    (5, 12),
    (5, -5),
    (-8, None),
    (-8, -2),
    (None, 7),
    (None, None),
    (0, 10**6),
    (-(10**6), 3),
    (29, 30),
    (-1, None),
    (0, 1),
]


@pytest.mark.parametrize("start, end", SPANS)
def test_start_and_end(ism, net, start, end):
    X = sequences(2, L)
    result = ism(net, X, start=start, end=end, output="delta")
    positions = range(L)[start:end]
    assert result.shape == (2, 4, len(positions), 3)
    assert_close(result, ism(net, X, output="delta")[:, :, start:end], 2e-6, 2e-6)
    assert_right(ism(net, X, start=start, end=end), net, X, start=start, end=end)


@pytest.mark.parametrize("start, end", [(5, 5), (10, 5), (L, None), (0, -L), (-1, -1), (100, 200)])
def test_empty_selection_raises(ism, net, start, end):
    with pytest.raises(ValueError, match=rf"start={start}.*end={end}"):
        ism(net, sequences(1, L), start=start, end=end)


# ranges and replace_with

RANGES = {
    "apart": [(0, 3), (9, 12), (L - 3, L)],
    "overlapping and unsorted": [(20, 23), (4, 7), (5, 8), (4, 7)],
    "one": [(11, 14)],
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", RANGES)
def test_ranges_alone_write_zeros(ism, net, device, name, output):
    X, ranges = sequences(2, L), RANGES[name]
    result = ism(net, X, ranges=ranges, output=output, device=device)
    assert result.shape == ((2, len(ranges)) if output == "l2" else (2, len(ranges), 3))
    assert_right(result, net, X, ranges=ranges, output=output, device=device)


REPLACEMENTS = {
    "string": ("GAT", one_hot("GAT")),
    "string with N": ("GnT", one_hot("GAT") * torch.tensor([1, 0, 1])),
    "N alone": ("NNN", torch.zeros(4, 3)),
    "per character": ([0.25] * 4, torch.full((4, 3), 0.25)),
    "one character": (np.array([0, 0, 1, 0]), one_hot("GGG")),
    "matrix": (np.arange(12.0).reshape(4, 3) / 10, torch.arange(12.0).reshape(4, 3) / 10),
    "tensor": (torch.arange(12.0).reshape(4, 3) / 10, torch.arange(12.0).reshape(4, 3) / 10),
    "int8 matrix": (one_hot("TTA").to(torch.int8), one_hot("TTA")),
    "bfloat16 matrix": (one_hot("CAG").bfloat16(), one_hot("CAG")),
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", REPLACEMENTS)
def test_ranges_with_replacement(ism, net, name, output):
    given, written = REPLACEMENTS[name]
    X, ranges = sequences(2, L), RANGES["overlapping and unsorted"]
    result = ism(net, X, ranges=ranges, replace_with=given, output=output)
    assert_right(result, net, X, ranges=ranges, replace_with=written, output=output)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("given", ["T", [0.1, 0.2, 0.3, 0.4], np.zeros((4, 1))], ids=["string", "soft", "matrix"])
def test_replacement_alone_is_every_single_position(ism, net, given, output):
    X = sequences(2, L)
    written = one_hot(given) if isinstance(given, str) else torch.tensor(np.asarray(given)).reshape(4, 1).float()
    result = ism(net, X, replace_with=given, output=output)
    assert result.shape == ((2, L) if output == "l2" else (2, L, 3))
    assert_right(result, net, X, replace_with=written, output=output)
    part = ism(net, X, replace_with=given, start=-9, end=-2, output=output)
    assert part.shape[:2] == (2, 7)
    assert_right(part, net, X, replace_with=written, start=-9, end=-2, output=output)


def test_replacement_by_what_is_there_changes_nothing(ism, net):
    X = sequences(1, L)
    text = "".join("ACGT"[i] for i in X[0].argmax(0))
    scores = ism(net, X, ranges=[(4, 10), (5, 11)], replace_with=text[4:10])
    assert float(scores[0, 1]) > 1e-2
    assert float(scores[0, 0]) <= (0 if ism is yuzu.yuzu_ism else 1e-6)  # naive float32 subtracts two runs


def test_whole_sequence_as_one_range(ism, net):
    X, other = sequences(2, L), sequences(1, L, seed=77)[0]
    assert_right(
        ism(net, X, ranges=[(0, L)], replace_with=other, output="delta"),
        net,
        X,
        ranges=[(0, L)],
        replace_with=other,
        output="delta",
    )


def test_ranges_as_array(ism, net):
    X = sequences(1, L)
    expected = ism(net, X, ranges=RANGES["apart"])
    for kind in (np.array, torch.tensor, tuple, lambda r: [list(x) for x in r]):
        assert_same(ism(net, X, ranges=kind(RANGES["apart"])), expected)


def test_ranges_with_several_outputs_func_and_target(ism, profile):
    X, ranges = sequences(2, L), RANGES["apart"]
    result = ism(profile, X, ranges=ranges, replace_with="TGA", output="delta")
    assert_right(result, profile, X, ranges=ranges, replace_with=one_hot("TGA"), output="delta")
    result = ism(profile, X, ranges=ranges, replace_with="TGA", func=lambda y: y[0], target=1, output="delta")
    assert result.shape == (2, 3, L)
    assert_right(
        result, profile, X, ranges=ranges, replace_with=one_hot("TGA"), func=lambda y: y[0], target=1, output="delta"
    )


def test_order_of_ranges_does_not_matter(ism, net):
    X = sequences(2, L)
    ranges = [(p, p + 4) for p in range(0, 26, 3)]
    forward = ism(net, X, ranges=ranges, replace_with="ACGT", output="delta")
    backward = ism(net, X, ranges=ranges[::-1], replace_with="ACGT", output="delta")
    assert_close(backward.flip(1), forward, 2e-6, 2e-6)


# N, soft columns, alphabets


def with_columns(X, columns):
    X = X.clone()
    for (i, p), column in columns.items():
        X[i, :, p] = torch.as_tensor(column, dtype=X.dtype)
    return X


ODD = {
    "N in the middle": {(0, 10): [0, 0, 0, 0], (1, 11): [0, 0, 0, 0]},
    "N at both ends": {(0, 0): [0, 0, 0, 0], (0, L - 1): [0, 0, 0, 0]},
    "a run of N": {(0, p): [0, 0, 0, 0] for p in range(6, 13)},
    "soft": {(0, 3): [0.25, 0.25, 0.25, 0.25], (1, 8): [0.7, 0.1, 0.1, 0.1], (1, L - 1): [0.5, 0, 0.5, 0]},
    "two ones": {(0, 4): [1, 1, 0, 0]},
    "negative and large": {(0, 4): [-1, 2, 0, 0.5], (1, 0): [3, 0, 0, 0]},
    "nearly one": {(0, 5): [0.999, 0.001, 0, 0]},
    "N and soft side by side": {(0, 5): [0, 0, 0, 0], (0, 6): [0.5, 0.5, 0, 0], (1, 6): [0, 0, 0, 0]},
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", ODD)
def test_columns_without_a_reference_character(ism, net, device, name, output):
    X = with_columns(sequences(2, L), ODD[name])
    assert_right(ism(net, X, output=output, device=device), net, X, output=output, device=device)


def test_all_substitutions_are_made_at_an_n(ism, net):
    X = with_columns(sequences(1, L), {(0, 10): [0, 0, 0, 0], (0, 20): [0.5, 0.5, 0, 0]})
    l2 = ism(net, X)
    assert bool((l2[0, :, [10, 20]] > 0).all())
    assert int((l2[0] == 0).sum()) >= L - 2


@pytest.mark.parametrize("output", OUTPUTS)
def test_sequence_of_nothing_but_n(ism, net, output):
    X = torch.zeros(1, 4, L)
    assert_right(ism(net, X, output=output), net, X, output=output)


def test_ranges_over_n_and_soft_columns(ism, net):
    X = with_columns(sequences(2, L), {(0, 5): [0, 0, 0, 0], (1, 6): [0.5, 0.25, 0.25, 0]})
    result = ism(net, X, ranges=[(4, 7), (5, 8)], replace_with="ACG", output="delta")
    assert_right(result, net, X, ranges=[(4, 7), (5, 8)], replace_with=one_hot("ACG"), output="delta")


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("n_choices", [2, 5, 20])
def test_alphabets(ism, n_choices, output):
    model, X = net_of(16, n_choices), sequences(2, 16, n_choices)
    X[0, :, 3] = 0
    result = ism(model, X, output=output)
    assert result.shape[:3] == (2, n_choices, 16)
    assert_right(result, model, X, output=output)


def test_protein_strings(ism):
    alphabet = "ACDEFGHIKLMNPQRSTVWY"
    model, X = net_of(16, 20), sequences(2, 16, 20)
    result = ism(model, X, ranges=[(0, 4), (12, 16)], replace_with="WYAK", output="delta")
    assert_right(result, model, X, ranges=[(0, 4), (12, 16)], replace_with=one_hot("WYAK", alphabet), output="delta")
    result = ism(model, X, replace_with="A", output="delta")  # an alanine scan
    assert_right(result, model, X, replace_with=one_hot("A", alphabet), output="delta")


# args


class WithArgs(torch.nn.Module):
    """A scale per sequence, a control track and a cell type (an integer)."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 5, 5, padding=2)
        self.out = torch.nn.Conv1d(6, 2, 3, padding=1)
        self.cells = torch.nn.Embedding(7, 2)

    def forward(self, X, scale, control=None, cell=None):
        X = torch.relu(self.conv(X)) * scale[:, :, None]
        if control is None:
            control = torch.zeros_like(X[:, :1])
        y = torch.tanh(self.out(torch.cat([X, control], 1)))
        if cell is not None:
            y = y * self.cells(cell)[:, :, None]
        return y.sum(2), y


@functools.cache
def with_args():
    return randomized(WithArgs())


def extra(n, count):
    generator = torch.Generator().manual_seed(11)
    everything = (
        torch.rand(n, 1, generator=generator) + 0.5,
        torch.randn(n, 1, L, generator=generator),
        torch.arange(n) % 7,
    )
    return everything[:count]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_args(ism, device, count, output):
    model, X, args = with_args(), sequences(3, L), extra(3, count)
    for batch_size in (1, 2, 500):
        result = ism(model, X, args=args, output=output, batch_size=batch_size, device=device)
        assert_right(result, model, X, args=args, output=output, device=device)


def test_rows_of_args_belong_to_their_sequence(ism):
    model, X, args = with_args(), sequences(3, L)[[0, 0, 0]], extra(3, 3)
    together = ism(model, X, args=args)
    assert float((together[0] - together[1]).abs().max()) > 1e-3
    for i in range(3):
        alone = ism(model, X[i : i + 1], args=tuple(a[i : i + 1] for a in args))
        assert_close(together[i : i + 1], alone, 2e-6, 2e-6)
    order = [2, 0, 1]
    assert_close(ism(model, X[order], args=tuple(a[order] for a in args)), together[order], 2e-6, 2e-6)


def test_args_as_list_and_numpy(ism):
    model, X, args = with_args(), sequences(2, L), extra(2, 3)
    expected = ism(model, X, args=args)
    assert_same(ism(model, X, args=list(args)), expected)
    assert_same(ism(model, X, args=tuple(a.numpy() for a in args)), expected)
    before = [a.clone() for a in args]
    ism(model, X, args=args)
    assert all(torch.equal(a, b) for a, b in zip(args, before, strict=True))


def test_args_are_cast_to_the_models_dtype(ism):
    """Arrays of numpy are float64 as they are made; whole numbers stay whole."""
    model, X, args = with_args(), sequences(2, L), extra(2, 3)
    doubles = tuple(a.double() if a.is_floating_point() else a for a in args)
    expected = ism(model, X, args=args)
    assert_same(ism(model, X, args=doubles), expected)
    assert_same(ism(model, X, args=tuple(a.numpy() for a in doubles)), expected)
    assert yuzu.check(model, X, args=doubles).yuzu_relative_error < 1e-5
    precomputation = yuzu.precompute(model, L, args=args)
    assert_same(yuzu.yuzu_ism(model, X, precomputation, args=doubles), yuzu.yuzu_ism(model, X, precomputation, args=args))


def test_args_that_a_model_casts_itself(tmp_path):
    """A precomputation serves the inputs that it was made with, whatever their dtype."""

    class Casting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv1d(4, 3, 5)

        def forward(self, X, scale):
            return self.conv(X).sum(2) * scale.float()

    model, X, scale = Casting(), sequences(2, L), torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    precomputation = yuzu.precompute(model, L, args=(scale,))
    precomputation.save(tmp_path / "casting.yuzu")
    for used in (precomputation, yuzu.Precomputation.load(tmp_path / "casting.yuzu"), None):
        assert_right(yuzu.yuzu_ism(model, X, used, args=(scale,)), model, X, args=(scale,))


def test_args_with_ranges_func_and_batches(ism):
    model, X, args = with_args(), sequences(4, L), extra(4, 3)
    options = dict(ranges=[(0, 2), (15, 17)], func=lambda y: y[0], target=1, output="delta")
    result = ism(model, X, args=args, replace_with="CC", batch_size=3, **options)
    assert_right(result, model, X, args=args, replace_with=one_hot("CC"), **options)


# invariances


@pytest.fixture(scope="module", params=["float32", "float64"])
def pair(request):
    """A model, its precomputation, five sequences (one with N, one soft), and how much rounding may differ."""
    dtype = getattr(torch, request.param)
    model = randomized(Net(), seed=6).to(dtype).eval()
    X = with_columns(sequences(5, L, dtype=dtype), {(1, 4): [0] * 4, (1, 0): [0] * 4, (3, 9): [0.25] * 4})
    tolerance = 2e-6 if dtype == torch.float32 else 1e-13
    return model, X, yuzu.precompute(model, L), tolerance


@pytest.mark.parametrize("output", OUTPUTS)
def test_batch_size_does_not_matter(pair, output):
    model, X, precomputation, tolerance = pair
    expected = yuzu.yuzu_ism(model, X, precomputation, output=output)
    for batch_size in (1, 2, 3, 5, 100, np.int64(2)):
        result = yuzu.yuzu_ism(model, X, precomputation, output=output, batch_size=batch_size)
        assert_close(result, expected, tolerance, tolerance)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 1000])
def test_naive_batch_size_does_not_matter(pair, batch_size):
    model, X, _, tolerance = pair
    assert_close(yuzu.naive_ism(model, X, batch_size=batch_size), yuzu.naive_ism(model, X), tolerance, tolerance)


def test_neighbours_do_not_matter(pair, ism):
    model, X, _, tolerance = pair
    together = ism(model, X, output="delta")
    for i in range(len(X)):
        assert_close(ism(model, X[i : i + 1], output="delta"), together[i : i + 1], tolerance, tolerance)


def test_order_does_not_matter(pair, ism):
    model, X, _, tolerance = pair
    order = [3, 0, 4, 1, 2]
    assert_close(ism(model, X[order], output="delta"), ism(model, X, output="delta")[order], tolerance, tolerance)


def test_neighbours_of_wild_size_do_not_matter(pair):
    """A neighbour with values a million times larger must not cost accuracy (no scaling or probing across "
    "sequences)."""
    model, X, precomputation, tolerance = pair
    together = yuzu.yuzu_ism(model, torch.cat([X[:1], X[1:2] * 1e6]), precomputation)
    assert_close(together[:1], yuzu.yuzu_ism(model, X[:1], precomputation), tolerance, tolerance)


def test_given_and_kept_precomputation_agree(pair):
    model, X, precomputation, tolerance = pair
    assert_close(yuzu.yuzu_ism(model, X), yuzu.yuzu_ism(model, X, precomputation), tolerance, tolerance)
    assert_same(yuzu.yuzu_ism(model, X, precomputation=precomputation), yuzu.yuzu_ism(model, X, precomputation))


# timings, progress, tangermeme


def test_return_timings(net):
    X = sequences(5, L)
    precomputation = yuzu.precompute(net, L)
    begin = time.perf_counter()
    returned = yuzu.yuzu_ism(net, X, precomputation, batch_size=2, return_timings=True)
    elapsed = time.perf_counter() - begin
    assert type(returned) is tuple and len(returned) == 3
    scores, layers, within = returned
    assert_same(scores, yuzu.yuzu_ism(net, X, precomputation, batch_size=2))
    assert type(layers) is list and type(within) is list and len(layers) == len(within) == 3
    assert {len(b) for b in layers} == {len(layers[0])} == {len(b) for b in within} and len(layers[0]) >= 5
    assert all(isinstance(s, float) and s >= 0 for b in layers for s in b)
    assert 0 < sum(map(sum, layers)) <= elapsed
    for batch in within:
        assert type(batch) is list
        for parts in batch:
            assert parts is None


class Branching(torch.nn.Module):
    def forward(self, X):
        y = X.cumsum(2)[:, 0] ** 2
        return y * 2 if bool(y.sum() > -1) else y


@pytest.mark.parametrize("batch_size, batches", [(None, 1), (1, 3), (2, 2), (8, 1)])
def test_return_timings_of_a_model_that_runs_naively(batch_size, batches):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Branching()
        precomputation = yuzu.precompute(model, L)
    X = sequences(3, L)
    scores, layers, within = yuzu.yuzu_ism(model, X, precomputation, batch_size=batch_size, return_timings=True)
    assert [len(b) for b in layers] == [1] * batches and within == [[None]] * batches
    assert_same(scores, yuzu.naive_ism(model, X))


def test_return_timings_with_numpy_and_containers(profile):
    X = sequences(1, L)
    scores, layers, within = yuzu.yuzu_ism(profile, X.numpy(), output="delta", return_timings=True)
    assert type(scores) is tuple and all(type(s) is np.ndarray for s in scores)
    assert len(layers) == len(within) == 1


def test_progress_goes_to_stderr(ism, net, capfd):
    X = sequences(2, L)
    ism(net, X)
    capfd.readouterr()
    silent = ism(net, X, verbose=False)
    assert capfd.readouterr() == ("", "")
    loud = ism(net, X, verbose=True)
    out, err = capfd.readouterr()
    assert out == "" and "2/2" in err
    assert_same(loud, silent)


def apply_pairwise(func, model, X, alpha, args=None, batch_size=32, device="cpu", verbose=False, **kwargs):
    """As in tangermeme: every sequence with every row of ``alpha``, handed to ``func`` in tangermeme's calling "
    "convention."""
    n, m = len(X), len(alpha)
    X_all = X.repeat_interleave(m, 0)
    alpha_all = alpha.repeat(n, 1)
    rest = () if args is None else tuple(a.repeat_interleave(m, 0) for a in args)
    result = func(
        model, X_all, args=(alpha_all, *rest), batch_size=batch_size, device=device, verbose=verbose, **kwargs
    )
    return result.reshape(n, m, *result.shape[1:])


def marginalize(func, model, X, motif, start, args=None, batch_size=32, device="cpu", verbose=False, **kwargs):
    """As in tangermeme: ``func`` before and after a motif is inserted."""
    after = X.clone()
    after[:, :, start : start + motif.shape[1]] = motif
    return tuple(
        func(model, x, args=args, batch_size=batch_size, device=device, verbose=verbose, **kwargs) for x in (X, after)
    )


def test_tangermeme_calling_convention(ism):
    model, X = with_args(), sequences(2, L, dtype=torch.int8)
    scales = torch.tensor([[0.5], [1.0], [2.0]])
    result = apply_pairwise(ism, model, X, scales, start=5, end=9)
    assert result.shape == (2, 3, 4, 4)
    for j in range(3):
        truth = oracle(model, X, args=(scales[j : j + 1].expand(2, 1),), start=5, end=9)["l2"]
        assert_close(result[:, j], truth)


def test_tangermeme_marginalize(ism, net):
    X = sequences(2, L, dtype=torch.int8)
    before, after = marginalize(ism, net, X, one_hot("TGACTCA").to(torch.int8), 10, output="delta", target=1)
    changed = X.clone()
    changed[:, :, 10:17] = one_hot("TGACTCA").to(torch.int8)
    assert_right(before, net, X, output="delta", target=1)
    assert_right(after, net, changed, output="delta", target=1)


# without surprises


def test_an_ordinary_model_gives_no_warning_and_no_output(capfd):
    model, X = randomized(Net(), seed=8).eval(), sequences(1, L)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        precomputation = yuzu.precompute(model, L)
        yuzu.yuzu_ism(model, X, precomputation)
        yuzu.yuzu_ism(model, X)
        yuzu.naive_ism(model, X)
        yuzu.check(model, X, precomputation)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_under_any_gradient_mode(ism, context):
    """The model can be trained afterwards, also when everything happened in inference mode (no inference tensors are "
    "left in it)."""
    model, X = randomized(Net(), seed=9).eval(), sequences(2, L)
    with context():
        result = ism(model, X)
    assert_right(result.clone(), model, X)
    model(X).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(p.grad, alpha=-0.01)
    assert_right(ism(model, X), model, X)


def test_inference_precompute_then_use_outside():
    model, X = randomized(Net(), seed=9).eval(), sequences(2, L)
    with torch.inference_mode():
        precomputation = yuzu.precompute(model, L)
        yuzu.yuzu_ism(model, X, precomputation)
    assert_right(yuzu.yuzu_ism(model, X, precomputation), model, X)


def test_default_dtype_does_not_matter(ism, net):
    X = sequences(1, L)
    expected = ism(net, X)
    torch.set_default_dtype(torch.float64)
    try:
        assert_same(ism(net, X), expected)
        assert_close(
            ism(net, X, ranges=[(0, 2)], replace_with="AC"),
            oracle(net, X, ranges=[(0, 2)], replace_with=one_hot("AC").float())["l2"],
        )
    finally:
        torch.set_default_dtype(torch.float32)


def test_hooks_of_the_user_are_part_of_the_model(ism):
    model, X = randomized(Net(), seed=10).eval(), sequences(1, L)
    handle = model.conv1.register_forward_hook(lambda module, inputs, y: y.clamp(max=0.2))
    assert_right(ism(model, X), model, X)
    handle.remove()
    assert_right(ism(model, X), model, X)


def test_sequence_shorter_than_the_receptive_field(ism, device):
    model = randomized(Profile(width=3)).eval()
    for length in (1, 3, 6):
        X = sequences(2, length, seed=length)
        assert_right(ism(model, X, output="delta", device=device), model, X, output="delta", device=device)


# unusual models and surroundings


class Identity(torch.nn.Module):
    def forward(self, X):
        return X


class Views(torch.nn.Module):
    """Returns views that share memory with each other."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 3, 3)

    def forward(self, X):
        y = self.conv(X)
        return y.transpose(1, 2)[:, ::2], y[:, :1].expand(-1, 4, -1), y


class Kinds(torch.nn.Module):
    """The letter with the largest score and whether it passes a threshold: outputs that are no floats."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 3, 3)

    def forward(self, X):
        y = self.conv(X).mean(2)
        return y, y.argmax(1), y > 0


class Double(torch.nn.Module):
    """A float32 model that sums in float64: results are float32 all the same."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 3, 3)

    def forward(self, X):
        return self.conv(X).double().sum(2)


@pytest.mark.parametrize("kind", [Identity, Views, Kinds, Double])
def test_unusual_outputs(ism, kind):
    model, X = randomized(kind(), seed=2), sequences(2, 14)
    for output in OUTPUTS:
        assert_right(ism(model, X, output=output), model, X, output=output)


@pytest.mark.parametrize(
    "make", [torch.jit.script, lambda m: torch.jit.trace(m, sequences(1, L)), torch.nn.DataParallel]
)
def test_wrapped_modules(ism, net, make):
    """Any module will do; one that cannot be captured runs naively, and it is said."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that scripting is going out of use
        wrapped = make(copy.deepcopy(net))
        result = ism(wrapped, sequences(1, L), output="delta")
    assert_right(result, net, sequences(1, L), output="delta")


def test_autocast_of_the_caller_does_not_matter(ism, device):
    """``precision="highest"`` is float32 throughout; bfloat16 is asked for by ``precision="medium"``."""
    model, X = randomized(Net(), seed=11).eval(), sequences(1, L)
    with torch.autocast(device, dtype=torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("error")
        result = ism(model, X, output="delta", device=device)
    assert_right(result, model, X, output="delta", device=device)


def test_default_device_of_the_caller_does_not_matter(ism, net):
    """``torch.set_default_device`` is where the caller's new tensors go; what is computed where is said by ``device``."""
    model, X = copy.deepcopy(net), sequences(1, L)
    with torch.device("meta"):
        result = ism(model, X, output="delta", device="cpu")
    assert result.device.type == "cpu"
    assert_right(result, net, X, output="delta")


def test_deterministic_algorithms_of_the_caller(ism, profile):
    X = sequences(2, L)
    torch.use_deterministic_algorithms(True)
    try:
        result = ism(profile, X, output="delta")
    finally:
        torch.use_deterministic_algorithms(False)
    assert_right(result, profile, X, output="delta")


# what is kept between calls without a precomputation


def test_kept_for_as_many_lengths_as_memory_allows_and_no_longer_than_the_model():
    from yuzu._engine.store import obtain

    def kept():
        return len(obtain.kept_of_models.get(place) or ())

    model = nn.Sequential(nn.Conv1d(4, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1)).eval()
    place = id(model)
    most = obtain.KEPT_OF_A_MODEL
    for length in range(10, 12 + most):
        yuzu.yuzu_ism(model, sequences(1, length), device="cpu")
    assert kept() == most
    del model
    gc.collect()
    assert not kept()


def test_a_handler_registered_after_the_first_call_is_used():
    from yuzu._engine.handlers import contract

    handler = contract._REGISTRY.pop("aten.avg_pool1d")
    model, X = nn.Sequential(nn.Conv1d(4, 3, 5), nn.AvgPool1d(3, 1), nn.Conv1d(3, 2, 3)).eval(), sequences(1, L)
    try:
        with pytest.warns(yuzu.YuzuWarning, match="no handler for aten.avg_pool1d"):
            yuzu.yuzu_ism(model, X, device="cpu")
    finally:
        yuzu.handles("aten::avg_pool1d")(handler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = yuzu.yuzu_ism(model, X, output="delta", device="cpu")
        yuzu.precompute(model, L, device="cpu")
    assert_right(found, model, X, output="delta")


def small(**attributes):
    model = nn.Sequential(nn.Conv1d(4, 3, 3), nn.ReLU(), nn.Conv1d(3, 2, 3)).eval()
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def diamond(height):
    """Objects of which each is reached in two ways by the one above it: 2^height ways to the last."""
    below = types.SimpleNamespace()
    for _ in range(height):
        below = types.SimpleNamespace(one=below, other=below)
    return below


@pytest.mark.parametrize(
    "value", [np, torch, logging.getLogger(), diamond(60)], ids=["numpy", "torch", "logger", "diamond"]
)
def test_whatever_a_model_holds(value):
    model, X = small(held=value), sequences(1, L)
    found = yuzu.yuzu_ism(model, X, output="delta", device="cpu")
    del model.held  # the oracle copies the model
    assert_right(found, model, X, output="delta")


def test_a_constant_of_a_python_module_is_noticed():
    class Scaled(nn.Module):
        def __init__(self, settings):
            super().__init__()
            self.settings, self.conv = settings, nn.Conv1d(4, 3, 3)

        def forward(self, x):
            return self.conv(x).relu() * self.settings.factor

    settings = types.ModuleType("settings")
    settings.factor = 2
    model, X = Scaled(settings).eval(), sequences(1, L)
    for settings.factor in (2, 3):
        found = yuzu.yuzu_ism(model, X, output="delta", device="cpu")
        assert_close(found, yuzu.naive_ism(model, X, output="delta", device="cpu"), 1e-5, 1e-5)


class Counting(nn.Module):
    """Counts its calls, and keeps what it computed."""

    def __init__(self):
        super().__init__()
        self.conv, self.calls, self.losses = nn.Conv1d(4, 3, 3), 0, []

    def forward(self, x):
        self.calls += 1
        self.conv.kept = self.kept = self.conv(x)
        return self.kept.relu().mean(2)


def test_a_model_that_counts_is_precomputed_once(monkeypatch):
    from yuzu._engine.store import obtain

    made, original = [], obtain.make
    monkeypatch.setattr(obtain, "make", lambda *a, **k: made.append(a) or original(*a, **k))
    model, X = Counting().eval(), sequences(1, L)
    for _ in range(4):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = yuzu.yuzu_ism(model, X, output="delta", device="cpu")
        assert_right(found, model, X, output="delta")
        with torch.no_grad():
            model(X)
        model.losses.append(0.1)
    assert len(made) == 1
    model.conv = nn.Conv1d(4, 3, 5)
    assert_right(yuzu.yuzu_ism(model, X, output="delta", device="cpu"), model, X, output="delta")
    assert len(made) == 2, "another layer is another architecture"


def test_weights_made_in_inference_mode():
    with torch.inference_mode():
        model = small()
    X = sequences(1, L)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = yuzu.yuzu_ism(model, X, output="delta", device="cpu")
    same = small()
    same.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    assert_right(found, same, X, output="delta")
