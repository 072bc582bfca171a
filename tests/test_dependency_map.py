"""`yuzu.dependency_map`: the largest interaction of each pair of positions."""

import numpy as np
import pytest
import torch

import yuzu
from tests.small_models import Net, Profile, randomized, sequences


@pytest.mark.parametrize("outputs", [(), (3,), (2, 5)])
def test_it_is_the_largest_change_of_any_effect(outputs):
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(2, 6, 4, 6, 4, *outputs, generator=generator)
    found = yuzu.dependency_map(pairs)
    assert found.shape == (2, 6, 6)
    for n in range(2):
        for i in range(6):
            for j in range(6):
                assert found[n, i, j] == pairs[n, i, :, j].abs().max()
    assert np.array_equal(yuzu.dependency_map(pairs.numpy()), found.numpy())


def test_it_is_how_far_effects_change():
    """By its definition: effects at every position with and without each substitution elsewhere."""
    model, X = randomized(Net(12)).eval(), sequences(1, 12)
    alone = yuzu.yuzu_ism(model, X, output="delta")
    found = yuzu.dependency_map(yuzu.epistasis(model, X))
    for i in range(12):
        largest = torch.zeros(12)
        for letter in range(4):
            mutant = X.clone()
            mutant[0, :, i] = torch.eye(4)[letter]
            change = (yuzu.yuzu_ism(model, mutant, output="delta") - alone).abs()
            largest = torch.maximum(largest, change.amax((0, 1, 3)))
        largest[i] = 0
        assert torch.allclose(found[0, i], largest, atol=1e-5)


@pytest.mark.parametrize("bad", [np.zeros((2, 3)), np.zeros((1, 3, 4, 3, 5)), np.zeros((0, 3, 4, 3, 4)), [1, 2]])
def test_bad_arguments(bad):
    with pytest.raises(ValueError, match="interaction must"):
        yuzu.dependency_map(bad)


def test_several_outputs_are_refused():
    pairs = yuzu.epistasis(randomized(Profile()).eval(), sequences(1, 12), end=3)
    with pytest.raises(ValueError, match="several outputs pass one"):
        yuzu.dependency_map(pairs)
