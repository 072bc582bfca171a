"""The context of a running rule: the plan, the reference, the chunk at hand and tensors made from weights."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from yuzu._engine.choice import Choice
from yuzu._engine.derived import Derived
from yuzu._engine.edits import Sites
from yuzu._engine.graph import Graph, Node
from yuzu._engine.layout import Change, Layout, expand, on_device, read_windows, widened
from yuzu._engine.reference import Reference
from yuzu._engine.window import Window


class PlanView(Protocol):
    """A plan as rules see it."""

    @property
    def graph(self) -> Graph: ...
    @property
    def layouts(self) -> Sequence[Layout]: ...
    @property
    def readers(self) -> Sequence[int]: ...
    @property
    def choices(self) -> Sequence[Choice]: ...
    @property
    def precision(self) -> str: ...
    @property
    def kernels(self) -> bool: ...
    @property
    def kernels_failed(self) -> threading.Event: ...
    @property
    def sensing(self) -> Any: ...
    @property
    def group_of(self) -> Mapping[int, Any]: ...

    def windows(self, position: np.ndarray, width: int, with_tables: bool = True) -> list[Window | None]:
        """The window of every windowed node for edits of ``width`` positions at ``position``."""

    def read_in_low_precision(self, index: int, as_one: Callable[[int], bool] = ...) -> bool:
        """Tell whether all readers of a node's change can read it in the dtype of low-precision products."""

    def with_ways(self, ways: Mapping[int, str]) -> Any:
        """The same plan with other ways for some nodes."""


class Context:
    """One use of a plan with a model's weights, as rules see it.

    Attributes
    ----------
    plan: PlanView
    precision: str
    device: torch.device
    reference: Reference
        The values of the sequences at hand.
    sites: Sites
        The sites of the chunk at hand.
    once: bool
        The run is for few sites of each reference, so nothing large is laid out for later chunks.
    keep_all: bool
        Every change is kept to the end, for comparison, and no factor is absorbed.
    """

    plan: PlanView
    precision: str
    device: torch.device
    reference: Reference
    sites: Sites
    once: bool = False
    keep_all: bool = False
    _derived: Derived
    _checked: dict[Any, Any]
    _owned: list[bool]
    precise: frozenset[int] = frozenset()  # the nodes whose reference is kept in float64

    def choice(self, index: int) -> Choice:
        """The plan's choice of how to run a node."""
        return self.plan.choices[index]

    def derived(self, key: Any, sources: Sequence[torch.Tensor], make: Callable[[], Any]) -> Any:
        """A value made from the weights ``sources``, which are checked for changes once for each run."""
        key = (key, self.precision)
        if key not in self._checked:
            self._checked[key] = self._derived.get((key, self.device), sources, make)
        return self._checked[key]

    def forget(self, key: Any) -> None:
        """Drop all derived values whose key has ``key`` as its first part."""

        def under(k: Any) -> bool:
            while isinstance(k, tuple) and k:
                if k == key:
                    return True
                k = k[0]
            return False

        for k in [k for k in self._checked if under(k)]:
            del self._checked[k]
        self._derived.forget(under)

    def value(self, index: int) -> torch.Tensor:
        """The reference value of a node, in the model's own layout."""
        return self.reference.values[index]

    def on_window(self, index: int, layout: Layout, window: Window, fill: float | None = None) -> torch.Tensor:
        """The reference value of a windowed node on a window: ``(S, 1, w, ...)``."""
        same = self.once and window.step == 0  # a part of each sequence is read without the rest
        value = self.reference.position_first(index, layout, laid_out=not same)
        return read_windows(value, window, self.sites.sequence, self.sites.only, fill).unsqueeze(1)

    def made_on_window(self, key: Any, make: Callable[[], torch.Tensor], window: Window) -> torch.Tensor:
        """A tensor ``(B, L, ...)`` made from the reference, on a window: ``(S, 1, w, ...)``."""
        value = self.reference.made(key, lambda: make().contiguous())
        return read_windows(value, window, self.sites.sequence, self.sites.only).unsqueeze(1)

    def of_sites(self, value: torch.Tensor) -> torch.Tensor:
        """Take the row of ``(B, ...)`` of each site: ``(S, 1, ...)``."""
        only = self.sites.only if value.shape[0] > 1 else 0
        if only is not None:
            return value[only : only + 1].unsqueeze(1)
        return value.index_select(0, self.sequence_index()).unsqueeze(1)

    def sequence_index(self) -> torch.Tensor:
        """The row of the batch of each site, on the device: ``(S,)``."""
        return on_device(self.sites.sequence, self.device)

    def whole(self, index: int, change: Change | None) -> torch.Tensor:
        """The change of a node on all of its positions: ``(S, A, ...)`` in the model's layout; zeros if it is None."""
        rows = self._remainder(index, change)
        whole = change is not None and change.window is None
        return self.with_series(index, rows) if self.follows_statistics(index) and not whole else rows

    def _remainder(self, index: int, change: Change | None) -> torch.Tensor:
        layout = self.plan.layouts[index]
        sites, edits = self.sites.difference.shape[:2]
        if change is None:
            shape = self.value(index).shape[1:]
            return self.sites.difference.new_zeros(sites, edits, *shape, dtype=self.value(index).dtype)
        if change.window is None:
            return change.tensor
        reference = self.reference.position_first(index, layout) if change.mutant else None
        rows = expand(change, layout.length, self.sites.sequence, reference)
        return layout.natural(rows.flatten(0, 1)).unflatten(0, (sites, edits))

    @abstractmethod
    def with_series(self, index: int, remainder: torch.Tensor) -> torch.Tensor:
        """The change ``(S, A, ...)`` of a windowed node after statistics: its remainder and its series on all
        positions. A linear rule gets the remainder, since its result has a series of its own.
        """

    @abstractmethod
    def first_order(self, index: int, window: Window) -> torch.Tensor | None:
        """The terms of first order of a windowed node's series on a window, ``(S, A, w, ...)``; None if it follows no
        statistics.
        """

    def mutants(self, index: int, change: Change | None, wide: bool = False) -> torch.Tensor:
        """The mutants' values of a node, with one row for each mutant, ``(S * A, ...)``, in the model's layout. If
        ``wide``, float32 values are returned in float64.
        """
        if change is not None and change.mutant and change.window is None:
            return change.tensor
        if change is not None and change.mutant:
            return self.whole(index, change).flatten(0, 1)
        edits, value = self.sites.difference.shape[:2], self.value(index)
        if change is not None and self.reference.wide is not None and index in self.precise:
            exact = self.of_sites(self.reference.wide.values[index]) + self.whole(index, change)
            return (exact if wide else exact.to(value.dtype)).flatten(0, 1)
        base = self.of_sites(value)
        base = widened(base) if wide else base
        if change is None and not self.follows_statistics(index):
            return base.expand(*edits, *base.shape[2:]).flatten(0, 1)
        return (self.whole(index, change) + base).flatten(0, 1)

    @abstractmethod
    def first_order_size(self, index: int) -> torch.Tensor:
        """The root mean square over all positions of a node's terms of first order, for each mutant ``(S, A)``."""

    @abstractmethod
    def direction(self, index: int) -> torch.Tensor:
        """The sum of a node's derivatives of first order, each divided by its size: ``(B, ...)``."""

    @abstractmethod
    def doubt(self, where: torch.Tensor) -> None:
        """Note the mutants with any element of a mask ``(S, A, ...)``: they run naively, since their change may be
        less exact. No device is waited for.
        """

    @abstractmethod
    def follows_statistics(self, index: int) -> bool:
        """Tell whether a node is windowed and follows statistics."""

    def disposable(self, index: int) -> bool:
        """Tell whether a handler may overwrite the change of a node: it has no other reader, and shares no memory."""
        return self._owned[index] and self.plan.readers[index] == 1 and not self.keep_all

    @abstractmethod
    def do_without_kernels(self, error: Exception) -> None:
        """Warn that Yuzu's own kernels do not run here, and go on without them."""

    @abstractmethod
    def of_plan(self, plan: Any) -> Any:
        """The same run, reference included, with another plan of the same graph."""

    @abstractmethod
    def walk(
        self, sites: Sites, nodes: Sequence[Node] | None = None, given: Sequence[Change | None] | None = None
    ) -> list[Change | None]:
        """Run some nodes (default: all) from the given changes."""
