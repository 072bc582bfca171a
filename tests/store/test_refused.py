"""A precomputation is refused for another model, length, alphabet, dtype or inputs."""

import copy

import pytest
import torch

import yuzu
from tests.oracle import assert_right
from tests.small_models import Net, randomized, sequences
from tests.store.models import Optional
from yuzu import PrecomputationError, precompute, yuzu_ism

L = 30


@pytest.fixture(scope="module")
def made_for_net(net):
    return precompute(net, L)


def test_refuses_another_architecture(made_for_net):
    for model in (Net(width=7), Net(n_outputs=4)):
        with pytest.raises(PrecomputationError, match=r"(?s)architecture.*precompute"):
            yuzu_ism(model, sequences(1, L), made_for_net)


def test_refuses_the_same_shapes_in_another_order():
    class Swapped(torch.nn.Module):
        def __init__(self, swapped):
            super().__init__()
            self.conv = torch.nn.Conv1d(4, 4, 3, padding=1)
            self.swapped = swapped

        def forward(self, X):
            return (torch.relu(self.conv(X)) if self.swapped else self.conv(torch.relu(X))).mean(2)

    precomputation = precompute(Swapped(False), L)
    with pytest.raises(PrecomputationError, match="architecture"):
        yuzu_ism(Swapped(True), sequences(1, L), precomputation)


def test_refuses_another_length(profile):
    with pytest.raises(PrecomputationError, match=r"length 30\b.*\b31\b"):
        yuzu_ism(profile, sequences(1, 31), precompute(profile, 30))


def test_refuses_another_alphabet(made_for_net):
    with pytest.raises(PrecomputationError, match=r"(alphabet|characters).*4.*20"):
        yuzu_ism(Net(n_choices=20), sequences(1, L, 20), made_for_net)


def test_refuses_another_dtype(net, made_for_net):
    with pytest.raises(PrecomputationError, match=r"dtype.*float32.*float64"):
        yuzu_ism(copy.deepcopy(net).double(), sequences(1, L), made_for_net)


def test_refuses_other_inputs():
    model, X, a = randomized(Optional()), sequences(2, L), torch.ones(2, 1)
    without, with_one = precompute(model, L), precompute(model, L, args=(a,))
    for precomputation, args in (
        (without, (a,)),
        (with_one, None),
        (with_one, (a, a)),
        (with_one, (torch.ones(2, 3),)),
    ):
        with pytest.raises(PrecomputationError, match=r"input|args"):
            yuzu_ism(model, X, precomputation, args=args)
    assert_right(yuzu_ism(model, X, with_one, args=(a * 3,)), model, X, args=(a * 3,))


def test_refusals_say_what_to_do(net, made_for_net):
    with pytest.raises(PrecomputationError, match="precompute"):
        yuzu_ism(copy.deepcopy(net).double(), sequences(1, L), made_for_net)


def test_check_refuses_too(made_for_net):
    with pytest.raises(PrecomputationError, match="architecture"):
        yuzu.check(Net(width=7), sequences(1, L), made_for_net)
