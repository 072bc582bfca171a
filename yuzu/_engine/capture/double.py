"""Runs a model in float64 as a whole, also where it names a less precise dtype.

A copy of a model with float64 weights is not in float64 as a whole if its ``forward``, or its captured graph, names a
dtype: ``x.float()``, ``torch.zeros(n, dtype=torch.float32)``, a region of autocast. Some operations then fail, such as
a product of two dtypes. Others silently give other numbers, such as attention with a mask of another dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from yuzu._engine.capture.model_copy import is_packed
from yuzu._engine.graph import Graph

WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}
REINTERPRETS = "aten::view.dtype"  # its dtype says how to read the same bytes


class InDouble(TorchDispatchMode):
    """A mode in which operations read and return float64 instead of less precise floating point numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)
        if schema is None or func.name() == REINTERPRETS:
            return func(*args, **kwargs)
        if schema.is_mutable:  # a tensor that is written over keeps its dtype
            args = tuple(_widened(a, False) for a in args)
            return func(*args, **{k: _widened(v, False) for k, v in kwargs.items()})
        args, kwargs = tuple(_widened(a) for a in args), {k: _widened(v) for k, v in kwargs.items()}
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor) and result.dtype in WIDE and "dtype" in kwargs_of(func):
            # it is made of numbers alone, in the default dtype: make it again of these with more digits
            if kwargs.get("dtype") is None and torch.Tag.nondeterministic_seeded not in func.tags:
                result = func(*args, **{**kwargs, "dtype": WIDE[result.dtype]})
        return _widened(result)


class SeeDtypes(TorchDispatchMode):
    """A mode that collects the floating point dtypes of all results in ``seen``."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in result if type(result) in (list, tuple) else (result,):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                self.seen.add(leaf.dtype)
        return result


def kwargs_of(func: Any) -> set[str]:
    """The names of an operation's keyword-only arguments."""
    return {a.name for a in func._schema.arguments if a.kwarg_only}


def _widened(value: Any, tensors: bool = True) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(WIDE[value.dtype]) if tensors and value.dtype in WIDE and not is_packed(value) else value
    if isinstance(value, torch.dtype):
        return WIDE.get(value, value)
    if type(value) in (list, tuple):
        return type(value)(_widened(v, tensors) for v in value)
    return value


def in_double(model: Any) -> Any:
    """A function that runs a model in float64 as a whole."""

    def run(*inputs: torch.Tensor) -> Any:
        with InDouble():
            return model(*inputs)

    return run


def names_dtypes(graph: Graph, dtype: torch.dtype) -> bool:
    """Return whether a graph for sequences of a dtype has others by name, and float64 weights would not make it
    float64.
    """

    def names_one(item: Any) -> bool:
        if isinstance(item, tuple | list):
            return any(names_one(i) for i in item)
        return isinstance(item, torch.dtype) and item in WIDE

    for node in graph.nodes:
        if node.dtype not in WIDE:
            continue
        made_here = node.kind == "constant" or (node.kind == "call" and not node.inputs)
        if made_here or node.dtype != dtype or names_one([*node.args, *node.kwargs.values()]):
            return True
    return False
