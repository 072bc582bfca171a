"""Naive in-silico saturation mutagenesis: every mutant through the model. The yardstick."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, overload

import numpy as np
import torch

from yuzu._engine.arrays import Array, Device
from yuzu._engine.capture.model_copy import evaluation_copy, model_dtype
from yuzu._engine.capture.rows import depends_on_batch, on_rows
from yuzu._engine.edits import Mutations, batches, letters_of
from yuzu._engine.freed_memory import give_back, keep_freed_memory
from yuzu._engine.gate import running
from yuzu._engine.kernels.precision import products
from yuzu._engine.progress import Bar
from yuzu._engine.request import (
    argument_kinds,
    check_args,
    check_count,
    check_device,
    check_model,
    check_output,
    check_sequences,
    describe_inputs,
    looks_transposed,
    to_user,
)
from yuzu._engine.run.scores import Results, Scores, Selection, result_dtype, scored
from yuzu.errors import YuzuError, warn_user

MIXES_ROWS = (
    "what it returns for a sequence depends on the others in its batch, as with batch norm by the batch's own "
    "statistics or one scale of quantisation for a batch, so each mutant is run alone"
)


@overload
def naive_ism(
    model: torch.nn.Module,
    X_0: Array,
    *,
    args: tuple[Any, ...] | None = None,
    output: Literal["l2"] = "l2",
    target: Any = None,
    func: Callable[[Any], Any] | None = None,
    start: int | None = 0,
    end: int | None = None,
    ranges: Any = None,
    replace_with: Any = None,
    batch_size: int = 128,
    device: Device = None,
    verbose: bool = False,
) -> Array: ...


@overload
def naive_ism(
    model: torch.nn.Module,
    X_0: Array,
    *,
    args: tuple[Any, ...] | None = None,
    output: str,
    target: Any = None,
    func: Callable[[Any], Any] | None = None,
    start: int | None = 0,
    end: int | None = None,
    ranges: Any = None,
    replace_with: Any = None,
    batch_size: int = 128,
    device: Device = None,
    verbose: bool = False,
) -> Array | Any: ...


def naive_ism(
    model: torch.nn.Module,
    X_0: Any,
    *,
    args: tuple[Any, ...] | None = None,
    output: str = "l2",
    target: Any = None,
    func: Callable[[Any], Any] | None = None,
    start: int | None = 0,
    end: int | None = None,
    ranges: Any = None,
    replace_with: Any = None,
    batch_size: int = 128,
    device: Any = None,
    verbose: bool = False,
) -> Any:
    """In-silico saturation mutagenesis by running the model on every mutant.

    The same results as `yuzu_ism`, to rounding, from ``L (C - 1)`` forward passes a sequence. All parameters but
    ``batch_size``, the result and the errors are those of `yuzu_ism`.

    Parameters
    ----------
    batch_size: int
        Mutants in one forward pass. Default 128. One at a time, with a warning, where what the model returns for a
        sequence depends on the others in its batch.
    """
    check_model(model)
    dtype = model_dtype(model)
    as_numpy = isinstance(X_0, np.ndarray)
    X = check_sequences(X_0, dtype)
    extra = check_args(args, len(X), dtype)
    check_output(output)
    mutations = Mutations(X.shape[1], X.shape[2], start, end, ranges, replace_with)
    selection = Selection(func, target)
    batch_size = check_count("batch_size", batch_size)
    found = check_device(device)
    twin = evaluation_copy(model, found)
    alone = try_model(twin, X, extra, found, "X_0")
    if batch_size > 1 and mixes_rows(twin, X, extra, found, alone):
        batch_size = 1
        warn_user(f"{type(model).__name__} runs one mutant at a time: {MIXES_ROWS}")
    return run_naively(twin, X, extra, mutations, selection, output, batch_size, found, verbose, as_numpy)


def run_naively(
    twin: torch.nn.Module,
    X: torch.Tensor,
    extra: tuple[torch.Tensor, ...],
    mutations: Mutations,
    selection: Selection,
    output: str,
    batch_size: int,
    device: torch.device,
    verbose: bool,
    as_numpy: bool,
) -> Any:
    """`naive_ism` on checked input and an evaluation copy of the model on ``device``."""
    results = Results(len(X), 1, mutations.result_shape, result_dtype(X.dtype))
    score_naively(twin, X, extra, mutations, selection, Scores(output, results), batch_size, device, verbose)
    return results.packed(selection, output, lambda r: to_user(r[:, 0], as_numpy))


@torch.no_grad()
def score_naively(
    twin: torch.nn.Module,
    X: torch.Tensor,
    extra: tuple[torch.Tensor, ...],
    mutations: Mutations,
    selection: Selection,
    scores: Scores,
    batch_size: int,
    device: torch.device,
    verbose: bool,
    rows: range | None = None,
) -> None:
    """Run every mutant of some sequences; None: of all."""
    keep_freed_memory()
    given = letters_of(X)
    letters = given.to(device)
    rows = range(len(X)) if rows is None else rows
    with Bar(len(rows), verbose, "naive ISM") as bar:
        for i in rows:
            x = X[i : i + 1].to(device)
            rest = tuple(a[i : i + 1].to(device) for a in extra)
            with running(), products("highest", device):
                output_values = on_rows(twin, x, *rest)
            reference = selection.leaves(output_values)
            selection.check(reference, 1)
            scores.begin(i, reference)
            bar.show()
            for group in mutations.groups(given[i : i + 1]):
                for part in batches(group, max(batch_size // group.edits, 1)):
                    give_back()
                    sites, written = mutations.sites(x, letters[i : i + 1], part)
                    grid = sites.difference.shape[:2]
                    mutants, parts_found = mutations.edited(x, sites), []
                    for piece in mutants.split(max(batch_size, 1)):
                        with running(), products("highest", device):
                            if len(piece) == 1:
                                values = on_rows(twin, piece, *rest)
                            else:
                                values = twin(piece, *(a.expand(len(piece), *a.shape[1:]).clone() for a in rest))
                        parts_found.append(selection.leaves(values))
                        selection.check(parts_found[-1], len(piece))
                    leaves = [torch.cat(leaf) if len(leaf) > 1 else leaf[0] for leaf in zip(*parts_found, strict=True)]
                    pairs = zip(leaves, reference, strict=True)
                    found = [scored(leaf, r, scores.output).unflatten(0, grid) for leaf, r in pairs]
                    scores.write(part.sequence, part.slot, written, found)
            scores.end()
            bar.update(1)


def mixes_rows(
    twin: torch.nn.Module,
    X: torch.Tensor,
    args: tuple[torch.Tensor, ...],
    device: torch.device,
    alone: Any = None,
) -> bool:
    """Whether a mutant's output depends on the batch it is run in; ``alone`` is what `try_model` returned, if known."""
    with running(), torch.no_grad(), products("highest", device):
        return depends_on_batch(twin, X[:1].to(device), [a[:1].to(device) for a in args], alone)


def try_model(
    twin: torch.nn.Module,
    X: torch.Tensor,
    args: tuple[torch.Tensor, ...],
    device: torch.device,
    name: str | None = None,
) -> Any:
    """What an evaluation copy returns for the first sequence; its own error, for a wrong length or a missing input,
    becomes a clear one.

    Parameters
    ----------
    name: str or None
        The user's argument that ``X`` is; None for a sequence made of ``n_choices`` and ``seq_len``.

    Raises
    ------
    YuzuError
        With the arguments that led to it.
    """

    def run(x: torch.Tensor) -> Any:
        with running(), torch.no_grad(), products("highest", device):
            return on_rows(twin, x[:1].to(device, model_dtype(twin)), *(a[:1].to(device) for a in args))

    try:
        return run(X)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        given, hint = f"a sequence of shape {tuple(X[:1].shape)} (1, n_choices, seq_len)", ""
        if name is not None:
            given = f"{name} of shape {tuple(X.shape)}, which must be (n, C, L) with the C and L that it reads, and"
            hint = f"; {looks_transposed(name)}" if _runs(run, X.mT) else ""
        raise YuzuError(
            f"the model cannot run on {given} with {describe_inputs(argument_kinds(args))} in args: "
            f"{type(error).__name__}: {error}{hint}"
        ) from error


def _runs(run: Callable[[torch.Tensor], Any], X: torch.Tensor) -> bool:
    try:
        run(X)
    except Exception:  # anything that a model may raise; the answer is all that is asked for
        return False
    return True


@contextlib.contextmanager
def explained(
    twin: torch.nn.Module, X: torch.Tensor, args: tuple[torch.Tensor, ...], device: torch.device, name: str
) -> Iterator[None]:
    """Around a model's forward pass: an error that one sequence alone gives, too, becomes that of `try_model`; others
    (out of memory) stay. Costs nothing where there is none.
    """
    try:
        yield
    except Exception:
        try_model(twin, X, args, device, name)
        raise
