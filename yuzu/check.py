"""A check of `yuzu_ism` against `naive_ism`, for any model."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from yuzu._engine.arrays import AnyArray, Device
from yuzu._engine.capture.double import SeeDtypes, in_double
from yuzu._engine.capture.model_copy import evaluation_copy, model_dtype
from yuzu._engine.checks import check_args, check_count, check_device, check_model, check_sequences
from yuzu._engine.edits import Mutations
from yuzu._engine.request import Args, Request
from yuzu._engine.run.naive import mixes_rows, run_naively, try_model
from yuzu._engine.settings import NAIVE_BATCH
from yuzu._engine.store.obtain import inputs_of, obtain
from yuzu._engine.store.precomputation import Precomputation
from yuzu._engine.store.scoring import run_planned

PROMISED = 1e-5  # relative error in float32; naive ISM's where that is larger
MOST_ROUNDING = 1000.0  # times a dtype's precision, relative to the largest output; deep models lose tens of it
ALIKE = 1.2  # errors whose ratio is below this count as equal
NEAR = 0.1  # two results are near if their distance is this part of that from a third


class Check(NamedTuple):
    """How `yuzu_ism` and `naive_ism` compare on some positions of one sequence.

    Errors are against float64 naive ISM of signed deltas: the relative L2 error ``|a - b| / |b|``, and the
    largest difference of any one score divided by the largest score. Where a copy of the model does not run in float64,
    or computes something else there, which the summary says, they are against `naive_ism` itself, whose own are 0 then.
    """

    yuzu_relative_error: float
    yuzu_largest_error: float
    naive_relative_error: float
    naive_largest_error: float
    yuzu_seconds: float
    naive_seconds: float
    summary: str

    def __str__(self) -> str:
        return self.summary


def _flat(result: Any) -> torch.Tensor:
    leaves = torch.utils._pytree.tree_leaves(result)
    values = [torch.as_tensor(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor | np.ndarray)]
    return torch.cat([value.double().flatten() for value in values])


def errors_against(result: Any, truth: Any) -> tuple[float, float]:
    """Relative L2 error and largest error over the largest score of one set of results against another."""
    a, b = _flat(result), _flat(truth)
    if not len(b) or float(b.abs().max()) == 0:
        return float(a.norm()), float(a.abs().max()) if len(a) else 0.0
    return float((a - b).norm() / b.norm()), float((a - b).abs().max() / b.abs().max())


def _doubled(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _is_double(model: torch.nn.Module) -> bool:
    found = {t.dtype for t in itertools.chain(model.parameters(), model.buffers()) if t.is_floating_point()}
    return found == {torch.float64}


def _rounding(clone: torch.nn.Module, X: torch.Tensor, args: Args, device: torch.device) -> tuple[float, torch.dtype]:
    """A bound on the rounding of a difference of two outputs, from the largest output and the least precise dtype that
    the model runs in; and that dtype.
    """
    with SeeDtypes() as dtypes:
        leaves = torch.utils._pytree.tree_leaves(try_model(clone, X, args, device))
    outputs = [t for t in leaves if isinstance(t, torch.Tensor) and t.is_floating_point()]
    least = max((X.dtype, *dtypes.seen), key=lambda dtype: torch.finfo(dtype).eps)
    sizes = [float(t.double().abs().nan_to_num(0.0, 0.0, 0.0).amax()) for t in outputs if t.numel()]
    return MOST_ROUNDING * torch.finfo(least).eps * max(sizes, default=0.0), least


def _copy_agrees(ours: Any, naive: Any, truth: Any, rounding: float) -> bool:
    """Tell whether a copy in float64 computes the same as the model. If not, yuzu and naive ISM are near to each other,
    and both are farther from the copy than rounding explains.
    """
    flat = torch.stack([_flat(result) for result in (ours, naive, truth)])
    a, b, c = flat[:, torch.isfinite(flat).all(0)]
    if not len(c):
        return True
    off = min(float((a - c).norm()), float((b - c).norm()))
    return float((b - c).abs().max()) <= rounding or float((a - b).norm()) > NEAR * off


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}"


def check(
    model: torch.nn.Module,
    X_0: AnyArray,
    precomputation: Precomputation | None = None,
    *,
    args: tuple[Any, ...] | None = None,
    positions: int = 32,
    device: Device = None,
) -> Check:
    """Compare `yuzu_ism` with `naive_ism`, and both with float64 naive ISM, on some positions of the first
    sequence.

    Parameters
    ----------
    model, X_0, precomputation, args, device
        As for `yuzu_ism`.
    positions: int
        How many positions, at both ends, in the middle, and at random (always the same ones). Default 32.

    Returns
    -------
    Check
        Relative L2 and largest error against float64 of each, the seconds each took, and a sentence.

    Examples
    --------
    >>> import yuzu
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> model, X = load_ctcf_model(), load_ctcf_peaks().X[:2]  # (2, 4, 100)
    >>> found = yuzu.check(model, X, positions=8)
    >>> found.yuzu_relative_error < 1e-5
    True
    """
    check_model(model)
    dtype = model_dtype(model)
    given = check_sequences(X_0, dtype)
    extra = tuple(a[:1] for a in check_args(args, len(given), dtype, inputs_of(precomputation)))
    found = check_device(device)
    X = given[:1]
    c, length = X.shape[1:]
    count = min(check_count("positions", positions), length)
    fixed = list(dict.fromkeys([0, length - 1, length // 2]))
    others = [p for p in np.random.default_rng(0).permutation(length).tolist() if p not in fixed]
    mutations = Mutations(c, length, np.array(sorted((fixed + others)[:count])))
    request = Request(X, [extra], mutations, found, output="delta")

    used = obtain(model, precomputation, replace(request, X=given))
    clone = evaluation_copy(model, found)
    run_planned(used, request, stacked=False)  # first use prepares the weights
    begin = time.perf_counter()
    ours = run_planned(used, request, stacked=False)
    middle = time.perf_counter()
    batch_size = 1 if mixes_rows(clone, X, extra, found) else NAIVE_BATCH
    start = time.perf_counter()
    naive = run_naively(clone, request, batch_size)
    seconds = middle - begin, time.perf_counter() - start
    rounding, least = _rounding(clone, X, extra, found)
    coarse = 4 * torch.finfo(least).eps
    truth, why = None, ""
    try:
        double = evaluation_copy(model, found, torch.float64)
        double = double if _is_double(model) else in_double(double)
        doubled = replace(request, X=X.double(), states=[tuple(map(_doubled, extra))])
        truth = run_naively(double, doubled, batch_size)
        if not _copy_agrees(ours, naive, truth, rounding):
            truth, why = None, "a copy of the model in float64 computes something else than the model"
    except Exception as error:  # a model, or its weights, may refuse a dtype by any error
        why = f"a copy of the model does not run in float64 ({_first_line(error)})"
    if truth is None:
        a, b = errors_against(ours, naive), (0.0, 0.0)
        close = a[0] <= PROMISED or float((_flat(ours) - _flat(naive)).abs().max()) <= rounding
        verdict = "as naive ISM, to rounding" if close else "NOT as naive ISM"
        figures = f"differs from it by {a[0]:.1e} (relative), {a[1]:.1e} (largest), and {why}"
    else:
        a, b = errors_against(ours, truth), errors_against(naive, truth)
        if a[0] <= ALIKE * b[0]:
            verdict = "as accurate as naive ISM or better"
        elif a[0] <= PROMISED:
            verdict = f"accurate to {a[0]:.1e}, within the {PROMISED:g} that is promised"
        elif a[0] <= coarse:
            verdict = f"accurate to {a[0]:.1e}, which is the precision of {str(least).removeprefix('torch.')}"
        else:
            verdict = "LESS accurate than naive ISM"
        figures = f"relative error {a[0]:.1e} (naive {b[0]:.1e}), largest {a[1]:.1e} (naive {b[1]:.1e}) against float64"
    summary = (
        f"On {count} positions yuzu_ism is {verdict}: {figures}, in {seconds[0]:.3g} s (naive {seconds[1]:.3g} s)."
    )
    return Check(a[0], a[1], b[0], b[1], *seconds, summary)
