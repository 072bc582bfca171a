"""One worker of a run: it claims blocks, scores them and writes them, until none is left."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yuzu._engine.genome import opened_genome
from yuzu._engine.store.precomputation import Precomputation
from yuzu.errors import YuzuError, one_line
from yuzu.regions import Regions, one_hot_regions
from yuzu.runs.call import Call
from yuzu.runs.claims import POLL, TIMEOUT, Claims
from yuzu.runs.store import OWN, Store, writing

IN_A_ROW = 16  # sequences that fail one after another: then it is the machine or the model, and the run stops


@dataclass(frozen=True)
class Task:
    """The orders of a worker, which can be sent to another process.

    ``shard`` ``(i, n)`` takes each ``n``-th block, from ``i``; ``wait`` is for the blocks that other workers hold.
    """

    path: Path
    load: Callable[[], Call]
    genome: str | None = None
    threads: int = 1
    shard: tuple[int, int] = (0, 1)
    timeout: float = TIMEOUT
    parent: int | None = None

    def blocks(self, store: Store) -> list[int]:
        """The blocks of this worker's shard."""
        return list(range(self.shard[0] % self.shard[1], store.blocks, self.shard[1]))


def work(task: Task, call: Call | None = None, report: Callable[[], None] = lambda: None) -> None:
    """Score blocks until all of the shard are done; ``report`` is called after each, and while waiting."""
    with _threads(task.threads), contextlib.ExitStack() as opened:
        store = Store(task.path)
        call = task.load() if call is None else call
        made = Precomputation.load(task.path / OWN / "plan.yuzu", call.settings["device"])
        genome = None if task.genome is None else opened.enter_context(opened_genome(task.genome))
        rows = _Rows(store, genome)
        scorer = _Scorer(store, call, made)
        with Claims(task.path / OWN / "claims", task.timeout, task.parent) as claims:
            for block in _claimed(task.blocks(store), store, claims, report):
                found = scorer.scores(rows.of(block), rows.given[store.rows(block)])
                with writing(task.path):
                    if claims.holds(block) and not store.is_done(block):
                        _write(store, block, rows, found)
                    claims.release(block)
                report()
        if len(store.done()) == store.blocks:
            store.tidy()


def _claimed(blocks: list[int], store: Store, claims: Claims, report: Callable[[], None]) -> Iterator[int]:
    """Blocks that are not done, each claimed."""
    left = blocks
    while left := sorted(set(left) - set(store.done())):
        idle = True
        for block in left:
            if store.is_done(block):
                continue
            with writing(store.path):
                taken = claims.take(block)
            if not taken:
                continue
            if store.is_done(block):  # between the two looks
                claims.release(block)
                continue
            idle = False
            yield block
        if idle:
            report()
            time.sleep(POLL)


def _write(store: Store, block: int, rows: _Rows, found: _Found) -> None:
    """Write all of a block, its scores last."""
    if rows.genome is not None:
        store.write(block, "sequences", found.X.numpy())
    store.write_failures(block, found.reasons)
    if any(found.reasons):
        names = store.group["name"][store.rows(block)]
        for name, why in zip(names, found.reasons, strict=True):
            if why:
                store.log(f"{name}: {why}")
    if found.each is not None:
        store.write(block, "scores_by_model", found.each)
    store.write(block, "scores", found.scores)


class _Rows:
    """Reads the sequences of blocks: those in the store, or windows of the genome."""

    def __init__(self, store: Store, genome: Any) -> None:
        self.genome, self._store = genome, store
        self.given = store.group["row"][:]
        self._columns = {
            name: store.group[name][:] for name in ("chrom", "start", "end", "strand") if name in store.group
        }
        self._letters = "".join(store.group["letter"][:].tolist())

    def of(self, block: int) -> torch.Tensor:
        rows = self._store.rows(block)
        if self.genome is None:
            return torch.from_numpy(self._store.group["sequences"][rows])
        chrom, start, end, strand = (self._columns[name][rows] for name in ("chrom", "start", "end", "strand"))
        windows = Regions([str(c) for c in chrom], start, end, strands=[str(s) for s in strand])
        found = one_hot_regions(windows, self.genome, None, self._letters, torch.int8, True)
        if len(found.X) < len(windows):
            raise YuzuError(f"genome: {found.dropped[0].reason}; it had the window when the run was begun")
        return found.X


@dataclass(frozen=True)
class _Found:
    X: torch.Tensor
    scores: np.ndarray
    each: np.ndarray | None
    reasons: list[str]


class _Scorer:
    """Scores the sequences of a block; those that fail have NaN, and a reason."""

    def __init__(self, store: Store, call: Call, made: Precomputation) -> None:
        self._call, self._made = call, made
        self._shape = store.scores.shape[1:]
        self._each = store.group["scores_by_model"].shape[1:] if len(call.models) > 1 else None
        self._dtype = store.scores.dtype
        self._in_a_row = 0

    def scores(self, X: torch.Tensor, given: np.ndarray) -> _Found:
        found = self._some(X, self._call.rows(given))
        scores = np.concatenate([one for one, _, _ in found])
        parts = [one for _, one, _ in found if one is not None]
        reasons = [why for _, _, some in found for why in some]
        for row in np.flatnonzero(~np.isfinite(scores.reshape(len(scores), -1)).all(1)):
            reasons[row] = reasons[row] or "the scores are not finite"
            scores[row] = np.nan
        return _Found(X, scores, np.concatenate(parts) if parts else None, reasons)

    def _some(self, X: torch.Tensor, call: Call) -> list[tuple[np.ndarray, np.ndarray | None, list[str]]]:
        """Score sequences together, or after an error the halves of them, down to the one that fails."""
        try:
            scores, each = call.scores(X, self._made)
            self._in_a_row = 0
            return [(scores, each, [""] * len(X))]
        except Exception as error:  # the model is the user's; anything may be raised
            if len(X) == 1:
                return [self._failed(error)]
            short = _is_memory(error)
        if short:  # outside of the handler, whose traceback holds tensors
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        half = len(X) // 2
        parts = (np.arange(half), np.arange(half, len(X)))
        return [one for rows in parts for one in self._some(X[torch.from_numpy(rows)], call.rows(rows))]

    def _failed(self, error: Exception) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
        self._in_a_row += 1
        why = _reason(error)
        if self._in_a_row == IN_A_ROW:
            raise YuzuError(
                f"{IN_A_ROW} sequences failed one after another, so the run stops; the last: {why}"
            ) from error
        each = None if self._each is None else np.full((1, *self._each), np.nan, self._dtype)
        return np.full((1, *self._shape), np.nan, self._dtype), each, [why]


def _reason(error: Exception) -> str:
    return "out of memory for one sequence" if _is_memory(error) else f"{type(error).__name__}: {one_line(error)}"


def _is_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads of torch: another number may change the order of sums, and their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
