"""Predictions in batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from yuzu._engine.arrays import Array, Device
from yuzu._engine.capture.model_copy import evaluation_copy, model_dtype
from yuzu._engine.capture.rows import on_rows
from yuzu._engine.checks import (
    check_args,
    check_count,
    check_device,
    check_func,
    check_model,
    check_sequences,
    to_user,
)
from yuzu._engine.gate import running
from yuzu._engine.kernels.precision import products
from yuzu._engine.mixed_precision import check_dtype
from yuzu._engine.progress import tqdm
from yuzu._engine.run.naive import explained
from yuzu.errors import YuzuError


def predict(
    model: torch.nn.Module,
    X: Array,
    args: tuple[Any, ...] | None = None,
    func: Callable[[Any], Any] | None = None,
    batch_size: int = 32,
    dtype: str | torch.dtype | None = None,
    device: Device = None,
    verbose: bool = False,
) -> Array | Any:
    """Run a model on sequences, a batch at a time; tangermeme's function of that name.

    The model runs with evaluation semantics and is never changed; it stays where it is.

    Parameters
    ----------
    model: torch.nn.Module
    X: torch.Tensor or numpy.ndarray, shape=(n, C, L)
        One-hot sequences, of any number type: each batch is cast to ``dtype``.
    args: tuple of arrays or None
        The inputs after the sequence, each with ``n`` rows: floating point ones in the model's dtype, others (indices,
        masks) as they are. Default None.
    func: callable or None
        Applied to the model's output for each batch. Default None.
    batch_size: int
        Sequences in one forward pass. Default 32.
    dtype: str, torch.dtype or None
        Another dtype than the model's runs it in mixed precision (autocast). Default None: the model's.
    device: str, torch.device or None
        Default None: CUDA when available and the CPU otherwise.
    verbose: bool
        Whether to show a progress bar. Default False.

    Returns
    -------
    torch.Tensor, list or dict of them, on the CPU (arrays for a numpy ``X``)
        ``(n, ...)``. A tuple becomes a list, as in tangermeme; other containers stay, and so does what is no tensor.

    Raises
    ------
    ValueError
        For bad input, before any work, and for an output without a row for each sequence.

    Examples
    --------
    >>> import yuzu
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> model, X = load_ctcf_model(), load_ctcf_peaks().X[:2]  # (2, 4, 100)
    >>> yuzu.predict(model, X).shape
    torch.Size([2, 1])
    >>> yuzu.predict(model, X.numpy(), func=lambda y: y.sigmoid()).shape
    (2, 1)
    """
    asked = _Asked("X", X, args, func, dtype, device)
    return _predicted(model, asked, check_count("batch_size", batch_size), verbose)


def predict_first(
    name: str,
    model: torch.nn.Module,
    X: Any,
    args: tuple[Any, ...] | None = None,
    func: Callable[[Any], Any] | None = None,
    dtype: str | torch.dtype | None = None,
    device: Any = None,
) -> Any:
    """Run a model on the first sequence alone, and check all of them. Errors call the sequences ``name``."""
    return _predicted(model, _Asked(name, X, args, func, dtype, device, only_first=True), 1, verbose=False)


@dataclass(frozen=True, eq=False)
class _Asked:
    """Arguments of `predict`, as the user passed them."""

    name: str
    X: Any
    args: Any
    func: Any
    dtype: Any
    device: Any
    only_first: bool = False


def _predicted(model: torch.nn.Module, asked: _Asked, batch_size: int, verbose: bool) -> Any:
    check_model(model)
    func, found = asked.func, check_device(asked.device)
    own = model_dtype(model)
    wanted = check_dtype(asked.dtype, own)
    as_numpy = isinstance(asked.X, np.ndarray)
    sequences = check_sequences(asked.X, None, name=asked.name, model_dtype=own, least_choices=1)
    extra = check_args(asked.args, len(sequences), own)
    check_func(func)
    clone = evaluation_copy(model, found)
    parts: list[list[Any]] = []
    spec: Any = None
    starts = range(0, len(sequences), batch_size)[: 1 if asked.only_first else None]
    for first in tqdm(starts, disable=not verbose, desc="predictions", unit="batch"):
        rows = slice(first, first + batch_size)
        # copies: a model may write over what it is given
        x = sequences[rows].to(found).to(own, copy=True)
        rest = [a[rows].to(found, copy=True) for a in extra]
        errors = explained(clone, sequences, extra, found, asked.name)
        with errors, running(), torch.no_grad(), products("highest", found):
            with torch.autocast(found.type, wanted, enabled=wanted != own):
                output = on_rows(clone, x, *rest) if len(x) == 1 else clone(x, *rest)
        if func is not None:
            output = func(output)
        leaves, spec = pytree.tree_flatten(list(output) if isinstance(output, tuple) else output)
        tensors = [v for v in leaves if isinstance(v, torch.Tensor)]
        if not tensors or not all(v.dim() and len(v) == len(x) for v in tensors):
            raise YuzuError(
                f"the model{' (after func)' if func is not None else ''} must return tensors with one row for each "
                f"sequence, got {[tuple(v.shape) if hasattr(v, 'shape') else type(v).__name__ for v in leaves]} "
                f"for {len(x)} sequences"
            )
        parts.append([v.detach().cpu() if isinstance(v, torch.Tensor) else v for v in leaves])
    values = [
        to_user(torch.cat(pieces), as_numpy) if isinstance(pieces[0], torch.Tensor) else pieces[0]
        for pieces in zip(*parts, strict=True)
    ]
    return pytree.tree_unflatten(values, spec)
