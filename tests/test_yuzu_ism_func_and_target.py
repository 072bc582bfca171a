"""The contract of `yuzu_ism` and `naive_ism`: ``func`` and ``target``."""

import numpy as np
import pytest
import torch

from tests.oracle import assert_close, assert_right, assert_same
from tests.small_models import sequences

OUTPUTS = ("l2", "delta", "prediction")

L = 30


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
