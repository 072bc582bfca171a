"""Backward passes of many outputs of a model together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from yuzu._engine.run.scores import check_real
from yuzu.errors import YuzuError, shown

TRACKS_AT_ONCE = 32


@contextlib.contextmanager
def backward_in_evaluation(recurrent: bool) -> Iterator[None]:
    """Turn cuDNN off for recurrent layers, whose backward pass it has in training mode only."""
    if not recurrent or not torch.backends.cudnn.is_available():
        yield
        return
    now = torch.backends.cudnn
    settings = {"benchmark": now.benchmark, "deterministic": now.deterministic, "allow_tf32": now.allow_tf32}
    with now.flags(enabled=False, **settings):
        yield


def flat_outputs(output: Any, rows: int) -> torch.Tensor:
    """All floating point outputs of each sequence side by side, ``(n, T)``."""
    found = [v for v in pytree.tree_leaves(output) if isinstance(v, torch.Tensor)]
    check_real(found)
    tensors = [v for v in found if v.is_floating_point()]
    if not tensors or any(v.dim() == 0 or len(v) != rows for v in tensors):
        raise YuzuError(
            f"the model must return tensors with one row for each of {rows} sequences, got "
            f"{[tuple(v.shape) for v in tensors]}"
        )
    return torch.cat([v.reshape(rows, -1) for v in tensors], dim=1)


def check_tracks(tracks: Any, count: int) -> list[int]:
    """Check the numbers of some of ``count`` outputs; None means all."""
    if tracks is None:
        return list(range(count))
    listed = isinstance(tracks, Sequence) or (isinstance(tracks, np.ndarray | torch.Tensor) and tracks.ndim > 0)
    given = tracks if listed else [tracks]
    chosen = []
    for track in given:
        array = isinstance(track, torch.Tensor | np.ndarray | np.generic)
        number = track.item() if array and track.ndim == 0 else track
        if isinstance(number, bool) or not isinstance(number, int) or not -count <= number < count:
            raise YuzuError(f"tracks must be integers from 0 to {count - 1}, the model's outputs, got {shown(tracks)}")
        chosen.append(number % count)
    if not chosen:
        raise YuzuError("tracks must name at least one output, got none")
    return chosen


def gradients(values: torch.Tensor, inputs: Sequence[torch.Tensor]) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """Yield gradients of ``values`` ``(n, T)``, whose rows do not depend on each other, for some tracks at a time.

    Each item is the number of the first track and, for each of ``inputs`` ``(n, ...)``, a tensor ``(t, n, ...)``.
    """
    totals = values.sum(0)
    if not totals.requires_grad:
        raise YuzuError("the chosen outputs of the model do not depend on the sequence")
    eye = torch.eye(len(totals), dtype=totals.dtype, device=totals.device)
    for first in range(0, len(totals), TRACKS_AT_ONCE):
        directions = eye[first : first + TRACKS_AT_ONCE]
        found = _backward(totals, inputs, directions)
        yield (
            first,
            [
                x.new_zeros(len(directions), *x.shape) if g is None else g.detach()
                for g, x in zip(found, inputs, strict=True)
            ],
        )


def _backward(
    totals: torch.Tensor, inputs: Sequence[torch.Tensor], directions: torch.Tensor
) -> list[torch.Tensor | None]:
    settings = {"retain_graph": True, "allow_unused": True}
    try:
        return list(torch.autograd.grad(totals, inputs, directions, is_grads_batched=True, **settings))
    except RuntimeError:  # an operation cannot be batched: one direction at a time, which raises any other error
        each = [torch.autograd.grad(totals, inputs, d, **settings) for d in directions]
        return [None if rows[0] is None else torch.stack(rows) for rows in zip(*each, strict=True)]
