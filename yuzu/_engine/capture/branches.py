"""What ``forward`` decides by values that no sequence reaches: an organism's index in ``args``, a buffer, a table.

``torch.export`` cannot trace ``if torch.any(index < 0)``, for it has no values. While it traces, `Reading` keeps the
operations that lead to such a value, runs them on the values at hand, and gives ``forward`` what they give. The graph
is right for these values alone: `Branches` runs the same operations on others, and says whether they give the same.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from yuzu._engine.gate import running
from yuzu._engine.graph import Graph, Node, Ref, Weights, evaluate, map_refs, refs_of, with_refs

# functions that need a value, which tracing does not have
READS = {
    "__bool__",
    "__int__",
    "__float__",
    "__complex__",
    "__index__",
    "__contains__",
    "__array__",
    "numpy",
    "is_nonzero",
    "equal",
    "allclose",
    "_assert",
}
# for these tracing has a symbol, and a graph with it is good for all values, where one can be made
SYMBOLIC = {
    "item",
    "tolist",
    "__format__",
    # of results that are as large as values say
    "nonzero",
    "argwhere",
    "masked_select",
    "unique",
    "_unique_impl",
    "_return_output",
    "unique_consecutive",
    "_unique_consecutive_impl",
    "repeat_interleave",
}
NUMBERS = ("_operator", "builtins", "math", "torch")  # modules of functions of numbers
WRITE_NOTHING = {"aten::detach_", "aten::requires_grad_", "aten::lift_fresh"}
FOLDERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
MISSING = object()


class ReadError(Exception):
    """Why what ``forward`` decides by cannot be followed."""


class RowsError(ReadError):
    """What ``forward`` decides by is another for a batch of another size."""


@dataclass(frozen=True)
class Read:
    """A value that ``forward`` read, by which function of which nodes."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Any


@dataclass(frozen=True)
class Branches:
    """What was read, in order, with the operations that lead to it.

    Attributes
    ----------
    steps: list of Node or Read
        Nodes of the kind ``"rows"`` are the batch size. Arguments refer to places in this list.
    rows: tuple of int
        Batch sizes for which the values must be the same.
    """

    steps: list[Node | Read] = field(default_factory=list)
    rows: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps)

    @property
    def by_args(self) -> bool:
        """Whether ``forward`` decides by inputs after the sequence."""
        return any(isinstance(step, Node) and step.kind == "extra" for step in self.steps)

    @property
    def weights(self) -> set[str]:
        """The parameters, buffers and attributes that ``forward`` decides by."""
        return {str(step.key) for step in self.steps if isinstance(step, Node) and step.kind == "weight"}

    def hold(self, model: torch.nn.Module, args: Sequence[torch.Tensor], device: torch.device) -> bool:
        """Whether ``forward`` reads the same with the first row of other inputs, and the model's tensors as they are
        now.
        """
        if not self:
            return True
        with running(), torch.no_grad():
            return all(self._same(Weights(model, device), args, device, rows) for rows in self.rows)

    def _same(self, weights: Weights, args: Sequence[torch.Tensor], device: torch.device, rows: int) -> bool:
        values: list[Any] = []
        writes = any(isinstance(step, Node) and _written(step.target) for step in self.steps)
        try:
            for step in self.steps:
                if isinstance(step, Read):
                    found = _run_read(step, values.__getitem__)
                    if not _alike(found, step.value):
                        return False
                elif step.kind == "call":
                    found = evaluate(step, values.__getitem__, device)
                elif step.kind == "rows":
                    found = rows
                else:
                    found = weights[step.key] if step.kind == "weight" else step.value
                    if step.kind == "extra":
                        found = _rows_of(args[step.key], rows)
                    found = found.to(device)
                    found = found.clone() if writes else found
                values.append(found)
        except Exception:  # an operation that other values do not suit
            return False
        return True

    def words(self) -> list[list[str]]:
        """Of each value a digest of how it is computed, and one of the value itself: these tell other values from
        another model.
        """
        found: list[list[str]] = []
        nodes: list[Node] = []
        for step in self.steps:
            if isinstance(step, Node):
                nodes.append(step)
            else:
                name = getattr(step.function, "__name__", "")
                nodes.append(Node(len(nodes), "read", name, name, step.args, step.kwargs))
                found.append([Graph(nodes, [], list, "", "").fingerprint(), _digest(step.value)])
        return found


@dataclass
class Captured(Graph):
    """A graph that is right where ``branches`` hold."""

    branches: Branches = field(default_factory=Branches)


class Reading(TorchFunctionMode):
    """Gives ``forward`` the values that it reads while it is traced, where no sequence reaches them.

    Parameters
    ----------
    model: torch.nn.Module
        What is traced.
    inputs: tuple of torch.Tensor
        Of which the first is the sequences; of the others the first row is used.
    held: set of int
        Memory addresses of the tensors that the model holds.
    rows: tuple of int
        Batch sizes for which what is read must be the same.
    any_batch: bool
        Whether the trace is for batches of any size. Otherwise it is for batches of ``rows[0]``, and what is read of
        each row, or cannot be read in a batch of another size, may be another there.
    symbols: bool
        Whether values are given in the place of symbols, too.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        inputs: Sequence[torch.Tensor],
        held: set[int],
        rows: tuple[int, ...],
        any_batch: bool = True,
        symbols: bool = False,
    ) -> None:
        super().__init__()
        self._followed = _Followed(model, inputs, held, rows, any_batch)
        self._given = READS | SYMBOLIC if symbols else READS
        self._reads: list[tuple[int, Read]] = []  # after so many nodes
        self._needed: set[int] = set()
        self.symbols = False  # whether there was a symbol for a value that no sequence reaches
        self.sizes = False  # whether sizes of tensors are such symbols

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "__getitem__" and len(args) == 2:
            args = args[0], self._without_masks(args[1])
        if name in READS or name in SYMBOLIC:
            found = self._read(func, args, kwargs)
            if found is not MISSING:
                return found
        return func(*args, **kwargs)

    def _without_masks(self, index: Any) -> Any:
        """An index with places for masks of known values: what it picks has a known size then."""
        items = list(index) if isinstance(index, tuple) else [index]
        for at in reversed(range(len(items))):
            if isinstance(items[at], torch.Tensor) and items[at].dtype in (torch.bool, torch.uint8):
                places = self._read(torch.nonzero, (items[at],), {"as_tuple": True})
                if places is not MISSING:
                    items[at : at + 1] = places
        return tuple(items) if isinstance(index, tuple) or len(items) > 1 else items[0]

    def branches(self) -> Branches:
        """What was read by now."""
        steps: list[Node | Read] = []
        place: dict[int, int] = {}

        def moved(structure: Any) -> Any:
            return map_refs(structure, lambda ref: Ref(place[ref.index]))

        nodes = [node for node in self._followed.nodes if node.index in self._needed]
        # a node that was met after a read has its number or a larger one
        ordered: list[tuple[int, int, Node | Read]] = [(node.index, 1, node) for node in nodes]
        ordered += [(after, 0, read) for after, read in self._reads]
        for index, _, step in sorted(ordered, key=lambda one: one[:2]):
            args, kwargs = moved(step.args), moved(step.kwargs)
            if isinstance(step, Read):
                steps.append(Read(step.function, args, kwargs, step.value))
            else:
                place[index] = len(steps)
                value = step.value if step.kind == "constant" else None
                steps.append(Node(len(steps), step.kind, step.op, step.target, args, kwargs, step.key, value))
        followed = self._followed
        return Branches(steps, followed.rows if followed.any_batch else followed.rows[:1])

    def _read(self, func: Any, args: Any, kwargs: Any) -> Any:
        mode = get_proxy_mode()
        if mode is None:
            return MISSING
        followed = self._followed
        followed.meet(mode.tracer)
        traced = pytree.tree_map(lambda item: _traced(item, mode.tracer), (args, kwargs))
        nodes = [item for item in pytree.tree_leaves(traced) if isinstance(item, torch.fx.Node)]
        name = func.__name__.strip("_")
        if any(fx in followed.reached for fx in nodes) and func.__name__ in READS:
            raise ReadError(f"forward decides by a value that depends on the sequence: {name} of a tensor{_where()}")
        known = bool(nodes) and all(followed.known.get(fx) is not None for fx in nodes)
        if not known or any(item is MISSING for item in pytree.tree_leaves(traced)):
            return MISSING
        if func.__name__ not in self._given:
            self.symbols = True
            return MISSING
        given, named = with_refs(traced, followed.index_of)
        needed = followed.lead_to(set(refs_of((given, named))))
        read = Read(func, given, named, None)
        try:
            value, copied, others = _apart(lambda: followed.value_of(read, needed))
        except Exception:  # what the model itself raises: it is traced as it is
            return MISSING
        if others is not None:
            raise others(
                f"forward decides by values of several rows of a batch, or by how many there are: {name} of a "
                f"tensor{_where()}"
            )
        if any(followed.nodes[i].kind in ("weight", "extra") for i in needed):
            self._needed |= needed
            self._reads.append((len(followed.nodes), Read(func, given, named, value)))
        return copied


class _Followed:
    """The operations of a trace that no sequence reaches, and their values for some batch sizes."""

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
        self.lowered = False  # by autocast, whose casts are not among the operations

    def index_of(self, fx: torch.fx.Node) -> int:
        node = self.known[fx]
        assert node is not None
        return node.index

    def meet(self, tracer: Any) -> None:
        """What was traced since the last time."""
        for fx in itertools.islice(tracer.graph.nodes, len(self.known), None):
            self.known[fx] = self._met(fx, tracer)

    def lead_to(self, wanted: set[int]) -> set[int]:
        """The nodes that some depend on, and those that write to what these hold."""
        memory = set().union(*(self._memory(i) for i in wanted))
        for node in reversed(self.nodes):
            if node.index in self.writes and not memory.isdisjoint(self._memory(node.index)):
                wanted.add(node.index)
            if node.index in wanted:
                wanted.update(node.inputs)
                memory.update(*(self._memory(i) for i in node.inputs))
        return wanted

    def value_of(self, read: Read, needed: set[int]) -> tuple[Any, Any, type[ReadError] | None]:
        """What is read, a copy of it, and the error that it is another for another number of rows."""
        self._run(needed)
        value = self._tried(0, lambda: _run_read(read, lambda i: self._of(i, 0)))
        error: type[ReadError] | None = None
        for k in range(1, len(self.rows)):
            other = self._tried(k, lambda k=k: _run_read(read, lambda i: self._of(i, k)))  # type: ignore[misc]
            if other is MISSING or _alike(other, value):
                continue
            of_rows = isinstance(value, list | np.ndarray | torch.Tensor) and len(value) == self.rows[0]
            if not of_rows or self.any_batch:
                error = RowsError if of_rows else ReadError
        first, second = copy.deepcopy((value, value))  # operations to come may write over what is read
        return first, second, error

    def _of(self, index: int, k: int) -> Any:
        values = self.values[index]
        assert values is not None
        return values[k]

    def _tried(self, k: int, function: Callable[[], Any]) -> Any:
        """`MISSING` where an operation does not run on batches of another size, and need not."""
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
        value = _rows_of(node.value, self.rows[k]) if node.kind == "extra" else node.value
        return value.detach().clone()  # operations may write over it

    def _memory(self, index: int) -> set[int]:
        """Where the value of a node lies, if it was run."""
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
        self.lowered |= getattr(fx.target, "__name__", "") == "_enter_autocast" and fx.args[2] is not False
        known = not self.lowered and _runs(fx.target) and all(self.known[i] is not None for i in read)
        written = _written(fx.target)
        if written:  # what was read before holds what it held
            _apart(lambda: self._run(set(range(len(self.nodes)))))
        if not known:
            given = [*enumerate(fx.args), *fx.kwargs.items()]
            self._spoil(pytree.tree_leaves([item for place, item in given if place in written]), fx in self.reached)
            return None
        args, kwargs = with_refs((fx.args, fx.kwargs), self.index_of)
        node = self._add("call", op=str(fx.target), target=fx.target, args=args, kwargs=kwargs)
        if written:
            self.writes.add(node.index)
            _apart(lambda: self._run({node.index}))
        return node

    def _spoil(self, written: list[Any], reached: bool) -> None:
        """Forget the values that lie where an unknown one was written to."""
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


def _traced(item: Any, tracer: Any) -> Any:
    """The node of the trace that computes a value, or what is no such value; `MISSING` where there is none."""
    if isinstance(item, torch.SymInt | torch.SymFloat | torch.SymBool):
        return MISSING
    if not isinstance(item, torch.Tensor):
        return item
    slot = get_proxy_slot(item, tracer, None)
    return MISSING if slot is None else slot.proxy.node


def _runs(target: Any) -> bool:
    """Whether an operation gives the same for the same values, and is one that can be run by itself."""
    if isinstance(target, torch._ops.OpOverload):
        return torch.Tag.nondeterministic_seeded not in target.tags
    return getattr(target, "__module__", "") in NUMBERS


def _written(target: Any) -> set[int | str]:
    """Which arguments an operation writes over, by place and name."""
    if not isinstance(target, torch._ops.OpOverload) or target._schema.name in WRITE_NOTHING:
        return set()
    found: set[int | str] = set()
    for place, argument in enumerate(target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found |= {place, argument.name}
    return found


def _run_read(read: Read, value_of: Callable[[int], Any]) -> Any:
    args, kwargs = map_refs((read.args, read.kwargs), lambda ref: value_of(ref.index))
    return read.function(*args, **kwargs)


def _rows_of(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    return tensor[:1].expand(rows, *tensor.shape[1:])


def _apart(function: Callable[[], Any]) -> Any:
    """A function's result, from a thread of its own: there nothing is traced."""

    def run() -> Any:
        with torch.no_grad():
            return function()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def _alike(a: Any, b: Any) -> bool:
    return _words(a) == _words(b)


def _words(value: Any) -> list[Any]:
    """A value in pieces that can be compared; NaN is NaN."""
    leaves, spec = pytree.tree_flatten(value)
    arrays = [leaf.detach().cpu().numpy() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    return [str(spec), *((a.dtype.str, a.shape, a.tobytes()) if isinstance(a, np.ndarray) else repr(a) for a in arrays)]


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(_words(value)).encode()).hexdigest()


def _where() -> str:
    """The line of the user's that is being traced, in words."""
    frame: Any = sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(FOLDERS):
        frame = frame.f_back
    return "" if frame is None else f" in {Path(frame.f_code.co_filename).name}, line {frame.f_lineno}"
