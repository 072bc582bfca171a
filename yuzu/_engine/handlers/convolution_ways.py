"""Ways to run a convolution of stride 1 on windows of differences.

Every way is one function ``way(call) -> (S*A, w + reach, Cout)`` with ``reach = (k - 1) * dilation``: the
convolution of windows ``(S*A, w, Cin)``, zero around them, at every output position that they reach, or only at those
that are wanted. They differ in how the ``w * k * Cin * Cout`` useful multiply-adds of a mutant are laid out, and so in
how much is spent on zeros and on moving data. ``applies`` says None or why not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from yuzu._engine.window import Window

if TYPE_CHECKING:
    from yuzu._engine.run import Run

FEW_CHANNELS = 8  # up to here the folded and the banded way take several positions at once
BLOCK_CHANNELS = 16  # positions taken at once, times channels
BLOCK_POSITIONS, BLOCK_COLUMNS = 8, 2048  # at most, of a product for several positions
MOST_PRODUCTS, MOST_LOWERED_PRODUCTS = 8, 2  # of blocks, beyond which one product for all of them is faster
LEAST_LOWERED_CHANNELS = 32
LEAST_CONVERTED_CHANNELS = 128
# channels, positions and the share of multiply-adds that is wanted, for which products of taps beat one convolution
TAPS_CHANNELS, TAPS_WIDTH, TAPS_SHARE, MOST_TAPS = 64, 128, 0.55, 5


@dataclass
class Call:
    """What a way is given.

    Attributes
    ----------
    run: Run
        For tensors made from weights.
    key: hashable
        Tells the layer apart.
    x: torch.Tensor, shape=(S, A, w, Cin)
        Differences on windows.
    window: Window
        Of ``x``.
    kernel: torch.Tensor, shape=(Cout, Cin / groups, k)
    sources: sequence of torch.Tensor
        The weights that ``kernel`` was made from.
    dilation, groups: int
    codes: torch.Tensor or None, shape=(S, A)
        See `Change`: there when ``x`` is one substitution of letters.
    lowered_result: bool
        Whether the result may stay in the dtype of lowered products.
    wanted: tuple of two ints or None
        First and stop of the positions of the result, counted from its beginning, that are read; None for all.
    """

    run: Run
    key: Any
    x: torch.Tensor
    window: Window
    kernel: torch.Tensor
    sources: Sequence[torch.Tensor]
    dilation: int = 1
    groups: int = 1
    codes: torch.Tensor | None = None
    lowered_result: bool = False
    wanted: tuple[int, int] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the result."""
        return lowered(self.kernel[:0], self.run.precision).dtype if self.lowered_result else self.kernel.dtype

    @property
    def reach(self) -> int:
        return (self.kernel.shape[2] - 1) * self.dilation

    @property
    def positions(self) -> tuple[int, int]:
        """First and stop of the positions of the result that are read."""
        return self.wanted or (0, self.x.shape[2] + self.reach)

    def taps(self) -> list[tuple[int, int, int]]:
        """For each tap the position of the result that it takes the first of ``x`` to, and first and stop of what it
        reads of ``x`` for the positions that are wanted.
        """
        first, stop = self.positions
        found = []
        for place in range(self.reach, -1, -max(self.dilation, 1)):
            low = max(first - place, 0)
            found.append((place, low, max(min(stop - place, self.x.shape[2]), low)))
        return found

    def rows(self) -> torch.Tensor:
        """``x`` as ``(S*A, w, Cin)``, contiguous."""
        return self.x.reshape(-1, *self.x.shape[2:]).contiguous()

    def derived(self, way: str, make: Callable[[], Any]) -> Any:
        """Something made from the kernel, kept while the weights stay."""
        return self.run.derived((self.key, way, self.dtype), self.sources, make)


def product(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight`` in the dtype of ``weight``, which comes from `lowered`; the result in that of ``x`` or ``out``."""
    lower = x.to(weight.dtype)
    if out is None:
        return (lower @ weight).to(x.dtype)
    if out.dtype == weight.dtype:
        return torch.mm(lower, weight, out=out)
    return out.copy_(lower @ weight)


def add_product(total: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    """``total += x @ weight``; lowered products are summed in the total's own precision."""
    if total.dtype == weight.dtype:
        total.addmm_(x, weight)
    else:
        total += x.to(weight.dtype) @ weight


def lowered(weight: torch.Tensor, precision: str) -> torch.Tensor:
    """The weight in the dtype that products of this precision read."""
    return weight.to(torch.bfloat16) if precision == "medium" and weight.dtype == torch.float32 else weight


def lowered_matrix(matrix: torch.Tensor, precision: str, result: torch.dtype) -> torch.Tensor:
    """A matrix ``(Cin, Cout)`` in the dtype of lowered products where that pays: with few channels
    converting what is read and what comes out takes longer than the product.
    """
    if result != matrix.dtype or matrix.shape[0] >= LEAST_CONVERTED_CHANNELS or matrix.device.type != "cpu":
        matrix = lowered(matrix, precision)
    return matrix


def lowered_kernel(kernel: torch.Tensor, precision: str) -> torch.Tensor:
    """A kernel ``(Cout, Cin / groups, k)`` as ``conv2d`` on channels-last images takes it, in the dtype of lowered
    products where that is safe.

    oneDNN's bfloat16 convolutions on AMX (seen in PyTorch 2.13) sum wrongly with few input channels: under 16 where
    ``Cin * k`` is a multiple of 32, and under 32 where there is also no padding and a stride of 4 or more. Few
    channels gain little, so all such stay in float32.
    """
    if kernel.shape[1] >= LEAST_LOWERED_CHANNELS or kernel.device.type != "cpu":
        kernel = lowered(kernel, precision)
    return kernel.unsqueeze(2).contiguous(memory_format=torch.channels_last)


def table(call: Call) -> torch.Tensor:
    """First layer, one letter written over another: ``W[:, written] - W[:, overwritten]``, reversed along the
    kernel. No arithmetic.
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
    """One convolution over all windows as a batch, channels last. Costs the zeros around narrow windows, and what it
    yields beside what is wanted: where that is most, a product for each tap. With a kernel of 1 it is one product.
    """
    if _mostly_unwanted(call):
        return taps(call)
    x = call.rows()
    if call.kernel.shape[2] == 1 and call.groups == 1:
        matrix = call.derived(
            "channels", lambda: lowered_matrix(call.kernel[:, :, 0].T, call.run.precision, call.dtype)
        )
        flat = x.flatten(0, 1).to(matrix.dtype)
        return (flat @ matrix).to(call.dtype).view(*x.shape[:2], -1)
    kernel = call.derived("windows", lambda: lowered_kernel(call.kernel, call.run.precision))
    return convolve_rows(x, kernel, call.reach, call.dilation, call.groups, dtype=call.dtype)


def _mostly_unwanted(call: Call) -> bool:
    """Whether so little of what a convolution yields is wanted that `taps` is faster."""
    (cout, cin, k), width = call.kernel.shape, call.x.shape[2]
    if call.wanted is None or call.groups > 1 or min(cin, cout) < TAPS_CHANNELS or width < TAPS_WIDTH or k > MOST_TAPS:
        return False
    return sum(stop - first for _, first, stop in call.taps()) <= TAPS_SHARE * k * width


def taps(call: Call) -> torch.Tensor:
    """For each tap one product of all positions that it reads for what is wanted, added where it lands: exactly the
    useful multiply-adds, but the result is read, written and, where it is lowered, rounded once for each tap.
    """
    x = call.rows()
    n, _, cin = x.shape
    first, stop = call.positions
    weights = call.derived("taps", lambda: lowered(call.kernel.permute(2, 1, 0), call.run.precision).contiguous())
    x = x.to(weights.dtype)
    result = x.new_zeros(n, stop - first, call.kernel.shape[0], dtype=call.dtype)
    for weight, (place, low, high) in zip(weights, call.taps(), strict=True):
        if high <= low:
            continue
        part, each = result[:, place + low - first : place + high - first], weight.expand(n, *weight.shape)
        if part.dtype == weight.dtype:
            part.baddbmm_(x[:, low:high], each)
        else:
            part += torch.bmm(x[:, low:high], each)
    return result


def convolve_rows(
    x: torch.Tensor,
    kernel: torch.Tensor,
    padding: int,
    dilation: int,
    groups: int,
    stride: int = 1,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Convolve ``(N, w, Cin)`` with a channels-last kernel ``(Cout, Cin / groups, 1, k)``: ``(N, w', Cout)``,
    contiguous, in ``dtype`` or that of ``x``.
    """
    image = x.to(kernel.dtype).permute(0, 2, 1).unsqueeze(2)
    result = F.conv2d(image, kernel, None, (1, stride), (0, padding), (1, dilation), groups)
    return result.squeeze(2).permute(0, 2, 1).to(dtype or x.dtype).contiguous()


def banded(call: Call) -> torch.Tensor:
    """For each output position one product of the inputs that it reads with the taps that read them: of the banded
    (Toeplitz) weight of the whole window exactly the part that is not zero. Few output channels: blocks of positions.
    """
    if call.kernel.shape[0] <= FEW_CHANNELS:
        return _banded_blocks(call)
    return _banded(call, 1)


def blocks(call: Call) -> torch.Tensor:
    """The same for several output positions at once: fewer and larger products, as lowered ones need to be fast, with
    some zeros in them.
    """
    return _banded(call, _block_positions(call.kernel.shape[0]))


def _block_positions(channels: int) -> int:
    return min(BLOCK_POSITIONS, BLOCK_COLUMNS // channels)


def _banded(call: Call, block: int) -> torch.Tensor:
    x, apart = call.rows(), call.dilation
    n, w, cin = x.shape
    cout, _, k = call.kernel.shape
    width, span = w + call.reach, k + block - 1  # inputs that a block reads

    def make() -> torch.Tensor:
        taps = lowered(call.kernel.permute(2, 1, 0), call.run.precision).contiguous()
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


def _each_phase(x: torch.Tensor, apart: int) -> list[torch.Tensor]:
    """The positions of ``(N, w, C)`` that are ``apart`` from each other, side by side: ``(N, w' * C)`` a phase."""
    if apart == 1:
        return [x.flatten(1)]
    return [x[:, phase::apart].flatten(1) for phase in range(apart)]


def _banded_blocks(call: Call) -> torch.Tensor:
    """With few output channels a product yields a block of positions: a convolution of stride ``block`` whose output
    channels are the positions of a block, with a kernel that holds the layer's at every place in it. Costs some zeros.
    """
    cout, cin, k = call.kernel.shape
    block = min(BLOCK_CHANNELS // cout, k)

    def make() -> torch.Tensor:
        band = call.kernel.new_zeros(block, cout, cin, k + block - 1)
        for i in range(block):
            band[i, ..., i : i + k] = call.kernel
        return lowered_kernel(band.flatten(0, 1), call.run.precision)

    band = call.derived("blocks", make)

    def of_phase(x: torch.Tensor) -> torch.Tensor:
        width = x.shape[1] + k - 1
        ahead = -width % block  # the padding is the same on both sides: outputs begin so many positions early
        result = convolve_rows(x, band, k - 1 + ahead, 1, 1, block, dtype=call.dtype)
        return result.view(len(x), -1, cout)[:, ahead : ahead + width]

    return _by_phases(call, of_phase)


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


def fold(call: Call) -> torch.Tensor:
    """For each input position one product with all taps, summed where it lands: exactly the useful multiply-adds."""
    x, apart = call.rows(), call.dilation
    n, w, cin = x.shape
    cout, _, k = call.kernel.shape
    precision = call.run.precision
    if cout <= FEW_CHANNELS:
        return _fold_few(call)
    taps = call.derived(
        "fold", lambda: lowered(call.kernel.flip(2).permute(1, 2, 0).reshape(cin, k * cout), precision).contiguous()
    )
    # the outputs that are a dilation apart lie side by side: one input's taps land on one stretch
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


def _fold_few(call: Call) -> torch.Tensor:
    """With few output channels a product takes a block of input positions, and yields all that the block reaches. Costs
    some zeros, but products wide enough to be fast. Where blocks are many, one product takes them all.
    """
    cout, cin, k = call.kernel.shape

    def spread(name: str, block: int, room: int) -> torch.Tensor:
        def make() -> torch.Tensor:
            taps = call.kernel.new_zeros(block, cin, room, cout)
            for i in range(block):
                taps[i, :, i : i + k] = call.kernel.flip(2).permute(1, 2, 0)
            return lowered(taps.reshape(block * cin, room * cout), call.run.precision).contiguous()

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
    block = folded_block(shape, lowered(call.kernel[:0], call.run.precision).dtype != call.kernel.dtype)
    return _by_phases(call, by_products if block is None else lambda x: in_one_product(x, block))


def folded_block(shape: Shape, lowers: bool) -> int | None:
    """Input positions of a block where the folded way takes all blocks of few output channels in one product; None
    where a product for each is faster: with few blocks, and where the blocks' results are larger than what they read.
    """
    positions = BLOCK_CHANNELS // shape.channels_out
    block = max(2 * positions, BLOCK_POSITIONS) if lowers else max(positions, -(-shape.kernel // BLOCK_POSITIONS))
    block = min(block, max(shape.kernel, BLOCK_POSITIONS))
    most = MOST_LOWERED_PRODUCTS if lowers else MOST_PRODUCTS
    few = shape.width <= most * BLOCK_POSITIONS * shape.dilation
    return None if few or _steps(block, shape.kernel) * shape.channels_out > 2 * shape.channels_in else block


def folded_room(shape: Shape, lowers: bool) -> int:
    """Numbers that the results of the blocks hold, for one mutant, before they are summed."""
    block = folded_block(shape, lowers)
    if block is None:
        return 0
    return (-(-shape.width // shape.dilation) + block) * _steps(block, shape.kernel) * shape.channels_out


def _steps(block: int, kernel: int) -> int:
    """Blocks of outputs that a block of inputs reaches."""
    return -(-(block + kernel - 1) // block)


Way = Callable[[Call], torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """The sizes that decide whether a way applies, and may win: window width, kernel, channels."""

    width: int
    kernel: int
    dilation: int
    channels_in: int
    channels_out: int
    groups: int

    @property
    def few(self) -> bool:
        return self.channels_out <= FEW_CHANNELS

    @property
    def reached(self) -> float:
        """How many times its own positions a window reaches."""
        return (self.width + (self.kernel - 1) * self.dilation) / max(self.width, 1)


@dataclass(frozen=True)
class WayEntry:
    """A way, when it applies (None, or the reason why not), when it may be the fastest (with full or lowered products),
    and whether its result is exact.

    A way that multiplies at every position that a window reaches cannot win where that is mostly zeros. Lowered
    products cost little beside moving what they read and yield: zeros matter less there, and a way's own sums more.
    """

    run: Way
    applies: Callable[[Shape], str | None]
    may_win: Callable[[Shape, bool], bool] = lambda shape, lowered: True
    exact: bool = True


def always(shape: Shape) -> str | None:
    """Applies to every convolution of stride 1."""
    return None


def _several_taps(shape: Shape) -> str | None:
    if shape.kernel == 1:
        return "a kernel of 1 is one product"
    return None if shape.groups == 1 else f"the convolution has {shape.groups} groups"


def _in_blocks(shape: Shape) -> str | None:
    if shape.channels_out <= FEW_CHANNELS:
        return "with so few channels the banded way takes blocks, too"
    block = _block_positions(shape.channels_out)
    if shape.dilation > 1 or shape.kernel < block // 2:
        return "blocks would be mostly zeros"
    if block < 2:
        return "one position has enough channels"
    return _several_taps(shape)


def _taps_may_win(shape: Shape, lowered: bool) -> bool:
    """With many channels, and few taps: their sums are rounded to the dtype of the result."""
    return min(shape.channels_in, shape.channels_out, shape.width) >= TAPS_CHANNELS and shape.kernel <= MOST_TAPS


WAYS: dict[str, WayEntry] = {
    "windows": WayEntry(windows, always, lambda shape, lowered: shape.reached <= (3 if lowered else 2)),
    "taps": WayEntry(taps, _several_taps, _taps_may_win),
    "fold": WayEntry(fold, _several_taps, lambda shape, lowered: shape.few or not lowered),
    "banded": WayEntry(banded, _several_taps),
    "blocks": WayEntry(blocks, _in_blocks, lambda shape, lowered: lowered),
}
