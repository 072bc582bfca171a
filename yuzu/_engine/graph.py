"""A model as a list of operations in order.

A `Graph` holds no weights. Parameters and buffers are named, and looked up in the model each time the graph runs, so
that their current values are used.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

END = 2**63 - 1  # the end of a slice that goes to the last element


@dataclass(frozen=True)
class Ref:
    """Stands for the value of the node at ``index`` among the arguments of another node."""

    index: int


def map_refs(structure: Any, function: Callable[[Ref], Any]) -> Any:
    """A structure (nested tuples, lists, dicts, slices) with ``function`` applied to every `Ref`."""
    if isinstance(structure, Ref):
        return function(structure)
    if isinstance(structure, tuple | list):
        return type(structure)(map_refs(item, function) for item in structure)
    if isinstance(structure, dict):
        return {key: map_refs(item, function) for key, item in structure.items()}
    if isinstance(structure, slice):
        return slice(*(map_refs(item, function) for item in (structure.start, structure.stop, structure.step)))
    return structure


def with_refs(structure: Any, index_of: Callable[[torch.fx.Node], int]) -> Any:
    """The arguments of a node of ``torch.fx`` in plain containers, with a `Ref` instead of every other node."""
    if isinstance(structure, torch.fx.Node):
        return Ref(index_of(structure))
    if isinstance(structure, tuple | list):
        items = [with_refs(item, index_of) for item in structure]
        return items if type(structure) is list else tuple(items)
    if isinstance(structure, dict):
        return {key: with_refs(item, index_of) for key, item in structure.items()}
    if isinstance(structure, slice):
        return slice(*(with_refs(item, index_of) for item in (structure.start, structure.stop, structure.step)))
    return structure


def refs_of(structure: Any) -> Iterator[int]:
    """The indices of all nodes that ``structure`` refers to."""
    found: list[int] = []
    map_refs(structure, lambda ref: found.append(ref.index))
    return iter(found)


@dataclass
class Node:
    """One operation.

    Attributes
    ----------
    index: int
        Its place in the graph; arguments refer to smaller indices only.
    kind: str
        ``"sequence"`` (the mutated input), ``"extra"`` (another input, ``key`` its number), ``"weight"`` (a
        parameter, buffer or tensor attribute, or a tensor that a packed one holds, ``key`` its name in the model),
        ``"constant"`` (a tensor made while capturing, ``value``), ``"call"``.
    op: str
        Canonical name of the operation, such as ``"aten.conv1d"`` (without overload); empty unless
        ``"call"``.
    target: callable
        The function that computes it.
    args, kwargs:
        Its arguments, with a `Ref` instead of the value of another node.
    layer: str
        The user's own name of the module it comes from; empty for the model's own ``forward``.
    shape: tuple or None
        Shape of the result, None on the batch's axis, -1 on an axis whose size depends on the batch in
        another way; None if the result is no tensor.
    dtype: torch.dtype or None
        Dtype of the result; None if that is no tensor.
    mutated: bool
        True if it depends on the letters of the mutated sequence.
    batched: bool
        True if it depends on any input or on the batch size.
    rows: tuple of int or None
        The rows of a weight that are used; None for all.
    columns: (int, int) or None
        The range of a weight's second axis that is used; None for all.
    """

    index: int
    kind: str
    op: str = ""
    target: Any = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    key: Any = None
    value: torch.Tensor | None = None
    layer: str = ""
    shape: tuple[int | None, ...] | None = None
    dtype: torch.dtype | None = None
    mutated: bool = False
    batched: bool = False
    rows: tuple[int, ...] | None = None
    columns: tuple[int, int] | None = None

    @property
    def inputs(self) -> list[int]:
        """Indices of the nodes it reads, in order, with repeats."""
        return list(refs_of((self.args, self.kwargs)))

    @property
    def floating(self) -> bool:
        """Return whether the result is a tensor of floating point or complex numbers, and not of bools or integers."""
        return self.dtype is not None and (self.dtype.is_floating_point or self.dtype.is_complex)

    @property
    def label(self) -> str:
        """The layer's name, or the operation's if the layer has none."""
        return self.layer or self.op.removeprefix("aten.") or self.kind

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """The argument at ``position``, or called ``name``; ``default`` if it was left out."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    def named(self, name: str) -> Any:
        """The argument that the operation's schema calls ``name``, or its default; None if it has no such argument."""
        place, default = self._place_of(name)
        return None if place is None else self.argument(place, name, default)

    def with_named(self, name: str, value: Any) -> Node:
        """The node with another value for the argument that the operation's schema calls ``name``."""
        place, _ = self._place_of(name)
        if place is not None and place < len(self.args):
            return replace(self, args=(*self.args[:place], value, *self.args[place + 1 :]))
        return replace(self, kwargs={**self.kwargs, name: value})

    def _place_of(self, name: str) -> tuple[int | None, Any]:
        target = self.target
        while isinstance(target, Result | OfSlice):
            target = target.target
        schema = getattr(target, "_schema", None)
        for place, argument in enumerate(schema.arguments if schema is not None else ()):
            if argument.name == name:
                return place, argument.default_value
        return None, None


class Result:
    """A node's target: one of the results of an operation that returns several."""

    def __init__(self, target: Any, place: int = 0) -> None:
        self.target, self.place = target, place

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.target(*args, **kwargs)[self.place]

    def __str__(self) -> str:
        return f"{self.target}[{self.place}]"


class Recurrence:
    """A node's target: one recurrent layer in one direction, from states of zero: ``(N, L, C)`` to ``(N, L, H)``.

    Parameters
    ----------
    target: callable
        PyTorch's operation, such as ``torch.ops.aten.lstm.input``.
    has_biases, reverse: bool
    """

    def __init__(self, target: Any, has_biases: bool, reverse: bool) -> None:
        self.target, self.has_biases, self.reverse = target, has_biases, reverse

    def __call__(self, x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
        result, _ = self.run(x.flip(1) if self.reverse else x, weights, self.zeros(x, weights))
        return result.flip(1) if self.reverse else result

    def zeros(self, x: torch.Tensor, weights: list[torch.Tensor]) -> list[torch.Tensor]:
        """The states that each row begins with: hidden, and for an LSTM those of the cell."""
        size = weights[1].shape[1]
        sizes = [size]
        if self.target is torch.ops.aten.lstm.input:
            cells = weights[-1].shape[1] if len(weights) in (3, 5) else size
            sizes = [size, cells]
        return [x.new_zeros(1, len(x), s) for s in sizes]

    def run(
        self, x: torch.Tensor, weights: list[torch.Tensor], states: list[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The outputs in the order of ``x``, whichever the direction, and the states after them."""
        given = states if self.target is torch.ops.aten.lstm.input else states[0]
        result, *after = self.target(x, given, weights, self.has_biases, 1, 0.0, False, False, True)
        return result, after

    def __str__(self) -> str:
        return f"{self.target}, {'reverse' if self.reverse else 'forward'}, biases {self.has_biases}"


class OfSlice:
    """A node's target: a reduction along ``axis`` from ``start`` to ``stop``."""

    def __init__(self, target: Any, axis: int, start: int, stop: int) -> None:
        self.target, self.axis, self.start, self.stop = target, axis, start, stop

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.target(x.narrow(self.axis, self.start, self.stop - self.start), *args, **kwargs)

    def __str__(self) -> str:
        return f"{self.target} of {self.start} to {self.stop} on axis {self.axis}"


def count_readers(nodes: list[Node], outputs: list[Any]) -> list[int]:
    """The number of nodes that read each node; a node that is returned is read once more for that."""
    readers = [0] * len(nodes)
    for node in nodes:
        for i in dict.fromkeys(node.inputs):
            readers[i] += 1
    for o in outputs:
        if isinstance(o, int):
            readers[o] += 1
    return readers


@dataclass
class Graph:
    """Operations in order, and how the output is made of their values.

    Attributes
    ----------
    nodes: list of Node
    outputs: list
        For each leaf of the output, the index of a node, or a tuple with a constant.
    rebuild: callable
        Makes the output of a list of its leaves.
    container: str
        The containers that the output is made of, in words.
    route: str
        How the model was captured.
    """

    nodes: list[Node]
    outputs: list[Any]
    rebuild: Callable[[list[Any]], Any]
    container: str
    route: str

    def __post_init__(self) -> None:
        self.consumers: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for i in dict.fromkeys(node.inputs):
                self.consumers[i].append(node.index)

    @property
    def output_nodes(self) -> list[int]:
        """Indices of the returned nodes, without constants."""
        return [i for i in self.outputs if isinstance(i, int)]

    def fingerprint(self, names: bool = True) -> str:
        """A digest of operations, their integer arguments, shapes and connections, and the ``names`` of weights.

        Floating point arguments, weights and dtypes are left out: a precomputation does not depend on them.
        """

        def plain(item: Any) -> Any:
            if isinstance(item, Ref):
                return ["ref", item.index]
            if isinstance(item, tuple | list):
                return [plain(i) for i in item]
            if isinstance(item, dict):
                return {k: plain(v) for k, v in sorted(item.items()) if k not in ("dtype", "device")}
            if isinstance(item, float | complex | torch.dtype | torch.device):
                return "value"
            if isinstance(item, slice):
                return ["slice", plain(item.start), plain(item.stop), plain(item.step)]
            return str(item)

        keys = ["" if n.kind == "weight" and not names else str(n.key) for n in self.nodes]
        rows = [
            [n.kind, n.op, _name_of(n), plain(n.args), plain(n.kwargs), key, plain(n.shape)]
            for n, key in zip(self.nodes, keys, strict=True)
        ]
        text = json.dumps([rows, [str(o) for o in self.outputs], self.container, self.route])
        return hashlib.sha256(text.encode()).hexdigest()


def _name_of(node: Node) -> str:
    """The operation with its overload; only the name of a Python function, as its text has its address in memory."""
    return node.op if inspect.isfunction(node.target) else str(node.target)


class Weights:
    """A model's parameters, buffers and tensor attributes by name, on one device, at their current values."""

    def __init__(self, model: torch.nn.Module, device: torch.device) -> None:
        self.model, self.device = model, device
        self._moved: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._moved.get(name)
        if tensor is None:
            tensor = operator.attrgetter(name)(self.model).detach().to(self.device)
            if tensor.is_inference() and not torch.is_inference_mode_enabled():
                tensor = tensor.clone()  # so that autograd may keep it for the gradients of `hybrid_ism`
            self._moved[name] = tensor
        return tensor


def evaluate(node: Node, value_of: Callable[[int], Any], device: torch.device) -> Any:
    """Run a ``"call"`` node on the values of its inputs."""
    args = map_refs(node.args, lambda ref: value_of(ref.index))
    kwargs = map_refs(node.kwargs, lambda ref: value_of(ref.index))
    if "device" in kwargs:
        kwargs["device"] = device
    return node.target(*args, **kwargs)
