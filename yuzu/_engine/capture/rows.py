"""Runs a model on one sequence, and tells whether its output depends on the other sequences of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from yuzu._engine.capture.model_copy import on_copies
from yuzu._engine.capture.outputs import map_tensors, tensors_in


def on_rows(model: Callable[..., Any], X: torch.Tensor, *args: torch.Tensor) -> Any:
    """`on_copies`, with an axis of one row for one sequence. Some models drop that axis, by a ``squeeze()`` without
    axes: these run on the sequence twice, and the first row is returned.
    """
    output = on_copies(model, X, *args)
    spec, tensors = pytree.tree_structure(output), tensors_in(output)
    # a result of shape (1,) may be a row, or have lost its axis
    if len(X) != 1 or all(t.dim() > 1 and t.shape[0] == 1 for t in tensors):
        return output
    try:
        doubled = on_copies(model, *(t.expand(2, *t.shape[1:]) for t in (X, *args)))
    except Exception:  # it works for a batch of one only, or there is too little memory
        return output
    both = tensors_in(doubled)
    if pytree.tree_structure(doubled) != spec or [t.dim() for t in tensors] == [b.dim() for b in both]:
        return output
    if not all(b.dim() and b.shape[0] == 2 for b in both):
        return output
    return map_tensors(lambda tensor: tensor[:1], doubled)


# How far the results for the same row may be apart by rounding, relative to the largest value. Batches of one size run
# through the same kernels, so no row's digits depend on the others. Between batches of one and two, digits may differ:
# more than a little is looked into, and a difference of NO_ROUNDING is certainly none of rounding.
SAME_SIZE, ANOTHER_SIZE, NO_ROUNDING = 4.0, 64.0, 0.1  # the first two in units of the dtype's precision
REPEATS = 3  # of a batch that tells chance from dependence
MOST, LEAST = 1e-3, 1e-10  # bounds of the first two: more is looked into in half precision, less is not in double


def depends_on_batch(
    model: Callable[..., Any], X: torch.Tensor, args: Sequence[torch.Tensor], alone: Any = None
) -> bool:
    """Return whether a model's output for a sequence depends on the other sequences of its batch, as with batch norm by
    the batch's statistics, or one quantisation scale for all rows. A model that is random, or changes with each call,
    does not count.

    A sequence runs alone (``alone`` is the result, if that was run before), and beside another. Only if these differ,
    it runs once more in a batch of two, beside itself.
    """
    x, rest = X[:1], [a[:1] for a in args]
    other = x.flip(1)
    if torch.equal(other, x):
        other = torch.zeros_like(x)
        other[:, 0] = 1

    def run(*rows: torch.Tensor) -> list[torch.Tensor]:
        given = torch.cat(rows), *(a.expand(len(rows), *a.shape[1:]) for a in rest)
        found = tensors_in(on_rows(model, *given))
        if any(leaf.dim() == 0 or len(leaf) != len(rows) for leaf in found):
            raise ValueError("not a row for each sequence")
        return found

    try:
        beside = run(x, other)
        for i, row in enumerate((x, other)):
            known = i == 0 and alone is not None
            single = [leaf[0] for leaf in (tensors_in(alone) if known else run(row))]
            mine = [leaf[i] for leaf in beside]
            if not _differ(single, mine, ANOTHER_SIZE):
                continue
            twice = [leaf[i] for leaf in run(row, row)]
            if _differ(twice, mine, SAME_SIZE):
                # what a random model draws may be alike once, but hardly time after time
                again = [[leaf[i] for leaf in run(row, row)] for _ in range(REPEATS)]
                return max(_most_apart(twice, a) for a in again) < NO_ROUNDING * _most_apart(twice, mine)
            if _most_apart(single, twice) > NO_ROUNDING:
                return not _differ(single, [leaf[0] for leaf in run(row)], ANOTHER_SIZE)
    except Exception:  # it takes one row only, or returns none; the caller finds that out
        return False
    return False


def _differ(a: list[torch.Tensor], b: list[torch.Tensor], times: float) -> bool:
    """Return whether outputs for two rows differ by more than ``times`` the precision of their dtype."""
    return any(_apart(s, t) > max(min(times * _precision(s), MOST), LEAST) for s, t in zip(a, b, strict=True))


def _precision(tensor: torch.Tensor) -> float:
    return torch.finfo(tensor.dtype).eps if tensor.is_floating_point() or tensor.is_complex() else 0.0


def _most_apart(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return max((_apart(s, t) for s, t in zip(a, b, strict=True)), default=0.0)


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference of two tensors, relative to the largest value in them."""
    if a.shape != b.shape:
        raise ValueError("the shapes differ")
    dtype = torch.complex128 if a.is_complex() else torch.float64
    a, b = a.to("cpu", dtype), b.to("cpu", dtype)
    finite = torch.isfinite(a) & torch.isfinite(b)
    if not torch.equal(a[~finite].nan_to_num(nan=0.5), b[~finite].nan_to_num(nan=0.5)):
        return math.inf
    if not finite.any():
        return 0.0
    a, b = a[finite], b[finite]
    size = float(torch.maximum(a.abs().amax(), b.abs().amax()))
    return float((a - b).abs().amax()) / size if size else 0.0
