"""How a model is recognised as the one that a precomputation was made for, besides by the digest of its graph."""

from __future__ import annotations

import hashlib
import json

import torch

from yuzu._engine.capture.branches import Branches
from yuzu._engine.graph import Graph


def branch_words(model: torch.nn.Module, branches: Branches, graph: Graph | None) -> tuple[tuple[str, str], ...]:
    """How a model is recognised that decides by values: its structure, and a digest of the graph without names of
    weights; then how each decision is made, and its result. Nothing for other models.
    """
    if not branches:
        return ()
    computes = "" if graph is None else graph.fingerprint(names=False)
    return (structure_fingerprint(model), computes), *((how, result) for how, result in branches.words())


def structure_fingerprint(model: torch.nn.Module) -> str:
    """A digest of a model that cannot be captured: its modules and the shapes of its weights."""
    rows = [(n, type(m).__qualname__, m.extra_repr()) for n, m in model.named_modules()]
    shapes = [(n, tuple(t.shape)) for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, torch.Tensor)]
    return hashlib.sha256(json.dumps([rows, shapes]).encode()).hexdigest()
