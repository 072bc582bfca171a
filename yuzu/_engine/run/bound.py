"""A precomputation put to use with one model."""

from __future__ import annotations

import copy
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from yuzu._engine.capture.branches import Branches
from yuzu._engine.capture.model_copy import evaluation_copy, model_dtype
from yuzu._engine.edits import Mutations
from yuzu._engine.graph import Weights
from yuzu._engine.plan.plan import Plan, make_plan
from yuzu._engine.rewrite.all import capture
from yuzu._engine.rewrite.select_outputs import select_outputs
from yuzu._engine.run.run import Derived
from yuzu._engine.tune.memory import Memory, memory_of
from yuzu._engine.tune.ways import make_fit
from yuzu.errors import YuzuError

if TYPE_CHECKING:
    from yuzu._engine.store.precomputation import Precomputation

LEAST_MEMORY = 1 << 30  # bytes that a run may use at least if the user does not say, where there are as many
STRETCH = 128  # positions of each sequence that a chunk on a GPU may hold
PLANS_KEPT = 16  # plans for a choice of outputs, and as many with nodes run naively, that are kept for the next call


class Bound:
    """A precomputation together with one model: the plan on its own graph, and tensors derived from its
    weights.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        plan: Plan | None,
        precomputation: Precomputation,
        device: torch.device,
        derived: Derived | None = None,
        branches: Branches | None = None,
    ) -> None:
        self._model = weakref.ref(model)
        self.branches = branches or Branches()
        self.plan, self.device = plan, device
        self.settings, self.decisions = precomputation.settings, precomputation.decisions
        self.derived = derived or Derived()
        self._naive_plans: OrderedDict[tuple[int, ...], Plan] = OrderedDict()
        self._memory: dict[tuple[int, int], Memory] = {}
        self._fitting: tuple[tuple[int, int], Bound] | None = None  # for the last edits that were too wide
        self._narrowed: OrderedDict[tuple[int, ...], Bound | None] = OrderedDict()
        self._lock = threading.Lock()
        self._captured: Plan | None = None

    @property
    def model(self) -> torch.nn.Module:
        model = self._model()
        if model is None:
            raise YuzuError("model no longer exists")
        return model

    def fits(self, args: Sequence[torch.Tensor]) -> bool:
        """Whether the model's forward decides as it did for the plan, with the first row of ``args`` and with its
        buffers as they are now.
        """
        return self.branches.hold(self.model, args, self.device)

    def plan_without(self, nodes: Sequence[int], reason: str) -> Plan:
        """The plan with some nodes run naively, kept for the last choices of nodes."""
        assert self.plan is not None
        key = tuple(nodes)
        plan = self._naive_plans.get(key)
        if plan is None:
            plan = self.plan.without(dict.fromkeys(nodes, reason))
            with self._lock:
                while len(self._naive_plans) >= PLANS_KEPT:
                    self._naive_plans.popitem(last=False)
                self._naive_plans[key] = plan
        return plan

    def captured(self, args: tuple[torch.Tensor, ...]) -> Plan:
        """The plan; also where the model itself is faster than a plan, and so has none.

        Raises
        ------
        CaptureError
            For a model that cannot be captured.
        """
        if self.plan is not None:
            return self.plan
        if self._captured is None:
            s, model = self.settings, self.model
            graph = capture(model, (s.n_choices, s.seq_len), tuple(a[:1] for a in args), model_dtype(model))
            naive = {int(i): reason for i, reason in self.decisions["naive"].items()}
            self._captured = make_plan(graph, self.decisions["precision"], naive)
        return self._captured

    def narrowed(self, target: Any) -> Bound | None:
        """The same for the outputs ``target`` alone, where the others need not be computed; None elsewhere."""
        if self.plan is None or self.plan.senses or len(self.plan.graph.outputs) != 1:
            return None
        output = self.plan.graph.outputs[0]
        shape = self.plan.graph.nodes[output].shape if isinstance(output, int) else None
        if shape is None or len(shape) < 2 or shape[1] is None:
            return None
        places = range(shape[1])
        try:
            found = places[target] if isinstance(target, slice) else [places[t] for t in np.atleast_1d(target)]
        except IndexError:
            return None  # it is refused with the output at hand
        chosen = tuple(found)
        with self._lock:
            if chosen not in self._narrowed:
                while len(self._narrowed) >= PLANS_KEPT:
                    self._narrowed.popitem(last=False)
                self._narrowed[chosen] = self._narrow(chosen, len(places))
            return self._narrowed[chosen]

    def _narrow(self, chosen: tuple[int, ...], size: int) -> Bound | None:
        assert self.plan is not None
        graph = select_outputs(self.plan.graph, chosen) if 0 < len(chosen) < size else None
        if graph is None:
            return None
        plan = make_plan(graph, self.plan.precision, self.plan.naive)
        return self.with_plan(replace(plan.with_ways_of(self.plan), remembered=self.plan.remembered))

    def with_plan(self, plan: Plan) -> Bound:
        """The same with another plan."""
        other = copy.copy(self)
        other.plan, other._naive_plans, other._memory, other._fitting = plan, OrderedDict(), {}, None
        return other

    def fitting(self, mutations: Mutations) -> Bound:
        """The same, or what runs some layers in ways that lay out less, where edits are so wide that the chosen ones,
        which are for substitutions, do not fit into the memory that the user allows.
        """
        if self.plan is None or not self._too_little(self.memory(mutations)):
            return self
        key = self._kind(mutations)
        kept = self._fitting
        if kept is None or kept[0] != key:
            plan = self.plan

            def memory(other: Plan) -> Memory:
                return self.with_plan(other)._memory_of(key)

            ways, _ = make_fit(plan, plan.ways(), memory, self.settings.max_memory)
            kept = self._fitting = key, self.with_plan(plan.with_ways(ways))
        return kept[1]

    def _too_little(self, memory: Memory) -> bool:
        """Whether not even a site at a time fits into what the user allows. What may be a default is nobody's wish; a
        default that is less is all that a GPU has free.
        """
        return self.settings.max_memory < min(memory.least, LEAST_MEMORY)

    def least_memory(self) -> int:
        """Bytes that substitutions take at least, or fewer if not even the default is as many."""
        return min(self._memory_of((1, self.settings.n_choices)).least, LEAST_MEMORY)

    def weights(self) -> Weights:
        """The model's weights at their values now."""
        return Weights(self.model, self.device)

    def twin(self) -> torch.nn.Module:
        """An evaluation copy of the model, for running it naively."""
        return evaluation_copy(self.model, self.device)

    @property
    def naive_batch(self) -> int:
        """Mutants in one forward pass where the whole model runs naively."""
        return int(self.decisions["naive_batch"])

    def mutants_at_once(self, mutations: Mutations) -> int:
        """Mutants in one batch that runs naively, as memory allows."""
        return max(min(self.naive_batch, self.settings.max_memory // max(self.memory(mutations).sequence, 1)), 1)

    def memory(self, mutations: Mutations) -> Memory:
        """What one site and one sequence of such mutations take."""
        key = self._kind(mutations)
        if key not in self._memory:
            self._memory[key] = self._memory_of(key)
        return self._memory[key]

    def _kind(self, mutations: Mutations) -> tuple[int, int]:
        """The width of edits and, of each site, their number."""
        return mutations.width, mutations.edits_of_a_site

    def _memory_of(self, kind: tuple[int, int]) -> Memory:
        assert self.plan is not None
        s, (width, edits) = self.settings, kind
        itemsize = getattr(torch, s.dtype.removeprefix("torch.")).itemsize
        return memory_of(self.plan, s.seq_len, s.n_choices, width, itemsize, edits)

    def sites_at_once(self, mutations: Mutations, references: int = 1, laid_out: int = 0) -> int:
        """How many sites a chunk holds, beside the references of so many sequences (or of one with many states);
        ``laid_out`` is the bytes that each takes besides, where outputs are laid out whole.

        Raises
        ------
        YuzuError
            If not even one fits into what the user allows; naming the least that works.
        """
        memory, limit = self.memory(mutations), self.settings.max_memory
        if self._too_little(memory):
            raise YuzuError(
                f"max_memory={limit} is too little for edits of {mutations.width} positions in this model: the least "
                f"that works is {memory.least} bytes"
            )
        room = limit - memory.sequence * references - memory.weights
        count = int(self.decisions["sites"])
        if mutations.width > 1 or not mutations.substitutions:
            count = count * max(self.settings.n_choices - 1, 1)
        return max(min(count, room // max(memory.site + laid_out, 1)), 1)

    def sequences_at_once(self, mutations: Mutations, result_bytes: int = 0, laid_out: int = 0) -> int:
        """How many sequences are carried at once: enough to fill a chunk (on a GPU with a stretch of each), as memory
        allows; ``result_bytes`` is what the results of each take on the device, ``laid_out`` as for `sites_at_once`.
        """
        of_each = len(mutations.positions) if self.device.type == "cpu" else min(len(mutations.positions), STRETCH)
        wanted = max(self.sites_at_once(mutations, 1, laid_out) // max(of_each, 1), 1)
        return min(wanted, self.most_sequences(mutations, result_bytes))

    def most_sequences(self, mutations: Mutations, result_bytes: int = 0) -> int:
        """As many as memory allows, and as may be run together; 1 at least."""
        if self.plan is not None and self.plan.one_by_one:
            return 1
        memory = self.memory(mutations)
        # half of it, and no more than leaves room for a site
        room = min(self.settings.max_memory // 2, self.settings.max_memory - memory.weights - memory.site)
        return max(room // max(memory.sequence + result_bytes, 1), 1)

    def states_at_once(self, mutations: Mutations, sequences: int, result_bytes: int = 0) -> int:
        """With how many values of the other inputs the references of these sequences are kept."""
        return max(self.most_sequences(mutations, result_bytes) // sequences, 1)
