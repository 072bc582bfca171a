"""Example mutants for timing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from yuzu._engine.context import Context
from yuzu._engine.edits import Sites, substitutions_at
from yuzu._engine.plan.plan import Plan


@dataclass(frozen=True)
class Examples:
    """The substitutions that a plan is timed with.

    Attributes
    ----------
    n_choices: int
    length: int
    edits: int
        Mutants of each site.
    seed: int
    """

    n_choices: int
    length: int
    edits: int
    seed: int = 0

    def sites(self, run: Context, count: int) -> Sites:
        """Random substitutions at ``count`` neighbouring positions, in the middle of those that reach an output. They
        replace the letters of the reference, since a table may have no row for other letters.
        """
        plan: Plan = run.plan  # type: ignore[assignment]
        places = plan.reached(self.length, 1)
        count = min(count, len(places))
        first = (len(places) - count) // 2
        position = places[first : first + count]
        generator = torch.Generator("cpu").manual_seed(self.seed)
        written = torch.randint(self.n_choices, (count, self.edits), generator=generator, device="cpu").to(run.device)
        X = run.value(next(n.index for n in plan.graph.nodes if n.kind == "sequence"))
        return substitutions_at(position, written, X)


def shared_evenly(size: int, length: int, most: int) -> int:
    """A number of sites near ``size`` such that chunks of it divide a sequence of ``length`` evenly."""
    return max(min(-(-length // max(round(length / max(size, 1)), 1)), most, length), 1)


def span_of(plan: Plan, length: int) -> int:
    """The number of positions that reach an output and are divided among chunks. Positions near the ends get chunks of
    their own.
    """
    reach, regular = plan.reach(np.arange(length), 1)
    several, most = int((reach & regular).sum()), int(reach.sum()) or length
    return several if 2 * several >= most else most
