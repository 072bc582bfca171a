"""A check of `yuzu_ism` against `naive_ism`, for any model."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import torch

from yuzu._engine.model_copy import evaluation_copy, model_dtype
from yuzu.inputs import check_args, check_count, check_device, check_model, check_sequences
from yuzu.kept_precomputations import inputs_of, obtain
from yuzu.mutations import Mutations
from yuzu.naive_ism import run_naively
from yuzu.scores import Selection
from yuzu.yuzu_ism import run_planned

PROMISED = 1e-5  # relative error in float32; naive ISM's where that is larger


class Check(NamedTuple):
    """How `yuzu_ism` and `naive_ism` compare on some positions of one sequence.

    Errors are against float64 naive ISM of signed deltas: the relative L2 error ``|a - b| / |b|``, and the
    largest difference of any one score divided by the largest score.
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


def check(
    model: torch.nn.Module,
    X_0: Any,
    precomputation: Any = None,
    *,
    args: tuple[Any, ...] | None = None,
    positions: int = 32,
    device: Any = None,
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
    mutations = Mutations.at(c, length, np.array(sorted((fixed + others)[:count])))

    selection = Selection(None, None)
    bound = obtain(model, precomputation, given, extra, found, selection)
    twin, double = evaluation_copy(model, found), evaluation_copy(model, found, torch.float64)
    doubles = tuple(a.double() if a.is_floating_point() else a for a in extra)
    settings = (mutations, selection, "delta", None, found, False, False)
    run_planned(bound, X, [extra], *settings)  # first use prepares the weights
    begin = time.perf_counter()
    ours = run_planned(bound, X, [extra], *settings)
    middle = time.perf_counter()
    naive = run_naively(twin, X, extra, mutations, selection, "delta", 128, found, False, False)
    end = time.perf_counter()
    truth = run_naively(double, X.double(), doubles, mutations, selection, "delta", 128, found, False, False)
    a, b = errors_against(ours, truth), errors_against(naive, truth)
    if a[0] <= b[0]:
        verdict = "as accurate as naive ISM or better"
    elif a[0] <= PROMISED:
        verdict = f"accurate to {a[0]:.1e}, within the {PROMISED:g} that is promised"
    else:
        verdict = "LESS accurate than naive ISM"
    summary = (
        f"On {count} positions yuzu_ism is {verdict}: relative error {a[0]:.1e} (naive {b[0]:.1e}), largest {a[1]:.1e} "
        f"(naive {b[1]:.1e}) against float64, in {middle - begin:.3g} s (naive {end - middle:.3g} s)."
    )
    return Check(a[0], a[1], b[0], b[1], middle - begin, end - middle, summary)
