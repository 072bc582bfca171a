"""Rules that run an operation on values: the operation on ``R + D``, minus the reference's result.

On windows this is right for every pointwise operation, and for softmax, normalisation and the like along axes other
than the positions. On whole values it is right for every operation that keeps rows apart.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from yuzu._engine.choice import Choice
from yuzu._engine.context import Context
from yuzu._engine.graph import Node, Ref, map_refs
from yuzu._engine.handlers.contract import Rule, View
from yuzu._engine.handlers.facts import Numerics, RuleMemory, Sizes
from yuzu._engine.layout import ROWS, Change, Layout, rewindow, widened
from yuzu._engine.window import Window

# size of differences relative to the values; below it a subtraction in float32 errs by more than 5e-6 of them
SMALL = 0.02


class OfValues(Rule):
    """The operation itself on the mutants' values, minus the reference's result.

    If differences are small beside the values, rounding the values costs them most of their digits. PyTorch's own
    operations that are cheap beside products (``widens``) then run in float64 on float32 values. A CPU decides that for
    each chunk. A GPU always does so, because deciding would mean waiting for it. Neither does where products are less
    precise anyway. A chain that is computed anew always runs in float64: values inside it may be smaller than at its
    ends.

    Attributes
    ----------
    chain: tuple of Node
        The operations before it that are computed anew, in their order.
    """

    family = "elementwise"
    carries_values = True

    def __init__(self, view: View, layout: Layout, widens: bool = True) -> None:
        super().__init__(view, layout)
        self.chain: tuple[Node, ...] = ()
        arguments, _ = pytree.tree_flatten((self.node.args, self.node.kwargs))
        narrowed = any(isinstance(argument, torch.dtype) for argument in arguments)
        self.widens = widens and self.node.op.startswith("aten.") and not narrowed
        self.numerics = Numerics(on_values=True, may_widen=self.widens, cancels=True)

    def over(self, chain: list[Node], nodes: list[Node], layouts: list[Layout]) -> Rule | None:
        if type(self) not in (Local, OnRows):  # a user's rule is run as it is
            return None
        other = copy.copy(self)
        object.__setattr__(other, "chain", tuple(chain))
        sources = [i for i in other.reads() if nodes[i].mutated]
        object.__setattr__(other, "sources", sources)
        object.__setattr__(other, "source_layouts", [layouts[i] for i in sources])
        return other

    def memory(self, choice: Choice, sizes: Sizes) -> RuleMemory:
        if sizes.itemsize != 4 or not self.may_widen(sizes.precision, torch.float32, "cpu"):
            return RuleMemory()
        # beside the first source, the others that a chain reads
        more = len(self.sources) - 1 if self.chain else 0
        return RuleMemory(tables=2 * sizes.result, blocks=7 + 2 * more)

    def reads(self) -> list[int]:
        inside = {node.index for node in self.chain}
        read = dict.fromkeys(i for node in (self.node, *reversed(self.chain)) for i in node.inputs)
        return [i for i in read if i not in inside]

    def detail(self) -> str:
        return f"of {', '.join(node.op.removeprefix('aten.') for node in self.chain)}" if self.chain else ""

    def reference(self, value_of: Callable[[int], Any], device: torch.device) -> Any:
        """A chain's in float64, too: its rounding to float32 may be large beside a mutant's value."""
        if not self.chain or self.node.dtype != torch.float32 or not self.widens or device.type not in ("cpu", "cuda"):
            return super().reference(value_of, device)
        result = self._result({}, lambda step, i: _widened(value_of(i), True))
        single = any(value_of(i).dtype == torch.float32 for i in self.sources)  # or the model is run in float64
        return result.to(torch.float32) if single else result

    def _result(self, values: dict[int, Any], other: Callable[[Node, int], Any]) -> Any:
        """The operation on ``values``, which it may drop, and on the values of ``other`` nodes as each operation reads
        them.
        """
        steps = [*self.chain, self.node]
        last = {i: step.index for step in steps for i in step.inputs}
        for step in steps:

            def value(ref: Ref, step: Node = step) -> Any:
                return values[ref.index] if ref.index in values else other(step, ref.index)

            values[step.index] = step.target(*map_refs(step.args, value), **map_refs(step.kwargs, value))
            for i in [i for i in values if last.get(i) == step.index]:
                del values[i]
        return values.pop(self.node.index)

    def may_widen(self, precision: str, dtype: torch.dtype, device: str) -> bool:
        """Tell whether small differences of values of this dtype are taken in float64, which some devices lack."""
        full = ("highest", "high") if device == "cpu" else ("highest",)
        return self.widens and precision in full and dtype == torch.float32 and device in ("cpu", "cuda")

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        if not self.may_widen(run.precision, run.value(self.node.index).dtype, run.device.type):
            return self._difference(run, changes, window, wide=False)
        if run.device.type == "cpu" and not self.chain:
            difference = self._difference(run, changes, window, wide=False)
            if not self._small(run, changes, difference):
                return difference
            del difference
        return self._difference(run, changes, window, wide=True).to(torch.float32)

    def knows_zeros(self) -> bool:
        return True

    def _less(
        self, run: Context, result: torch.Tensor, reference: torch.Tensor, own: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """The mutants' result less the reference's; a widened zero is one beside the reference's ``own`` value, too."""
        difference, exact_zeros = result - reference, run.choice(self.node.index).exact_zeros
        if exact_zeros and result.dtype != self.node.dtype:
            difference = torch.where(result == 0, -own().to(result.dtype), difference)
        return difference

    def _difference(
        self, run: Context, changes: list[Change | None], window: Window | None, wide: bool
    ) -> torch.Tensor:
        raise NotImplementedError

    def _small(self, run: Context, changes: list[Change | None], difference: torch.Tensor) -> bool:
        def level() -> torch.Tensor:
            between = [node.index for node in self.chain]
            values = (run.value(i) for i in (self.node.index, *between, *self.sources))
            return torch.stack([_size(v) for v in values if v.is_floating_point()]).amax()

        size = float(_size(difference))
        if not math.isfinite(size):  # one mutant's infinity says nothing about the others
            size = float(_size(difference.nan_to_num(0.0, 0.0, 0.0)))
        if size == 0:  # nothing changes, or rounding took the whole difference
            return any(bool(c.tensor.any()) for c in changes if c is not None and not c.mutant)
        return size < SMALL * float(run.reference.made(("level", self.node.index), level))

    def _reference(self, run: Context) -> torch.Tensor:
        """The reference's result, from widened values."""
        return self._result({}, lambda step, i: _widened(run.value(i), True))


def _size(tensor: torch.Tensor) -> torch.Tensor:
    """The root mean square."""
    return torch.linalg.vector_norm(tensor.float()) / math.sqrt(max(tensor.numel(), 1))


def _widened(value: Any, wide: bool) -> Any:
    return widened(value) if wide and isinstance(value, torch.Tensor) else value


class OnRows(OfValues):
    """Any operation that keeps the rows of the batch apart, on the mutants' whole values."""

    family = "whole values"
    recomputable = True

    def __init__(self, view: View, widens: bool = True) -> None:
        super().__init__(view, ROWS, widens)

    def _difference(
        self, run: Context, changes: list[Change | None], window: Window | None, wide: bool
    ) -> torch.Tensor:
        whole = {s: run.mutants(s, change, wide) for s, change in zip(self.sources, changes, strict=True)}

        def other(step: Node, i: int) -> Any:
            if run.plan.layouts[i] == ROWS:
                return _widened(run.mutants(i, None), wide)
            return _widened(run.value(i), wide)

        result = self._result(whole, other)
        if not self.node.floating:
            return result
        key = ("widened", self.node.index)
        reference = run.reference.made(key, lambda: self._reference(run)) if wide else run.value(self.node.index)
        result = result.unflatten(0, run.sites.difference.shape[:2])
        return self._less(run, result, run.of_sites(reference), lambda: run.of_sites(run.value(self.node.index)))


class Local(OfValues):
    """An operation on windows, whose result at a position depends on that position alone, of all its operands.

    With ``broadcast``, unmutated operands are broadcast against the result, and cut to the window. Without it they are
    weights, and are passed as they are.
    """

    recomputable = True

    def __init__(self, view: View, layout: Layout, broadcast: bool = True, widens: bool = True) -> None:
        super().__init__(view, layout, widens)
        self.broadcast = self.recomputable = broadcast

    def _difference(
        self, run: Context, changes: list[Change | None], window: Window | None, wide: bool
    ) -> torch.Tensor:
        assert window is not None
        sites, edits = run.sites.difference.shape[:2]
        values: dict[int, torch.Tensor] = {}
        for source, layout, change in zip(self.sources, self.source_layouts, changes, strict=True):
            mutants = mutant_on_window(run, source, layout, change, window, wide)
            values[source] = self._natural(mutants, layout, (sites, edits))
            del mutants

        def other(step: Node, i: int) -> Any:
            if not self.broadcast:
                return _widened(run.value(i), wide)
            return _widened(aligned_operand(run, i, step, self.layout, window, (sites, edits)), wide)

        result = self._result(values, other)
        result = self.layout.position_first(result.reshape(sites * edits, *self._shape(window.width)))
        result = result.unflatten(0, (sites, edits))
        if not self.node.floating:
            return result
        own = run.on_window(self.node.index, self.layout, window)
        if not wide:
            return result - own
        key = ("widened", self.node.index)
        reference = run.made_on_window(key, lambda: self.layout.position_first(self._reference(run)), window)
        return self._less(run, result, reference, lambda: own)

    def _shape(self, width: int) -> list[int]:
        shape = list(self.node.shape or ())
        shape[self.layout.axis] = width * self.layout.outer * self.layout.inner
        return shape[1:]  # type: ignore[return-value]

    @staticmethod
    def _natural(value: torch.Tensor, layout: Layout, grid: tuple[int, int]) -> torch.Tensor:
        return layout.natural(value.expand(*grid, *value.shape[2:]).flatten(0, 1))


def mutant_on_window(
    run: Context, index: int, layout: Layout, change: Change | None, window: Window, wide: bool = False
) -> torch.Tensor:
    """The mutants' values of a windowed node on a window: ``(S, A or 1, w, ...)``; of float32 in float64 if
    ``wide``.
    """
    reference = _widened(run.on_window(index, layout, window), wide)
    if change is None:
        return reference
    assert change.window is not None
    if not change.mutant:
        return rewindow(change.tensor, change.window, window) + reference
    moved = rewindow(change.tensor, change.window, window)
    if change.window is window:
        return moved
    changed = rewindow(torch.ones_like(change.tensor, dtype=torch.bool), change.window, window, fill=False)
    return torch.where(changed, moved, reference)


def rewindowed(run: Context, index: int, layout: Layout, change: Change, window: Window) -> torch.Tensor:
    """The change of a windowed node on another window. Outside its own a difference is zero, and a value (of a mask or
    an integer) is the reference's.
    """
    if change.mutant:
        return mutant_on_window(run, index, layout, change, window)
    assert change.window is not None
    return rewindow(change.tensor, change.window, window)


def aligned_operand(
    run: Context, index: int, node: Node, layout: Layout, window: Window, grid: tuple[int, int]
) -> torch.Tensor | Any:
    """The value of an unmutated operand, cut to the window where it has positions, to broadcast against ``(S * A,
    ...)``.
    """
    value = run.value(index)
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return value
    value = of_rank(value, node)
    if value.shape[layout.axis] == 1:
        rows = run.plan.layouts[index] == ROWS
        return run.of_sites(value).expand(*grid, *value.shape[1:]).flatten(0, 1) if rows else value
    taken = run.made_on_window(("operand", node.index, index), lambda: layout.position_first(value), window)
    return layout.natural(taken.expand(*grid, *taken.shape[2:]).flatten(0, 1))


def of_rank(operand: torch.Tensor, node: Node) -> torch.Tensor:
    """An operand with as many axes as the result, as broadcasting adds them in front."""
    return operand.reshape(*[1] * (len(node.shape or ()) - operand.dim()), *operand.shape)
