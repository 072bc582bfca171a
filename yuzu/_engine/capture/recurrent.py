"""Recurrences while a model is traced: layers and cells are kept whole, and long loops are not traced.

PyTorch traces `nn.LSTM`, `nn.GRU` and `nn.RNN` as one operation each. To know the shape of the result, it runs the
layer step by step on tensors without values, which takes milliseconds a step. Under `kept_whole` each call of such a
layer is an operation of ours instead, which has the same arguments and makes empty tensors of the right shapes. In the
graph, `present` puts PyTorch's own operation in its place.

A loop over positions in ``forward`` would give a graph of thousands of nodes, which gains nothing. Such a loop shows in
a chain of results, each made from the one before by something that has run often: a line of a function, or an operation
with the same weights. Repetitions beside each other, such as the members of an ensemble, make no such chain.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from yuzu._engine import ops

CELLS = sorted(name.removeprefix("aten.") for name in ops.with_fact("recurrent") if name.endswith("_cell"))
LAYERS = [name.removesuffix("_cell") for name in CELLS]
OFTEN = 8  # runs of the same line; a model for both strands, or for a few windows, may run every line so often
# results in a chain, and of all operations: more would take seconds to trace
LONG_CHAIN, MANY_RESULTS = 60, 400
# modules whose functions are not the model's own
BETWEEN = ("torch._", "torch.fx.", "torch.overrides", "torch.export.", "torch.utils.", "torch.nn.functional", __name__)

_library = torch.library.Library("yuzu", "FRAGMENT")
_present: dict[Any, Any] = {}  # PyTorch's operation for each of ours
_ours: dict[Any, dict[str, Any]] = {}  # ours, by overload, for what a module calls


class Unrolled(Exception):
    """A loop of many steps, each on the result of the one before; the message names the line."""


def present(target: Any) -> Any:
    """PyTorch's operation instead of one of ours; any other target as it is."""
    return _present.get(target, target)


@contextlib.contextmanager
def kept_whole(module: torch.nn.Module) -> Iterator[None]:
    """Make calls of recurrent layers and cells operations of ours while a module's ``forward`` is traced. A long loop
    raises `Unrolled`.
    """
    with _within(module, lambda: _Whole(_Chains())):
        yield


@contextlib.contextmanager
def loops_in(module: torch.nn.Module) -> Iterator[list[str]]:
    """A list that gets, when a module's ``forward`` has run, the message of the `Unrolled` that a trace would raise."""
    found: list[str] = []
    with _within(module, lambda: _Whole(_Chains(found), substitutes=False)):
        yield found


@contextlib.contextmanager
def _within(module: torch.nn.Module, make: Callable[[], TorchFunctionMode]) -> Iterator[None]:
    """Enter a mode whenever a module is called. Around the whole tracing, it would see the tracer's own calls.

    Hooks would not do: while PyTorch exports a module, it does not call them after a ``forward`` that raises, and then
    leaves modes entered for the rest of the program.
    """
    if isinstance(module, torch.jit.ScriptModule):  # Python sees none of its calls
        yield
        return
    attributes, forward = module.__dict__, module.forward

    @functools.wraps(forward)
    def within(*args: Any, **kwargs: Any) -> Any:
        with make():
            return forward(*args, **kwargs)

    before = attributes.get("forward", within)
    attributes["forward"] = within
    try:
        yield
    finally:
        del attributes["forward"]
        if before is not within:
            attributes["forward"] = before


class _Whole(TorchFunctionMode):
    """Follows all calls; if it ``substitutes``, recurrent layers are operations of ours."""

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
    """Counts the repetitions that led to each result. The message of a long chain goes to ``found``, or is raised."""

    def __init__(self, found: list[str] | None = None) -> None:
        self.found = found
        # by id; a tensor is kept so that no other gets its id
        self._lengths: dict[int, tuple[torch.Tensor, int]] = {}
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
                sources.append(id(tensor))  # a weight or an input
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
            f"forward loops over many steps, each on the result of the one before{_place(frame)}: such a loop is not "
            "traced. nn.LSTM, nn.GRU and nn.RNN are kept whole"
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
    """The frame of the model's own function, or of a PyTorch module's, that runs an operation."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(BETWEEN):
        frame = frame.f_back
    return frame


def _place(frame: types.FrameType | None) -> str:
    """The line of the user's code that led to a call."""
    while frame is not None and frame.f_globals.get("__name__", "").startswith("torch."):
        frame = frame.f_back
    if frame is None or frame.f_globals.get("__name__", "").startswith("yuzu."):
        return ""
    return f" (line {frame.f_lineno} of {os.path.basename(frame.f_code.co_filename)})"


def _of_layer(x: Any, *rest: Any) -> Any:
    """Empty results of a layer: those of all steps, and the last states."""
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

__all__ = ["Unrolled", "kept_whole", "loops_in", "present"]
