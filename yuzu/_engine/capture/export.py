"""Runs ``torch.export``, and traces a second time where that makes other operations.

The second trace makes in-place operations and views into ordinary operations, and takes composite operations apart. It
takes as long as the export, so a program that has nothing for it to change is left as it is.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from yuzu._engine import ops
from yuzu._engine.capture.branches import Branches
from yuzu._engine.capture.decompositions import decompositions
from yuzu._engine.capture.quiet import quiet
from yuzu._engine.capture.reading import Reading
from yuzu._engine.capture.recurrent import kept_whole, present
from yuzu._engine.capture.unrolled_vmap import vmap_unrolled


def run_export(
    module: torch.nn.Module,
    inputs: tuple[torch.Tensor, ...],
    reading: Callable[[], Reading] | None,
    any_batch: bool = True,
) -> tuple[Any, Branches]:
    """The program of a module, and the values that its forward decides by, which a new ``reading`` finds."""
    from torch.export import export

    shapes = _dynamic_shapes(module, inputs, any_batch)
    # a forward that switches gradients on or off makes a region of its own, unless they are so already
    for gradients in (torch.no_grad, torch.enable_grad):
        read = None if reading is None else reading()
        try:
            with quiet(loggers_of_torch()), gradients(), kept_whole(module):
                with vmap_unrolled(), contextlib.nullcontext() if read is None else read:
                    program = export(module, inputs, dynamic_shapes=shapes, strict=False)
                if read is not None:
                    read.sizes = _sizes_by_symbols(program)
                program = program if is_settled(program) else program.run_decompositions(decompositions())
                return program, Branches() if read is None else read.branches()
        except IndexError:
            if gradients is torch.enable_grad:
                raise
    raise AssertionError("unreachable")


def loggers_of_torch() -> list[logging.Logger]:
    """The loggers that torch.export writes to. The user gets one warning from us instead, with the reason."""
    known = logging.root.manager.loggerDict
    loggers = [log for name, log in known.items() if name.startswith("torch") and isinstance(log, logging.Logger)]
    names = ("torch", "torch.fx", "torch._dynamo", "torch.export", "torch._export")
    return [*loggers, *(logging.getLogger(name) for name in (*names, "torch.fx.experimental.symbolic_shapes"))]


def is_settled(program: Any) -> bool:
    """Return whether a second trace would change nothing: the program writes over nothing, and every operation stays
    whole.
    """
    for fx in program.graph.nodes:
        if fx.op in ("placeholder", "output") or _picks_a_state(fx):
            continue
        if fx.op != "call_function" or not isinstance(fx.target, torch._ops.OpOverload) or fx.target._schema.is_mutable:
            return False
        name = ops.name_of(present(fx.target))
        pointwise = torch.Tag.pointwise in fx.target.tags and torch.Tag.nondeterministic_seeded not in fx.target.tags
        if not (pointwise or ops.stays_whole(name)):
            return False
        training = ops.of(name).training
        if training is not None and (len(fx.args) <= training or fx.args[training] is not False):
            return False  # it may write the statistics of a batch
    return True


def _dynamic_shapes(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], any_batch: bool) -> tuple[Any, ...]:
    """The sizes of the inputs that may vary, for ``torch.export``: the batch's if it may be of any size, or none."""
    from torch.export import Dim

    dims: list[Any] = [{0: Dim.DYNAMIC} if any_batch else None for _ in inputs]
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except ValueError:  # a compiled forward has no signature
        parameters = []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    # a model that takes *args wants the dynamic shapes of those nested
    if any(p.kind == p.VAR_POSITIONAL for p in parameters) and len(inputs) > len(positional):
        dims = [*dims[: len(positional)], tuple(dims[len(positional) :])]
    return tuple(dims)


def _sizes_by_symbols(program: Any) -> bool:
    """Return whether a tensor's size is a value that is not known while tracing."""
    values = [fx.meta.get("val") for fx in program.graph.nodes]
    sizes = [size for v in values if isinstance(v, torch.Tensor) for size in v.shape]
    symbols: list[Any] = [size for size in sizes if isinstance(size, torch.SymInt)]
    return any(size.node.expr.is_Integer or free_unbacked_symbols(size) for size in symbols)  # by now, or still


def _picks_a_state(fx: torch.fx.Node) -> bool:
    """Return whether a node is one of a recurrent layer's results."""
    source: Any = fx.args[0] if fx.target is operator.getitem else None
    return source is not None and ops.of(ops.name_of(present(source.target))).recurrent


__all__ = ["is_settled", "loggers_of_torch", "run_export"]
