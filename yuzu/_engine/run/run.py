"""Walks the graph: once for the reference, then for chunk after chunk of mutants."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from yuzu._engine.context import Context
from yuzu._engine.derived import Derived
from yuzu._engine.edits import Sites
from yuzu._engine.gate import running
from yuzu._engine.graph import Node, Weights, evaluate
from yuzu._engine.handlers.contract import Rule
from yuzu._engine.handlers.fused import FusedGroup
from yuzu._engine.handlers.statistics import MOST_SECOND_ORDER
from yuzu._engine.kernels.precision import fastest_products, products
from yuzu._engine.kernels.triton import KernelError
from yuzu._engine.layout import CONSTANT, ROWS, Change, rewindow
from yuzu._engine.plan.conditioning import adds_constants, constants_of, find_fading
from yuzu._engine.plan.plan import Plan
from yuzu._engine.plan.widening import Widened, may_widen
from yuzu._engine.reference import Reference, WidenedValues
from yuzu._engine.run.series import (
    Series,
    by_sequence,
    make_series,
    norms_of,
    on_windows,
    squares,
    terms_before,
)
from yuzu._engine.window import Window
from yuzu.errors import warn_user

# References too large to take differences from. Not measured: from there on float32 numbers are 1 apart, and float64
# numbers 1e-4, so little or nothing is left of an ordinary mutant value beside them.
LARGEST_REFERENCE, LARGEST_IN_FLOAT64 = 1e7, 1e12
# FADED: part of the reference's terms below which a mutant's result has lost two digits to the reference's rounding.
# LITTLE: part of the reference's result below which added constants do not make up for that.
FADED, LITTLE = 1 / 16, 1 / 50
DOUBLES = (torch.float64, torch.complex128)


def _size(tensor: torch.Tensor) -> torch.Tensor:
    """The root mean square of a tensor."""
    return torch.linalg.vector_norm(tensor.float()) / math.sqrt(max(tensor.numel(), 1))


class Run(Context):
    """One use of a plan with a model's weights.

    Attributes
    ----------
    plan: Plan
    weights: Weights
    seconds: list of float or None
        The seconds of each node are added to it, unless it is None.
    at: Node or None
        The node at hand, to name it if it raises an error.
    doubtful: torch.Tensor or None, shape=(S, A)
        The mutants of the chunk for which naive ISM may be more accurate.
    """

    plan: Plan

    def __init__(self, plan: Plan, weights: Weights, derived: Derived, device: torch.device) -> None:
        self.plan, self.weights, self.device = plan, weights, device
        self.precision = plan.precision
        self.widened = plan.widened if may_widen(plan.precision, device.type) else Widened()
        self.precise = self.widened.precise
        self._derived = derived
        self._checked: dict[Any, Any] = {}
        self._changes: list[Change | None] = []
        self._owned: list[bool] = []
        self._memo: dict[int, Any] = {}
        self._moved: dict[tuple[int, ...], torch.Tensor] = {}  # the changes of statistics
        self._plain: Reference | None = None  # where the reference at hand is the one in float64
        self._apart = False  # a linear rule at hand takes remainders only, and series are added to its result
        self.seconds: list[float] | None = None
        self.at: Node | None = None
        self.doubtful: torch.Tensor | None = None

    @property
    def kept(self) -> Derived:
        """The tensors that are made from weights, and kept."""
        return self._derived

    def of_plan(self, plan: Plan) -> Run:
        """The same run, reference included, with another plan of the same graph."""
        other = Run(plan, self.weights, self._derived, self.device)
        other.reference, other.once = self.reference, self.once
        if hasattr(self, "sites"):
            other.sites = self.sites
        return other

    # ---- the reference

    @running()
    def set_reference(self, X: torch.Tensor, args: Sequence[torch.Tensor], like: Reference | None = None) -> Reference:
        """Run the graph on sequences ``(B, C, L)`` and keep each node's value, with full products in any precision. If
        ``like`` is the reference of the same sequences with other values of the inputs after them, only the nodes that
        depend on these inputs run.
        """
        with products("highest", self.device):
            self.reference = self._made_reference(X, args, like)
        return self.reference

    def _made_reference(self, X: torch.Tensor, args: Sequence[torch.Tensor], like: Reference | None) -> Reference:
        values: list[Any] = []
        wide = WidenedValues(values, {})
        run_wide = self.widened.run | self.widened.precise if X.dtype == torch.float32 else frozenset[int]()
        for node in self.plan.graph.nodes:
            i = node.index
            if like is not None and i not in self.plan.sharing.values:
                values.append(like.values[i])
                if like.wide is not None and i in run_wide:
                    wide.computed[i] = like.wide.values[i]
            elif node.kind != "call":
                values.append(self.leaf(node, X, args))
            else:
                rule = self.plan.rules[i]
                value_of = wide.__getitem__ if i in run_wide else values.__getitem__
                value = rule.reference(value_of, self.device) if rule else evaluate(node, value_of, self.device)
                if i in run_wide:
                    wide.computed[i], value = value, value.to(node.dtype)
                values.append(value)
        made = Reference(values, X.shape[0], Reference(wide, X.shape[0]) if run_wide else None)
        if self.plan.may_fade:
            made.fading = self._find_fading(values) - (self.widened.kept if run_wide else frozenset())
            made.fading -= frozenset(self.plan.statistics.before)
        return made

    def _find_fading(self, values: list[Any]) -> frozenset[int]:
        """Find the nodes to watch, given the constants that the model adds at present."""
        nodes = self.plan.graph.nodes
        adding = [n.index for n in nodes if n.mutated and adds_constants(n) and values[n.index].numel()]
        sizes = [[_size(t) for t in (constants_of(nodes[i], values.__getitem__), values[i])] for i in adding]
        found = torch.stack([torch.stack(pair) for pair in sizes]).tolist() if sizes else []
        little = {i for i, (added, whole) in zip(adding, found, strict=True) if added <= LITTLE * whole}
        # constants of one channel say nothing about another: what a watched product reads may matter, too
        watched = {i for i, choice in enumerate(self.plan.choices) if choice.watched or choice.exact_zeros}
        return find_fading(self.plan, little.__contains__, watched)

    def leaf(self, node: Node, X: torch.Tensor, args: Sequence[torch.Tensor]) -> Any:
        """The value of a node that is no call: the sequences, another input, a weight or a constant."""
        if node.kind == "sequence":
            return X
        if node.kind == "extra":
            return args[node.key]
        if node.kind == "weight":
            weight = self.weights[node.key]
            weight = weight if node.columns is None else weight[:, slice(*node.columns)]
            return weight if node.rows is None else weight[list(node.rows)]
        assert node.value is not None
        return node.value.to(self.device)

    def unfit_for_differences(self, among: Container[int] | None = None) -> list[int]:
        """Find the nodes (``among`` some; default all) whose reference has elements that are infinite, or as large as
        in masks (-1e9). A difference from these would be NaN, or lose all digits of an ordinary mutant value.
        """
        nodes = [
            n.index
            for n in self.plan.graph.nodes
            if n.mutated
            and (among is None or n.index in among)
            and (n.kind != "call" or self.plan.rules[n.index] is not None)
            and n.floating
        ]
        nodes = [i for i in nodes if self.value(i).numel()]
        if not nodes:
            return []
        limits = [LARGEST_IN_FLOAT64 if self.value(i).dtype in DOUBLES else LARGEST_REFERENCE for i in nodes]
        small = torch.stack([self.value(i).abs().amax() < limit for i, limit in zip(nodes, limits, strict=True)])
        return [i for i, good in zip(nodes, small.tolist(), strict=True) if not good]

    def set_sites(self, sites: Sites) -> list[Window | None]:
        """Make ``sites`` the chunk at hand. Returns the windows of all nodes."""
        self.sites = sites
        return self.plan.windows(sites.position, sites.width, with_tables=self.device.type == "cpu")

    def chunk(self, sites: Sites) -> list[Change | None]:
        """Compute the changes of the graph's outputs for one chunk, in the order of ``graph.outputs``; None for an
        output that does not change.
        """
        self.doubtful = None
        return self._returned(self.walk(sites))

    def chunk_for_each(self, sites: Sites, references: Sequence[Reference]) -> Iterator[list[Change | None]]:
        """Run `chunk` for several references of the same sequences, with other values of the inputs after them. Nodes
        that these do not reach run once.
        """
        self.reference = references[0]
        if len(references) == 1:
            yield self.chunk(sites)
            return
        sharing = self.plan.sharing
        once = [n for n in self.plan.graph.nodes if n.index not in sharing.changes]
        each = [n for n in self.plan.graph.nodes if n.index in sharing.changes]
        self.doubtful = None
        shared = self.walk(sites, once, keep=sharing.border)
        doubtful = self.doubtful
        for reference in references:
            self.reference, self.doubtful = reference, doubtful
            yield self._returned(self.walk(sites, each, shared))

    def _returned(self, changes: list[Change | None]) -> list[Change | None]:
        outputs = self.plan.graph.outputs
        found = [self._returned_change(o, changes[o]) if isinstance(o, int) else None for o in outputs]
        return [self._narrowed(o, c) for o, c in zip(self.plan.graph.outputs, found, strict=True)]

    def _returned_change(self, index: int, change: Change | None) -> Change | None:
        """The change of an output; whole, if it follows statistics."""
        if not self.follows_statistics(index):
            return change
        return Change(self.whole(index, change), None)

    def _narrowed(self, index: Any, change: Change | None) -> Change | None:
        """Convert a change that is kept in float64 to the dtype of the output."""
        if change is None or self.reference.wide is None or index not in self.widened.precise:
            return change
        return replace(change, tensor=change.tensor.to(self.value(index).dtype))

    @running()
    def walk(
        self,
        sites: Sites,
        nodes: Sequence[Node] | None = None,
        given: Sequence[Change | None] | None = None,
        keep: Collection[int] = (),
    ) -> list[Change | None]:
        """Run some nodes (default: all) from the given changes, which are not overwritten. Each change is dropped after
        its last reader has run, unless it is to be kept.
        """
        with fastest_products(self.device):
            return self._walk(sites, nodes, given, keep)

    def _walk(
        self,
        sites: Sites,
        nodes: Sequence[Node] | None,
        given: Sequence[Change | None] | None,
        keep: Collection[int],
    ) -> list[Change | None]:
        self.prepare()  # before any change of the chunk takes memory
        windows = self.set_sites(sites)
        plan = self.plan
        changes: list[Change | None] = [None] * len(plan.graph.nodes) if given is None else list(given)
        self._changes, self._owned = changes, [False] * len(changes)
        memo = self._memo = {}
        self._moved = {}
        as_one: dict[int, FusedGroup] = {}  # the fused groups at hand, by each of their nodes
        unread: set[int] = set()  # the changes that have no readers left
        for node in plan.graph.nodes if nodes is None else nodes:
            if not node.mutated or not plan.readers[node.index]:
                continue
            group = as_one.get(node.index)
            if group is None:
                group = plan.group_of.get(node.index)
                if group is not None and (node.index != group.nodes[0] or not group.runs(self, changes)):
                    group = None
            if group is not None and node.index != group.last:
                as_one.update(dict.fromkeys(group.nodes, group))
                continue
            begin = self._tick()
            self.at = node
            if group is None:
                self._step(node, windows, memo)
                unread.update(plan.last_reads[node.index])
            else:
                self._step_as_one(group, windows, memo)
                for i in group.nodes:
                    unread.update(plan.last_reads[i])
                    as_one.pop(i, None)
            # a group reads its source at its last node, after other nodes may have read it for the last time
            for i in () if self.keep_all else unread.difference(keep, *({b.source} for b in as_one.values())):
                changes[i] = None
                memo.pop(i, None)
                unread.discard(i)
            if self.seconds is not None:
                self.seconds[node.index if group is None else group.nodes[0]] += self._tick() - begin
        return changes

    def _step_as_one(self, group: FusedGroup, windows: list[Window | None], memo: dict[int, Any]) -> None:
        window = windows[group.last]
        if window is None or not window.width:
            return
        convolution = group.convolution
        given = [self._as_read(convolution.node.index, s) for s in convolution.sources]
        faded = self._faded(convolution, given, windows[convolution.node.index])
        if faded is not None:
            self.doubt(faded)
        try:
            self._changes[group.last] = Change(group.run(self, self._changes, window), window)
            self._owned[group.last] = True
        except KernelError as error:
            self.do_without_kernels(error)
            for i in group.nodes:
                self._step(self.plan.graph.nodes[i], windows, memo)
            for i in group.nodes[:-1]:
                self._changes[i] = None

    def do_without_kernels(self, error: Exception) -> None:
        """Warn that kernels do not run here, and go on without them."""
        self.plan.kernels_failed.set()
        warn_user(f"Layers run one by one, and pools by phases, on this machine, and take longer: {error}")

    def _tick(self) -> float:
        if self.seconds is None:
            return 0.0
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _step(self, node: Node, windows: list[Window | None], memo: dict[int, Any]) -> None:
        i, changes = node.index, self._changes
        window = windows[i]
        if node.kind == "sequence":
            changes[i] = self._first(window)
            return
        layout = self.plan.layouts[i]
        if layout.kind == "values":
            changes[i] = Change(self._naive(node, memo), None, mutant=True)
            return
        rule = self.plan.rules[i]
        assert rule is not None
        given = [self._as_read(i, s) for s in rule.sources]
        if self.plan.statistics.count:
            given = self._without_statistics(rule, given)
        if layout.kind == "windows" and (window is None or window.width == 0):
            return
        if all(g is None for g in given):
            if not any(self.follows_statistics(s) for s in rule.sources):
                return
            if rule.linear:
                changes[i], self._owned[i] = Change(self._summed(i, None), None), True
                return
        faded = self._faded(rule, given, window)
        with self._in_its_dtype(i):
            zero = (
                rule.vanishes(self, given, window) if self.choice(i).exact_zeros else None
            )  # first, since running may overwrite changes
            self._apart = rule.linear
            try:
                tensor = rule.run(self, given, window)
            finally:
                self._apart = False
        if layout.kind != "windows" and rule.linear and any(self.follows_statistics(s) for s in rule.sources):
            changes[i], self._owned[i] = Change(self._summed(i, tensor), None), True
            return
        if zero is not None and (self.device.type != "cpu" or zero.any()):
            with self._in_its_dtype(i, self.widened.precise):
                reference = self.of_sites(self.value(i)) if window is None else self.on_window(i, layout, window)
            tensor = torch.where(zero, -reference, tensor)
        if faded is not None:
            self.doubt(faded if zero is None else faded & ~zero)
        if i in self.widened.run and i not in self.widened.kept:
            tensor = tensor.to(self.value(i).dtype)
        mutant = node.dtype is not None and not node.floating
        changes[i] = Change(tensor, window if layout.kind == "windows" else None, mutant)
        # a tensor that repeats elements by strides of 0 cannot be overwritten
        fresh = not rule.aliases or all(self.disposable(s) for s in rule.sources)
        self._owned[i] = fresh and 0 not in tensor.stride()

    # ---- series after statistics

    def follows_statistics(self, index: int) -> bool:
        """Tell whether a node is windowed and follows statistics."""
        return self.plan.statistics.after(index)

    def _without_statistics(self, rule: Rule, given: list[Change | None]) -> list[Change | None]:
        """The changes that a linear rule of windows reads: the series has those of statistics."""
        if not rule.linear or not self.follows_statistics(rule.node.index):
            return given
        first = self.plan.statistics.first
        return [None if s in first else change for s, change in zip(rule.sources, given, strict=True)]

    @property
    def _series(self) -> Series:
        plain = self._plain or self.reference

        def make() -> Any:
            wide, self.reference = self.reference, plain
            try:
                return make_series(self)
            finally:
                self.reference = wide

        made: Any = plain.made("series", make)
        assert isinstance(made, Series)
        return made

    def _moved_before(self, index: int) -> torch.Tensor:
        """The changes of all statistics before a node, ``(S, A, T)``."""
        statistics = terms_before(self.plan, index)
        if statistics not in self._moved:
            grid = self.sites.difference.shape[:2]
            parts = []
            for s in statistics:
                value, change = (self._plain or self.reference).values[s], self._changes[s]
                part = value.new_zeros(*grid, *value.shape[1:]) if change is None else change.tensor.to(value.dtype)
                parts.append(part.expand(*grid, *value.shape[1:]).reshape(*grid, -1))
            self._moved[statistics] = torch.cat(parts, 2)
        return self._moved[statistics]

    def first_order(self, index: int, window: Window) -> torch.Tensor | None:
        if not self.follows_statistics(index):
            return None
        return on_windows(self._moved_before(index), self._series.first[index], window, self)

    def prepare(self) -> None:
        """Make what all chunks share, unless it is made: the series of the reference."""
        if self.plan.statistics.count:
            _ = self._series

    def first_order_size(self, index: int) -> torch.Tensor:
        moved = self._moved_before(index)
        return (by_sequence(moved, self._series.products[index], self) * moved).sum(2).clamp(min=0).sqrt()

    def direction(self, index: int) -> torch.Tensor:
        first = self._series.first[index]
        sizes = first.flatten(2).square().mean(2).sqrt()
        ones = torch.where(sizes > 0, 1 / sizes, 0).view(*sizes.shape, *[1] * (first.dim() - 2))
        return self.plan.layouts[index].natural((first * ones).sum(1))

    def with_series(self, index: int, remainder: torch.Tensor) -> torch.Tensor:
        return remainder if self._apart else self._summed(index, remainder).to(remainder.dtype)

    def _summed(self, index: int, remainder: torch.Tensor | None) -> torch.Tensor:
        """A node's series and remainder as rows ``(S, A, ...)``. Mutants for which the series may be too short are
        noted, if no statistic follows: an error in a statistic shows in what follows it.
        """
        series, moved = self._series, self._moved_before(index)
        first, second = series.rows[index]
        result = by_sequence(moved, first, self)
        if second is None:
            return result if remainder is None else result.add_(remainder)
        pairs = squares(moved)
        result += by_sequence(pairs, second, self)
        if remainder is not None:
            result += remainder
        if index not in self.plan.statistics.leading:
            sizes = (by_sequence(t.abs(), n, self) for t, n in zip((moved, pairs), series.sizes[index], strict=True))
            linear, square = sizes
            whole = norms_of(result)
            self.doubt(~(square <= MOST_SECOND_ORDER * torch.maximum(linear, whole)))
        return result

    def _faded(self, rule: Rule, given: list[Change | None], window: Window | None) -> torch.Tensor | None:
        """Find the elements for which the terms of a product with weights are negligible beside the reference's; None
        if the rule is not watched.
        """
        terms = rule.terms(self, given, window) if rule.node.index in self.reference.fading else None
        return None if terms is None else terms[0] + terms[1] < FADED * terms[1]

    def doubt(self, where: torch.Tensor) -> None:
        """Note the mutants with any such element, without waiting for the device."""
        found = where.reshape(*where.shape[:2], -1).any(2).expand(self.sites.difference.shape[:2])
        self.doubtful = found if self.doubtful is None else self.doubtful | found

    def _as_read(self, reader: int, source: int) -> Change | None:
        """The change of a source in the dtype in which a reader runs."""
        change, wide = self._changes[source], self.reference.wide
        widens = reader in self.widened.run
        if change is None or wide is None or change.mutant or not (widens or source in self.widened.precise):
            return change
        dtype = (wide.values if widens else self.reference.values)[source].dtype
        return change if change.tensor.dtype == dtype else replace(change, tensor=change.tensor.to(dtype))

    @contextlib.contextmanager
    def _in_its_dtype(self, index: int, wide: Container[int] | None = None) -> Iterator[None]:
        """A context with the reference in float64, if the node runs in float64 (or, if given, is in ``wide``)."""
        plain = self.reference
        if plain.wide is not None and index in (self.widened.run if wide is None else wide):
            self.reference, self._plain = plain.wide, plain
        try:
            yield
        finally:
            self.reference, self._plain = plain, None

    def _first(self, window: Window | None) -> Change | None:
        sites = self.sites
        if window is None or window.width == 0:
            return None
        whole = window.cached("edited", lambda: Window.at(sites.position, sites.width))
        tensor = rewindow(sites.difference, whole, window)
        codes = (
            sites.codes if sites.width == 1 and window.width == 1 and (window.start == sites.position).all() else None
        )
        return Change(tensor, window, codes=codes)

    def _naive(self, node: Node, memo: dict[int, Any]) -> Any:
        """Run one operation on whole values for all mutants of the chunk."""
        return evaluate(node, lambda i: self._whole_value(i, memo), self.device)

    def whole_value(self, index: int) -> Any:
        """The value of a node for the chunk's mutants, with one row for each."""
        return self._whole_value(index, self._memo)

    def _whole_value(self, i: int, memo: dict[int, Any]) -> Any:
        """The value of a node in a batch with one row for each mutant."""
        node = self.plan.graph.nodes[i]
        if not node.batched:
            return self.value(i)
        if node.mutated:
            layout, change = self.plan.layouts[i], self._changes[i]
            if layout.kind == "values":
                assert change is not None
                return change.tensor
            if i not in memo:
                memo[i] = self.mutants(i, change)
            return memo[i]
        if i not in memo:
            if self.plan.layouts[i] in (ROWS, CONSTANT) and node.shape is not None:
                memo[i] = self.mutants(i, None)
            else:
                memo[i] = evaluate(node, lambda j: self._whole_value(j, memo), self.device)
        return memo[i]
