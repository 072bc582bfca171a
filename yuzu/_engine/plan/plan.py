"""What will be done at each node, decided once for an architecture, a sequence length and a device; and why."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from yuzu._engine.graph import Graph
from yuzu._engine.handlers import Rule, View, find_handler, find_rule
from yuzu._engine.handlers.affine import Scaled
from yuzu._engine.handlers.convolution import Convolution
from yuzu._engine.handlers.elementwise import OfValues
from yuzu._engine.handlers.formulas import Rectifier
from yuzu._engine.handlers.fused import Block
from yuzu._engine.handlers.unmutated import gives_rows
from yuzu._engine.layout import CONSTANT, ROWS, VALUES, Layout
from yuzu._engine.plan.chains import take_over_stretches
from yuzu._engine.plan.conditioning import find_fading, find_settling, find_steady
from yuzu._engine.plan.fusion import find_blocks
from yuzu._engine.plan.sharing import Sharing, find_sharing
from yuzu._engine.plan.widening import Widened, find_widened
from yuzu._engine.ways.compressed_sensing import SENSING_WAYS, Sensing
from yuzu._engine.window import Window

WINDOWS_BYTES = 64 << 20  # of remembered windows and their index tables: what a sequence's chunks need, not what all do


class RememberedWindows:
    """The windows of a plan's last chunks, and of plans made from it for some of its outputs or with more nodes run
    naively: as many as `WINDOWS_BYTES` hold of all of them.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[object, bytes], tuple[list[Window | None], int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: tuple[object, bytes]) -> list[Window | None] | None:
        """What was put there, if it is still there."""
        with self._lock:
            known = self._kept.get(key)
            if known is None:
                return None
            self._kept.move_to_end(key)
            return known[0]

    def put(self, key: tuple[object, bytes], windows: list[Window | None], size: int) -> None:
        """Remember windows that take ``size`` bytes, with all that comes to be kept with them."""
        with self._lock:
            if key not in self._kept and size <= WINDOWS_BYTES:
                self._kept[key] = windows, size
                self._bytes += size
            while self._bytes > WINDOWS_BYTES:
                self._bytes -= self._kept.popitem(last=False)[1][1]


@dataclass
class Plan:
    """A rule, or a reason for running naively, for every node that a mutation changes.

    Attributes
    ----------
    graph: Graph
    layouts: list of Layout
    rules: list of Rule or None
    reasons: dict of int to str
        Why a node runs naively.
    naive: dict of int to str
        The nodes that were asked to run naively.
    sensing: Sensing or None
        What the Gaussian way of running a convolution needs.
    sharing: Sharing
        What the same sequences have in common with other values of the model's other inputs.
    needed: list of (int, int)
        The positions of each windowed node that the output depends on.
    steady: list of bool
        Whether a small error in a node's change leaves small errors in all outputs.
    widened: Widened
        What is run in float64 where the device has it.
    reads: list of list of int
        The nodes that each node reads as it is run.
    consumers: list of list of int
        The nodes that read each node so, in order.
    readers: list of int
        How many they are; being returned counts as being read. What none reads is not run.
    block_of: dict of int to Block
        What may run as one on a GPU, by each of its nodes.
    kernels: bool
        Whether kernels of our own may be used where a device runs them.
    may_fade: bool
        Whether anything multiplies with weights whose terms may nearly vanish where that shows.
    one_by_one: bool
        Whether what no mutation reaches may depend on the other sequences of a batch, as naive ISM's never does: their
        references must not be run together.
    """

    graph: Graph
    layouts: list[Layout]
    rules: list[Rule | None]
    reasons: dict[int, str]
    sharing: Sharing = field(init=False)
    reads: list[list[int]] = field(init=False)
    consumers: list[list[int]] = field(init=False)
    readers: list[int] = field(init=False)
    steady: list[bool] = field(init=False)
    widened: Widened = field(init=False)
    block_of: dict[int, Block] = field(init=False)
    one_by_one: bool = field(init=False)
    precision: str = "highest"
    sensing: Sensing | None = None
    naive: dict[int, str] = field(default_factory=dict)
    needed: list[tuple[int, int]] = field(default_factory=list)
    kernels: bool = True
    may_fade: bool = False

    def __post_init__(self) -> None:
        nodes = self.graph.nodes
        outputs = self.graph.output_nodes
        last: dict[int, int] = {}
        take_over_stretches(self)
        self._find_readers()
        for node in nodes:
            for i in self.reads[node.index] if self.readers[node.index] else ():
                last[i] = node.index
        # an unmutated node (zeros_like) is run when a naive one first asks for it: what it reads is kept to the end
        self.last_reads: list[list[int]] = [[] for _ in nodes]
        for i, reader in last.items():
            unmutated = any(not nodes[c].mutated for c in self.consumers[i])
            if i not in outputs and nodes[i].mutated and not unmutated:
                self.last_reads[reader].append(i)
        self._find_needed()
        self._find_spreads()
        self.steady = find_steady(self)
        for settling in find_settling(self):
            settling.settles = settling.reads_reference = True
        self.widened = find_widened(self)
        for i in find_fading(self, lambda _: True):
            rule = self.rules[i]
            assert rule is not None
            self.may_fade = rule.reads_reference = True
        self._absorb_factors()
        for rule in self.rules:
            if isinstance(rule, Convolution):
                rule.lowered_result = self.reads_lowered(rule.node.index) and not rule.settles
                rule.steady = self.steady[rule.node.index]
        self.remembered = RememberedWindows()
        self._mine = object()  # tells its windows from those of other plans that are remembered together
        self.sharing = find_sharing(self)
        self.one_by_one = any(
            layout == VALUES and node.batched and not node.mutated and node.shape is not None
            for node, layout in zip(nodes, self.layouts, strict=True)
        )
        self.block_of = {i: block for block in find_blocks(self) for i in block.nodes}
        self._reach: tuple[bytes, np.ndarray, np.ndarray] = (b"", np.empty(0), np.empty(0))  # of the last call
        self._reached: tuple[int, np.ndarray] = (0, np.empty(0))  # of the last width

    def _find_readers(self) -> None:
        """What each node reads as it is run, which is not what lies between if a rule takes a stretch over; and what
        reads it, if that is itself read.
        """
        nodes = self.graph.nodes
        outputs = self.graph.output_nodes
        self.reads = [list(dict.fromkeys(node.inputs)) for node in nodes]
        for rule in self.rules:
            if isinstance(rule, OfValues):
                self.reads[rule.node.index] = rule.reads()
        self.consumers = [[] for _ in nodes]
        for node in reversed(nodes):
            if not node.mutated or self.consumers[node.index] or node.index in outputs:
                for i in self.reads[node.index]:
                    self.consumers[i].insert(0, node.index)
        self.readers = [len(c) for c in self.consumers]
        for o in outputs:
            self.readers[o] += 1

    def _find_needed(self) -> None:
        nodes = self.graph.nodes
        empty = (1 << 60, -1)
        needed = [empty] * len(nodes)

        def include(i: int, low: int, high: int) -> None:
            if self.layouts[i].kind == "windows" and high > low:
                needed[i] = (min(needed[i][0], low), max(needed[i][1], high))

        for o in self.graph.output_nodes:
            include(o, 0, self.layouts[o].length)
        for node in reversed(nodes):
            rule = self.rules[node.index]
            if not node.mutated or not self.readers[node.index] or node.kind == "sequence":
                continue
            if rule is None:
                for i in node.inputs:
                    include(i, 0, self.layouts[i].length)
                continue
            low, high = needed[node.index] if rule.layout.kind == "windows" else (0, rule.layout.length)
            if rule.layout.kind == "windows" and high <= low:
                continue
            for source, (a, b) in zip(rule.sources, rule.needed(low, high), strict=True):
                include(source, a, b)
        self.needed = [(0, 0) if n == empty else n for n in needed]

    def _find_spreads(self) -> None:
        """How far from an edit each node's windows begin and end, far from the ends of the sequence, where that is the
        same at every position and nothing on the way turns finite values into others: for edits of ``p <= position <
        q`` they are ``[p + spread[0], q + spread[1])``.
        """
        self.spreads: list[tuple[int, int] | None] = []
        for node in self.graph.nodes:
            rule = self.rules[node.index]
            if node.kind == "sequence":
                self.spreads.append((0, 0))
            elif node.mutated and rule is not None and self.layouts[node.index].kind == "windows":
                self.spreads.append(self._spread_after(rule))
            else:
                self.spreads.append(None)

    def _spread_after(self, rule: Rule) -> tuple[int, int] | None:
        sources = {i: self.spreads[i] for i in rule.sources if self.layouts[i].kind == "windows"}
        known = {i: spread for i, spread in sources.items() if spread is not None}
        if not rule.keeps_finite or not known or len(known) < len(sources):
            return None
        # a stride shows in three neighbours; two widths tell whether the end follows that of the edit
        lowest = max(-begin for begin, _ in known.values())
        if any(lowest + 4 + end > self.layouts[i].length for i, (_, end) in known.items()):
            return None
        edit = lowest + np.arange(3)
        found = []
        for width in (1, 2):
            windows = {i: Window.at(edit + begin, width + end - begin) for i, (begin, end) in known.items()}
            first, stop = rule.window([windows.get(i) for i in rule.sources])
            found.append((first - edit, stop - edit - width))
        spread = int(found[0][0][0]), int(found[0][1][0])
        return spread if all((f == spread[0]).all() and (s == spread[1]).all() for f, s in found) else None

    def _absorb_factors(self) -> None:
        """A factor for each channel right after a convolution, or right before it, goes into its kernel; also past a
        rectifier between them.
        """
        for rule in self.rules:
            if not isinstance(rule, Scaled) or rule.per_channel is None or len(rule.sources) != 1:
                continue
            if not self.readers[rule.node.index] or rule.node.index in self.widened.run:
                continue
            index = rule.node.index
            source = rule.sources[0]
            before = self.rules[source]
            while isinstance(before, Scaled) and before.absorbed and self.readers[source] == 1:
                source = before.sources[0]
                before = self.rules[source]
            if rule.settles or (isinstance(before, Convolution) and before.settles):
                continue  # what it makes zero is its own reference's negative
            if isinstance(before, Convolution) and self.readers[source] == 1 and before.layout == rule.layout:
                rule.absorb(before.factors_after)
                continue
            readers = [self.rules[i] for i in self.consumers[index]]
            if len(readers) != 1 or index in self.graph.output_nodes:
                continue
            (after,) = readers
            between = after if isinstance(after, Rectifier) and after.layout == rule.layout else None
            if between is not None:
                after = self._only_reader(between)
            if isinstance(after, Convolution) and after.groups == 1 and after.height is None and not after.settles:
                rule.absorb(after.factors_before)
                if between is not None:
                    between.factor = rule.per_channel

    def _only_reader(self, rule: Rule) -> Rule | None:
        """The rule of the only node that reads a rule's result, if it is the only one."""
        i = rule.node.index
        return self.rules[self.consumers[i][0]] if self.readers[i] == 1 and self.consumers[i] else None

    def reads_lowered(self, index: int, as_one: Callable[[int], bool] = lambda reader: False) -> bool:
        """Whether all that reads a node's change can read it in the dtype of lowered products, as what reads it
        ``as_one`` with others does.
        """
        for i in self.consumers[index]:
            rule = self.rules[i]
            absorbed = isinstance(rule, Scaled) and rule.absorbed and self.reads_lowered(i, as_one)
            if not (as_one(i) or absorbed or (rule is not None and rule.reads_lowered)):
                return False
        return index not in self.graph.output_nodes

    @property
    def senses(self) -> bool:
        """Whether any layer is run by compressed sensing."""
        return any(rule is not None and rule.way in SENSING_WAYS for rule in self.rules)

    def without(self, nodes: dict[int, str]) -> Plan:
        """The same plan with more nodes run naively, for the reasons given."""
        other = make_plan(self.graph, self.precision, {**self.naive, **nodes})
        other.sensing, other.remembered = self.sensing, self.remembered
        other.take_ways(self)
        return other

    def without_kernels(self) -> Plan:
        """The same plan, run without kernels of our own."""
        other = copy.copy(self)
        other.kernels = False
        return other

    def with_sensing(self, sensing: Sensing) -> Plan:
        """The same plan with other Gaussian probes."""
        other = copy.copy(self)
        other.sensing = sensing
        return other

    def take_ways(self, other: Plan, pairs: Iterable[tuple[int, int]] | None = None, but: tuple[str, ...] = ()) -> None:
        """Run layers by the ways of another plan, ``but`` some, and without kernels where it does; ``pairs`` has the
        nodes here and what they are there, by default the same.
        """
        self.kernels = self.kernels and other.kernels
        for here, there in pairs if pairs is not None else ((i, i) for i in range(len(self.rules))):
            mine, theirs = self.rules[here], other.rules[there]
            if mine is not None and theirs is not None and theirs.way not in but:
                mine.way = theirs.way

    def windows(self, position: np.ndarray, width: int, with_tables: bool = True) -> list[Window | None]:
        """The window of every windowed node for edits of ``width`` positions at ``position``; None for other
        nodes. They are remembered, as many as there is room for; ``with_tables`` counts the index tables that come to
        be kept with them, as on a CPU.
        """
        places = position.tobytes() + width.to_bytes(8, "little")
        key = self._mine, places
        known = self.remembered.get(key)
        if known is not None:
            return known
        found = self._find_windows(position, width)
        size = len(places) + sum(w.kept_bytes(with_tables) for w in found if w is not None)
        self.remembered.put(key, found, size)
        return found

    def _find_windows(self, position: np.ndarray, width: int) -> list[Window | None]:
        windows: list[Window | None] = [None] * len(self.graph.nodes)
        for node in self.graph.nodes:
            i = node.index
            if not node.mutated or self.layouts[i].kind != "windows":
                continue
            needed, length = self.needed[i], self.layouts[i].length
            if node.kind == "sequence":
                windows[i] = Window.fit(position, position + width, needed, length, (position, position + width))
                continue
            rule = self.rules[i]
            assert rule is not None
            given = [windows[s] for s in rule.sources]
            present = [w if w is not None and w.width > 0 else None for w in given]
            if all(w is None for w in present):
                windows[i] = Window.fit(np.zeros_like(position), np.zeros_like(position), needed, length)
                continue
            spread, natural = self.spreads[i], None
            if spread is not None and all(w is None or w.natural is not None for w in given):
                natural = position + spread[0], position + width + spread[1]
            windows[i] = Window.fit(*rule.window(present), needed, length, natural)
        return windows

    def reach(self, positions: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Which positions' edits reach any output at all; and which lie so far from both ends that all their windows
        follow one pattern.
        """
        key = positions.tobytes() + width.to_bytes(8, "little")
        kept = self._reach  # read once: another thread may put its own there
        if key != kept[0]:
            kept = self._reach = (key, *self._find_reach(positions, width))
        return kept[1:]

    def reached(self, length: int, width: int) -> np.ndarray:
        """All positions at which edits of a width reach any output, of a sequence's length; all there are if none does.
        What a plan takes is measured there: a model may crop its input, or step over it.
        """
        kept = self._reached  # read once, as in `reach`
        if width != kept[0]:
            places = np.arange(length - width + 1)
            reach = self._find_reach(places, width)[0]
            kept = self._reached = width, places[reach] if reach.any() else places
        return kept[1]

    def _find_reach(self, positions: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        reach, regular = np.zeros(len(positions), dtype=bool), np.ones(len(positions), dtype=bool)
        windows = self._find_windows(positions, width)
        for node in self.graph.nodes:
            i = node.index
            if not node.mutated or not self.readers[i]:
                continue
            at = windows[i]
            if at is not None and at.regular is not None:
                regular &= at.regular
            to_rows = any(self.graph.nodes[c].mutated and self.layouts[c].kind != "windows" for c in self.consumers[i])
            # what is not in windows changes only where windows before it do
            if at is not None and (i in self.graph.output_nodes or to_rows):
                reach |= at.stop > at.first
        return reach, regular


def make_plan(
    graph: Graph,
    precision: str = "highest",
    naive: dict[int, str] | None = None,
    sensing: Sensing | None = None,
    kernels: bool = True,
) -> Plan:
    """Find a rule for every node; ``naive`` gives nodes that must run naively and why."""
    layouts: list[Layout] = []
    rules: list[Rule | None] = []
    reasons: dict[int, str] = {}
    naive = naive or {}
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
            found = _rule_or_reason(graph, node.index, layouts, naive)
            if isinstance(found, str):
                by_rows = not node.mutated and gives_rows(View(graph, node, layouts))
                layout = ROWS if by_rows else VALUES
                if node.mutated:
                    reasons[node.index] = found
            else:
                layout, rule = found.layout, found
        layouts.append(layout)
        rules.append(rule)
    return Plan(graph, layouts, rules, reasons, precision, sensing, naive, kernels=kernels)


def _rule_or_reason(graph: Graph, index: int, layouts: list[Layout], naive: dict[int, str]) -> Rule | str:
    node = graph.nodes[index]
    if index in naive:
        return naive[index]
    view = View(graph, node, layouts)
    naively = [graph.nodes[i] for i in node.inputs if layouts[i] == VALUES]
    for source in naively:
        if source.mutated:
            return f"it follows {source.label}, which runs naively"
    whole = [source for source in naively if source.shape is not None]
    if whole:  # all that is naive before it is no layer of its own that a warning would name
        handler = find_handler(view)
        why = f"what it reads of {whole[0].label} may depend on the size of the batch or on its other rows"
        return handler if isinstance(handler, str) else why
    return find_rule(view)
