"""Edits that are named one by one: as sites of a run, and as whole sequences."""

import numpy as np
import pytest
import torch

from yuzu._engine.edits import mutants_of
from yuzu._engine.named_edits import NamedEdits


def drawn(width, count=40, rows=3, length=12, seed=0):
    """Edits of sequences with N columns, several at some places, in any order."""
    rng = np.random.default_rng(seed)
    letters = rng.integers(5, size=(rows, length))
    X = torch.eye(5, 4)[torch.from_numpy(letters)].transpose(1, 2).contiguous()
    written = rng.integers(5 if width > 1 else 4, size=(count, width))
    edits = NamedEdits(rng.integers(rows, size=count), rng.integers(length - width + 1, size=count), written, np.arange(count) + 100)
    return X, edits


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_sites_make_the_same_mutants(width, at_once):
    X, edits = drawn(width)
    expected = X[edits.row].clone()
    for mutant, position, letters in zip(expected, edits.position, edits.letters, strict=True):
        mutant[:, position : position + width] = torch.eye(5, 4)[torch.from_numpy(letters)].T
    assert torch.equal(edits.mutants(X), expected)
    seen = []
    for sites, number in edits.chunks(X, at_once):
        assert number.size <= max(at_once, number.shape[1]) and number.shape == tuple(sites.difference.shape[:2])
        assert (np.diff(sites.sequence) >= 0).all() and (sites.codes is not None) == (width == 1)
        assert torch.equal(mutants_of(X, sites), expected[number.reshape(-1) - 100])
        seen += number.reshape(-1).tolist()
    assert sorted(seen) == edits.number.tolist()


def test_alternatives_at_one_place_are_one_site():
    X, _ = drawn(1)
    edits = NamedEdits(np.array([0, 1, 0, 0]), np.array([4, 4, 4, 2]), np.array([[0], [1], [2], [3]]), np.arange(4))
    found = {tuple(number.reshape(-1)) for _, number in edits.chunks(X, 100)}
    assert found == {(3, 1), (0, 2)}


def test_the_edits_of_some_rows():
    _, edits = drawn(2)
    some = edits.of_rows(np.array([0, 2]))
    assert set(some.row) == {0, 1} and len(some) == (edits.row != 1).sum()
    assert (np.array([0, 2])[some.row] == edits.row[some.number - 100]).all()
    assert not edits.at_one_position() and edits.part(edits.position == 3).at_one_position()
