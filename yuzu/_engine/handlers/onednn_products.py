"""float32 products by oneDNN, on CPUs where it is faster than the BLAS behind ``@``.

PyTorch's own builds multiply float32 matrices with MKL, which leaves the wider half of the vector units of AMD's
processors unused, while their convolutions and bfloat16 products are oneDNN's. PyTorch has oneDNN's float32 product
too, as the operation that its compiler uses for linear layers.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

CLEARLY = 1.25  # times as fast, so that two runs decide alike where both are about as fast
TRIAL_SIZES, TRIALS = (1024, 256, 256), 5  # rows, read, and result channels: about 2 ms in all
# below so many multiply-adds, or with fewer channels on either side, what a call costs beside the product is more
LEAST_MULTIPLY_ADDS, LEAST_CHANNELS = 3 << 20, 16
ROWS_WORTH_A_COPY = 128  # of ``x``, for a weight that has to be copied first


def serves(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `multiplied` gives ``x @ weight`` faster."""
    rows, channels = x.shape
    return (
        x.dtype == weight.dtype == torch.float32
        and min(channels, weight.shape[1]) >= LEAST_CHANNELS
        and rows * weight.numel() >= LEAST_MULTIPLY_ADDS
        and (rows >= ROWS_WORTH_A_COPY or _dense(weight))
        and x.device.type == "cpu"
        and getattr(torch.backends.mkldnn, "enabled", True)
        and is_faster()
    )


def multiplied(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``x @ weight`` of ``(N, Cin)`` and ``(Cin, Cout)``, float32.

    A weight with gaps between its rows is copied: oneDNN has only a reference kernel for it, a hundred times slower.
    """
    turned = weight.mT if _dense(weight) else weight.mT.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, turned, None, "none", [], "")


def _dense(weight: torch.Tensor) -> bool:
    return weight.is_contiguous() or weight.mT.is_contiguous()


@functools.cache
def is_faster() -> bool:
    """Whether oneDNN is there, and clearly faster here; tried once a process."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    rows, channels, results = TRIAL_SIZES
    sizes = ((rows, channels), (channels, results))
    x, weight = (torch.ones(size, dtype=torch.float32, device="cpu") for size in sizes)
    times: dict[Callable[..., torch.Tensor], float] = {}
    with torch.no_grad():
        for _ in range(TRIALS):  # in turn, so that a busy moment meets both
            for function in (torch.mm, multiplied):
                begin = time.perf_counter()
                function(x, weight)
                taken = time.perf_counter() - begin
                times[function] = min(times.get(function, taken), taken)
    return times[torch.mm] > CLEARLY * times[multiplied]
