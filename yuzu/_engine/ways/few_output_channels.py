"""The banded and the folded way for convolutions with few output channels. Products for one position would be narrow
and slow, so these take several positions at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from yuzu._engine.kernels.products import add_product, convolve_rows, in_low_precision, low_precision_kernel
from yuzu._engine.ways.call import BLOCK_POSITIONS, Call, Shape

BLOCK_CHANNELS = 16  # positions taken at once, times output channels
WIDE_BLOCK_CHANNELS = 32  # the same for the way `blocks`: more zeros, but some processors run this kernel far faster
# products of blocks beyond which one product for all of them is faster
MOST_PRODUCTS, MOST_LOW_PRECISION_PRODUCTS = 16, 2


def block_of(channels: int, kernel: int, wide: bool) -> int:
    """The number of positions that a product of `banded_few` yields."""
    return min((WIDE_BLOCK_CHANNELS if wide else BLOCK_CHANNELS) // channels, kernel)


def banded_few(call: Call, wide: bool) -> torch.Tensor:
    """Products that each yield a block of positions: a convolution of stride ``block`` whose output channels are the
    positions of a block. Its kernel holds the layer's kernel at every place in the block, and some zeros.
    """
    cout, cin, k = call.kernel.shape
    block = block_of(cout, k, wide)

    def make() -> torch.Tensor:
        band = call.kernel.new_zeros(block, cout, cin, k + block - 1)
        for i in range(block):
            band[i, ..., i : i + k] = call.kernel
        return low_precision_kernel(band.flatten(0, 1), call.run.precision)

    band = call.derived(f"blocks {block}", make)

    def of_phase(x: torch.Tensor) -> torch.Tensor:
        width = x.shape[1] + k - 1
        ahead = -width % block  # padding is the same on both sides, so outputs begin that many positions early
        result = convolve_rows(x, band, k - 1 + ahead, 1, 1, block, dtype=call.dtype)
        return result.view(len(x), -1, cout)[:, ahead : ahead + width]

    return _by_phases(call, of_phase)


def fold_few(call: Call) -> torch.Tensor:
    """Products that each take a block of input positions, and yield all outputs that the block reaches. They contain
    some zeros, but are wide enough to be fast. If there are many blocks, one product takes them all.
    """
    cout, cin, k = call.kernel.shape

    def spread(name: str, block: int, outputs: int) -> torch.Tensor:
        def make() -> torch.Tensor:
            taps = call.kernel.new_zeros(block, cin, outputs, cout)
            for i in range(block):
                taps[i, :, i : i + k] = call.kernel.flip(2).permute(1, 2, 0)
            return in_low_precision(taps.reshape(block * cin, outputs * cout), call.run.precision).contiguous()

        return call.derived(name, make)

    def by_products(x: torch.Tensor) -> torch.Tensor:
        n, w, _ = x.shape
        block = BLOCK_POSITIONS
        taps = spread("few", block, block + k - 1)
        flat = x.to(taps.dtype).view(n, w * cin)
        result = x.new_zeros(n, (w + k - 1) * cout, dtype=call.kernel.dtype)
        for i in range(0, w, block):
            held = min(block, w - i)
            reached = (held + k - 1) * cout
            add_product(
                result[:, i * cout : i * cout + reached],
                flat[:, i * cin : (i + held) * cin],
                taps[: held * cin, :reached],
            )
        return result.view(n, w + k - 1, cout)

    def in_one_product(x: torch.Tensor, block: int) -> torch.Tensor:
        n, w, _ = x.shape
        steps = _steps(block, k)
        taps = spread("few, in one", block, steps * block)
        whole, rest = divmod(w, block)
        result = x.new_zeros(n, whole + bool(rest) + steps - 1, block * cout, dtype=call.kernel.dtype)
        if x.dtype == taps.dtype:
            # one product for each row of the batch, since blocks do not cross rows; the rest of a row by itself
            blocks = x[:, : whole * block].unflatten(1, (whole, block)).flatten(2)
            parts = torch.bmm(blocks, taps.expand(n, *taps.shape))
            if rest:
                reached = (rest + k - 1) * cout
                result.view(n, -1)[:, whole * block * cout :][:, :reached] += (
                    x[:, whole * block :].flatten(1) @ taps[: rest * cin, :reached]
                )
        else:
            # the conversion copies it anyway, so padding is free
            blocks = F.pad(x.to(taps.dtype), (0, 0, 0, -w % block)).view(-1, block * cin)
            parts = (blocks @ taps).view(n, -1, steps * block * cout)
        for i in range(steps):
            result[:, i : i + parts.shape[1]] += parts[:, :, i * block * cout : (i + 1) * block * cout]
        return result.view(n, -1, cout)[:, : w + k - 1]

    shape = Shape(call.x.shape[2], k, call.dilation, cin, cout, call.groups)
    block = folded_block(shape, in_low_precision(call.kernel[:0], call.run.precision).dtype != call.kernel.dtype)
    return _by_phases(call, by_products if block is None else lambda x: in_one_product(x, block))


def _by_phases(call: Call, of_phase: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Run a way for a dilation of 1 on the positions that are a dilation apart, phase by phase, and interleave the
    results.
    """
    x, apart = call.rows(), call.dilation
    if apart == 1:
        return of_phase(x).contiguous()
    phases = [of_phase(x[:, first::apart].contiguous()) for first in range(min(apart, x.shape[1]))]
    result = phases[0].new_zeros(len(x), x.shape[1] + call.reach, call.kernel.shape[0])
    for first, part in enumerate(phases):
        result[:, first::apart][:, : part.shape[1]] = part
    return result


def folded_block(shape: Shape, low_precision: bool) -> int | None:
    """The number of input positions of a block, if the folded way takes all blocks of few output channels in one
    product. None if a product for each block is faster: with few blocks, or if the blocks' results are more than twice
    as large as their inputs.
    """
    positions = BLOCK_CHANNELS // shape.channels_out
    block = (
        max(2 * positions, BLOCK_POSITIONS) if low_precision else max(positions, -(-shape.kernel // BLOCK_POSITIONS))
    )
    block = min(block, max(shape.kernel, BLOCK_POSITIONS))
    most = MOST_LOW_PRECISION_PRODUCTS if low_precision else MOST_PRODUCTS
    few = shape.width <= most * BLOCK_POSITIONS * shape.dilation
    return None if few or _steps(block, shape.kernel) * shape.channels_out > 2 * shape.channels_in else block


def folded_memory(shape: Shape, low_precision: bool) -> int:
    """The number of elements of one mutant's blocks of results, before they are summed."""
    block = folded_block(shape, low_precision)
    if block is None:
        return 0
    return (-(-shape.width // shape.dilation) + block) * _steps(block, shape.kernel) * shape.channels_out


def _steps(block: int, kernel: int) -> int:
    """The number of output blocks that an input block reaches."""
    return -(-(block + kernel - 1) // block)
