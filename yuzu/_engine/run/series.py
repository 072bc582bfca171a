"""Taylor series in the statistics of the reference: the change of a node outside of its window.

With ``s`` the change of the statistics in a mutant, a node's value off the window changes by

    sum_j s_j dR/ds_j  +  1/2 sum_ij s_i s_j d2R/ds_i ds_j

The derivatives have the shape of the value, and are made once for a sequence by forward-mode differentiation, node by
node. Those of second order are kept only where rows are made: at a sum over positions, or at an output. On windows the
rules after statistics take them into account themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from yuzu._engine import ops
from yuzu._engine.context import Context
from yuzu._engine.freed_memory import give_back
from yuzu._engine.graph import Node, Ref, map_refs
from yuzu._engine.handlers.contract import Rule
from yuzu._engine.handlers.statistics import DIFFERENTIATING, derivative, differentiable, jvp
from yuzu._engine.layout import on_device, rewindow
from yuzu._engine.window import Window


@dataclass
class Series:
    """The derivatives of a batch of reference sequences.

    Attributes
    ----------
    first: dict of int to torch.Tensor
        For nodes before a function on windows, ``(B, T, L, ...)``: with positions first, and contiguous.
    rows: dict of int to (torch.Tensor, torch.Tensor or None)
        For nodes of which rows are made, in the model's layout: of first order ``(B, T, ...)``, and of second order
        ``(B, P, ...)`` for each pair, None if they are zero.
    sizes: dict of int to (torch.Tensor, torch.Tensor)
        The norms of ``rows`` for each term, ``(B, T)`` and ``(B, P)``.
    products: dict of int to torch.Tensor
        Means of products of each two of ``first``, ``(B, T, T)``.
    """

    first: dict[int, torch.Tensor] = field(default_factory=dict)
    rows: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = field(default_factory=dict)
    sizes: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    products: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """The bytes of all derivatives."""
        tensors = [*self.first.values(), *(t for pair in self.rows.values() for t in pair if t is not None)]
        return sum(t.nbytes for t in tensors)


def columns_of(plan: Any, index: int) -> tuple[int, ...]:
    """The places of a node's terms of first order among all numbers of the statistics."""
    found: list[int] = []
    for s in terms_before(plan, index):
        shape = plan.graph.nodes[s].shape or ()
        found.extend(range(plan.statistics.first[s], plan.statistics.first[s] + int(np.prod(shape[1:]))))
    return tuple(found)


def terms_before(plan: Any, index: int) -> tuple[int, ...]:
    """The statistics that a node's series is in: its own, or those of the windowed nodes that rows are made of."""
    before = plan.statistics.before
    if index in before:
        return before[index]
    return tuple(sorted({s for i in plan.reads[index] for s in before.get(i, ())}))


def read_whole(plan: Any) -> set[int]:
    """The windowed nodes after statistics whose whole values are read, or that are outputs."""
    found = {o for o in plan.graph.output_nodes if plan.statistics.after(o)}
    for node in plan.graph.nodes:
        rule = plan.rules[node.index]
        if plan.readers[node.index] and (rule is None or not (rule.linear or rule.after_statistics)):
            found.update(i for i in plan.reads[node.index] if plan.statistics.after(i))
    return found


def series_numbers(plan: Any) -> tuple[int, int]:
    """The numbers of a sequence's series at most, and those of what lives only while it is made."""
    if not plan.statistics.count:
        return 0, 0
    found, largest, whole = 0, 0, read_whole(plan)
    for node in plan.graph.nodes:
        rule = plan.rules[node.index]
        if rule is None or not plan.readers[node.index]:
            continue
        size = int(np.prod([s for s in (node.shape or ())[1:] if s is not None]))
        terms = len(columns_of(plan, node.index))
        if plan.statistics.after(node.index):
            largest = max(largest, terms * size)
            readers = (plan.rules[r] for r in plan.consumers[node.index])
            again = any(r is not None and not r.linear for r in readers)
            found += terms * size * again
        if node.index in whole or (terms and not plan.statistics.after(node.index)):
            found += (terms + terms * (terms + 1) // 2) * size
    return found, 4 * largest


def make_series(run: Context) -> Series:
    """Differentiate the reference at hand by its statistics."""
    made = _Making(run)
    with DIFFERENTIATING:
        made.first_order()
        made.second_order()
    series = made.series
    for index, (first, second) in series.rows.items():
        if second is not None:
            series.sizes[index] = norms_of(first), norms_of(second)
    for index, first in series.first.items():
        flat = first.flatten(2)
        series.products[index] = flat @ flat.transpose(1, 2) / flat.shape[2]
    return series


def norms_of(rows: torch.Tensor) -> torch.Tensor:
    """The norm of each of ``(X, Y, ...)``: ``(X, Y)``."""
    return torch.linalg.vector_norm(rows.reshape(*rows.shape[:2], -1), dim=2)


class _Making:
    """Differentiates the nodes after statistics, in order: once by each number, then by each pair."""

    def __init__(self, run: Context) -> None:
        self.run, self.plan = run, run.plan
        self.series = Series()
        plan: Any = run.plan
        self.whole = read_whole(plan)
        self.nodes = [n for n in plan.graph.nodes if plan.readers[n.index] and self._has_series(n)]
        self.columns = {n.index: columns_of(plan, n.index) for n in self.nodes}
        self.last: dict[int, int] = {}
        for n in self.nodes:
            self.last.update(dict.fromkeys(n.inputs, n.index))
        # sources of functions that are not linear: their derivatives of first order are read again
        self.again = {s for n in self.nodes if not self.rule(n).linear for s in self.rule(n).sources}

    def rule(self, node: Node) -> Rule:
        rule = self.run.plan.rules[node.index]  # type: ignore[attr-defined]
        assert rule is not None
        return rule

    def _has_series(self, node: Node) -> bool:
        plan: Any = self.run.plan
        rule = plan.rules[node.index]
        if plan.statistics.after(node.index):
            return True
        return rule is not None and rule.linear and any(plan.statistics.after(s) for s in rule.sources)

    # ---- first order

    def first_order(self) -> None:
        """Differentiate by each number."""
        plan: Any = self.run.plan
        found: dict[int, torch.Tensor] = {}
        for node in self.nodes:
            i, columns = node.index, self.columns[node.index]
            tangents = {
                s: self._spread(t, self._columns_of(s), columns) for s, t in self._first_of(node, found).items()
            }
            if self._pointwise(node):
                slopes = {s: derivative(self.run, node, (s,)) for s in tangents}
                parts = [slope * tangents[s] for s, slope in slopes.items() if slope is not None]
                value = self.run.value(i)
                result = sum(parts[1:], parts[0]) if parts else value.new_zeros(len(columns), *value.shape)
            else:
                result = self._along(node, tangents)
            self._keep(node, result)
            if plan.statistics.after(i):
                found[i] = result
            for s in [s for s in found if self.last.get(s, -1) <= i]:
                del found[s]

    def _first_of(self, node: Node, found: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """The derivatives of what a node reads, ``(T, B, ...)``; of a statistic by itself it is one."""
        plan: Any = self.run.plan
        tangents: dict[int, torch.Tensor] = {}
        for s in self.rule(node).sources:
            if plan.statistics.after(s):
                tangents[s] = found[s] if s in found else self._natural(s)
            elif s in plan.statistics.first and plan.statistics.after(node.index):
                value = self.run.value(s)
                numbers = value[0].numel()
                unit = torch.eye(numbers, dtype=value.dtype, device=value.device)
                tangents[s] = unit.view(numbers, 1, *value.shape[1:]).expand(numbers, *value.shape)
        return tangents

    def _columns_of(self, source: int) -> tuple[int, ...]:
        plan: Any = self.run.plan
        if plan.statistics.after(source):
            return self.columns[source]
        start = plan.statistics.first[source]
        return tuple(range(start, start + self.run.value(source)[0].numel()))

    def _natural(self, source: int) -> torch.Tensor:
        """The kept derivatives of first order, ``(T, B, ...)`` in the model's layout."""
        kept = self.series.first[source]
        rows = self.run.plan.layouts[source].natural(kept.flatten(0, 1))
        return rows.unflatten(0, kept.shape[:2]).transpose(0, 1)

    def _keep(self, node: Node, result: torch.Tensor) -> None:
        i, plan = node.index, self.run.plan
        if i in self.again and plan.layouts[i].kind == "windows":
            rows = plan.layouts[i].position_first(result.transpose(0, 1).flatten(0, 1))
            self.series.first[i] = rows.unflatten(0, (result.shape[1], result.shape[0])).contiguous()
        if i in self.whole or plan.layouts[i].kind != "windows":
            self.series.rows[i] = result.transpose(0, 1).contiguous(), None

    # ---- second order

    def second_order(self) -> None:
        """Differentiate by each pair, all pairs with one second number at a time."""
        plan: Any = self.run.plan
        for j in range(plan.statistics.count):
            give_back()
            found: dict[int, torch.Tensor] = {}
            for node in self.nodes:
                i = node.index
                if j not in self.columns[i]:
                    continue
                result = self._second_of(node, j, found)
                if result is not None and plan.statistics.after(i):
                    found[i] = result
                if result is not None and i in self.series.rows:
                    self._keep_rows(i, j, result)
                for s in [s for s in found if self.last.get(s, -1) <= i]:
                    del found[s]

    def _keep_rows(self, index: int, j: int, result: torch.Tensor) -> None:
        first, second = self.series.rows[index]
        if second is None:
            count = first.shape[1]
            second = first.new_zeros(first.shape[0], count * (count + 1) // 2, *first.shape[2:])
            self.series.rows[index] = first, second
        stop = sum(self._up_to(index, c) for c in self.columns[index] if c <= j)
        second[:, stop - len(result) : stop] = result.transpose(0, 1)

    def _up_to(self, index: int, j: int) -> int:
        return sum(c <= j for c in self.columns[index])

    def _second_of(self, node: Node, j: int, found: dict[int, torch.Tensor]) -> torch.Tensor | None:
        """The derivatives ``(i, B, ...)`` by ``j`` and all of the node's numbers up to it; None if they are zero."""
        columns = [c for c in self.columns[node.index] if c <= j]

        def up_to_j(source: int) -> list[int]:
            return [c for c in self._columns_of(source) if c <= j]

        second = {s: self._spread(found[s], up_to_j(s), columns) for s in self.rule(node).sources if s in found}
        if self.rule(node).linear:
            return self._along(node, second) if second else None
        # those of first order by numbers up to j, and by j
        firsts: dict[int, torch.Tensor] = {}
        by_j: dict[int, torch.Tensor] = {}
        for s, tangent in self._first_of(node, {}).items():
            own = self._columns_of(s)
            firsts[s] = self._spread(tangent[: len(up_to_j(s))], up_to_j(s), columns)
            if j in own:
                by_j[s] = tangent[own.index(j)]
        if not self._pointwise(node):
            return self._curved(node, firsts, by_j, second)
        result: torch.Tensor | None = None
        for a in firsts:
            for b in by_j:
                curve = derivative(self.run, node, (a, b))
                if curve is not None:
                    part = firsts[a] * (curve * by_j[b])
                    result = part if result is None else result.add_(part)
        for s, tangent in second.items():
            slope = derivative(self.run, node, (s,))
            if slope is not None:
                result = slope * tangent if result is None else result.addcmul_(slope.expand_as(result), tangent)
        return result

    def _curved(
        self,
        node: Node,
        firsts: dict[int, torch.Tensor],
        by_j: dict[int, torch.Tensor],
        second: dict[int, torch.Tensor],
    ) -> torch.Tensor | None:
        """The same for an operation along other axes, of one source."""
        (source,) = self.rule(node).sources
        function, x = self._function(node, [source]), self.run.value(source)
        result = self._along(node, second) if second else None
        if source in by_j:
            other = by_j[source]

            def curved(tangent: torch.Tensor) -> torch.Tensor:
                return jvp(lambda y: jvp(function, (y,), (tangent,)), (x,), (other,))

            part = torch.func.vmap(curved)(firsts[source])
            result = part if result is None else result + part
        return result

    # ---- both

    def _pointwise(self, node: Node) -> bool:
        return not self.rule(node).linear and ops.is_pointwise(node.op, node.target)

    def _along(self, node: Node, tangents: dict[int, torch.Tensor]) -> torch.Tensor:
        """The derivative of an operation along tangents ``(T, B, ...)`` of what it reads."""
        sources, place = list(tangents), ops.of(node.op).bias
        bias = None if place is None else node.argument(place, "bias")
        if (
            place is not None and len(sources) == 1 and self.rule(node).linear
        ):  # a product with weights, of all tangents as rows
            rows = tangents[sources[0]].flatten(0, 1)

            def value(i: int) -> Any:
                given = self.run.value(i)
                no_bias = isinstance(bias, Ref) and i == bias.index
                return rows if i == sources[0] else torch.zeros_like(given) if no_bias else given

            result = self.rule(node).reference(value, self.run.device)
            return result.unflatten(0, tangents[sources[0]].shape[:2])
        function, values = self._function(node, sources), tuple(self.run.value(s) for s in sources)

        def along(*some: torch.Tensor) -> torch.Tensor:
            return jvp(function, values, some)

        return torch.func.vmap(along)(*(tangents[s].contiguous() for s in sources))

    def _function(self, node: Node, sources: Sequence[int]) -> Callable[..., torch.Tensor]:
        def function(*xs: torch.Tensor) -> torch.Tensor:
            given = dict(zip(sources, xs, strict=True))

            def value(i: int) -> Any:
                return given[i] if i in given else self.run.value(i)

            args, kwargs = (map_refs(a, lambda ref: value(ref.index)) for a in (node.args, node.kwargs))
            result = differentiable(node)(*args, **kwargs)
            assert isinstance(result, torch.Tensor)
            return result

        return function

    @staticmethod
    def _spread(tangent: torch.Tensor, own: Sequence[int], columns: Sequence[int]) -> torch.Tensor:
        """Derivatives by a node's ``own`` numbers among those of ``columns``, with zeros for the others."""
        if tuple(own) == tuple(columns):
            return tangent
        result = tangent.new_zeros(len(columns), *tangent.shape[1:])
        places = {c: k for k, c in enumerate(columns)}
        result[[places[c] for c in own]] = tangent
        return result


# ---- evaluation


def pairs_of(count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The pairs ``i <= j`` in the order of ``j``, and 1/2 where they are equal, else 1."""
    j, i = torch.tril_indices(count, count, device=device)
    return i, j, torch.where(i == j, 0.5, 1.0)


def squares(moved: torch.Tensor) -> torch.Tensor:
    """``s_i s_j`` for each pair, ``(S, A, P)``; half of it where they are equal."""
    i, j, factor = pairs_of(moved.shape[2], moved.device)
    return moved[:, :, i] * moved[:, :, j] * factor.to(moved.dtype)


def by_sequence(terms: torch.Tensor, coefficients: torch.Tensor, run: Context) -> torch.Tensor:
    """``(S, A, T)`` times the ``(B, T, ...)`` of each site's sequence: ``(S, A, ...)``."""
    rest = coefficients.shape[2:]
    flat = coefficients.flatten(2) if rest else coefficients.unsqueeze(2)
    only = 0 if coefficients.shape[0] == 1 else run.sites.only
    if only is not None:
        result = terms.flatten(0, 1) @ flat[only]
    else:
        result = terms.new_empty(*terms.shape[:2], flat.shape[2])
        for sequence, sites in _sites_of_sequences(run):
            result[sites] = terms[sites] @ flat[sequence]
    return result.view(*terms.shape[:2], *rest)


def _sites_of_sequences(run: Context) -> list[tuple[int, torch.Tensor]]:
    sequence = run.sites.sequence
    return [(int(b), on_device(np.flatnonzero(sequence == b), run.device)) for b in np.unique(sequence)]


def on_windows(terms: torch.Tensor, coefficients: torch.Tensor, window: Window, run: Context) -> torch.Tensor:
    """``(S, A, T)`` times the ``(B, T, L, ...)`` of each site's sequence, on its window: ``(S, A, w, ...)``.

    Neighbouring sites have neighbouring windows. One product gives all terms on the positions of several sites'
    windows, of which each site takes its own.
    """
    sequence, only = run.sites.sequence, run.sites.only
    of_position = coefficients.shape[3:]
    key = ("stretches", None if only is not None else sequence.tobytes())
    parts = []
    for at, last, low, length in window.cached(key, lambda: _stretches(window, sequence)):
        rows = terms[at:last]
        matrix = coefficients[int(sequence[at]) if coefficients.shape[0] > 1 else 0, :, low : low + length]
        stretch = (rows.flatten(0, 1) @ matrix.flatten(1)).view(*rows.shape[:2], length, *of_position)
        parts.append(_diagonal(stretch, Window.at(window.start[at:last], window.width), low))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _stretches(window: Window, sequence: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Runs of sites of one sequence whose windows lie close together: first and stop of the sites, and first and number
    of the positions. A stretch is at most twice as long as a window.
    """
    found, start, at = [], window.start, 0
    while at < len(start):
        low = high = int(start[at])
        last = at + 1
        while last < len(start) and sequence[last] == sequence[at]:
            below, above = min(low, int(start[last])), max(high, int(start[last]))
            if above - below > window.width:
                break
            low, high, last = below, above, last + 1
        found.append((at, last, low, high - low + window.width))
        at = last
    return found


def _diagonal(stretch: torch.Tensor, window: Window, low: int) -> torch.Tensor:
    """Each site's window of a tensor ``(S, A, length, ...)`` that begins at ``low`` for all of them."""
    if window.step is None:
        whole = Window.at(np.full_like(window.start, low), stretch.shape[2])
        return rewindow(stretch, whole, window)
    of_site, of_edit, of_position, *rest = stretch.stride()
    shape = (*stretch.shape[:2], window.width, *stretch.shape[3:])
    offset = (int(window.start[0]) - low) * of_position
    return stretch.as_strided(shape, (of_site + window.step * of_position, of_edit, of_position, *rest), offset)


__all__ = ["Series", "by_sequence", "make_series", "on_windows", "squares"]
