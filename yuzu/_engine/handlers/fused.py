"""A convolution, the rectifier, the sum and the crop behind it, run as one by `fused_kernel` on a GPU.

Each of them keeps its rule, and runs by it wherever the convolution's way is another. In a walk the nodes of a block
that runs as one are passed over, and its last one gets its result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from yuzu._engine.delta import Change, Layout, on_device
from yuzu._engine.handlers import fused_kernel, kernels
from yuzu._engine.handlers.affine import Scaled
from yuzu._engine.handlers.contract import Rule
from yuzu._engine.handlers.convolution import FUSED, Convolution
from yuzu._engine.handlers.convolution_call import FEW_CHANNELS
from yuzu._engine.handlers.formulas import Rectifier
from yuzu._engine.handlers.lowered_products import lowered
from yuzu._engine.handlers.merge import Sum
from yuzu._engine.handlers.view import Moved
from yuzu._engine.window import Window

if TYPE_CHECKING:
    from yuzu._engine.plan import Plan
    from yuzu._engine.run import Run

LEAST_CHANNELS = 16  # before the convolution: a product of fewer is mostly zeros
HEAD_COLUMNS = 32  # positions that a product yields at once, times channels, where these are few


@dataclass(frozen=True)
class Block:
    """
    Attributes
    ----------
    convolution: Convolution
    rectifier: Rectifier or None
    total: Sum or None
    nodes: list of int
        Theirs, and those of factors that the kernel has taken over and of a crop, in order.
    cropped: int
        Positions that are cut off at the beginning.
    """

    convolution: Convolution
    rectifier: Rectifier | None
    total: Sum | None
    nodes: list[int]
    cropped: int = 0

    @property
    def last(self) -> int:
        return self.nodes[-1]

    @property
    def source(self) -> int:
        """What the convolution reads."""
        return self.convolution.sources[0]

    @property
    def residual(self) -> int | None:
        """What is added."""
        if self.total is None:
            return None
        return next(s for s in self.total.sources if s not in self.nodes)

    def possible(self, run: Run) -> bool:
        """Whether it can run as one in this run at all."""
        return kernels.may_run(run, self.last)

    def runs(self, run: Run, changes: list[Change | None]) -> bool:
        """Whether it runs as one in the chunk at hand."""
        given = changes[self.source]
        if self.convolution.way != FUSED or run.keep_all or given is None or given.codes is not None:
            return False
        return self.possible(run)

    def run(self, run: Run, changes: list[Change | None], window: Window) -> torch.Tensor:
        """The change of the last node on its window."""
        given, kernel = changes[self.source], self.convolution
        assert given is not None and given.window is not None
        before, g = given.window, kernel.geometry
        sites, edits = given.tensor.shape[:2]
        few = self._positions_at_once()
        weight = self._weight(run, few)
        x = given.tensor.flatten(0, 1).flatten(2).to(weight.dtype).contiguous()
        width = -(-window.width // few)
        start = (window.start + self.cropped) * g.stride - g.padding - before.start
        first = window.cached(("first", self.last, id(before), run.device), lambda: (_numbers(start, run), before))[0]
        found = fused_kernel.convolve(
            x,
            weight,
            first,
            edits,
            width,
            run.precision,
            g.dilation,
            g.stride * few,
            self._rectified(run, window),
            self._added(run, changes, window, x),
            lowered(run.value(self.last)[:0], run.precision).dtype if self.lowers(run) else torch.float32,
            fused_kernel.stretches_of(width, x.shape[1], weight.shape[0], g.dilation, int(start.max())),
        )
        return found.view(sites, edits, width * few, -1)[:, :, : window.width]

    def _rectified(self, run: Run, window: Window) -> fused_kernel.Rectified | None:
        if self.rectifier is None:
            return None
        reference = run.reference.position_first(self.rectifier.sources[0], self.rectifier.source_layouts[0])
        length, batch = reference.shape[1], run.reference.batch
        row = window.start + self.cropped + (0 if batch == 1 else run.sites.sequence * length)
        key = ("row", batch == 1 or run.sites.sequence.tobytes(), length, run.device)
        return fused_kernel.Rectified(reference, window.cached(key, lambda: _numbers(row, run)))

    def _added(
        self, run: Run, changes: list[Change | None], window: Window, x: torch.Tensor
    ) -> fused_kernel.Residual | None:
        other = changes[self.residual] if self.residual is not None else None
        if other is None:
            return None
        assert other.window is not None
        place, offset = other.window, window.start + self.cropped - other.window.start
        shift = window.cached(("shift", self.last, id(place), run.device), lambda: (_numbers(offset, run), place))[0]
        # what the convolution reads itself is read once, as it reads it
        values = x if self.residual == self.source else other.tensor.flatten(0, 1).flatten(2).contiguous()
        return fused_kernel.Residual(values, shift)

    def _positions_at_once(self) -> int:
        """How many positions of few output channels are the columns of one product."""
        kernel = self.convolution
        channels, alone = kernel.channels[1], self.rectifier is None and self.total is None
        blocks = alone and channels <= FEW_CHANNELS and kernel.geometry.dilation == kernel.geometry.stride == 1
        return HEAD_COLUMNS // channels if blocks else 1

    def _weight(self, run: Run, few: int) -> torch.Tensor:
        """``(k, Cout, Cin)``; for several positions at once the kernel at every place among them."""
        kernel, sources = self.convolution.scaled_kernel(run)

        def make() -> torch.Tensor:
            taps = lowered(kernel.permute(2, 0, 1), run.precision)
            if few == 1:
                return taps.contiguous()
            k, cout, cin = taps.shape
            spread = taps.new_zeros(k + few - 1, few, cout, cin)
            for i in range(few):
                spread[i : i + k, i] = taps
            return spread.flatten(1, 2)

        return run.derived(("fused", self.convolution.node.index, few), sources, make)

    def lowers(self, run: Run) -> bool:
        """Whether its result is kept in the dtype of lowered products: what reads it reads that."""
        plan = run.plan

        def as_one(reader: int) -> bool:
            block = plan.block_of.get(reader)
            reads = block is not None and self.last in (block.source, block.residual)
            return reads and block.convolution.way == FUSED  # type: ignore[union-attr]

        return run.precision == "medium" and plan.reads_lowered(self.last, as_one)

    def trial(self, run: Run, some: Callable[..., torch.Tensor]) -> Callable[[], object]:
        """Its work on the chunk at hand, by the way that is set; ``some`` is that of `Rule.trial`."""
        windows = run.plan.windows(run.sites.position, run.sites.width)
        given: list[Change | None] = [None] * len(windows)
        for source in {self.source, self.residual} - {None}:
            assert source is not None
            at, shape = windows[source], run.value(source).shape
            assert at is not None
            tensor = some(at.width, shape[1])
            block = run.plan.block_of.get(source)
            if block is not None and block.last == source and block.convolution.way == FUSED and block.lowers(run):
                tensor = lowered(tensor, run.precision)
            given[source] = Change(tensor, at) if at.width else None
        nodes = [run.plan.graph.nodes[i] for i in self.nodes]

        def work() -> object:
            return run.walk(run.sites, nodes, given)

        if self.convolution.way == FUSED:
            work()  # compiles the kernel, which takes longer than any trial
        return work


def _numbers(array: np.ndarray, run: Run) -> torch.Tensor:
    return on_device(array.astype(np.int32), run.device)


def find_blocks(plan: Plan) -> list[Block]:
    """The blocks of a plan, each as long as it can be; a sum of two convolutions' results is the later one's."""
    found: list[Block] = []
    taken: set[int] = set()
    for rule in reversed(plan.rules):
        if isinstance(rule, Convolution) and _fits(rule) and plan.readers[rule.node.index]:
            found.append(_extended(plan, rule, taken))
            taken.update(found[-1].nodes)
    return found[::-1]


def _fits(rule: Convolution) -> bool:
    channels = rule.channels[0]
    plain = rule.groups == 1 and rule.height is None and rule.node.dtype == torch.float32 and not rule.settles
    return plain and channels >= LEAST_CHANNELS and _plain(rule.layout) and _plain(rule.source_layouts[0])


def _plain(layout: Layout) -> bool:
    return layout.kind == "windows" and layout.axis == 2 and not layout.composite


def _extended(plan: Plan, convolution: Convolution, taken: set[int]) -> Block:
    nodes = [convolution.node.index]
    after, passed = _next(plan, nodes[-1], convolution)
    rectifier = total = None
    if isinstance(after, Rectifier) and after.factor is None:
        rectifier = after
        nodes += [*passed, after.node.index]
        after, passed = _next(plan, nodes[-1], convolution)
    if isinstance(after, Sum) and after.node.index not in taken and _adds_one(plan, after, [*nodes, *passed]):
        total = after
        nodes += [*passed, after.node.index]
    crop = _crop_after(plan, nodes[-1])
    if crop is not None:
        nodes.append(crop.node.index)
    return Block(convolution, rectifier, total, nodes, 0 if crop is None else -crop.geometry.padding)


def _next(plan: Plan, index: int, convolution: Convolution) -> tuple[Rule | None, list[int]]:
    """The rule of the only node that reads a result, behind factors that the kernel has taken over, and those."""
    passed: list[int] = []
    while plan.readers[index] == 1 and plan.graph.consumers[index]:
        (index,) = plan.graph.consumers[index]
        rule = plan.rules[index]
        if rule is None or rule.layout != convolution.layout or not _together(plan, index, convolution.node.index):
            break
        if not (isinstance(rule, Scaled) and rule.per_channel in convolution.factors_after):
            return rule, passed
        passed.append(index)
    return None, []


def _together(plan: Plan, index: int, other: int) -> bool:
    """Whether two nodes can be run at once: what depends on another input is run once for each of its values, the rest
    once for all.
    """
    same = (index in plan.sharing.changes) == (other in plan.sharing.changes)
    return same and plan.graph.nodes[index].dtype == plan.graph.nodes[other].dtype


def _crop_after(plan: Plan, index: int) -> Moved | None:
    """A crop along positions that is all that reads a result."""
    if plan.readers[index] != 1 or not plan.graph.consumers[index]:
        return None
    rule = plan.rules[plan.graph.consumers[index][0]]
    if not isinstance(rule, Moved) or not _plain(rule.layout) or not _together(plan, rule.node.index, index):
        return None
    g = rule.geometry
    return rule if g.stride == 1 and g.padding <= 0 and rule.rest is None else None


def _adds_one(plan: Plan, total: Sum, inside: list[int]) -> bool:
    """Whether a sum adds one other tensor of the same shape to what is inside."""
    others = [s for s in total.sources if s not in inside]
    shape = total.node.shape
    if len(total.sources) != 2 or len(others) != 1 or any(f != 1 for f in total.factors.values()):
        return False
    return plan.graph.nodes[others[0]].shape == shape and plan.layouts[others[0]] == total.layout
