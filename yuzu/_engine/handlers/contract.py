"""The contract between an operation's handler and the engine.

A handler is a function decorated with `registry.handles`. It looks at one node, once, and returns a `Rule` for it. If
it returns a sentence instead, the node runs naively, and the sentence says why. The law that every rule obeys, and that
one test checks for all of them, for an input that changes only on a window:

    rule.run(reference, change) == operation(reference + change) - operation(reference)

on the window that the rule declares, and zero outside of it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

from yuzu._engine.choice import ChannelFactor, Choice
from yuzu._engine.context import Context
from yuzu._engine.graph import Graph, Node, Ref, evaluate, refs_of
from yuzu._engine.handlers.facts import Numerics, RuleMemory, Sizes
from yuzu._engine.layout import CONSTANT, ROWS, Change, Layout
from yuzu._engine.window import Geometry, Integers, Window, union

Spans = list["Window | None"]


@dataclass(frozen=True)
class View:
    """A handler's view of the graph: its node, and the layout of every node before it."""

    graph: Graph
    node: Node
    layouts: list[Layout]
    statistics: frozenset[int] = frozenset()  # nodes whose few numbers may be read by all positions of a windowed one

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
        """Tell whether an argument depends on the mutated letters."""
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
    after_statistics: bool
        What it carries after a statistic is right: see `yuzu._engine.handlers.statistics`.
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
    numerics: Numerics
    """

    family = "naive"
    aliases = False
    default_way = ""
    shares_among_sites = False
    reads_low_precision = False
    reads_reference = True
    keeps_finite = False
    after_statistics = False
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
            raise AttributeError(
                f"a rule never changes once it is made: {name} of {type(self).__name__}. Keep tensors with "
                "run.derived (made from weights) or run.reference.made (made from the reference)"
            )
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

    @property
    def linear(self) -> bool:
        """Tell whether the change is linear in the changes before it."""
        return not self.reads_reference

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
        """Tell whether `terms` tells."""
        return type(self).terms is not Rule.terms

    def knows_zeros(self) -> bool:
        """Tell whether `vanishes` tells, or its values do."""
        return type(self).vanishes is not Rule.vanishes

    def reference(self, value_of: Callable[[int], Any], device: torch.device) -> Any:
        """The node's value for the reference sequences."""
        return evaluate(self.node, value_of, device)

    # ---- the plan's choices

    @property
    def fused_as(self) -> str:
        """Its part in a group that runs as one on a GPU: "convolution", "relu", "sum", "crop", or none."""
        return ""

    def over(self, chain: list[Node], nodes: list[Node], layouts: list[Layout]) -> Rule | None:
        """The rule that computes the operations of a chain before it anew, from the values before them; None where
        there is none.
        """
        return None

    def only_adds(self) -> bool | None:
        """Tell whether a sum of several sources only adds them; None for another operation."""
        return None

    def all_ways(self) -> tuple[str, ...]:
        """The ways it can be run by at all, if it has several."""
        return ()

    def fits(self, way: str, width: int) -> bool:
        """Tell whether it can be run by one of `all_ways` with a window of a width before it."""
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
