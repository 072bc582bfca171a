"""The number of Gaussian probes for each nonzero: the search of the Yuzu paper (Schreiber, Lu and Noble 2022)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from yuzu._engine.edits import Mutations
from yuzu._engine.request import Args, Request
from yuzu._engine.run.naive import run_naively
from yuzu._engine.settings import NAIVE_BATCH
from yuzu._engine.store.decisions import Decisions, Probing
from yuzu._engine.store.in_use import InUse
from yuzu._engine.store.scoring import run_planned
from yuzu._engine.ways.compressed_sensing import Sensing
from yuzu.errors import warn_user

BADLY_CONDITIONED = 100  # condition numbers that lose two digits and more of the seven of float32


def search_alpha(used: InUse, X: torch.Tensor, args: Args) -> InUse:
    """Raise ``alpha`` until the correlation with naive ISM reaches the threshold, as in the Yuzu paper; and decide so.

    All positions are scored, for the probes' load is that of a real run; some are compared, for running all
    naively would take longer than the probes can save.
    """
    s, plan = used.settings, used.plan
    assert plan is not None
    places = np.unique(np.linspace(0, s.seq_len - 1, min(s.seq_len, 33)).round().astype(np.int64))
    everything = Request(X, [args], Mutations.asked(s.n_choices, s.seq_len), used.device)
    some = replace(everything, mutations=Mutations(s.n_choices, s.seq_len, places))
    truth = run_naively(used.evaluation_copy(), some, NAIVE_BATCH)
    alphas = [s.alpha] if s.alpha is not None else [round(1 + 0.01 * i, 2) for i in range(51)]
    sensing, correlation = plan.sensing, 0.0
    for alpha in alphas:
        sensing = Sensing(alpha, s.random_state)
        used = used.with_plan(plan.with_sensing(sensing))
        found = run_planned(used, everything, stacked=False)
        correlation = _correlation(found[:, :, places], truth)
        if correlation >= s.threshold:
            break
    assert sensing is not None
    if correlation < s.threshold:
        warn_user(_too_low(sensing.alpha, sensing.condition, correlation, s.threshold))
    probes = {int(node): count for node, count in sensing.probes.items()}
    used.decisions = _decided(used.decisions, Probing(sensing.alpha, probes, correlation, sensing.condition))
    return used


def _decided(decisions: Decisions, probing: Probing) -> Decisions:
    """Decisions with the probes, which the layers' rows show."""
    layers = [
        layer._replace(probes=str(probing.probes[layer.node])) if layer.node in probing.probes else layer
        for layer in decisions.layers
    ]
    return replace(decisions, probing=probing, layers=tuple(layers))


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
