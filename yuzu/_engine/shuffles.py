"""Shuffles of many windows of letters at once, which keep the counts of letters, or of neighbouring pairs of them.

A shuffle that keeps all pairs is another way along all edges of a graph: letters are its vertices, and each pair of
neighbours is an edge. Choose the last edge out of each letter at random until these lead from every letter to the last
one; shuffle the other edges; then walk. Every such order is equally likely (Altschul and Erickson, Molecular Biology
and Evolution 1985).
"""

from __future__ import annotations

import numpy as np


def shuffled_orders(count: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Random orders ``(count, width)`` of the places of windows."""
    return rng.random((count, width)).argsort(axis=1)


def shuffle_pairs(letters: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shuffle each row of ``letters`` ``(count, width)``, integers from 0 on, so that it keeps its pairs of neighbours.
    The first and the last letter stay.
    """
    count, width = letters.shape
    if width < 3:
        return letters.copy()
    kinds, edges = int(letters.max()) + 1, width - 1
    source = letters[:, :-1]
    last = _last_edges(letters, kinds, rng)
    # edges of each letter in random order, its last edge behind the others
    key = source + 0.5 * rng.random((count, edges))
    row = np.arange(count)
    for kind in range(kinds):
        there = last[:, kind] >= 0
        key[row[there], last[there, kind]] = kind + 0.75
    order = key.argsort(axis=1)
    targets = np.take_along_axis(letters[:, 1:], order, axis=1)
    counts = (source[:, :, None] == np.arange(kinds)).sum(1)
    place = counts.cumsum(axis=1) - counts  # of the next edge out of each letter
    found = np.empty_like(letters)
    at = letters[:, 0]
    for step in range(width):
        found[:, step] = at
        if step < edges:
            edge = place[row, at]
            place[row, at] += 1
            at = targets[row, edge]
    return found


def _last_edges(letters: np.ndarray, kinds: int, rng: np.random.Generator) -> np.ndarray:
    """An edge out of each letter but a row's last, ``(count, kinds)``, or -1. Together they lead to the last letter."""
    count, width = letters.shape
    found = np.full((count, kinds), -1)
    todo = np.arange(count)
    while len(todo):
        some = letters[todo]
        row = np.arange(len(todo))
        end = some[:, -1]
        chance = rng.random((len(todo), width - 1))
        edges = np.full((len(todo), kinds), -1)
        next_one = np.tile(np.arange(kinds), (len(todo), 1))
        present = np.zeros((len(todo), kinds), dtype=bool)
        for kind in range(kinds):
            out = some[:, :-1] == kind
            present[:, kind] = out.any(1) & (end != kind)
            edge = np.where(out, chance, -1.0).argmax(1)
            edges[:, kind] = np.where(present[:, kind], edge, -1)
            next_one[:, kind] = np.where(present[:, kind], some[row, edge + 1], kind)
        reached = next_one
        for _ in range(kinds):
            reached = np.take_along_axis(next_one, reached, axis=1)
        good = (~present | (reached == end[:, None])).all(1)
        found[todo[good]] = edges[good]
        todo = todo[~good]
    return found


__all__ = ["shuffle_pairs", "shuffled_orders"]
