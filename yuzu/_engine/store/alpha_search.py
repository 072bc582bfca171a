"""How many Gaussian probes a nonzero: the search of the Yuzu paper (Schreiber, Lu and Noble 2022)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from yuzu._engine.edits import Mutations
from yuzu._engine.run.bound import Bound
from yuzu._engine.run.scores import Selection
from yuzu._engine.store.precomputation import Precomputation
from yuzu._engine.ways.compressed_sensing import Sensing
from yuzu.errors import warn_user
from yuzu.naive_ism import run_naively
from yuzu.yuzu_ism import run_planned

BADLY_CONDITIONED = 100  # condition numbers that lose two digits and more of the seven of float32


def search_alpha(
    made: Precomputation, bound: Bound, X: torch.Tensor, args: tuple[torch.Tensor, ...], device: torch.device
) -> Bound:
    """Raise ``alpha`` until the correlation with naive ISM reaches the threshold, as in the Yuzu paper. Returns the
    precomputation in use with that ``alpha``.

    All positions are scored, for the probes' load is that of a real run; some are compared, for running all
    naively would take longer than the probes can save.
    """
    s, plan = made.settings, bound.plan
    assert plan is not None
    places = np.unique(np.linspace(0, s.seq_len - 1, min(s.seq_len, 33)).round().astype(np.int64))
    some = Mutations.at(s.n_choices, s.seq_len, places)
    everything = Mutations(s.n_choices, s.seq_len, 0, None, None, None)
    truth = run_naively(bound.twin(), X, args, some, Selection(None, None), "l2", 128, device, False, False)
    alphas = [s.alpha] if s.alpha is not None else [round(1 + 0.01 * i, 2) for i in range(51)]
    correlation, condition = 0.0, 1.0
    for alpha in alphas:
        sensing = Sensing(alpha, s.random_state)
        bound = bound.with_plan(replace(plan, sensing=sensing))
        found = run_planned(bound, X, [args], everything, Selection(None, None), "l2", None, device, False, False)
        correlation = _correlation(found[:, 0][:, :, places], truth)
        condition = sensing.condition
        if correlation >= s.threshold:
            break
    made.decisions.update(
        alpha=sensing.alpha, probes=dict(sensing.probes), correlation=correlation, condition=condition
    )
    for row in made.decisions["layers"]:
        row[4] = str(sensing.probes[row[-1]]) if row[-1] in sensing.probes else row[4]
    if correlation < s.threshold:
        warn_user(_too_low(sensing.alpha, condition, correlation, s.threshold))
    return bound


def _too_low(alpha: float, condition: float, correlation: float, threshold: float) -> str:
    """Why the threshold was not reached, and what to do."""
    # as many digits as tell it from the threshold
    shown = next((t for t in (f"{correlation:.{n}f}" for n in range(6, 18)) if float(t) < threshold), repr(correlation))
    text = f"Gaussian probes with alpha={alpha:g} reach a correlation with naive ISM of {shown}, below {threshold=!r}. "
    if condition < BADLY_CONDITIONED:
        return text + (
            f"Their largest condition number is {condition:.3g}, which is small: what is left is rounding. A lower "
            "threshold accepts it; conv='cyclic' is exact."
        )
    return text + (
        f"They are badly conditioned: the largest condition number is {condition:.3g}. A larger alpha helps; "
        "conv='cyclic' is exact."
    )


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Pearson correlation; 1 for results that are equal and constant."""
    x, y = a.double().flatten(), b.double().flatten()
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale > 0 and math.isfinite(scale) else float(torch.equal(a, b))
