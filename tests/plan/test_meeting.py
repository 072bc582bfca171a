"""Pairs of edits that never meet have no interaction."""

import numpy as np
import torch

import yuzu
from tests.laws.random_models import random_model
from tests.small_models import Net, randomized, sequences
from yuzu._engine.plan.meeting import find_meeting
from yuzu.models import BPNet


def plan_of(model, X, args=()):
    made = yuzu.precompute(model, X.shape[2], X.shape[1], args=args or None, device="cpu")
    return made.bind(model, X.shape[2], X.shape[1], args, torch.device("cpu")).plan


def test_only_neighbours_meet_in_local_models():
    model, X = randomized(BPNet(4, n_filters=4, kernel_size=3, n_layers=2)).double().eval(), sequences(1, 40)
    plan = plan_of(model, X.double())
    distance = np.abs(np.subtract.outer(np.arange(40), np.arange(40)))
    assert (find_meeting(plan, np.arange(40), 1) == (distance <= 6)).all()  # 3 + 4 positions at the last ReLU
    positions = np.arange(36)
    assert (find_meeting(plan, positions, 4) == (distance[:36, :36] <= 9)).all()


def test_all_meet_where_everything_is_mixed():
    model, X = randomized(Net(30)).eval(), sequences(1, 30)
    assert find_meeting(plan_of(model, X), np.arange(30), 1).all()


def largest_interaction(model, X, args, pairs):
    """Of some pairs of substitutions, by four runs of the model each, relative to the outputs."""
    largest = 0.0
    for i, j in pairs:
        rows = X.repeat(4, 1, 1)
        for row, places in ((1, [i]), (2, [j]), (3, [i, j])):
            for place in places:
                rows[row, :, place] = rows[row, :, place].roll(1)
        with torch.no_grad():
            y = model(rows, *(a.expand(4, *a.shape[1:]) for a in args))
        for leaf in torch.utils._pytree.tree_leaves(y):
            found = float((leaf[3] - leaf[1] - leaf[2] + leaf[0]).abs().max())
            largest = max(largest, found / max(float(leaf.abs().max()), 1.0))
    return largest


def test_pairs_apart_have_none_in_random_architectures():
    tried = 0
    for seed in range(12):
        drawn = random_model(seed)
        model, X = drawn.model.double(), drawn.X[:1].double()
        args = tuple(a[:1].double() if a.is_floating_point() else a[:1] for a in drawn.args)
        plan = plan_of(model, X, args)
        if plan is None:
            continue
        apart = np.argwhere(~find_meeting(plan, np.arange(X.shape[2]), 1))
        some = np.random.default_rng(seed).permutation(apart)[:30]
        assert largest_interaction(model, X, args, some) <= 1e-12, seed
        tried += len(some)
    assert tried > 50
