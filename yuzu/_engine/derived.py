"""Tensors that are made from a model's weights and kept until a weight changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class Derived:
    """Tensors made from weights, such as a convolution's banded matrix, kept until one of these weights changes.

    The weights are compared with a copy, so every change is noticed. With ``fixed`` weights, which never change during
    its life, nothing is compared or copied.
    """

    def __init__(self, fixed: bool = False) -> None:
        self._fixed = fixed
        self._kept: dict[Any, tuple[list[torch.Tensor], Any]] = {}

    def get(self, key: Any, sources: Sequence[torch.Tensor], make: Callable[[], Any]) -> Any:
        """The result of ``make()``, or its earlier result for the same ``key`` if all ``sources`` still hold the same
        numbers.
        """
        kept = self._kept.get(key)
        if kept is not None:
            copies, value = kept
            if self._fixed or (
                len(copies) == len(sources)
                and all(
                    c.dtype == s.dtype and c.device == s.device and _same_bits(c, s)
                    for c, s in zip(copies, sources, strict=True)
                )
            ):
                return value
        value = torch.utils._pytree.tree_map(lambda made: _apart(made, sources), make())
        self._kept[key] = ([] if self._fixed else [s.detach().clone() for s in sources], value)
        return value

    @property
    def nbytes(self) -> int:
        """The bytes of everything kept, copies of the weights included."""
        tensors = torch.utils._pytree.tree_leaves([(copies, value) for copies, value in self._kept.values()])
        return sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))

    def forget(self, which: Callable[[Any], bool]) -> None:
        """Drop everything whose key satisfies ``which``."""
        for key in [k for k in self._kept if which(k)]:
            del self._kept[key]


def _apart(made: Any, sources: Sequence[torch.Tensor]) -> Any:
    """Clone a tensor that lies in a weight's own memory. The model may replace the weight, and the owner of the old
    tensor may overwrite it.
    """
    if not isinstance(made, torch.Tensor):
        return made
    places = {s.untyped_storage().data_ptr() for s in sources}
    return made.clone() if made.untyped_storage().data_ptr() in places else made


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Tell whether two tensors of one dtype are equal; they are compared eight bytes at a time, which takes less than
    half as long.
    """
    if a.shape != b.shape:
        return False
    plain = a.is_contiguous() and b.is_contiguous() and not (a.is_complex() or a.is_neg() or b.is_neg())
    if plain and all(t.nbytes % 8 == t.storage_offset() * t.itemsize % 8 == 0 for t in (a, b)):
        a, b = (t.detach().flatten().view(torch.int64) for t in (a, b))
    return torch.equal(a, b)
