"""Recurrences while a model is traced: layers and cells are kept whole, and long loops written out are not traced.

PyTorch traces `nn.LSTM`, `nn.GRU` and `nn.RNN` as one operation each, but to know the shape of its result it runs the
layer step by step on tensors without values, at milliseconds a step. Under `kept_whole` each call of such a layer is an
operation of ours instead, with the same arguments, that makes empty tensors of the right shapes. For the graph
`present` has PyTorch's own operation.

A loop over positions in ``forward`` would give a graph of thousands of nodes, which gains nothing. It shows in a chain
of results, each made from the one before by what has run often before: a line of one call of a function, or an
operation with the same weights. Repetitions beside each other, as of the members of an ensemble, make no such chain.
"""

from __future__ import annotations

import contextlib
import os
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from yuzu._engine import ops
from yuzu._engine.graph import Node

CELLS = sorted(name.removeprefix("aten.") for name in ops.with_fact("recurrent") if name.endswith("_cell"))
LAYERS = [name.removesuffix("_cell") for name in CELLS]
OFTEN = 8  # times that something has run: a model for both strands, or for a few windows, runs all of it as often
# results of a loop, each from the one before, and of all operations: more would take some seconds to trace
LONG_CHAIN, MANY_RESULTS = 60, 400
# modules in which no function is a call of the model's own
BETWEEN = ("torch._", "torch.fx.", "torch.overrides", "torch.export.", "torch.utils.", "torch.nn.functional", __name__)

_library = torch.library.Library("yuzu", "FRAGMENT")
_present: dict[Any, Any] = {}  # PyTorch's operation for each of ours
_ours: dict[Any, dict[str, Any]] = {}  # ours, by overload, for what a module calls


class Unrolled(Exception):
    """A loop of many steps, each on what the one before gave; the message says where."""


def present(target: Any) -> Any:
    """PyTorch's operation in the place of one of ours; any other target as it is."""
    return _present.get(target, target)


def draws(node: Node) -> bool:
    """Whether a node is a recurrent layer that drops random values between its layers."""
    if node.op.removeprefix("aten.") not in LAYERS:
        return False
    given = dict(zip((argument.name for argument in node.target._schema.arguments), node.args, strict=False))
    return bool(given["train"] and given["dropout"] and given["num_layers"] > 1)


@contextlib.contextmanager
def kept_whole(module: torch.nn.Module) -> Iterator[None]:
    """While a module's ``forward`` is traced, calls of recurrent layers and cells are operations of ours, and a long
    loop raises `Unrolled`.
    """
    with _within(module, lambda: _Whole(_Chains())):
        yield


@contextlib.contextmanager
def loops_in(module: torch.nn.Module) -> Iterator[list[str]]:
    """A list that has, once a module's ``forward`` has run, what `Unrolled` would say of it when it is traced."""
    found: list[str] = []
    with _within(module, lambda: _Whole(_Chains(found), substitutes=False)):
        yield found


@contextlib.contextmanager
def _within(module: torch.nn.Module, make: Callable[[], TorchFunctionMode]) -> Iterator[None]:
    """Enter a mode whenever a module is called: around the tracing it would see that one's own calls."""
    entered = contextlib.ExitStack()

    def begin(*_: Any) -> None:
        entered.enter_context(make())

    def end(*_: Any) -> None:
        entered.close()

    if isinstance(module, torch.jit.ScriptModule):  # none of whose calls Python sees
        yield
        return
    hooks = module.register_forward_pre_hook(begin), module.register_forward_hook(end, always_call=True)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Whole(TorchFunctionMode):
    """Follows what is called, with operations of ours in the place of recurrent layers if it ``substitutes``."""

    def __init__(self, chains: _Chains, substitutes: bool = True) -> None:
        super().__init__()
        self.chains, self.substitutes = chains, substitutes

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        overloads = _ours.get(func) if self.substitutes else None
        if overloads is not None:
            # a layer takes a padded batch and its states, or packed data and the batch sizes before them
            packed = "data" in overloads and not isinstance(args[3], bool)
            func = overloads["data" if packed else "input" if "input" in overloads else "default"]
        result = func(*args, **kwargs)
        self.chains.follow(func, (args, kwargs), result)
        return result


class _Chains:
    """How many repetitions, one after the other, led to each result; a long chain goes to ``found``, or is raised."""

    def __init__(self, found: list[str] | None = None) -> None:
        self.found = found
        self._lengths: dict[int, tuple[torch.Tensor, int]] = {}  # by identity, which is the tensor's while it is here
        self._runs: Counter[Any] = Counter()
        self._results = 0

    def follow(self, func: Any, given: Any, result: Any) -> None:
        if self.found:
            return
        writes = result is None or func is torch.Tensor.__setitem__
        made = list(_tensors(given[0][:1] if writes else result))
        if not made:
            return
        self._results += len(made)
        sources, length = [], 0
        for tensor in _tensors(given):
            known = self._lengths.get(id(tensor))
            if known is None:
                sources.append(id(tensor))  # a weight or an input: no result of anything before
            else:
                length = max(length, known[1])
        if not writes:
            frame = _caller()
            key = (func, *sources) if sources else (func, frame, frame and frame.f_lineno)
            self._runs[key] += 1
            length += self._runs[key] > OFTEN
            if length > LONG_CHAIN and self._results > MANY_RESULTS:
                self._tell(frame)
                return
        for tensor in made:
            self._lengths[id(tensor)] = tensor, length

    def _tell(self, frame: types.FrameType | None) -> None:
        self._lengths, self._runs = {}, Counter()
        message = (
            f"forward loops over many steps, each on what the one before gave{_place(frame)}: they are not traced one "
            "by one. nn.LSTM, nn.GRU and nn.RNN are kept whole"
        )
        if self.found is None:
            raise Unrolled(message)
        self.found.append(message)


def _tensors(structure: Any) -> Iterator[torch.Tensor]:
    if isinstance(structure, torch.Tensor):
        yield structure
    elif isinstance(structure, list | tuple):
        for item in structure:
            yield from _tensors(item)
    elif isinstance(structure, dict):
        yield from _tensors(list(structure.values()))


def _caller() -> types.FrameType | None:
    """The call of the model's own, or of a module of PyTorch's, that an operation is run in."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(BETWEEN):
        frame = frame.f_back
    return frame


def _place(frame: types.FrameType | None) -> str:
    """The line of the user's that led to a call."""
    while frame is not None and frame.f_globals.get("__name__", "").startswith("torch."):
        frame = frame.f_back
    if frame is None or frame.f_globals.get("__name__", "").startswith("yuzu."):
        return ""
    return f" (line {frame.f_lineno} of {os.path.basename(frame.f_code.co_filename)})"


def _of_layer(x: Any, *rest: Any) -> Any:
    """The results of a layer, without values: of all steps, and the last states."""
    states, bidirectional = (rest[0], rest[6]) if isinstance(rest[2], bool) else (rest[1], rest[7])
    states = states if isinstance(states, list | tuple) else [states]
    size = states[0].shape[-1] * (2 if bidirectional else 1)
    return x.new_empty(*x.shape[:-1], size), *(torch.empty_like(state) for state in states)


def _of_cell(x: Any, states: Any, *weights: Any) -> Any:
    several = isinstance(states, list | tuple)
    return tuple(torch.empty_like(state) for state in states) if several else torch.empty_like(states)


def _define(name: str, overload: str, without_values: Callable[..., Any]) -> None:
    theirs = getattr(getattr(torch.ops.aten, name), overload)
    full = name if overload == "default" else f"{name}.{overload}"
    _library.define(str(theirs._schema).replace("aten::", "", 1))
    _library.impl(full, lambda *args: theirs(*args), "CompositeExplicitAutograd")
    torch.library.register_fake(f"yuzu::{full}", without_values, lib=_library)
    ours = getattr(getattr(torch.ops.yuzu, name), overload)
    _present[ours] = theirs
    _ours.setdefault(getattr(torch, name), {})[overload] = ours


for _name in LAYERS:
    _define(_name, "input", _of_layer)
    _define(_name, "data", _of_layer)
for _name in CELLS:
    _define(_name, "default", _of_cell)

__all__ = ["Unrolled", "draws", "kept_whole", "loops_in", "present"]
