"""One module for each family of operations. Importing this package registers all of them."""

from yuzu._engine.handlers import (
    affine,
    along,
    by_row,
    complex_numbers,
    convolution,
    dense,
    elementwise,
    formulas,
    interpolate,
    merge,
    pick,
    pool,
    reduce,
    repeat,
    unfold,
    view,
    whole_rows,
)
from yuzu._engine.handlers.contract import Rule, View, find_handler, find_rule, handles, registered
from yuzu._engine.ways import compressed_sensing, winograd

BUILT_IN = frozenset(registered())  # the operations that need no handler of a user's own

__all__ = [
    "BUILT_IN",
    "Rule",
    "View",
    "affine",
    "along",
    "by_row",
    "complex_numbers",
    "compressed_sensing",
    "convolution",
    "dense",
    "elementwise",
    "find_handler",
    "find_rule",
    "formulas",
    "handles",
    "interpolate",
    "merge",
    "pick",
    "pool",
    "reduce",
    "registered",
    "repeat",
    "unfold",
    "view",
    "whole_rows",
    "winograd",
]
