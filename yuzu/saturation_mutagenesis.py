"""tangermeme's saturation mutagenesis, on this engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch.utils import _pytree as pytree

from yuzu._engine.arrays import Array, Device
from yuzu._engine.capture.model_copy import model_dtype
from yuzu._engine.checks import check_args, check_count, check_model, check_sequences, to_user
from yuzu._engine.edits import letters_of
from yuzu._engine.mixed_precision import MixedPrecision, check_dtype, in_dtype
from yuzu._engine.progress import tqdm
from yuzu._engine.request import Arguments
from yuzu._engine.run.naive import naive_ism_of_states
from yuzu._engine.store.states import ism_of_states
from yuzu.attribution import hypothetical as centred
from yuzu.attribution import projected
from yuzu.errors import YuzuError, shown, warn_user
from yuzu.predict import predict, predict_first

ARRAYS = (torch.Tensor, np.ndarray)
RESULTS_AT_ONCE = 1 << 28  # bytes of differences before they are averaged over outputs


class SaturationMutagenesisRawResult(NamedTuple):
    """Predictions for the sequences, ``(n, O...)``, and for every mutant, ``(n, C, L', O...)``; lists of them for a
    model with several outputs.
    """

    y0: Any
    y_hat: Any


@overload
def saturation_mutagenesis(
    model: torch.nn.Module,
    X: Array,
    args: tuple[Any, ...] | None = None,
    start: int = 0,
    end: int = -1,
    batch_size: int = 32,
    target: Any = None,
    hypothetical: bool = False,
    raw_outputs: Literal[False] = False,
    dtype: str | torch.dtype | None = None,
    device: Device = None,
    verbose: bool = False,
    func: Callable[[Any], Any] | None = None,
    fast: bool = True,
) -> Array: ...


@overload
def saturation_mutagenesis(
    model: torch.nn.Module,
    X: Array,
    args: tuple[Any, ...] | None = None,
    start: int = 0,
    end: int = -1,
    batch_size: int = 32,
    target: Any = None,
    hypothetical: bool = False,
    *,
    raw_outputs: Literal[True],
    dtype: str | torch.dtype | None = None,
    device: Device = None,
    verbose: bool = False,
    func: Callable[[Any], Any] | None = None,
    fast: bool = True,
) -> SaturationMutagenesisRawResult: ...


@overload
def saturation_mutagenesis(
    model: torch.nn.Module,
    X: Array,
    args: tuple[Any, ...] | None = None,
    start: int = 0,
    end: int = -1,
    batch_size: int = 32,
    target: Any = None,
    hypothetical: bool = False,
    raw_outputs: bool = False,
    dtype: str | torch.dtype | None = None,
    device: Device = None,
    verbose: bool = False,
    func: Callable[[Any], Any] | None = None,
    fast: bool = True,
) -> Array | SaturationMutagenesisRawResult: ...


def saturation_mutagenesis(
    model: torch.nn.Module,
    X: Any,
    args: tuple[Any, ...] | None = None,
    start: int = 0,
    end: int = -1,
    batch_size: int = 32,
    target: Any = None,
    hypothetical: bool = False,
    raw_outputs: bool = False,
    dtype: str | torch.dtype | None = None,
    device: Any = None,
    verbose: bool = False,
    func: Callable[[Any], Any] | None = None,
    fast: bool = True,
) -> Any:
    """In-silico saturation mutagenesis with the arguments and the results of tangermeme 1.6.

    The score of a character is ``y(mutant) - y(reference)``, 0 at the reference, minus its mean over the ``C``
    characters, averaged over all outputs (of ``target``). It is multiplied by the sequence unless ``hypothetical``.

    Parameters
    ----------
    model: torch.nn.Module
    X: torch.Tensor or numpy.ndarray, shape=(n, C, L)
        One-hot sequences of any number type. A soft column has no reference, as all-zero ones; a warning says so, of
        tangermeme's class where that is installed (tangermeme truncates the column to integers).
    args: tuple of arrays or None
        The inputs after the sequence, each with ``n`` rows; floating point ones are cast to the model's dtype. Default
        None.
    start, end: int
        Mutated are the positions from ``start`` up to but without ``end``; negative ends count from ``L + 1``, so that
        -1 includes the last position. Default 0 and -1.
    batch_size: int
        Sequences (of ``raw_outputs``), and mutants with ``fast=False`` or another ``dtype``, in one forward pass. The
        engine picks its own, also for a model that it runs naively. Default 32.
    target: int, slice, list of int or None
        Outputs on the first axis after the batch. Default None: all.
    hypothetical: bool
        Whether to score every character rather than those of the sequence. Default False.
    raw_outputs: bool
        Whether to return predictions rather than scores. Default False.
    dtype: str, torch.dtype or None
        Another dtype than the model's runs it naively in mixed precision (autocast). Default None: the model's.
    device: str, torch.device or None
        Default None: CUDA when available and the CPU otherwise.
    verbose: bool
        Whether to show a progress bar. Default False.
    func: callable or None
        Applied to the model's output for each batch, of sequences and mutants alike. Default None.
    fast: bool
        False runs the model on every mutant. Default True.

    Returns
    -------
    torch.Tensor (numpy.ndarray for a numpy ``X``), shape=(n, C, L'), float32 (float64 for a float64 model)
        The scores; or with ``raw_outputs`` a `SaturationMutagenesisRawResult`.

    Raises
    ------
    ValueError
        For bad input; also where the model returns several tensors and ``raw_outputs`` is False.

    Examples
    --------
    >>> import yuzu
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> model, X = load_ctcf_model(), load_ctcf_peaks().X[:2]  # (2, 4, 100)
    >>> yuzu.saturation_mutagenesis(model, X, target=0).shape
    torch.Size([2, 4, 100])
    >>> raw = yuzu.saturation_mutagenesis(model, X, start=40, end=50, raw_outputs=True)
    >>> raw.y0.shape, raw.y_hat.shape
    (torch.Size([2, 1]), torch.Size([2, 4, 10, 1]))
    """
    asked = Asked(
        start=start,
        end=end,
        batch_size=batch_size,
        target=target,
        hypothetical=hypothetical,
        raw_outputs=raw_outputs,
        dtype=dtype,
        device=device,
        verbose=verbose,
        func=func,
        fast=fast,
    )
    found = saturation_mutagenesis_of_states(model, X, [args], asked)
    picked = pytree.tree_map_only(ARRAYS, lambda v: v[:, 0], tuple(found) if raw_outputs else found)
    return SaturationMutagenesisRawResult(*picked) if raw_outputs else picked


@dataclass(frozen=True, eq=False)
class Asked:
    """Arguments of `saturation_mutagenesis`, as the user passed them."""

    start: Any
    end: Any
    batch_size: Any
    target: Any
    hypothetical: bool
    raw_outputs: bool
    dtype: Any
    device: Any
    verbose: bool
    func: Any
    fast: bool


def saturation_mutagenesis_of_states(
    model: torch.nn.Module, X: Any, states: Sequence[tuple[Any, ...] | None], asked: Asked
) -> Any:
    """`saturation_mutagenesis` with each of several ``args`` for the same sequences, ``(n, states, ...)``. What does
    not depend on them is computed once.
    """
    check_model(model)
    as_numpy = isinstance(X, np.ndarray)
    X = check_sequences(X, None, name="X")
    _warn_of_soft_columns(X)
    check_count("batch_size", asked.batch_size)
    own = model_dtype(model)
    wanted = check_dtype(asked.dtype, own)
    extras = [check_args(args, len(X), own) or None for args in states]
    start, end = asked.start, _end(asked.start, asked.end, X.shape[-1])
    one = predict_first("X", model, X, extras[0], asked.func, asked.dtype, asked.device)
    if not isinstance(one, torch.Tensor) and not asked.raw_outputs:
        raise YuzuError(
            "raw_outputs=True is needed for a model that returns several tensors: a score needs a single one; or "
            "select one with func"
        )
    planned = wanted == own and asked.fast
    runs = model if wanted == own else MixedPrecision(model, wanted)

    def run(arguments: Arguments) -> Any:
        if planned:
            return ism_of_states(runs, None, arguments)
        return naive_ism_of_states(runs, replace(arguments, batch_size=asked.batch_size))

    span = {"start": start, "end": end, "func": asked.func, "device": asked.device}
    if asked.raw_outputs:
        y0 = [in_dtype(_predictions(model, X, args, asked), own) for args in extras]
        y_hat = run(Arguments(X, extras, "prediction", verbose=asked.verbose, **span))
        y_hat = list(y_hat) if isinstance(y_hat, tuple) else y_hat
        return SaturationMutagenesisRawResult(*(_to_user(part, as_numpy) for part in (_stacked(y0), y_hat)))
    at_once = max(RESULTS_AT_ONCE // (X.shape[1] * (end - start) * max(one[0].numel(), 1) * 8), 1)
    deltas = _mean_deltas(run, Arguments(X, extras, "delta", asked.target, **span), at_once, asked.verbose)
    result = centred(deltas, channel_axis=2)
    if not asked.hypothetical:
        result = projected(result, X[:, :, start:end], channel_axis=2)
    return to_user(result, as_numpy)


def _predictions(model: torch.nn.Module, X: torch.Tensor, args: Any, asked: Asked) -> Any:
    return predict(model, X, args, asked.func, asked.batch_size, asked.dtype, asked.device)


def _warn_of_soft_columns(X: torch.Tensor) -> None:
    """Columns that are neither one-hot nor zeros are scored as no letter, which tangermeme's users do not expect."""
    soft = letters_of(X) > X.shape[1]
    if soft.any():
        row, position = soft.nonzero()[0].tolist()
        warn_user(
            f"X has columns that are neither one-hot nor zero, {int(soft.sum())} in all, the first at "
            f"position {position} of sequence {row}. They have no reference: all {X.shape[1]} letters are scored there "
            "as mutants",
            *_tangermeme_warnings(),
        )


def _tangermeme_warnings() -> list[type[Warning]]:
    """The class of tangermeme's warnings, so that a filter for them works here, too."""
    try:
        from tangermeme.utils import TangermemeWarning
    except ImportError:
        return []
    return [TangermemeWarning]


def _end(start: Any, end: Any, length: int) -> int:
    for name, value in (("start", start), ("end", end)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise YuzuError(f"{name} must be an integer, got {shown(value)}")
    stop = length + 1 + int(end) if end < 0 else int(end)
    if not 0 <= start < stop <= length:
        raise YuzuError(
            f"start and end must satisfy 0 <= start < end <= {length} (a negative end counts from {length + 1}), got "
            f"start={start}, end={end}"
        )
    return stop


def _mean_deltas(
    run: Callable[[Arguments], torch.Tensor], arguments: Arguments, at_once: int, verbose: bool
) -> torch.Tensor:
    """``(n, states, C, L')``: differences averaged over outputs, for ``at_once`` pairs of a sequence and a state at a
    time.
    """
    X, states = arguments.X_0, arguments.states
    result = torch.empty(0)
    states_at_once, rows_at_once = min(at_once, len(states)), max(at_once // len(states), 1)
    with tqdm(total=len(X) * len(states), disable=not verbose, unit="sequence") as bar:
        for place in range(0, len(states), states_at_once):
            some = states[place : place + states_at_once]
            for row in range(0, len(X), rows_at_once):
                rows = slice(row, row + rows_at_once)
                given = [None if args is None else tuple(a[rows] for a in args) for args in some]
                delta = run(replace(arguments, X_0=X[rows], states=given))
                delta = delta.flatten(4).mean(4) if delta.dim() > 4 else delta
                if not result.numel():
                    result = delta.new_empty(len(X), len(states), *delta.shape[2:])
                result[rows, place : place + states_at_once] = delta
                bar.update(len(X[rows]) * len(some))
    return result


def _stacked(each: list[Any]) -> Any:
    """The same container of tensors, the states on a second axis."""
    return pytree.tree_map(lambda *of: torch.stack(of, 1) if isinstance(of[0], torch.Tensor) else of[0], *each)


def _to_user(value: Any, as_numpy: bool) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda v: to_user(v, as_numpy), value)
