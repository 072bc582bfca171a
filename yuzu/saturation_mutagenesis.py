"""tangermeme's saturation mutagenesis, on this engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils import _pytree as pytree
from tqdm.auto import tqdm

from yuzu._engine.model_copy import model_dtype
from yuzu.attribution import hypothetical as centred
from yuzu.attribution import projected
from yuzu.errors import YuzuError
from yuzu.inputs import check_args, check_count, check_model, check_sequences, from_numpy, to_user
from yuzu.mixed_precision import MixedPrecision, check_dtype, in_dtype
from yuzu.naive_ism import naive_ism
from yuzu.predict import predict
from yuzu.yuzu_ism import yuzu_ism

RESULTS_AT_ONCE = 1 << 28  # bytes of differences before they are averaged over outputs


class SaturationMutagenesisRawResult(NamedTuple):
    """Predictions for the sequences, ``(n, O...)``, and for every mutant, ``(n, C, L', O...)``; lists of them for a
    model with several outputs.
    """

    y0: Any
    y_hat: Any


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
        One-hot sequences of any number type. A soft column has no reference, as all-zero ones (tangermeme truncates it
        to whole numbers).
    args: tuple of arrays or None
        The inputs after the sequence, each with ``n`` rows; floating point ones are cast to the model's dtype. Default
        None.
    start, end: int
        Mutated are the positions from ``start`` up to but without ``end``; negative ends count from ``L + 1``, so that
        -1 includes the last position. Default 0 and -1.
    batch_size: int
        Mutants in one forward pass where the model runs naively; the engine picks its own. Default 32.
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
    """
    check_model(model)
    X = X.to_one_hot() if hasattr(X, "to_one_hot") else X  # tangermeme's packed sequences
    as_numpy = isinstance(X, np.ndarray)
    X = from_numpy(X) if as_numpy else X
    X = check_sequences(X, None, name="X")
    check_count("batch_size", batch_size)
    own = model_dtype(model)
    wanted = check_dtype(dtype, own)
    mixed = wanted != own
    extra = tuple(a.to(own) if a.is_floating_point() else a for a in check_args(args, len(X)))
    y0 = predict(model, X, extra or None, func, batch_size, dtype, device)
    span = {"start": start, "end": _end(start, end, X.shape[-1])}
    several = not isinstance(y0, torch.Tensor)
    y0 = in_dtype(y0, own)
    if several and not raw_outputs:
        raise YuzuError(
            "raw_outputs=True is needed for a model that returns several tensors: a score needs a single one; or "
            "select one with func"
        )
    settings = {"func": func, "device": device, **span}
    if mixed:
        model = MixedPrecision(model, wanted)
    if mixed or not fast:
        run: Callable[..., Any] = naive_ism
        settings["batch_size"] = batch_size
    else:
        run = yuzu_ism
    if raw_outputs:
        found = run(model, X, args=extra or None, output="prediction", verbose=verbose, **settings)
        y_hat = list(found) if isinstance(found, tuple) else found
        return SaturationMutagenesisRawResult(*(_user(v, as_numpy) for v in (y0, y_hat)))
    scores = []
    bytes_each = X.shape[1] * (span["end"] - start) * max(y0[0].numel(), 1) * 8
    size = max(RESULTS_AT_ONCE // bytes_each, 1)
    for first in tqdm(range(0, len(X), size), disable=not verbose or size >= len(X), unit="batch"):
        rows = slice(first, first + size)
        given = tuple(a[rows] for a in extra) or None
        shown = verbose and size >= len(X)
        deltas = run(model, X[rows], args=given, output="delta", target=target, verbose=shown, **settings)
        scores.append(deltas.flatten(3).mean(3) if deltas.dim() > 3 else deltas)
    result = centred(torch.cat(scores))
    if not hypothetical:
        result = projected(result, X[:, :, start : span["end"]])
    return to_user(result, as_numpy)


def _end(start: Any, end: Any, length: int) -> int:
    for name, value in (("start", start), ("end", end)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise YuzuError(f"{name} must be an integer, got {value!r}")
    stop = length + 1 + int(end) if end < 0 else int(end)
    if not 0 <= start < stop <= length:
        raise YuzuError(
            f"start and end must satisfy 0 <= start < end <= {length} (a negative end counts from {length + 1}), got "
            f"start={start}, end={end}"
        )
    return stop


def _user(value: Any, as_numpy: bool) -> Any:
    return pytree.tree_map(lambda v: to_user(v, as_numpy), value)
