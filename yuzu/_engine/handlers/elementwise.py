"""Operations that act on each position by itself.

In general ``f(R + D) - f(R)`` on the window. Where a formula gives the difference without subtracting two
close numbers it is used, for it is more accurate: rectifiers need one comparison, affine operations none of
the reference at all, and

    exp:      e^R (e^D - 1)
    sigmoid:  s (1 - s) q / (1 + s q)    with s = sigmoid(R), q = e^D - 1
    tanh:     2 sigmoid(2 x) - 1
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from yuzu._engine.delta import CONSTANT, ROWS, Change, Layout, rewindow
from yuzu._engine.graph import Ref, map_refs
from yuzu._engine.handlers.contract import Rule, View, handles
from yuzu._engine.window import Window

if TYPE_CHECKING:
    from yuzu._engine.run import Run


class OnRows(Rule):
    """Any operation that treats every row of the batch by itself: run on the mutants' whole values, minus the
    reference's result.
    """

    family = "elementwise"

    def __init__(self, view: View, layout: Layout = ROWS, family: str = "whole values") -> None:
        super().__init__(view, layout)
        self.family = family

    def run(self, run: Run, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        whole = {s: run.mutants(s, change) for s, change in zip(self.sources, changes, strict=True)}

        def value(ref: Ref) -> Any:
            if ref.index in whole:
                return whole[ref.index]
            if run.plan.layouts[ref.index] == ROWS:
                return run.mutants(ref.index, None)
            return run.value(ref.index)

        result = self.node.target(*map_refs(self.node.args, value), **map_refs(self.node.kwargs, value))
        result = result.unflatten(0, run.sites.difference.shape[:2])
        return result - run.of_sites(run.value(self.node.index)) if result.is_floating_point() else result.flatten(0, 1)


class Local(Rule):
    """The operation itself on windows of the mutants' values, minus the reference's result on the window.

    Right for every operation whose result at a position depends on that position alone, of all its operands.
    With ``broadcast`` unmutated operands lie on top of the result as broadcasting has it, and are cut to the
    window; without it they are weights and go in as they are.
    """

    family = "elementwise"

    def __init__(self, view: View, layout: Layout, broadcast: bool = True) -> None:
        super().__init__(view, layout)
        self.broadcast = broadcast

    def run(self, run: Run, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        assert window is not None
        sites, edits = run.sites.difference.shape[:2]
        values: dict[int, torch.Tensor] = {}
        for source, layout, change in zip(self.sources, self.source_layouts, changes, strict=True):
            values[source] = self._natural(
                mutant_on_window(run, source, layout, change, window), layout, (sites, edits)
            )

        def value(ref: Ref) -> Any:
            if ref.index in values:
                return values[ref.index]
            if not self.broadcast:
                return run.value(ref.index)
            return aligned_operand(run, ref.index, self.node, self.layout, window, (sites, edits))

        result = self.node.target(*map_refs(self.node.args, value), **map_refs(self.node.kwargs, value))
        result = self.layout.position_first(result.reshape(sites * edits, *self._shape(window.width)))
        result = result.unflatten(0, (sites, edits))
        if not result.is_floating_point():
            return result
        return result - run.on_window(self.node.index, self.layout, window)

    def _shape(self, width: int) -> list[int]:
        shape = list(self.node.shape or ())
        shape[self.layout.axis] = width * self.layout.outer * self.layout.inner
        return shape[1:]  # type: ignore[return-value]

    @staticmethod
    def _natural(value: torch.Tensor, layout: Layout, grid: tuple[int, int]) -> torch.Tensor:
        return layout.natural(value.expand(*grid, *value.shape[2:]).flatten(0, 1))


def mutant_on_window(run: Run, index: int, layout: Layout, change: Change | None, window: Window) -> torch.Tensor:
    """The mutants' values of a windowed node on a window: ``(S, A or 1, w, ...)``."""
    reference = run.on_window(index, layout, window)
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


def aligned_operand(
    run: Run, index: int, node: Any, layout: Layout, window: Window, grid: tuple[int, int]
) -> torch.Tensor | Any:
    """The value of an unmutated operand, cut to the window where it has positions, to broadcast against ``(S
    * A, ...)`` rows.
    """
    value = run.value(index)
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return value
    rank = len(node.shape)
    axis = layout.axis - (rank - value.dim())
    rows = run.plan.layouts[index] == ROWS
    if rows:
        value = run.of_sites(value).expand(*grid, *value.shape[1:]).flatten(0, 1)
    if axis < 0 or value.shape[axis] == 1:
        return value
    whole = Layout("windows", axis, layout.length, layout.outer, layout.inner)
    if rows:
        return whole.natural(read_rows(whole.position_first(value), window, grid[1]))
    if axis == 0:
        value, whole = value.unsqueeze(0), Layout("windows", 1, layout.length, layout.outer, layout.inner)
        axis += 1
    elif value.shape[0] != 1:
        value, whole = (
            value.unsqueeze(0),
            Layout("windows", axis + 1, layout.length, layout.outer, layout.inner),
        )
        # a leading axis of 1 is the batch's once the operand has the rank of the result
        if value.dim() > rank:
            raise RuntimeError("an operand without a batch has more than one row")
    table = whole.position_first(value).contiguous()
    from yuzu._engine.delta import read_windows

    taken = read_windows(table, window, run.sites.sequence, 0)
    return whole.natural(taken.unsqueeze(1).expand(-1, grid[1], *taken.shape[1:]).flatten(0, 1))


def read_rows(value: torch.Tensor, window: Window, edits: int) -> torch.Tensor:
    """Rows ``(S * A, L, ...)``, each on its own site's window."""
    from yuzu._engine.delta import on_device

    position = on_device(
        (window.start[:, None] + torch.arange(window.width).numpy()).repeat(edits, axis=0), value.device
    )
    row = torch.arange(value.shape[0], device=value.device)[:, None]
    return value[row, position]


#  formulas for the difference


class Formula(Rule):
    """A function of one tensor with a formula for its difference.

    ``formula(D, R, f(R), owned)`` may overwrite ``D`` when ``owned``.
    """

    family = "elementwise"

    def __init__(self, view: View, layout: Layout, formula: Callable[..., torch.Tensor]) -> None:
        super().__init__(view, layout)
        self.formula = formula

    def run(self, run: Run, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        (source,) = self.sources
        assert change is not None
        if window is None:
            difference = run.whole(source, change)
            before, after = run.of_sites(run.value(source)), run.of_sites(run.value(self.node.index))
            owned = change.window is None and run.disposable(source)
        else:
            assert change.window is not None
            difference = rewindow(change.tensor, change.window, window)
            before = run.on_window(source, self.source_layouts[0], window)
            after = run.on_window(self.node.index, self.layout, window)
            owned = run.disposable(source)
        return self.formula(difference, before, after, owned)


class Rectifier(Rule):
    """``relu``: ``max(D + min(R, 0), -max(R, 0))``; where the unit is on before and after, the difference
    passes unrounded.
    """

    family = "elementwise"

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
                ("above zero", i),
                lambda: run.reference.position_first(source, layout).clamp(min=0).neg_(),
                window,
            )
        if run.disposable(source) and difference.dtype == below.dtype:
            difference = difference.add_(below)
        else:
            difference = difference + below
        return torch.maximum(difference, minus_above, out=difference)


def _exp(d: torch.Tensor, before: torch.Tensor, after: torch.Tensor, owned: bool) -> torch.Tensor:
    return (torch.expm1(d, out=d) if owned else torch.expm1(d)).mul_(after)


def _sigmoid(d: torch.Tensor, before: torch.Tensor, after: torch.Tensor, owned: bool) -> torch.Tensor:
    # expm1 overflows for large D: there 1 + s q is as large, so divide first where D > 0 by working with -D
    positive = d > 0
    q = torch.expm1(-d.abs())
    s = torch.where(positive, 1 - after, after)
    difference = s * (1 - s) * q / (1 + s * q)
    return torch.where(positive, -difference, difference)


def _tanh(d: torch.Tensor, before: torch.Tensor, after: torch.Tensor, owned: bool) -> torch.Tensor:
    s = torch.sigmoid(2 * before)
    return _sigmoid(2 * d, before, s, False).mul_(2)


FORMULAS: dict[str, Callable[..., torch.Tensor]] = {
    "aten.exp": _exp,
    "aten.sigmoid": _sigmoid,
    "aten.tanh": _tanh,
}


@handles("aten.relu")
def rectifier(view: View) -> Rule | str:
    return Rectifier(view, view.layout(view.node.args[0]) if view.node.mutated else ROWS)


@handles("aten.exp", "aten.sigmoid", "aten.tanh")
def with_formula(view: View) -> Rule | str:
    layout = view.layout(view.node.args[0]) if view.node.mutated else ROWS
    return Formula(view, layout, FORMULAS[view.node.op])


@handles("pointwise")
def pointwise(view: View) -> Rule | str:
    """Every operation that PyTorch tags as pointwise."""
    found = common_layout(view)
    if isinstance(found, str):
        return found
    return OnRows(view) if found.kind == "rows" else Local(view, found)


def common_layout(view: View) -> Layout | str:
    """The layout of the result of a broadcasting operation on several operands, or why there is none.

    Windows where all mutated operands have their positions on the same axis, counted from the last.
    """
    rank = view.rank
    shape = view.node.shape
    assert shape is not None
    layouts = []
    for ref in view.tensors():
        layout = view.layout(ref)
        operand = view.source(ref).shape or ()
        if layout == CONSTANT:
            if len(operand) == rank and operand[0] != 1:
                return "an operand without a batch axis has more than one row"
            continue
        if len(operand) != rank:
            return "the operands' batch axes do not lie on top of each other"
        if view.mutated(ref):
            layouts.append((layout, operand))
    if not layouts:
        return ROWS
    first = layouts[0][0]
    if any(layout.kind != "windows" for layout, _ in layouts):
        return ROWS
    if any(
        (la.axis, la.length, la.outer, la.inner) != (first.axis, first.length, first.outer, first.inner)
        for la, _ in layouts
    ):
        return ROWS
    if shape[first.axis] != first.length * first.outer * first.inner:
        return ROWS  # broadcast along the positions
    return first


#  affine


class Scaled(Rule):
    """A difference times something that a mutation does not change."""

    family = "elementwise"

    def __init__(
        self,
        view: View,
        layout: Layout,
        factor: Callable[[Run], torch.Tensor | float],
        operand: int | None = None,
    ) -> None:
        super().__init__(view, layout)
        self.factor, self.operand = factor, operand

    def run(self, run: Run, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,) = changes
        (source,) = self.sources
        assert change is not None
        grid = change.tensor.shape[:2]
        factor = self.factor(run)
        if window is None:
            whole = run.whole(source, change)
            if isinstance(factor, torch.Tensor) and factor.dim():
                factor = aligned_rows(run, self.operand, factor, self.node)
            return whole * factor
        assert change.window is not None
        difference = rewindow(change.tensor, change.window, window)
        if isinstance(factor, torch.Tensor) and factor.dim():
            factor = factor_on_window(run, self.operand, factor, self.node, self.layout, window)
        del grid
        if run.disposable(source) and (not isinstance(factor, torch.Tensor) or _fits(factor, difference)):
            return difference.mul_(factor)
        return difference * factor


def _fits(factor: torch.Tensor, difference: torch.Tensor) -> bool:
    """Whether the product has the difference's own shape and dtype, so that it can be written over it."""
    return (
        factor.dtype == difference.dtype and torch.broadcast_shapes(factor.shape, difference.shape) == difference.shape
    )


def aligned_rows(run: Run, operand: int | None, factor: torch.Tensor, node: Any) -> torch.Tensor:
    """An unmutated operand to broadcast against ``(S, A, ...)``."""
    if operand is not None and run.plan.layouts[operand] == ROWS:
        return run.of_sites(factor)
    rank = len(node.shape)
    return factor.reshape(*[1] * (rank - factor.dim()), *factor.shape).unsqueeze(1) if factor.dim() else factor


def factor_on_window(
    run: Run, operand: int | None, factor: torch.Tensor, node: Any, layout: Layout, window: Window
) -> torch.Tensor:
    """An unmutated operand to broadcast against ``(S, A, w, ...)``, cut to the window where it has positions."""
    rank = len(node.shape)
    rows = operand is not None and run.plan.layouts[operand] == ROWS
    value = factor.reshape(*[1] * (rank - factor.dim()), *factor.shape)
    size = value.shape[layout.axis]
    if size == 1:
        first = Layout("windows", layout.axis, 1).position_first(value)
        if layout.composite:
            first = first.unsqueeze(layout.axis + 1).unsqueeze(layout.axis + 1)
        return run.of_sites(first) if rows else first.unsqueeze(1)
    from yuzu._engine.delta import read_windows

    key = ("factor", node.index, operand)
    table = run.reference.made(key, lambda: layout.position_first(value).contiguous())
    only = run.sites.only if rows else 0
    return read_windows(table, window, run.sites.sequence, only).unsqueeze(1)


@handles("aten._native_batch_norm_legit_no_training", "aten.batch_norm", "aten.native_batch_norm")
def batch_norm(view: View) -> Rule | str:
    """``(x - mean) / sqrt(variance + eps) * weight + bias``: on differences, a factor for each channel."""
    node = view.node
    training_free = node.op == "aten._native_batch_norm_legit_no_training"
    if not training_free and node.argument(5, "training", True):
        return "batch normalisation uses the batch's own statistics"
    weight, variance = node.args[1], node.args[4]
    eps = node.args[6] if training_free else node.args[7]
    if any(view.layout(r) != CONSTANT for r in node.args[1:5] if isinstance(r, Ref)) or not isinstance(variance, Ref):
        return "the statistics of the batch normalisation depend on an input"
    layout = view.layout(node.args[0]) if node.mutated else ROWS
    channels = view.rank - 2

    def factor(run: Run) -> torch.Tensor:
        sources = [run.value(variance.index)] + ([run.value(weight.index)] if isinstance(weight, Ref) else [])

        def make() -> torch.Tensor:
            scale = torch.rsqrt(sources[0] + eps)
            scale = scale * sources[1] if len(sources) > 1 else scale
            return scale.reshape(1, -1, *[1] * channels)

        return run.derived(("batch norm", node.index), sources, make)

    return Scaled(view, layout, factor)


@handles("aten.mul", "aten.div")
def product(view: View) -> Rule | str:
    """By something unmutated: a factor. By another mutated tensor: ``D1 R2 + R1 D2 + D1 D2``. Other
    quotients: on values.
    """
    node = view.node
    left, right = node.args[0], node.args[1]
    layout = common_layout(view)
    if isinstance(layout, str):
        return layout
    if len(node.args) > 2 or node.kwargs:  # rounding modes
        return pointwise(view)
    quotient = node.op == "aten.div"
    if view.mutated(left) and view.mutated(right):
        return (
            pointwise(view) if quotient or not isinstance(left, Ref) else Product(view, layout, left.index, right.index)
        )
    if quotient and view.mutated(right):
        return pointwise(view)
    other = right if view.mutated(left) else left
    mutated = left if view.mutated(left) else right
    if node.dtype is None or not node.dtype.is_floating_point or not node.mutated:
        return pointwise(view)
    if view.source(mutated).dtype != node.dtype or view.source(mutated).shape != node.shape:
        return pointwise(view)

    def factor(run: Run) -> torch.Tensor | float:
        value = run.value(other.index) if isinstance(other, Ref) else other
        return 1 / value if quotient else value

    return Scaled(view, layout, factor, other.index if isinstance(other, Ref) else None)


class Product(Rule):
    """The product of two mutated tensors."""

    family = "merge"

    def __init__(self, view: View, layout: Layout, left: int, right: int) -> None:
        super().__init__(view, layout)
        self.left, self.right = left, right

    def run(self, run: Run, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        found = dict(zip(self.sources, changes, strict=True))
        layouts = dict(zip(self.sources, self.source_layouts, strict=True))

        def parts(index: int) -> tuple[torch.Tensor | None, torch.Tensor]:
            change = found[index]
            if window is None:
                return None if change is None else run.whole(index, change), run.of_sites(run.value(index))
            if change is None:
                return None, run.on_window(index, layouts[index], window)
            assert change.window is not None
            return rewindow(change.tensor, change.window, window), run.on_window(index, layouts[index], window)

        (d1, r1), (d2, r2) = parts(self.left), parts(self.right)
        if d1 is None or d2 is None:
            return d1 * r2 if d1 is not None else r1 * d2  # type: ignore[operator]
        return d1 * r2 + (r1 + d1) * d2


@handles("aten.neg")
def negative(view: View) -> Rule | str:
    if not view.node.mutated or view.node.dtype is None or not view.node.dtype.is_floating_point:
        return pointwise(view)
    return Scaled(view, view.layout(view.node.args[0]), lambda run: -1.0)


#  along channels


def _axes(value: Any, rank: int) -> list[int]:
    axes = range(rank) if value is None or value == [] else [value] if isinstance(value, int) else value
    return [axis % rank for axis in axes]


@handles("aten.softmax", "aten._softmax", "aten.log_softmax", "aten._log_softmax", "aten.glu", "aten.cumsum")
def along_one_axis(view: View) -> Rule | str:
    """Softmax and the like: local when their axis is not the axis of positions."""
    node = view.node
    axis = node.argument(1, "dim", -1)
    return _along(view, [axis % view.rank])


@handles("aten.layer_norm", "aten.native_layer_norm", "aten.rms_norm")
def layer_norm(view: View) -> Rule | str:
    count = len(view.node.args[1])
    if any(view.layout(ref) != CONSTANT for ref in view.tensors() if ref != view.node.args[0]):
        return "the weights of the normalisation depend on an input"
    return _along(view, list(range(view.rank - count, view.rank)))


@handles("aten.prelu", "aten._prelu_kernel")
def prelu(view: View) -> Rule | str:
    if view.layout(view.node.args[1]) != CONSTANT:
        return "the slopes depend on an input"
    layout = view.layout(view.node.args[0])
    if not view.node.mutated or layout.kind != "windows" or layout.axis < 2 or layout.composite:
        return OnRows(view)
    return Local(view, layout, broadcast=False)


@handles(
    "aten.group_norm",
    "aten.native_group_norm",
    "aten.instance_norm",
    "aten.scaled_dot_product_attention",
    "aten.roll",
)
def row_by_row(view: View) -> Rule | str:
    """Operations that mix positions but never rows of the batch."""
    node = view.node
    if node.op == "aten.instance_norm" and not node.argument(5, "use_input_stats", True):
        return "instance normalisation uses running statistics"
    if node.op == "aten.roll":
        axes = node.argument(2, "dims", [])
        if not axes or 0 in _axes(axes, view.rank):
            return "it moves rows of the batch"
    if any(
        view.layout(ref) == CONSTANT and (view.source(ref).shape or ()) and ref != node.args[0]
        for ref in view.tensors()
    ):
        if node.op == "aten.scaled_dot_product_attention":
            return "an operand of the attention has no batch axis"
    return OnRows(view, family="whole values")


def _along(view: View, axes: list[int]) -> Rule | str:
    layout = view.layout(view.node.args[0])
    if 0 in axes:
        return "it works along the batch"
    if not view.node.mutated or layout.kind != "windows" or layout.composite or layout.axis in axes:
        return OnRows(view)
    return Local(view, layout, broadcast=False)
