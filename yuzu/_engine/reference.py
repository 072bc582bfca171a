"""The reference: every node's value for a batch of reference sequences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from yuzu._engine.layout import Layout


class WidenedValues:
    """Values in float64: those that were computed so, and others, which are converted on first use."""

    def __init__(self, values: list[Any], computed: dict[int, Any]) -> None:
        self._values, self.computed = values, computed
        self._widened: dict[int, Any] = {}

    def __getitem__(self, index: int) -> Any:
        if index in self.computed:
            return self.computed[index]
        if index not in self._widened:
            value = self._values[index]
            narrow = isinstance(value, torch.Tensor) and value.dtype == torch.float32
            self._widened[index] = value.double() if narrow else value
        return self._widened[index]


@dataclass
class Reference:
    """Every node's value for a batch of reference sequences."""

    values: list[Any] | WidenedValues
    batch: int
    wide: Reference | None = None  # the same in float64, for nodes that run in it
    fading: frozenset[int] = frozenset()  # the nodes whose terms are watched: see `find_fading`
    _position_first: dict[Any, torch.Tensor] = field(default_factory=dict)

    def position_first(self, index: int, layout: Layout, laid_out: bool = True) -> torch.Tensor:
        """The value of a node with positions on axis 1: ``(B, L, ...)``, contiguous; a view, perhaps, unless it is to
        be ``laid_out``.
        """
        key = (index, layout)
        if key not in self._position_first:
            if not laid_out:
                return layout.position_first(self.values[index])
            self._position_first[key] = layout.position_first(self.values[index]).contiguous()
        return self._position_first[key]

    def made(self, key: Any, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """A tensor that is made from the reference once for all chunks."""
        if key not in self._position_first:
            self._position_first[key] = make()
        return self._position_first[key]
