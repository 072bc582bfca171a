"""Ways to run a convolution of stride 1 on windows of differences.

Every way is one function ``way(call) -> (S*A, w + reach, Cout)`` with ``reach = (k - 1) * dilation``. It convolves
windows ``(S*A, w, Cin)``, zero around them, at every output position that they reach, or only at those that are wanted.
The ways differ in how they lay out the ``w * k * Cin * Cout`` useful multiply-adds of a mutant, and so in how much
they spend on zeros and on moving data. ``applies`` returns None, or the reason why a way does not apply.

`banded`, `blocks`, `whole` and `fold` are all products with the banded (Toeplitz) weight of the window. They take
different numbers of inputs and outputs at once, and lay out the weight accordingly. They stay apart because trials
choose each of them for some layer and precision (``python benchmarks/ways.py`` counts them). `taps` is the exception:
it is a part of `windows`, and can be asked for by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from yuzu._engine.kernels.products import (
    add_product,
    convolve_rows,
    in_low_precision,
    low_precision_kernel,
    low_precision_matrix,
    matrix_product,
    product,
)
from yuzu._engine.ways.call import BLOCK_POSITIONS, FEW_CHANNELS, Call, Shape
from yuzu._engine.ways.few_output_channels import banded_few, block_of, fold_few, folded_block, folded_memory

BLOCK_COLUMNS = 2048  # the most columns of a product for several positions
# Products of single taps beat one convolution from so many channels and positions on, up to this share of multiply-adds
# that are wanted, and up to so many taps.
TAPS_CHANNELS, TAPS_WIDTH, TAPS_SHARE, MOST_TAPS = 64, 128, 0.55, 5
# `whole` may win with weights of at most so many elements, with up to so many channels (as a geometric mean of input
# and output channels), and if at least this share of the weight is not zero.
WHOLE_NUMBERS, WHOLE_CHANNELS, WHOLE_SHARE = 1 << 18, 64, 0.25
MOST_SHIFTS = 9  # taps of a depthwise convolution up to which it runs as shifted sums
WHOLE_KEPT = 2  # weights of `whole` that are kept for a layer, one for each window width


def table(call: Call) -> torch.Tensor:
    """Look up a first layer's result for one letter written over another: ``W[:, written] - W[:, overwritten]``,
    reversed along the kernel. No arithmetic.
    """
    cout, cin, k = call.kernel.shape

    def make() -> torch.Tensor:
        letters = call.kernel.flip(2).permute(1, 2, 0)  # (C, k, Cout)
        none = torch.zeros_like(letters[:1])
        rows = (letters[:, None] - torch.cat([letters, none])[None]).reshape(cin * (cin + 1), k, cout)
        if call.dilation > 1:
            spread = rows.new_zeros(rows.shape[0], call.reach + 1, cout)
            spread[:, :: call.dilation] = rows
            rows = spread
        return rows.reshape(rows.shape[0], -1).contiguous()

    assert call.codes is not None
    rows = call.derived("table", make)
    return rows.index_select(0, call.codes.reshape(-1)).view(-1, call.reach + 1, cout)


def windows(call: Call) -> torch.Tensor:
    """One convolution over all windows as a batch, channels last. It also computes zeros around narrow windows, and
    results that are not wanted; if these are most, it runs as `taps`. With a kernel of 1 it is one product.
    """
    if _mostly_unwanted(call):
        return taps(call)
    x = call.rows()
    if _is_depthwise(call):
        return _shifted_sums(call)
    if call.kernel.shape[2] == 1 and call.groups == 1:
        matrix = call.derived(
            "channels", lambda: low_precision_matrix(call.kernel[:, :, 0].T, call.run.precision, call.dtype)
        )
        flat = x.flatten(0, 1).to(matrix.dtype)
        return matrix_product(flat, matrix).to(call.dtype).view(*x.shape[:2], -1)
    kernel = call.derived("windows", lambda: low_precision_kernel(call.kernel, call.run.precision))
    return convolve_rows(x, kernel, call.reach, call.dilation, call.groups, dtype=call.dtype)


def _is_depthwise(call: Call) -> bool:
    """Tell whether each channel is convolved by itself, with few taps: there is no product to share work in."""
    cout, _, k = call.kernel.shape
    full = call.run.precision != "medium" and call.kernel.dtype == call.dtype
    return call.groups == cout == call.x.shape[3] > 1 and k <= MOST_SHIFTS and full and call.x.device.type == "cpu"


def _shifted_sums(call: Call) -> torch.Tensor:
    """One multiply-add of whole windows for each tap: for three taps a quarter of the time of PyTorch's convolution."""
    x, (_, _, k) = call.rows(), call.kernel.shape
    width, taps = x.shape[1], call.derived("shifts", lambda: call.kernel[:, 0].T.contiguous())
    result = x.new_zeros(len(x), width + call.reach, x.shape[2])
    for t in range(k):
        first = (k - 1 - t) * call.dilation
        result[:, first : first + width].addcmul_(x, taps[t])
    return result


def _mostly_unwanted(call: Call) -> bool:
    """Tell whether so few results of a convolution are wanted that `taps` is faster."""
    (cout, cin, k), width = call.kernel.shape, call.x.shape[2]
    if call.wanted is None or call.groups > 1 or min(cin, cout) < TAPS_CHANNELS or width < TAPS_WIDTH or k > MOST_TAPS:
        return False
    return sum(stop - first for _, first, stop in call.taps()) <= TAPS_SHARE * k * width


def taps(call: Call) -> torch.Tensor:
    """For each tap one product of all positions that it reads for the wanted results, added where it lands. These are
    exactly the useful multiply-adds. But each tap reads and writes the result, and rounds it if it is in low precision.
    """
    x = call.rows()
    n, _, cin = x.shape
    first, stop = call.positions
    weights = call.derived(
        "taps", lambda: in_low_precision(call.kernel.permute(2, 1, 0), call.run.precision).contiguous()
    )
    x = x.to(weights.dtype)
    result = x.new_zeros(n, stop - first, call.kernel.shape[0], dtype=call.dtype)
    for weight, (place, low, high) in zip(weights, call.taps(), strict=True):
        if high <= low:
            continue
        part, read = result[:, place + low - first : place + high - first], x[:, low:high]
        each = weight.expand(n, *weight.shape)
        if x.device.type == "cpu":  # oneDNN would get a copy of the weight for each window
            part += matrix_product(read.flatten(0, 1), weight).view(n, high - low, -1)
        elif part.dtype == weight.dtype:
            part.baddbmm_(read, each)
        else:
            part += torch.bmm(read, each)
    return result


def banded(call: Call) -> torch.Tensor:
    """For each output position one product of the inputs that it reads with the taps that read them. This is exactly
    the nonzero part of the whole window's banded (Toeplitz) weight. With few output channels it takes blocks of
    positions.
    """
    if call.kernel.shape[0] <= FEW_CHANNELS:
        return banded_few(call, wide=False)
    return _banded(call, 1)


def blocks(call: Call) -> torch.Tensor:
    """Like `banded`, for several output positions at once. The products are fewer and larger, as low-precision products
    must be to be fast, and contain some zeros. With few output channels the blocks are larger.
    """
    if call.kernel.shape[0] <= FEW_CHANNELS:
        return banded_few(call, wide=True)
    return _banded(call, _block_positions(call.kernel.shape[0]))


def _block_positions(channels: int) -> int:
    return min(BLOCK_POSITIONS, BLOCK_COLUMNS // channels)


def _banded(call: Call, block: int) -> torch.Tensor:
    x, apart = call.rows(), call.dilation
    n, w, cin = x.shape
    cout, _, k = call.kernel.shape
    width, span = w + call.reach, k + block - 1  # inputs that a block reads

    def make() -> torch.Tensor:
        taps = in_low_precision(call.kernel.permute(2, 1, 0), call.run.precision).contiguous()
        band = taps.new_zeros(span, cin, block, cout)
        for i in range(block):
            band[i : i + k, :, i] = taps
        return band.view(span * cin, block * cout)

    band = call.derived(f"banded {block}", make)
    result = x.new_empty(n, width * cout, dtype=call.dtype)
    columns = _each_phase(x.to(band.dtype), apart)
    for j in range(0, width, block):
        phase, place = j % apart, j // apart  # among the inputs of its phase
        held = (w - phase + apart - 1) // apart
        begin = place - k + 1
        low, high = max(0, begin), min(held, place + block)
        stop = min(j + block, width)
        out = result[:, j * cout : stop * cout]
        if high <= low:
            out.zero_()
            continue
        product(
            columns[phase][:, low * cin : high * cin],
            band[(low - begin) * cin : (high - begin) * cin, : (stop - j) * cout],
            out,
        )
    return result.view(n, width, cout)


def whole(call: Call) -> torch.Tensor:
    """One product of the whole window with its banded (Toeplitz) weight, zeros included. It pays if both are small,
    since nothing else has to be called, summed or moved.
    """
    x = call.rows()
    n, w, cin = x.shape
    cout, _, k = call.kernel.shape
    width = w + call.reach
    if _as_a_whole(Shape(w, k, call.dilation, cin, cout, call.groups)):  # the windows of ranges may be much wider
        return banded(call)

    def make() -> torch.Tensor:
        matrix = call.kernel.new_zeros(w, cin, width, cout)
        taps = call.kernel.flip(2).permute(1, 2, 0)
        for i in range(w):
            matrix[i, :, i : i + call.reach + 1 : max(call.dilation, 1)] = taps
        return in_low_precision(matrix.view(w * cin, width * cout), call.run.precision)

    # keyed by width: chunks in the middle of a sequence have one, those near its ends another, those of ranges any
    matrices: dict[int, torch.Tensor] = call.derived("whole", dict)
    matrix = matrices.get(w)
    if matrix is None:
        matrix = make()
        if len(matrices) >= WHOLE_KEPT:
            matrices.clear()
        matrices[w] = matrix
    return matrix_product(x.flatten(1).to(matrix.dtype), matrix).to(call.dtype).view(n, width, cout)


def _each_phase(x: torch.Tensor, apart: int) -> list[torch.Tensor]:
    """The phases of ``(N, w, C)``, each with the positions that are ``apart`` from each other: ``(N, w' * C)``."""
    if apart == 1:
        return [x.flatten(1)]
    return [x[:, phase::apart].flatten(1) for phase in range(apart)]


def fold(call: Call) -> torch.Tensor:
    """For each input position one product with all taps, summed where it lands: exactly the useful multiply-adds. With
    few output channels it takes blocks of positions.
    """
    x, apart = call.rows(), call.dilation
    n, w, cin = x.shape
    cout, _, k = call.kernel.shape
    precision = call.run.precision
    if cout <= FEW_CHANNELS:
        return fold_few(call)
    taps = call.derived(
        "fold",
        lambda: in_low_precision(call.kernel.flip(2).permute(1, 2, 0).reshape(cin, k * cout), precision).contiguous(),
    )
    # the outputs that are a dilation apart lie side by side, so one input's taps land on one contiguous run
    each = -(-(w + call.reach) // apart)
    result = x.new_empty(n, apart * each * cout, dtype=call.kernel.dtype)
    flat = x.to(taps.dtype).view(n, w * cin)
    product(flat[:, :cin], taps, out=result[:, : k * cout])
    result[:, k * cout :].zero_()
    for i in range(1, w):
        first = (i % apart * each + i // apart) * cout
        add_product(result[:, first : first + k * cout], flat[:, i * cin : (i + 1) * cin], taps)
    if apart == 1:
        return result.view(n, each, cout)
    return result.view(n, apart, each, cout).transpose(1, 2).reshape(n, each * apart, cout)[:, : w + call.reach]


Way = Callable[[Call], torch.Tensor]


@dataclass(frozen=True)
class Held:
    """The elements that a way holds: of tensors made from weights, and of one mutant's temporary tensors."""

    weights: int = 0
    of_mutant: int = 0


@dataclass(frozen=True)
class WayEntry:
    """A way, and its facts.

    A way that multiplies at every position that a window reaches cannot win if most of these are zeros. Low-precision
    products cost little beside moving their operands and results, so zeros matter less there, and a way's own sums
    more.

    Attributes
    ----------
    run: callable
    applies: callable
        Returns None, or the reason why the way does not apply to a shape.
    may_win: callable
        Tells whether the way may be the fastest for a shape, with low-precision products or without.
    exact: bool
        Its result is exact but for rounding.
    keeps_zeros: bool
        Zeros, and terms that cancel, give zeros, not rounding errors.
    held: callable
        The elements that the way holds for a shape.
    """

    run: Way
    applies: Callable[[Shape], str | None]
    may_win: Callable[[Shape, bool], bool] = lambda shape, low_precision: True
    exact: bool = True
    keeps_zeros: bool = True
    held: Callable[[Shape, bool], Held] = lambda shape, low_precision: Held()


def always(shape: Shape) -> str | None:
    """Apply to every convolution of stride 1."""
    return None


def several_taps(shape: Shape) -> str | None:
    """Apply to convolutions without groups that have more than one tap."""
    if shape.kernel == 1:
        return "a kernel of 1 is one product"
    return None if shape.groups == 1 else f"the convolution has {shape.groups} groups"


def _in_blocks(shape: Shape) -> str | None:
    if shape.few:
        wide, narrow = (block_of(shape.channels_out, shape.kernel, wide) for wide in (True, False))
        return several_taps(shape) if wide > narrow else "the banded way's blocks are as large"
    block = _block_positions(shape.channels_out)
    if shape.dilation > 1 or shape.kernel < block // 2:
        return "blocks would be mostly zeros"
    if block < 2:
        return "one position has enough channels"
    return several_taps(shape)


def _as_a_whole(shape: Shape) -> str | None:
    if _numbers_of_whole(shape) > WHOLE_NUMBERS:
        return f"the weight of the whole window has more than {WHOLE_NUMBERS} elements"
    return several_taps(shape)


def _numbers_of_whole(shape: Shape) -> int:
    reached = shape.width + (shape.kernel - 1) * shape.dilation
    return shape.width * reached * shape.channels_in * shape.channels_out


def held_by_blocks(shape: Shape, low_precision: bool, wide: bool = True) -> Held:
    """The elements held by products that take or yield several positions at once; ``wide`` for the larger blocks of few
    output channels.
    """
    kernel = shape.kernel * shape.channels_in * shape.channels_out // shape.groups
    positions = BLOCK_POSITIONS
    if shape.few:
        folded = folded_block(shape, low_precision) or 0
        positions = max(positions, block_of(shape.channels_out, shape.kernel, wide), folded)
    return Held(positions * (2 + 2 * positions // shape.kernel) * kernel)


def _held_by_fold(shape: Shape, low_precision: bool) -> Held:
    return Held(of_mutant=folded_memory(shape, low_precision) if shape.few else 0)


def memory_of_whole(shape: Shape) -> int:
    """The number of elements of the weights of `whole` that are kept."""
    return WHOLE_KEPT * _numbers_of_whole(shape) if _as_a_whole(shape) is None else 0


def _whole_may_win(shape: Shape, low_precision: bool) -> bool:
    """With few channels only: with many, products of one position are fast, and the zeros do not pay."""
    few = shape.channels_in * shape.channels_out <= WHOLE_CHANNELS**2
    return few and shape.width * shape.reached * WHOLE_SHARE <= shape.kernel


def _taps_may_win(shape: Shape, low_precision: bool) -> bool:
    """With many channels and few taps: every tap's sum is rounded to the dtype of the result."""
    return min(shape.channels_in, shape.channels_out, shape.width) >= TAPS_CHANNELS and shape.kernel <= MOST_TAPS


WAYS: dict[str, WayEntry] = {
    "windows": WayEntry(windows, always, lambda shape, low_precision: shape.reached <= (3 if low_precision else 2)),
    "taps": WayEntry(taps, several_taps, _taps_may_win),
    "fold": WayEntry(
        fold, several_taps, lambda shape, low_precision: shape.few or not low_precision, held=_held_by_fold
    ),
    "banded": WayEntry(banded, several_taps),
    "blocks": WayEntry(
        blocks, _in_blocks, lambda shape, low_precision: low_precision or shape.few, held=held_by_blocks
    ),
    "whole": WayEntry(
        whole, _as_a_whole, _whole_may_win, held=lambda shape, low_precision: Held(memory_of_whole(shape))
    ),
}
