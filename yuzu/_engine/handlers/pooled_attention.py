"""Attention pooling: a softmax over positions whose weights multiply values that are then summed over positions.

Taken apart (`yuzu._engine.rewrite.pooled_softmax`), its weights are ``exp(x - max)``, and the division by their sum
comes last. Both sums are of windows, so the pool costs a window, and is exact without a series. The maximum cancels: a
mutant is carried with the reference's.
"""

from __future__ import annotations

from typing import Any

import torch

from yuzu._engine.context import Context
from yuzu._engine.graph import Ref, map_refs
from yuzu._engine.handlers.contract import Rule, View
from yuzu._engine.handlers.facts import Numerics
from yuzu._engine.handlers.formulas import exp_difference
from yuzu._engine.handlers.registry import handles
from yuzu._engine.handlers.values import OnRows, mutant_on_window
from yuzu._engine.layout import ROWS, Change, Layout, on_device, rewindow
from yuzu._engine.window import Window

# How far a mutant's maximum may lie below the reference's, or above: below, its sum is small beside the reference's and
# loses as many digits; above, its exponentials overflow.
BELOW, ABOVE = 4.0, 60.0


class ShiftedExponentials(Rule):
    """``exp(x - m)`` on windows, with the reference's maximum ``m`` over positions for all its mutants. Mutants whose
    own maximum lies far from it run naively.
    """

    family = "elementwise"
    numerics = Numerics(cancels=True)

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,), (source,), (layout,) = changes, self.sources, self.source_layouts
        assert change is not None and change.window is not None and window is not None

        def shifted() -> torch.Tensor:
            reference = run.reference.position_first(source, layout)
            return reference - reference.amax(1, keepdim=True)

        key = ("shifted", self.node.index)
        before = run.made_on_window(key, shifted, window)
        difference = rewindow(change.tensor, change.window, window)
        largest = torch.maximum(
            (before + difference).amax(2), self._outside(run, run.reference.made(key, shifted), window)
        )
        run.doubt(~((largest > -BELOW) & (largest < ABOVE)))
        return exp_difference(difference, before, run.on_window(self.node.index, self.layout, window))

    def _outside(self, run: Context, shifted: torch.Tensor, window: Window) -> torch.Tensor:
        """The largest of ``x - m`` outside of each site's window, ``(S, 1, ...)``."""
        parts = []
        for name, place, flips in (("before", window.start, False), ("after", window.start + window.width, True)):

            def running(flips: bool = flips) -> torch.Tensor:
                edge = torch.full_like(shifted[:, :1], float("-inf"))
                found = torch.cat([edge, (shifted.flip(1) if flips else shifted).cummax(1).values], 1)
                return found.flip(1) if flips else found

            table = run.reference.made((name, self.node.index), running)
            index = on_device(place, run.device)
            sequence = run.sequence_index() if table.shape[0] > 1 else torch.zeros_like(index)
            parts.append(table[sequence, index].unsqueeze(1))
        return torch.maximum(*parts)


@handles("yuzu.shifted_exp")
def shifted_exponentials(view: View) -> Rule | str:
    layout = view.layout(view.node.args[0])
    along = layout.kind == "windows" and not layout.composite and layout.axis == view.node.target.axis
    return ShiftedExponentials(view, layout) if view.node.mutated and along else OnRows(view, widens=False)


class SummedProduct(Rule):
    """A product of two windowed tensors that is summed over their positions: ``matmul``, ``bmm``, ``einsum``. With
    ``f`` the operation, ``f(D1, R2 + D2) + f(R1, D2)``, each on windows.
    """

    family = "reduce"
    numerics = Numerics(weighted=True, cancels=True, multiplies=True)

    def __init__(self, view: View, left: int, right: int) -> None:
        super().__init__(view, ROWS)
        self.left, self.right = left, right

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        grid = run.sites.difference.shape[:2]
        found = dict(zip(self.sources, changes, strict=True))
        layouts = dict(zip(self.sources, self.source_layouts, strict=True))
        windows = [c.window for c in changes if c is not None and c.window is not None]
        here = windows[0]
        if any(w is not here and (w.width != here.width or w.offset_to(here) != 0) for w in windows):
            here = _around(windows)

        def rows(tensor: torch.Tensor, layout: Layout) -> torch.Tensor:
            return layout.natural(tensor.expand(*grid, *tensor.shape[2:]).flatten(0, 1))

        def moved(index: int) -> torch.Tensor | None:
            change = found[index]
            if change is None:
                return None
            assert change.window is not None
            return rows(rewindow(change.tensor, change.window, here), layouts[index])

        first, second = moved(self.left), moved(self.right)
        result: torch.Tensor | None = None
        if first is not None:
            values = mutant_on_window(run, self.right, layouts[self.right], found[self.right], here)
            result = self._product(first, rows(values, layouts[self.right]))
        if second is not None:
            values = run.on_window(self.left, layouts[self.left], here)
            part = self._product(rows(values, layouts[self.left]), second)
            result = part if result is None else result.add_(part)
        assert result is not None
        return result.unflatten(0, grid)

    def _product(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        def value(ref: Ref) -> Any:
            return left if ref.index == self.left else right

        result = self.node.target(*map_refs(self.node.args, value), **map_refs(self.node.kwargs, value))
        assert isinstance(result, torch.Tensor)
        return result


def _around(windows: list[Window]) -> Window:
    """Windows of one width that hold all of some, site by site."""
    start, stop = windows[0].start, windows[0].start + windows[0].width
    for window in windows[1:]:
        start = start.clip(max=window.start)
        stop = stop.clip(min=window.start + window.width)
    width = int((stop - start).max())
    return Window.at(start, width)


def summed_product(view: View, left: Any, right: Any, axes: tuple[int, int]) -> Rule | None:
    """The rule for a product of two mutated tensors that sums over the given axis of each; None if these are not
    positions.
    """
    pairs = list(zip((left, right), axes, strict=True))
    if left == right or not all(isinstance(r, Ref) and view.mutated(r) for r, _ in pairs):
        return None
    if any(view.source(r).dtype != view.node.dtype for r, _ in pairs) or not view.node.floating:
        return None
    layouts = [(view.layout(r), axis) for r, axis in pairs]
    if any(la.kind != "windows" or la.composite or la.axis != axis for la, axis in layouts):
        return None
    return SummedProduct(view, left.index, right.index)


__all__ = ["summed_product"]
