"""Edits of each sequence's own: their sites, and the mutants that they make."""

import numpy as np
import torch

from tests.small_models import sequences
from yuzu._engine.edits import Group, Mutations, batches, letters_of, mutants_of


def test_each_sequence_has_its_own_positions():
    X = sequences(3, 20)
    positions = np.array([[4, 2, -1], [-1, -1, -1], [19, 0, 7]])
    mutations = Mutations(4, 20, positions)
    (group,) = mutations.groups(letters_of(X))
    assert group.sequence.tolist() == [0, 0, 2, 2, 2]
    assert group.position.tolist() == [2, 4, 0, 7, 19] and group.slot.tolist() == [1, 0, 1, 2, 0]
    assert mutations.places.tolist() == [0, 2, 4, 7, 19] and mutations.result_shape == (4, 3)
    keep = np.ones(20, dtype=bool)
    keep[[2, 19]] = False
    (kept,) = mutations.groups(letters_of(X), keep)
    assert kept.position.tolist() == [4, 0, 7]
    (last,) = mutations.of_rows([2]).groups(letters_of(X[2:]))
    assert last.sequence.tolist() == [0, 0, 0] and last.position.tolist() == [0, 7, 19]


def test_edits_of_a_place_are_written_as_they_are():
    """Of soft columns, too, where reference and difference would add up to something else."""
    generator = torch.Generator().manual_seed(0)
    X, own = torch.rand(2, 4, 12, generator=generator), torch.rand(2, 3, 5, 2, 4, generator=generator)
    mutations = Mutations(4, 12, np.array([[0, 6, 3], [10, 5, -1]]), 2, own=own)
    assert mutations.result_shape == (5, 3) and mutations.edits_of_a_site == 5 and not mutations.substitutions
    (group,) = mutations.groups(letters_of(X))
    sites, number = mutations.sites(X, letters_of(X), group)
    assert number.tolist() == [list(range(5))] * 5
    mutants = mutants_of(X, sites).unflatten(0, (5, 5))
    for site, (n, position, slot) in enumerate(zip(group.sequence, group.position, group.slot, strict=True)):
        for edit in range(5):
            wanted = X[n].clone()
            wanted[:, position : position + 2] = own[n, slot, edit].T
            assert torch.equal(mutants[site, edit], wanted)
            difference = sites.difference[site, edit] - (wanted - X[n])[:, position : position + 2].T
            assert difference.abs().max() < 1e-6


def test_chunks_hold_whole_sequences_of_few_sites_each():
    counts = [3, 5, 1, 4, 4, 2]
    sequence = np.repeat(np.arange(6), counts)
    position = np.concatenate([np.arange(count) for count in counts])
    parts = list(batches(Group(sequence, position, position, 3, True), 10))
    assert [part.sequence.tolist() for part in parts] == [[0] * 3 + [1] * 5 + [2], [3] * 4 + [4] * 4 + [5] * 2]
    assert [len(part.sequence) for part in batches(Group(sequence, position, position, 3, True), 4)] == [3, 3, 2, 1, 4, 4, 2]
