"""The place of the batch in a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Form:
    """The place of the batch in a value as the model has it.

    Attributes
    ----------
    axis: int
        The axis that holds it, ``outer * B * inner`` long.
    outer, inner: int
        The sizes beside the batch on that axis, before and after it.
    size: int or None
        None for the batch itself, -1 for a multiple of it.
    """

    axis: int = 0
    outer: int = 1
    inner: int = 1
    size: int | None = None

    @property
    def plain(self) -> bool:
        """Return whether the value is held with the batch in front by the model itself."""
        return (self.axis, self.outer, self.inner) == (0, 1, 1)

    @property
    def beside(self) -> list[int]:
        """The axes that the batch's own is taken apart into, without the batch."""
        return [n for n in (self.outer, self.inner) if n > 1]

    def place(self, axis: int) -> int:
        """The number of another axis of the model's once the batch is in front."""
        return axis + 1 if axis < self.axis else axis + len(self.beside)

    def shape(self, shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """The shape, with the batch in front, of a value that has ``shape`` in the model."""
        return (self.size, *shape[: self.axis], *self.beside, *shape[self.axis + 1 :])

    def without(self, full: Sequence[Any], one: Any = 1) -> list[Any]:
        """The entries of ``full``, one for each axis in the model, but the batch's; ``one`` for each axis beside it."""
        return [*full[: self.axis], *[one] * len(self.beside), *full[self.axis + 1 :]]


def batch_axes(shape: Sequence[int | None] | None) -> list[int]:
    """The axes of a shape whose size depends on the batch."""
    return [axis for axis, size in enumerate(shape or ()) if size is None or size < 0]


__all__ = ["Form", "batch_axes"]
