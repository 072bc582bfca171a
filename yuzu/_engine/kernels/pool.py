"""Pools over windows of differences on a GPU, in one Triton kernel.

    maximum: max over t of (x[n, j * stride + first + t * dilation] + R[place_t] - M[row + j])
    average: sum over t of  x[n, j * stride + first + t * dilation] / counts[start + j]

``first``, ``row`` and ``start`` are those of the site that mutant ``n`` belongs to. ``place_t`` is the position that
tap ``t`` reads. ``R`` is the reference before the pool, and ``M`` the reference after it. Outside of a window ``x``
reads as zero; outside of the sequence ``R`` reads as minus infinity.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from yuzu._engine.kernels.triton import launching, tl, triton
from yuzu._engine.window import Geometry

PLACES = 2048  # elements of the result that a program computes
MOST_COLUMNS = 128  # channels of a program, at most


@dataclass(frozen=True)
class Sites:
    """The places of the sites' windows, each ``(S,)``, int32.

    Attributes
    ----------
    first: torch.Tensor
        The position that the first tap reads for a window's first position, counted from the start of the window before
        the pool.
    start: torch.Tensor
        The first position of a window after the pool.
    sequence: torch.Tensor
        The sequence that a site lies in.
    """

    first: torch.Tensor
    start: torch.Tensor
    sequence: torch.Tensor


def pool(
    x: torch.Tensor,
    edits: int,
    width: int,
    geometry: Geometry,
    sites: Sites,
    before: torch.Tensor | None,
    after: torch.Tensor,
) -> torch.Tensor:
    """Compute the module's formulas.

    Parameters
    ----------
    x: torch.Tensor, shape=(N, w, C)
        Windows of differences, contiguous; ``edits`` mutants for each site.
    width: int
        Positions of the result.
    geometry: Geometry
    sites: Sites
    before, after: torch.Tensor
        For a maximum: ``R``, shape=(B, L, C), and ``M``, shape=(B, L', C), contiguous. For an average: None, and the
        counts, shape=(L',).

    Returns
    -------
    torch.Tensor, shape=(N, width, C), of the dtype of ``after``
    """
    n, held, channels = x.shape
    result = torch.empty(n, width, channels, dtype=after.dtype, device=x.device)
    if not result.numel():
        return result
    columns = min(MOST_COLUMNS, triton.next_power_of_2(channels))
    rows = PLACES // columns
    programs = -(-n * width // rows), -(-channels // columns)
    with launching(x):
        pool_windows[programs](
            x,
            result,
            after if before is None else before,
            after,
            sites.first,
            sites.start,
            sites.sequence,
            n // edits,
            edits,
            width,
            held,
            channels,
            geometry.kernel,
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            geometry.input_length,
            geometry.output_length,
            MAXIMUM=before is not None,
            ROWS=rows,
            COLUMNS=columns,
        )
    return result


if triton is not None:

    @triton.jit(do_not_specialize=["sites", "edits", "width", "held", "taps", "stride", "padding", "dilation"])
    def pool_windows(
        x,
        result,
        before,
        after,
        site_first,
        site_start,
        site_sequence,
        sites,
        edits,
        width,
        held,
        channels,
        taps,
        stride,
        padding,
        dilation,
        length_before,
        length_after,
        MAXIMUM: tl.constexpr,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
    ):
        # the edits of a site lie side by side at each position, since they read the same elements of the reference
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        column = row // edits  # of a table of sites by positions
        site = column // width
        place = (column - site * width).to(tl.int32)
        mutant = site * edits + row - column * edits
        inside = site < sites
        columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        here = inside[:, None] & (columns < channels)[None, :]
        first = place * stride + tl.load(site_first + site, mask=inside, other=0)
        position = tl.load(site_start + site, mask=inside, other=0) + place
        x += (mutant * held)[:, None] * channels + columns[None, :]
        if MAXIMUM:
            sequence = tl.load(site_sequence + site, mask=inside, other=0).to(tl.int64)
            pooled = tl.load(
                after + (sequence * length_after + position)[:, None] * channels + columns[None, :],
                mask=here,
                other=0.0,
            )
            before += (sequence * length_before)[:, None] * channels + columns[None, :]
            total = tl.full((ROWS, COLUMNS), float("-inf"), dtype=tl.float32)
        else:
            total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for tap in range(taps):
            read = first + tap * dilation
            there = here & ((read >= 0) & (read < held))[:, None]
            value = tl.load(x + read[:, None] * channels, mask=there, other=0.0).to(tl.float32)
            if MAXIMUM:
                at = position * stride - padding + tap * dilation
                there = here & ((at >= 0) & (at < length_before))[:, None]
                # the maximum is subtracted first, so the difference of the largest element stays unrounded
                value += tl.load(before + at[:, None] * channels, mask=there, other=float("-inf")) - pooled
                total = tl.maximum(total, value, propagate_nan=tl.PropagateNan.ALL)
            else:
                total += value
        if not MAXIMUM:
            total = total / tl.load(after + position, mask=inside, other=1.0)[:, None]
        tl.store(result + (mutant * width + place)[:, None] * channels + columns[None, :], total, mask=here)
