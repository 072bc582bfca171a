"""Scores against SciPy and against their definitions."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from tests.variants.naive import distance
from yuzu.variants.formulas import aligned, jsd, jsd_of_trials, logfc, share_below
from yuzu.variants.places import Place
from yuzu.variants.sequences import Trial


def logits(n=6, length=50, scale=1.0, seed=0):
    return scale * torch.randn(n, length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [0.01, 1, 8])
def test_jsd_is_scipys(scale):
    a, b = logits(scale=scale), logits(scale=scale, seed=1)
    expected = [jensenshannon(p, q, base=2) for p, q in zip(a.softmax(1).numpy(), b.softmax(1).numpy(), strict=True)]
    assert np.allclose(jsd(a, b), expected, rtol=1e-6, atol=1e-12)


def test_jsd_at_its_limits():
    a = logits()
    assert (jsd(a, a) == 0).all() and (jsd(a, a + 3) < 1e-15).all()
    apart = torch.tensor([[800.0, 0, 0], [0, 0, 800]], dtype=torch.float64)
    assert np.allclose(jsd(apart[:1], apart[1:]), 1)
    never = torch.tensor([[0, 1, -torch.inf]], dtype=torch.float64)
    assert np.allclose(jsd(never, torch.zeros(1, 3, dtype=torch.float64)), jensenshannon(never.softmax(1)[0], np.ones(3) / 3, base=2))


@pytest.mark.parametrize("size", [1e-4, 1e-8, 1e-12])
def test_small_distances_keep_their_digits(size):
    """The distance is proportional to a small change of logits; SciPy's is rounding from 1e-8 on."""
    a, change = logits(), logits(seed=1)
    p = a.softmax(1)
    variance = (p * change**2).sum(1) - (p * change).sum(1) ** 2
    assert np.allclose(jsd(a, a + size * change) / size, (variance / (8 * np.log(2))).sqrt(), rtol=1e-3)


@pytest.mark.parametrize("strands", [1, 2])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("ref, alt", [("", "ACG"), ("ACGT", ""), ("ACG", "T"), ("A", "CCC"), ("", "A" * 40), ("ACG", "TTT")])
def test_positions_of_an_indel_are_left_out(strands, side, ref, alt):
    a, b = logits(2 * strands).view(2, strands, 50)
    trial = Trial(Place(0, "1", 9, ref, alt), side)
    found = float(jsd_of_trials(a[None], b[None], [trial])[0])
    if len(alt) < 30:
        assert abs(found - distance(a, b, ref, alt, side)) < 1e-9
    kept = aligned(a, b, trial)
    assert kept[0].shape == kept[1].shape and 0 < kept[0].shape[1] <= 50 - max(len(ref), min(len(alt), 25), 0) or len(ref) == len(alt)


def test_what_an_indel_moves_is_compared_with_where_it_came_from():
    text = np.arange(50.0)
    for side, moved in (("left", np.r_[text[:25], text[28:], [50, 51, 52]]), ("right", np.r_[[-3, -2, -1], text[:25], text[28:]])):
        a, b = aligned(torch.tensor(text)[None], torch.tensor(moved)[None], Trial(Place(0, "1", 9, "ACG", ""), side))
        assert torch.equal(a, b) and a.shape[1] == 47


def test_logfc_and_quantiles():
    assert np.allclose(logfc(torch.log(torch.tensor([8.0, 2])), torch.log(torch.tensor([2.0, 2]))), [-2, 0], atol=1e-6)
    assert share_below(np.array([1.0, 2, 2, 3]), np.array([0.0, 2, 2.5, 9])).tolist() == [0, 0.25, 0.75, 1]
