"""Ways to run a convolution of stride 1 on windows of differences.

Every way is one function ``way(call) -> (S*A, w + reach, Cout)`` with ``reach = (k - 1) * dilation``: the
convolution of windows ``(S*A, w, Cin)``, zero around them, at every output position that they reach. They
differ in how the ``w * k * Cin * Cout`` useful multiply-adds of a mutant are laid out, and so in how much is
spent on zeros and on moving data. ``applies`` says None or why not.
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

BAND_BYTES = 256 << 20  # the largest banded weight that is built where memory allows
FEW_CHANNELS = 8  # up to here the folded way keeps positions innermost
BLOCK = 4  # output positions in one matrix product of the banded way; benchmarks/convolution_ways.py


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

    @property
    def reach(self) -> int:
        return (self.kernel.shape[2] - 1) * self.dilation

    def rows(self) -> torch.Tensor:
        """``x`` as ``(S*A, w, Cin)``, contiguous."""
        return self.x.reshape(-1, *self.x.shape[2:]).contiguous()

    def derived(self, way: str, make: Callable[[], Any]) -> Any:
        """Something made from the kernel, kept while the weights stay."""
        shape = (self.x.shape[2], self.x.dtype)
        return self.run.derived((self.key, way, shape), self.sources, make)


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    precision: str,
    out: torch.Tensor | None = None,
    first_lowered: bool = False,
) -> torch.Tensor:
    """``x @ weight``, in bfloat16 with float32 results when ``precision`` is ``"medium"``; ``weight`` comes
    from `lowered`.
    """
    if first_lowered:  # the weight stands on the left
        weight = weight.to(x.dtype)
        result = x @ weight
        return result.float() if x.dtype == torch.bfloat16 else result
    if precision == "medium" and x.dtype == torch.float32:
        result = (x.to(torch.bfloat16) @ weight).float()
        return result if out is None else out.copy_(result)
    return torch.mm(x, weight, out=out) if out is not None else x @ weight


def lowered(weight: torch.Tensor, precision: str) -> torch.Tensor:
    """The weight in the dtype that products of this precision read."""
    return weight.to(torch.bfloat16) if precision == "medium" and weight.dtype == torch.float32 else weight


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
    """One convolution over all windows as a batch, channels last. Costs the zeros around narrow windows."""
    x = call.rows()
    kernel = call.derived(
        "windows",
        lambda: lowered(call.kernel, call.run.precision).unsqueeze(2).contiguous(memory_format=torch.channels_last),
    )
    return convolve_rows(x, kernel, call.reach, call.dilation, call.groups)


def convolve_rows(
    x: torch.Tensor, kernel: torch.Tensor, padding: int, dilation: int, groups: int, stride: int = 1
) -> torch.Tensor:
    """Convolve ``(N, w, Cin)`` with a channels-last kernel ``(Cout, Cin / groups, 1, k)``: ``(N, w', Cout)``,
    contiguous.
    """
    image = x.to(kernel.dtype).permute(0, 2, 1).unsqueeze(2)
    result = F.conv2d(image, kernel, None, (1, stride), (0, padding), (1, dilation), groups)
    return result.squeeze(2).permute(0, 2, 1).to(x.dtype).contiguous()


def banded(call: Call) -> torch.Tensor:
    """Matrix products of the flattened window with blocks of the banded (Toeplitz) weight, without the
    corners that are zero.
    """
    x = call.rows()
    n, w, cin = x.shape
    cout, _, k = call.kernel.shape
    width = w + call.reach
    precision = call.run.precision

    def make() -> list[tuple[int, int, int, int, torch.Tensor]]:
        taps = call.kernel.flip(2).permute(1, 2, 0)  # (Cin, k, Cout)
        band = taps.new_zeros(w, cin, width, cout)
        for i in range(w):
            band[i, :, i : i + call.reach + 1 : call.dilation] = taps
        blocks = []
        step = width if w <= BLOCK else BLOCK
        for first in range(0, width, step):
            stop = min(first + step, width)
            low, high = max(0, first - call.reach), min(w, stop)
            block = band[low:high, :, first:stop].reshape((high - low) * cin, (stop - first) * cout)
            blocks.append((first, stop, low, high, lowered(block, precision).contiguous()))
        return blocks

    flat = x.view(n, w * cin)
    result = x.new_empty(n, width * cout)
    for first, stop, low, high, block in call.derived("banded", make):
        product(flat[:, low * cin : high * cin], block, precision, out=result[:, first * cout : stop * cout])
    return result.view(n, width, cout)


def fold(call: Call) -> torch.Tensor:
    """One product with all taps, then shifted additions: exactly the useful multiply-adds, but ``k`` numbers moved for
    each.
    """
    x = call.rows()
    n, w, cin = x.shape
    cout, _, k = call.kernel.shape
    precision = call.run.precision
    if cout <= FEW_CHANNELS:
        return _fold_few(call, x)
    taps = call.derived(
        "fold", lambda: lowered(call.kernel.flip(2).permute(1, 2, 0).reshape(cin, k * cout), precision).contiguous()
    )
    parts = product(x.view(n * w, cin), taps, precision).view(n, w, k, cout)
    result = x.new_zeros(n, w + call.reach, cout)
    if w < k:
        for i in range(w):
            result[:, i : i + call.reach + 1 : call.dilation] += parts[:, i]
    else:
        for t in range(k):
            result[:, t * call.dilation : t * call.dilation + w] += parts[:, :, t]
    return result


def _fold_few(call: Call, x: torch.Tensor) -> torch.Tensor:
    """With few output channels the parts are laid out ``(k, Cout, N, w)``, so that each addition runs along memory."""
    n, w, cin = x.shape
    cout, _, k = call.kernel.shape
    precision = call.run.precision
    taps = call.derived(
        "fold", lambda: lowered(call.kernel.flip(2).permute(2, 0, 1).reshape(k * cout, cin), precision).contiguous()
    )
    parts = product(taps, x.view(n * w, cin).T, precision, first_lowered=True).view(k, cout, n, w)
    result = x.new_zeros(cout, n, w + call.reach)
    for t in range(k):
        result[:, :, t * call.dilation : t * call.dilation + w] += parts[t]
    return result.permute(1, 2, 0).contiguous()


Way = Callable[[Call], torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """The sizes that decide whether a way applies: window width, kernel, channels."""

    width: int
    kernel: int
    dilation: int
    channels_in: int
    channels_out: int
    groups: int
    itemsize: int = 4
    room: int = BAND_BYTES

    @property
    def band_bytes(self) -> int:
        """What the banded weight takes."""
        out = self.width + (self.kernel - 1) * self.dilation
        return self.width * self.channels_in * out * self.channels_out * self.itemsize


@dataclass(frozen=True)
class WayEntry:
    """A way, when it applies (None, or the reason why not), and whether its result is exact."""

    run: Way
    applies: Callable[[Shape], str | None]
    exact: bool = True


def always(shape: Shape) -> str | None:
    """Applies to every convolution of stride 1."""
    return None


def _banded_applies(shape: Shape) -> str | None:
    if shape.groups != 1:
        return f"the convolution has {shape.groups} groups"
    return None if shape.band_bytes <= shape.room else f"the banded weight would take {shape.band_bytes >> 20} MB"


def _fold_applies(shape: Shape) -> str | None:
    return None if shape.groups == 1 else f"the convolution has {shape.groups} groups"


WAYS: dict[str, WayEntry] = {
    "windows": WayEntry(windows, always),
    "banded": WayEntry(banded, _banded_applies),
    "fold": WayEntry(fold, _fold_applies),
}
