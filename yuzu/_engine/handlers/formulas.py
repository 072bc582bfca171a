"""Functions of one tensor with a formula for their difference that does not subtract two close numbers.

With ``s = sigmoid``, ``p = softmax(R)`` and ``Z = 1 + sum(p (e^D - 1))``:

    relu:         max(D + min(R, 0), -max(R, 0)); where the unit is on before and after, D passes unrounded
    exp:          e^R (e^D - 1) for D <= 1, and e^(R + D) - e^R above
    sigmoid:      s(R) s(-(R + D)) (e^D - 1) for D <= 0, and s(R + D) s(-R) (1 - e^-D) for D > 0
    tanh:         2 sigmoid(2 x) - 1
    softmax:      p (e^D - Z) / Z         } with D less the difference of the likeliest class
    log_softmax:  D - log(Z)              }
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from yuzu._engine.delta import ROWS, Change, Layout, rewindow
from yuzu._engine.handlers.contract import Rule, View, handles
from yuzu._engine.window import Window

if TYPE_CHECKING:
    from yuzu._engine.run import Run

LARGE = 10.0  # differences above it make e^D swamp the 1 that Z starts from: then plain softmax is the accurate one


class Formula(Rule):
    """``formula(D, R, f(R))`` on windows ``(S, A, w, ...)`` or whole values ``(S, A, ...)``.

    ``axis`` is the axis of the node's value that the formula works along, if it does; the formula gets its place in
    those tensors.
    """

    family = "elementwise"

    def __init__(
        self, view: View, layout: Layout, formula: Callable[..., torch.Tensor], axis: int | None = None
    ) -> None:
        super().__init__(view, layout)
        self.formula, self.axis = formula, axis

    def run(self, run: Run, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        (source,) = self.sources
        assert change is not None
        if window is None:
            difference = run.whole(source, change)
            before, after = run.of_sites(run.value(source)), run.of_sites(run.value(self.node.index))
        else:
            assert change.window is not None
            difference = rewindow(change.tensor, change.window, window)
            before = run.on_window(source, self.source_layouts[0], window)
            after = run.on_window(self.node.index, self.layout, window)
        if self.axis is None:
            return self.formula(difference, before, after)
        return self.formula(difference, before, after, self._place(window))

    def _place(self, window: Window | None) -> int:
        assert self.axis is not None
        if window is None:
            return self.axis + 1
        return self.axis + (2 if self.axis < self.layout.axis else 1)


class Rectifier(Rule):
    """``relu``; see the formula above."""

    family = "elementwise"
    reads_lowered = True

    def run(self, run: Run, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        (source,) = self.sources
        assert change is not None
        i = self.node.index
        if window is None:
            difference = run.whole(source, change)
            reference = run.of_sites(run.value(source))
            below, minus_above = reference.clamp(max=0), reference.clamp(min=0).neg_()
        else:
            assert change.window is not None
            difference = rewindow(change.tensor, change.window, window)
            layout = self.source_layouts[0]
            below = run.made_on_window(
                ("below zero", i), lambda: run.reference.position_first(source, layout).clamp(max=0), window
            )
            minus_above = run.made_on_window(
                ("above zero", i), lambda: run.reference.position_first(source, layout).clamp(min=0).neg_(), window
            )
        if difference.dtype != below.dtype:  # widened first: operations on mixed dtypes are slow
            difference = difference.to(below.dtype).add_(below)
        elif run.disposable(source):
            difference = difference.add_(below)
        else:
            difference = difference + below
        return torch.maximum(difference, minus_above, out=difference)


def _exp(d: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    # where e^R has all but vanished and D brings it back, nothing is left of it to multiply
    return torch.where(d > 1, torch.exp(before + d) - after, torch.expm1(d.clamp(max=1)) * after)


def _sigmoid(d: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    mutant = before + d
    slope = torch.where(d > 0, torch.sigmoid(mutant) * torch.sigmoid(-before), after * torch.sigmoid(-mutant))
    return torch.copysign(torch.expm1(-d.abs()), d).mul_(slope)


def _tanh(d: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return _sigmoid(2 * d, 2 * before, torch.sigmoid(2 * before)).mul_(2)


def _relative_to_likeliest(d: torch.Tensor, likely: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences less that of the reference's likeliest class, which changes no softmax; and which are out of the
    formulas' reach.

    That class then counts for nothing in ``Z - 1``, however close to 1 it is: nothing of the others is rounded away.
    """
    index = likely.argmax(axis, keepdim=True)
    shape = list(d.shape)
    shape[axis] = 1
    d = d - d.gather(axis, index.expand(shape))
    return d, ~(d.amax(axis, keepdim=True) <= LARGE)  # NaN, from infinite differences, is out of reach too


def _softmax(d: torch.Tensor, before: torch.Tensor, after: torch.Tensor, axis: int) -> torch.Tensor:
    moved, far = _relative_to_likeliest(d, after, axis)
    excess = torch.expm1(moved.clamp(max=LARGE))
    total = (after * excess).sum(axis, keepdim=True)
    difference = (excess - total).mul_(after).div_(total + 1)
    return torch.where(far | (total < -0.5), torch.softmax(before + d, axis) - after, difference)


def _log_softmax(d: torch.Tensor, before: torch.Tensor, after: torch.Tensor, axis: int) -> torch.Tensor:
    moved, far = _relative_to_likeliest(d, after, axis)
    total = (after.exp() * torch.expm1(moved.clamp(max=LARGE))).sum(axis, keepdim=True)
    return torch.where(far | (total < -0.5), torch.log_softmax(before + d, axis) - after, moved - torch.log1p(total))


FORMULAS: dict[str, Callable[..., torch.Tensor]] = {"aten.exp": _exp, "aten.sigmoid": _sigmoid, "aten.tanh": _tanh}


@handles("aten.relu")
def rectifier(view: View) -> Rule | str:
    return Rectifier(view, view.layout(view.node.args[0]) if view.node.mutated else ROWS)


@handles("aten.exp", "aten.sigmoid", "aten.tanh")
def with_formula(view: View) -> Rule | str:
    if view.source(view.node.args[0]).dtype != view.node.dtype:
        return "its argument is of another type"
    layout = view.layout(view.node.args[0]) if view.node.mutated else ROWS
    return Formula(view, layout, FORMULAS[view.node.op])


@handles("aten.softmax", "aten._softmax", "aten.log_softmax", "aten._log_softmax")
def softmax(view: View) -> Rule | str:
    """On windows where its axis is not the positions', on whole values otherwise."""
    node = view.node
    axis = node.argument(1, "dim", -1) % view.rank
    if axis == 0:
        return "it works along the batch"
    if view.source(node.args[0]).dtype != node.dtype:
        return "its argument is of another type"
    layout = view.layout(node.args[0])
    if not node.mutated or layout.kind != "windows" or layout.composite or layout.axis == axis:
        layout = ROWS
    return Formula(view, layout, _log_softmax if "log" in node.op else _softmax, axis)
