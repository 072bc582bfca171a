"""From a program that ``torch.export`` made to a `Captured` graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from yuzu._engine import ops
from yuzu._engine.capture.batch_size import Shapes
from yuzu._engine.capture.branches import Branches, Captured
from yuzu._engine.capture.errors import DRAWS, CaptureError
from yuzu._engine.capture.outputs import Recipe
from yuzu._engine.capture.recurrent import present
from yuzu._engine.capture.usual_names import with_usual_name
from yuzu._engine.capture.weight_names import layer_name, name_in_model, tensor_attribute
from yuzu._engine.graph import END, Node, Ref, refs_of, with_refs

BATCH_STATISTICS = "aten._native_batch_norm_legit_functional"
OUTPUTS = ("USER_OUTPUT", "BUFFER_MUTATION", "USER_INPUT_MUTATION")  # inputs are copies
OF_NUMBERS = ("_operator", "builtins", "math", "torch")  # modules whose functions a program may call
UNFOLLOWED = (
    "forward uses a tensor that the model holds outside of its parameters, buffers and attributes, such as the weight "
    "of a layer in a plain list: its changes could not be followed"
)


@dataclass(frozen=True)
class Traced:
    """A module's program, and what else is known of it.

    Attributes
    ----------
    module: torch.nn.Module
        The module that was traced.
    program: torch.export.ExportedProgram
    route: str
        How it was traced.
    held: set of int
        Memory addresses of the tensors that the model holds.
    branches: Branches
        The values that forward decides by.
    shapes: dict
        Shapes of the program's nodes that the program itself does not know.
    recipe: Recipe or None
        How the output is put together, if it is an object of the user's class.
    children: list of str or None
        The model's own names of the modules that the program numbers.
    """

    module: torch.nn.Module
    program: Any
    route: str
    held: set[int]
    branches: Branches
    shapes: Shapes = field(default_factory=dict)
    recipe: Recipe | None = None
    children: list[str] | None = None

    def name_of(self, target: str) -> str:
        """The name in the user's model of a parameter, buffer or attribute of the program."""
        return name_in_model(self.module, target, self.children)


def graph_of(traced: Traced) -> Captured:
    """The graph of a program.

    Raises
    ------
    CaptureError
        If it may not compute what the model computes.
    """
    reader = _Reader(traced)
    nodes, outputs = reader.nodes, reader.outputs
    signature = traced.program.graph_signature
    changed = {traced.name_of(s.target) for s in signature.output_specs if s.kind.name == "BUFFER_MUTATION"}
    remembered = changed & (traced.branches.weights | _weights_read(nodes, outputs))
    if remembered:
        raise CaptureError(
            f"forward changes {min(remembered)!r} and reads it: what it returns depends on the calls before"
        )
    spec, recipe = traced.program.call_spec.out_spec, traced.recipe
    rebuild: Callable[[list[Any]], Any] = recipe or (lambda values: pytree.tree_unflatten(values, spec))
    container = str(spec if recipe is None else recipe)
    return Captured(nodes, outputs, rebuild, container, traced.route, traced.branches)


class _Reader:
    """Reads a program node by node into ``nodes`` and ``outputs``."""

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        signature = traced.program.graph_signature
        self.specs = {spec.arg.name: spec for spec in signature.input_specs}
        self.nodes: list[Node] = []
        self.outputs: list[Any] = []
        self._index: dict[Any, int] = {}
        self._inputs = 0  # the number of the model's inputs that were met
        self._batches: list[Any] = []  # the sizes of the inputs' batches, which are one and the same
        kinds = [spec.kind.name for spec in signature.output_specs]
        for kind in kinds:
            if kind not in OUTPUTS:
                raise CaptureError(f"the exported model has an output of kind {kind}")
        for fx in traced.program.graph.nodes:
            if fx.op == "output":
                returned = [value for value, kind in zip(fx.args[0], kinds, strict=True) if kind == "USER_OUTPUT"]
            else:
                self._add(fx)
        if not any(n.kind == "sequence" for n in self.nodes):
            raise CaptureError("the model does not take the sequence as its first argument")
        self.outputs = [self._index[o] if isinstance(o, torch.fx.Node) else (o,) for o in returned]

    def _add(self, fx: torch.fx.Node) -> None:
        nodes = self.nodes
        if fx.op == "placeholder" and self.specs[fx.name].kind.name == "USER_INPUT":
            self._note_batch(fx)
        shape, dtype = _shape_and_dtype(fx.meta.get("val"), self._batches)
        shape = self.traced.shapes.get(fx, shape)
        layer = layer_name(fx, self.traced.children)
        node = Node(index=len(nodes), kind="call", shape=shape, dtype=dtype, layer=layer)
        if fx.op == "placeholder":
            self._take_input(node, self.specs[fx.name])
        elif fx.op == "call_function":
            self._take_call(node, fx)
        else:
            raise CaptureError(f"the exported model has a node {fx.op} {fx.target}")
        _forget_rows(node, nodes)
        read = [nodes[i] for i in refs_of((node.args[_read(node)], node.kwargs))]
        shape_only = ops.of(node.op).shape_only
        node.mutated = node.kind == "sequence" or (not shape_only and any(n.mutated for n in read))
        node.batched = node.kind in ("sequence", "extra") or any(n.batched for n in read)
        self._index[fx] = node.index
        nodes.append(node)

    def _note_batch(self, fx: torch.fx.Node) -> None:
        size = fx.meta["val"].shape[0]
        if not isinstance(size, int):
            self._batches.append(size.node.expr)
        elif not self.traced.shapes:
            raise CaptureError(f"forward works for a batch of {size} only")

    def _take_input(self, node: Node, spec: Any) -> None:
        kind = spec.kind.name
        if kind in ("PARAMETER", "BUFFER"):
            node.kind, node.key, node.layer = "weight", self.traced.name_of(spec.target), ""
        elif kind == "CONSTANT_TENSOR":
            self._take_constant(node, spec.target)
        elif kind == "USER_INPUT":
            node.kind = "sequence" if self._inputs == 0 else "extra"
            node.key = self._inputs - 1
            self._inputs += 1
        else:
            raise CaptureError(f"the exported model has an input of kind {kind}")

    def _take_constant(self, node: Node, target: str) -> None:
        traced = self.traced
        owner, value = tensor_attribute(traced.module, target), traced.program.constants[target]
        if owner is not None and value.shape == owner.shape:
            node.kind, node.key = "weight", traced.name_of(target)
            return
        node.kind, node.value = "constant", value
        if value.numel() and value.data_ptr() in traced.held:
            raise CaptureError(UNFOLLOWED)

    def _take_call(self, node: Node, fx: torch.fx.Node) -> None:
        node.target = present(fx.target)
        node.args, node.kwargs = with_refs((fx.args, fx.kwargs), self._index.__getitem__)
        with_usual_name(node, self.nodes)
        node.op = ops.name_of(node.target)
        # no two runs agree, so there is nothing to be exact about
        if _draws(node):
            raise CaptureError(f"{DRAWS} ({node.op}) in evaluation mode")
        target: Any = fx.target
        if not isinstance(target, torch._ops.OpOverload) and target.__module__ not in OF_NUMBERS:
            raise CaptureError(f"the exported model calls {node.op}")
        source: Any = fx.args[0] if fx.args else None
        if node.op == "aten.as_strided" and not source.meta["val"].is_contiguous():
            raise CaptureError("forward takes a view by strides of a tensor that is not contiguous")
        if _takes_rows(node, self.nodes):
            raise CaptureError(
                "forward splits the batch into pieces, and the number of pieces depends on the size of the batch"
            )


def _draws(node: Node) -> bool:
    """Tell whether a call draws random numbers. Dropout, a leaky ReLU with a random slope and attention with dropout do
    so while training; recurrent layers drop between their layers.
    """
    facts, tags = ops.of(node.op), getattr(node.target, "tags", ())
    if facts.recurrent:
        return bool(node.named("train") and node.named("dropout") and (node.named("num_layers") or 1) > 1)
    rate = node.named("dropout_p")
    if rate is not None:
        return bool(rate)
    if not (facts.draws or facts.dropout or torch.Tag.nondeterministic_seeded in tags):
        return False
    training = node.named("train") if node.named("train") is not None else node.named("training")
    return training is None or bool(training)


def _read(node: Node) -> slice:
    """The arguments that a node reads more of than shape and type."""
    if node.op == "aten.type_as":
        return slice(1)
    return slice(1, None) if ops.of(node.op).made_like else slice(None)


def _weights_read(nodes: list[Node], outputs: list[Any]) -> set[str]:
    """The parameters and buffers whose values the outputs are made of."""
    read: set[int] = {o for o in outputs if isinstance(o, int)}
    for node in reversed(nodes):
        facts = ops.of(node.op)
        if node.index in read and not facts.shape_only:
            args = node.args[1:] if facts.overwrites else node.args
            if node.op == BATCH_STATISTICS and node.argument(5, "training"):
                args = (*args[:3], *args[5:])  # the running ones are written only
            read.update(refs_of((args, node.kwargs)))
    return {node.key for node in nodes if node.index in read and node.kind == "weight"}


def _forget_rows(node: Node, nodes: list[Node]) -> None:
    """Make a tensor that has the shape of one row, as ``zeros_like(x[:1])`` has, from its sizes: these do not depend on
    the batch.
    """
    made = {"aten.zeros_like": "zeros", "aten.ones_like": "ones", "aten.full_like": "full"}.get(node.op)
    if made is None or not node.shape or any(size is None or size < 0 for size in node.shape):
        return
    like = source = nodes[node.args[0].index]
    while like.op in ("aten.select", "aten.slice") and like.batched:
        like = nodes[like.args[0].index]
    if like is source:
        return
    node.op, node.target = f"aten.new_{made}", getattr(torch.ops.aten, f"new_{made}").default
    node.args = (Ref(like.index), list(node.shape), *node.args[1:])
    node.kwargs = {key: value for key, value in node.kwargs.items() if key != "memory_format"}


def _takes_rows(node: Node, nodes: list[Node]) -> bool:
    """Return whether a node takes a fixed number of rows of a batch, which is all of one as small as it was traced
    with.
    """
    if not node.shape or node.shape[0] is not None or not node.args or not isinstance(node.args[0], Ref):
        return False
    source = nodes[node.args[0].index]
    if node.op == "operator.getitem" and source.op == "aten.split":
        axis, size = source.argument(2, "dim", 0), source.argument(1, "split_size")
    elif node.op == "aten.slice":
        axis, size = node.argument(1, "dim", 0), node.argument(3, "end", END)
    else:
        return False
    return axis % len(node.shape) == 0 and type(size) is int and size != END


def _shape_and_dtype(value: Any, batches: list[Any]) -> tuple[tuple[int | None, ...] | None, torch.dtype | None]:
    if not isinstance(value, torch.Tensor):
        return None, None
    return tuple(s if isinstance(s, int) else None if s.node.expr in batches else -1 for s in value.shape), value.dtype


__all__ = ["Traced", "graph_of"]
