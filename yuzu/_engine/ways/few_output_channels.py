"""The banded and the folded way of `convolution_ways` where a convolution has few output channels: products for one
position would be narrow, and slow, so they take several at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from yuzu._engine.kernels.products import add_product, convolve_rows, in_low_precision, low_precision_kernel
from yuzu._engine.ways.call import BLOCK_POSITIONS, Call, Shape

BLOCK_CHANNELS = 16  # positions taken at once, times channels
WIDE_BLOCK_CHANNELS = 32  # of the way of blocks: more zeros, but a kernel that some processors run far faster
MOST_PRODUCTS, MOST_LOW_PRECISION_PRODUCTS = 8, 2  # of blocks, beyond which one product for all of them is faster


def block_of(channels: int, kernel: int, wide: bool) -> int:
    """Positions that a product of `banded_few` yields."""
    return min((WIDE_BLOCK_CHANNELS if wide else BLOCK_CHANNELS) // channels, kernel)


def banded_few(call: Call, wide: bool) -> torch.Tensor:
    """A product yields a block of positions: a convolution of stride ``block`` whose output channels are the positions
    of a block, with a kernel that holds the layer's at every place in it. Costs some zeros.
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
        ahead = -width % block  # the padding is the same on both sides: outputs begin so many positions early
        result = convolve_rows(x, band, k - 1 + ahead, 1, 1, block, dtype=call.dtype)
        return result.view(len(x), -1, cout)[:, ahead : ahead + width]

    return _by_phases(call, of_phase)


def fold_few(call: Call) -> torch.Tensor:
    """A product takes a block of input positions, and yields all that the block reaches. Costs some zeros, but products
    wide enough to be fast. Where blocks are many, one product takes them all.
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
            # a product for each row of the batch, for blocks do not lie evenly over their border; the rest by itself
            blocks = x[:, : whole * block].unflatten(1, (whole, block)).flatten(2)
            parts = torch.bmm(blocks, taps.expand(n, *taps.shape))
            if rest:
                reached = (rest + k - 1) * cout
                result.view(n, -1)[:, whole * block * cout :][:, :reached] += (
                    x[:, whole * block :].flatten(1) @ taps[: rest * cin, :reached]
                )
        else:
            # it is copied for its dtype anyway
            blocks = F.pad(x.to(taps.dtype), (0, 0, 0, -w % block)).view(-1, block * cin)
            parts = (blocks @ taps).view(n, -1, steps * block * cout)
        for i in range(steps):
            result[:, i : i + parts.shape[1]] += parts[:, :, i * block * cout : (i + 1) * block * cout]
        return result.view(n, -1, cout)[:, : w + k - 1]

    shape = Shape(call.x.shape[2], k, call.dilation, cin, cout, call.groups)
    block = folded_block(shape, in_low_precision(call.kernel[:0], call.run.precision).dtype != call.kernel.dtype)
    return _by_phases(call, by_products if block is None else lambda x: in_one_product(x, block))


def _by_phases(call: Call, of_phase: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """What a way for a dilation of 1 gives for the positions that are a dilation apart, in their places."""
    x, apart = call.rows(), call.dilation
    if apart == 1:
        return of_phase(x).contiguous()
    phases = [of_phase(x[:, first::apart].contiguous()) for first in range(min(apart, x.shape[1]))]
    result = phases[0].new_zeros(len(x), x.shape[1] + call.reach, call.kernel.shape[0])
    for first, part in enumerate(phases):
        result[:, first::apart][:, : part.shape[1]] = part
    return result


def folded_block(shape: Shape, low_precision: bool) -> int | None:
    """Input positions of a block where the folded way takes all blocks of few output channels in one product; None
    where a product for each is faster: with few blocks, and where the blocks' results are larger than what they read.
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
    """Numbers that the results of the blocks hold, for one mutant, before they are summed."""
    block = folded_block(shape, low_precision)
    if block is None:
        return 0
    return (-(-shape.width // shape.dilation) + block) * _steps(block, shape.kernel) * shape.channels_out


def _steps(block: int, kernel: int) -> int:
    """Blocks of outputs that a block of inputs reaches."""
    return -(-(block + kernel - 1) // block)
