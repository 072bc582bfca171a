"""Routes from a model to a `Captured` graph, tried one after the other.

1. ``torch.export`` for any batch size.
2. ``torch.export`` for two batch sizes, where the model makes an integer of the batch size (`batch_size`).
3. The model's ``children()`` in order, where ``forward`` runs exactly these (`children`).

If all fail, the reason is raised and the model runs naively.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from yuzu._engine.capture.batch_size import find_batch_size
from yuzu._engine.capture.branches import Captured
from yuzu._engine.capture.children import runs_children_in_order
from yuzu._engine.capture.encoders import make_traceable
from yuzu._engine.capture.errors import CaptureError, ReadError, RowsError, first_line
from yuzu._engine.capture.export import run_export
from yuzu._engine.capture.model_copy import evaluation_copy, held_tensors
from yuzu._engine.capture.outputs import objects_taken_apart
from yuzu._engine.capture.program import Traced, graph_of
from yuzu._engine.capture.reading import Reading
from yuzu._engine.capture.recurrent import Unrolled
from yuzu._engine.gate import tracing

EXAMPLE_BATCH = 3  # not 0 or 1, on which export specialises
OTHER_BATCH = 5
EXPORT, TWO_BATCHES, CHILDREN = "export", "two batches", "children"  # the routes, as a graph's fingerprint has them


def capture_plain(
    model: torch.nn.Module,
    shape: tuple[int, int],
    args: tuple[torch.Tensor, ...],
    dtype: torch.dtype,
    share: bool = False,
) -> Captured:
    """Capture ``model`` for sequences of ``shape`` ``(C, L)`` and other inputs like ``args``, with no rewriting yet. A
    model that is known to write to none of its parameters may ``share`` them with the copy that is traced.

    Raises
    ------
    CaptureError
        If no route leads to a graph that is certain to compute what the model computes.
    """
    device = next((t.device for t in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
    with tracing(), torch.autocast(device.type, enabled=False):
        copied = evaluation_copy(model, share=share)
        make_traceable(copied)
        _without_empty_buffers(copied)
        X = torch.zeros(EXAMPLE_BATCH, *shape, dtype=dtype, device=device)
        X[:, 0] = 1
        rest = tuple(a[:1].detach().to(device).expand(EXAMPLE_BATCH, *a.shape[1:]).clone() for a in args)
        return _captured(copied, (X, *rest))


def _captured(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Captured:
    try:
        held = held_tensors(model)  # before tracing, which may leave tensors behind that have no memory
    except Exception as error:  # an attribute may raise whatever it likes
        raise CaptureError(first_line(error)) from error
    trace = _Tracing(model, inputs, held)
    reason = trace.attempt(symbols=False)
    if "register it as buffer" in reason:
        _attributes_as_buffers(model)
        reason = trace.attempt(symbols=False)
    if trace.by_symbols:  # with the values that they stand for, the sizes of all tensors are known
        other = trace.attempt(symbols=True)
        reason = other if trace.decides else reason
    if trace.found is not None:
        return trace.found
    try:
        if len(inputs) == 1 and runs_children_in_order(model, inputs[0]):
            children = torch.nn.Sequential(*model.children())
            return _by_route(children, inputs, held, CHILDREN, children=[n for n, _ in model.named_children()])
    except Exception as error:
        reason = f"{reason}; children in order: {first_line(error)}"
    raise CaptureError(reason, trace.readings[-1].branches() if trace.readings else None)


def _without_empty_buffers(model: torch.nn.Module) -> None:
    """Make a copy's buffers that are None plain attributes: export mistakes another tensor for them."""
    for module in model.modules():
        for name in [name for name, buffer in module._buffers.items() if buffer is None]:
            del module._buffers[name]
            module.__dict__[name] = None


def _attributes_as_buffers(model: torch.nn.Module) -> None:
    """Register a copy's tensors that are attributes as buffers: export follows what is written to those alone."""
    for module in model.modules():
        for name, value in list(module.__dict__.items()):
            if isinstance(value, torch.Tensor):
                del module.__dict__[name]
                module.register_buffer(name, value, persistent=False)


class _Tracing:
    """Attempts to export a model. ``found`` is the graph of the last that succeeded."""

    def __init__(self, model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], held: set[int]) -> None:
        self.model, self.inputs, self.held = model, inputs, held
        self.found: Captured | None = None
        self.readings: list[Reading] = []
        self.decides = False  # true if a value that forward decides by is known to be in the way

    @property
    def by_symbols(self) -> bool:
        """Return whether symbols of values keep a model from being traced, or sizes from being known."""
        last = self.readings[-1] if self.readings else None
        return last is not None and last.symbols and (self.found is None or last.sizes)

    def attempt(self, symbols: bool) -> str:
        """Trace the model, and return the reason if that failed, or an empty string."""
        try:
            self.found = self._by_route(EXPORT, symbols)
            return ""
        except Unrolled as error:  # no other route is shorter
            raise CaptureError(str(error)) from None
        except Exception as error:  # export raises many kinds; the reason is kept for the warning
            reason, by_size = self._why(error), isinstance(error, RowsError)
        if by_size or "Constraints violated" in reason:  # by an integer made of the batch size
            try:
                self.found = self._by_route(TWO_BATCHES, symbols)
            except Exception as error:
                reason = f"{reason}; for two batch sizes: {self._why(error)}"
        return reason

    def _by_route(self, route: str, symbols: bool) -> Captured:
        def reading(rows: tuple[int, ...]) -> Reading:
            any_batch = route != TWO_BATCHES
            self.readings.append(Reading(self.model, self.inputs, self.held, rows, any_batch, symbols))
            return self.readings[-1]

        return _by_route(self.model, self.inputs, self.held, route, reading=reading)

    def _why(self, error: Exception) -> str:
        self.decides |= isinstance(error, ReadError)
        return first_line(error)


def _by_route(
    module: torch.nn.Module,
    inputs: tuple[torch.Tensor, ...],
    held: set[int],
    route: str,
    children: list[str] | None = None,
    reading: Callable[[tuple[int, ...]], Reading] | None = None,
) -> Captured:
    """The graph by one route. ``reading`` makes what finds the values that forward decides by, for numbers of rows."""

    def of_rows(*rows: int) -> Callable[[], Reading] | None:
        return None if reading is None else functools.partial(reading, rows)

    with objects_taken_apart(module) as recipes:
        if route == TWO_BATCHES:
            program, branches = run_export(module, inputs, of_rows(EXAMPLE_BATCH, 1), any_batch=False)
            more = tuple(torch.cat([t, t[: OTHER_BATCH - EXAMPLE_BATCH]]) for t in inputs)
            other, _ = run_export(module, more, of_rows(OTHER_BATCH, 1), any_batch=False)
            shapes = find_batch_size(program, other, (EXAMPLE_BATCH, OTHER_BATCH))
        else:
            program, branches = run_export(module, inputs, of_rows(1, EXAMPLE_BATCH))
            shapes = {}
    recipe = recipes[-1] if recipes else None
    return graph_of(Traced(module, program, route, held, branches, shapes, recipe, children))


__all__ = ["EXAMPLE_BATCH", "capture_plain"]
