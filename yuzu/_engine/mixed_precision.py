"""A model in mixed precision (autocast), with results in its own dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from yuzu.errors import YuzuError, shown


class MixedPrecision(torch.nn.Module):
    """Runs ``model`` under autocast to ``dtype``, and returns floating point results in the dtype of the sequences."""

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, X: torch.Tensor, *args: torch.Tensor) -> Any:
        with torch.autocast(X.device.type, self.dtype):
            output = self.model(X, *args)
        return in_dtype(output, X.dtype)


def in_dtype(output: Any, dtype: torch.dtype) -> Any:
    """Convert the floating point tensors in a container to ``dtype``."""

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return pytree.tree_map(cast, output)


def check_dtype(dtype: Any, own: torch.dtype) -> torch.dtype:
    """Check the dtype in which a model of dtype ``own`` is to run: its own, or one that autocast supports."""
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if found is None and dtype is None:
        return own
    if not isinstance(found, torch.dtype) or found not in (own, torch.float16, torch.bfloat16):
        raise YuzuError(f"dtype must be None, the model's own {own}, float16 or bfloat16, got {shown(dtype)}")
    return found
