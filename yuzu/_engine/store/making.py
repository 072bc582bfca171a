"""Makes a precomputation: request -> capture -> plan -> tune -> record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from yuzu._engine.capture.branches import Branches, Captured
from yuzu._engine.capture.errors import CaptureError
from yuzu._engine.capture.model_copy import evaluation_copy, model_dtype, on_copies, writes_to_parameters
from yuzu._engine.capture.recurrent import loops_in
from yuzu._engine.capture.structure import structure_key
from yuzu._engine.derived import Derived
from yuzu._engine.freed_memory import bounded, count_from_here
from yuzu._engine.gate import running
from yuzu._engine.graph import Graph
from yuzu._engine.kernels import triton as kernels
from yuzu._engine.kernels.precision import products
from yuzu._engine.plan.plan import Plan, make_plan
from yuzu._engine.progress import Stages
from yuzu._engine.rewrite.all import capture
from yuzu._engine.run.naive import MIXES_ROWS, mixes_rows, try_model
from yuzu._engine.settings import Wanted
from yuzu._engine.store.alpha_search import search_alpha
from yuzu._engine.store.decisions import Decisions, Layer, PastStatistics
from yuzu._engine.store.identity import branch_words, structure_fingerprint
from yuzu._engine.store.in_use import InUse
from yuzu._engine.store.precomputation import Precomputation
from yuzu._engine.tune.memory import bytes_of_a_row
from yuzu._engine.tune.subject import RunsNaively, Subject, warn_naive_model
from yuzu._engine.tune.tuning import Tuned, tune
from yuzu.errors import warn_user

FEW_ROWS = 16  # mutants in one forward pass of a model whose tensors cannot be counted

Stage = Callable[[str], None]


@torch.no_grad()
def make(model: torch.nn.Module, wanted: Wanted, verbose: bool = False) -> Precomputation:
    """Make a precomputation, and keep it in use with the model.

    Raises
    ------
    YuzuError
        If the model cannot run on such sequences, or not within the memory that the user allows.
    """
    s, device = wanted.settings, wanted.device
    X = random_sequence(s.seq_len, s.n_choices, model_dtype(model), s.random_state)
    with products(s.precision, device), Stages("precompute", at_once=verbose) as stage:
        stage("running the model")
        clone = evaluation_copy(model, device)
        with loops_in(clone) as loops:
            try_model(clone, X, wanted.args, device)
        share = not writes_to_parameters(model, clone)  # further copies of large ones would take time and memory
        del clone
        subject = Subject(model, s, X, wanted.args, device, share, wanted.asked_memory)
        with bounded(s.max_memory if device.type == "cpu" else None):
            found = _planned(subject, wanted, loops, stage)
        if found.plan is None:
            found = replace(found, decisions=_fit_naive_batch(subject, found.decisions))
    used = InUse(model, found.plan, s, found.decisions, device, found.derived, found.branches)
    if found.plan is not None and found.plan.sensing is not None:
        used = search_alpha(used, X, wanted.args)
    made = Precomputation(s, used.decisions)
    made.keep(model, structure_key(model), used)
    return made


def random_sequence(length: int, n_choices: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """A random one-hot sequence ``(1, C, L)`` from its own generator."""
    letters = torch.randint(n_choices, (length,), generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    return torch.nn.functional.one_hot(letters, n_choices).T[None].to(dtype)


@dataclass(frozen=True, eq=False)
class _Found:
    """Decisions, and what the first call need not make again: a plan, weights laid out, and the model's branches."""

    decisions: Decisions
    plan: Plan | None = None
    derived: Derived | None = None
    branches: Branches | None = None


def _planned(subject: Subject, wanted: Wanted, loops: list[str], stage: Stage) -> _Found:
    """Capture the model, plan and tune; or decide that it runs naively."""
    model, precision = subject.model, subject.settings.precision
    graph = None
    try:
        stage("tracing the model")
        graph = _captured(subject, loops)
        plan = _checked_plan(subject, graph, wanted)
        tuned = tune(subject, plan, wanted.verify, stage)
    except RunsNaively as naively:
        fingerprint = structure_fingerprint(model) if graph is None else graph.fingerprint()
        branches = Branches() if graph is None else graph.branches
        decisions = Decisions(
            fingerprint,
            precision if naively.plan is None else naively.plan.precision,
            branch_words(model, branches, graph),
            naive_model=naively.reason,
            disagrees=naively.disagrees,
            naive={} if naively.plan is None else dict(naively.plan.naive),
            naive_batch=naively.batch,
        )
        return _Found(decisions, branches=None if graph is None else branches)
    return _recorded(model, graph, tuned)


def _captured(subject: Subject, loops: list[str]) -> Captured:
    model, s = subject.model, subject.settings
    try:
        if loops:
            raise CaptureError(loops[0])
        graph = capture(model, (s.n_choices, s.seq_len), subject.args, model_dtype(model), subject.share)
    except CaptureError as error:
        reason = str(error)
    else:
        count_from_here()  # a graph is no tensor
        return graph
    _refuse_mixed_rows(subject)
    warn_naive_model(model, reason)
    raise RunsNaively(reason)


def _checked_plan(subject: Subject, graph: Graph, wanted: Wanted) -> Plan:
    """A plan of the graph, whose handlers are for models that treat every row by itself."""
    device = subject.device
    plan = make_plan(graph, subject.settings.precision, terminal_nodes(subject.model, graph, wanted.terminal_layers))
    if plan.reasons:
        _refuse_mixed_rows(subject)
    missing = kernels.why_not(device)
    if device.type == "cuda" and plan.group_of and missing is not None:
        warn_user(f"Layers run one by one, and pools by phases, on this GPU, and take longer: {missing}")
    return plan


def _recorded(model: torch.nn.Module, graph: Captured, tuned: Tuned) -> _Found:
    plan = tuned.plan
    decisions = Decisions(
        graph.fingerprint(),
        plan.precision,
        branch_words(model, graph.branches, graph),
        naive=dict(plan.naive),
        ways=tuned.ways,
        sites=tuned.sites,
        layers=tuple(Layer._make([*row[:-1], int(row[-1])]) for row in tuned.rows),
        statistics=tuned.past and PastStatistics(*tuned.past),
        kept=tuned.kept,
    )
    return _Found(decisions, plan, tuned.derived, graph.branches)


def _refuse_mixed_rows(subject: Subject) -> None:
    """Have mutants run one at a time where the model's result for one depends on the others."""
    if mixes_rows(subject.evaluation_copy(), subject.X, subject.args, subject.device):
        name = type(subject.model).__name__
        warn_user(f"{name} runs naively, one mutant at a time, and is not faster: {MIXES_ROWS}")
        raise RunsNaively(MIXES_ROWS, batch=1)


def _fit_naive_batch(subject: Subject, decisions: Decisions) -> Decisions:
    """Decisions with no larger a batch, where the whole model runs naively, than the memory allows."""
    clone, batch = subject.evaluation_copy(), decisions.naive_batch
    X, args = subject.on_device()
    try:
        with running():
            row = bytes_of_a_row(lambda: on_copies(clone, X, *args))
    except Exception as error:  # a forward that runs, but not while its operations are counted
        batch = min(batch, FEW_ROWS)
        warn_user(
            f"{type(clone).__name__} may take more than max_memory, and runs {batch} mutants at a time: the memory of "
            f"one could not be counted ({type(error).__name__}: {error})"
        )
    else:
        subject.refuse_too_little(row)
        batch = max(min(batch, subject.settings.max_memory // max(row, 1)), 1)
    return replace(decisions, naive_batch=batch)


def terminal_nodes(model: torch.nn.Module, graph: Graph, terminal: tuple[type, ...]) -> dict[int, str]:
    """The nodes that belong to modules of the terminal classes."""
    if not terminal:
        return {}
    found = {}
    for node in graph.nodes:
        path = node.layer.split(".") if node.layer else []
        owners = [model, *(model.get_submodule(".".join(path[: i + 1])) for i in range(len(path)))]
        for owner in owners:
            if node.kind == "call" and isinstance(owner, terminal):
                found[node.index] = f"{type(owner).__name__} is in terminal_layers"
    return found
