"""A convolution of windows of differences on a GPU, with the ReLU and the sum after it, in one Triton kernel.

In PyTorch each operation after a convolution reads its result and writes another, and windows that are not evenly
spaced are moved once more. Here the result is written once:

    result[n, j] = residual[n, j + shift] + relu(sum over t of weight[t] x[n, j * stride + first + t * dilation])
    relu(d) = max(d + min(R, 0), -max(R, 0))    with R = reference[row + j], the input of the ReLU

``first``, ``shift`` and ``row`` are those of the site that mutant ``n`` belongs to. Outside of a window ``x`` and
``residual`` read as zero.

A program computes a tile of the result. The taps that read anything differ from one span of positions to the next. So
a tile lies in one span of several sites (a *group*), and only runs over the taps of that span. In a tile the edits of a
site lie side by side at each position, since they read the same elements of the reference.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import torch

from yuzu._engine.kernels.triton import KernelError, launching, shared_memory, tl, triton
from yuzu._engine.layout import on_device

GROUP = 16  # sites whose tiles follow one another, so that their inputs stay in the cache
MOST_PLACES = 2**31 - 1  # elements that a group may read or write: they are indexed in 32 bits
LEAST_SPAN = 16  # positions of a span, at least: with a smaller dilation tiles of one span would be mostly empty
MOST_SPANS = 16  # spans of the table; up to two begin with each tap


@dataclass(frozen=True)
class Tile:
    """Rows, columns and depth of a program's products, and Triton's settings for the program.

    The operations after the products run on ``parts`` (1, 2 or 4) of the columns, one after the other. On all columns
    at once they take so many registers that fewer programs fit on a processor, or that registers spill.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    parts: int = 1


@dataclass(frozen=True)
class BeforeReLU:
    """The reference before a ReLU: ``values`` ``(B * L, C)``, read from row ``row`` on for each site."""

    values: torch.Tensor
    row: torch.Tensor


@dataclass(frozen=True)
class Residual:
    """The changes that are added: ``values`` ``(N, w, C)``, read from ``shift`` on for each site."""

    values: torch.Tensor
    shift: torch.Tensor


def tile_of(x: torch.Tensor, channels_out: int, precision: str) -> Tile:
    """The tile that was the fastest on an H200 (``benchmarks/fused_tiles.py``), or a smaller one that fits."""
    low_precision, full = x.dtype == torch.bfloat16, precision == "highest"
    columns = _columns(channels_out, 128 if full else 256)
    depth = min(64 if low_precision else 32, max(16, triton.next_power_of_2(x.shape[2])))
    if columns == 256:
        tile = Tile(128, columns, depth, 8, 3, 4)
    elif columns == 128:
        tile = Tile(128, columns, depth, *((8, 3, 2) if full else (4, 3, 4)))
    else:
        tile = Tile(64 if full else 128, columns, depth, 4, 2 if low_precision else 3, 2 if columns == 64 else 1)
    return _within(tile, x.element_size(), shared_memory(x.device))


def _columns(channels: int, most: int) -> int:
    """The columns of a tile: few of them idle, yet enough that inputs are not read too often. A column costs more in a
    narrower tile: ``costs`` are relative to 256 columns.
    """
    costs = {256: 1.0, 128: 1.06, 64: 1.3, 32: 2.0, 16: 4.0}
    return min((c for c in costs if c <= most), key=lambda c: -(-channels // c) * c * costs[c])


def _within(tile: Tile, itemsize: int, limit: int) -> Tile:
    """Shrink a tile until its operands fit into the shared memory of a processor, ``limit`` bytes."""
    while tile.stages * (tile.rows + tile.columns) * tile.depth * itemsize > limit and tile.depth > 16:
        if tile.stages > 2:
            tile = replace(tile, stages=2)
        elif tile.columns > 128:
            tile = replace(tile, columns=128, parts=2)
        else:
            tile = replace(tile, depth=tile.depth // 2)
    return tile


@dataclass(frozen=True)
class Form:
    """The sizes of a convolution of windows.

    Attributes
    ----------
    edits: int
        Mutants of each site.
    width: int
        Positions of the result.
    dilation, stride: int
    spans: tuple of int
        The positions of the result at which GPU spans begin, the first at 0.
    """

    edits: int
    width: int
    dilation: int = 1
    stride: int = 1
    spans: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class After:
    """The operations after a convolution that run with it, and the dtype of the result (None: that of the input)."""

    relu: BeforeReLU | None = None
    residual: Residual | None = None
    dtype: torch.dtype | None = None


def convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    first: torch.Tensor,
    form: Form,
    precision: str,
    after: After = After(),  # noqa: B008 (frozen)
    tile: Tile | None = None,
) -> torch.Tensor:
    """Compute the module's formula.

    Parameters
    ----------
    x: torch.Tensor, shape=(N, w, Cin)
        Windows of differences, contiguous; ``form.edits`` mutants for each site.
    weight: torch.Tensor, shape=(k, Cout, Cin)
        In the dtype of ``x``, contiguous.
    first: torch.Tensor, shape=(S,), dtype=torch.int32
        The position of ``x`` that the first tap reads for the first position of the result.
    form: Form
    precision: str
        The precision of float32 products: for ``"highest"`` three TF32 products, whose sum is as accurate as float32,
        else one.
    after: After
    tile: Tile or None
        Default None: `tile_of`.

    Returns
    -------
    torch.Tensor, shape=(N, width, Cout)

    Raises
    ------
    KernelError
        If Triton or the driver cannot run it.
    """
    n, held, cin = x.shape
    taps, cout, _ = weight.shape
    edits, width, relu, residual = form.edits, form.width, after.relu, after.residual
    result = torch.empty(n, width, cout, dtype=after.dtype or x.dtype, device=x.device)
    if x.device.type == "cpu":
        x, weight = x.float(), weight.float()  # the interpreter multiplies the bits of bfloat16
    if not result.numel():
        return result
    tile = tile or tile_of(x, cout, precision)
    sites = n // edits
    largest = edits * max(held, width, 0 if residual is None else residual.values.shape[1]) * max(cin, cout)
    group = min(GROUP, sites, MOST_PLACES // largest)
    if not group:
        raise KernelError(f"windows of one site hold {largest} elements, more than the kernel can index")
    table, tiles = _span_table(form.spans, width, group * edits, tile.rows)
    span_table = on_device(table, x.device)
    programs = -(-sites // group) * tiles * -(-cout // tile.columns)
    with launching(x):
        fused_convolution[(programs,)](
            x,
            weight,
            result,
            x if relu is None else relu.values,
            x if residual is None else residual.values,
            first,
            first if relu is None else relu.row,
            first if residual is None else residual.shift,
            span_table,
            tiles,
            sites,
            group,
            edits,
            width,
            held,
            0 if residual is None else residual.values.shape[1],
            form.dilation,
            STRIDE=form.stride,
            TAPS=taps,
            CIN=cin,
            COUT=cout,
            SPANS=MOST_SPANS,
            RELU=relu is not None,
            RESIDUAL=residual is not None,
            PRODUCTS="tf32x3" if precision == "highest" else "tf32",
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            DEPTH=tile.depth,
            PARTS=tile.parts,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return result


def spans_of(width: int, held: int, taps: int, dilation: int, first: int) -> tuple[int, ...]:
    """Find the positions of a result, ``width`` wide, at which the set of taps that read anything changes, for windows
    that are ``held`` wide.
    """
    if dilation < LEAST_SPAN or 2 * taps > MOST_SPANS - 1:
        return (0,)
    changes = {-first - t * dilation + end for t in range(taps) for end in (0, held)}
    found = [0]
    for place in sorted(changes):
        if found[-1] + LEAST_SPAN <= place <= width - LEAST_SPAN:
            found.append(place)
    return tuple(found)


@functools.lru_cache(maxsize=512)
def _span_table(spans: tuple[int, ...], width: int, mutants: int, rows: int) -> tuple[np.ndarray, int]:
    """The table of spans, and the number of tiles of a group. The table has the first tile of each span, then the first
    position of each and the stop of the last. Both parts are padded with spans that have no tiles.
    """
    stops = (*spans[1:], width)
    tiles = [0]
    for begin, stop in zip(spans, stops, strict=True):
        tiles.append(tiles[-1] + -(-mutants * (stop - begin) // rows))
    spare = MOST_SPANS - len(spans)
    first_tiles, begins = tiles[:-1] + [tiles[-1]] * spare, [*spans, *[width] * (spare + 1)]
    return np.array([*first_tiles, *begins], dtype=np.int32), tiles[-1]


if triton is not None:

    @triton.jit
    def _halves(table):
        """The left and the right half of a table's columns."""
        half: tl.constexpr = table.shape[1] // 2
        return tl.split(tl.permute(tl.reshape(table, (table.shape[0], 2, half)), (0, 2, 1)))

    @triton.jit(do_not_specialize=["tiles", "sites", "group", "edits", "width", "held", "residual_held", "dilation"])
    def fused_convolution(
        x,
        weight,
        result,
        reference,
        residual,
        site_first,
        site_row,
        site_shift,
        span_table,
        tiles,
        sites,
        group,
        edits,
        width,
        held,
        residual_held,
        dilation,
        STRIDE: tl.constexpr,
        TAPS: tl.constexpr,
        CIN: tl.constexpr,
        COUT: tl.constexpr,
        SPANS: tl.constexpr,
        RELU: tl.constexpr,
        RESIDUAL: tl.constexpr,
        PRODUCTS: tl.constexpr,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
        DEPTH: tl.constexpr,
        PARTS: tl.constexpr,
    ):
        STRIPS: tl.constexpr = (COUT + COLUMNS - 1) // COLUMNS
        DEPTHS: tl.constexpr = (CIN + DEPTH - 1) // DEPTH
        program = tl.program_id(0)
        strip = program % STRIPS
        tile = program // STRIPS
        first_site = tile // tiles * group
        tile = tile % tiles
        known = tl.load(span_table + tl.arange(0, SPANS))
        # the spans that pad the table begin where the last tile ends, so none of them is ever found
        span = tl.sum((known <= tile).to(tl.int32)) - 1
        begin = tl.load(span_table + SPANS + span)
        length = tl.load(span_table + SPANS + span + 1) - begin
        tile -= tl.load(span_table + span)

        # the position and the mutant of the group that each row of the tile belongs to
        row = tile * ROWS + tl.arange(0, ROWS)
        column = row // edits  # of a table of sites by positions
        site = column // length
        place = begin + column - site * length
        mutant = site * edits + row - column * edits
        inside = (site < group) & (first_site + site < sites)
        site += first_site
        first_mutant = first_site.to(tl.int64) * edits
        columns = strip * COLUMNS + tl.arange(0, COLUMNS)
        depth = tl.arange(0, DEPTH)

        # the taps that read anything for any row
        first = place * STRIDE + tl.load(site_first + site, mask=inside, other=0)
        low = tl.where(first < 0, (dilation - 1 - first) // dilation, 0)
        high = tl.minimum(tl.where(first < held, (held - 1 - first) // dilation + 1, 0), TAPS)
        some = inside & (low < high)
        low = tl.min(tl.where(some, low, TAPS))
        high = tl.max(tl.where(some, high, 0))

        x += first_mutant * held * CIN
        start = mutant * held
        total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for i in range(low * DEPTHS, high * DEPTHS):
            tap = i // DEPTHS
            channel = (i - tap * DEPTHS) * DEPTH + depth
            read = first + tap * dilation
            there = (inside & (read >= 0) & (read < held))[:, None]
            taken = weight + (tap * COUT + columns[None, :]) * CIN + channel[:, None]
            if CIN % DEPTH == 0 and COUT % COLUMNS == 0:
                b = tl.load(taken)
            else:
                b = tl.load(taken, mask=(channel < CIN)[:, None] & (columns < COUT)[None, :], other=0.0)
            if CIN % DEPTH != 0:
                there = there & (channel < CIN)[None, :]
            a = tl.load(x + (start + read)[:, None] * CIN + channel[None, :], mask=there, other=0.0)
            total = tl.dot(a, b, total, input_precision=PRODUCTS)

        # the place of each row in the reference, in the residual and in the result
        of_reference = first_mutant + mutant
        of_residual = mutant
        added = inside
        if RELU:
            of_reference = (tl.load(site_row + site, mask=inside, other=0) + place).to(tl.int64)
        if RESIDUAL:
            read = place + tl.load(site_shift + site, mask=inside, other=0)
            added = inside & (read >= 0) & (read < residual_held)
            of_residual = mutant * residual_held + read
            residual += first_mutant * residual_held * COUT
        result += first_mutant * width * COUT
        to = mutant * width + place
        PART: tl.constexpr = COLUMNS // PARTS
        if PARTS == 1:
            parts = (total,)
        elif PARTS == 2:
            parts = _halves(total)
        else:
            left, right = _halves(total)
            parts = _halves(left) + _halves(right)
        for i in tl.static_range(PARTS):
            columns = strip * COLUMNS + i * PART + tl.arange(0, PART)
            part = parts[i]
            here = inside[:, None] & (columns < COUT)[None, :]
            if RELU:
                value = tl.load(reference + of_reference[:, None] * COUT + columns[None, :], mask=here, other=0.0)
                kept, least = part + tl.minimum(value, 0.0), -tl.maximum(value, 0.0)
                part = tl.maximum(kept, least, propagate_nan=tl.PropagateNan.ALL)
            if RESIDUAL:
                there = here & added[:, None]
                value = tl.load(residual + of_residual[:, None] * COUT + columns[None, :], mask=there, other=0.0)
                part += value.to(tl.float32)
            tl.store(result + to[:, None] * COUT + columns[None, :], part.to(result.dtype.element_ty), mask=here)
