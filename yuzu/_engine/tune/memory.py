"""The memory that a plan takes for a site and for a sequence, in bytes, and the number of sites that fit."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from yuzu._engine import ops
from yuzu._engine.graph import Graph, Node, Ref
from yuzu._engine.handlers.facts import Sizes
from yuzu._engine.plan.plan import Plan
from yuzu._engine.plan.sharing import reads_reference
from yuzu._engine.plan.widening import may_widen
from yuzu._engine.run.series import series_numbers

# bytes of a first chunk's largest change; the search for the chunk's size begins at twice as many
CACHE_TARGET = {"cpu": 11 << 20, "cuda": 2 << 30}
# most bytes of a chunk's largest change: freed memory rarely serves larger tensors again, and new pages cost more
LARGEST_BLOCK = {"cpu": 30 << 20}


@dataclass(frozen=True)
class Memory:
    """The memory of a plan at its peak, in bytes.

    Attributes
    ----------
    site: int
        The bytes of one site.
    sequence: int
        The bytes of one sequence.
    weights: int
        The bytes of weights that are laid out anew.
    block: int
        A site's part of the largest tensor.
    series: int
        The bytes that one sequence takes for a while as its series is made. No site takes any then.
    """

    site: int
    sequence: int
    weights: int
    block: int
    series: int = 0

    @property
    def least(self) -> int:
        """The bytes that a run of one sequence takes with one site at a time."""
        return self.sequence + max(self.site, self.series) + self.weights


def memory_of(plan: Plan, length: int, n_choices: int, width: int, itemsize: int, edits: int) -> Memory:
    """Estimate the memory of a plan from above. The estimate uses the windows at the first, the middle and the last of
    the positions that reach an output. Windows between them may be an eighth wider.
    """
    if itemsize < 4:  # part of a model in half precision may be wider
        itemsize = max(n.dtype.itemsize for n in plan.graph.nodes if n.floating and n.dtype is not None)
    places = plan.reached(length, width)
    windows = plan.windows(np.unique(places[[0, len(places) // 2, -1]]), width)
    largest, standing, reference, tables, weights = n_choices * width, 0, 0, 0, 0
    blocks = 4
    is_read = [reads_reference(rule, choice) for rule, choice in zip(plan.rules, plan.choices, strict=True)]
    widened = plan.widened.run if itemsize == 4 and may_widen(plan.precision, "cpu") else frozenset[int]()
    for node in plan.graph.nodes:
        if node.shape is None or not node.batched:
            continue
        whole = math.prod(s for s in node.shape if s is not None and s > 0)
        facts = ops.of(node.op)
        shares = facts.moves or facts.reshapes  # its value lies in another's memory; only a copy of it takes its own
        # a value that is only passed on needs no copies with positions first, and no tables
        once = shares or not any(is_read[i] for i in (node.index, *plan.consumers[node.index]))
        reference += whole if once else 3 * whole
        hidden = _scores_of_attention(plan.graph, node)
        reference += 3 * hidden
        if not node.mutated or not plan.readers[node.index]:
            continue
        largest = max(largest, hidden)
        layout, window = plan.layouts[node.index], windows[node.index]
        size = whole if window is None else whole * window.width // max(layout.length, 1)
        rule = plan.rules[node.index]
        if rule is not None:
            source = windows[rule.sources[0]] if rule.sources else None
            sizes = Sizes(1 if source is None else source.width, whole, plan.precision, itemsize)
            needs = rule.memory(plan.choices[node.index], sizes)
            weights, tables = weights + needs.weights, tables + needs.tables
            largest, blocks = max(largest, needs.largest), max(blocks, needs.blocks)
        if node.index in widened:  # copies in float64 of its result, its inputs and the references of both
            blocks = max(blocks, 7 + 2 * (len(rule.sources) - 1 if rule is not None else 0))
            read = [plan.graph.nodes[i].shape or () for i in (node.index, *(rule.sources if rule is not None else ()))]
            tables += 2 * sum(math.prod(s for s in shape if s is not None and s > 0) for shape in read)
        largest = max(largest, size)
        if plan.readers[node.index] > 1:
            standing += 2 * size if node.index in widened else size
    series, on_the_way = series_numbers(plan)
    tables += series
    block = largest * edits * itemsize
    site = blocks * block + standing * edits * itemsize
    return Memory(site, (reference + tables) * itemsize, weights * itemsize, block, on_the_way * itemsize)


def _scores_of_attention(graph: Graph, node: Node) -> int:
    """The number of elements of one row's attention scores, which no node holds. With four axes PyTorch computes
    attention in blocks; otherwise it lays the scores out.
    """
    if node.op != "aten.scaled_dot_product_attention":
        return 0
    given = (node.argument(0, "query"), node.argument(1, "key"))
    shapes = [graph.nodes[a.index].shape for a in given if isinstance(a, Ref)]
    if len(shapes) < 2 or not shapes[0] or not shapes[1] or len(shapes[0]) == 4:
        return 0
    return math.prod(s for s in (*shapes[0][:-1], shapes[1][-2]) if s is not None and s > 0)


class _Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, while these tensors live."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.largest = self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(made):
            if _is_plain(tensor):
                self._count(tensor.untyped_storage(), pytree.tree_leaves((args, kwargs)))
        return made

    def _count(self, storage: torch.UntypedStorage, given: list[Any]) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self._known or any(_is_plain(t) and t.untyped_storage()._cdata == place for t in given):
            return
        self._known.add(place)
        self._now += size
        self.peak, self.largest = max(self.peak, self._now), max(self.largest, size)
        weakref.finalize(storage, self._forget, place, size)

    def _forget(self, place: int, size: int) -> None:
        self._known.discard(place)
        self._now -= size


def _is_plain(value: Any) -> bool:
    return type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout == torch.strided


def bytes_of_a_row(run: Callable[[], object]) -> int:
    """Measure the bytes that a forward pass of one row takes at its peak, for models without a graph: those of the
    tensors that live at once, and of one more as large as the largest, for an operation's own memory.
    """
    alive = _Alive()
    with alive:
        run()
    return alive.peak + alive.largest


def most_sites(memory: Memory, limit: int, device: torch.device) -> int:
    """The number of sites, at least 1, that a chunk may hold within ``limit`` bytes, with no tensor above
    `LARGEST_BLOCK`.
    """
    sites = (limit - memory.sequence - memory.weights) // max(memory.site, 1)
    return max(min(sites, LARGEST_BLOCK.get(device.type, limit) // max(memory.block, 1)), 1)


def first_sites(memory: Memory, limit: int, device: torch.device) -> int:
    """The number of sites of a first chunk: as many as fill the cache."""
    target = CACHE_TARGET.get(device.type, CACHE_TARGET["cpu"])
    return max(min(target // max(memory.block, 1), most_sites(memory, limit, device)), 1)
