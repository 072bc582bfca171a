"""Sequences with several states of the model's other inputs: a precomputation for each, and the results as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from yuzu._engine.capture.model_copy import model_dtype
from yuzu._engine.checks import check_model
from yuzu._engine.request import Arguments, Request
from yuzu._engine.store.obtain import Part, inputs_of, obtain_each
from yuzu._engine.store.scoring import Timings, run_planned
from yuzu.errors import YuzuError


def ism_of_states(
    model: torch.nn.Module,
    precomputation: Any,
    arguments: Arguments,
    timings: Timings | None = None,
    stacked: bool = True,
) -> Any:
    """`yuzu_ism` with each of several ``args`` for the same sequences, ``(n, states, ...)``; not ``stacked``, for one
    of them, ``(n, ...)``. What does not depend on them is computed once.
    """
    check_model(model)
    request = arguments.checked(model_dtype(model), inputs_of(precomputation))
    return answer(model, precomputation, request, timings, stacked)


def answer(
    model: torch.nn.Module, precomputation: Any, request: Request, timings: Timings | None = None, stacked: bool = True
) -> Any:
    """The results of a request, by precomputations for each of its sequences and states."""
    parts = obtain_each(model, precomputation, request)
    if len(parts) == 1:
        return run_planned(parts[0].used, request, timings, stacked)
    results = []
    for part in parts:
        states = [tuple(a[part.rows] for a in request.states[state]) for state in part.states]
        mutations = request.mutations.of_rows(part.rows)
        some = replace(request, X=request.X[part.rows], states=states, mutations=mutations)
        results.append(run_planned(part.used, some, timings, stacked))
    return put_together(parts, results, len(request.X), len(request.states) if stacked else None)


def put_together(parts: Sequence[Part], results: Sequence[Any], n: int, states: int | None) -> Any:
    """The results of some sequences with some states each, as if they had been computed together; ``(n, states, ...)``,
    or ``(n, ...)`` where ``states`` is None.

    Raises
    ------
    YuzuError
        If the model returns other outputs for some of them.
    """
    flat = [pytree.tree_flatten(result) for result in results]
    leaves, spec = list(flat[0][0]), flat[0][1]
    shape = (n,) if states is None else (n, states)

    def kinds(leaves: list[Any]) -> list[Any]:
        return [v.shape[len(shape) :] if isinstance(v, torch.Tensor | np.ndarray) else v for v in leaves]

    if any(other != spec or kinds(some) != kinds(leaves) for some, other in flat[1:]):
        raise YuzuError("args must be such that the model returns outputs of the same shapes for all rows, it does not")
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, torch.Tensor | np.ndarray):
            continue
        make = torch.empty if isinstance(leaf, torch.Tensor) else np.empty
        whole = leaves[i] = make((*shape, *leaf.shape[len(shape) :]), dtype=leaf.dtype)
        for part, (some, _) in zip(parts, flat, strict=True):
            whole[np.ix_(part.rows, part.states) if states is not None else part.rows] = some[i]
    return pytree.tree_unflatten(leaves, spec)
