"""Trials against the model itself, each sequence alone in float64: random architectures, many edits of each sequence."""

import copy
import warnings

import numpy as np
import pytest
import torch

from tests.laws.random_models import random_model, tensors_of
from yuzu._engine.named_edits import NamedEdits
from yuzu._engine.request import Selection
from yuzu._engine.store.trials import Asked, Pairs, Trials, run_trials


def trials_of(X, args, seed, dense):
    """Edits of several widths, and pairs, of sequences ``X``."""
    rng, (n, c, length) = np.random.default_rng(seed), X.shape
    edits, number = [], 0
    for width in [w for w in (1, 2, 4) if w <= length]:
        count = 30 if dense else n
        row = rng.integers(n, size=count) if dense else np.arange(n)
        position = rng.integers(length - width + 1, size=count) if dense else np.full(n, (length - width) // 2)
        letters = rng.integers(c, size=(count, width))
        edits.append(NamedEdits(row, position, letters, np.arange(count) + number))
        number += count
    others = torch.eye(c)[torch.from_numpy(rng.integers(c, size=(5, length)))].transpose(1, 2).to(X)
    pairs = Pairs(rng.integers(n, size=5), others, np.arange(5) + number)
    return Trials(X, args, edits, pairs), number + 5


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("seed", range(0, 28, 4))
def test_random_architectures(seed, dense, device):
    drawn = random_model(seed)
    model = copy.deepcopy(drawn.model).double()
    X, args = drawn.X.double(), tuple(a.double() for a in drawn.args)
    trials, count = trials_of(X, args, seed, dense)
    found = [None] * count

    def take(outcome):
        whole = list(zip(tensors_of(outcome.reference), tensors_of(outcome.edited), strict=True))
        for i, number in enumerate(outcome.number):
            assert found[number] is None, "each trial is taken once"
            found[number] = [
                (b[i].cpu(), c[i].cpu(), r[i].cpu(), e[i].cpu())
                for b, c, (r, e) in zip(outcome.before, outcome.change, whole, strict=True)
            ]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_trials(model, None, trials, Asked(torch.device(device), Selection(), whole=True), take)

    def outputs(x, row):
        with torch.no_grad():
            return [t[0] for t in tensors_of(model(x[None], *(a[row : row + 1] for a in args)))]

    sides = [(e.row, e.mutants(X), e.number) for e in trials.edits]
    for rows, mutants, numbers in [*sides, (trials.pairs.row, trials.pairs.X, trials.pairs.number)]:
        for row, mutant, number in zip(rows, mutants, numbers, strict=True):
            pairs = zip(found[number], outputs(X[row], row), outputs(mutant, row), strict=True)
            for (before, change, reference, edited), exact, other in pairs:
                size = max(float(exact.abs().max()), 1.0)
                assert torch.allclose(before, exact, atol=1e-10 * size) and torch.allclose(reference, exact, atol=1e-10 * size)
                assert torch.allclose(change, other - exact, atol=1e-9 * size), drawn.names
                assert torch.allclose(edited, other, atol=1e-9 * size)


def test_memory_and_batches_do_not_matter():
    import yuzu

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv1d(4, 8, 9), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten())
    X = torch.eye(4)[torch.randint(4, (9, 300))].transpose(1, 2)
    trials, count = trials_of(X, (), 0, dense=True)
    made = yuzu.precompute(model, 300, device="cpu", max_memory=2_000_000)
    results = []
    for precomputation, batch_size in ((None, None), (None, 2), (made, None)):
        found = torch.full((count, 8), torch.nan)

        def take(outcome, found=found):
            found[torch.from_numpy(outcome.number)] = outcome.change[0]

        run_trials(model, precomputation, trials, Asked(torch.device("cpu"), Selection(), batch_size=batch_size), take)
        results.append(found)
    assert all(torch.allclose(found, results[0], atol=1e-7) for found in results)
