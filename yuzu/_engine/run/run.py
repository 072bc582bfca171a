"""Walks the graph: once for the reference, then for chunk after chunk of mutants."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from yuzu._engine.edits import Sites as Sites
from yuzu._engine.gate import running
from yuzu._engine.graph import Node, Weights, evaluate
from yuzu._engine.handlers.contract import Rule
from yuzu._engine.handlers.fused import Block
from yuzu._engine.kernels.precision import fastest_products, products
from yuzu._engine.kernels.triton import KernelError
from yuzu._engine.layout import CONSTANT, ROWS, Change, Layout, expand, on_device, read_windows, rewindow, widened
from yuzu._engine.plan.conditioning import adds_constants, constants_of, find_fading
from yuzu._engine.plan.plan import Plan
from yuzu._engine.plan.widening import Widened, may_widen
from yuzu._engine.window import Window
from yuzu.errors import warn_user

# References too large to take differences from. Not measured: from there on numbers of float32 are 1 apart, those of
# float64 1e-4, so little or nothing is left of an ordinary mutant value beside them.
LARGEST_REFERENCE, LARGEST_IN_FLOAT64 = 1e7, 1e12
# Of the reference's terms, below which a mutant's result has lost two digits to the reference's rounding; and of the
# reference's result, below which constants that are added do not make up for that.
FADED, LITTLE = 1 / 16, 1 / 50
DOUBLES = (torch.float64, torch.complex128)


class Derived:
    """Tensors computed from weights, such as a convolution's banded matrix, kept until a weight they come
    from changes.

    A change is noticed by comparing the weights themselves with a copy, so no way of changing them goes
    unseen. With ``fixed`` weights, which nobody changes as long as it lives, nothing is compared or copied.
    """

    def __init__(self, fixed: bool = False) -> None:
        self._fixed = fixed
        self._kept: dict[Any, tuple[list[torch.Tensor], Any]] = {}

    def get(self, key: Any, sources: Sequence[torch.Tensor], make: Callable[[], Any]) -> Any:
        """``make()``, or what it gave before for the same ``key`` if all ``sources`` still hold the same
        numbers.
        """
        kept = self._kept.get(key)
        if kept is not None:
            copies, value = kept
            if self._fixed or (
                len(copies) == len(sources)
                and all(
                    c.dtype == s.dtype and c.device == s.device and _same_bits(c, s)
                    for c, s in zip(copies, sources, strict=True)
                )
            ):
                return value
        value = torch.utils._pytree.tree_map(lambda made: _apart(made, sources), make())
        self._kept[key] = ([] if self._fixed else [s.detach().clone() for s in sources], value)
        return value

    @property
    def nbytes(self) -> int:
        """Bytes of everything kept, the copies of the weights included."""
        tensors = torch.utils._pytree.tree_leaves([(copies, value) for copies, value in self._kept.values()])
        return sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))

    def forget(self, which: Callable[[Any], bool]) -> None:
        """Drop everything whose key satisfies ``which``."""
        for key in [k for k in self._kept if which(k)]:
            del self._kept[key]


def _apart(made: Any, sources: Sequence[torch.Tensor]) -> Any:
    """What is kept must not lie in a weight's own memory: the model may take another tensor for the weight, and whoever
    has the old one may write over it.
    """
    if not isinstance(made, torch.Tensor):
        return made
    places = {s.untyped_storage().data_ptr() for s in sources}
    return made.clone() if made.untyped_storage().data_ptr() in places else made


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one dtype hold the same; eight bytes at a time, which takes less than half as long."""
    if a.shape != b.shape:
        return False
    plain = a.is_contiguous() and b.is_contiguous() and not (a.is_complex() or a.is_neg() or b.is_neg())
    if plain and all(t.nbytes % 8 == t.storage_offset() * t.itemsize % 8 == 0 for t in (a, b)):
        a, b = (t.detach().flatten().view(torch.int64) for t in (a, b))
    return torch.equal(a, b)


def _size(tensor: torch.Tensor) -> torch.Tensor:
    """Root of the mean square."""
    return torch.linalg.vector_norm(tensor.float()) / math.sqrt(max(tensor.numel(), 1))


class WidenedValues:
    """Values in float64: those that were computed so, and others widened when they are first asked for."""

    def __init__(self, values: list[Any], computed: dict[int, Any]) -> None:
        self._values, self.computed = values, computed
        self._widened: dict[int, Any] = {}

    def __getitem__(self, index: int) -> Any:
        if index in self.computed:
            return self.computed[index]
        if index not in self._widened:
            value = self._values[index]
            narrow = isinstance(value, torch.Tensor) and value.dtype == torch.float32
            self._widened[index] = value.double() if narrow else value
        return self._widened[index]


@dataclass
class Reference:
    """Every node's value for a batch of reference sequences."""

    values: list[Any] | WidenedValues
    batch: int
    wide: Reference | None = None  # the same in float64, for what is run in it
    fading: frozenset[int] = frozenset()  # the nodes whose terms are watched: see `find_fading`
    _position_first: dict[Any, torch.Tensor] = field(default_factory=dict)

    def position_first(self, index: int, layout: Layout) -> torch.Tensor:
        """``(B, L, ...)``, contiguous."""
        key = (index, layout)
        if key not in self._position_first:
            self._position_first[key] = layout.position_first(self.values[index]).contiguous()
        return self._position_first[key]

    def made(self, key: Any, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Something made from the reference once for all chunks."""
        if key not in self._position_first:
            self._position_first[key] = make()
        return self._position_first[key]


class Run:
    """One use of a plan with a model's weights: what handlers ask for everything but their changes.

    Attributes
    ----------
    plan: Plan
    weights: Weights
    precision: str
    device: torch.device
    reference: Reference
        Of the sequences at hand.
    sites: Sites
        Of the chunk at hand.
    """

    def __init__(self, plan: Plan, weights: Weights, derived: Derived, device: torch.device) -> None:
        self.plan, self.weights, self.device = plan, weights, device
        self.precision = plan.precision
        self.widened = plan.widened if may_widen(plan.precision, device.type) else Widened()
        self._derived = derived
        self._checked: dict[Any, Any] = {}
        self.reference: Reference
        self.sites: Sites
        self._changes: list[Change | None] = []
        self._owned: list[bool] = []
        self._memo: dict[int, Any] = {}
        self.seconds: list[float] | None = None
        self.at: Node | None = None  # the node being run, to name it when it raises
        self.once = False  # for a single chunk of few sites: nothing large is laid out for others
        self.doubtful: torch.Tensor | None = None  # (S, A): which mutants of the chunk naive ISM may know better
        self.keep_all = False  # keep every change to the end, to compare them

    def of_plan(self, plan: Plan) -> Run:
        """The same use, reference included, of another plan of the same graph."""
        other = Run(plan, self.weights, self._derived, self.device)
        other.reference, other.once = self.reference, self.once
        return other

    # ---- the reference

    @running()
    def set_reference(self, X: torch.Tensor, args: Sequence[torch.Tensor], like: Reference | None = None) -> Reference:
        """Run the graph on sequences ``(B, C, L)`` and keep each node's value, with full products in any precision.
        Where ``like`` is the reference of the same sequences with other inputs after them, only what depends on those
        is run.
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
        return made

    def _find_fading(self, values: list[Any]) -> frozenset[int]:
        """What is to be watched with the constants that the model adds at the moment."""
        nodes = self.plan.graph.nodes
        adding = [n.index for n in nodes if n.mutated and adds_constants(n) and values[n.index].numel()]
        sizes = [[_size(t) for t in (constants_of(nodes[i], values.__getitem__), values[i])] for i in adding]
        found = torch.stack([torch.stack(pair) for pair in sizes]).tolist() if sizes else []
        little = {i for i, (added, whole) in zip(adding, found, strict=True) if added <= LITTLE * whole}
        return find_fading(self.plan, little.__contains__)

    def leaf(self, node: Node, X: torch.Tensor, args: Sequence[torch.Tensor]) -> Any:
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
        """The nodes (``among`` some; default all) whose reference is somewhere infinite, or as large as masks are
        (-1e9): a difference from it would be NaN, or lose all digits of an ordinary mutant value.
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

    # ---- what handlers ask

    def derived(self, key: Any, sources: Sequence[torch.Tensor], make: Callable[[], Any]) -> Any:
        """Something made from weights; ``sources`` are compared once for each run."""
        key = (key, self.precision)
        if key not in self._checked:
            self._checked[key] = self._derived.get((key, self.device), sources, make)
        return self._checked[key]

    def forget(self, key: Any) -> None:
        """Drop what was derived under ``key`` as its first part."""

        def under(k: Any) -> bool:
            while isinstance(k, tuple) and k:
                if k == key:
                    return True
                k = k[0]
            return False

        for k in [k for k in self._checked if under(k)]:
            del self._checked[k]
        self._derived.forget(under)

    def value(self, index: int) -> torch.Tensor:
        """The reference value of a node, in the model's own layout."""
        return self.reference.values[index]

    def on_window(self, index: int, layout: Layout, window: Window, fill: float | None = None) -> torch.Tensor:
        """The reference value of a windowed node on a window: ``(S, 1, w, ...)``."""
        value = self.reference.position_first(index, layout)
        return read_windows(value, window, self.sites.sequence, self.sites.only, fill).unsqueeze(1)

    def made_on_window(self, key: Any, make: Callable[[], torch.Tensor], window: Window) -> torch.Tensor:
        """Something ``(B, L, ...)`` made from the reference, on a window: ``(S, 1, w, ...)``."""
        value = self.reference.made(key, lambda: make().contiguous())
        return read_windows(value, window, self.sites.sequence, self.sites.only).unsqueeze(1)

    def of_sites(self, value: torch.Tensor) -> torch.Tensor:
        """Rows ``(B, ...)`` for each site: ``(S, 1, ...)``."""
        only = self.sites.only if value.shape[0] > 1 else 0
        if only is not None:
            return value[only : only + 1].unsqueeze(1)
        return value.index_select(0, self.sequence_index()).unsqueeze(1)

    def sequence_index(self) -> torch.Tensor:
        """``(S,)``: the row of the batch of each site, on the device."""
        return on_device(self.sites.sequence, self.device)

    def whole(self, index: int, change: Change | None) -> torch.Tensor:
        """The change of a node on all of its positions: ``(S, A, ...)`` in the model's layout; zeros where it
        is None.
        """
        layout = self.plan.layouts[index]
        sites, edits = self.sites.difference.shape[:2]
        if change is None:
            shape = self.value(index).shape[1:]
            return self.sites.difference.new_zeros(sites, edits, *shape, dtype=self.value(index).dtype)
        if change.window is None:
            return change.tensor
        reference = self.reference.position_first(index, layout) if change.mutant else None
        rows = expand(change, layout.length, self.sites.sequence, reference)
        return layout.natural(rows.flatten(0, 1)).unflatten(0, (sites, edits))

    def mutants(self, index: int, change: Change | None, wide: bool = False) -> torch.Tensor:
        """The mutants' values of a node with one row a mutant, ``(S * A, ...)``, in the model's layout; of float32 in
        float64 if ``wide``.
        """
        if change is not None and change.mutant and change.window is None:
            return change.tensor
        if change is not None and change.mutant:
            return self.whole(index, change).flatten(0, 1)
        edits, value = self.sites.difference.shape[:2], self.value(index)
        if change is not None and self.reference.wide is not None and index in self.widened.precise:
            exact = self.of_sites(self.reference.wide.values[index]) + self.whole(index, change)
            return (exact if wide else exact.to(value.dtype)).flatten(0, 1)
        base = self.of_sites(value)
        base = widened(base) if wide else base
        if change is None:
            return base.expand(*edits, *base.shape[2:]).flatten(0, 1)
        return (self.whole(index, change) + base).flatten(0, 1)

    def disposable(self, index: int) -> bool:
        """Whether a handler may overwrite the change of a node: nothing else reads it, and it shares its
        memory with nothing.
        """
        return self._owned[index] and self.plan.readers[index] == 1 and not self.keep_all

    # ---- the walk

    def set_sites(self, sites: Sites) -> list[Window | None]:
        """Make ``sites`` the chunk at hand; the windows of every node."""
        self.sites = sites
        return self.plan.windows(sites.position, sites.width, with_tables=self.device.type == "cpu")

    def chunk(self, sites: Sites) -> list[Change | None]:
        """The changes of the graph's outputs, in the order of ``graph.outputs``, for one chunk; None where
        nothing changes.
        """
        self.doubtful = None
        return self._returned(self.walk(sites))

    def chunk_for_each(self, sites: Sites, references: Sequence[Reference]) -> Iterator[list[Change | None]]:
        """The same, one after the other, for references of the same sequences with other inputs after them. What these
        have in common is run once.
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
        found = [changes[o] if isinstance(o, int) else None for o in self.plan.graph.outputs]
        return [self._narrowed(o, c) for o, c in zip(self.plan.graph.outputs, found, strict=True)]

    def _narrowed(self, index: Any, change: Change | None) -> Change | None:
        """What is kept in float64, in the dtype of an output."""
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
        """Run some nodes (default: all), from the changes that are given, which are not written over. Each change is
        dropped when nothing reads it any more, unless it is to be kept.
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
        windows = self.set_sites(sites)
        plan = self.plan
        changes: list[Change | None] = [None] * len(plan.graph.nodes) if given is None else list(given)
        self._changes, self._owned = changes, [False] * len(changes)
        memo = self._memo = {}
        as_one: dict[int, Block] = {}  # the blocks at hand that run as one, by each of their nodes
        unread: set[int] = set()  # the changes that nothing will read any more
        for node in plan.graph.nodes if nodes is None else nodes:
            if not node.mutated or not plan.readers[node.index]:
                continue
            block = as_one.get(node.index)
            if block is None:
                block = plan.block_of.get(node.index)
                if block is not None and (node.index != block.nodes[0] or not block.runs(self, changes)):
                    block = None
            if block is not None and node.index != block.last:
                as_one.update(dict.fromkeys(block.nodes, block))
                continue
            begin = self._tick()
            self.at = node
            if block is None:
                self._step(node, windows, memo)
                unread.update(plan.last_reads[node.index])
            else:
                self._step_as_one(block, windows, memo)
                for i in block.nodes:
                    unread.update(plan.last_reads[i])
                    as_one.pop(i, None)
            # a block reads at its last node what others may have read for the last time before
            for i in () if self.keep_all else unread.difference(keep, *({b.source} for b in as_one.values())):
                changes[i] = None
                memo.pop(i, None)
                unread.discard(i)
            if self.seconds is not None:
                self.seconds[node.index if block is None else block.nodes[0]] += self._tick() - begin
        return changes

    def _step_as_one(self, block: Block, windows: list[Window | None], memo: dict[int, Any]) -> None:
        window = windows[block.last]
        if window is None or not window.width:
            return
        convolution = block.convolution
        given = [self._as_read(convolution.node.index, s) for s in convolution.sources]
        faded = self._faded(convolution, given, windows[convolution.node.index])
        if faded is not None:
            self._doubt(faded)
        try:
            self._changes[block.last] = Change(block.run(self, self._changes, window), window)
            self._owned[block.last] = True
        except KernelError as error:
            self.do_without_kernels(error)
            for i in block.nodes:
                self._step(self.plan.graph.nodes[i], windows, memo)
            for i in block.nodes[:-1]:
                self._changes[i] = None

    def do_without_kernels(self, error: KernelError) -> None:
        """Go on without kernels that turn out not to run here, with a warning."""
        self.plan.kernels = False
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
        if all(g is None for g in given) or (layout.kind == "windows" and (window is None or window.width == 0)):
            return
        faded = self._faded(rule, given, window)
        with self._in_its_dtype(i):
            zero = rule.vanishes(self, given, window) if rule.settles else None  # first: changes may be written over
            tensor = rule.run(self, given, window)
        if zero is not None and (self.device.type != "cpu" or zero.any()):
            with self._in_its_dtype(i, self.widened.precise):
                reference = self.of_sites(self.value(i)) if window is None else self.on_window(i, layout, window)
            tensor = torch.where(zero, -reference, tensor)
        if faded is not None:
            self._doubt(faded if zero is None else faded & ~zero)
        if i in self.widened.run and i not in self.widened.kept:
            tensor = tensor.to(self.value(i).dtype)
        mutant = node.dtype is not None and not node.floating
        changes[i] = Change(tensor, window if layout.kind == "windows" else None, mutant)
        # what an expand repeats in place of storing cannot be written over
        fresh = not rule.aliases or all(self.disposable(s) for s in rule.sources)
        self._owned[i] = fresh and 0 not in tensor.stride()

    def _faded(self, rule: Rule, given: list[Change | None], window: Window | None) -> torch.Tensor | None:
        """Where the terms of a product with weights are next to nothing beside the reference's, if that is watched."""
        terms = rule.terms(self, given, window) if rule.node.index in self.reference.fading else None
        return None if terms is None else terms[0] + terms[1] < FADED * terms[1]

    def _doubt(self, where: torch.Tensor) -> None:
        """Note the mutants with any such number, without waiting for the device."""
        found = where.reshape(*where.shape[:2], -1).any(2).expand(self.sites.difference.shape[:2])
        self.doubtful = found if self.doubtful is None else self.doubtful | found

    def _as_read(self, reader: int, source: int) -> Change | None:
        """The change of a source in the dtype that a reader is run in."""
        change, wide = self._changes[source], self.reference.wide
        widens = reader in self.widened.run
        if change is None or wide is None or change.mutant or not (widens or source in self.widened.precise):
            return change
        dtype = (wide.values if widens else self.reference.values)[source].dtype
        return change if change.tensor.dtype == dtype else replace(change, tensor=change.tensor.to(dtype))

    @contextlib.contextmanager
    def _in_its_dtype(self, index: int, wide: Container[int] | None = None) -> Iterator[None]:
        """While a rule is run: the reference in float64, if it is run so (or is among what is ``wide``)."""
        plain = self.reference
        if plain.wide is not None and index in (self.widened.run if wide is None else wide):
            self.reference = plain.wide
        try:
            yield
        finally:
            self.reference = plain

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
        """The value of a node in the batch of the chunk's mutants."""
        return self._whole_value(index, self._memo)

    def _whole_value(self, i: int, memo: dict[int, Any]) -> Any:
        """The value of a node in a batch that has one row a mutant."""
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
