"""Interactions of all pairs of edits: do two sites work together?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from yuzu._engine.arrays import Array, Device
from yuzu._engine.capture.model_copy import model_dtype
from yuzu._engine.checks import check_count, check_model
from yuzu._engine.request import Arguments
from yuzu._engine.store.obtain import inputs_of
from yuzu._engine.store.pairs import interactions
from yuzu._engine.store.precomputation import Precomputation
from yuzu.errors import YuzuError, shown


def epistasis(
    model: torch.nn.Module,
    X_0: Array,
    precomputation: Precomputation | None = None,
    *,
    start: int | None = 0,
    end: int | None = None,
    max_distance: int | None = None,
    sites: Any = None,
    ranges: Any = None,
    replace_with: Any = None,
    args: tuple[Any, ...] | None = None,
    target: Any = None,
    func: Callable[[Any], Any] | None = None,
    batch_size: int | None = None,
    device: Device = None,
    verbose: bool = False,
) -> Array | Any:
    """Interactions ``y(ab) - y(a) - y(b) + y(0)`` of all pairs of edits ``a`` and ``b`` of a sequence.

    The interaction is the part of the double mutant's effect that the two single effects do not add up to. It is
    positive where both edits together raise the output by more than each alone.

    Parameters
    ----------
    model: torch.nn.Module
    X_0: numpy.ndarray or torch.Tensor, shape=(n, C, L)
        One-hot sequences. All ``C`` letters are written over a column that is not one-hot.
    precomputation: Precomputation or None
        From `precompute`. Default None: one is made, and kept for the next call.
    start, end: int or None
        Positions to substitute, by Python's slice rules; ``W = end - start``. Default all.
    max_distance: int or None
        Largest distance of two positions (of two ranges' first positions) that are scored as a pair. Default None: any.
    sites: list of int or None
        Chosen positions instead of all from ``start`` to ``end``; ``W`` is their number. Default None.
    ranges: list of (int, int) or None
        Chosen windows instead of positions: ``replace_with`` is written over each of these ranges, all of one width,
        as in `yuzu_ism`. Ranges that overlap are no pair.
    replace_with: array of shape (C,) or (C, width), str, or None
        What is written over each of ``ranges``, such as a motif; zeros if None. Without ``ranges`` it is written at
        every position from ``start`` to ``end``.
    args: tuple of tensors or None
        The model's inputs after the sequence, each with ``n`` rows. Default None.
    target: int, slice, list of ints or None
        Which of the output's first axis after the batch. An int drops the axis. Default None: all.
    func: callable or None
        Applied to the model's whole output for a batch, before ``target``. Default None.
    batch_size: int or None
        References (single mutants) carried at once, at most. Default None picks it.
    device: str, torch.device or None
        Default None: CUDA when available, else the CPU.
    verbose: bool
        Whether to show a progress bar of pairs. Default False.

    Returns
    -------
    numpy.ndarray or torch.Tensor, or a container of them
        ``(n, W, C, W, C, O...)``: position and letter of the first edit, then of the second; symmetric in the two. It
        is 0 at reference letters, for two edits of one position, and beyond ``max_distance``. With ``ranges`` or
        ``replace_with`` it is ``(n, R, R, O...)``. float32, or float64 for a float64 model, on the CPU.

    Raises
    ------
    ValueError
        For bad input, as `yuzu_ism`, and where the result does not fit into memory.

    Notes
    -----
    Each single mutant is a reference, and each edit after it a window in `yuzu_ism`'s engine, so that ``P`` positions
    take about ``P (C - 1)`` times as long as `yuzu_ism` of half of them. Without ``func``, pairs whose effects never
    meet in an operation that is not linear are known to have no interaction, and are not computed: in a model with
    local outputs, these are most pairs. The result has ``(W C) ** 2`` numbers for each output: select outputs of large
    ones with ``target`` or ``func``. Beside it, memory is bounded as for `yuzu_ism`.

    Examples
    --------
    >>> import yuzu
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> model, X = load_ctcf_model(), load_ctcf_peaks().X[:1]  # (1, 4, 100)
    >>> pairs = yuzu.epistasis(model, X, start=45, end=57, target=0)
    >>> pairs.shape
    torch.Size([1, 12, 4, 12, 4])
    >>> bool((pairs == pairs.permute(0, 3, 4, 1, 2)).all())
    True

    Two sites blanked, alone and together:

    >>> yuzu.epistasis(model, X, ranges=[(10, 25), (45, 60)], target=0).shape
    torch.Size([1, 2, 2])
    """
    check_model(model)
    if max_distance is not None:
        max_distance = check_count("max_distance", max_distance)
    arguments = Arguments(
        X_0,
        states=[args],
        output="delta",
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
    request = arguments.checked(model_dtype(model), inputs_of(precomputation))
    if sites is not None:
        if start not in (0, None) or any(given is not None for given in (end, ranges, replace_with)):
            raise YuzuError("sites cannot be combined with start, end, ranges or replace_with: leave those out")
        positions = _positions(sites, request.X.shape[2])
        request = replace(request, mutations=replace(request.mutations, positions=positions))
    return interactions(model, precomputation, request, max_distance)


def _positions(sites: Any, length: int) -> np.ndarray:
    """Chosen positions of a sequence, each once."""
    try:
        given = np.asarray(sites.detach().cpu() if isinstance(sites, torch.Tensor) else sites)
    except ValueError as error:
        raise YuzuError(f"sites must be a list of positions, got {shown(sites)}") from error
    if given.ndim != 1 or given.size == 0 or given.dtype.kind not in "iu":
        raise YuzuError(f"sites must be a non-empty list of positions, integers, got {shown(sites)}")
    found = np.where(given < 0, given.astype(np.int64) + length, given)
    if found.min() < 0 or found.max() >= length or len(np.unique(found)) < len(found):
        raise YuzuError(f"sites must be different positions of a sequence of length {length}, got {shown(sites)}")
    return found
