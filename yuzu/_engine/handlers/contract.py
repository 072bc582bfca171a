"""The contract between an operation's handler and the engine, and the registry of handlers.

A handler is a function decorated with `handles`. It looks at one node, once, and returns a `Rule` for it. If it returns
a sentence instead, the node runs naively, and the sentence says why. The law that every rule obeys, and that one test
checks for all of them, for an input that changes only on a window:

    rule.run(reference, change) == operation(reference + change) - operation(reference)

on the window that the rule declares, and zero outside of it.

`handles` has a worked example for an operation of one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

from yuzu._engine import ops
from yuzu._engine.choice import ChannelFactor, Choice
from yuzu._engine.context import Context
from yuzu._engine.graph import Graph, Node, Ref, evaluate, refs_of
from yuzu._engine.layout import CONSTANT, ROWS, Change, Layout
from yuzu._engine.window import Geometry, Integers, Window, union

Spans = list["Window | None"]


@dataclass(frozen=True)
class View:
    """A handler's view of the graph: its node, and the layout of every node before it."""

    graph: Graph
    node: Node
    layouts: list[Layout]

    def source(self, ref: Any) -> Node:
        """The node that an argument refers to."""
        return self.graph.nodes[ref.index]

    def layout(self, ref: Any) -> Layout:
        """The layout of an argument; constant if it is not a node."""
        return self.layouts[ref.index] if isinstance(ref, Ref) else CONSTANT

    def movable(self, ref: Any) -> Layout:
        """The layout of an argument for an operation that may fill in zeros. Masks and integers are carried as values,
        not as differences, so they are taken whole.
        """
        layout, node = self.layout(ref), self.source(ref)
        return layout if node.floating or layout.kind != "windows" or not node.mutated else ROWS

    def mutated(self, ref: Any) -> bool:
        """Whether an argument depends on the mutated letters."""
        return isinstance(ref, Ref) and self.graph.nodes[ref.index].mutated

    def tensors(self) -> list[Ref]:
        """The arguments that are tensors, in order."""
        refs = [Ref(i) for i in refs_of((self.node.args, self.node.kwargs))]
        return [ref for ref in refs if self.source(ref).shape is not None]

    @property
    def rank(self) -> int:
        """The number of axes of the result."""
        return len(self.node.shape or ())

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result, -1 for the batch."""
        return tuple(-1 if size is None else size for size in self.node.shape or ())

    def shape_of(self, ref: Any) -> tuple[int, ...]:
        """The shape of an argument, -1 for the batch."""
        return tuple(-1 if size is None else size for size in self.source(ref).shape or ())


@dataclass(frozen=True)
class Numerics:
    """How the result of a rule depends on rounding, for the plan's choice of float64 and of exact zeros.

    Attributes
    ----------
    well_conditioned: bool
        A small error in its inputs leaves a small error in its result, whatever `ops` says of the operation.
    on_values: bool
        It runs the operation on the mutants' values, so a steep operation shows their rounding.
    may_widen: bool
        It can be run in float64.
    weighted: bool
        It multiplies with weights.
    sums_positions: bool
        It sums over positions.
    cancels: bool
        Its result may be small beside the reference's although its inputs are not.
    multiplies: bool
        It multiplies two mutated tensors.
    keeps_size: bool
        Its result is large where its input is.
    """

    well_conditioned: bool = False
    on_values: bool = False
    may_widen: bool = True
    weighted: bool = False
    sums_positions: bool = False
    cancels: bool = False
    multiplies: bool = False
    keeps_size: bool = False


@dataclass(frozen=True)
class Sizes:
    """The sizes that the memory of a rule follows from.

    Attributes
    ----------
    width: int
        Positions of a window before it.
    result: int
        Numbers of one row of its result, of all positions.
    precision: str
    itemsize: int
        Bytes of a number.
    """

    width: int
    result: int
    precision: str
    itemsize: int


@dataclass(frozen=True)
class RuleMemory:
    """Numbers that a rule holds beside its result.

    Attributes
    ----------
    weights: int
        Made from weights and kept.
    tables: int
        Made from the reference of one sequence and kept.
    largest: int
        The largest tensor of one mutant on the way to the result.
    blocks: int
        Tensors as large as its result that live at once.
    """

    weights: int = 0
    tables: int = 0
    largest: int = 0
    blocks: int = 4


class _Frozen(type):
    """Closes an object for changes when its `__init__` has returned."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        object.__setattr__(made, "_made", True)
        return made


class Rule(metaclass=_Frozen):
    """How the change of one node follows from the changes of the nodes it reads.

    A rule never changes once it is made. `Choice` has what a plan chooses for it.

    Attributes
    ----------
    node: Node
    layout: Layout
        Of the result; never ``"constant"``.
    sources: list of int
        The mutated nodes it reads; `window`, `needed` and `run` speak of them in this order.
    source_layouts: list of Layout
    aliases: bool
        The result may share memory with an input.
    family: str
        Shown in the summary.
    default_way: str
        The way that is taken where none is chosen, if it has several.
    shares_among_sites: bool
        One of its ways gains by sites that lie together, so that a trial of few says nothing of many.
    reads_low_precision: bool
        It copes with differences in the dtype of low-precision products, and returns them in the node's own.
    reads_reference: bool
        The change depends on values of the batch at hand, beside the changes before it: those of the reference, or of
        another input. Where it does not, it is the same whatever the other inputs are.
    keeps_finite: bool
        Finite values always give finite ones: a logarithm does not. Elements that an output does not need may then be
        carried beside those it needs, for a product with zeros in it leaves nothing of them.
    carries_values: bool
        It also copes with masks and integers, which are carried as values: they have no differences.
    per_channel: ChannelFactor or None
        The rule only multiplies with this factor, which a convolution before or after it may absorb.
    absorbs_before, absorbs_after: bool
        Its own weight can take in a factor of its input channels, or of its output channels.
    passes_factor: bool
        Differences may come and go divided by a factor for each channel.
    recomputable: bool
        Its result may be computed anew from the values before it, inside a chain. Only the class that says so itself
        counts: a subclass may do anything.
    fused_as: str
        Its part in a group that runs as one on a GPU: "convolution", "relu", "sum", "crop", or none.
    numerics: Numerics
    """

    family = "naive"
    aliases = False
    default_way = ""
    shares_among_sites = False
    reads_low_precision = False
    reads_reference = True
    keeps_finite = False
    carries_values = False
    per_channel: ChannelFactor | None = None
    absorbs_before = False
    absorbs_after = False
    passes_factor = False
    recomputable = False
    numerics = Numerics()

    def __init__(self, view: View, layout: Layout) -> None:
        self.node = view.node
        self.layout = layout
        self.sources = [i for i in dict.fromkeys(view.node.inputs) if view.graph.nodes[i].mutated]
        self.source_layouts = [view.layouts[i] for i in self.sources]

    def __setattr__(self, name: str, value: Any) -> None:
        if getattr(self, "_made", False):
            raise AttributeError(f"a rule never changes once it is made: {name} of {type(self).__name__}")
        object.__setattr__(self, name, value)

    # ---- windows

    def window(self, windows: Spans) -> tuple[Integers, Integers]:
        """The first position that each site reaches in the result, and the one after the last, from the windows of the
        sources (None: not changed).
        """
        return union([w for w in windows if w is not None])

    def needed(self, low: int, high: int) -> list[tuple[int, int]]:
        """The positions of each source that the positions ``[low, high)`` of the result depend on (all of
        them, for a whole result).
        """
        if self.layout.kind == "windows":
            return [(low, high) for _ in self.sources]
        return [(0, layout.length) for layout in self.source_layouts]

    def reads(self) -> list[int]:
        """The nodes that it reads as it is run."""
        return list(dict.fromkeys(self.node.inputs))

    # ---- running

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        """The change of the result: ``(S, A, w, ...)`` on ``window``, or the whole ``(S, A, ...)`` for a
        layout of rows.
        """
        raise NotImplementedError

    def vanishes(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor | None:
        """A mask of the mutants' results that are zero because all their terms are, to broadcast against the result of
        `run`; None where that is not known. An operation that runs on values need not say: it makes zeros of zeros.
        """
        return None

    def terms(
        self, run: Context, changes: list[Change | None], window: Window | None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """For a product with weights: by how much the terms of the mutants' results are larger than the reference's,
        all magnitudes together, and how large those are; both to broadcast against the result of `run`.
        """
        return None

    def knows_terms(self) -> bool:
        """Whether `terms` tells."""
        return type(self).terms is not Rule.terms

    def knows_zeros(self) -> bool:
        """Whether `vanishes` tells, or its values do."""
        return type(self).vanishes is not Rule.vanishes

    def reference(self, value_of: Callable[[int], Any], device: torch.device) -> Any:
        """The node's value for the reference sequences."""
        return evaluate(self.node, value_of, device)

    # ---- the plan's choices

    @property
    def fused_as(self) -> str:
        """Its part in a group that runs as one on a GPU."""
        return ""

    def over(self, chain: list[Node], nodes: list[Node], layouts: list[Layout]) -> Rule | None:
        """The rule that computes the operations of a chain before it anew, from the values before them; None where
        there is none.
        """
        return None

    def only_adds(self) -> bool | None:
        """Whether a sum of several sources only adds them; None for another operation."""
        return None

    def all_ways(self) -> tuple[str, ...]:
        """The ways it can be run by at all, if it has several."""
        return ()

    def fits(self, way: str, width: int) -> bool:
        """Whether it can be run by one of `all_ways` with a window of a width before it."""
        return True

    def ways(self, run: Context, window: Window) -> list[str]:
        """The ways that give the exact result, apply to a window before it, and may be the fastest on this device and
        in this precision.
        """
        return []

    def forced_way(self, run: Context, way: str, width: int) -> str | None:
        """The way it takes when a user asks for ``way`` for all convolutions; None if it is no convolution."""
        return None

    def alike(self, choice: Choice) -> Hashable:
        """A key that layers share if only the width of their windows differs: one trial decides for all."""
        return self.node.index

    def akin(self, choice: Choice) -> Hashable:
        """A key that layers share if their fastest ways are nearly the same, at windows of nearly the same width."""
        return self.alike(choice)

    def multiply_adds(self, run: Context, width: int) -> int:
        """The multiply-adds of one mutant, for a layer with several ways and windows of a width before it."""
        raise NotImplementedError

    def trial(self, run: Context, window: Window, some: Callable[..., torch.Tensor], way: str) -> Callable[[], object]:
        """A function that does its work on ``window`` by a way, to be timed; ``some(w, ...)`` makes a change ``(S, A,
        w, ...)``.
        """
        raise NotImplementedError

    # ---- sizes and words

    def memory(self, choice: Choice, sizes: Sizes) -> RuleMemory:
        """The memory that it takes beside its result."""
        return RuleMemory()

    def unfolded(self) -> int:
        """Numbers that PyTorch may lay out for one row of the operation itself, beside its input and result."""
        return 0

    def detail(self) -> str:
        """Settings that the summary shows beside the operation."""
        return ""

    def shown_way(self, way: str, first_layer: bool) -> str:
        """The name of a way in the summary; ``first_layer`` reads the sequence itself."""
        return way

    def probes(self, way: str, width: int, edits: int) -> int | None:
        """How many probes compressed sensing convolves for a window before it; None where it is not used."""
        return None


class Reading(Rule):
    """A rule of one source, whose result at ``j`` reads the positions that its ``geometry`` says."""

    geometry: Geometry

    def window(self, windows: Spans) -> tuple[Integers, Integers]:
        (window,) = windows
        assert window is not None
        return self.geometry.outputs_of(window.first, window.stop)

    def needed(self, low: int, high: int) -> list[tuple[int, int]]:
        return [self.geometry.inputs_of(low, high)]


Handler = Callable[[View], "Rule | str"]
_REGISTRY: dict[str, Handler] = {}


_READS_SIZES: set[str] = set()


def handles(*operations: str, reads_sizes: bool = False) -> Callable[[Handler], Handler]:
    """Register a handler for operations, by the names that warnings show, such as ``"aten.conv1d"``;
    ``Precomputation.summary()`` leaves the ``aten.`` out.

    Parameters
    ----------
    operations: str
        Names such as ``"aten.conv1d"``, or ``"mine::smooth"`` for a custom operator.
    reads_sizes: bool
        The handler copes with arguments that are computed from the size of the batch.

    Examples
    --------
    An operator that averages three neighbours runs naively until a handler says how it reads:

    >>> import torch, yuzu
    >>> @torch.library.custom_op("doctest_yuzu::smooth", mutates_args=())
    ... def smooth(x: torch.Tensor) -> torch.Tensor:
    ...     return torch.nn.functional.avg_pool1d(x, 3, 1, 1)
    >>> @smooth.register_fake
    ... def _(x):
    ...     return torch.empty_like(x)
    >>> @yuzu.handles("doctest_yuzu::smooth")
    ... def handle_smooth(view):
    ...     if view.movable(view.node.args[0]).kind != "windows":
    ...         return "it gets no windows"
    ...     return yuzu.Windowed(view, lambda x: torch.nn.functional.avg_pool1d(x, 3, 1), kernel=3, padding=1)
    >>> class Model(torch.nn.Module):
    ...     def forward(self, x):
    ...         return smooth(x).relu()
    >>> precomputation = yuzu.precompute(Model(), seq_len=50)
    >>> [(layer.handler, layer.window) for layer in precomputation.layers]
    [['windowed', '1 -> 3'], ['elementwise', '3 -> 3']]
    """

    def register(handler: Handler) -> Handler:
        for operation in operations:
            name = operation.replace("::", ".")
            known = _REGISTRY.get(name)
            if known is not None and known.__module__ != handler.__module__ and _is_ours(handler):
                raise ValueError(f"{name} has two handlers: in {known.__module__} and in {handler.__module__}")
            _REGISTRY[name] = handler
            ops.note_handler(name)
            (_READS_SIZES.add if reads_sizes else _READS_SIZES.discard)(name)
        return handler

    return register


def _is_ours(handler: Handler) -> bool:
    return handler.__module__.startswith("yuzu._engine.handlers.")


def registered() -> dict[str, Handler]:
    """All handlers by operation."""
    return dict(_REGISTRY)


def has_rows(node: Node) -> bool:
    """Whether a node's result is one tensor with the batch on its first axis, and on no other."""
    shape = node.shape or (1,)
    return shape[0] is None and not any(s == -1 or s is None for s in shape[1:])


def find_handler(view: View) -> Handler | str:
    """The handler for a node, or the reason why it has none."""
    node = view.node
    handler = _REGISTRY.get(node.op)
    if handler is None and ops.is_pointwise(node.op, node.target):
        handler = _REGISTRY["pointwise"]
    if handler is None:
        return f"there is no handler for {node.op}"
    if node.shape is None:
        return f"{node.op} returns several tensors"
    if not has_rows(node):
        return "the batch is not the first axis of its result"
    sizes = [i for i in node.inputs if view.graph.nodes[i].shape is None and view.graph.nodes[i].batched]
    if sizes and node.op not in _READS_SIZES:
        return "one of its arguments is computed from the size of the batch"
    return handler


def find_rule(view: View) -> Rule | str:
    """The rule for a node, or the reason why it has none."""
    handler = find_handler(view)
    if isinstance(handler, str):
        return handler
    rule = handler(view)
    return rule if isinstance(rule, str) else (_why_no_differences(view, rule) or rule)


def _why_no_differences(view: View, rule: Rule) -> str | None:
    """The reason why a rule cannot give the change of a node as a difference; None if it can, or need not."""
    node, nodes = view.node, view.graph.nodes
    if not node.mutated:
        return None
    if not rule.carries_values and not all(n.floating for n in (node, *(nodes[i] for i in rule.sources))):
        return "masks and integers have no differences"
    # the values' rounding may be large beside their difference, which is rounded on its own
    own = next(n.dtype for n in nodes if n.kind == "sequence")
    if node.dtype is None or not node.floating or torch.finfo(node.dtype).eps <= torch.finfo(torch.float32).eps:
        return None
    if node.dtype != own:
        return f"its result is rounded to {node.dtype}"
    if not any(nodes[i].mutated and nodes[i].floating for i in node.inputs) and _is_only_widened(view, node):
        return f"its values are exact in {node.dtype}, and their differences are not"
    return None


def _is_only_widened(view: View, node: Node) -> bool:
    """Whether no operation computes with a node in its own dtype: all readers cast it to a more precise one first."""
    readers = [view.graph.nodes[i] for i in view.graph.consumers[node.index]]
    if not readers or node.index in view.graph.output_nodes:
        return False
    return all(
        _widens(reader, node) or (ops.of(reader.op).moves and _is_only_widened(view, reader)) for reader in readers
    )


def _widens(cast: Node, node: Node) -> bool:
    if not ops.of(cast.op).casts or cast.dtype is None or node.dtype is None:
        return False
    return cast.floating and cast.dtype.itemsize > node.dtype.itemsize


def spatial_axis(layout: Layout) -> int | None:
    """The axis of positions of a plain windowed layout, or None."""
    return layout.axis if layout.kind == "windows" and not layout.composite else None


def setting(value: Any, axis: int) -> int:
    """The setting along an axis of an argument that may be one number, a list of one, or a list with a number for each
    axis after the channels.
    """
    if isinstance(value, int):
        return value
    return int(value[0] if len(value) == 1 else value[axis - 2])


__all__ = [
    "CONSTANT",
    "ROWS",
    "Handler",
    "Reading",
    "Rule",
    "View",
    "find_rule",
    "handles",
    "registered",
    "setting",
    "spatial_axis",
]
