"""The operations of a trace that no sequence reaches, and their values."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from yuzu._engine.capture.branches import Read, alike, rows_of, written_by
from yuzu._engine.capture.errors import ReadError, RowsError
from yuzu._engine.graph import Node, evaluate, with_refs

MISSING = object()  # in the place of a value that there is none of
OF_NUMBERS = ("_operator", "builtins", "math", "torch")  # modules of functions of numbers


class Followed:
    """The operations of a trace that no sequence reaches, and their values for batches of each of ``rows``."""

    def __init__(
        self,
        model: torch.nn.Module,
        inputs: Sequence[torch.Tensor],
        held: set[int],
        rows: tuple[int, ...],
        any_batch: bool,
    ) -> None:
        tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self.inputs: list[tuple[str, Any, torch.Tensor]] = [("weight", name, tensor) for name, tensor in tensors]
        self.inputs.append(("sequence", None, inputs[0]))
        self.inputs += [("extra", i, tensor) for i, tensor in enumerate(inputs[1:])]
        self.attributes = {
            value.data_ptr(): (f"{name}.{key}" if name else key, value.shape)
            for name, module in model.named_modules()
            for key, value in module.__dict__.items()
            if isinstance(value, torch.Tensor) and value.numel()
        }
        self.held, self.rows, self.any_batch, self.device = held, rows, any_batch, inputs[0].device
        self.nodes: list[Node] = []
        self.values: list[list[Any] | None] = []
        self.known: dict[torch.fx.Node, Node | None] = {}
        self.reached: set[torch.fx.Node] = set()  # by the sequence
        self.writes: set[int] = set()
        self.autocast = False  # true once it is entered: its casts are not among the operations

    def index_of(self, fx: torch.fx.Node) -> int:
        """The number of a node of the trace, which is known."""
        node = self.known[fx]
        assert node is not None
        return node.index

    def meet(self, tracer: Any) -> None:
        """Take in what was traced since the last time."""
        for fx in list(tracer.graph.nodes):  # tracing may also have erased some
            if fx not in self.known:
                self.known[fx] = self._met(fx, tracer)

    def lead_to(self, wanted: set[int]) -> set[int]:
        """The nodes that the ``wanted`` ones depend on, and those that write to the memory of these."""
        memory = set().union(*(self._memory(i) for i in wanted))
        for node in reversed(self.nodes):
            if node.index in self.writes and not memory.isdisjoint(self._memory(node.index)):
                wanted.add(node.index)
            if node.index in wanted:
                wanted.update(node.inputs)
                memory.update(*(self._memory(i) for i in node.inputs))
        return wanted

    def value_of(self, read: Read, needed: set[int]) -> tuple[Any, Any, type[ReadError] | None]:
        """The value that is read, a copy, and the error to raise if another number of rows gives another value."""
        self._run(needed)
        value = self._tried(0, lambda: read.run(lambda i: self._of(i, 0)))
        error: type[ReadError] | None = None
        for k in range(1, len(self.rows)):
            other = self._tried(k, lambda k=k: read.run(lambda i: self._of(i, k)))  # type: ignore[misc]
            if other is MISSING or alike(other, value):
                continue
            of_rows = isinstance(value, list | np.ndarray | torch.Tensor) and len(value) == self.rows[0]
            if not of_rows or self.any_batch:
                error = RowsError if of_rows else ReadError
        first, second = copy.deepcopy((value, value))  # later operations may write over the value
        return first, second, error

    def _of(self, index: int, k: int) -> Any:
        values = self.values[index]
        assert values is not None
        return values[k]

    def _tried(self, k: int, function: Callable[[], Any]) -> Any:
        """The function's result; `MISSING` where an operation does not run on batches of another size, and need not."""
        try:
            return function()
        except Exception:
            if self.any_batch or k == 0:
                raise
            return MISSING

    def _run(self, which: set[int]) -> None:
        for index in sorted(which):
            if self.values[index] is None:
                node = self.nodes[index]
                self.values[index] = [
                    self._tried(k, lambda k=k: self._value(node, k))  # type: ignore[misc]  # noqa: B023
                    for k in range(len(self.rows))
                ]

    def _value(self, node: Node, k: int) -> Any:
        if node.kind == "rows":
            return self.rows[k]
        if node.kind == "call":
            return evaluate(node, lambda i: self._of(i, k), self.device)
        assert node.value is not None
        value = rows_of(node.value, self.rows[k]) if node.kind == "extra" else node.value
        return value.detach().clone()  # operations may write over it

    def _memory(self, index: int) -> set[int]:
        """The addresses of the memory that holds the value of a node, if it was run."""
        tensors = [t for t in pytree.tree_leaves(self.values[index]) if isinstance(t, torch.Tensor)]
        return {t.untyped_storage().data_ptr() for t in tensors}

    def _met(self, fx: torch.fx.Node, tracer: Any) -> Node | None:
        if fx.op == "placeholder":
            return self._input(fx)
        if fx.op == "get_attr":
            return self._attribute(functools.reduce(getattr, str(fx.target).split("."), tracer.root))
        if fx.op != "call_function":
            return None
        size = fx.meta.get("val")
        if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol and fx.target is torch.ops.aten.sym_size.int:
            return self._add("rows")
        read = fx.all_input_nodes
        if not self.reached.isdisjoint(read):
            self.reached.add(fx)
        self.autocast |= getattr(fx.target, "__name__", "") == "_enter_autocast" and fx.args[2] is not False
        known = not self.autocast and _runs(fx.target) and all(self.known[i] is not None for i in read)
        written = written_by(fx.target)
        if written:  # while what it writes over still holds its old values
            untraced(lambda: self._run(set(range(len(self.nodes)))))
        if not known:
            given = [*enumerate(fx.args), *fx.kwargs.items()]
            self._spoil(pytree.tree_leaves([item for place, item in given if place in written]), fx in self.reached)
            return None
        args, kwargs = with_refs((fx.args, fx.kwargs), self.index_of)
        node = self._add("call", op=str(fx.target), target=fx.target, args=args, kwargs=kwargs)
        if written:
            self.writes.add(node.index)
            untraced(lambda: self._run({node.index}))
        return node

    def _spoil(self, written: list[Any], reached: bool) -> None:
        """Forget the values in memory that an unknown value was written to."""
        places = [self.index_of(i) for i in written if isinstance(i, torch.fx.Node) and self.known[i] is not None]
        memory = set().union(*(self._memory(i) for i in places))
        for fx, node in list(self.known.items()):
            if node is not None and not memory.isdisjoint(self._memory(node.index)):
                self.known[fx] = None
                if reached:
                    self.reached.add(fx)

    def _input(self, fx: torch.fx.Node) -> Node | None:
        place = len(self.known)
        if place >= len(self.inputs):
            return None
        kind, key, value = self.inputs[place]
        if kind == "sequence":
            self.reached.add(fx)
            return None
        return self._add(kind, key=key, value=value)

    def _attribute(self, value: Any) -> Node | None:
        if not isinstance(value, torch.Tensor):
            return None
        name, shape = self.attributes.get(value.data_ptr() if value.numel() else 0, (None, None))
        if name is not None and shape == value.shape:
            return self._add("weight", key=name, value=value)
        if value.numel() and value.data_ptr() in self.held:
            return None  # its changes could not be followed
        return self._add("constant", value=value)

    def _add(self, kind: str, **about: Any) -> Node:
        node = Node(len(self.nodes), kind, **about)
        self.nodes.append(node)
        self.values.append(None)
        return node


def _runs(target: Any) -> bool:
    """Return whether an operation can be run by itself, and gives the same result for the same values."""
    if isinstance(target, torch._ops.OpOverload):
        return torch.Tag.nondeterministic_seeded not in target.tags
    return getattr(target, "__module__", "") in OF_NUMBERS


def untraced(function: Callable[[], Any]) -> Any:
    """A function's result, from a thread of its own, in which nothing is traced."""

    def run() -> Any:
        with torch.no_grad():
            return function()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


__all__ = ["MISSING", "Followed", "untraced"]
