"""Operations without a handler that no mutation reaches, and whose rows are known to come from the same rows of their
inputs: a table looked up by a cell's number, an encoding repeated for the batch. All mutants of a sequence then have
the reference's row.

Other operations may depend on the size of the batch or on its other rows, which are not those of the mutants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from yuzu._engine.graph import Ref
from yuzu._engine.handlers.contract import View
from yuzu._engine.handlers.registry import has_rows
from yuzu._engine.layout import CONSTANT, ROWS

_CERTAIN: dict[str, Callable[[View], bool]] = {}


def gives_rows(view: View) -> bool:
    """Tell whether an unmutated node certainly gives one row for each sequence, which depends on that sequence's inputs
    alone.
    """
    return (
        has_rows(view.node)
        and view.node.op in _CERTAIN
        and all(view.layout(ref) in (ROWS, CONSTANT) for ref in view.tensors())
        and _CERTAIN[view.node.op](view)
    )


def _certain(*names: str) -> Callable[[Callable[[View], bool]], Callable[[View], bool]]:
    def register(condition: Callable[[View], bool]) -> Callable[[View], bool]:
        _CERTAIN.update({f"aten.{name}": condition for name in names})
        return condition

    return register


def _axis(view: View, value: Any) -> int | None:
    """An axis of the first argument, counted from 0; None if it is not a single number."""
    return value % len(view.shape_of(view.node.args[0])) if type(value) is int else None


@_certain("repeat", "tile", "repeat_interleave")
def _repeated(view: View) -> bool:
    """The result has the batch's length on the first axis: a single row repeated, or the batch's own rows once."""
    node, shape = view.node, view.shape_of(view.node.args[0])
    if node.op == "aten.repeat_interleave":
        axis = _axis(view, node.argument(2, "dim"))
        if axis is None or view.tensors() != [node.args[0]]:
            return False  # of a flattened tensor, or as often as another tensor says
    if view.layout(node.args[0]) == ROWS:
        return len(shape) == view.rank
    return len(shape) < view.rank or shape[0] == 1


@_certain("index")
def _indexed(view: View) -> bool:
    """Rows of a table, by integers; a mask's rows depend on those before them."""
    table, indices = view.node.args[:2]
    if len(indices) != 1 or not isinstance(indices[0], Ref):
        return False
    by_number = view.source(indices[0]).dtype in (torch.int64, torch.int32)
    return view.layout(table) == CONSTANT and view.layout(indices[0]) == ROWS and by_number


@_certain("index_select")
def _selected(view: View) -> bool:
    source, index = view.node.args[0], view.node.argument(2, "index")
    of_rows = _axis(view, view.node.argument(1, "dim")) == 0
    return of_rows and view.layout(source) == CONSTANT and view.layout(index) == ROWS


@_certain("gather")
def _gathered(view: View) -> bool:
    source, index = view.node.args[0], view.node.argument(2, "index")
    within = _axis(view, view.node.argument(1, "dim")) not in (None, 0)
    return within and view.layout(source) == view.layout(index) == ROWS


@_certain("argsort")
def _within_rows(view: View) -> bool:
    axis = _axis(view, view.node.argument(1, "dim", -1))
    return view.layout(view.node.args[0]) == ROWS and axis not in (None, 0)


@_certain("cat", "stack")
def _joined(view: View) -> bool:
    axis = view.node.argument(1, "dim", 0)
    return type(axis) is int and axis % view.rank != 0 and all(view.layout(ref) == ROWS for ref in view.tensors())


__all__ = ["gives_rows"]
