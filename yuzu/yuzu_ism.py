"""Exact in-silico saturation mutagenesis that carries only what each mutation changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import torch

from yuzu._engine.arrays import Array, Device
from yuzu._engine.request import Arguments
from yuzu._engine.store.precomputation import Precomputation
from yuzu._engine.store.scoring import Timings
from yuzu._engine.store.states import ism_of_states


@overload
def yuzu_ism(
    model: torch.nn.Module,
    X_0: Array,
    precomputation: Precomputation | None = None,
    *,
    args: tuple[Any, ...] | None = None,
    output: Literal["l2"] = "l2",
    target: Any = None,
    func: Callable[[Any], Any] | None = None,
    start: int | None = 0,
    end: int | None = None,
    ranges: Any = None,
    replace_with: Any = None,
    batch_size: int | None = None,
    device: Device = None,
    return_timings: Literal[False] = False,
    verbose: bool = False,
) -> Array: ...


@overload
def yuzu_ism(
    model: torch.nn.Module,
    X_0: Array,
    precomputation: Precomputation | None = None,
    *,
    args: tuple[Any, ...] | None = None,
    output: str,
    target: Any = None,
    func: Callable[[Any], Any] | None = None,
    start: int | None = 0,
    end: int | None = None,
    ranges: Any = None,
    replace_with: Any = None,
    batch_size: int | None = None,
    device: Device = None,
    return_timings: Literal[False] = False,
    verbose: bool = False,
) -> Array | Any: ...


@overload
def yuzu_ism(
    model: torch.nn.Module,
    X_0: Array,
    precomputation: Precomputation | None = None,
    *,
    args: tuple[Any, ...] | None = None,
    output: str = "l2",
    target: Any = None,
    func: Callable[[Any], Any] | None = None,
    start: int | None = 0,
    end: int | None = None,
    ranges: Any = None,
    replace_with: Any = None,
    batch_size: int | None = None,
    device: Device = None,
    return_timings: Literal[True],
    verbose: bool = False,
) -> tuple[Array | Any, list[list[float]], list[list[dict[str, float] | None]]]: ...


def yuzu_ism(
    model: torch.nn.Module,
    X_0: Any,
    precomputation: Any = None,
    *,
    args: tuple[Any, ...] | None = None,
    output: str = "l2",
    target: Any = None,
    func: Callable[[Any], Any] | None = None,
    start: int | None = 0,
    end: int | None = None,
    ranges: Any = None,
    replace_with: Any = None,
    batch_size: int | None = None,
    device: Any = None,
    return_timings: bool = False,
    verbose: bool = False,
) -> Any:
    """Score how the model's output changes when each character is changed to each other: exactly, and many times
    faster than by running every mutant.

    Parameters
    ----------
    model: torch.nn.Module
        Any model that reads ``(n, C, L)`` first. It runs with evaluation semantics and is not changed in any
        way.
    X_0: numpy.ndarray or torch.Tensor, shape=(n, C, L)
        One-hot sequences, cast to the model's dtype. A column that is all zero (an ``N``), or not one-hot,
        has no reference character: all ``C`` substitutions are made there.
    precomputation: Precomputation or None
        From `precompute`. None makes one and keeps it for the next call with the same model and length.
    args: tuple of tensors or None
        The model's other inputs, each with ``n`` rows and without NaN; infinity, as masks hold it, is fine. Floating
        point ones are cast to the model's dtype, but for a precomputation that was made with others.
    output: str
        ``"l2"`` (default): ``(n, C, L')``, the Euclidean norm of ``y(mutant) - y(reference)`` over all model
        outputs; 0 at the reference character. ``"delta"``: ``(n, C, L', O...)``, signed. ``"prediction"``:
        ``(n, C, L', O...)``, ``y(mutant)``, and ``y(reference)`` at the reference character. A model that
        returns a tuple, list or dict of tensors gives the same container for the last two; with ``"l2"`` the
        norm runs over all of them together.
    target: int, slice, list of ints or None
        Which of the output's first axis after the batch. An int drops the axis.
    func: callable or None
        Applied to the model's whole output for a batch, of the reference and the mutants alike, before
        ``target`` and the score.
    start, end: int or None
        Positions to edit, by Python's slice rules; ``L' = end - start``. Default all.
    ranges: list of (int, int) or None
        Instead of substitutions, write ``replace_with`` over each of these ranges, all of one width. The
        result is ``(n, R)`` for ``"l2"`` and ``(n, R, O...)`` otherwise.
    replace_with: array of shape (C,) or (C, width), str, or None
        The letters to write; zeros if None. A string is over ``ACGT`` or the 20 amino acids; its ``N`` (``X`` in a
        protein) writes zeros. Without ``ranges`` it is written at every single position from ``start`` to ``end``.
    batch_size: int or None
        Sequences carried at once, at most: fewer where memory is short. None picks it. Results with another one agree
        to rounding, not bit by bit.
    device: str, torch.device or None
        None means CUDA when available, else the CPU.
    return_timings: bool
        Also return, for each batch of sequences, a list with the seconds of each layer, and a list with None for
        each, kept for the published signature.
    verbose: bool
        Show a progress bar.

    Returns
    -------
    numpy.ndarray or torch.Tensor, or a container of them
        float32, or float64 for a float64 model; an array of the kind that ``X_0`` is, on the CPU. With
        ``return_timings`` a tuple of the scores, ``layer_timings`` and ``within_layer_timings``.

    Raises
    ------
    ValueError
        For bad input, before any work: not three axes, wrong ``C`` or ``L``, NaN (in ``args``, too) or infinity, an
        empty batch or selection, ranges of unequal width or outside the sequence, a target that does not exist, outputs
        that are complex (select what to score of them with ``func``).
    PrecomputationError
        If ``precomputation`` was made for something else.

    Notes
    -----
    Beyond the model and the result it uses at most the ``max_memory`` of `precompute`. On a CPU with glibc the first
    call, of `precompute` or of any function that scores, raises glibc's memory thresholds for the whole process, until
    it ends: freed blocks of less than 32 MiB are kept for the next ones. They are returned to the system when the
    process has grown by nearly ``max_memory``; ``ctypes.CDLL(None).malloc_trim(0)`` returns them at once.

    Examples
    --------
    >>> import yuzu
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> model, X = load_ctcf_model(), load_ctcf_peaks().X[:2]  # (2, 4, 100)
    >>> delta = yuzu.yuzu_ism(model, X, output="delta", target=0)  # (n, C, L), mutant minus reference
    >>> delta.shape, bool((delta[X == 1] == 0).all())
    (torch.Size([2, 4, 100]), True)

    Ten positions, and a motif written over two places:

    >>> yuzu.yuzu_ism(model, X, start=40, end=50).shape
    torch.Size([2, 4, 10])
    >>> yuzu.yuzu_ism(model, X, ranges=[(10, 17), (60, 67)], replace_with="TGACTCA").shape
    torch.Size([2, 2])
    """
    timings = Timings() if return_timings else None
    arguments = Arguments(
        X_0,
        states=[args],
        output=output,
        target=target,
        func=func,
        start=start,
        end=end,
        ranges=ranges,
        replace_with=replace_with,
        batch_size=batch_size,
        device=device,
        verbose=verbose,
    )
    found = ism_of_states(model, precomputation, arguments, timings, stacked=False)
    return found if timings is None else (found, timings.layers, timings.within_layers)
