"""From a model to a `Graph`.

First road: ``torch.export`` (non-strict, dynamic batch), functionalised where that changes anything, so that in-place
operations and views need no care later; for two batch sizes where the model makes an integer of it (`batch_size`).
Second road: the model's ``children()`` in order, taken only when a recording of ``forward`` shows exactly the
operations of the children in order and no look at tensor values; agreeing on one input would prove nothing. Otherwise
the reason is raised and the model runs naively.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.overrides import _get_current_function_mode_stack, _pop_mode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from yuzu._engine.capture.batch_size import Shapes, find_batch_size
from yuzu._engine.capture.branches import Branches, Captured, ReadError, Reading, RowsError
from yuzu._engine.capture.decompositions import decompositions
from yuzu._engine.capture.encoders import make_traceable
from yuzu._engine.capture.model_copy import evaluation_copy, held_tensors, inner_tensors, is_packed
from yuzu._engine.capture.outputs import objects_taken_apart
from yuzu._engine.capture.quiet import quiet
from yuzu._engine.capture.recurrent import OPERATIONS, Unrolled, draws, kept_whole, present
from yuzu._engine.capture.unrolled_vmap import vmap_unrolled
from yuzu._engine.capture.usual_names import with_usual_name
from yuzu._engine.gate import tracing
from yuzu._engine.graph import Node, Ref, refs_of, with_refs
from yuzu._engine.handlers import BUILT_IN
from yuzu._engine.rewrite.batch_first import batch_first
from yuzu._engine.rewrite.batch_parts import take_batch_apart
from yuzu._engine.rewrite.pools_first import pools_first
from yuzu._engine.rewrite.separate import separate_joined
from yuzu._engine.rewrite.simplify import COPIES, END, simplify, without_unread

# Results of these depend on their first argument's shape alone.
SHAPE_ONLY = {
    "aten.zeros_like",
    "aten.ones_like",
    "aten.full_like",
    "aten.new_zeros",
    "aten.new_ones",
    "aten.new_full",
    "aten.sym_size",
}
MADE_LIKE = ("aten.new_zeros", "aten.new_ones", "aten.new_full", "aten.new_empty")
# Of these, too: nothing is left of what the first argument held.
OVERWRITES = {"aten.copy", "aten.fill", "aten.zero"}
# What these return is drawn anew at each call: no two runs agree, so there is nothing to be exact about.
RANDOM = {
    "aten.rand",
    "aten.randn",
    "aten.rand_like",
    "aten.randn_like",
    "aten.bernoulli",
    "aten.randint",
    "aten.randperm",
    "aten.normal",
}
DRAWS = "forward draws random numbers"
DROPOUTS = {
    "aten.dropout",
    "aten.feature_dropout",
    "aten.alpha_dropout",
    "aten.feature_alpha_dropout",
    "aten.native_dropout",
}
# With their sixth argument these use the batch's own statistics, and may write them into the model.
NORMS = {"aten.batch_norm", "aten.instance_norm"}
BATCH_STATISTICS = "aten._native_batch_norm_legit_functional"
EXAMPLE_BATCH = 3  # not 0 or 1, on which export specialises
OTHER_BATCH = 5


class CaptureError(Exception):
    """Why a model could not be captured; and the decisions of its forward that led there, if others may not."""

    def __init__(self, reason: str, branches: Branches | None = None) -> None:
        super().__init__(reason)
        self.branches = branches or Branches()


def capture(
    model: torch.nn.Module,
    shape: tuple[int, int],
    args: tuple[torch.Tensor, ...],
    dtype: torch.dtype,
    share: bool = False,
) -> Captured:
    """Capture ``model`` for sequences of ``shape`` ``(C, L)`` and more inputs like ``args``; on its own parameters, if
    it is known to write to none and these may be ``share``d.

    Raises
    ------
    CaptureError
        If neither road leads to a graph that is certain to compute what the model computes.
    """
    device = next((t.device for t in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
    with tracing(), torch.autocast(device.type, enabled=False):
        return _capture(evaluation_copy(model, share=share), shape, args, dtype, device)


def _capture(
    twin: torch.nn.Module,
    shape: tuple[int, int],
    args: tuple[torch.Tensor, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Captured:
    make_traceable(twin)
    _without_empty_buffers(twin)
    X = torch.zeros(EXAMPLE_BATCH, *shape, dtype=dtype, device=device)
    X[:, 0] = 1
    try:
        held = held_tensors(twin)  # before tracing, which may leave tensors behind that have no memory
    except Exception as error:  # an attribute may raise whatever it likes
        raise CaptureError(_first_line(error)) from error
    rest = tuple(a[:1].detach().to(device).expand(EXAMPLE_BATCH, *a.shape[1:]).clone() for a in args)
    trace = _Tracing(twin, (X, *rest), held)
    reason = trace.attempt(symbols=False)
    if "register it as buffer" in reason:
        _attributes_as_buffers(twin)
        reason = trace.attempt(symbols=False)
    if trace.by_symbols:  # with the values that they stand for, the sizes of all tensors are known
        other = trace.attempt(symbols=True)
        reason = other if trace.decides else reason
    if trace.found is not None:
        return trace.found
    try:
        if not rest and _forward_is_children_in_order(twin, X):
            return _exported(
                torch.nn.Sequential(*twin.children()),
                (X,),
                held,
                "children",
                names=[n for n, _ in twin.named_children()],
            )
    except Exception as error:
        reason = f"{reason}; children in order: {_first_line(error)}"
    raise CaptureError(reason, trace.readings[-1].branches() if trace.readings else None)


def _without_empty_buffers(twin: torch.nn.Module) -> None:
    """Make attributes of a copy's buffers that hold nothing: export takes another for one that is given a tensor."""
    for module in twin.modules():
        for name in [name for name, buffer in module._buffers.items() if buffer is None]:
            del module._buffers[name]
            module.__dict__[name] = None


def _attributes_as_buffers(twin: torch.nn.Module) -> None:
    """Register a copy's tensors that are attributes, of which export does not follow what is written to them."""
    for module in twin.modules():
        for name, value in list(module.__dict__.items()):
            if isinstance(value, torch.Tensor):
                del module.__dict__[name]
                module.register_buffer(name, value, persistent=False)


class _Tracing:
    """Attempts to trace a model. ``found`` is what the last that succeeded gave."""

    def __init__(self, twin: torch.nn.Module, inputs: tuple[torch.Tensor, ...], held: set[int]) -> None:
        self.twin, self.inputs, self.held = twin, inputs, held
        self.found: Captured | None = None
        self.readings: list[Reading] = []
        self.decides = False  # whether it is known which value that forward decides by is in the way

    @property
    def by_symbols(self) -> bool:
        """Whether symbols of values stand in the way of a trace, or of knowing all sizes."""
        last = self.readings[-1] if self.readings else None
        return last is not None and last.symbols and (self.found is None or last.sizes)

    def attempt(self, symbols: bool) -> str:
        """Trace; why that failed, or nothing."""
        try:
            self.found = self._exported("export", symbols)
            return ""
        except Unrolled as error:  # no other road is shorter
            raise CaptureError(str(error)) from None
        except Exception as error:  # export raises many kinds; the reason is kept for the warning
            reason, by_size = self._why(error), isinstance(error, RowsError)
        if by_size or "Constraints violated" in reason:  # by an integer made of the batch size
            try:
                self.found = self._exported("two batches", symbols)
            except Exception as error:
                reason = f"{reason}; for two batch sizes: {self._why(error)}"
        return reason

    def _exported(self, road: str, symbols: bool) -> Captured:
        def reading(rows: tuple[int, ...]) -> Reading:
            any_batch = road != "two batches"
            self.readings.append(Reading(self.twin, self.inputs, self.held, rows, any_batch, symbols))
            return self.readings[-1]

        return _exported(self.twin, self.inputs, self.held, road, reading=reading)

    def _why(self, error: Exception) -> str:
        self.decides |= isinstance(error, ReadError)
        return _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    what = lines[0][:200] if lines else "no message"
    return what if isinstance(error, CaptureError | ReadError) else f"{type(error).__name__}: {what}"


def _loud() -> list[logging.Logger]:
    """The loggers that torch.export tells what the user gets in one warning, with the reason, from us."""
    known = logging.root.manager.loggerDict
    loggers = [log for name, log in known.items() if name.startswith("torch") and isinstance(log, logging.Logger)]
    names = ("torch", "torch.fx", "torch._dynamo", "torch.export", "torch._export")
    return [*loggers, *(logging.getLogger(name) for name in (*names, "torch.fx.experimental.symbolic_shapes"))]


@contextlib.contextmanager
def _modes_restored() -> Iterator[None]:
    """Leave no function mode in force: an export that fails may leave its own, and then `Reading` would see all that
    the thread computes later.
    """
    before = len(_get_current_function_mode_stack())
    try:
        yield
    finally:
        while len(_get_current_function_mode_stack()) > before:
            _pop_mode()


def _export(
    module: torch.nn.Module,
    inputs: tuple[torch.Tensor, ...],
    reading: Callable[[], Reading] | None,
    any_batch: bool = True,
) -> tuple[Any, Branches]:
    from torch.export import Dim, export

    dims: list[Any] = [{0: Dim.DYNAMIC} if any_batch else None for _ in inputs]
    # a model that takes *args wants the dynamic shapes of those nested
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except ValueError:  # a compiled forward has no signature
        parameters = []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind == p.VAR_POSITIONAL for p in parameters) and len(inputs) > len(positional):
        dims = [*dims[: len(positional)], tuple(dims[len(positional) :])]
    # a forward that switches gradients on or off makes a region of its own, unless they are so already
    for gradients in (torch.no_grad, torch.enable_grad):
        read = None if reading is None else reading()
        try:
            with _modes_restored(), quiet(_loud()), gradients(), kept_whole(module):
                with vmap_unrolled(), contextlib.nullcontext() if read is None else read:
                    program = export(module, inputs, dynamic_shapes=tuple(dims), strict=False)
                if read is not None:
                    read.sizes = _sizes_by_symbols(program)
                program = program if _functional(program) else program.run_decompositions(decompositions())
                return program, Branches() if read is None else read.branches()
        except IndexError:
            if gradients is torch.enable_grad:
                raise
    raise AssertionError("unreachable")


def _sizes_by_symbols(program: Any) -> bool:
    """Whether a tensor's size is a value that is not known while tracing."""
    values = [fx.meta.get("val") for fx in program.graph.nodes]
    sizes = [size for v in values if isinstance(v, torch.Tensor) for size in v.shape]
    symbols: list[Any] = [size for size in sizes if isinstance(size, torch.SymInt)]
    return any(size.node.expr.is_Integer or free_unbacked_symbols(size) for size in symbols)  # by now, or still


def _functional(program: Any) -> bool:
    """Whether an exported program writes over nothing, and all its operations have handlers of ours as they are: then
    nothing is gained by tracing it once more, which takes as long as the export. (Were handlers of the user's to count,
    a model would give one graph with them and another without.)
    """
    for fx in program.graph.nodes:
        if fx.op in ("placeholder", "output") or _picks_a_state(fx):
            continue
        if fx.op != "call_function" or not isinstance(fx.target, torch._ops.OpOverload) or fx.target._schema.is_mutable:
            return False
        name = _canonical_name(present(fx.target))
        pointwise = torch.Tag.pointwise in fx.target.tags and torch.Tag.nondeterministic_seeded not in fx.target.tags
        if not (pointwise or name in BUILT_IN or name in COPIES or name in SHAPE_ONLY or name in OPERATIONS):
            return False
        if name in NORMS and (len(fx.args) < 6 or fx.args[5] is not False):
            return False
    return True


def _picks_a_state(fx: torch.fx.Node) -> bool:
    """Whether a node is one of a recurrent layer's results."""
    source: Any = fx.args[0] if fx.target is operator.getitem else None
    return source is not None and _canonical_name(present(source.target)) in OPERATIONS


def _exported(
    module: torch.nn.Module,
    inputs: tuple[torch.Tensor, ...],
    held: set[int],
    road: str,
    names: list[str] | None = None,
    reading: Callable[[tuple[int, ...]], Reading] | None = None,
) -> Captured:
    def of_rows(*rows: int) -> Callable[[], Reading] | None:
        return None if reading is None else functools.partial(reading, rows)

    shapes: Shapes = {}
    with objects_taken_apart(module) as recipes:
        if road == "two batches":
            program, branches = _export(module, inputs, of_rows(EXAMPLE_BATCH, 1), any_batch=False)
            more = tuple(torch.cat([t, t[: OTHER_BATCH - EXAMPLE_BATCH]]) for t in inputs)
            other, _ = _export(module, more, of_rows(OTHER_BATCH, 1), any_batch=False)
            shapes = find_batch_size(program, other, (EXAMPLE_BATCH, OTHER_BATCH))
        else:
            program, branches = _export(module, inputs, of_rows(1, EXAMPLE_BATCH))
    signature = program.graph_signature
    kinds = [spec.kind.name for spec in signature.output_specs]
    for kind in kinds:
        if kind not in ("USER_OUTPUT", "BUFFER_MUTATION", "USER_INPUT_MUTATION"):  # inputs are copies
            raise CaptureError(f"the exported model has an output of kind {kind}")

    def live_name(target: str) -> str:
        target = _inside_packed(module, target)
        if names is None:
            return target
        head, _, tail = target.partition(".")
        return f"{names[int(head)]}.{tail}" if head.isdigit() else target

    nodes: list[Node] = []
    index: dict[Any, int] = {}
    specs = {spec.arg.name: spec for spec in signature.input_specs}
    user_inputs = 0
    output: Any = None
    batches: list[Any] = []  # the sizes of the inputs' batches, which are one and the same

    for fx in program.graph.nodes:
        if fx.op == "output":
            output = [value for value, kind in zip(fx.args[0], kinds, strict=True) if kind == "USER_OUTPUT"]
            continue
        if fx.op == "placeholder" and specs[fx.name].kind.name == "USER_INPUT":
            size = fx.meta["val"].shape[0]
            if not isinstance(size, int):
                batches.append(size.node.expr)
            elif not shapes:
                raise CaptureError(f"forward works for a batch of {size} only")
        shape, dtype = _shape_and_dtype(fx.meta.get("val"), batches)
        shape = shapes.get(fx, shape)
        node = Node(index=len(nodes), kind="call", shape=shape, dtype=dtype, layer=_layer_name(fx, names))
        if fx.op == "placeholder":
            spec = specs[fx.name]
            kind = spec.kind.name
            if kind in ("PARAMETER", "BUFFER"):
                node.kind, node.key, node.layer = "weight", live_name(spec.target), ""
            elif kind == "CONSTANT_TENSOR":
                owner = _tensor_attribute(module, spec.target)
                if owner is not None and program.constants[spec.target].shape == owner.shape:
                    node.kind, node.key = "weight", live_name(spec.target)
                else:
                    node.kind, node.value = "constant", program.constants[spec.target]
                    if node.value.numel() and node.value.data_ptr() in held:
                        raise CaptureError(
                            "forward uses a tensor that the model holds outside of its parameters, buffers and "
                            "attributes, "
                            "such as the weight of a layer in a plain list: its changes could not be followed"
                        )
            elif kind == "USER_INPUT":
                node.kind = "sequence" if user_inputs == 0 else "extra"
                node.key = user_inputs - 1
                user_inputs += 1
            else:
                raise CaptureError(f"the exported model has an input of kind {kind}")
        elif fx.op == "call_function":
            node.target = present(fx.target)
            node.args, node.kwargs = with_refs((fx.args, fx.kwargs), index.__getitem__)
            with_usual_name(node, nodes)
            node.op = _canonical_name(node.target)
            if node.op in RANDOM or (node.op in DROPOUTS and node.argument(2, "train", True)) or draws(node):
                raise CaptureError(f"{DRAWS} ({node.op}) in evaluation mode")
            if not isinstance(fx.target, torch._ops.OpOverload) and fx.target.__module__ not in (
                "_operator",
                "builtins",
                "math",
                "torch",
            ):
                raise CaptureError(f"the exported model calls {node.op}")
            if node.op == "aten.as_strided" and not fx.args[0].meta["val"].is_contiguous():
                raise CaptureError("forward reads by strides what does not lie in memory in order")
            if _takes_rows(node, nodes):
                raise CaptureError("forward takes batches apart, of which larger ones have more pieces")
        else:
            raise CaptureError(f"the exported model has a node {fx.op} {fx.target}")
        _forget_rows(node, nodes)
        # of the second argument of type_as only the type matters, as of the first of new_zeros
        ignored = {"aten.type_as": slice(1), **dict.fromkeys(MADE_LIKE, slice(1, None))}.get(node.op, slice(None))
        read = [nodes[i] for i in refs_of((node.args[ignored], node.kwargs))]
        node.mutated = node.kind == "sequence" or (node.op not in SHAPE_ONLY and any(n.mutated for n in read))
        node.batched = node.kind in ("sequence", "extra") or any(n.batched for n in read)
        index[fx] = node.index
        nodes.append(node)

    if not any(n.kind == "sequence" for n in nodes):
        raise CaptureError("the model does not take the sequence as its first argument")
    leaves = [index[o] if isinstance(o, torch.fx.Node) else (o,) for o in output]
    changed = {live_name(s.target) for s in signature.output_specs if s.kind.name == "BUFFER_MUTATION"}
    remembered = changed & (branches.weights | _weights_read(nodes, leaves))
    if remembered:
        raise CaptureError(
            f"forward changes {min(remembered)!r} and reads it: what it returns depends on the calls before"
        )
    spec = program.call_spec.out_spec
    recipe = recipes[-1] if recipes else None
    rebuild = recipe or (lambda values: pytree.tree_unflatten(values, spec))
    nodes, leaves, _ = batch_first(*simplify(nodes, leaves))
    nodes, leaves = take_batch_apart(*without_unread(nodes, leaves))
    nodes, leaves = separate_joined(*pools_first(nodes, leaves))
    return Captured(nodes, leaves, rebuild, str(spec if recipe is None else recipe), road, branches)


def _weights_read(nodes: list[Node], outputs: list[Any]) -> set[str]:
    """The parameters and buffers of whose values the outputs are made."""
    read: set[int] = {o for o in outputs if isinstance(o, int)}
    for node in reversed(nodes):
        if node.index in read and node.op not in SHAPE_ONLY:
            args = node.args[1:] if node.op in OVERWRITES else node.args
            if node.op == BATCH_STATISTICS and node.argument(5, "training"):
                args = (*args[:3], *args[5:])  # running ones are written only
            read.update(refs_of((args, node.kwargs)))
    return {node.key for node in nodes if node.index in read and node.kind == "weight"}


def _forget_rows(node: Node, nodes: list[Node]) -> None:
    """Make what has the shape of one row, such as ``zeros_like(x[:1])``, from its sizes: no batch is in it."""
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
    """Whether a node takes so many rows of a batch, which are all only of one as small as it was traced with."""
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


def _canonical_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target._schema.name.split('::')[1]}"
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', str(target))}".lstrip("_")


def _layer_name(fx: torch.fx.Node, names: list[str] | None) -> str:
    stack = fx.meta.get("nn_module_stack") or {}
    if not stack or fx.op == "placeholder":
        return ""
    name = str(list(stack.values())[-1][0]).removeprefix("L['self'].").removeprefix("L__self__").split("@")[0]
    if name.startswith("_empty_nn_module_stack"):
        return ""
    if names is not None:
        head, _, tail = name.partition(".")
        if head.isdigit():
            name = names[int(head)] + (f".{tail}" if tail else "")
    return name


def _inside_packed(module: torch.nn.Module, target: str) -> str:
    """The name of what export took out of a packed parameter, ``fc.parametrizations.weight.original1``, as it is in the
    model, ``fc.weight.scale``; that of others as it is.
    """
    owner, found, rest = target.rpartition(".parametrizations.")
    if not found:
        owner, (_, found, rest) = "", target.rpartition("parametrizations.")
    name, _, which = rest.partition(".original")
    if not found or not which.isdigit():
        return target
    tensor = _tensor_attribute(module, f"{owner}.{name}")
    if tensor is None or not is_packed(tensor):
        return target
    return ".".join(part for part in (owner, name, list(inner_tensors(tensor))[int(which)]) if part)


def _tensor_attribute(module: torch.nn.Module, name: str) -> torch.Tensor | None:
    owner, _, attribute = name.rpartition(".")
    try:
        value = getattr(module.get_submodule(owner), attribute)
    except AttributeError:
        return None
    return value if isinstance(value, torch.Tensor) else None


class _Recorder(TorchDispatchMode):
    """Writes down every operation with the shapes it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        constants = [a for a in pytree.tree_leaves((args, kwargs or {})) if not isinstance(a, torch.Tensor)]
        shapes = [tuple(t.shape) for t in pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
        self.calls.append(f"{func} {constants} {shapes}")
        return result


class _Opaque(torch.Tensor):
    """A tensor whose values cannot be read from Python: any look at content raises."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=inner.device, strides=inner.stride()
        )

    bare: torch.Tensor

    def __init__(self, inner: torch.Tensor) -> None:
        self.bare = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if str(func) in ("aten._local_scalar_dense.default", "aten.equal.default", "aten.is_nonzero.default"):
            raise CaptureError("forward looks at the content of a tensor")
        bare = pytree.tree_map(lambda t: t.bare if isinstance(t, _Opaque) else t, (args, kwargs or {}))
        result = func(*bare[0], **bare[1])
        return pytree.tree_map(lambda t: _Opaque(t) if isinstance(t, torch.Tensor) else t, result)


def _forward_is_children_in_order(model: torch.nn.Module, X: torch.Tensor) -> bool:
    children = list(model.children())
    if not children:
        return False

    def in_order(value: Any) -> Any:
        for child in children:
            value = child(value)
        return value

    def recorded(function: Callable[[Any], Any]) -> list[str]:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _Recorder() as recorder:
            function(_Opaque(X.clone()))
        return recorder.calls

    return recorded(model) == recorded(in_order)
