"""`yuzu.scan`: deletions, insertions, blanked, shuffled and tiled windows, against a mutant at a time in float64."""

import copy

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

import yuzu
from tests.contract import CONTAINERS, Container, L, with_args, with_columns
from tests.laws.random_models import random_model
from tests.oracle import EXACT, FLOAT64, assert_same, errors
from tests.small_models import Net, Profile, one_hot, randomized, sequences
from yuzu import scan
from yuzu.models import BPNet

LENGTH = 30


class Strided(torch.nn.Module):
    """Strided convolutions and pools of several sizes, so that positions lie differently in each."""

    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv1d(4, 6, 5, stride=2, padding=1)
        self.conv2 = torch.nn.Conv1d(6, 6, 3, stride=1, dilation=2)
        self.out = torch.nn.Linear(6, 2)

    def forward(self, X):
        X = torch.nn.functional.max_pool1d(torch.relu(self.conv1(X)), 3, 2)
        X = torch.nn.functional.avg_pool1d(torch.tanh(self.conv2(X)), 2, ceil_mode=True)
        return self.out(X.amax(2)).exp()


MODELS = {"dense": Net, "profile": Profile, "strided": Strided}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return randomized(MODELS[request.param](), seed=1).eval()


def columns(X):
    """An N and a soft column."""
    return with_columns(X, {(0, 6): [0, 0, 0, 0], (1, 11): [0.5, 0.25, 0.25, 0]})


# ---- brute force


def deleted(x, p, w, side="left", flank=None):
    """The letters of one side move up."""
    flank = torch.zeros(len(x), w) if flank is None else flank
    if side == "left":
        return torch.cat([x[:, :p], x[:, p + w :], flank[:, :w]], 1)
    return torch.cat([flank[:, flank.shape[1] - w :], x[:, :p], x[:, p + w :]], 1)


def inserted(x, p, motif, side="left"):
    whole = torch.cat([x[:, :p], motif, x[:, p:]], 1)
    return whole[:, : x.shape[1]] if side == "left" else whole[:, motif.shape[1] :]


def written(x, p, motif):
    x = x.clone()
    x[:, p : p + motif.shape[1]] = motif
    return x


def scores_of(model, X, mutants, args=(), func=None, target=None, dtype=torch.float64):
    """``y(mutant) - y(reference)`` of a list of mutants ``(C, L)`` for each sequence, in the model's container."""
    model = copy.deepcopy(model).to(dtype)
    found, spec = [], None
    for i, (x, some) in enumerate(zip(X, mutants, strict=True)):
        rows = torch.stack([x, *some]).to(dtype)
        rest = [a[i : i + 1].expand(len(rows), *a.shape[1:]) for a in args]
        with torch.no_grad():
            y = model(rows, *(a.to(dtype) if a.is_floating_point() else a for a in rest))
        leaves, spec = pytree.tree_flatten(y if func is None else func(y))
        leaves = [v if target is None else v[:, target] for v in leaves]
        found.append([v[1:] - v[:1] for v in leaves])
    return pytree.tree_unflatten([torch.stack(v) for v in zip(*found, strict=True)], spec)


def assert_scores(found, model, X, mutants, **kwargs):
    """Within 1e-5 of float64, or naive float32's own error if that is larger."""
    double = next(model.parameters()).dtype == torch.float64
    truth, naive = (
        pytree.tree_leaves(scores_of(model, X, mutants, dtype=d, **kwargs)) for d in (torch.float64, torch.float32)
    )
    leaves = pytree.tree_leaves(found)
    assert len(leaves) == len(truth)
    for leaf, wanted, own in zip(leaves, truth, naive, strict=True):
        tolerance = FLOAT64 if double else max(EXACT, errors(own, wanted)[0])
        assert errors(leaf, wanted)[0] <= tolerance


# ---- windows


def test_blanking_is_writing_zeros(model):
    X = columns(sequences(2, LENGTH))
    mutants = [[written(x, p, torch.zeros(4, 5)) for p in range(3, 22, 2)] for x in X]  # the last would end behind 26
    found = scan.blanking(model, X, 5, step=2, start=3, end=-4)
    assert_scores(found, model, X, mutants)


def test_tiling_writes_a_motif(model):
    X, motif = columns(sequences(2, LENGTH)), one_hot("TGACTCA")
    mutants = [[written(x, p, motif) for p in range(0, LENGTH - 6, 3)] for x in X]
    assert_scores(scan.tiling(model, X, "tgactca", step=3), model, X, mutants)
    assert_same(scan.tiling(model, X, motif.numpy(), step=3), scan.tiling(model, X, "TGACTCA", step=3))


@pytest.mark.parametrize("scanned", [scan.blanking, scan.shuffling])
def test_a_list_of_widths_gives_a_dict(scanned, model):
    X, extra = sequences(2, LENGTH), {} if scanned is scan.blanking else {"random_state": 1}
    found = scanned(model, X, [3, 8], **extra)
    assert list(found) == [3, 8]
    for width, scores in found.items():
        assert_same(scores, scanned(model, X, width, **extra))


# ---- shuffles


class Echo(torch.nn.Module):
    """The sequence itself: its scores tell what was written."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, X):
        return X * self.weight


def edited(X, found, r, sample, place, width):
    """The letters that a shuffle wrote; everything else is as it was."""
    whole = X + found[:, r, sample]
    outside = torch.ones(X.shape[2], dtype=torch.bool)
    outside[place : place + width] = False
    assert torch.equal(whole[:, :, outside], X[:, :, outside])
    return [tuple(map(tuple, x[:, place : place + width].T.tolist())) for x in whole]


@pytest.mark.parametrize("dinucleotide", [False, True])
def test_shuffles_keep_letters_and_pairs(dinucleotide):
    X = with_columns(sequences(2, LENGTH), {(0, 6): [0, 0, 0, 0]})
    found = scan.shuffling(Echo(), X, 12, step=6, samples=5, dinucleotide=dinucleotide, random_state=3)
    assert found.shape == (2, 4, 5, 4, LENGTH)
    changed = 0
    for r in range(4):
        for sample in range(5):
            for i, letters in enumerate(edited(X, found, r, sample, 6 * r, 12)):
                before = [tuple(c) for c in X[i, :, 6 * r : 6 * r + 12].T.tolist()]
                assert sorted(letters) == sorted(before)
                if dinucleotide:
                    assert sorted(zip(letters, letters[1:], strict=False)) == sorted(zip(before, before[1:], strict=False))
                changed += list(letters) != before
    assert changed > 30


def test_all_orders_that_keep_pairs_are_equally_likely():
    text = "ACAGACAGA"
    X = one_hot(text)[None]
    found = X + scan.shuffling(Echo(), X, 9, samples=3000, dinucleotide=True, random_state=0)[0, 0]
    orders, counts = np.unique(found.argmax(1).numpy(), axis=0, return_counts=True)
    assert len(orders) == 6  # AC, AG and their ways back in any order: 4! / (2! 2!)
    assert counts.min() > 3000 / 6 * 0.85 and counts.max() < 3000 / 6 * 1.15


def test_shuffles_are_scored_as_they_are_written(model):
    X = columns(sequences(2, LENGTH))
    asked = {"samples": 3, "random_state": 5, "step": 4}
    letters = X[:, None, None] + scan.shuffling(Echo(), X, 9, **asked)
    mutants = letters.flatten(1, 2)
    found = scan.shuffling(model, X, 9, **asked)
    flat = pytree.tree_map(lambda v: v.flatten(1, 2), found)
    assert_scores(flat, model, X, mutants)


def test_shuffles_depend_on_their_seed_alone():
    X = sequences(3, LENGTH)
    first = scan.shuffling(Echo(), X, 7, random_state=1)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert_same(first, scan.shuffling(Echo(), X, 7, random_state=1, batch_size=1))
    assert_same(first[:1], scan.shuffling(Echo(), X[:1], 7, random_state=1))
    assert not torch.equal(first, scan.shuffling(Echo(), X, 7, random_state=2))
    assert not torch.equal(scan.shuffling(Echo(), X, 7), scan.shuffling(Echo(), X, 7))
    assert torch.equal(state[0], torch.get_rng_state()) and (state[1] == np.random.get_state()[1]).all()


def test_soft_columns_have_no_pairs():
    with pytest.raises(ValueError, match=r"X_0 must have one-hot or zero columns .* position 11 of sequence 1"):
        scan.shuffling(Echo(), columns(sequences(2, LENGTH)), 5, dinucleotide=True)


# ---- letters that move


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "flanks"])
def test_deletions_move_one_side_up(model, side, given):
    X = columns(sequences(2, LENGTH))
    flanks = sequences(2, 9, seed=5) if given else None
    widths = [1, 2, 7] if given else [1, 2, 7, LENGTH - 5]
    found = scan.deletion(model, X, widths, flanks, side)
    assert list(found) == widths
    for w in widths:
        rest = [None, None] if flanks is None else flanks
        mutants = [[deleted(x, p, w, side, f) for p in range(LENGTH - w + 1)] for x, f in zip(X, rest, strict=True)]
        assert_scores(found[w], model, X, mutants)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("motif", ["T", "TGACTCA", "ACGTN" * 7], ids=["one", "seven", "longer than the sequence"])
def test_insertions_push_one_side_out(model, side, motif):
    X = columns(sequences(2, LENGTH))
    letters = torch.stack([torch.tensor([float(c == a) for a in "ACGT"]) for c in motif], 1)
    mutants = [[inserted(x, p, letters, side) for p in range(LENGTH)] for x in X]
    assert_scores(scan.insertion(model, X, motif, side), model, X, mutants)


@pytest.mark.parametrize("start, end", [(0, 1), (4, 9), (-6, None), (17, 30)])
def test_moves_between_start_and_end(start, end):
    model, X = randomized(Strided()).eval(), sequences(2, LENGTH)
    places = range(LENGTH)[start:end]
    for side in ("left", "right"):
        found = scan.deletion(model, X, 1, side=side, start=start, end=end)[1]
        assert_scores(found, model, X, [[deleted(x, p, 1, side) for p in places] for x in X])
        found = scan.insertion(model, X, "GAT", side, start=start, end=end)
        assert_scores(found, model, X, [[inserted(x, p, one_hot("GAT"), side) for p in places] for x in X])


@pytest.mark.parametrize("func", [None, torch.tanh], ids=["differences", "values"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_more_mutants_than_one_reference_serves(side, func):
    model, X = randomized(Strided()).eval(), sequences(2, 130)
    found = scan.deletion(model, X, [3, 10], side=side, func=func)
    for w in (3, 10):
        mutants = [[deleted(x, p, w, side) for p in range(131 - w)] for x in X]
        assert_scores(found[w], model, X, mutants, func=func)
    found = scan.insertion(model, X, "GATTA", side, func=func, start=7, end=-9)
    mutants = [[inserted(x, p, one_hot("GATTA"), side) for p in range(7, 121)] for x in X]
    assert_scores(found, model, X, mutants, func=func)


def test_long_scans_keep_the_digits_of_differences():
    """Naive ISM has few digits left if outputs are large beside their differences."""
    model, X = randomized(BPNet(4, n_filters=8, kernel_size=5)).eval(), sequences(1, 400)
    model.fconv.bias.data += 10_000
    mutants = [[deleted(X[0], p, 1) for p in range(400)]]
    truth, naive = (scores_of(model, X, mutants, dtype=d) for d in (torch.float64, torch.float32))
    assert errors(scan.deletion(model, X, 1)[1], truth)[0] < 1e-5 < errors(naive, truth)[0] / 10


@pytest.mark.parametrize("seed", range(6))
def test_random_architectures(seed):
    drawn = random_model(seed)
    model, X = drawn.model.double(), drawn.X.double()
    kwargs = {"args": drawn.args} if drawn.args else {}
    length, c = X.shape[2], X.shape[1]
    motif = torch.eye(c)[:, [0, 1, 0]].double()
    given = {"args": tuple(drawn.args)} if drawn.args else {}
    assert_scores(
        scan.deletion(model, X, 2, **given)[2], model, X,
        [[deleted(x, p, 2, flank=x.new_zeros(c, 2)) for p in range(length - 1)] for x in X], **kwargs,
    )  # fmt: skip
    assert_scores(
        scan.insertion(model, X, motif, **given), model, X, [[inserted(x, p, motif) for p in range(length)] for x in X], **kwargs
    )


class Reciprocal(torch.nn.Module):
    """Infinite for sequences of which the convolution finds nothing."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 1, 3, bias=False)
        self.conv.weight.data = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-4, -4, -4]])[None]

    def forward(self, X):
        return 1 / torch.relu(self.conv(X) - 2.5).sum(2)


def test_infinite_scores_are_those_of_their_mutants():
    """Also where a reference is infinite, and all mutants around it would be."""
    X = one_hot("TTTTTT" + "TTACTGTT" * 4 + "ACGTT" + "TTACTGTT" * 4 + "TT")[None]
    model, motif = Reciprocal().eval(), one_hot("TTT")  # without the only ACG, at 38, all is infinite
    for side, func in (("left", None), ("right", None), ("left", torch.neg), ("right", torch.neg)):
        mutants = [deleted(X[0], p, 2, side) for p in range(X.shape[2] - 1)]
        truth = scores_of(model, X, [mutants], func=func)
        assert torch.isinf(truth).any() and torch.isfinite(truth).any()
        assert torch.allclose(scan.deletion(model, X, 2, side=side, func=func)[2].double(), truth, equal_nan=True)
        truth = scores_of(model, X, [[inserted(X[0], p, motif, side) for p in range(X.shape[2])]], func=func)
        assert torch.allclose(scan.insertion(model, X, "TTT", side, func=func).double(), truth, equal_nan=True)


# ---- where they meet the rest


SCANS = {
    "blanking": lambda *a, **k: scan.blanking(*a, 4, step=3, **k),
    "tiling": lambda *a, **k: scan.tiling(*a, "GATA", step=3, **k),
    "shuffling": lambda *a, **k: scan.shuffling(*a, 6, step=5, samples=2, random_state=0, **k),
    "deletion": lambda *a, **k: scan.deletion(*a, 2, **k)[2],
    "insertion": lambda *a, **k: scan.insertion(*a, "GATA", **k),
}


@pytest.fixture(params=SCANS)
def scanned(request):
    return SCANS[request.param]


@pytest.mark.parametrize("name", ["nested", "dict", "namedtuple", "scalar"])
def test_containers_and_arrays(scanned, name):
    model, X = randomized(Container(CONTAINERS[name]), seed=3).eval(), sequences(2, L)
    found = scanned(model, X)
    wanted = yuzu.yuzu_ism(model, X, output="delta", start=0, end=1)
    assert pytree.tree_structure(found) == pytree.tree_structure(wanted)
    for leaf, like in zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True):
        assert leaf.dtype == torch.float32 and leaf.device.type == "cpu" and leaf.shape[0] == 2
        assert leaf.shape[leaf.dim() - (like.dim() - 3) :] == like.shape[3:]
    arrays = scanned(model, X.numpy().astype(np.int8))
    assert all(isinstance(v, np.ndarray) for v in pytree.tree_leaves(arrays))
    assert_same(pytree.tree_map(torch.from_numpy, arrays), found)


def test_args_func_target_and_precomputation(scanned):
    model, X = with_args(), sequences(2, L)
    args = (torch.tensor([[0.5], [2.0]]), sequences(2, L, 1 + 1, seed=2)[:, :1])
    func = {"func": lambda y: y[1].sum(1), "target": [0, 3]}
    precomputation = yuzu.precompute(model, L, args=args, device="cpu")
    found = scanned(model, X, precomputation=precomputation, args=args, **func)
    first = scanned(model, X[:1], args=tuple(a[:1] for a in args), **func)
    others = scanned(model, X, args=(args[0] * torch.tensor([[3.0], [1.0]]), args[1]), **func)
    whole = scanned(model, X, args=args, func=lambda y: y[1].sum(1))
    assert errors(found[:1], first)[0] < 1e-5 and errors(found, whole[..., [0, 3]])[0] < 1e-5
    assert errors(found[1], others[1])[0] < 1e-5 < errors(found[0], others[0])[0]
    assert errors(scanned(model, X, args=args, batch_size=1, **func), found)[0] < 1e-5
    with pytest.raises(yuzu.PrecomputationError):
        scanned(model, X[:, :, 1:], precomputation=precomputation, args=tuple(a[..., : L - 1] for a in args), **func)


def test_devices(scanned, device):
    model, X = randomized(Profile(), seed=1).eval(), columns(sequences(3, 60))
    found, wanted = scanned(model, X, device=device), scanned(model, X, device="cpu")
    for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True):
        assert a.device.type == "cpu" and errors(a, b)[0] < 1e-5


def test_the_model_and_the_sequences_are_left_alone(scanned):
    model, X = randomized(Net(L)).train(), sequences(2, L)
    before, weights = X.clone(), copy.deepcopy(model.state_dict())
    scanned(model, X)
    assert torch.equal(X, before) and model.training
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), weights.values(), strict=True))


def test_models_that_run_naively(scanned):
    class Mixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = randomized(Net(L))

        def forward(self, X):
            return self.inner(X) * (2.0 if float(X.sum()) < 1e9 else 1.0)

    model, X = Mixed().eval(), sequences(2, L)
    with pytest.warns(yuzu.YuzuWarning):
        found = scanned(model, X)
    assert errors(found, 2 * scanned(model.inner, X))[0] < 1e-5


def test_a_bar_is_shown(scanned, capsys):
    model, X = randomized(Net(L)).eval(), sequences(2, L)
    scanned(model, X)
    assert not capsys.readouterr().err
    scanned(model, X, verbose=True)
    assert "100%" in capsys.readouterr().err


BAD = {
    "width above the sequence": (lambda m, X: scan.blanking(m, X, 31), r"width must be at most 30"),
    "width above the span": (lambda m, X: scan.shuffling(m, X, 5, start=3, end=7), r"width must be at most 4, .*start=3 and end=7"),
    "no width": (lambda m, X: scan.deletion(m, X, []), r"widths must hold at least one width"),
    "width 0": (lambda m, X: scan.deletion(m, X, [2, 0]), r"widths must be an integer of at least 1, got 0"),
    "width as text": (lambda m, X: scan.blanking(m, X, "5"), r"width must be an integer"),
    "step 0": (lambda m, X: scan.blanking(m, X, 3, step=0), r"step must be an integer of at least 1"),
    "samples 0": (lambda m, X: scan.shuffling(m, X, 3, samples=0), r"samples must be an integer of at least 1"),
    "seed": (lambda m, X: scan.shuffling(m, X, 3, random_state="a"), r"random_state must be an integer"),
    "side": (lambda m, X: scan.insertion(m, X, "A", side="middle"), r"side must be one of 'left', 'right', got 'middle'"),
    "letters": (lambda m, X: scan.insertion(m, X, "AZ"), r"motif must be over ACGT.* 'Z' at position 1"),
    "empty motif": (lambda m, X: scan.tiling(m, X, ""), r"motif must not be an empty string"),
    "motif of another alphabet": (lambda m, X: scan.tiling(m, X, np.zeros((5, 3))), r"motif must have shape \(4,\)"),
    "motif too long": (lambda m, X: scan.tiling(m, X, "A" * 31), r"motif must have at most 30 positions"),
    "few flanks": (lambda m, X: scan.deletion(m, X, [1, 4], np.zeros((2, 4, 3))), r"flanks must have shape \(2, 4, F\), F at least 4"),
    "flanks of others": (lambda m, X: scan.deletion(m, X, 1, np.zeros((1, 4, 3))), r"flanks must have shape \(2, 4, F\)"),
    "flanks with NaN": (lambda m, X: scan.deletion(m, X, 1, np.full((2, 4, 3), np.nan)), r"flanks must be finite"),
    "no position": (lambda m, X: scan.deletion(m, X, 1, start=5, end=5), r"start=5 and end=5 select no position"),
    "target": (lambda m, X: scan.insertion(m, X, "A", target=3), r"target=3 does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call(randomized(Net(LENGTH)).eval(), sequences(2, LENGTH))
