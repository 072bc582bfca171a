"""A precomputation in use: with a model, a plan on the model's own graph, and tensors derived from its weights."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from yuzu._engine.capture.branches import Branches
from yuzu._engine.capture.model_copy import evaluation_copy, model_dtype
from yuzu._engine.derived import Derived
from yuzu._engine.edits import Mutations
from yuzu._engine.graph import Weights
from yuzu._engine.kept import Kept
from yuzu._engine.plan.plan import Plan, make_plan
from yuzu._engine.rewrite.all import capture
from yuzu._engine.rewrite.select_outputs import select_outputs
from yuzu._engine.settings import LEAST_MEMORY, Settings
from yuzu._engine.store.decisions import Decisions
from yuzu._engine.tune.memory import Memory, memory_of
from yuzu._engine.tune.ways import make_fit
from yuzu.errors import YuzuError

GPU_SPAN = 128  # positions of each sequence that a chunk on a GPU may hold
PLANS_KEPT = 16  # plans for a choice of outputs, and as many with nodes run naively, that are kept for the next call

Kind = tuple[int, int]  # the width of edits, and their number at each site


class InUse:
    """A precomputation together with one model.

    Parameters
    ----------
    model: torch.nn.Module
        It is not kept alive.
    plan: Plan or None
        On the model's own graph; None for a model that runs naively as a whole.
    settings, decisions
        Of the precomputation.
    device: torch.device
    derived: Derived or None
        Tensors that were made from the model's weights already.
    branches: Branches or None
        What the model's forward decided by when it was captured.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        plan: Plan | None,
        settings: Settings,
        decisions: Decisions,
        device: torch.device,
        derived: Derived | None = None,
        branches: Branches | None = None,
    ) -> None:
        self._model = weakref.ref(model)
        self.branches = branches or Branches()
        self.plan, self.device = plan, device
        self.settings, self.decisions = settings, decisions
        self.derived = derived or Derived()
        self._captured: Plan | None = None
        self._forget_plan()

    def _forget_plan(self) -> None:
        """Begin anew to keep what is made for the plan."""
        self._of_outputs = Kept[tuple[int, ...], tuple[InUse | None]](PLANS_KEPT)
        self._naive_plans = Kept[tuple[int, ...], Plan](PLANS_KEPT)
        self._memory = Kept[Kind, Memory]()
        self._fitting = Kept[Kind, InUse](1)  # for the last edits that were too wide
        self._plain = Kept[tuple[()], InUse](1)

    @property
    def model(self) -> torch.nn.Module:
        model = self._model()
        if model is None:
            raise YuzuError("model no longer exists")
        return model

    def fits(self, args: Sequence[torch.Tensor]) -> bool:
        """Tell whether the model's forward decides as it did for the plan, with the first row of ``args`` and with its
        buffers as they are now.
        """
        return self.branches.hold(self.model, args, self.device)

    def without_statistics(self) -> InUse:
        """The same with a plan that carries no windows past statistics."""
        plan = self.plan
        if plan is None or not plan.statistics.count:
            return self
        return self._plain.made((), lambda: self.with_plan(plan.without_statistics()))

    def naive_plan(self, reason: str) -> Plan:
        """The plan with all operations run naively, and norms whole."""
        assert self.plan is not None
        plan = self.plan.without_statistics()
        nodes = tuple(n.index for n in plan.graph.nodes if n.kind == "call" and n.mutated)
        return self._naive_plans.made((-1, *nodes), lambda: plan.without(dict.fromkeys(nodes, reason)))

    def plan_without(self, nodes: Sequence[int], reason: str) -> Plan:
        """The plan with some nodes run naively, kept for the last choices of nodes."""
        plan = self.plan
        assert plan is not None
        return self._naive_plans.made(tuple(nodes), lambda: plan.without(dict.fromkeys(nodes, reason)))

    def captured(self, args: tuple[torch.Tensor, ...]) -> Plan:
        """The plan without statistics; made now for a model that runs naively because that is faster.

        Raises
        ------
        CaptureError
            For a model that cannot be captured.
        """
        if self._captured is None:
            if self.plan is not None:
                self._captured = self.plan.without_statistics()
                return self._captured
            s, model = self.settings, self.model
            graph = capture(model, (s.n_choices, s.seq_len), tuple(a[:1] for a in args), model_dtype(model))
            self._captured = make_plan(graph, self.decisions.precision, dict(self.decisions.naive))
        return self._captured

    def for_outputs(self, target: Any) -> InUse | None:
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
            return None  # it is refused later, when the output is known
        chosen = tuple(found)
        return self._of_outputs.made(chosen, lambda: (self._make_for_outputs(chosen, len(places)),))[0]

    def _make_for_outputs(self, chosen: tuple[int, ...], size: int) -> InUse | None:
        assert self.plan is not None
        graph = select_outputs(self.plan.graph, chosen) if 0 < len(chosen) < size else None
        if graph is None:
            return None
        whole = self.plan.without_statistics().graph
        plan = self.plan.of_graph(graph, select_outputs(whole, chosen))
        return self.with_plan(replace(plan, remembered=self.plan.remembered))

    def with_plan(self, plan: Plan) -> InUse:
        """The same with another plan."""
        other = copy.copy(self)
        other.plan = plan
        other._forget_plan()
        return other

    def fitting(self, mutations: Mutations) -> InUse:
        """The same, or with a plan that runs some layers in ways that need less memory, where edits are so wide that
        the chosen ones, which are for substitutions, do not fit into the memory that the user allows. Where too few
        positions are mutated for what it takes to carry windows past statistics, they end at the first.
        """
        plan, kind, past = self.plan, self._kind(mutations), self.decisions.statistics
        if past is not None and plan is not None and mutations.sites_of_a_sequence < past.least_positions:
            return self._fitting.made((0, 0), lambda: self.with_plan(plan.without_statistics()))
        if plan is None or not self._too_little(self.memory(mutations)):
            return self

        def memory(other: Plan) -> Memory:
            return self.with_plan(other)._memory_of(kind)

        def fit() -> InUse:
            ways, _ = make_fit(plan, plan.ways(), memory, self.settings.max_memory)
            return self.with_plan(plan.with_ways(ways))

        return self._fitting.made(kind, fit)

    def _too_little(self, memory: Memory) -> bool:
        """Tell whether not even one site at a time fits into the memory that the user allows. A limit as large as the
        default may be the default, which refuses nothing.
        """
        return self.settings.max_memory < min(memory.least, LEAST_MEMORY)

    def least_memory(self) -> int:
        """The least bytes that substitutions take, but no more than the default."""
        return min(self._memory_of((1, self.settings.n_choices)).least, LEAST_MEMORY)

    def weights(self) -> Weights:
        """The model's weights at their values now."""
        return Weights(self.model, self.device)

    def evaluation_copy(self) -> torch.nn.Module:
        """An evaluation copy of the model, for running it naively."""
        return evaluation_copy(self.model, self.device)

    @property
    def naive_batch(self) -> int:
        """Mutants in one forward pass where the whole model runs naively."""
        return self.decisions.naive_batch

    def mutants_at_once(self, mutations: Mutations) -> int:
        """Mutants in one batch that runs naively, as memory allows."""
        return max(min(self.naive_batch, self.settings.max_memory // max(self.memory(mutations).sequence, 1)), 1)

    def memory(self, mutations: Mutations) -> Memory:
        """The bytes that one site and one sequence of such edits take."""
        kind = self._kind(mutations)
        return self._memory.made(kind, lambda: self._memory_of(kind))

    def _kind(self, mutations: Mutations) -> Kind:
        return mutations.width, mutations.edits_of_a_site

    def _memory_of(self, kind: Kind) -> Memory:
        assert self.plan is not None
        s, (width, edits) = self.settings, kind
        itemsize = getattr(torch, s.dtype.removeprefix("torch.")).itemsize
        return memory_of(self.plan, s.seq_len, s.n_choices, width, itemsize, edits)

    def sites_at_once(self, mutations: Mutations, references: int = 1, laid_out: int = 0) -> int:
        """How many sites a chunk holds, beside the references of so many sequences (or of one with many states);
        ``laid_out`` is the number of further bytes that each takes where outputs are laid out in full.

        Raises
        ------
        YuzuError
            If not even one fits into the memory that the user allows; it names the least that works.
        """
        memory, limit = self.memory(mutations), self.settings.max_memory
        if self._too_little(memory):
            raise YuzuError(
                f"max_memory={limit} is too little for edits of {mutations.width} positions in this model: the least "
                f"that works is {memory.least} bytes"
            )
        left = limit - memory.sequence * references - memory.weights
        count = self.decisions.sites
        if not mutations.substitutions:  # as many mutants as substitutions have
            count = count * max(self.settings.n_choices - 1, 1) // mutations.edits_of_a_site
        return max(min(count, left // max(memory.site + laid_out, 1)), 1)

    def sequences_at_once(self, mutations: Mutations, result_bytes: int = 0, laid_out: int = 0) -> int:
        """How many sequences are carried at once: enough to fill a chunk (on a GPU with a span of each), as memory
        allows; ``result_bytes`` is the size of each one's results on the device, ``laid_out`` as for `sites_at_once`.
        """
        of_each = mutations.sites_of_a_sequence
        of_each = of_each if self.device.type == "cpu" else min(of_each, GPU_SPAN)
        wanted = max(self.sites_at_once(mutations, 1, laid_out) // max(of_each, 1), 1)
        return min(wanted, self.most_sequences(mutations, result_bytes))

    def most_sequences(self, mutations: Mutations, result_bytes: int = 0) -> int:
        """How many sequences memory allows, and may be run together; at least 1."""
        if self.plan is not None and self.plan.one_by_one:
            return 1
        memory = self.memory(mutations)
        # at most half of it, so that enough is left for a site
        left = min(self.settings.max_memory // 2, self.settings.max_memory - memory.weights - memory.site)
        return max(left // max(memory.sequence + memory.series + result_bytes, 1), 1)

    def states_at_once(self, mutations: Mutations, sequences: int, result_bytes: int = 0) -> int:
        """For how many states of the other inputs the references of these sequences are kept together."""
        return max(self.most_sequences(mutations, result_bytes) // sequences, 1)
