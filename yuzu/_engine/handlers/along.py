"""Operations along some axes that keep all others apart: order statistics, running extremes, Fourier transforms,
matrices on the last two axes.

They are local if none of their axes is that of positions. Otherwise they run on whole mutants. Either way the
operations before them stay on windows.
"""

from __future__ import annotations

from collections.abc import Collection

from yuzu._engine.handlers.affine import Linear
from yuzu._engine.handlers.contract import Rule, View
from yuzu._engine.handlers.elementwise import axes_of
from yuzu._engine.handlers.reduce import reduction
from yuzu._engine.handlers.registry import handles
from yuzu._engine.handlers.values import Local, OnRows
from yuzu._engine.layout import CONSTANT, ROWS

# these keep their axis, perhaps with another length
KEEPING = "sort topk cummax cummin linalg_cross".split()
# these drop their axis, or keep it with a length of 1
REDUCING = "median nanmedian mode kthvalue nansum count_nonzero norm quantile nanquantile".split()
# linear along one axis, in real and imaginary parts
FOURIER = "fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft".split()
# on the last two axes, which are kept or dropped
MATRICES = (
    "matrix_exp linalg_inv linalg_pinv linalg_cholesky "
    "det linalg_slogdet linalg_svdvals linalg_eigvalsh linalg_solve "
    "linalg_matrix_power"
).split()
TRIANGLES = "tril triu".split()


def along(view: View, axes: Collection[int], linear: bool = False) -> Rule | str:
    """The rule for an operation along axes of its first argument that keeps the others in their places; its other
    operands are weights, or have a row for each of the batch's.
    """
    node, source = view.node, view.node.args[0]
    layout, others = view.layout(source), [ref for ref in view.tensors() if ref != source]
    weights = all(view.layout(ref) == CONSTANT for ref in others)
    if 0 in axes:
        return "it works along the batch"
    if layout == CONSTANT or any(view.layout(ref) != CONSTANT and not _has_rows(view, ref) for ref in others):
        return "the batch is not the first axis of what it works on"
    if not node.mutated or not weights or layout.kind != "windows" or layout.composite or layout.axis in axes:
        layout = ROWS
    if linear and node.mutated and weights:
        return Linear(view, layout, "dense")
    return OnRows(view) if layout == ROWS else Local(view, layout, broadcast=False)


def _has_rows(view: View, ref: object) -> bool:
    return (view.source(ref).shape or (1,))[0] is None


@handles(*(f"aten.{name}" for name in KEEPING))
def keeping(view: View) -> Rule | str:
    return along(view, axes_of(view.node.named("dim"), view.rank))


@handles(*(f"aten.{name}" for name in REDUCING))
def reducing(view: View) -> Rule | str:
    node = view.node
    if any(view.layout(ref) != CONSTANT for ref in view.tensors() if ref != node.args[0]):
        return "its settings depend on an input"
    rank = len(view.shape_of(node.args[0]))
    return reduction(view, "", axes_of(node.named("dim"), rank), bool(node.named("keepdim")))


@handles(*(f"aten.{name}" for name in FOURIER))
def fourier(view: View) -> Rule | str:
    return along(view, [view.node.named("dim") % view.rank], linear=True)


@handles(*(f"aten.{name}" for name in (*MATRICES, *TRIANGLES)))
def matrices(view: View) -> Rule | str:
    rank = len(view.shape_of(view.node.args[0]))
    if rank < 3:
        return "the batch is an axis of its matrix"
    return along(view, [rank - 2, rank - 1], linear=view.node.floating and view.node.op[5:] in TRIANGLES)


__all__ = ["along"]
