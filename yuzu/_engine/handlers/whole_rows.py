"""Operations that mix positions, or need all of them, but keep rows of the batch apart. They run on whole mutants, and
the operations before them stay on windows.

Linear ones run on differences.
"""

from __future__ import annotations

from collections.abc import Callable

from yuzu._engine.graph import Ref
from yuzu._engine.handlers.affine import Linear
from yuzu._engine.handlers.contract import Rule, View
from yuzu._engine.handlers.elementwise import axes_of
from yuzu._engine.handlers.linear_rows import LinearRows
from yuzu._engine.handlers.registry import handles
from yuzu._engine.handlers.values import Local, OnRows
from yuzu._engine.layout import CONSTANT, ROWS

# the number of axes of each one's input, the batch included
RESIZED = {
    "upsample_linear1d": 3,
    "upsample_bilinear2d": 4,
    "upsample_bicubic2d": 4,
    "_upsample_bilinear2d_aa": 4,
    "_upsample_bicubic2d_aa": 4,
    "upsample_nearest2d": 4,
    "_upsample_nearest_exact2d": 4,
    "upsample_nearest3d": 5,
    "upsample_trilinear3d": 5,
    "_adaptive_avg_pool2d": 4,
    "_adaptive_avg_pool3d": 5,
    "avg_pool3d": 5,
}
POOLS = {
    "adaptive_max_pool2d": 4,
    "adaptive_max_pool3d": 5,
    "max_pool3d": 5,
    "grid_sampler": 4,
}
CONVOLUTIONS = {"conv3d": 5, "conv_transpose2d": 4, "conv_transpose3d": 5}


def _rank(view: View, ranks: dict[str, int]) -> str | None:
    """The reason why the batch is not the first axis of all operands; None if it is."""
    if len(view.shape_of(view.node.args[0])) != ranks[view.node.op.removeprefix("aten.")]:
        return "its input has no batch axis"
    return None if all(_has_rows(view, ref) for ref in view.tensors()) else "one of its operands has no batch axis"


def _has_rows(view: View, ref: object) -> bool:
    return view.layout(ref) != CONSTANT and (view.source(ref).shape or (1,))[0] is None


def _names(table: dict[str, int]) -> Callable[[Callable[[View], Rule | str]], Callable[[View], Rule | str]]:
    return handles(*(f"aten.{name}" for name in table))


@handles(*(f"aten.{name}" for name in RESIZED if name != "upsample_linear1d"))  # `interpolate` handles that one
def resized(view: View) -> Rule | str:
    why = _rank(view, RESIZED)
    return why or (Linear(view, ROWS, "dense") if view.node.mutated and view.node.floating else OnRows(view))


@_names(POOLS)
def pooled(view: View) -> Rule | str:
    return _rank(view, POOLS) or OnRows(view)


@_names(CONVOLUTIONS)
def convolved(view: View) -> Rule | str:
    if any(view.layout(ref) != CONSTANT for ref in view.tensors() if ref != view.node.args[0]):
        return "the convolution's weight depends on an input"
    if len(view.shape_of(view.node.args[0])) != CONVOLUTIONS[view.node.op.removeprefix("aten.")]:
        return "its input has no batch axis"
    return LinearRows(view, 2) if view.node.mutated and view.node.floating else OnRows(view)


@handles("aten.diagonal", "aten.diag_embed")
def diagonals(view: View) -> Rule | str:
    node, source = view.node, view.node.args[0]
    rank = len(view.shape_of(source)) if node.op == "aten.diagonal" else view.rank
    if 0 in axes_of([node.named("dim1"), node.named("dim2")], rank):
        return "the batch is an axis of its matrix"
    return Linear(view, ROWS, "dense") if node.mutated and node.floating else OnRows(view)


@handles("aten.bilinear")
def bilinear(view: View) -> Rule | str:
    left, right, *weights = view.node.args
    if any(view.layout(ref) != CONSTANT for ref in weights if ref is not None):
        return "its weight depends on an input"
    if not (_has_rows(view, left) and _has_rows(view, right)):
        return "one of its operands has no batch axis"
    layout = view.layout(left)
    alike = layout == view.layout(right) and layout.kind == "windows" and not layout.composite
    both = view.mutated(left) and view.mutated(right)
    return Local(view, layout, broadcast=False) if alike and both and layout.axis < view.rank - 1 else OnRows(view)


@handles("aten.cdist")
def distances(view: View) -> Rule | str:
    """Distances of vectors on the last axis to others: points of the model, or vectors of the same sequence."""
    left, right = view.node.args[:2]
    layout, ranks = view.layout(left), [len(view.shape_of(ref)) for ref in (left, right)]
    points = view.layout(right) == CONSTANT and (ranks[1] <= 2 or view.shape_of(right)[0] == 1)
    if not _has_rows(view, left) or not (points or (_has_rows(view, right) and ranks[0] == ranks[1] > 2)):
        return "the batch is not the first axis of what it compares"
    local = layout.kind == "windows" and not layout.composite and layout.axis < ranks[0] - 1 and ranks[1] <= 2
    return Local(view, layout, broadcast=False) if view.node.mutated and points and local else OnRows(view)


@handles("aten.searchsorted", "aten.bucketize")
def places_among(view: View) -> Rule | str:
    borders, values = view.node.args[:2]
    if view.node.op == "aten.bucketize":
        borders, values = values, borders
    if not (isinstance(borders, Ref) and isinstance(values, Ref)):
        return "it searches for a number"
    if view.layout(borders) != CONSTANT or len(view.shape_of(borders)) != 1 or view.layout(values) == CONSTANT:
        return "it does not search one row of borders"
    layout = view.layout(values)
    windows = view.node.mutated and layout.kind == "windows" and not layout.composite
    return Local(view, layout, broadcast=False) if windows else OnRows(view)


__all__: list[str] = []
