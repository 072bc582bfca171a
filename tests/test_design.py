"""`yuzu.design.greedy`: each step takes the best substitution of all."""

import copy

import numpy as np
import pytest
import torch

import yuzu
from tests.contract import L, with_args, with_columns
from tests.oracle import assert_same
from tests.small_models import Net, Profile, randomized, sequences
from yuzu import design

LENGTH = 20


def best_of_all(model, x, value, places):
    """The best substitution of a sequence ``(C, L)`` by brute force in float64: its value, position and letter."""
    model, best = copy.deepcopy(model).double(), []
    for p in places:
        for letter in range(len(x)):
            if x[letter, p] != 1:
                mutant = x.double().clone()
                mutant[:, p] = torch.eye(len(x))[letter]
                with torch.no_grad():
                    best.append((float(value(model(mutant[None]))), p, letter))
    return max(best)


OBJECTIVES = {
    "an output": (Net, 1, lambda y: y[:, 1]),
    "a callable": (Profile, lambda y: y[1], lambda y: y[1][:, 0]),
    "lower": (Net, lambda y: -y[:, 0], lambda y: -y[:, 0]),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_step_takes_the_best(name):
    make, objective, value = OBJECTIVES[name]
    model = make(LENGTH) if make is Net else make()
    model = randomized(model, seed=1).eval()
    X = with_columns(sequences(2, LENGTH), {(0, 6): [0, 0, 0, 0]})
    found = design.greedy(model, X, objective, steps=4)
    for i, x in enumerate(X.clone()):
        for step in range(4):
            reached, position, letter = best_of_all(model, x, value, range(LENGTH))
            before = -1 if not x[:, position].any() else int(x[:, position].argmax())
            assert (found.position[i, step], found.letter[i, step], found.before[i, step]) == (position, letter, before)
            assert float(found.objective[i, step + 1]) == pytest.approx(reached, rel=1e-5)
            x[:, position] = torch.eye(4)[letter]
        assert torch.equal(found.X[i], x)
    with torch.no_grad():
        assert torch.allclose(found.objective[:, 0], value(model(X)), atol=1e-5)
        assert torch.allclose(found.objective[:, -1], value(model(found.X)), atol=1e-5)


def test_devices(device):
    model, X = randomized(Net(LENGTH), seed=1).eval(), sequences(2, LENGTH)
    found, wanted = (design.greedy(model, X, 0, 3, device=d) for d in (device, "cpu"))
    assert torch.equal(found.X, wanted.X) and torch.allclose(found.objective, wanted.objective, atol=1e-5)


MASK = np.zeros(LENGTH, dtype=bool)
MASK[[*range(5), 12]] = True


@pytest.mark.parametrize("fixed", [MASK, torch.from_numpy(MASK), np.stack([MASK, MASK]), [*range(5), 12], np.array([*range(5), 12 - LENGTH])])
def test_fixed_positions_stay(fixed):
    model, X = randomized(Net(LENGTH), seed=1).eval(), sequences(2, LENGTH)
    found = design.greedy(model, X, 0, steps=8, fixed=fixed, start=2, end=17)
    stay = [*range(5), 12, 17, 18, 19]
    assert torch.equal(found.X[:, :, stay], X[:, :, stay]) and int((found.position >= 5).sum()) == 11
    assert_same(tuple(found), tuple(design.greedy(model, X, 0, steps=8, fixed=MASK, start=2, end=17)))


def test_each_sequence_has_its_own_fixed_positions():
    model, X = randomized(Net(LENGTH), seed=1).eval(), sequences(2, LENGTH)
    fixed = np.ones((2, LENGTH), dtype=bool)
    fixed[1, :4] = False
    found = design.greedy(model, X, 0, steps=2, fixed=fixed)
    assert torch.equal(found.X[0], X[0]) and (found.position[0] == -1).all() and (found.letter[0] == -1).all()
    assert (found.position[1] >= 0).all() and (found.position[1] < 4).all()


class Counts(torch.nn.Module):
    """The number of A."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, X):
        return X[:, :1].sum(2) * self.weight


def test_it_stops_where_nothing_is_better():
    X = sequences(2, 6)
    X[0, :, :5], X[1, :, :4] = torch.eye(4)[0][:, None], torch.eye(4)[0][:, None]
    X[0, :, 5], X[1, :, 4:] = torch.eye(4)[2], torch.eye(4)[1][:, None]
    found = design.greedy(Counts(), X, 0, steps=4)
    assert found.objective.tolist() == [[5, 6, 6, 6, 6], [4, 5, 6, 6, 6]]
    assert (found.position >= 0).sum(1).tolist() == [1, 2] and (found.position[:, 2:] == -1).all()
    assert found.before.tolist() == [[2, -1, -1, -1], [1, 1, -1, -1]]


def test_arrays_args_and_precomputation():
    model, X = with_args(), sequences(2, L)
    args = (torch.tensor([[0.5], [2.0]]),)
    asked = {"args": args, "start": 3, "end": 9}
    found = design.greedy(model, X.numpy().astype(np.int8), lambda y: y[0][:, 1], 3, **asked)
    assert all(isinstance(v, np.ndarray) for v in found) and found.X.dtype == np.int8
    precomputation = yuzu.precompute(model, L, args=args, device="cpu")
    again = design.greedy(model, X, lambda y: y[0][:, 1], 3, precomputation, batch_size=1, **asked)
    assert (again.position.numpy() == found.position).all()
    assert (found.X == again.X.numpy()).all()
    alone = design.greedy(model, X[1:], lambda y: y[0][:, 1], 3, args=(args[0][1:],), start=3, end=9)
    assert torch.equal(alone.position, again.position[1:])


def test_nothing_of_the_users_changes(capsys):
    model, X = randomized(Net(LENGTH)).train(), sequences(2, LENGTH)
    before, fixed = X.clone(), MASK.copy()
    design.greedy(model, X, 0, 2, fixed=fixed)
    assert torch.equal(X, before) and model.training and (fixed == MASK).all() and not capsys.readouterr().err
    design.greedy(model, X, 0, 2, verbose=True)
    assert "2/2" in capsys.readouterr().err


BAD = {
    "steps": ({"steps": 0}, r"steps must be an integer of at least 1"),
    "objective": ({"objective": "y"}, r"objective must be callable, or the number of an output, got 'y'"),
    "profile": ({"objective": lambda y: y}, r"objective must return a number for each sequence, .* got shape \(1, 3\)"),
    "no tensor": ({"objective": lambda y: 3}, r"objective must return .* got a int"),
    "no such output": ({"objective": 7}, r"target=7 does not exist|objective"),
    "mask": ({"fixed": np.zeros(5, dtype=bool)}, r"fixed as a mask must have shape \(20,\) or \(1, 20\), got \(5,\)"),
    "position": ({"fixed": [20]}, r"fixed must hold positions of a sequence of length 20"),
    "numbers": ({"fixed": [0.5]}, r"fixed must be a mask of booleans or a list of positions"),
    "all fixed": ({"fixed": np.ones(LENGTH, dtype=bool)}, r"fixed must leave some position"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    asked, message = BAD[name]
    given = {"objective": 0, "steps": 2, **asked}
    with pytest.raises(ValueError, match=message):
        design.greedy(randomized(Net(LENGTH)).eval(), sequences(1, LENGTH), **given)


def test_a_model_of_several_outputs_needs_a_callable():
    with pytest.raises(ValueError, match="objective=0 needs a model that returns one tensor|select one with func"):
        design.greedy(randomized(Profile()).eval(), sequences(1, LENGTH), 0, 2)
