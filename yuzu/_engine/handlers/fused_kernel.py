"""A convolution of windows of differences on a GPU, with the rectifier and the sum behind it, in one Triton kernel.

Left to PyTorch, the result of a convolution is written and read again by each operation behind it, and where windows do
not lie evenly it is moved once more. Here it is written once:

    result[n, j] = residual[n, j + shift] + rectified(sum over t of weight[t] x[n, j * stride + first + t * dilation])
    rectified(d) = max(d + min(R, 0), -max(R, 0))    with R = reference[row + j], what the rectifier reads

with ``first``, ``shift`` and ``row`` of the site that mutant ``n`` belongs to; what lies outside of a window is zero.

A program makes a tile of the result. Which taps read anything differs from one stretch of positions to the next, so
tiles are of one stretch, of several sites (a *group*), and run over those taps alone. In a tile the edits of a site lie
side by side at each position: they read the same of the reference.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # not installed, as with PyTorch for CPUs
    triton = None

GROUP = 16  # sites whose tiles follow one another: what they read stays in the cache
MOST_PLACES = 2**31 - 1  # that a group reads or writes: they are counted in 32 bits
LEAST_STRETCH = 16  # positions; where a dilation is smaller, tiles of one stretch would be mostly empty
MOST_STRETCHES = 16  # two begin with each tap


@dataclass(frozen=True)
class Tile:
    """Rows, columns and depth of a program's products, and Triton's settings for it."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Rectified:
    """What a rectifier reads of the reference: ``values`` ``(B * L, C)``, from the row ``row`` on for each site."""

    values: torch.Tensor
    row: torch.Tensor


@dataclass(frozen=True)
class Residual:
    """What is added: ``values`` ``(N, w, C)``, read from ``shift`` on for each site."""

    values: torch.Tensor
    shift: torch.Tensor


def why_not(device: torch.device) -> str | None:
    """Why kernels cannot run on a device; None if they can. On a CPU they run where Triton's interpreter is switched
    on, for tests.
    """
    if triton is None:
        return "Triton is not installed"
    interpreted = bool(triton.knobs.runtime.interpret) if hasattr(triton, "knobs") else False
    if device.type == "cpu":
        return None if interpreted else "a CPU runs no Triton kernels"
    if device.type != "cuda":
        return f"{device.type} runs no Triton kernels here"
    return _failure(device)


@functools.lru_cache(maxsize=16)
def _failure(device: torch.device) -> str | None:
    """Why a small product fails on a GPU: one that is too old, no C compiler for Triton's launcher."""
    try:
        x = torch.ones(1, 1, 16, device=device)
        weight, none = torch.ones(1, 16, 16, device=device), torch.zeros(1, dtype=torch.int32, device=device)
        found = convolve(x, weight, none, 1, 1, "highest")
        right = bool((found == 16).all())
    except Exception as error:  # whatever Triton, its compiler or the driver say: the other ways remain
        return f"Triton does not run here: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return None if right else "Triton computes wrong products here"


def tile_of(x: torch.dtype, channels_in: int, channels_out: int) -> Tile:
    """The tile that was the fastest on an H200 (``benchmarks/fused_tiles.py``)."""
    columns = min(128, max(16, triton.next_power_of_2(channels_out)))
    deep = 64 if x == torch.bfloat16 else 32
    depth = min(deep, max(16, triton.next_power_of_2(channels_in)))
    return Tile(128, columns, depth, 8 if columns == 128 and x == torch.bfloat16 else 4, 3)


def convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    first: torch.Tensor,
    edits: int,
    width: int,
    precision: str,
    dilation: int = 1,
    stride: int = 1,
    rectified: Rectified | None = None,
    residual: Residual | None = None,
    dtype: torch.dtype | None = None,
    stretches: tuple[int, ...] = (0,),
    tile: Tile | None = None,
) -> torch.Tensor:
    """The formula above.

    Parameters
    ----------
    x: torch.Tensor, shape=(N, w, Cin)
        Windows of differences, contiguous; ``edits`` mutants for each site.
    weight: torch.Tensor, shape=(k, Cout, Cin)
        Of the dtype of ``x``, contiguous.
    first: torch.Tensor, shape=(S,), dtype=torch.int32
        The place in ``x`` that the first tap reads for the first position of the result.
    width: int
        Positions of the result.
    precision: str
        Of products of float32: three TF32 products for ``"highest"``, whose sum errs no more than float32's; else one.
    dtype: torch.dtype or None
        Of the result; None for that of ``x``.
    stretches: tuple of int
        Where stretches of positions begin, the first at 0.

    Returns
    -------
    torch.Tensor, shape=(N, width, Cout)
    """
    n, held, cin = x.shape
    taps, cout, _ = weight.shape
    result = torch.empty(n, width, cout, dtype=dtype or x.dtype, device=x.device)
    if x.device.type == "cpu":
        x, weight = x.float(), weight.float()  # the interpreter multiplies the bits of bfloat16
    if not result.numel():
        return result
    tile = tile or tile_of(x.dtype, cin, cout)
    sites = n // edits
    largest = edits * max(held, width, 0 if residual is None else residual.values.shape[1]) * max(cin, cout)
    group = max(min(GROUP, sites, MOST_PLACES // largest), 1)
    first_tiles, begins, tiles = _stretch_tables(stretches, width, group * edits, tile.rows, x.device)
    programs = -(-sites // group) * tiles * -(-cout // tile.columns)
    with torch.cuda.device_of(x):
        fused_convolution[(programs,)](
            x,
            weight,
            result,
            x if rectified is None else rectified.values,
            x if residual is None else residual.values,
            first,
            first if rectified is None else rectified.row,
            first if residual is None else residual.shift,
            first_tiles,
            begins,
            tiles,
            sites,
            group,
            edits,
            width,
            held,
            0 if residual is None else residual.values.shape[1],
            dilation,
            STRIDE=stride,
            TAPS=taps,
            CIN=cin,
            COUT=cout,
            STRETCHES=MOST_STRETCHES,
            RECTIFIED=rectified is not None,
            RESIDUAL=residual is not None,
            PRODUCTS="tf32x3" if precision == "highest" else "tf32",
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            DEPTH=tile.depth,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return result


def stretches_of(width: int, held: int, taps: int, dilation: int, first: int) -> tuple[int, ...]:
    """Where the taps that read anything change along the ``width`` positions of a result, for windows ``held`` wide."""
    if dilation < LEAST_STRETCH or 2 * taps > MOST_STRETCHES - 1:
        return (0,)
    changes = {-first - t * dilation + end for t in range(taps) for end in (0, held)}
    found = [0]
    for place in sorted(changes):
        if found[-1] + LEAST_STRETCH <= place <= width - LEAST_STRETCH:
            found.append(place)
    return tuple(found)


@functools.lru_cache(maxsize=512)
def _stretch_tables(
    stretches: tuple[int, ...], width: int, mutants: int, rows: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """First tile (of a group) and first position of each stretch, and the number of tiles; filled up with stretches
    that no tile is of.
    """
    stops = (*stretches[1:], width)
    tiles = [0]
    for begin, stop in zip(stretches, stops, strict=True):
        tiles.append(tiles[-1] + -(-mutants * (stop - begin) // rows))
    spare = MOST_STRETCHES - len(stretches)
    first_tile = tiles[:-1] + [tiles[-1]] * spare
    return (
        torch.tensor(first_tile, dtype=torch.int32, device=device),
        torch.tensor([*stretches, *[width] * (spare + 1)], dtype=torch.int32, device=device),
        tiles[-1],
    )


if triton is not None:

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
        stretch_tile,
        stretch_begin,
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
        STRETCHES: tl.constexpr,
        RECTIFIED: tl.constexpr,
        RESIDUAL: tl.constexpr,
        PRODUCTS: tl.constexpr,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
        DEPTH: tl.constexpr,
    ):
        STRIPS: tl.constexpr = (COUT + COLUMNS - 1) // COLUMNS
        DEPTHS: tl.constexpr = (CIN + DEPTH - 1) // DEPTH
        program = tl.program_id(0)
        strip = program % STRIPS
        tile = program // STRIPS
        first_site = tile // tiles * group
        tile = tile % tiles
        known = tl.load(stretch_tile + tl.arange(0, STRETCHES))
        # the stretches that fill up the table begin where the last tile ends, so none of them is ever found
        stretch = tl.sum((known <= tile).to(tl.int32)) - 1
        begin = tl.load(stretch_begin + stretch)
        length = tl.load(stretch_begin + stretch + 1) - begin
        tile -= tl.load(stretch_tile + stretch)

        # which position, and which mutant of the group, each row of the tile is
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

        here = inside[:, None] & (columns < COUT)[None, :]
        if RECTIFIED:
            read = tl.load(site_row + site, mask=inside, other=0) + place
            value = tl.load(reference + read.to(tl.int64)[:, None] * COUT + columns[None, :], mask=here, other=0.0)
            total = tl.maximum(total + tl.minimum(value, 0.0), -tl.maximum(value, 0.0))
        if RESIDUAL:
            read = place + tl.load(site_shift + site, mask=inside, other=0)
            there = here & ((read >= 0) & (read < residual_held))[:, None]
            residual += first_mutant * residual_held * COUT
            added = tl.load(residual + (mutant * residual_held + read)[:, None] * COUT + columns[None, :], there, 0.0)
            total += added.to(tl.float32)
        result += first_mutant * width * COUT
        written = (mutant * width + place)[:, None] * COUT + columns[None, :]
        tl.store(result + written, total.to(result.dtype.element_ty), mask=here)
