"""How each node is run, and why: decided once for an architecture, a sequence length and a device.

A plan never changes. Another choice makes another plan: see `Plan.with_ways` and `dataclasses.replace`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from yuzu._engine.choice import Choice
from yuzu._engine.graph import Graph
from yuzu._engine.handlers import Rule, View, find_handler, find_rule
from yuzu._engine.handlers.fused import FusedGroup
from yuzu._engine.handlers.unmutated import gives_rows
from yuzu._engine.kept import Kept
from yuzu._engine.layout import CONSTANT, ROWS, VALUES, Layout
from yuzu._engine.plan.chains import over_chains
from yuzu._engine.plan.conditioning import find_exact_zeros, find_fading, find_well_conditioned
from yuzu._engine.plan.factors import absorb_factors
from yuzu._engine.plan.flow import Flow, flow_of, last_reads_of
from yuzu._engine.plan.fusion import find_groups
from yuzu._engine.plan.needed import find_needed, find_spreads
from yuzu._engine.plan.sharing import Sharing, find_sharing
from yuzu._engine.plan.statistics import Found, Statistics, most_numbers, with_norms_apart
from yuzu._engine.plan.widening import Widened, find_widened
from yuzu._engine.plan.windows import Edited, Span, Windows, find_reach, find_windows
from yuzu._engine.ways.compressed_sensing import SENSING_WAYS, Sensing

# Bytes of remembered windows with their index tables: enough for the chunks of one sequence, but bounded.
WINDOWS_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class Plan(Flow):
    """How every node that a mutation changes is run, or why it runs naively.

    Attributes
    ----------
    reasons: mapping of int to str
        The reason why a node runs naively.
    naive: mapping of int to str
        The nodes that must run naively, and why.
    choices: tuple of Choice
        How each node is run.
    needed: sequence of (int, int)
        The positions of each windowed node that the outputs depend on.
    spreads: sequence of (int, int) or None
        How far from an edit each node's windows begin and end; see `find_spreads`.
    last_reads: sequence of list of int
        The changes that each node is the last to read.
    widened: Widened
        The nodes that are run in float64 where the device has it.
    sharing: Sharing
        The results that the same sequences share for different values of the model's other inputs.
    group_of: mapping of int to FusedGroup
        The fused group, which may run as one on a GPU, of each node that is in one.
    precision: str
    kernels: bool
        Yuzu's own Triton kernels may be used if the device runs them.
    kernels_failed: threading.Event
        Set when a kernel turns out not to run here; shared with plans made from this one.
    sensing: Sensing or None
        The matrices of the Gaussian way of running a convolution.
    statistics: Statistics
        The statistics past which windows are carried; none unless the plan was made for them.
    plain: Plan or None
        The plan without statistics, if this one has them.
    may_fade: bool
        A node multiplies with weights, and its terms may all nearly vanish where that shows: see `find_fading`.
    one_by_one: bool
        A node that no mutation reaches may depend on the other sequences of a batch, as it never does in naive ISM. So
        the references of several sequences must not run together.
    remembered: Kept
        The windows of the last chunks, shared with plans made from this one.
    """

    reasons: Mapping[int, str]
    naive: Mapping[int, str]
    choices: tuple[Choice, ...]
    needed: Sequence[Span]
    spreads: Sequence[Span | None]
    last_reads: Sequence[list[int]]
    widened: Widened
    sharing: Sharing
    group_of: Mapping[int, FusedGroup]
    precision: str = "highest"
    kernels: bool = True
    sensing: Sensing | None = None
    statistics: Statistics = field(default_factory=Statistics)
    plain: Plan | None = None
    kernels_failed: threading.Event = field(default_factory=threading.Event)
    may_fade: bool = False
    one_by_one: bool = False
    remembered: Kept[tuple[object, bytes], Windows] = field(default_factory=lambda: Kept(most_bytes=WINDOWS_BYTES))
    _own: object = field(default_factory=object)  # tells its windows from those of other plans in ``remembered``
    _reach: Kept[bytes, tuple[np.ndarray, np.ndarray]] = field(default_factory=lambda: Kept(1))
    _reached: Kept[tuple[int, int], np.ndarray] = field(default_factory=lambda: Kept(1))

    @property
    def senses(self) -> bool:
        """Tell whether any layer runs by compressed sensing."""
        return any(choice.way in SENSING_WAYS for choice in self.choices)

    # ---- other plans

    def without(self, nodes: Mapping[int, str]) -> Plan:
        """The same plan with more nodes run naively, for the reasons given."""
        other = self._anew(self.precision, {**self.naive, **nodes})
        other = replace(other, sensing=self.sensing, remembered=self.remembered, plain=self.plain)
        return other.with_ways_of(self)

    def without_statistics(self) -> Plan:
        """The same plan, or one that ends windows at the first statistic."""
        return self if self.plain is None else self.plain

    def without_kernels(self) -> Plan:
        """The same plan without Yuzu's own kernels."""
        return replace(self, kernels=False)

    def with_sensing(self, sensing: Sensing) -> Plan:
        """The same plan with other Gaussian probes."""
        return replace(self, sensing=sensing)

    def by_first_ways(self, precision: str) -> Plan:
        """A plan of the same graph, in which each layer runs by the first of its ways, without kernels."""
        return replace(self._anew(precision, self.naive), kernels=False)

    def in_precision(self, precision: str) -> Plan:
        """The same plan in another precision, before any way has been timed."""
        return replace(self._anew(precision, self.naive), sensing=self.sensing)

    def of_graph(self, graph: Graph, plain: Graph | None = None) -> Plan:
        """A plan of another graph in the same way, with the same nodes run naively; ``plain`` is that graph with norms
        whole.
        """
        other = None if plain is None or self.plain is None else self.plain.of_graph(plain).with_ways_of(self.plain)
        made = make_plan(graph, self.precision, self.naive, self.plain is not None)
        return replace(made, plain=other).with_ways_of(self)

    def _anew(self, precision: str, naive: Mapping[int, str]) -> Plan:
        return replace(make_plan(self.graph, precision, naive, self.plain is not None), plain=self.plain)

    def with_ways(self, ways: Mapping[int, str]) -> Plan:
        """The same plan with other ways for some nodes."""
        choices = tuple(
            replace(choice, way=ways[i]) if i in ways and ways[i] != choice.way else choice
            for i, choice in enumerate(self.choices)
        )
        return replace(self, choices=choices)

    def with_ways_of(
        self, other: Plan, pairs: Iterable[tuple[int, int]] | None = None, but: Sequence[str] = ()
    ) -> Plan:
        """The same plan with the ways of another plan, except those in ``but``. It has no kernels if the other has
        none. ``pairs`` maps the nodes here to the nodes there; by default they are the same.
        """
        ways = {}
        for here, there in pairs if pairs is not None else ((i, i) for i in range(len(self.rules))):
            way = other.choices[there].way
            if self.rules[here] is not None and other.rules[there] is not None and way not in but:
                ways[here] = way
        kernels = self.kernels and other.kernels
        return replace(self.with_ways(ways), kernels=kernels, kernels_failed=other.kernels_failed)

    def ways(self) -> dict[int, str]:
        """The way of every node that has several ways."""
        return {
            rule.node.index: self.choices[rule.node.index].way
            for rule in self.rules
            if rule is not None and rule.all_ways() and rule.node.mutated and self.readers[rule.node.index]
        }

    # ---- facts

    def read_in_low_precision(self, index: int, as_one: Callable[[int], bool] = lambda reader: False) -> bool:
        """Tell whether all readers of a node's change can read it in the dtype of low-precision products. Readers in a
        fused group can, and ``as_one`` tells whether a reader is in one.
        """
        return _read_in_low_precision(self, self.choices, index, as_one)

    def windows(self, position: np.ndarray, width: int, with_tables: bool = True) -> Windows:
        """The window of every windowed node for edits of ``width`` positions at ``position``; None for other nodes.

        Windows are remembered up to `WINDOWS_BYTES`. ``with_tables`` counts the index tables that will be kept with
        them, as on a CPU.
        """
        places = position.tobytes() + width.to_bytes(8, "little")
        key = self._own, places
        known = self.remembered.get(key)
        if known is not None:
            return known
        found = find_windows(self, self.needed, self.spreads, Edited(position, width))
        size = len(places) + sum(w.kept_bytes(with_tables) for w in found if w is not None)
        return self.remembered.put(key, found, size) if size <= WINDOWS_BYTES else found

    def reach(self, positions: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """For each position, tell whether its edits reach any output; and whether it lies so far from both ends that
        all its windows follow the common pattern.
        """
        key = positions.tobytes() + width.to_bytes(8, "little")
        return self._reach.made(key, lambda: self._find_reach(positions, width))

    def reached(self, length: int, width: int) -> np.ndarray:
        """The positions of a sequence at which edits of a width reach any output; all positions if none does. The cost
        of a plan is measured there, since a model may crop its input, or skip parts of it.
        """

        def find() -> np.ndarray:
            places = np.arange(length - width + 1)
            reach = self._find_reach(places, width)[0]
            return places[reach] if reach.any() else places

        return self._reached.made((length, width), find)

    def _find_reach(self, positions: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        windows = find_windows(self, self.needed, self.spreads, Edited(positions, width))
        reach, regular = find_reach(self, windows, len(positions))
        return reach | bool(self.statistics.count), regular


def make_plan(
    graph: Graph,
    precision: str = "highest",
    naive: Mapping[int, str] | None = None,
    with_statistics: bool = False,
) -> Plan:
    """Find a rule for every node, and choose how each runs. ``naive`` has the nodes that must run naively, and why.
    ``with_statistics`` carries windows past statistics.
    """
    naive = dict(naive or {})
    layouts, rules, reasons, statistics = _find_rules(graph, naive, with_statistics)
    flow = flow_of(graph, layouts, over_chains(graph.nodes, layouts, rules))
    after = frozenset(n.index for n in graph.nodes if statistics.after(n.index))
    widened = find_widened(flow).without(after)
    fading = find_fading(flow, lambda _: True) - after
    choices = _choose(flow, fading, widened, after)
    sharing = find_sharing(flow, choices)
    one_by_one = any(
        layout == VALUES and node.batched and not node.mutated and node.shape is not None
        for node, layout in zip(graph.nodes, layouts, strict=True)
    )
    return Plan(
        **{name: getattr(flow, name) for name in Flow.__dataclass_fields__},
        reasons=reasons,
        naive=naive,
        choices=choices,
        needed=find_needed(flow),
        spreads=find_spreads(flow),
        last_reads=last_reads_of(flow, statistics.first),
        widened=widened,
        sharing=sharing,
        group_of=find_groups(flow, choices, sharing, widened.run | after),
        precision=precision,
        may_fade=bool(fading),
        one_by_one=one_by_one,
        statistics=statistics,
    )


def make_plan_with_statistics(plain: Plan) -> tuple[Plan, tuple[int, ...]] | None:
    """A plan that carries windows past statistics, and the nodes of the ``plain`` plan's graph that it takes apart:
    norms, and softmaxes of attention pooling; None if there are neither. The same nodes run naively.
    """

    def plan_of(graph: Graph, same: Mapping[int, int]) -> Plan:
        naive = {same[i]: why for i, why in plain.naive.items() if i in same}
        return make_plan(graph, plain.precision, naive, with_statistics=True)

    apart, same, norms = with_norms_apart(plain.graph, plan_of)
    plan = plan_of(apart, same)
    length = next(layout.length for n, layout in zip(apart.nodes, plan.layouts, strict=True) if n.kind == "sequence")
    found = (norms or plan.statistics.count) and plan.statistics.count <= most_numbers(length)
    return (replace(plan, plain=plain), norms) if found else None


def _find_rules(
    graph: Graph, naive: dict[int, str], with_statistics: bool
) -> tuple[list[Layout], list[Rule | None], dict[int, str], Statistics]:
    """Find the layout of every node, its rule if it has one, the reasons why mutated nodes have none, and the
    statistics.
    """
    statistics = Found(graph)
    layouts: list[Layout] = []
    rules: list[Rule | None] = []
    reasons: dict[int, str] = {}
    for node in graph.nodes:
        rule: Rule | None = None
        if not node.batched:
            layout = CONSTANT
        elif node.kind == "sequence":
            assert node.shape is not None and isinstance(node.shape[2], int)
            layout = Layout("windows", 2, node.shape[2])
        elif node.kind == "extra":
            layout = ROWS
        elif node.shape is None and not node.mutated:
            layout = VALUES  # a number made from the batch size
        else:
            view = View(graph, node, layouts, statistics.candidates(layouts) if with_statistics else frozenset())
            found = _rule_or_reason(view, naive)
            if with_statistics:
                found = statistics.of(view, found)
            if isinstance(found, str):
                by_rows = not node.mutated and gives_rows(View(graph, node, layouts))
                layout = ROWS if by_rows else VALUES
                if node.mutated:
                    reasons[node.index] = found
            else:
                layout, rule = found.layout, found
        layouts.append(layout)
        rules.append(rule)
    return layouts, rules, reasons, statistics.done()


def _rule_or_reason(view: View, naive: dict[int, str]) -> Rule | str:
    graph, node, layouts = view.graph, view.node, view.layouts
    if node.index in naive:
        return naive[node.index]
    naively = [graph.nodes[i] for i in node.inputs if layouts[i] == VALUES]
    for source in naively:
        if source.mutated:
            return f"it follows {source.label}, which runs naively"
    whole = [source for source in naively if source.shape is not None]
    if whole:  # a naive node before it may not be a layer that a warning can name
        handler = find_handler(view)
        why = f"its input {whole[0].label} may depend on the size of the batch or on its other rows"
        return handler if isinstance(handler, str) else why
    return find_rule(view)


def _choose(flow: Flow, fading: frozenset[int], widened: Widened, after: frozenset[int]) -> tuple[Choice, ...]:
    """Choose how each node runs, before any way has been timed; ``after`` are the windowed nodes after statistics."""
    zeros = {rule.node.index for rule in find_exact_zeros(flow)} - after
    conditioned = find_well_conditioned(flow)
    choices = [
        Choice(
            way="" if rule is None else rule.default_way,
            exact_zeros=i in zeros,
            watched=i in fading,
            well_conditioned=conditioned[i],
        )
        for i, rule in enumerate(flow.rules)
    ]
    choices = absorb_factors(flow, choices, widened.run | after)
    return tuple(
        replace(choice, low_precision=not choice.exact_zeros and _read_in_low_precision(flow, choices, i))
        for i, choice in enumerate(choices)
    )


def _read_in_low_precision(
    flow: Flow, choices: Sequence[Choice], index: int, as_one: Callable[[int], bool] = lambda reader: False
) -> bool:
    for i in flow.consumers[index]:
        rule = flow.rules[i]
        absorbed = choices[i].absorbed and _read_in_low_precision(flow, choices, i, as_one)
        if not (as_one(i) or absorbed or (rule is not None and rule.reads_low_precision)):
            return False
    return index not in flow.graph.output_nodes


__all__ = ["Plan", "make_plan", "make_plan_with_statistics"]
