"""A function on every pairing of sequences with a model's other inputs, as tangermeme has it: the same regions in
hundreds of cell states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree
from tqdm.auto import tqdm

from yuzu.errors import YuzuError
from yuzu.inputs import check_args, check_count, check_device, check_model, from_numpy, to_user


def apply_pairwise(
    func: Callable[..., Any],
    model: torch.nn.Module,
    X: Any,
    args: Sequence[Any],
    batch_size: int = 32,
    device: Any = None,
    additional_func_kwargs: dict[str, Any] | None = None,
    verbose: bool = False,
    **kwargs: Any,
) -> Any:
    """Apply a function to every sequence with every row of the other inputs, which belong together row by row.

    Parameters
    ----------
    func: callable
        Called as ``func(model, X, args=..., batch_size=..., device=..., verbose=False, **kwargs)`` with up to
        ``batch_size`` pairs: `yuzu.yuzu_ism`, `yuzu.saturation_mutagenesis`, `yuzu.predict`, tangermeme's ``predict``,
        ``deep_lift_shap``, ``marginalize``.
    model: torch.nn.Module
    X: torch.Tensor or numpy.ndarray, shape=(n, C, L)
        One-hot sequences.
    args: sequence of arrays, each of ``m`` rows
        The model's inputs after the sequence; row ``j`` of all of them is one state.
    batch_size: int
        Pairs handed to ``func`` at once. Default 32.
    device: str, torch.device or None
        Handed to ``func`` as a string. Default None: CUDA when available and the CPU otherwise.
    additional_func_kwargs: dict or None
        Further arguments of ``func``, also such as have a name of this function's own. Default None.
    verbose: bool
        Whether to show a progress bar. Default False.
    kwargs
        Further arguments of ``func``.

    Returns
    -------
    torch.Tensor (numpy.ndarray for a numpy ``X``), shape=(n, m, ...)
        What ``func`` returns for each pair; lists of them, as deep as ``func`` and the model nest theirs.

    Raises
    ------
    ValueError
        For bad input, before any work.
    """
    sequences, extra = _check(X, args)
    as_numpy = isinstance(X, np.ndarray)
    counts = [len(a) for a in extra]
    if len(set(counts)) > 1:
        raise YuzuError(
            f"args must all have the same number of rows, which belong together, got {counts}; apply_product "
            "pairs every row with every other"
        )
    grid = (len(sequences), *counts[:1])
    places = np.indices(grid).reshape(len(grid), -1)
    rows = [places[0], *[places[-1]] * len(extra)]
    return _apply(
        func, model, sequences, extra, grid, rows, batch_size, device, additional_func_kwargs, verbose, kwargs, as_numpy
    )


def apply_product(
    func: Callable[..., Any],
    model: torch.nn.Module,
    X: Any,
    args: Sequence[Any],
    batch_size: int = 32,
    device: Any = None,
    additional_func_kwargs: dict[str, Any] | None = None,
    verbose: bool = False,
    **kwargs: Any,
) -> Any:
    """Apply a function to every sequence with every row of every other input.

    The parameters are those of `apply_pairwise`, but that each of ``args`` has rows of its own number.

    Returns
    -------
    torch.Tensor (numpy.ndarray for a numpy ``X``), shape=(n, len(args[0]), len(args[1]), ...)
        What ``func`` returns for each combination; lists of them, as deep as ``func`` and the model nest theirs.

    Raises
    ------
    ValueError
        For bad input, before any work.
    """
    sequences, extra = _check(X, args)
    as_numpy = isinstance(X, np.ndarray)
    grid = (len(sequences), *(len(a) for a in extra))
    rows = list(np.indices(grid).reshape(len(grid), -1))
    return _apply(
        func, model, sequences, extra, grid, rows, batch_size, device, additional_func_kwargs, verbose, kwargs, as_numpy
    )


def _check(X: Any, args: Any) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    X = X.to_one_hot() if hasattr(X, "to_one_hot") else X  # tangermeme's packed sequences
    if not isinstance(X, torch.Tensor | np.ndarray) or X.ndim != 3 or 0 in X.shape:
        raise YuzuError(f"X must be an array of shape (n, C, L), none of them 0, got {getattr(X, 'shape', type(X))}")
    extra = check_args(args, None)
    if not extra:
        raise YuzuError("args must hold at least one input after the sequence, got none")
    return from_numpy(X) if isinstance(X, np.ndarray) else X.detach(), extra


def _apply(
    func: Callable[..., Any],
    model: torch.nn.Module,
    X: torch.Tensor,
    args: tuple[torch.Tensor, ...],
    grid: tuple[int, ...],
    rows: list[np.ndarray],
    batch_size: int,
    device: Any,
    additional: dict[str, Any] | None,
    verbose: bool,
    kwargs: dict[str, Any],
    as_numpy: bool,
) -> Any:
    if not callable(func):
        raise YuzuError(f"func must be callable, got {type(func).__name__}")
    check_model(model)
    check_count("batch_size", batch_size)
    where = str(check_device(device))
    results: list[list[torch.Tensor]] = []
    spec: Any = None
    total = len(rows[0])
    with tqdm(total=total, disable=not verbose, unit="pair") as progress:
        for first in range(0, total, batch_size):
            of_x, *of_args = (torch.from_numpy(r[first : first + batch_size]) for r in rows)
            pairs = [a[r.to(a.device)] for a, r in zip(args, of_args, strict=True)]
            settings = {"batch_size": batch_size, "device": where, "verbose": False, **(additional or {})}
            found = func(model, X[of_x.to(X.device)], args=pairs, **settings, **kwargs)
            leaves, spec = pytree.tree_flatten(_lists(found))
            results.append([torch.as_tensor(leaf) for leaf in leaves])
            progress.update(len(of_x))
    whole = [torch.cat(parts) for parts in zip(*results, strict=True)]
    return pytree.tree_unflatten([to_user(w.reshape(*grid, *w.shape[1:]), as_numpy) for w in whole], spec)


def _lists(value: Any) -> Any:
    """Tuples, named ones too, as lists: what holds a result of many calls is no longer what ``func`` returned."""
    if isinstance(value, tuple | list):
        return [_lists(v) for v in value]
    return {k: _lists(v) for k, v in value.items()} if isinstance(value, dict) else value
