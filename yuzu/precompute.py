"""Everything that depends on the model's architecture, the sequence length and the device, and on nothing
else.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from yuzu._engine.arrays import Device
from yuzu._engine.capture.export import DRAWS, CaptureError, capture
from yuzu._engine.capture.model_copy import evaluation_copy, model_dtype, on_copies, writes_to_parameters
from yuzu._engine.capture.recurrent import loops_in
from yuzu._engine.capture.structure import structure_key
from yuzu._engine.freed_memory import bounded, count_from_here, keep_freed_memory
from yuzu._engine.gate import running
from yuzu._engine.graph import Graph, Weights
from yuzu._engine.handlers.convolution import FUSED
from yuzu._engine.handlers.pool import KERNEL
from yuzu._engine.kernels import triton as kernels
from yuzu._engine.kernels.precision import products
from yuzu._engine.plan.plan import Plan, make_plan
from yuzu._engine.progress import Stages
from yuzu._engine.request import argument_kinds, check_args, check_count, check_device, check_model
from yuzu._engine.run.bound import LEAST_MEMORY, Bound
from yuzu._engine.run.run import Derived, Run
from yuzu._engine.store.precomputation import Args, Precomputation, branch_words, structure_fingerprint
from yuzu._engine.store.settings import CONV, NAIVE_BATCH, PRECISIONS, Settings
from yuzu._engine.tune import measure, report
from yuzu._engine.tune.verify import Verdict, compare, error_of_products
from yuzu._engine.ways.compressed_sensing import Sensing
from yuzu.errors import YuzuError, shown, warn_user
from yuzu.naive_ism import MIXES_ROWS, mixes_rows, try_model

MOST_LOWERED_ERROR = 0.5  # of lowered products, relative to float64: rounding gives 0.01, a broken kernel 1 and more
# of kernels of our own: rounding gives a hundredth of each, or, where little is left of large values, as much without
MOST_KERNEL_ERROR = {"highest": 1e-3, "high": 5e-2, "medium": 0.2}
# of the ways that were chosen: some round a few times as much as others, which may be much of little
MOST_WAYS_ERROR = {"highest": 5e-2, "high": 5e-2, "medium": 0.2}
FAR_LESS = 0.3  # of an error
PLAINLY = 0.6  # of the seconds that differences take, naive ISM's where it is not tried again
KERNELS = (FUSED, KERNEL)  # ways that are kernels of our own
FEW_ROWS = 16  # mutants in one forward pass of a model whose tensors cannot be counted
UNSAVED = ("plan", "derived", "taken")  # decisions that are for the model at hand alone
Choice = Callable[[Run], dict[int, str]]  # chooses and sets the ways of a run's layers
DISAGREES = "the captured graph does not agree with the model"
WRONG_HERE = "its differences are wrong on this machine, by whichever ways they are carried"


def memory_for(model: torch.nn.Module, device: torch.device) -> int:
    """Bytes that a run may use when the user does not say: half of what is free on a GPU, or 1 GiB where that is more
    and free; on a CPU 1 GiB beside the model's weights, which may be laid out anew, and are compared with a copy.
    """
    if device.type == "cuda":
        free = int(torch.cuda.mem_get_info(device)[0])
        return max(free // 2, min(free, LEAST_MEMORY))
    return LEAST_MEMORY + 2 * sum(t.nbytes for t in itertools.chain(model.parameters(), model.buffers()))


@torch.no_grad()
def precompute(
    model: torch.nn.Module,
    seq_len: int,
    n_choices: int = 4,
    *,
    args: tuple[Any, ...] | None = None,
    alpha: float | None = None,
    threshold: float = 0.9999,
    conv: str = "auto",
    precision: str = "highest",
    terminal_layers: tuple[type, ...] | list[type] = (),
    max_memory: int | None = None,
    device: Device = None,
    random_state: int | None = None,
    verify: bool = True,
    verbose: bool = False,
) -> Precomputation:
    """Capture a model and decide how to run each layer, how many mutants to carry at once, and check the
    result.

    The precomputation depends on the model's architecture, the sequence length and the device. It stays valid
    when weights change.

    Parameters
    ----------
    model: torch.nn.Module
        Reads sequences ``(n, n_choices, seq_len)`` as its first input.
    seq_len, n_choices: int
        Length and number of characters of the sequences.
    args: tuple of tensors or None
        Examples ``(n, ...)`` of the model's inputs after the sequence.
    alpha: float or None
        With ``conv="gaussian"``: probes for each nonzero, at least 1. None searches upwards from 1.
    threshold: float
        With ``conv="gaussian"``: the Pearson correlation with naive ISM at which the search stops. Default
        0.9999.
    conv: str
        ``"auto"`` measures the exact ways and keeps the fastest for each layer, and runs the whole model naively
        where a sequence takes over 10 ms and that is faster still. Or one way for all
        convolutions that it applies to: ``"windows"``, ``"taps"``, ``"cyclic"``, ``"banded"``, ``"blocks"``,
        ``"whole"``, ``"fold"``, ``"winograd"``, ``"fused"`` (on a GPU, together with what follows), ``"gaussian"``.
    precision: str
        ``"highest"``: the model's own dtype throughout. ``"high"``: TF32 products on CUDA. ``"medium"``:
        bfloat16 products of differences, which stay in bfloat16 between layers that run as one on a GPU; as
        ``"highest"``, with a warning, where verification finds these far off. The reference is float32 in all of them.
    terminal_layers: tuple of classes
        Module classes from which on the model runs naively.
    max_memory: int or None
        Bytes that a run may use beyond the model and its output. None: half of what is free on a GPU (1 GiB where
        that is more, and free); on a CPU 1 GiB and twice the model's own weights. On a CPU this counts memory that
        is freed but kept for the next tensors: glibc is told, for the whole process and for good, to keep freed blocks
        of less than 32 MiB (it is slow to give them back and get them anew), and hands them back where the process has
        grown by nearly this much. Not counted are what PyTorch and oneDNN keep for themselves, the graph that
        ``torch.export`` makes, and one forward pass of the model in float64, for ``verify``, where that takes more.
    device: str, torch.device or None
        None means CUDA when available, else the CPU.
    random_state: int or None
        Seed of the random sequence and matrices; None is 0. The global random state is never touched.
    verify: bool
        Compare a few mutants of a random sequence with naive ISM in float64, and again as they will be run, by the
        ways that were chosen. Where they disagree the layer concerned runs naively, and a warning names it.
    verbose: bool
        Say which stage is at hand, and print the summary. Otherwise stages are said only after 3 seconds.

    Returns
    -------
    Precomputation

    Raises
    ------
    ValueError
        For wrong arguments; naming the least that works if ``max_memory`` is too small.
    """
    check_model(model)
    if getattr(seq_len, "shape", ()):
        raise YuzuError(f"seq_len must be the length of the sequences, got {shown(seq_len)}: pass its shape[-1]")
    seq_len, n_choices = check_count("seq_len", seq_len), check_count("n_choices", n_choices, 2)
    extra = check_args(args, None)
    found = check_device(device)
    if conv not in CONV:
        raise YuzuError(f"conv must be one of {', '.join(map(repr, CONV))}, got {shown(conv)}")
    if precision not in PRECISIONS:
        raise YuzuError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {shown(precision)}")
    if alpha is not None and (
        isinstance(alpha, bool) or not isinstance(alpha, int | float | np.number) or not 1 <= alpha < math.inf
    ):
        raise YuzuError(f"alpha must be a number of at least 1, got {shown(alpha)}")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float | np.number) or not 0 < threshold <= 1:
        raise YuzuError(f"threshold must lie in (0, 1], got {shown(threshold)}")
    terminal = tuple(terminal_layers) if isinstance(terminal_layers, tuple | list) else (terminal_layers,)
    if not all(isinstance(t, type) and issubclass(t, torch.nn.Module) for t in terminal):
        raise YuzuError(f"terminal_layers must be a tuple of module classes, got {shown(terminal_layers)}")
    if max_memory is not None:
        max_memory = check_count("max_memory", max_memory)
    seed = 0 if random_state is None else check_count("random_state", random_state, 0)

    settings = Settings(
        seq_len,
        n_choices,
        str(model_dtype(model)),
        argument_kinds(extra),
        found.type,
        conv,
        None if alpha is None else float(alpha),
        float(threshold),
        precision,
        max_memory or memory_for(model, found),
        seed,
    )
    X = random_sequence(seq_len, n_choices, model_dtype(model), seed)
    with products(precision, found), Stages("precompute", at_once=verbose) as stage:
        stage("running the model")
        twin = evaluation_copy(model, found)
        with loops_in(twin) as loops:
            try_model(twin, X, extra, found)
        share = not writes_to_parameters(model, twin)  # further copies of large ones would take time and memory
        del twin
        one = tuple(a[:1] for a in extra)
        with bounded(settings.max_memory if found.type == "cpu" else None):
            decisions = _decide(model, settings, X, one, terminal, found, verify, max_memory, share, loops, stage)
        if decisions["plan"] is None:
            twin = evaluation_copy(model, found, share=share)
            _fit_naive_batch(decisions, twin, X.to(found), [a.to(found) for a in one], settings, max_memory)
    made = Precomputation(settings, {k: v for k, v in decisions.items() if k not in UNSAVED})
    plan = decisions["plan"]
    bound = Bound(model, plan, made, found, decisions["derived"], decisions["taken"])
    made.keep(model, structure_key(model), bound)
    if plan is not None and plan.sensing is not None:
        from yuzu._engine.store.alpha_search import search_alpha

        search_alpha(made, bound, X, tuple(a[:1] for a in extra), found)
    if verbose:
        print(made.summary())
    return made


def random_sequence(length: int, n_choices: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """A random one-hot sequence ``(1, C, L)`` from its own generator."""
    letters = torch.randint(n_choices, (length,), generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    return torch.nn.functional.one_hot(letters, n_choices).T[None].to(dtype)


def _decide(
    model: torch.nn.Module,
    s: Settings,
    X: torch.Tensor,
    args: Args,
    terminal: tuple[type, ...],
    device: torch.device,
    verify: bool,
    asked_memory: int | None,
    share: bool,
    loops: list[str],
    stage: Stages,
) -> dict[str, Any]:
    decisions: dict[str, Any] = {
        "naive_model": None,
        "branches": [],
        "taken": None,
        "precision": s.precision,
        "naive": {},
        "ways": {},
        "sites": 1,
        "naive_batch": NAIVE_BATCH,
        "layers": [],
        "probes": {},
        "alpha": None,
        "correlation": None,
        "condition": None,
        "plan": None,
        "derived": None,
    }
    stage("tracing the model")
    try:
        if loops:
            raise CaptureError(loops[0])
        graph = capture(model, (s.n_choices, s.seq_len), args, model_dtype(model), share)
    except CaptureError as error:
        decisions["fingerprint"], decisions["naive_model"] = structure_fingerprint(model), str(error)
        if not _runs_row_by_row(model, X, args, device, share, decisions):
            _warn_naive_model(model, str(error))
        return decisions
    decisions["fingerprint"] = graph.fingerprint()
    decisions["taken"], decisions["branches"] = graph.branches, branch_words(model, graph.branches, graph)
    count_from_here()  # a graph is no tensor
    naive = terminal_nodes(model, graph, terminal)
    plan = make_plan(graph, s.precision, naive)
    # handlers are for what treats every row by itself
    if plan.reasons and _runs_row_by_row(model, X, args, device, share, decisions):
        return decisions
    missing = kernels.why_not(device)
    if device.type == "cuda" and plan.block_of and missing is not None:
        warn_user(f"Layers run one by one, and pools by phases, on this GPU, and take longer: {missing}")
    verdict = None
    if verify:
        stage("comparing with naive ISM")
        while True:
            verdict = compare(model, plan, X, args, device, keep=True)
            bad, why = verdict.node, verdict.why
            if bad is None:
                break
            if bad < 0 or plan.rules[bad] is None:  # the model itself has been run on these mutants
                decisions["naive_model"] = ": ".join(filter(None, (DISAGREES, why)))
                _warn_naive_model(model, decisions["naive_model"])
                return decisions
            naive[bad] = why
            plan = make_plan(graph, s.precision, naive)

    keep_freed_memory()
    derived = Derived()
    run = Run(plan, Weights(model, device), derived, device)
    begin = time.perf_counter()
    run.set_reference(X.to(device), tuple(a.to(device) for a in args))
    forward = time.perf_counter() - begin
    itemsize, edits = X.element_size(), s.n_choices - 1
    memory = _memory(plan, s, itemsize)
    if asked_memory is not None:
        _refuse_too_little(asked_memory, memory)
    most = measure.most_sites(memory, s.max_memory, device)
    target = measure.CACHE_TARGET.get(device.type, measure.CACHE_TARGET["cpu"])
    first = max(min(target // max(memory.block, 1), most), 1)
    if s.conv == "gaussian":
        plan.sensing = Sensing(s.alpha or 1.0, s.random_state)
    forced = None if s.conv == "auto" else s.conv
    naively = forward * edits * s.seq_len  # naive ISM's seconds for a sequence, at most

    def choose(run: Run) -> dict[int, str]:
        ways = measure.choose_ways(run, forced, edits, s.n_choices, s.seq_len, first, most, s.random_state, naively)
        if asked_memory is not None:
            changed = measure.make_fit(run.plan, ways, lambda: _memory(run.plan, s, itemsize), asked_memory)
            if changed and forced:
                layers = ", ".join(graph.nodes[i].label for i in changed)
                warn_user(f"conv={forced!r} does not fit into max_memory={asked_memory}: {layers} run by 'windows'")
        return ways

    stage("trying ways to run each layer")
    begin = time.perf_counter()
    ways = _checked_ways(run, choose, X.to(device), verdict)
    if s.precision == "medium" and verdict is not None and _lowered_products_fail(run, X.to(device), verdict):
        decisions["precision"] = "highest"
        sensing, plan = plan.sensing, make_plan(graph, "highest", naive)
        plan.sensing = sensing
        run = run.of_plan(plan)
        with products("highest", device):
            ways = _checked_ways(run, choose, X.to(device), verdict)
    right = True
    if verdict is not None and plan.sensing is None:
        with products(plan.precision, device):
            run, ways, right = _agreeing(model, run, ways, choose, X, args, verdict)
    del verdict  # it may be large
    plan = run.plan
    decisions["naive"] = {str(i): r for i, r in plan.naive.items()}
    if not right:
        decisions["naive_model"] = WRONG_HERE
        warn_user(f"{type(model).__name__} runs naively, mutant by mutant, and is not faster: {WRONG_HERE}")
        return decisions
    _warn_naive_layers(plan)
    if asked_memory is not None:
        _refuse_too_little(asked_memory, _memory(plan, s, itemsize))  # more layers may run naively now
    spent = time.perf_counter() - begin
    stage("trying how many mutants to run at once")
    with products(plan.precision, device):
        twin = functools.partial(evaluation_copy, model, device, share=share)
        decisions = _measured(twin, s, decisions, X, args, run, ways, first, spent, forward * edits)
    if decisions["plan"] is not None:
        decisions["derived"] = derived  # the first call need not lay out weights again
    return decisions


def _runs_row_by_row(
    model: torch.nn.Module, X: torch.Tensor, args: Args, device: torch.device, share: bool, decisions: dict[str, Any]
) -> bool:
    """Have mutants run one at a time where what a model returns for one depends on the others; whether it is so."""
    if not mixes_rows(evaluation_copy(model, device, share=share), X, args, device):
        return False
    decisions["naive_model"], decisions["naive_batch"] = MIXES_ROWS, 1
    warn_user(f"{type(model).__name__} runs naively, one mutant at a time, and is not faster: {MIXES_ROWS}")
    return True


def _measured(
    twin: Callable[[], torch.nn.Module],
    s: Settings,
    decisions: dict[str, Any],
    X: torch.Tensor,
    args: Args,
    run: Run,
    ways: dict[int, str],
    first: int,
    spent: float,
    of_a_site: float,
) -> dict[str, Any]:
    """The decisions with what is measured once every layer's way is chosen, which took ``spent`` seconds; the model
    takes at most ``of_a_site`` for the mutants of one.
    """
    plan, device = run.plan, run.device
    itemsize, edits = X.element_size(), s.n_choices - 1
    memory = _memory(plan, s, itemsize)
    most = measure.most_sites(memory, s.max_memory, device)
    start = min(2 * first, most)  # larger than ways are tried with: products of many rows are shared among threads
    sizes = edits, s.n_choices, s.seq_len, start, most
    count, seconds, cost = measure.choose_chunk(run, *sizes, s.random_state, spent, of_a_site)
    if s.conv == "auto" and cost * s.seq_len > measure.WORTH_COMPARING:
        # a batch of the model holds mutants of one sequence
        most_rows = max(min(s.max_memory // max(memory.sequence, 1), edits * s.seq_len), 1)
        naively = measure.naive_is_faster(twin(), X, args, device, cost / edits, most_rows)
        # a chunk that takes long would be run once more, whole
        long = count < measure.FEWER_SITES and count * cost > measure.LONG_RUN
        plainly = long and naively is not None and naively[0] < PLAINLY * cost / edits
        if naively is not None and not plainly:  # a busy machine may have slowed the one and not the other
            # and a chunk of several short sequences costs less than the chunks of each
            fit = s.max_memory // max(memory.sequence, 1)
            several = max(min(count // s.seq_len, fit, measure.MOST_SEQUENCES), 1)
            run.set_reference(*_rows(several, X, args, device))
            cost = min(cost, measure.cost_of_chunk(run, edits, s.n_choices, s.seq_len, count, s.random_state)[0])
            run.set_reference(*_rows(1, X, args, device))
        if naively is not None and naively[0] < cost / edits:
            seconds_naively, decisions["naive_batch"] = naively
            reasons = _naive_layers(plan)
            decisions["naive_model"] = (
                f"that takes {1e3 * seconds_naively:.3g} ms a mutant on {device.type}, "
                f"carrying differences {1e3 * cost / edits:.3g} ms"
            ) + (f". Naive in any case: {reasons}" if reasons else "")
            return decisions
    decisions["ways"] = {str(i): w for i, w in ways.items()}
    decisions["sites"] = count
    if plan.sensing is not None:
        decisions["alpha"], decisions["probes"] = plan.sensing.alpha, dict(plan.sensing.probes)
    decisions["layers"] = report.rows(plan, run, seconds)
    decisions["plan"] = plan
    return decisions


def _rows(count: int, X: torch.Tensor, args: Args, device: torch.device) -> tuple[torch.Tensor, Args]:
    """One sequence and its other inputs so many times."""
    x, *rest = (t.to(device).expand(count, *t.shape[1:]).contiguous() for t in (X, *args))
    return x, tuple(rest)


def _memory(plan: Plan, s: Settings, itemsize: int) -> measure.Memory:
    """What substitutions take, where an N may have all of them."""
    return measure.memory_of(plan, s.seq_len, s.n_choices, 1, itemsize, s.n_choices)


def _refuse_too_little(asked: int, memory: measure.Memory) -> None:
    if asked < memory.least:
        raise YuzuError(
            f"max_memory={asked} is too little for this model: the least that works is {memory.least} bytes"
        )


def _fit_naive_batch(
    decisions: dict[str, Any],
    twin: torch.nn.Module,
    X: torch.Tensor,
    args: list[torch.Tensor],
    s: Settings,
    asked_memory: int | None,
) -> None:
    """No larger a batch, where the whole model runs naively, than what may be used has room for."""
    try:
        with running():
            row = measure.bytes_of_a_row(lambda: on_copies(twin, X, *args))
    except Exception as error:  # a forward that runs, but not while its operations are counted
        decisions["naive_batch"] = min(decisions["naive_batch"], FEW_ROWS)
        warn_user(
            f"{type(twin).__name__} may take more than max_memory, and runs {decisions['naive_batch']} mutants at a "
            f"time: what one takes could not be counted ({type(error).__name__}: {error})"
        )
        return
    if asked_memory is not None and asked_memory < row:
        raise YuzuError(f"max_memory={asked_memory} is too little for this model: the least that works is {row} bytes")
    decisions["naive_batch"] = max(min(decisions["naive_batch"], s.max_memory // max(row, 1)), 1)


def _checked_ways(run: Run, choose: Choice, X: torch.Tensor, verdict: Verdict | None) -> dict[int, str]:
    """The ways that are chosen; anew without kernels of our own where these are plainly wrong, with a warning."""
    ways = choose(run)
    plan = run.plan
    if (
        verdict is None
        or not run.plan.kernels
        or not any(rule is not None and rule.way in KERNELS for rule in plan.rules)
    ):
        return ways
    off = _plainly_off(run, X, verdict, plan.precision, MOST_KERNEL_ERROR[plan.precision])
    if off:
        warn_user(
            f"Layers run one by one, and pools by phases, on this machine, and take longer: with kernels the "
            f"differences of a few mutants are {off}"
        )
        plan.kernels = False
        ways = choose(run)
    return ways


def _agreeing(
    model: torch.nn.Module,
    run: Run,
    ways: dict[int, str],
    choose: Choice,
    X: torch.Tensor,
    args: Args,
    verdict: Verdict,
) -> tuple[Run, dict[int, str], bool]:
    """A run that gives what the model gives as it will run, by the ways that are chosen and with weights laid out, and
    these ways; or the last that was tried, and False. Verification has none of that, and runs no more than the few
    mutants that are run here. A layer that is wrong runs naively; where none is found by itself, each runs as it was
    verified.
    """
    device, settled = run.device, False
    while True:
        plan = run.plan
        most = MOST_WAYS_ERROR[plan.precision if X.element_size() >= 4 else "medium"]
        off = _plainly_off(run, X.to(device), verdict, plan.precision, most, once=True)
        if not off or settled:
            return run, ways, not off
        bad = compare(model, plan, X, args, device, as_run=True).node
        rule = plan.rules[bad] if bad is not None and bad >= 0 else None
        if rule is None:
            warn_user(
                f"Each layer runs in the first of its ways, and may take longer: by those that are fastest here the "
                f"differences of a few mutants are {off}"
            )
            plain, settled = make_plan(plan.graph, plan.precision, plan.naive), True
            plain.kernels = False
            run = run.of_plan(plain)
            ways = {i: other.way for i in ways if (other := plain.rules[i]) is not None}
            continue
        way = f" by the way {rule.way!r}" if rule.way else ""
        why = f"its handler disagreed with naive ISM as it is run here{way}: differences are {off}"
        run = run.of_plan(plan.without({rule.node.index: why}))
        ways = choose(run)


def _lowered_products_fail(run: Run, X: torch.Tensor, verdict: Verdict) -> bool:
    """Whether lowered products are wrong here, and full ones are not; with a warning."""
    off = _plainly_off(run, X, verdict, "highest", MOST_LOWERED_ERROR)
    if off:
        warn_user(
            f"precision='medium' is as 'highest' for this model on this machine: with bfloat16 products the "
            f"differences of a few mutants are {off}"
        )
    return bool(off)


def _plainly_off(run: Run, X: torch.Tensor, verdict: Verdict, precision: str, most: float, once: bool = False) -> str:
    """How far off a run's products are, where that is more than ``most``, and far less in a precision with no choice of
    ways (run as by verification if ``once``); else nothing.
    """
    error = error_of_products(run, X, verdict)
    if error <= most:
        return ""
    plain = make_plan(run.plan.graph, precision, run.plan.naive)
    plain.kernels = False
    with products(precision, run.device):
        another = run.of_plan(plain)
        another.once = once
        other = error_of_products(another, X, verdict)
    if not math.isfinite(other) or other > FAR_LESS * error:
        return ""
    return f"off by {error:.{0 if error > 0.1 else 2}%}" if math.isfinite(error) else "not finite"


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


def _warn_naive_model(model: torch.nn.Module, reason: str) -> None:
    exact = "results are as random as the model" if DRAWS in reason else "results are exact but not faster"
    warn_user(
        f"{type(model).__name__} runs naively, mutant by mutant: {exact}. The model could not be captured: {reason}"
    )


def _warn_naive_layers(plan: Plan) -> None:
    if layers := _naive_layers(plan):
        warn_user(
            "These layers, and what follows them, run naively on every mutant: results are exact but gain little. "
            f"{layers}"
        )


def _naive_layers(plan: Plan) -> str:
    """The layers that nobody asked to run naively, and why they do; empty if there are none."""
    roots = [(i, r) for i, r in plan.reasons.items() if "which runs naively" not in r and "terminal_layers" not in r]
    nodes = [(plan.graph.nodes[i], reason) for i, reason in roots[:5]]
    layers = "; ".join(f"{f'{n.layer} ({n.op})' if n.layer else n.op}: {reason}" for n, reason in nodes)
    return layers + (f"; and {len(roots) - 5} more" if len(roots) > 5 else "")


__all__ = ["precompute"]
