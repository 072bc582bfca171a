"""Naive in-silico mutagenesis: every mutant through the model itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from yuzu._engine.capture.model_copy import evaluation_copy, model_dtype
from yuzu._engine.capture.rows import depends_on_batch, on_rows
from yuzu._engine.checks import argument_kinds, check_count, check_model, describe_inputs, looks_transposed
from yuzu._engine.edits import batches, letters_of, mutants_of
from yuzu._engine.freed_memory import give_back, keep_freed_memory
from yuzu._engine.gate import running
from yuzu._engine.kernels.precision import products
from yuzu._engine.progress import Bar
from yuzu._engine.request import Args, Arguments, Request
from yuzu._engine.run.scores import Outputs, Results, Scores, scored
from yuzu.errors import YuzuError, warn_user

MIXES_ROWS = (
    "its output for a sequence depends on the others in its batch, as with batch norm by the batch's own statistics or "
    "one scale of quantisation for a batch, so each mutant is run alone"
)


def naive_ism_of_states(model: torch.nn.Module, arguments: Arguments, stacked: bool = True) -> Any:
    """Run `naive_ism` with each of several ``args`` for the same sequences: ``(n, states, ...)``. With one of them, and
    not ``stacked``, the results are ``(n, ...)``.
    """
    check_model(model)
    request = arguments.checked(model_dtype(model))
    batch_size = check_count("batch_size", arguments.batch_size)
    X, device = request.X, request.device
    clone = evaluation_copy(model, device)
    results, outputs = Results(request), Outputs(request.selection)
    for args, scores in zip(request.states, results.scores(), strict=True):
        alone = try_model(clone, X, args, device, "X_0")
        if batch_size > 1 and mixes_rows(clone, X, args, device, alone):
            batch_size = 1
            warn_user(f"{type(model).__name__} runs one mutant at a time: {MIXES_ROWS}")
        del alone
        score_naively(clone, request, args, outputs, scores, batch_size)
    return results.to_user(outputs, stacked)


def run_naively(clone: torch.nn.Module, request: Request, batch_size: int) -> Any:
    """Answer a request with one state by an evaluation copy of the model on its device."""
    results, outputs = Results(request), Outputs(request.selection)
    score_naively(clone, request, request.states[0], outputs, Scores(results), batch_size)
    return results.to_user(outputs, stacked=False)


@torch.no_grad()
def score_naively(
    clone: torch.nn.Module,
    request: Request,
    args: Args,
    outputs: Outputs,
    scores: Scores,
    batch_size: int,
    rows: range | None = None,
) -> None:
    """Run every mutant of some sequences (None: all) with one of the states, ``args``."""
    keep_freed_memory()
    device, mutations = request.device, request.mutations
    given = letters_of(request.X)
    letters = given.to(device)
    rows = range(len(request.X)) if rows is None else rows
    with Bar(len(rows), request.verbose, "naive ISM") as bar:
        for i in rows:
            x = request.X[i : i + 1].to(device)
            rest = tuple(a[i : i + 1].to(device) for a in args)
            with running(), products("highest", device):
                output_values = on_rows(clone, x, *rest)
            reference = outputs.leaves(output_values)
            outputs.check(reference, 1)
            scores.begin(i, reference)
            bar.show()
            edits = mutations.of_rows(slice(i, i + 1))
            for group in edits.groups(given[i : i + 1]):
                for part in batches(group, max(batch_size // group.edits, 1)):
                    give_back()
                    sites, written = edits.sites(x, letters[i : i + 1], part)
                    grid = sites.difference.shape[:2]
                    mutants, parts_found = mutants_of(x, sites), []
                    for piece in mutants.split(max(batch_size, 1)):
                        with running(), products("highest", device):
                            if len(piece) == 1:
                                values = on_rows(clone, piece, *rest)
                            else:
                                values = clone(piece, *(a.expand(len(piece), *a.shape[1:]).clone() for a in rest))
                        parts_found.append(outputs.leaves(values))
                        outputs.check(parts_found[-1], len(piece))
                    leaves = [torch.cat(leaf) if len(leaf) > 1 else leaf[0] for leaf in zip(*parts_found, strict=True)]
                    pairs = zip(leaves, reference, strict=True)
                    found = [scored(leaf, r, scores.output).unflatten(0, grid) for leaf, r in pairs]
                    scores.write(part.sequence, part.slot, written, found)
            scores.end()
            bar.update(1)


def mixes_rows(
    clone: torch.nn.Module,
    X: torch.Tensor,
    args: tuple[torch.Tensor, ...],
    device: torch.device,
    alone: Any = None,
) -> bool:
    """Tell whether a mutant's output depends on its batch; ``alone`` is the result of `try_model`, if known."""
    with running(), torch.no_grad(), products("highest", device):
        return depends_on_batch(clone, X[:1].to(device), [a[:1].to(device) for a in args], alone)


def try_model(
    clone: torch.nn.Module,
    X: torch.Tensor,
    args: tuple[torch.Tensor, ...],
    device: torch.device,
    name: str | None = None,
) -> Any:
    """Run an evaluation copy on the first sequence. Its own error, such as for a wrong length or a missing input,
    becomes a clear one.

    Parameters
    ----------
    name: str or None
        The name of the user's argument ``X``; None for a sequence made from ``n_choices`` and ``seq_len``.

    Raises
    ------
    YuzuError
        With the arguments that led to it.
    """

    def run(x: torch.Tensor) -> Any:
        with running(), torch.no_grad(), products("highest", device):
            return on_rows(clone, x[:1].to(device, model_dtype(clone)), *(a[:1].to(device) for a in args))

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
    except Exception:  # a model may raise anything
        return False
    return True


@contextlib.contextmanager
def explained(
    clone: torch.nn.Module, X: torch.Tensor, args: tuple[torch.Tensor, ...], device: torch.device, name: str
) -> Iterator[None]:
    """A context for a model's forward pass. An error that one sequence alone raises, too, becomes that of `try_model`.
    Others, such as out of memory, stay. It costs nothing if there is no error.
    """
    try:
        yield
    except Exception:
        try_model(clone, X, args, device, name)
        raise
