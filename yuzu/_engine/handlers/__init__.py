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
    transposed_convolution,
    unfold,
    view,
    whole_rows,
)
from yuzu._engine.handlers.contract import Rule, View
from yuzu._engine.handlers.registry import find_handler, find_rule, handles, registered
from yuzu._engine.ways import compressed_sensing, winograd

__all__ = [
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
    "transposed_convolution",
    "unfold",
    "view",
    "whole_rows",
    "winograd",
]
