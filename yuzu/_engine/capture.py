"""From a model to a `Graph`.

First road: ``torch.export`` (non-strict, dynamic batch), functionalised where that changes anything, so that in-place
operations and views need no care later; for two batch sizes where the model makes an integer of it (`batch_size`).
Second road: the model's ``children()`` in order, taken only when a recording of ``forward`` shows exactly the
operations of the children in order and no look at tensor values; agreeing on one input would prove nothing. Otherwise
the reason is raised and the model runs naively.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from yuzu._engine.batch_parts import take_batch_apart
from yuzu._engine.batch_size import Shapes, find_batch_size
from yuzu._engine.decompositions import decompositions
from yuzu._engine.gate import tracing
from yuzu._engine.graph import Graph, Node, Ref
from yuzu._engine.handlers import BUILT_IN
from yuzu._engine.model_copy import evaluation_copy, held_tensors
from yuzu._engine.reorder import pools_first
from yuzu._engine.separate import separate_joined
from yuzu._engine.simplify import COPIES, END, simplify

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
DROPOUTS = {
    "aten.dropout",
    "aten.feature_dropout",
    "aten.alpha_dropout",
    "aten.feature_alpha_dropout",
    "aten.native_dropout",
}
# With their sixth argument these use the batch's own statistics, and may write them into the model.
NORMS = {"aten.batch_norm", "aten.instance_norm"}
EXAMPLE_BATCH = 3  # not 0 or 1, on which export specialises
OTHER_BATCH = 5


class CaptureError(Exception):
    """Why a model could not be captured."""


def capture(
    model: torch.nn.Module,
    shape: tuple[int, int],
    args: tuple[torch.Tensor, ...],
    dtype: torch.dtype,
    share: bool = False,
) -> Graph:
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
) -> Graph:
    X = torch.zeros(EXAMPLE_BATCH, *shape, dtype=dtype, device=device)
    X[:, 0] = 1
    try:
        held = held_tensors(twin)  # before tracing, which may leave tensors behind that have no memory
    except Exception as error:  # an attribute may raise whatever it likes
        raise CaptureError(_first_line(error)) from error
    rest = tuple(a[:1].detach().to(device).expand(EXAMPLE_BATCH, *a.shape[1:]).clone() for a in args)
    try:
        return _exported(twin, (X, *rest), held, "export")
    except Exception as error:  # export raises many kinds; the reason is kept for the warning
        reason = _first_line(error)
    if "Constraints violated" in reason:  # by an integer made of the batch size
        try:
            return _exported(twin, (X, *rest), held, "two batches")
        except Exception as error:
            reason = f"{reason}; for two batch sizes: {_first_line(error)}"
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
    raise CaptureError(reason)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch.export prints to itself: the user gets one warning, with the reason, from us."""
    known = logging.root.manager.loggerDict
    loggers = [log for name, log in known.items() if name.startswith("torch") and isinstance(log, logging.Logger)]
    loggers += [
        logging.getLogger(name) for name in ("torch", "torch.fx", "torch._dynamo", "torch.export", "torch._export")
    ]
    loggers.append(logging.getLogger("torch.fx.experimental.symbolic_shapes"))
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def _export(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], any_batch: bool = True) -> Any:
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
        try:
            with _quiet(), gradients():
                program = export(module, inputs, dynamic_shapes=tuple(dims), strict=False)
                return program if _functional(program) else program.run_decompositions(decompositions())
        except IndexError:
            if gradients is torch.enable_grad:
                raise
    raise AssertionError("unreachable")


def _functional(program: Any) -> bool:
    """Whether an exported program writes over nothing, and all its operations have handlers of ours as they are: then
    nothing is gained by tracing it once more, which takes as long as the export. (Were handlers of the user's to count,
    a model would give one graph with them and another without.)
    """
    for fx in program.graph.nodes:
        if fx.op in ("placeholder", "output"):
            continue
        if fx.op != "call_function" or not isinstance(fx.target, torch._ops.OpOverload) or fx.target._schema.is_mutable:
            return False
        name = _canonical_name(fx.target)
        pointwise = torch.Tag.pointwise in fx.target.tags and torch.Tag.nondeterministic_seeded not in fx.target.tags
        if not (pointwise or name in BUILT_IN or name in COPIES or name in SHAPE_ONLY):
            return False
        if name in NORMS and (len(fx.args) < 6 or fx.args[5] is not False):
            return False
    return True


def _exported(
    module: torch.nn.Module,
    inputs: tuple[torch.Tensor, ...],
    held: set[int],
    road: str,
    names: list[str] | None = None,
) -> Graph:
    shapes: Shapes = {}
    if road == "two batches":
        program = _export(module, inputs, any_batch=False)
        more = tuple(torch.cat([t, t[:OTHER_BATCH - EXAMPLE_BATCH]]) for t in inputs)
        shapes = find_batch_size(program, _export(module, more, any_batch=False), (EXAMPLE_BATCH, OTHER_BATCH))
    else:
        program = _export(module, inputs)
    signature = program.graph_signature
    mutations = [s for s in signature.output_specs if s.kind.name not in ("USER_OUTPUT",)]
    if mutations:
        raise CaptureError(f"forward changes {mutations[0].target!r}, so what it returns depends on the calls before")

    def live_name(target: str) -> str:
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

    def resolve(item: Any) -> Any:
        if isinstance(item, torch.fx.Node):
            return Ref(index[item])
        if isinstance(item, tuple | list):
            return (
                type(item)(resolve(i) for i in item) if type(item) in (tuple, list) else tuple(resolve(i) for i in item)
            )
        if isinstance(item, dict):
            return {k: resolve(v) for k, v in item.items()}
        if isinstance(item, slice):
            return slice(resolve(item.start), resolve(item.stop), resolve(item.step))
        return item

    for fx in program.graph.nodes:
        if fx.op == "output":
            output = fx.args[0]
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
            node.target, node.op = fx.target, _canonical_name(fx.target)
            node.args, node.kwargs = resolve(fx.args), resolve(fx.kwargs)
            if node.op in RANDOM or (node.op in DROPOUTS and node.argument(2, "train", True)):
                raise CaptureError(f"forward draws random numbers ({node.op}) in evaluation mode")
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
        # of the second argument of type_as only the type matters
        read = [nodes[i] for i in (node.inputs[:1] if node.op == "aten.type_as" else node.inputs)]
        node.mutated = node.kind == "sequence" or (node.op not in SHAPE_ONLY and any(n.mutated for n in read))
        node.batched = node.kind in ("sequence", "extra") or any(n.batched for n in read)
        index[fx] = node.index
        nodes.append(node)

    if not any(n.kind == "sequence" for n in nodes):
        raise CaptureError("the model does not take the sequence as its first argument")
    leaves = [index[o] if isinstance(o, torch.fx.Node) else (o,) for o in output]
    spec = program.call_spec.out_spec
    nodes, leaves = take_batch_apart(*simplify(nodes, leaves))
    nodes, leaves = separate_joined(*pools_first(nodes, leaves))
    return Graph(nodes, leaves, lambda values: pytree.tree_unflatten(values, spec), str(spec), road)


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
