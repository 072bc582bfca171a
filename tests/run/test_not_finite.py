"""Values that are infinite, or no number, in some mutants only: what is so in naive ISM is so here, and nothing else."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import yuzu
from tests.covering import covering
from tests.oracle import assert_close, errors, oracle
from yuzu._engine.edits import Mutations
from yuzu._engine.run.run import Run
from yuzu._engine.store.in_use import InUse
from yuzu._engine.store.scoring import Job

L = 60
WAYS = ["auto", "windows", "fold", "banded", "blocks", "whole", "winograd", "cyclic"]


class Fragile(nn.Module):
    """``operation`` on the fraction of A in 5 positions, less what only a mutant falls below; then a convolution, or a
    matrix. ``channels`` of its output say which ways can run it.
    """

    def __init__(self, operation, channels=1, flat=False):
        super().__init__()
        self.operation, self.flat = operation, flat
        self.first, self.second = nn.Conv1d(4, 3, 5, padding=2, bias=False), nn.Conv1d(3, channels, 9, padding=4)
        self.last = nn.Linear(3 * L, 2)
        with torch.no_grad():
            self.first.weight.zero_()[:, 0] = 1 / 5

    def forward(self, x):
        y = self.first(x)
        y = self.operation(torch.where(torch.arange(L, device=x.device) == 23, y - 0.9, y))
        return self.last(y.flatten(1)) if self.flat else self.second(y)


OPERATIONS = {
    "log of a negative": torch.log,
    "log of nothing": lambda y: torch.log(torch.relu(y)),
    "root": torch.sqrt,
    "inverse": lambda y: 1 / torch.relu(y),
    "overflow": lambda y: torch.exp(torch.relu(-y) * 1e5),
}


def only_a(n):
    X = torch.zeros(n, 4, L)
    X[:, 0] = 1
    return X


def assert_same_pattern(found, truth, tolerance):
    found, truth = np.asarray(found, dtype=float), np.asarray(truth, dtype=float)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(truth))
    np.testing.assert_array_equal(np.nan_to_num(found, nan=0) == np.inf, np.nan_to_num(truth, nan=0) == np.inf)
    np.testing.assert_array_equal(np.nan_to_num(found, nan=0) == -np.inf, np.nan_to_num(truth, nan=0) == -np.inf)
    known = np.isfinite(truth)
    assert known.any() and not known.all()
    assert errors(np.where(known, found, 0), np.where(known, truth, 0))[0] < tolerance


def no_mutation_is_zero(truth, X):
    """A character written over itself changes nothing, also where the reference is infinite and has no difference."""
    truth = np.asarray(truth).copy()
    truth[X.numpy() == 1] = 0
    return truth


@pytest.mark.parametrize(
    *covering(name=OPERATIONS, conv=WAYS, channels=[1, 6], output=["l2", "delta", "prediction"])
)
def test_neighbours_stay_finite(name, channels, conv, output, device):
    torch.manual_seed(0)
    model, X = Fragile(OPERATIONS[name], channels).double(), only_a(2).double()
    X[1, :, 30] = 0  # an N
    made = yuzu.precompute(model, L, conv=conv, device=device)
    assert made.decisions.naive_model is None
    found = yuzu.yuzu_ism(model, X, made, output=output, device=device)
    assert_same_pattern(found, oracle(model, X)[output], 1e-9)


class Several(nn.Module):
    """A logarithm at one place of a sequence of any length, which one of three outputs reads, or two do."""

    def __init__(self, place, readers):
        super().__init__()
        self.place, self.readers = place, readers
        self.first = nn.Conv1d(4, 3, 5, padding=2, bias=False)
        self.heads = nn.ModuleList([nn.Conv1d(3, channels, 9, padding=4) for channels in (1, 6, 2)])

    def plain(self, x):
        """The sequence of nothing but A: its value at the place is what mutants fall below."""
        return torch.tensor([1.0, 0, 0, 0], dtype=x.dtype, device=x.device)[None, :, None].expand(1, 4, x.shape[2])

    def forward(self, x):
        y = self.first(x)
        chosen = torch.arange(x.shape[2], device=x.device) == self.place % x.shape[2]
        fragile = torch.where(chosen, (y - self.first(self.plain(x)) + 0.1).log(), y)
        return {f"head {i}": head(fragile if i in self.readers else y) for i, head in enumerate(self.heads)}


PLACES = [(60, 0), (60, 1), (60, -1), (60, -3), (7, 0), (7, 3), (7, -1), (3, 1)]  # in sequences of which length


@pytest.mark.parametrize(
    *covering(where=PLACES, readers=[(0,), (1,), (1, 2)], conv=["auto", "banded"], output=["l2", "delta", "prediction"])
)
def test_at_the_ends_in_short_sequences_and_among_several_outputs(conv, where, readers, output, device, monkeypatch):
    length, place = where
    monkeypatch.setattr(InUse, "sites_at_once", lambda self, mutations, references=1, laid_out=0: 5)
    torch.manual_seed(0)
    model, X = Several(place, readers).double(), torch.zeros(3, 4, length, dtype=torch.float64)
    with torch.no_grad():
        model.first.weight.zero_()[:, 0] = 1 / 5
    X[:, 0] = 1
    X[2, :, length // 2] = 0  # an N
    made = yuzu.precompute(model, length, conv=conv, device=device)
    found, truth = yuzu.yuzu_ism(model, X, made, output=output, device=device), oracle(model, X)[output]
    if output == "l2":
        assert_same_pattern(found, no_mutation_is_zero(truth, X), 1e-9)
        return
    for i, name in enumerate(found):
        if i in readers:
            wanted = no_mutation_is_zero(truth[name], X) if output == "delta" else truth[name]
            assert_same_pattern(found[name], wanted, 1e-9)
        else:
            assert_close(found[name], truth[name], 1e-9)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize("conv", ["auto", "blocks"])
def test_in_float32_and_bfloat16(conv, precision, flat, device):
    torch.manual_seed(0)
    model, X = Fragile(torch.log, flat=flat), only_a(2)
    made = yuzu.precompute(model, L, conv=conv, precision=precision, device=device)
    found = yuzu.yuzu_ism(model, X, made, output="delta", device=device)
    assert_same_pattern(found, oracle(model, X)["delta"], 1e-5 if precision == "highest" else 2e-2)


@pytest.mark.parametrize("asked", [{"start": 15, "end": 30}, {"ranges": [(3, 6), (21, 24), (40, 43)]}, {"target": 0}])
def test_parts_of_it(asked, device):
    torch.manual_seed(0)
    model, X = Fragile(torch.log, 2).double(), only_a(3).double()
    X[2] = 0  # no logarithm is taken here of anything but nothing: this sequence's reference is infinite
    found = yuzu.yuzu_ism(model, X, yuzu.precompute(model, L, device=device), output="delta", device=device, **asked)
    assert_same_pattern(found, yuzu.naive_ism(model, X, output="delta", device=device, **asked), 1e-9)


def test_chunks_of_few_sites(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(InUse, "sites_at_once", lambda self, mutations, references=1, laid_out=0: 7)
    monkeypatch.setattr(InUse, "naive_batch", property(lambda self: 2))
    model, X = Fragile(torch.log, 2).double(), only_a(2).double()
    found = yuzu.yuzu_ism(model, X, yuzu.precompute(model, L, device="cpu"), output="delta", device="cpu")
    assert_same_pattern(found, oracle(model, X)["delta"], 1e-9)


def test_mutants_run_naively_as_memory_allows(monkeypatch):
    torch.manual_seed(0)
    model, X = Fragile(torch.log, 2).double(), only_a(2).double()
    made = yuzu.precompute(model, L, device="cpu")
    rows, whole = [], Run.mutants
    monkeypatch.setattr(Run, "mutants", lambda self, *given: rows.append(len(found := whole(self, *given))) or found)
    yuzu.yuzu_ism(model, X, made, output="delta", device="cpu")
    assert max(rows) > 6
    bound = made.bind(model, L, 4, (), torch.device("cpu"))
    each = bound.memory(Mutations.asked(4, L)).sequence
    rows.clear()
    bound.settings = dataclasses.replace(bound.settings, max_memory=7 * each)
    again = yuzu.yuzu_ism(model, X, made, output="delta", device="cpu")
    assert 0 < max(rows) <= 7
    assert_same_pattern(again, oracle(model, X)["delta"], 1e-9)


class Conditioned(nn.Module):
    """A second input decides where the logarithm is of a negative number, if anywhere."""

    def __init__(self):
        super().__init__()
        self.inner = Fragile(lambda y: y, 2)

    def forward(self, x, offset):
        return self.inner.second((self.inner.first(x) - offset[:, None]).log())


def test_states_of_a_product(device):
    torch.manual_seed(0)
    model, X = Conditioned().double(), only_a(2).double()
    states = torch.tensor([[0.1], [0.3], [0.5]], dtype=torch.float64)  # one mutant lowers 1 to 0.8: ends are at 0.6
    states[2] = 0.55
    func = yuzu.saturation_mutagenesis
    found = yuzu.product.apply_product(func, model, X, args=(states,), raw_outputs=True, device=device)
    assert not np.isfinite(np.asarray(found[1])).all() and np.isfinite(np.asarray(found[1])[:, 0]).any()
    for i, state in enumerate(states):
        rows = state.expand(2, 1)
        alone = func(model, X, args=(rows,), raw_outputs=True, device=device)
        for mine, theirs in zip(found, alone, strict=True):
            np.testing.assert_allclose(np.asarray(mine)[:, i], np.asarray(theirs), rtol=1e-9, equal_nan=True)


def test_an_output_that_is_infinite_anyway_costs_nothing(monkeypatch, device):
    """A masked track has no difference, in naive ISM neither: nothing is run again for it."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv1d(4, 3, 5, padding=2)

        def forward(self, x):
            y = self.body(x)
            return torch.where(torch.arange(L, device=x.device) % 2 == 0, -torch.inf, y)

    def never(self, run):
        raise AssertionError("nothing is to be run again")

    torch.manual_seed(0)
    monkeypatch.setattr(Job, "naively", never)
    model, X = Masked().double(), only_a(2).double()
    made = yuzu.precompute(model, L, device=device)
    for output in ("delta", "prediction"):
        found = yuzu.yuzu_ism(model, X, made, output=output, device=device)
        truth = oracle(model, X)[output]
        if output == "delta":
            truth = no_mutation_is_zero(truth, X)
        assert_same_pattern(found, truth, 1e-9)
    assert np.isnan(np.asarray(yuzu.yuzu_ism(model, X, made, device=device))).any()


def test_what_lies_beside_a_slice_spoils_no_sum_of_it(monkeypatch, device):
    """Mutants are infinite where only another output looks: nothing is run again for the sum."""

    class Beside(nn.Module):
        def forward(self, x):
            y = torch.log(1 - x[:, 3:])
            return y[:, :, 6:-6].sum(2), torch.exp(y).mean(2)

    def never(self, run):
        raise AssertionError("nothing is to be run again")

    monkeypatch.setattr(Job, "naively", never)
    model, X = Beside(), only_a(2).double()
    model.register_buffer("dtype", torch.zeros(1, dtype=torch.float64))
    made = yuzu.precompute(model, L, device=device)
    for start, end in ((0, 6), (L - 6, L)):
        found = yuzu.yuzu_ism(model, X, made, output="delta", start=start, end=end, device=device)
        for mine, truth in zip(found, oracle(model, X)["delta"], strict=True):
            np.testing.assert_allclose(np.asarray(mine), np.asarray(truth)[:, :, start:end], rtol=1e-9, atol=1e-12)
