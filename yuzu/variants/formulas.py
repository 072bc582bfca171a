"""The published scores, from both alleles' predictions; in float64.

``logfc`` and ``jsd`` are those of ChromBPNet's variant-scorer, with SciPy's Jensen-Shannon distance to base 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from yuzu.variants.sequences import Trial


def logfc(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """``log2`` of the alternative allele's counts over the reference's, from natural logarithms ``(n,)``."""
    return (after - before) / math.log(2)


def jsd(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """The Jensen-Shannon distance, base 2, of the softmaxes of logits ``(n, length)``.

    With ``d = log q - log p`` and ``m`` their mean, ``log p - log m = -log(1 + (e^d - 1) / 2)``, which keeps the digits
    of small differences.
    """
    p, q = torch.log_softmax(before, 1), torch.log_softmax(after, 1)
    halves = torch.logaddexp(p, q) - math.log(2)
    d = q - p
    near = d.abs() < 1
    small = torch.log1p(torch.expm1(torch.where(near, d, 0.0)) / 2)
    of_p, of_q = torch.where(near, -small, p - halves), torch.where(near, d - small, q - halves)
    terms = torch.where(p > -torch.inf, p.exp() * of_p, 0.0) + torch.where(q > -torch.inf, q.exp() * of_q, 0.0)
    return (terms.sum(1) / (2 * math.log(2))).clamp(min=0).sqrt()


def jsd_of_trials(before: torch.Tensor, after: torch.Tensor, trials: Sequence[Trial]) -> torch.Tensor:
    """`jsd` of profiles ``(n, strands, length)``, all strands being one distribution. The positions that an insertion
    or deletion adds or removes are left out, and those that it moves are compared with where they came from.
    """
    found = torch.empty(len(trials), dtype=torch.float64, device="cpu")
    even = np.array([trial.place.substitutes for trial in trials], dtype=bool)
    whole = torch.from_numpy(np.flatnonzero(even))
    found[whole] = jsd(before[whole].flatten(1), after[whole].flatten(1))
    for i in np.flatnonzero(~even).tolist():
        a, b = aligned(before[i], after[i], trials[i])
        found[i] = jsd(a.reshape(1, -1), b.reshape(1, -1)) if a.shape[1] else torch.nan
    return found


def aligned(before: torch.Tensor, after: torch.Tensor, trial: Trial) -> tuple[torch.Tensor, torch.Tensor]:
    """The positions of profiles ``(strands, length)`` that both alleles have, in the same order. The variant begins in
    the middle of the reference's.
    """
    length, removed, added = before.shape[1], len(trial.place.ref), len(trial.place.alt)
    begin = length // 2
    there = begin if trial.side == "left" else begin + removed - added  # in the alternative allele's
    lefts = before[:, :begin], after[:, : max(there, 0)]
    rights = before[:, begin + removed :], after[:, max(there + added, 0) :]
    left, right = min(lefts[0].shape[1], lefts[1].shape[1]), min(rights[0].shape[1], rights[1].shape[1])
    joined = [
        torch.cat([one[:, one.shape[1] - left :], other[:, :right]], dim=1)
        for one, other in zip(lefts, rights, strict=True)
    ]
    return joined[0], joined[1]


def share_below(peaks: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The share of sorted log counts of peaks that lie below each value."""
    return np.searchsorted(peaks, values, side="left") / len(peaks)
