"""Runs ``torch.func.vmap`` over the members of an ensemble as a loop, while a model is captured.

Otherwise a trace has the operations that ``vmap`` makes of all members at once: convolutions with many groups, products
of stacked matrices, and the batch on the second axis. A member by itself is made of operations that handlers know.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

MOST_MEMBERS = 32  # with more, as in a vmap over positions, the graph would be too long


@contextlib.contextmanager
def vmap_unrolled() -> Iterator[None]:
    """Let this thread's ``vmap`` run over a few members one by one; that of other threads stays as it is."""
    apis: Any = importlib.import_module("torch._functorch.apis")
    original = getattr(apis, "vmap_impl", None)
    if original is None:  # a version of PyTorch that has it elsewhere: models are captured as that traces them
        yield
        return
    me, over = threading.get_ident(), False

    def one_by_one(func: Any, in_dims: Any, out_dims: Any, how: Any, size: Any, *args: Any, **kwargs: Any) -> Any:
        axes = None if over or threading.get_ident() != me else _members(in_dims, args)
        if axes is None:
            return original(func, in_dims, out_dims, how, size, *args, **kwargs)
        leaves, spec = pytree.tree_flatten(args)
        found = []
        for k in range(next(leaf.shape[axis] for leaf, axis in zip(leaves, axes, strict=True) if axis is not None)):
            member = [leaf if axis is None else leaf.select(axis, k) for leaf, axis in zip(leaves, axes, strict=True)]
            found.append(func(*pytree.tree_unflatten(member, spec), **kwargs))
        return _stacked(found, out_dims)

    apis.vmap_impl = one_by_one
    try:
        yield
    finally:
        over = True
        apis.vmap_impl = original


def _members(in_dims: Any, args: tuple[Any, ...]) -> list[int | None] | None:
    """The axis of members of each leaf of the arguments; None for many members, or arguments that ``vmap`` refuses."""
    leaves, spec = pytree.tree_flatten(args)
    axes = pytree._broadcast_to_and_flatten(in_dims, spec)
    if axes is None:
        return None
    sizes = set[Any]()
    for leaf, axis in zip(leaves, axes, strict=True):
        if axis is None:
            continue
        if not isinstance(leaf, torch.Tensor) or not isinstance(axis, int) or not -leaf.dim() <= axis < leaf.dim():
            return None
        sizes.add(leaf.shape[axis] if isinstance(leaf.shape[axis], int) else None)  # a symbol: one for each sequence
    few = len(sizes) == 1 and None not in sizes and 0 < next(iter(sizes)) <= MOST_MEMBERS
    return axes if few else None


def _stacked(found: list[Any], out_dims: Any) -> Any:
    leaves, spec = pytree.tree_flatten(found[0])
    if isinstance(found[0], torch.Tensor) and isinstance(out_dims, tuple) and len(out_dims) == 1:
        out_dims = out_dims[0]
    axes = pytree._broadcast_to_and_flatten(out_dims, spec)
    if axes is None or not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
        raise ValueError("out_dims of a vmap does not fit the output of its function")
    each = [pytree.tree_leaves(one) for one in found]
    whole = [
        leaf if axis is None else torch.stack([one[i] for one in each], axis)
        for i, (leaf, axis) in enumerate(zip(leaves, axes, strict=True))
    ]
    return pytree.tree_unflatten(whole, spec)
