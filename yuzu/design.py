"""Design of sequences by the substitutions that a model likes best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from yuzu._engine.arrays import AnyArray, Array, Device
from yuzu._engine.capture.model_copy import model_dtype
from yuzu._engine.checks import check_count, check_model, check_sequences, to_user
from yuzu._engine.edits import letters_of
from yuzu._engine.progress import tqdm
from yuzu._engine.request import Arguments, Selection
from yuzu._engine.run.scores import result_dtype
from yuzu._engine.store.obtain import inputs_of
from yuzu._engine.store.precomputation import Precomputation
from yuzu._engine.store.states import answer
from yuzu.errors import YuzuError, shown
from yuzu.predict import predict

__all__ = ["Design", "greedy"]


class Design(NamedTuple):
    """Designed sequences, and the record of the steps that led to them.

    Attributes
    ----------
    X: torch.Tensor or numpy.ndarray, shape=(n, C, L)
        The designed sequences, in the kind of array and the dtype that came in.
    objective: shape=(n, steps + 1)
        The objective before the first step and after each.
    position: shape=(n, steps), integers
        The position that each step changed; -1 where no substitution was better.
    letter: shape=(n, steps), integers
        The character that was written, and -1 where none was.
    before: shape=(n, steps), integers
        The character that was there: -1 where none was, or no substitution was better.

    Examples
    --------
    >>> from yuzu import design
    >>> design.Design._fields
    ('X', 'objective', 'position', 'letter', 'before')
    """

    X: Any
    objective: Any
    position: Any
    letter: Any
    before: Any


def greedy(
    model: torch.nn.Module,
    X: Array,
    objective: Callable[[Any], Any] | int,
    steps: int,
    precomputation: Precomputation | None = None,
    *,
    fixed: AnyArray | Any = None,
    start: int | None = 0,
    end: int | None = None,
    args: tuple[Any, ...] | None = None,
    batch_size: int | None = None,
    device: Device = None,
    verbose: bool = False,
) -> Design:
    """Raise an objective step by step, each time by the best single substitution of all.

    Every step scores all substitutions of each sequence with `yuzu_ism`, and keeps the best one. A sequence that no
    substitution improves stays as it is.

    Parameters
    ----------
    model: torch.nn.Module
    X: torch.Tensor or numpy.ndarray, shape=(n, C, L)
        One-hot sequences to begin with; each is designed by itself. They are not changed.
    objective: callable or int
        What to raise: a callable on the model's output for a batch that gives a number for each sequence, ``(n,)`` or
        ``(n, 1)``; or the number of an output of a model that returns ``(n, outputs)``. Negate it to lower an output.
    steps: int
        Substitutions of each sequence, at most.
    precomputation: Precomputation or None
        From `precompute`. Default None: one is made, and kept for the next call.
    fixed: array of bool, shape=(L,) or (n, L), list of int, or None
        Positions that must stay: a mask, or their numbers. Default None.
    start, end: int or None
        Positions that may change, by Python's slice rules. Default all.
    args: tuple of tensors or None
        The model's inputs after the sequence, each with ``n`` rows. Default None.
    batch_size: int or None
        Sequences carried at once. Default None picks it.
    device: str, torch.device or None
        Default None: CUDA when available, else the CPU.
    verbose: bool
        Whether to show a progress bar of steps. Default False.

    Returns
    -------
    Design
        A named tuple ``(X, objective, position, letter, before)`` of arrays of the kind that ``X`` is.

    Raises
    ------
    ValueError
        For bad input, before any work, and for an objective that is not one number for each sequence.

    Examples
    --------
    >>> from yuzu import design
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> model, X = load_ctcf_model(), load_ctcf_peaks().X[-2:]  # (2, 4, 100)
    >>> found = design.greedy(model, X, 0, steps=3)
    >>> bool((found.objective.diff(dim=1) >= 0).all()), int((found.X != X).any(1).sum())
    (True, 6)
    """
    check_model(model)
    steps = check_count("steps", steps)
    as_numpy, designed = isinstance(X, np.ndarray), check_sequences(X, None, name="X").clone()
    func, target = _selection(objective)
    asked = Arguments(designed, [args], "delta", target, func, start, end, None, None, batch_size, device)
    request = asked.checked(model_dtype(model), inputs_of(precomputation))
    first, n = int(request.mutations.positions[0]), len(designed)
    free = _free(fixed, n, designed.shape[2])[:, request.mutations.positions]
    if not free.any():
        raise YuzuError(f"fixed must leave some position from start={shown(start)} to end={shown(end)} free")

    def values() -> torch.Tensor:
        extra = tuple(request.states[0]) or None
        return _one_number(predict(model, request.X, extra, func, device=device), target, n)

    objectives = [values()]
    position, letter, before = (torch.full((n, steps), -1) for _ in range(3))
    row = torch.arange(n)
    for step in tqdm(range(steps), disable=not verbose, desc="greedy design", unit="step"):
        delta = answer(model, precomputation, request, stacked=False)  # (n, C, L')
        delta = delta.masked_fill(~free[:, None], -torch.inf).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
        gain, best = delta.flatten(1).max(1)
        better = gain > 0
        if not better.any():
            objectives += [objectives[-1]] * (steps - step)
            break
        rows, (character, place) = row[better], (best[better] // delta.shape[2], best[better] % delta.shape[2] + first)
        X_now = request.X.clone()
        found = letters_of(X_now)[rows, place]
        position[rows, step], letter[rows, step] = place, character
        before[rows, step] = torch.where(found < designed.shape[1], found, -1)
        for sequences in (X_now, designed):
            sequences[rows, :, place] = 0
            sequences[rows, character, place] = 1
        request = replace(request, X=X_now)
        objectives.append(values())
    record = [designed, torch.stack(objectives, 1), position, letter, before]
    return Design(*[to_user(tensor, as_numpy) for tensor in record])


def _selection(objective: Any) -> tuple[Callable[[Any], Any] | None, int | None]:
    """The objective as a ``func`` or a ``target`` of a request."""
    if isinstance(objective, int | np.integer) and not isinstance(objective, bool):
        return None, int(objective)
    if not callable(objective):
        raise YuzuError(f"objective must be callable, or the number of an output, got {shown(objective)}")

    def func(output: Any) -> torch.Tensor:
        value = objective(output)
        one = isinstance(value, torch.Tensor) and (value.dim() == 1 or (value.dim() == 2 and value.shape[1] == 1))
        if not one:
            got = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
            raise YuzuError(f"objective must return a number for each sequence, (n,) or (n, 1), got {got}")
        flat: torch.Tensor = value.reshape(len(value))
        return flat

    return func, None


def _one_number(output: Any, target: int | None, n: int) -> torch.Tensor:
    """The objective ``(n,)`` in a prediction."""
    value = output
    if target is not None and isinstance(output, torch.Tensor):
        value = Selection(None, target).pick(output, 1)
    if not isinstance(value, torch.Tensor) or value.shape != (n,):
        got = f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
        raise YuzuError(
            f"objective={target} needs a model that returns one tensor (n, outputs), it returns {got}; pass a callable "
            "on the model's output that gives a number for each sequence"
        )
    return value.to(result_dtype(value.dtype))


def _free(fixed: Any, n: int, length: int) -> torch.Tensor:
    """The positions that may change, ``(n, L)``."""
    free = torch.ones(n, length, dtype=torch.bool)
    if fixed is None:
        return free
    try:
        given = np.asarray(fixed.detach().cpu() if isinstance(fixed, torch.Tensor) else fixed)
    except ValueError as error:
        raise YuzuError(f"fixed must be a mask or a list of positions, got {shown(fixed)}") from error
    if given.dtype == bool:
        if given.shape not in ((length,), (n, length)):
            raise YuzuError(f"fixed as a mask must have shape ({length},) or ({n}, {length}), got {given.shape}")
        return free & ~torch.from_numpy(given)
    if given.size == 0:
        return free
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise YuzuError(f"fixed must be a mask of booleans or a list of positions, got {shown(fixed)}")
    if given.min() < -length or given.max() >= length:
        raise YuzuError(f"fixed must hold positions of a sequence of length {length}, got {shown(fixed)}")
    free[:, torch.from_numpy(given.astype(np.int64))] = False
    return free


def __dir__() -> list[str]:
    return sorted(__all__)
