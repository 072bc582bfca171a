"""ISM that is exact in the local part of a model, and first order after the first layer that mixes all positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from yuzu._engine.arrays import Array, Device
from yuzu._engine.capture.errors import CaptureError
from yuzu._engine.capture.model_copy import model_dtype
from yuzu._engine.checks import (
    check_args,
    check_count,
    check_device,
    check_func,
    check_model,
    check_sequences,
    to_user,
)
from yuzu._engine.derived import Derived
from yuzu._engine.edits import Mutations, batches, letters_of
from yuzu._engine.freed_memory import bounded, give_back, keep_freed_memory
from yuzu._engine.gate import running
from yuzu._engine.gradients import backward_in_evaluation, check_tracks, flat_outputs, gradients
from yuzu._engine.graph import Weights, evaluate
from yuzu._engine.kept import Kept
from yuzu._engine.kernels.precision import products
from yuzu._engine.layout import Change, Layout, read_windows
from yuzu._engine.plan.local_part import LocalPart, local_part
from yuzu._engine.plan.plan import Plan, make_plan
from yuzu._engine.progress import tqdm
from yuzu._engine.request import Request, Selection
from yuzu._engine.run.run import Run
from yuzu._engine.run.scores import Results, Scores
from yuzu._engine.store.in_use import InUse
from yuzu._engine.store.obtain import inputs_of, obtain_each
from yuzu._engine.store.precomputation import Precomputation
from yuzu._engine.store.states import put_together
from yuzu._engine.tune.examples import Examples
from yuzu._engine.tune.memory import CACHE_TARGET, Memory, memory_of, most_sites
from yuzu._engine.tune.ways import choose_ways
from yuzu._engine.ways.compressed_sensing import SENSING_WAYS
from yuzu.errors import warn_user
from yuzu.predict import predict_first
from yuzu.taylor import ism as taylor_shaped_ism
from yuzu.taylor import takegrad

RECURRENT = {"aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu", "yuzu.recurrence"}
SLOPES_BYTES = 1 << 28  # that gradients at the border may take; more tracks are scored one block after the other


@torch.inference_mode(False)  # which has no gradients
def hybrid_ism(
    model: torch.nn.Module,
    X_0: Array,
    precomputation: Precomputation | None = None,
    *,
    args: tuple[Any, ...] | None = None,
    tracks: int | Sequence[int] | None = None,
    func: Callable[[Any], Any] | None = None,
    start: int | None = 0,
    end: int | None = None,
    batch_size: int = 8,
    device: Device = None,
    verbose: bool = False,
) -> Array:
    """Approximate in-silico saturation mutagenesis: between Taylor ISM and ISM in time and in accuracy.

    Where a mutation reaches a window only (convolutions, pools, activations: the local part) its effect is computed
    exactly, as by `yuzu_ism`. At the border to layers that mix all positions (attention, dense layers on everything,
    recurrent layers) it is multiplied by the gradient of the output there, which a forward and a backward pass give:

        ``y(mutant) - y(reference)  ~  sum over the border's values h of  (h(mutant) - h(reference)) * dy/dh``

    A model without such a border is scored exactly, one that mixes all positions at once by Taylor ISM
    (`yuzu.taylor.takegrad` with ``"tism"``).

    Parameters
    ----------
    model, X_0, precomputation, args, func, start, end, device, verbose
        As for `yuzu_ism`. ``func`` must be differentiable.
    tracks: int, list of int or None
        The outputs, counted as in `yuzu.taylor.takegrad`; the time grows with their number. Default None: all.
    batch_size: int
        Sequences in one backward pass, at most: fewer where memory is short. Default 8.

    Returns
    -------
    torch.Tensor (numpy.ndarray for a numpy ``X_0``), shape=(n, tracks, C, end - start)
        Signed differences, 0 at the reference character.

    Raises
    ------
    ValueError
        For bad input, before any work but a forward pass that counts the outputs.

    Warns
    -----
    YuzuWarning
        Where the model's operations cannot be captured: then it is Taylor ISM.

    Examples
    --------
    >>> import yuzu
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> model, X = load_ctcf_model(), load_ctcf_peaks().X[:2]  # (2, 4, 100)
    >>> yuzu.hybrid_ism(model, X, tracks=0).shape  # (n, tracks, C, L)
    torch.Size([2, 1, 4, 100])
    """
    check_model(model)
    dtype, found = model_dtype(model), check_device(device)
    X = check_sequences(X_0, dtype)
    extra = check_args(args, len(X), dtype, inputs_of(precomputation))
    batch_size = check_count("batch_size", batch_size)
    check_func(func)
    mutations = Mutations.asked(X.shape[1], X.shape[2], start, end)
    request = Request(X, [extra], mutations, found, Selection(func), "delta", batch_size, verbose)
    one = predict_first("X_0", model, X, extra, func, device=found)
    chosen = check_tracks(tracks, flat_outputs(one, 1).shape[1])
    parts = obtain_each(model, precomputation, request, scored=False)
    if len(parts) == 1:
        result = _of_part(model, precomputation, parts[0].used, request, chosen)
    else:
        results = []
        for part in parts:
            rows = replace(request, X=X[part.rows], states=[tuple(a[part.rows] for a in extra)])
            results.append(_of_part(model, precomputation, part.used, rows, chosen))
        result = put_together(parts, results, len(X), None)
    scores: Array = to_user(result, isinstance(X_0, np.ndarray))
    return scores


def _of_part(
    model: torch.nn.Module, precomputation: Any, used: InUse, request: Request, tracks: list[int]
) -> torch.Tensor:
    """`hybrid_ism` of sequences for which the model decides in one way."""
    X, args, func = request.X, request.states[0], request.selection.func
    places, device = request.mutations.positions, request.device
    first, stop = int(places[0]), int(places[-1]) + 1
    try:
        if used.decisions.disagrees:
            raise CaptureError(str(used.decisions.naive_model))
        plan = used.captured(args)
    except CaptureError as error:
        warn_user(f"hybrid_ism is Taylor ISM for this model: {error}")
        scores = takegrad(X, model, tracks, "tism", device, args=args, func=func, batch_size=request.batch_size or 1)
        return scores[..., first:stop].contiguous()
    if func is None and local_part(plan).whole:
        exact: dict[str, Any] = {"precomputation": precomputation, "device": device, "verbose": request.verbose}
        return taylor_shaped_ism(X, model, tracks, first, stop, args=args or None, **exact)
    keep_freed_memory()
    hybrid = _Hybrid(model, plan, used, request)
    with torch.no_grad(), bounded(hybrid.limit if device.type == "cpu" else None):
        return hybrid.run(tracks)


class _Hybrid:
    """A plan that is cut at its border, in use.

    The place of the cut depends on the sequences: where a reference is infinite there are no differences, and the
    border lies before it.
    """

    def __init__(self, model: torch.nn.Module, plan: Plan, used: InUse, request: Request) -> None:
        self.plan, self.request, self.mutations = plan, request, request.mutations
        self.device = request.device
        self.limit = used.settings.max_memory  # bytes that a run may use
        self.timed = used.plan is not None  # the plan's ways were measured
        self.weights, self.derived = Weights(model, self.device), Derived()
        self.whole = Run(plan, self.weights, self.derived, self.device)
        self._cut = Kept[tuple[int, ...], tuple[LocalPart, Run]]()  # by the nodes whose reference is infinite

    def run(self, tracks: list[int]) -> torch.Tensor:
        """``(n, tracks, C, L')``"""
        X, args = self.request.X, self.request.states[0]
        part, _ = self._prepared(())
        most = self.limit // 2 // max(self._memory(self.plan, X.element_size()).sequence, 1)  # half is left for chunks
        most = 1 if self.plan.one_by_one else most
        nodes, batch_size = self.plan.graph.nodes, max(min(self.request.batch_size or 1, len(X), most), 1)
        numbers = sum(math.prod(s for s in nodes[i].shape or () if s) for i in part.border)
        block = max(SLOPES_BYTES // (batch_size * numbers * X.element_size()), 1)
        blocks = [tracks[i : i + block] for i in range(0, len(tracks), block)]
        total = len(X) * len(blocks)
        bar = tqdm(total=total, disable=not self.request.verbose, desc="hybrid ISM", unit="sequence")
        letters = letters_of(X)
        found = []
        with bar, products(self.plan.precision, self.device):
            for some in blocks:
                results = Results(self.request)
                scores = Scores(results)
                for first in range(0, len(X), batch_size):
                    rows = slice(first, first + batch_size)
                    # copies: tensors that were made in inference mode have no gradients
                    x, *rest = (t[rows].to(self.device, copy=True) for t in (X, *args))
                    self._batch(scores, first, x, rest, letters[rows], some)
                    bar.update(len(x))
                found.append(results.tensors[0][:, 0])
        return torch.cat(found, 3).permute(0, 3, 1, 2).contiguous()

    def _batch(
        self,
        scores: Scores,
        first: int,
        x: torch.Tensor,
        args: list[torch.Tensor],
        letters: torch.Tensor,
        tracks: list[int],
    ) -> None:
        part, run = self._prepared(())
        run.set_reference(x, args)
        infinite = tuple(part.kept[i] for i in run.unfit_for_differences())
        if infinite:
            part, run = self._prepared(infinite)
            run.set_reference(x, args)
        values, slopes = self._slopes(part, x, args, tracks)
        tables = [_table(s, run.plan.layouts[o]) for s, o in zip(slopes, part.graph.output_nodes, strict=True)]
        if not self.timed:
            part, run = self._timed_ways(part, run, self._sites_at_once(run, tables), infinite)
        at_once = self._sites_at_once(run, tables)
        letters_there = letters.to(self.device)  # once, not for each chunk, which would wait for the copy
        reach = run.plan.reach(self.mutations.places, 1)
        reachable, regular = map(self.mutations.by_position, reach)
        scores.begin(first, [values])
        for group in self.mutations.groups(letters, reachable):
            for some in batches(group, at_once, regular):
                give_back()
                sites, written = self.mutations.sites(x, letters_there, some)
                changes = run.chunk(sites)
                total = sites.difference.new_zeros(*sites.difference.shape[:2], len(tracks))
                for change, table in zip(changes, tables, strict=True):
                    if change is not None:
                        total += _along(run, change, table)
                scores.write(some.sequence, some.slot, written, [total])
        scores.end()

    def _prepared(self, infinite: tuple[int, ...]) -> tuple[LocalPart, Run]:
        def cut() -> tuple[LocalPart, Run]:
            plan = self.plan.without(dict.fromkeys(infinite, "its reference is infinite")) if infinite else self.plan
            part = local_part(plan)
            # probes hold the mutants of a whole plan's chunks, and are prepared with it
            local = make_plan(part.graph, plan.precision).with_ways_of(plan, enumerate(part.kept), but=SENSING_WAYS)
            return part, Run(local, self.weights, self.derived, self.device)

        return self._cut.made(infinite, cut)

    def _slopes(
        self,
        part: LocalPart,
        x: torch.Tensor,
        args: list[torch.Tensor],
        tracks: list[int],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The chosen outputs ``(n, T)``, and their gradients ``(T, n, ...)`` at each value of the border."""
        graph, run, func = self.plan.graph, self.whole, self.request.selection.func
        border, values = set(part.border), list[Any]()
        recurrent = any(node.op in RECURRENT for node in graph.nodes)
        with running(), torch.enable_grad(), backward_in_evaluation(recurrent):
            for node in graph.nodes:
                if node.kind == "call":
                    value = evaluate(node, values.__getitem__, run.device)
                else:
                    value = run.leaf(node, x, args)
                values.append(value.detach().requires_grad_() if node.index in border else value)
            output = graph.rebuild([values[o] if isinstance(o, int) else o[0] for o in graph.outputs])
            flat = flat_outputs(output if func is None else func(output), len(x))[:, tracks]
            pieces = [found for _, found in gradients(flat, [values[i] for i in part.border])]
        return flat.detach(), [torch.cat(parts) for parts in zip(*pieces, strict=True)]

    def _memory(self, plan: Plan, itemsize: int) -> Memory:
        """The memory of substitutions in a plan; at an N all of them may be made."""
        m = self.mutations
        return memory_of(plan, m.length, m.n_choices, 1, itemsize, m.n_choices)

    def _timed_ways(self, part: LocalPart, run: Run, most: int, infinite: tuple[int, ...]) -> tuple[LocalPart, Run]:
        """The part with the fastest ways, which other parts and later batches take over."""
        m = self.mutations
        ways = choose_ways(run, None, Examples(m.n_choices, m.length, m.n_choices - 1), most, most)
        self.plan = self.plan.with_ways({part.kept[i]: way for i, way in ways.items()})
        self._cut.forget(lambda _: True)
        self._cut.made(infinite, lambda: (part, run.of_plan(run.plan.with_ways(ways))))
        self.timed = True
        return self._prepared(infinite)

    def _sites_at_once(self, run: Run, tables: list[torch.Tensor]) -> int:
        """How many sites fill the cache, the gradients on their windows included."""
        plan, memory = run.plan, self._memory(run.plan, tables[0].element_size())
        middle = plan.windows(np.array([self.mutations.length // 2]), 1)
        slopes = 0
        for table, o in zip(tables, plan.graph.output_nodes, strict=True):
            window = middle[o]
            if window is not None:
                slopes = max(slopes, window.width * table[0, 0].numel() * table.element_size())
        of_all = memory.sequence * len(tables[0])
        block, site = max(memory.block, slopes), memory.site + slopes
        memory = replace(memory, block=block, site=site, sequence=of_all)
        target = CACHE_TARGET.get(run.device.type, CACHE_TARGET["cpu"])
        return max(min(target // max(block, 1), most_sites(memory, self.limit, run.device)), 1)


def _table(slopes: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Gradients ``(T, n, ...)`` with positions first and tracks last: ``(n, P, R, T)``."""
    table = layout.position_first(slopes.flatten(0, 1))  # (T * n, P, ...)
    table = table.flatten(2) if table.dim() > 2 else table.unsqueeze(2)
    result: torch.Tensor = table.unflatten(0, slopes.shape[:2]).permute(1, 2, 3, 0).contiguous()
    return result


def _along(run: Run, change: Change, table: torch.Tensor) -> torch.Tensor:
    """The change of a value of the border times the gradients there: ``(S, A, T)``."""
    assert change.window is not None
    there = read_windows(table, change.window, run.sites.sequence, run.sites.only).flatten(1, 2)  # (S, w * R, T)
    return torch.bmm(change.tensor.flatten(2).to(there.dtype), there)
