"""The order in which forward uses its modules, its loops and its branches."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu
from tests.exactness import assert_exact, assert_gains
from tests.oracle import assert_right, errors, oracle
from tests.small_models import Net, randomized, sequences
from yuzu import precompute, yuzu_ism

L = 36

FLOATS = (torch.float32, torch.float64)


def test_a_module_used_twice(device):
    class Reused(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv1d(4, 5, 3, padding=1)
            self.shared = nn.Conv1d(5, 5, 3, padding=2, dilation=2)
            self.relu = nn.ReLU()
            self.head = nn.Linear(5, 2)

        def forward(self, X):
            X = self.relu(self.first(X))
            X = self.relu(self.shared(X))
            X = X + self.relu(self.shared(X))
            return self.head(self.shared(X).mean(2))

    assert_gains(assert_exact(randomized(Reused()), sequences(2, L), device, FLOATS))


def test_functional_calls(device):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(5, 4, 5))
            self.gain = nn.Parameter(torch.zeros(5, 1))
            self.linear = nn.Parameter(torch.zeros(3, 5 * 12))

        def forward(self, X):
            X = F.conv1d(X, self.weight, padding=2) * self.gain
            X = F.max_pool1d(F.relu(X, inplace=True), 3)
            X = F.linear(X.reshape(X.shape[0], -1), self.linear)
            return F.elu(X)

    assert_gains(assert_exact(randomized(Functional()), sequences(2, L), device, FLOATS))


def test_layers_registered_in_another_order(device):
    """``children()`` in order would run, as the shapes agree, and compute something else."""

    class Shuffled(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()
            self.last = nn.Conv1d(4, 4, 3, padding=1)
            self.first = nn.Conv1d(4, 4, 3, padding=1)

        def forward(self, X):
            return self.last(self.relu(self.first(X)))

    model, X = randomized(Shuffled()), sequences(2, L)
    in_order = nn.Sequential(*model.children())
    assert errors(oracle(in_order, X)["delta"], oracle(model, X)["delta"])[0] > 0.1
    assert_gains(assert_exact(model, X, device))


def test_a_loop_over_positions():
    """forward loops over positions; for a sequence of one letter (such as a probe of zeros) children in order agree."""

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(4, 3, 3, padding=1)
            self.relu = nn.ReLU()

        def forward(self, X):
            y = self.relu(self.conv(X))
            state, rows = torch.zeros_like(y[:, :, 0]), []
            for p in range(y.shape[2]):
                rows.append(y[:, :, p] + 0.5 * torch.tanh(state))
                state = rows[-1]
            return torch.stack(rows, 2)

    model, X = randomized(Loop()), sequences(1, 14)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it gains little may be said
        precomputation = precompute(model, 14)
    for output in ("delta", "l2"):
        assert_right(yuzu_ism(model, X, precomputation, output=output), model, X, output=output)


class Branch(nn.Module):
    """Children in order, unless the sequence holds a motif anywhere: then twice as much."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 3, 3)
        self.relu = nn.ReLU()

    def forward(self, X):
        y = self.relu(self.conv(X))
        rows = []
        for row, x in zip(y, X, strict=True):
            motif = bool((x[0, :-2] * x[1, 1:-1] * x[2, 2:]).any())  # ACG
            rows.append(row * 2 if motif else row)
        return torch.stack(rows)


def test_a_branch_on_content():
    """On most sequences, and on all zeros, children in order agree. It must warn, say why, and be exact."""
    model, X = randomized(Branch()), sequences(2, L, seed=5)
    X[0, :, 10:13] = torch.eye(4)[:3].T  # with the motif; some mutants lose it
    X[1, :, 20:23] = torch.eye(4)[[0, 1, 3]].T  # one mutation away from it
    with pytest.warns(UserWarning, match=r"(?s)Branch.*naive.*exact"):
        precomputation = precompute(model, L)
    assert "naive" in precomputation.summary()
    for output in ("delta", "prediction"):
        result = yuzu_ism(model, X, precomputation, output=output)
        assert_right(result, model, X, output=output, one_by_one=True)
    in_order = oracle(nn.Sequential(*model.children()), X)["delta"]
    assert errors(in_order, oracle(model, X, one_by_one=True)["delta"])[1] > 0.1, (
        "the test is empty: no mutant branches"
    )


def test_a_branch_on_content_without_a_precomputation():
    model, X = randomized(Branch(), seed=2), sequences(1, L, seed=5)
    X[0, :, 10:13] = torch.eye(4)[:3].T
    with pytest.warns(UserWarning, match="naive"):
        result = yuzu_ism(model, X, output="delta")
    assert_right(result, model, X, output="delta", one_by_one=True)


def test_a_branch_on_content_without_looking_at_it():
    """``torch.where`` is a branch that can be captured."""

    class Where(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(4, 3, 3, padding=1)
            self.fc = nn.Linear(3, 2)

        def forward(self, X):
            y = self.conv(X)
            y = torch.where(y > 0.1, y, 0.2 * y)
            return torch.where(y.amax((1, 2), keepdim=True) > 1.0, 2 * y, y).mean(2) @ self.fc.weight.T

    assert_exact(randomized(Where()), sequences(2, L), quiet=False)


def test_children_in_order_that_differ_in_evaluation():
    """Agreement in training mode, or of a part that evaluation leaves out, says nothing about evaluation."""

    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(4, 3, 3, padding=1)
            self.extra = nn.Conv1d(3, 3, 3, padding=1)

        def forward(self, X):
            X = self.conv(X)
            return self.extra(X) if self.training else torch.relu(X)

    assert_exact(randomized(Auxiliary()).train(), sequences(2, L))


class BothStrands(nn.Module):
    """Puts the reverse complement into the same batch, as wrappers for strand-symmetric models do."""

    def __init__(self, interleaved, together):
        super().__init__()
        self.net = Net(L)
        self.interleaved, self.together = interleaved, together

    def forward(self, X):
        n = X.shape[0]
        both = torch.stack([X, X.flip(1, 2)], 1).flatten(0, 1) if self.interleaved else torch.cat([X, X.flip(1, 2)])
        y = self.net(both)
        y = y.unflatten(0, (n, 2)) if self.interleaved else torch.stack([y[:n], y[n:]], 1)
        return y.mean(1) if self.together else y.amax(1)


@pytest.mark.parametrize("interleaved, together", [(False, True), (True, False)])
def test_both_strands_in_one_batch(interleaved, together):
    model = randomized(BothStrands(interleaved, together)).eval()
    X = sequences(3, L)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it gains little
        precomputation = precompute(model, L)
    for output in ("delta", "l2", "prediction"):
        for batch_size in (None, 2):
            result = yuzu_ism(model, X, precomputation, output=output, batch_size=batch_size)
            assert_right(result, model, X, output=output, one_by_one=True)


def test_an_output_with_two_rows_a_sequence_is_refused():
    """Rows cannot be assigned to sequences."""

    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(4, 2, 3)

        def forward(self, X):
            return self.conv(torch.cat([X, X.flip(1, 2)])).amax(2)

    for function in (yuzu.naive_ism, yuzu_ism):
        with warnings.catch_warnings(), pytest.raises(ValueError, match="one row for each sequence"):
            warnings.simplefilter("ignore")
            function(Doubled(), sequences(2, L))
