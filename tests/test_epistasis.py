"""`yuzu.epistasis`: interactions of all pairs of edits, against every double mutant in float64."""

import copy

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

import yuzu
from tests.contract import CONTAINERS, Container, L, with_args, with_columns
from tests.laws.random_models import random_model
from tests.oracle import EXACT, FLOAT64, assert_same, errors
from tests.plan.test_statistics import Normalising
from tests.small_models import Net, Profile, one_hot, randomized, sequences
from yuzu._engine.store import pairs as engine_pairs
from yuzu._engine.store import scoring
from yuzu._engine.store.in_use import InUse
from yuzu._engine.tune import statistics
from yuzu.models import BPNet

LENGTH = 16


def brute_force(model, X, *, start=0, end=None, args=(), func=None, target=None, dtype=torch.float64):
    """``y(ab) - y(a) - y(b) + y(0)`` by running every double mutant; 0 where a letter is the reference's."""
    model = copy.deepcopy(model).to(dtype).eval()
    X = X.to(dtype)
    c, places = X.shape[1], range(X.shape[2])[start:end]
    edits = [(p, letter) for p in places for letter in range(c)]
    eye, found, spec = torch.eye(c, dtype=dtype), [], None
    for i, x in enumerate(X):

        def run(rows, i=i):
            rest = [a[i : i + 1].expand(len(rows), *a.shape[1:]) for a in args]
            with torch.no_grad():
                y = model(rows, *(a.to(dtype) if a.is_floating_point() else a for a in rest))
            leaves, spec = pytree.tree_flatten(y if func is None else func(y))
            return [v if target is None else v[:, target] for v in leaves], spec

        singles = x.repeat(len(edits), 1, 1)
        for row, (p, letter) in zip(singles, edits, strict=True):
            row[:, p] = eye[letter]
        (zero, spec), (alone, _) = run(x[None]), run(singles)
        whole = [torch.zeros(len(edits), len(edits), *v.shape[1:], dtype=dtype) for v in zero]
        for row, (p, letter) in enumerate(edits):
            both = singles.clone()
            both[:, :, p] = eye[letter]
            no_pair = torch.tensor([q == p or x[letter, p] == 1 or x[other, q] == 1 for q, other in edits])
            for w, y, a, z in zip(whole, run(both)[0], alone, zero, strict=True):
                w[row] = y - a[row] - a + z
                w[row][no_pair] = 0
        found.append([w.view(len(places), c, len(places), c, *w.shape[2:]) for w in whole])
    return pytree.tree_unflatten([torch.stack(v) for v in zip(*found, strict=True)], spec)


def assert_interactions(found, model, X, **kwargs):
    """Within 1e-5 of float64, or naive float32's own error of the interaction if that is larger."""
    truth = pytree.tree_leaves(brute_force(model, X, **kwargs))
    naive = pytree.tree_leaves(brute_force(model, X, dtype=torch.float32, **kwargs))
    double = next(model.parameters()).dtype == torch.float64
    for leaf, wanted, own in zip(pytree.tree_leaves(found), truth, naive, strict=True):
        assert float(wanted.abs().max()) > 1e-3, "the test is empty: nothing interacts"
        assert errors(leaf, wanted)[0] <= (FLOAT64 if double else max(EXACT, errors(own, wanted)[0]))


MODELS = {
    "dense": lambda: Net(LENGTH),
    "profile": Profile,
    "local": lambda: BPNet(4, n_filters=6, kernel_size=3, n_layers=2),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return randomized(MODELS[request.param](), seed=1).eval()


def columns(X):
    """An N and a soft column."""
    return with_columns(X, {(0, 6): [0, 0, 0, 0], (1, 11): [0.5, 0.25, 0.25, 0]})


def test_all_pairs(model):
    X = columns(sequences(2, LENGTH))
    found = yuzu.epistasis(model, X)
    assert_interactions(found, model, X)
    for leaf in pytree.tree_leaves(found):
        assert leaf.shape[:5] == (2, LENGTH, 4, LENGTH, 4)
        assert torch.equal(leaf, leaf.movedim((1, 2), (3, 4)))
        assert not leaf[:, range(LENGTH), :, range(LENGTH)].any()
        assert not leaf.movedim(1, 2)[X == 1].any()


@pytest.mark.parametrize("start, end", [(4, 9), (-5, None), (0, 2)])
def test_a_part_of_the_positions(model, start, end):
    X = columns(sequences(2, LENGTH))
    whole, part = yuzu.epistasis(model, X), yuzu.epistasis(model, X, start=start, end=end)
    places = slice(start, end)
    for a, b in zip(pytree.tree_leaves(part), pytree.tree_leaves(whole), strict=True):
        assert errors(a, b[:, places, :, places])[0] < 1e-5


@pytest.mark.parametrize("sites", [[2, 5, 11], np.array([11, 2, -11]), torch.tensor([5, 11, 2])], ids=["list", "array", "tensor"])
def test_chosen_sites(model, sites):
    X = columns(sequences(2, LENGTH))
    whole, part = yuzu.epistasis(model, X), yuzu.epistasis(model, X, sites=sites)
    places = [int(p) for p in sites]
    for a, b in zip(pytree.tree_leaves(part), pytree.tree_leaves(whole), strict=True):
        assert errors(a, b[:, places][:, :, :, places])[0] < 1e-5


def test_one_position_has_no_pair(model):
    for leaf in pytree.tree_leaves(yuzu.epistasis(model, sequences(1, LENGTH), start=3, end=4)):
        assert leaf.shape[:5] == (1, 1, 4, 1, 4) and not leaf.any()


def test_max_distance_leaves_far_pairs_out():
    model, X = randomized(Net(LENGTH)).eval(), sequences(1, LENGTH)
    whole, near = yuzu.epistasis(model, X), yuzu.epistasis(model, X, max_distance=3)
    apart = np.abs(np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH)))
    for i, j in zip(*np.nonzero(apart > 3), strict=True):
        assert not near[:, i, :, j].any() and whole[:, i, :, j].any()
    for i, j in zip(*np.nonzero(apart <= 3), strict=True):
        assert torch.allclose(near[:, i, :, j], whole[:, i, :, j], atol=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_random_architectures(seed):
    drawn = random_model(seed)
    model, X = drawn.model.double(), drawn.X[:1].double()
    args = tuple(a[:1] for a in drawn.args)
    start = X.shape[2] // 2 - 3
    found = yuzu.epistasis(model, X, args=args or None, start=start, end=start + 6)
    truth = brute_force(model, X, args=args, start=start, end=start + 6)
    for leaf, wanted in zip(pytree.tree_leaves(found), pytree.tree_leaves(truth), strict=True):
        size = max(float(wanted.abs().max()), 1e-3)
        assert float((leaf - wanted).abs().max()) <= 1e-9 * size


def test_pairs_that_never_meet_are_not_run(monkeypatch):
    """In a model with local outputs only neighbours interact, and only they are mutants."""
    counted = []
    write = scoring.Job.write

    def counting(self, parts, run, references, leaves, scores, there):
        for part in parts:
            counted.append(len(part.position) * part.edits)
            write(self, [part], run, references, leaves, scores, there)

    monkeypatch.setattr(scoring.Job, "write", counting)
    model, X = randomized(BPNet(4, n_filters=6, kernel_size=3, n_layers=2)).eval(), sequences(1, 60)
    local = yuzu.epistasis(model, X)
    few = sum(counted)
    counted.clear()
    summed = yuzu.epistasis(model, X, func=lambda y: y)
    assert sum(counted) == 60 * 3 + 60 * 59 // 2 * 9  # the single mutants, and each pair once
    assert few == 60 * 3 + sum(60 - d for d in range(1, 7)) * 9  # relu reaches 7 positions after both convolutions
    assert errors(local, summed)[0] < 1e-5


def test_ranges_are_sites(model):
    X = columns(sequences(2, LENGTH))
    ranges, motif = [(0, 3), (2, 5), (9, 12), (13, 16)], one_hot("GAT")
    found = yuzu.epistasis(model, X, ranges=ranges, replace_with="GAT")
    double = copy.deepcopy(model).double()

    def run(x, places):
        x = x.double().clone()
        for i in places:
            x[:, ranges[i][0] : ranges[i][1]] = motif
        with torch.no_grad():
            return pytree.tree_leaves(double(x[None]))

    for n, x in enumerate(X):
        for i in range(4):
            for j in range(4):
                for leaf, both, a, b, zero in zip(
                    pytree.tree_leaves(found), run(x, (i, j)), run(x, (i,)), run(x, (j,)), run(x, ()), strict=True
                ):
                    wanted = both - a - b + zero if i != j and {i, j} != {0, 1} else torch.zeros_like(both)
                    assert torch.allclose(leaf[n, i, j].double(), wanted[0], atol=2e-5)
    blanked = yuzu.epistasis(model, X, ranges=ranges)
    assert pytree.tree_leaves(blanked)[0].shape[:3] == (2, 4, 4)


@pytest.mark.parametrize("name", ["nested", "dict", "namedtuple", "scalar"])
def test_containers_and_arrays(name):
    model, X = randomized(Container(CONTAINERS[name]), seed=3).eval(), sequences(1, L)
    found = yuzu.epistasis(model, X, start=3, end=7)
    assert pytree.tree_structure(found) == pytree.tree_structure(yuzu.yuzu_ism(model, X, output="delta"))
    arrays = yuzu.epistasis(model, X.numpy().astype(np.int8), start=3, end=7)
    assert all(isinstance(v, np.ndarray) and v.dtype == np.float32 for v in pytree.tree_leaves(arrays))
    assert_same(pytree.tree_map(torch.from_numpy, arrays), found)


def test_args_func_target_and_precomputation():
    model, X = with_args(), sequences(2, L)
    args = (torch.tensor([[0.5], [2.0]]), sequences(2, L, 2, seed=2)[:, :1])
    precomputation = yuzu.precompute(model, L, args=args, device="cpu")
    asked = {"args": args, "func": lambda y: y[1].sum(1), "target": [0, 3], "start": 1, "end": 6}
    found = yuzu.epistasis(model, X, precomputation, **asked)
    assert found.shape == (2, 5, 4, 5, 4, 2)
    assert_interactions(found, model, X, **asked)
    assert errors(yuzu.epistasis(model, X, batch_size=1, **asked), found)[0] < 1e-5
    with pytest.raises(yuzu.PrecomputationError):
        yuzu.epistasis(model, X[:, :, 1:], precomputation, args=tuple(a[..., : L - 1] for a in args))


@pytest.mark.parametrize("name", ["dense", "local"])
def test_devices(name, device):
    model, X = randomized(MODELS[name](), seed=1).eval(), columns(sequences(2, LENGTH))
    found = yuzu.epistasis(model, X, device=device)
    assert found.device.type == "cpu"
    assert_interactions(found, model, X)


def test_little_memory_at_once_changes_nothing(monkeypatch):
    model, X = randomized(Net(LENGTH)).eval(), sequences(2, LENGTH)
    wanted = yuzu.epistasis(model, X)
    monkeypatch.setattr(engine_pairs, "RESULTS_AT_ONCE", 3000)
    assert errors(yuzu.epistasis(model, X), wanted)[0] < 1e-5


@pytest.mark.parametrize("conv", ["windows", "cyclic"])
def test_ways_of_running_convolutions(conv):
    model, X = randomized(Net(LENGTH)).eval(), sequences(2, LENGTH)
    precomputation = yuzu.precompute(model, LENGTH, conv=conv, device="cpu")
    assert_interactions(yuzu.epistasis(model, X, precomputation), model, X)


def test_models_that_run_naively():
    class Mixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = randomized(Net(LENGTH))

        def forward(self, X):
            return self.inner(X) * (2.0 if float(X.sum()) < 1e9 else 1.0)

    model, X = Mixed().eval(), sequences(1, LENGTH)
    with pytest.warns(yuzu.YuzuWarning):
        found = yuzu.epistasis(model, X, start=5, end=9)
    assert_interactions(found, model, X, start=5, end=9)


def test_no_series_where_models_normalise(monkeypatch):
    """A series in statistics is as exact as naive ISM for each difference, and may not be for the difference of two."""
    monkeypatch.setattr(statistics, "FASTER", 1e9)
    model, X = Normalising(channels=6, blocks=2).eval(), sequences(1, 200)
    precomputation = yuzu.precompute(model, 200, device="cpu")
    assert precomputation.decisions.statistics is not None
    counted, begin = [], scoring.Job.__init__

    def counting(self, used, *args):
        counted.append(used.plan.statistics.count)
        begin(self, used, *args)

    monkeypatch.setattr(scoring.Job, "__init__", counting)
    monkeypatch.setattr(InUse, "fitting", lambda self, mutations: self)
    yuzu.yuzu_ism(model, X, precomputation, output="delta")
    assert counted.pop() > 0
    asked = {"func": lambda y: 100 * y[1], "start": 98, "end": 102}
    assert_interactions(yuzu.epistasis(model, X, precomputation, **asked), model, X, **asked)
    yuzu.epistasis(model, X, precomputation, **{**asked, "func": None})
    yuzu.scan.deletion(model, X, 1, precomputation=precomputation, start=98, end=102)
    assert counted and not any(counted)


def test_infinite_references_are_not_taken_for_zero():
    class Infinite(torch.nn.Module):
        """An output that is infinite in the reference, beside one that is not."""

        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv1d(4, 2, 3, padding=1)

        def forward(self, X):
            y = torch.relu(self.conv(X))
            return torch.cat([y, y.new_full((len(y), 2, 1), torch.inf) + y[..., :1]], 2)

    found = yuzu.epistasis(randomized(Infinite()).eval(), sequences(1, 12))
    assert torch.isnan(found[..., 12]).any() and torch.isfinite(found[..., :12]).all()


def test_the_model_and_the_sequences_are_left_alone():
    model, X = randomized(Net(LENGTH)).train(), sequences(2, LENGTH)
    before, weights, state = X.clone(), copy.deepcopy(model.state_dict()), torch.get_rng_state()
    yuzu.epistasis(model, X, end=5)
    assert torch.equal(X, before) and model.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), weights.values(), strict=True))


def test_a_bar_counts_pairs(capsys):
    model, X = randomized(Net(LENGTH)).eval(), sequences(2, LENGTH)
    yuzu.epistasis(model, X, end=5)
    assert not capsys.readouterr().err
    yuzu.epistasis(model, X, end=5, verbose=True)
    assert "180/180" in capsys.readouterr().err  # 2 sequences, 10 pairs of positions, 9 of letters


BAD = {
    "max_distance 0": ({"max_distance": 0}, r"max_distance must be an integer of at least 1, got 0"),
    "max_distance": ({"max_distance": 2.5}, r"max_distance must be an integer"),
    "no position": ({"start": 5, "end": 5}, r"start=5 and end=5 select no position"),
    "target": ({"target": 3}, r"target=3 does not exist"),
    "func": ({"func": 3}, r"func must be callable"),
    "sites and end": ({"sites": [1, 2], "end": 5}, r"sites cannot be combined with start, end, ranges or replace_with"),
    "sites outside": ({"sites": [1, 16]}, r"sites must be different positions of a sequence of length 16, got \[1, 16\]"),
    "a site twice": ({"sites": [1, -15]}, r"sites must be different positions"),
    "no site": ({"sites": []}, r"sites must be a non-empty list of positions"),
    "sites as text": ({"sites": "ab"}, r"sites must be a non-empty list of positions"),
    "ranges and start": ({"ranges": [(0, 2)], "start": 1}, r"ranges cannot be combined"),
    "batch_size": ({"batch_size": 0}, r"batch_size must be an integer of at least 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    asked, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        yuzu.epistasis(randomized(Net(LENGTH)).eval(), sequences(1, LENGTH), **asked)


def test_a_result_beyond_memory_says_what_to_do(monkeypatch):
    zeros = torch.zeros

    def refusing(*shape, **kwargs):
        if shape and isinstance(shape[0], tuple) and len(shape[0]) > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return zeros(*shape, **kwargs)

    monkeypatch.setattr(engine_pairs.torch, "zeros", refusing)
    with pytest.raises(yuzu.YuzuError, match=r"take 4.92e-05 GB, .* select outputs with target or func"):
        yuzu.epistasis(randomized(Net(LENGTH)).eval(), sequences(1, LENGTH))
