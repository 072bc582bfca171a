"""Finds the mutants' results that are exactly zero, whatever the rounding of differences says.

A reference of ``r`` and a difference of ``-r``, summed in different orders, leave a residue of about 1e-8 ``r`` where
the model itself sums nothing but zeros. A root, a quotient, a norm or a comparison after it makes a large error of
that. So, where such an operation follows, a rule says which of its results have terms that are all zero. It counts the
terms that are not, reference and difference, in integers and so exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from yuzu._engine.context import Context
from yuzu._engine.layout import Change, Layout, rewindow
from yuzu._engine.window import Geometry, Window

Test = Callable[[torch.Tensor], torch.Tensor]


def is_zero(run: Context, source: int, layout: Layout, change: Change, window: Window | None) -> torch.Tensor:
    """A mask of the mutants' values of a node that are zero: ``(S, A, w, ...)`` on a window (False beside the change's
    own), or ``(S, A, ...)`` without one.
    """
    if window is None:
        return run.whole(source, change) + run.of_sites(run.value(source)) == 0
    assert change.window is not None
    zero = change.tensor + run.on_window(source, layout, change.window) == 0
    return rewindow(zero, change.window, window)


def nonzero(values: torch.Tensor) -> torch.Tensor:
    """No term may pass this for a sum to be zero."""
    return values != 0


def positive(values: torch.Tensor) -> torch.Tensor:
    """No element may pass this for a maximum to be zero, or less."""
    return values > 0


def negative(values: torch.Tensor) -> torch.Tensor:
    """The same for a minimum."""
    return values < 0


def zero(values: torch.Tensor) -> torch.Tensor:
    """One element must pass this besides."""
    return values == 0


def magnitude(values: torch.Tensor) -> torch.Tensor:
    """Summed in place of counted, it tells how large the terms of a result are."""
    return values.abs()


@dataclass(frozen=True)
class TermsOf:
    """The terms that a node's results are made of: how it reads its source.

    Attributes
    ----------
    node, source: int
    layout: Layout
        Of the source.
    geometry: Geometry
    groups: int
        Of channels, which are read apart.
    """

    node: int
    source: int
    layout: Layout
    geometry: Geometry
    groups: int = 1


def count_read(run: Context, of: TermsOf, change: Change, window: Window, test: Test) -> torch.Tensor:
    """At how many positions that a node reads any element passes a test, in each group of channels: ``(S, A, w,
    groups)``. These are few: TF32 counts them exactly.
    """
    more, there = read(run, of, change, window, test)
    return more + there


def read(run: Context, of: TermsOf, change: Change, window: Window, test: Test) -> tuple[torch.Tensor, torch.Tensor]:
    """By how much `count_read` is more than in the reference, and the reference's; sums of magnitudes likewise."""
    before, g, groups = change.window, of.geometry, of.groups
    assert before is not None
    there = run.reference.position_first(of.source, of.layout)

    def any_of_group(values: torch.Tensor) -> torch.Tensor:
        axis = 3 if values.dim() - there.dim() == 1 else 2  # of sites and edits, or of sequences
        found = test(values).flatten(axis).unflatten(axis, (groups, -1))
        return found.any(-1) if found.dtype == torch.bool else found.sum(-1)

    def count(numbers: torch.Tensor) -> torch.Tensor:
        """``(N, m, groups)`` to ``(N, m', groups)``."""
        ones = numbers.new_ones(groups, 1, g.kernel)
        return F.conv1d(numbers.movedim(2, 1), ones, None, g.stride, 0, g.dilation, groups).movedim(1, 2)

    def of_reference() -> torch.Tensor:
        after = (g.output_length - 1) * g.stride + g.reach + 1 - g.padding - there.shape[1]
        return count(F.pad(any_of_group(there).float(), (0, 0, g.padding, after)))

    positions = window.cached(("read", of.node), lambda: g.read_by(window))
    moved = rewindow(_more(run, of.source, of.layout, change, any_of_group), before, positions)
    found = count(moved.flatten(0, 1)).unflatten(0, moved.shape[:2])
    return found, run.made_on_window((test.__name__, of.node), of_reference, window)


def count_all(run: Context, source: int, layout: Layout, change: Change, kept: int, test: Test) -> torch.Tensor:
    """How many elements pass a test, of all positions and all but the last ``kept`` axes: ``(S, A, ...)``."""
    more, there = read_all(run, source, layout, change, kept, test)
    return more + there


def read_all(
    run: Context, source: int, layout: Layout, change: Change, kept: int, test: Test
) -> tuple[torch.Tensor, torch.Tensor]:
    """By how much `count_all` is more than in the reference, and the reference's; sums of magnitudes likewise."""
    more = _more(run, source, layout, change, test)
    axes = list(range(2, more.dim() - kept))

    def of_reference() -> torch.Tensor:
        return test(run.reference.position_first(source, layout)).float().sum([a - 1 for a in axes])

    return more.sum(axes), run.of_sites(run.reference.made((test.__name__, "all", source, kept), of_reference))


def _more(run: Context, source: int, layout: Layout, change: Change, test: Test) -> torch.Tensor:
    """A test of the mutants' elements less the test of the reference's, on the change's window: 1, 0 or -1, or a
    difference of magnitudes.
    """
    assert change.window is not None
    reference = run.on_window(source, layout, change.window)
    return test(change.tensor + reference).float() - test(reference).float()
