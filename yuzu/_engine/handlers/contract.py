"""The contract between an operation's handler and the engine, and the registry of handlers.

A handler is a function decorated with `handles`. It looks at one node, once, and returns a `Rule` for it, or
a sentence that says why not; then the node runs naively. The law that every rule obeys, and that one test
checks for all of them: for an input that changes only on a window,

    rule.run(reference, change) == operation(reference + change) - operation(reference)

on the window that the rule declares, and zero outside of it.

`handles` has a worked example for an operation of one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from yuzu._engine.graph import Graph, Node, Ref, evaluate, refs_of
from yuzu._engine.layout import CONSTANT, ROWS, Change, Layout
from yuzu._engine.window import Geometry, Integers, Window, union

if TYPE_CHECKING:
    from yuzu._engine.run.run import Run

Spans = list["Window | None"]


@dataclass(frozen=True)
class View:
    """What a handler sees of the graph: its node, and the layout of every node before it."""

    graph: Graph
    node: Node
    layouts: list[Layout]

    def source(self, ref: Any) -> Node:
        """The node that an argument refers to."""
        return self.graph.nodes[ref.index]

    def layout(self, ref: Any) -> Layout:
        """The layout of an argument; constant for what is not a node."""
        return self.layouts[ref.index] if isinstance(ref, Ref) else CONSTANT

    def movable(self, ref: Any) -> Layout:
        """The layout of an argument whose windows are moved by what fills in zeros: masks and whole numbers are carried
        as values, not as differences, so they are taken whole."""
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
        """Number of axes of the result."""
        return len(self.node.shape or ())

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result, -1 for the batch."""
        return tuple(-1 if size is None else size for size in self.node.shape or ())

    def shape_of(self, ref: Any) -> tuple[int, ...]:
        """Shape of an argument, -1 for the batch."""
        return tuple(-1 if size is None else size for size in self.source(ref).shape or ())


class Rule:
    """How the change of one node follows from the changes of the nodes it reads.

    Attributes
    ----------
    node: Node
    layout: Layout
        Of the result; never ``"constant"``.
    sources: list of int
        The mutated nodes it reads; `window`, `needed` and `run` speak of them in this order.
    aliases: bool
        Whether the result may share memory with an input.
    family: str
        Shown in the summary.
    way: str
        The one of `all_ways` that is used, if it has several.
    shares_among_sites: bool
        Whether one of its ways gains by sites that lie together, so that a trial of few says nothing of many.
    reads_lowered: bool
        Whether it copes with differences in the dtype of lowered products, and returns them in the node's own.
    reads_reference: bool
        Whether the change depends on values of the batch at hand, beside the changes before it: those of the reference,
        or of another input. Where it does not, it is the same whatever the other inputs are.
    keeps_finite: bool
        Whether finite values always give finite ones: a logarithm does not. What an output does not need may then be
        carried beside what it needs, for a product with zeros in it leaves nothing of it.
    carries_values: bool
        Whether it also copes with masks and whole numbers, which are carried as values: of them there are no
        differences.
    settles: bool
        Whether its result is made exactly zero where it `vanishes`; set by the plan, where that may matter.
    """

    family = "naive"
    aliases = False
    way = ""
    shares_among_sites = False
    reads_lowered = False
    reads_reference = True
    keeps_finite = False
    carries_values = False
    settles = False

    def __init__(self, view: View, layout: Layout) -> None:
        self.node = view.node
        self.layout = layout
        self.sources = [i for i in dict.fromkeys(view.node.inputs) if view.graph.nodes[i].mutated]
        self.source_layouts = [view.layouts[i] for i in self.sources]

    def window(self, windows: Spans) -> tuple[Integers, Integers]:
        """First and stop of what each site reaches in the result, from the windows of the sources (None: not
        changed).
        """
        return union([w for w in windows if w is not None])

    def needed(self, low: int, high: int) -> list[tuple[int, int]]:
        """The positions of each source that the positions ``[low, high)`` of the result depend on (all of
        them, for a whole result).
        """
        if self.layout.kind == "windows":
            return [(low, high) for _ in self.sources]
        return [(0, layout.length) for layout in self.source_layouts]

    def run(self, run: Run, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        """The change of the result: ``(S, A, w, ...)`` on ``window``, or the whole ``(S, A, ...)`` for a
        layout of rows.
        """
        raise NotImplementedError

    def vanishes(self, run: Run, changes: list[Change | None], window: Window | None) -> torch.Tensor | None:
        """Where the mutants' result is zero because all that it is made of is, to broadcast against what `run` gives;
        None where that is not known. What is run on values need not say: the operation itself makes zero of zeros.
        """
        return None

    def terms(
        self, run: Run, changes: list[Change | None], window: Window | None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """For what multiplies with weights: by how much the terms that the mutants' results are sums of are larger than
        the reference's, all magnitudes together, and how large those are; both to broadcast against what `run` gives.
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

    def all_ways(self) -> tuple[str, ...]:
        """The ways it can be run by at all, if it has several."""
        return ()

    def fits(self, way: str, width: int) -> bool:
        """Whether it can be run by one of `all_ways` with a window of a width before it."""
        return True

    def ways(self, run: Run, window: Window) -> list[str]:
        """Those of `all_ways` that give the exact result, apply to a window before it, and may be the fastest on the
        device and with the products at hand.
        """
        return []

    def alike(self) -> Hashable:
        """The same for layers that differ in nothing but the width of their windows, for the choice of a way."""
        return self.node.index

    def akin(self) -> Hashable:
        """The same for layers whose fastest ways are much the same, at windows of much the same width."""
        return self.alike()

    def multiply_adds(self, run: Run, width: int) -> int:
        """How many of them one mutant needs, for a layer with several ways and windows of a width before it."""
        raise NotImplementedError

    def trial(self, run: Run, window: Window, some: Callable[..., torch.Tensor]) -> Callable[[], object]:
        """Its work on ``window`` by the way that is set, to be timed; ``some(w, ...)`` makes a change ``(S, A, w,
        ...)``."""
        raise NotImplementedError

    def detail(self) -> str:
        """What the summary shows beside the family."""
        return ""


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
    An operator that averages three neighbours runs naively, until it is said how it reads:

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
            _REGISTRY[name] = handler
            (_READS_SIZES.add if reads_sizes else _READS_SIZES.discard)(name)
        return handler

    return register


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
    if handler is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
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


# what gives a tensor's numbers as they are, in another order or shape
MOVES = {
    "aten.transpose",
    "aten.permute",
    "aten.reshape",
    "aten.squeeze",
    "aten.unsqueeze",
    "aten.flatten",
    "aten.slice",
    "aten.select",
}


def _why_no_differences(view: View, rule: Rule) -> str | None:
    """Why the change of a node is no difference that a rule could give; None where it is one, or none is asked for."""
    node, nodes = view.node, view.graph.nodes
    if not node.mutated:
        return None
    if not rule.carries_values and not all(n.floating for n in (node, *(nodes[i] for i in rule.sources))):
        return "of masks and whole numbers there are no differences"
    # what rounding takes from the values may be much beside their difference, which is rounded by itself
    own = next(n.dtype for n in nodes if n.kind == "sequence")
    if node.dtype is None or not node.floating or torch.finfo(node.dtype).eps <= torch.finfo(torch.float32).eps:
        return None
    if node.dtype != own:
        return f"its result is rounded to {node.dtype}"
    if not any(nodes[i].mutated and nodes[i].floating for i in node.inputs) and _is_only_widened(view, node):
        return f"its values are exact in {node.dtype}, and their differences are not"
    return None


def _is_only_widened(view: View, node: Node) -> bool:
    """Whether nothing computes with a node in its own dtype: all that read it cast it to a more precise one first."""
    readers = [view.graph.nodes[i] for i in view.graph.consumers[node.index]]
    if not readers or node.index in view.graph.output_nodes:
        return False
    return all(_widens(reader, node) or (reader.op in MOVES and _is_only_widened(view, reader)) for reader in readers)


def _widens(cast: Node, node: Node) -> bool:
    if cast.op not in ("aten.to", "aten._to_copy", "aten.type_as") or cast.dtype is None or node.dtype is None:
        return False
    return cast.floating and cast.dtype.itemsize > node.dtype.itemsize


def spatial_axis(layout: Layout) -> int | None:
    """The axis of positions of a plain windowed layout, or None."""
    return layout.axis if layout.kind == "windows" and not layout.composite else None


def setting(value: Any, axis: int) -> int:
    """The setting along an axis of an argument that may be one number, a list of one, or a list with a number for each
    axis behind the channels.
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
