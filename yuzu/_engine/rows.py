"""What a model returns for one sequence, where it drops the axis of a batch of one."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from yuzu._engine.model_copy import on_copies
from yuzu._engine.outputs import map_tensors, tensors_in


def on_rows(model: torch.nn.Module, X: torch.Tensor, *args: torch.Tensor) -> Any:
    """`on_copies`, with a first axis of one row for one sequence also where the model returns none, as after a
    ``squeeze()`` without axes: it runs on two such sequences then, of which only the first is returned.
    """
    output = on_copies(model, X, *args)
    spec, tensors = pytree.tree_structure(output), tensors_in(output)
    # (1,) may be a row, or what is left of one
    if len(X) != 1 or all(t.dim() > 1 and t.shape[0] == 1 for t in tensors):
        return output
    try:
        doubled = on_copies(model, *(t.expand(2, *t.shape[1:]) for t in (X, *args)))
    except Exception:  # it works for a batch of one only, or for less memory
        return output
    both = tensors_in(doubled)
    if pytree.tree_structure(doubled) != spec or [t.dim() for t in tensors] == [b.dim() for b in both]:
        return output
    if not all(b.dim() and b.shape[0] == 2 for b in both):
        return output
    return map_tensors(lambda tensor: tensor[:1], doubled)
