"""Functions of one tensor with a formula for their difference that does not subtract two close numbers.

With ``s = sigmoid``, ``p = softmax(R)`` and ``Z = 1 + sum(p (e^D - 1))``:

    relu:         max(D + min(R, 0), -max(R, 0)); where the unit is on before and after, D passes unrounded
    exp:          e^R (e^D - 1) for D <= 1, and e^(R + D) - e^R above
    sigmoid:      s(R) s(-R) (e^D - 1) / (s(-R) + s(R) e^D) on a CPU where |R| and |D| are at most 60; else
                  s(R) s(-(R + D)) (e^D - 1) for D <= 0, and s(R + D) s(-R) (1 - e^-D) for D > 0
    tanh:         2 sigmoid(2 x) - 1
    x g(x):       D g(R) + (R + D) (g(R + D) - g(R)), for SiLU with g = s and for GELU, whose g is
                  Phi, with Phi(R + D) - Phi(R) by Gauss's quadrature of its density, 4 points, for |D| <= 1 in
                  float32; or
                  s(u(x)), with u(x) = sqrt(8 / pi) (x + 0.044715 x^3), where it is approximated by tanh;
                  s(b + d) - s(b) = s(b) s(-b) (e^d - 1) / (s(-b) + s(b) e^d)
    softmax:      p (e^D - Z) / Z         } with D less the difference of the likeliest class
    log_softmax:  D - log(Z)              }
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from yuzu._engine.context import Context
from yuzu._engine.handlers.contract import Rule, View
from yuzu._engine.handlers.elementwise import pointwise
from yuzu._engine.handlers.exact_zeros import is_zero
from yuzu._engine.handlers.facts import Numerics
from yuzu._engine.handlers.registry import handles
from yuzu._engine.layout import ROWS, Change, Layout, rewindow
from yuzu._engine.window import Window

FEW_CLASSES = 16
Plain = Callable[[], torch.Tensor]
SMALLEST = 1e-20  # smaller factors count as zero
FAR = 60.0  # changes of a sigmoid's argument above it, which leave nothing to cancel
GELU_SLOPE, GELU_CUBE = math.sqrt(8 / math.pi), 0.044715
GAUSS = ((0.8611363115940526, 0.3478548451374538), (0.3399810435848563, 0.6521451548625461))  # places, weights
LARGE = 10.0  # above it e^D swamps the 1 in Z, and plain softmax is more accurate


class Formula(Rule):
    """``formula(D, R, f(R))`` on windows ``(S, A, w, ...)`` or whole values ``(S, A, ...)``.

    If the formula works along an axis of the node's value, ``axis`` is that axis, and the formula gets its place in
    those tensors.
    """

    family = "elementwise"
    recomputable = True
    numerics = Numerics(cancels=True)

    def __init__(
        self, view: View, layout: Layout, formula: Callable[..., torch.Tensor], axis: int | None = None
    ) -> None:
        super().__init__(view, layout)
        self.formula, self.axis = formula, axis

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
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

    def vanishes(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor | None:
        (change,), (source,), (layout,) = changes, self.sources, self.source_layouts
        return None if change is None else is_zero(run, source, layout, change, window)

    def knows_zeros(self) -> bool:
        return self.node.op in ("aten.tanh", "aten.silu", "aten.gelu")

    def _place(self, window: Window | None) -> int:
        assert self.axis is not None
        if window is None:
            return self.axis + 1
        return self.axis + (2 if self.axis < self.layout.axis else 1)


class ReLU(Rule):
    """``relu``; see the formula above.

    The convolution right after it may absorb a factor ``s`` for each channel right before it. Differences then come and
    go divided by ``s``. With ``R' = R / s`` the result is ``max(D, -R') + min(R', 0)`` where ``s > 0``, and
    ``min(D, -R') + max(R', 0)`` where ``s < 0``.
    """

    family = "elementwise"
    keeps_finite = True
    reads_low_precision = True
    passes_factor = True

    @property
    def fused_as(self) -> str:
        return "relu"

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        (source,) = self.sources
        assert change is not None
        if window is None:
            difference = run.whole(source, change)
            value = run.of_sites(run.value(source))
            below, minus_above = value.clamp(max=0), value.clamp(min=0).neg_()
            return torch.maximum(self._sum(run, difference, below), minus_above)
        assert change.window is not None
        difference = rewindow(change.tensor, change.window, window)
        scale = self._scale(run)
        if scale is None or self._positive(run, scale):
            below, minus_above = self._tables(run, window, scale, ("below", "minus above"), _parts)
            difference = self._sum(run, difference, below)
            return torch.maximum(difference, minus_above, out=difference)
        low, high, shift = self._tables(run, window, scale, ("low", "high", "shift"), _bounds)
        return torch.clamp(difference.to(low.dtype), low, high).add_(shift)

    def _sum(self, run: Context, difference: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
        if difference.dtype != below.dtype:  # widened first: operations on mixed dtypes are slow
            return difference.to(below.dtype).add_(below)
        # part of a wider window is not written over: the result's readers want it contiguous, and would copy it
        whole = difference.nbytes == difference.untyped_storage().nbytes()
        in_place = whole and run.disposable(self.sources[0])
        return difference.add_(below) if in_place else difference + below

    def _scale(self, run: Context) -> torch.Tensor | None:
        """The factor to broadcast against ``(B, L, C, ...)``, if there is one."""
        divisor = run.choice(self.node.index).divisor
        if divisor is None or run.keep_all:
            return None
        return divisor(run)[0].reshape(-1, *[1] * (len(self.node.shape or ()) - 3))

    def _positive(self, run: Context, scale: torch.Tensor) -> bool:
        return run.derived(("positive", self.node.index), [scale], lambda: bool((scale > SMALLEST).all()))

    def _tables(
        self,
        run: Context,
        window: Window,
        scale: torch.Tensor | None,
        names: tuple[str, ...],
        make: Callable[..., tuple[torch.Tensor, ...]],
    ) -> list[torch.Tensor]:
        """The tables that ``make`` gives for the whole reference, made once, on the windows."""
        if run.once:
            there = run.on_window(self.sources[0], self.source_layouts[0], window)
            return [part.to(there.dtype) for part in make(there, scale)]
        reference = run.reference.position_first(self.sources[0], self.source_layouts[0])
        made: list[torch.Tensor] = []

        def table(place: int) -> torch.Tensor:
            if not made:
                made.extend(part.to(reference.dtype) for part in make(reference, scale))
            return made[place]

        keys = [(self.node.index, name, scale is None) for name in names]
        return [run.made_on_window(k, functools.partial(table, place), window) for place, k in enumerate(keys)]


def _parts(reference: torch.Tensor, scale: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """``min(R', 0), -max(R', 0)``"""
    reference = reference if scale is None else reference / scale
    return reference.clamp(max=0), reference.clamp(min=0).neg_()


def _bounds(reference: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The bounds that differences are clamped to, and the shift that is added, for factors that may be negative or
    zero. With a zero factor the weight after it multiplies any finite value by zero.
    """
    largest = min(1 / SMALLEST, torch.finfo(reference.dtype).max)
    reference, positive = (reference / scale).nan_to_num(0.0).clamp(-largest, largest), scale > 0
    low, high = torch.where(positive, -reference, -torch.inf), torch.where(positive, torch.inf, -reference)
    return low, high, torch.where(positive, reference.clamp(max=0), reference.clamp(min=0))


def exp_difference(d: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """``e^(R + D) - e^R``"""
    # if e^R underflows and D brings it back, there is nothing left to multiply
    return torch.where(d > 1, torch.exp(before + d) - after, torch.expm1(d.clamp(max=1)) * after)


def _sigmoid(d: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    off = torch.sigmoid(-before)
    if d.dtype != torch.float16:  # which holds neither e^12 nor e^-25
        near = _all_within(d, 1)
        if (near or _all_within(d, FAR)) and _all_within(before, FAR):  # half the passes over memory of what follows
            growth = torch.expm1(d)
            rest = (growth * after).add_(1) if near else torch.exp(d).mul_(after).add_(off)
            return growth.mul_(after * off).div_(rest)
    mutant = before + d
    slope = torch.where(d > 0, torch.sigmoid(mutant) * off, after * torch.sigmoid(-mutant))
    return torch.copysign(torch.expm1(-d.abs()), d).mul_(slope)


def _tanh(d: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return _sigmoid(2 * d, 2 * before, torch.sigmoid(2 * before)).mul_(2)


def _gated(
    d: torch.Tensor,
    before: torch.Tensor,
    gate: torch.Tensor,
    moved: torch.Tensor,
    within: bool | torch.Tensor,
    plain: Plain,
) -> torch.Tensor:
    """The difference of ``x g(x)``, with ``moved`` that of the gate ``g``; ``plain`` where that is not known."""
    result = (before + d).mul_(moved).addcmul_(d, gate.expand_as(d))
    return result if within is True else torch.where(torch.as_tensor(within, device=d.device), result, plain())


def _all_within(d: torch.Tensor, limit: float) -> bool:
    """Tell whether all numbers are known to lie within a limit. A GPU is not waited for to find out."""
    if d.device.type != "cpu" or not d.numel():
        return False
    low, high = torch.aminmax(d)
    return bool((low >= -limit) & (high <= limit))


def _within(d: torch.Tensor, limit: float) -> bool | torch.Tensor:
    """Tell whether all numbers lie within a limit; which ones, if that is not known of all."""
    return _all_within(d, limit) or d.abs() <= limit


def _of_sigmoid(d: torch.Tensor, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, bool | torch.Tensor]:
    """The sigmoid of the reference, its difference, and where that is known."""
    on, off = torch.sigmoid(before), torch.sigmoid(-before)
    growth, within = torch.expm1(d), _within(d, 1)
    if within is True:  # then 1 + s(b) (e^d - 1) keeps its digits
        rest = (growth * on).add_(1)
    else:
        rest, within = torch.exp(d).mul_(on).add_(off), _within(d, FAR)
    return on, growth.mul_(on * off).div_(rest), within


def _silu(d: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    gate, moved, within = _of_sigmoid(d, before)
    return _gated(d, before, gate, moved, within, lambda: F.silu(before + d) - after)


def _gelu_tanh(d: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    square, cube = before * before, GELU_SLOPE * GELU_CUBE
    argument = (square * GELU_CUBE).add_(1).mul_(before).mul_(GELU_SLOPE)
    change = (d * cube).add_(3 * cube * before).mul_(d).add_(square.mul_(3 * cube).add_(GELU_SLOPE)).mul_(d)
    gate, moved, within = _of_sigmoid(change, argument)
    return _gated(d, before, gate, moved, within, lambda: F.gelu(before + d, approximate="tanh") - after)


def _gelu(d: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    if d.dtype == torch.float64:  # more digits than the quadrature has
        return F.gelu(before + d).sub_(after)
    half, moved = d * 0.5, torch.zeros_like(d)
    middle = half + before
    for place, weight in GAUSS:
        for side in (place, -place):
            x = torch.add(middle, half, alpha=side)
            moved.add_(x.mul_(x).mul_(-0.5).exp_(), alpha=weight / math.sqrt(8 * math.pi))
    moved *= d
    return _gated(d, before, torch.special.ndtr(before), moved, _within(d, 1), lambda: F.gelu(before + d) - after)


def _relative_to_likeliest(d: torch.Tensor, likely: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences less that of the reference's likeliest class, which changes no softmax; and a mask of those that are
    too large for the formulas.

    That class then adds nothing to ``Z - 1``, however close to 1 its probability is, so the others keep their digits.
    """
    index = likely.argmax(axis, keepdim=True)
    shape = list(d.shape)
    shape[axis] = 1
    d = d - d.gather(axis, index.expand(shape))
    return d, ~(d.amax(axis, keepdim=True) <= LARGE)  # NaN, from infinite differences, counts as too large


def _where_far(far: torch.Tensor, plain: Callable[[], torch.Tensor], result: torch.Tensor) -> torch.Tensor:
    """``plain()`` where differences are too large for the formula. No GPU is waited for to find out."""
    if far.device.type == "cpu" and not far.any():
        return result
    return torch.where(far, plain(), result)


def _classes_first(formula: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The formula with the axis of classes first if they are few: sums over a short last axis are slow."""

    def run(d: torch.Tensor, before: torch.Tensor, after: torch.Tensor, axis: int) -> torch.Tensor:
        if d.shape[axis] > FEW_CLASSES:
            return formula(d, before, after, axis)
        d, before, after = d.movedim(axis, 0).contiguous(), before.movedim(axis, 0), after.movedim(axis, 0)
        return formula(d, before, after, 0).movedim(0, axis)

    return run


@_classes_first
def _softmax(d: torch.Tensor, before: torch.Tensor, after: torch.Tensor, axis: int) -> torch.Tensor:
    moved, far = _relative_to_likeliest(d, after, axis)
    excess = torch.expm1(moved.clamp_(max=LARGE))
    total = (after * excess).sum(axis, keepdim=True)
    difference = (excess - total).mul_(after).div_(total + 1)
    return _where_far(far | (total < -0.5), lambda: torch.softmax(before + d, axis) - after, difference)


@_classes_first
def _log_softmax(d: torch.Tensor, before: torch.Tensor, after: torch.Tensor, axis: int) -> torch.Tensor:
    moved, far = _relative_to_likeliest(d, after, axis)
    total = (after.exp() * torch.expm1(moved.clamp(max=LARGE))).sum(axis, keepdim=True)
    difference = moved - torch.log1p(total)
    return _where_far(far | (total < -0.5), lambda: torch.log_softmax(before + d, axis) - after, difference)


FORMULAS: dict[str, Callable[..., torch.Tensor]] = {
    "aten.exp": exp_difference,
    "aten.sigmoid": _sigmoid,
    "aten.tanh": _tanh,
    "aten.silu": _silu,
    "aten.gelu": _gelu,
}


@handles("aten.relu")
def relu(view: View) -> Rule | str:
    if not view.node.floating:
        return pointwise(view)
    return ReLU(view, view.layout(view.node.args[0]) if view.node.mutated else ROWS)


@handles(*FORMULAS)
def with_formula(view: View) -> Rule | str:
    if view.source(view.node.args[0]).dtype != view.node.dtype:
        return "its argument is of another type"
    if view.node.dtype is not None and view.node.dtype.is_complex:
        return pointwise(view)
    layout = view.layout(view.node.args[0]) if view.node.mutated else ROWS
    by_tanh = view.node.op == "aten.gelu" and view.node.argument(1, "approximate", "none") == "tanh"
    return Formula(view, layout, _gelu_tanh if by_tanh else FORMULAS[view.node.op])


@handles("aten.softmax", "aten._softmax", "aten.log_softmax", "aten._log_softmax")
def softmax(view: View) -> Rule | str:
    """On windows if its axis is not that of positions, else on whole values."""
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
