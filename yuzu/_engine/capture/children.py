"""Tells whether a model's ``forward`` runs its children in order, and does nothing else.

A recording of ``forward`` must show exactly the operations of the children in order, and no look at the values of a
tensor. That both return the same for one input would prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from yuzu._engine.capture.errors import CaptureError

READS_VALUES = ("aten._local_scalar_dense.default", "aten.equal.default", "aten.is_nonzero.default")


def runs_children_in_order(model: torch.nn.Module, X: torch.Tensor) -> bool:
    """Return whether ``forward`` runs the operations of the model's children in order, and does nothing else."""
    children = list(model.children())
    if not children:
        return False

    def in_order(value: Any) -> Any:
        for child in children:
            value = child(value)
        return value

    def recorded(function: Callable[[Any], Any]) -> list[str]:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _Recorder() as recorder:
            function(_Opaque(X.clone()))
        return recorder.calls

    return recorded(model) == recorded(in_order)


class _Recorder(TorchDispatchMode):
    """Records every operation, with its constants and the shapes that it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        constants = [a for a in pytree.tree_leaves((args, kwargs or {})) if not isinstance(a, torch.Tensor)]
        shapes = [tuple(t.shape) for t in pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
        self.calls.append(f"{func} {constants} {shapes}")
        return result


class _Opaque(torch.Tensor):
    """A tensor whose values cannot be read from Python: any attempt raises."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=inner.device, strides=inner.stride()
        )

    bare: torch.Tensor

    def __init__(self, inner: torch.Tensor) -> None:
        self.bare = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if str(func) in READS_VALUES:
            raise CaptureError("forward reads the values of a tensor")
        bare = pytree.tree_map(lambda t: t.bare if isinstance(t, _Opaque) else t, (args, kwargs or {}))
        result = func(*bare[0], **bare[1])
        return pytree.tree_map(lambda t: _Opaque(t) if isinstance(t, torch.Tensor) else t, result)


__all__ = ["runs_children_in_order"]
