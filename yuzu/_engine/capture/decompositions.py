"""Operations that are taken apart while a model is captured, into those that handlers know.

Most are composite in PyTorch itself: run eagerly they are exactly these smaller operations, so no value changes. The
rest are written here. Functionalising makes ``x[:, :, 2:5] = y`` a ``slice_scatter``, for example, which is the same as
a concatenation, and windows pass through that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from yuzu._engine import ops
from yuzu._engine.graph import END

aten = torch.ops.aten


def decompositions() -> dict[Any, Callable[..., Any]]:
    """A function in the place of each operation that is taken apart, which computes the same by smaller ones.

    An operation that the user has a handler for is not among them: it is left whole.
    """
    known = torch.export.default_decompositions()
    table: dict[Any, Callable[..., Any]] = {}
    for name in sorted(ops.with_fact("composite")):
        packet = getattr(aten, name.removeprefix("aten."))
        overloads = (getattr(packet, overload) for overload in packet.overloads())
        table.update({overload: known[overload] for overload in overloads if overload in known})
    table |= OWN
    return {target: function for target, function in table.items() if not ops.has_users_handler(ops.name_of(target))}


def _var_mean(x: torch.Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    return aten.var.correction(x, dim, correction=correction, keepdim=keepdim), _mean(x, dim, keepdim)


def _std_mean(x: torch.Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    return aten.std.correction(x, dim, correction=correction, keepdim=keepdim), _mean(x, dim, keepdim)


def _mean(x: torch.Tensor, dim: Any, keepdim: bool) -> torch.Tensor:
    return aten.mean.dim(x, dim or list(range(x.dim())), keepdim)


def _slice_scatter(
    x: torch.Tensor, part: torch.Tensor, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Any:
    if start in (0, None) and end in (None, END) and step == 1:
        return part.expand(x.shape).clone()
    size = x.shape[dim]
    start, end = 0 if start is None else start, size if end is None else end
    if step != 1 or not (isinstance(size, int) and isinstance(start, int) and isinstance(end, int)):
        return NotImplemented
    start, end, _ = slice(start, end).indices(size)
    return _put_between(x, part, dim, start, max(end, start))


def _select_scatter(x: torch.Tensor, part: torch.Tensor, dim: int, index: Any) -> Any:
    size = x.shape[dim]
    if not (isinstance(size, int) and isinstance(index, int)):
        return NotImplemented
    index %= size
    return _put_between(x, part.unsqueeze(dim), dim, index, index + 1)


def _put_between(x: torch.Tensor, part: torch.Tensor, dim: int, start: int, stop: int) -> torch.Tensor:
    size = x.shape[dim]
    part = part.to(x.dtype)
    if stop - start == size:
        return part.expand(x.shape).clone()
    parts = [x.narrow(dim, 0, start), part, x.narrow(dim, stop, size - stop)]
    return torch.cat([p for p in parts if p.shape[dim] != 0], dim)


def _index_put(x: torch.Tensor, indices: Any, values: torch.Tensor, accumulate: bool = False) -> Any:
    """``x[mask] = number``"""
    (mask, *others) = indices
    if others or mask is None or mask.dtype != torch.bool or mask.shape != x.shape or values.dim() or accumulate:
        return NotImplemented
    return torch.where(mask, values.to(x.dtype), x)


def _inner(x: torch.Tensor, y: torch.Tensor) -> Any:
    """The last axis of both: a linear layer."""
    if x.dim() < 2 or y.dim() > 2:
        return NotImplemented
    return aten.matmul(x, y) if y.dim() == 1 else aten.linear(x, y)


def _tensordot(x: torch.Tensor, y: torch.Tensor, dims_self: list[int], dims_other: list[int]) -> Any:
    """A product of matrices. The rows of the first are the axes that are left, that of the batch among them."""
    mine, theirs = [a % x.dim() for a in dims_self], [a % y.dim() for a in dims_other]
    free = [a for a in range(x.dim()) if a not in mine]
    free_of_y = [a for a in range(y.dim()) if a not in theirs]
    if not free or 0 in mine:
        return NotImplemented
    rows = x.permute([*free, *mine]).flatten(len(free)) if mine != [] else x.unsqueeze(-1)
    matrix = y.permute([*theirs, *free_of_y]).reshape(rows.shape[-1], -1)
    product = aten.matmul(rows, matrix)
    return product.reshape([*product.shape[:-1], *(y.shape[a] for a in free_of_y)])


OWN: dict[Any, Callable[..., Any]] = {
    aten.var_mean.correction: _var_mean,
    aten.std_mean.correction: _std_mean,
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.index_put.default: _index_put,
    aten.inner.default: _inner,
    aten.tensordot.default: _tensordot,
}

__all__ = ["decompositions"]
