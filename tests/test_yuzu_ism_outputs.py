"""The contract of `yuzu_ism` and `naive_ism`: what comes out, against brute force in float64."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

import yuzu
from tests.contract import CONTAINERS
from tests.oracle import assert_close, assert_right, assert_same, errors
from tests.small_models import randomized, sequences

OUTPUTS = ("l2", "delta", "prediction")

L = 30


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


def test_results_own_their_memory(net):
    X = sequences(1, L)
    first = yuzu.yuzu_ism(net, X)
    kept = first.clone()
    second = yuzu.yuzu_ism(net, sequences(1, L, seed=9))
    second.fill_(7)
    assert torch.equal(first, kept)


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
