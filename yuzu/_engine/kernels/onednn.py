"""float32 products by oneDNN, on CPUs where it is faster than the BLAS behind ``@``.

PyTorch's own builds multiply float32 matrices with MKL, which leaves the wider half of the vector units of AMD's
processors unused. Their convolutions and bfloat16 products use oneDNN. PyTorch has oneDNN's float32 product too, as the
operation that its compiler uses for linear layers. A setting makes ``torch.mm`` use oneDNN as well; it reduces no
precision on processors without matrix units.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable

import torch

CLEARLY = 1.25  # times as fast: a margin, so that two runs decide alike although both products are about as fast
TRIAL_SIZES, TRIALS = (1024, 256, 256), 5  # rows, input channels, output channels; and repeats: about 2 ms in all
SETTING = "bf16"  # the value of `torch.backends.mkldnn.matmul.fp32_precision` that makes ``torch.mm`` use oneDNN
ROUNDING = 1e-6  # the relative error allowed for float32 sums; bfloat16's is about a thousand times as large
# with fewer multiply-adds, or fewer channels on either side, the overhead of a call is more than the gain
LEAST_MULTIPLY_ADDS, LEAST_CHANNELS = 3 << 20, 16
ROWS_WORTH_A_COPY = 128  # rows of ``x`` from which on oneDNN pays although it must copy the weight first


def serves(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Tell whether `multiplied` computes ``x @ weight`` faster."""
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

    A weight with gaps between its rows is copied, since oneDNN's only kernel for it is a hundred times slower.
    """
    turned = weight.mT if _dense(weight) else weight.mT.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, turned, None, "none", [], "")


def _dense(weight: torch.Tensor) -> bool:
    return weight.is_contiguous() or weight.mT.is_contiguous()


@functools.cache
def is_faster() -> bool:
    """Tell whether oneDNN is available and clearly faster here. It is tried once per process."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    x, weight = _trial()
    times: dict[Callable[..., torch.Tensor], float] = {}
    with torch.no_grad():
        for _ in range(TRIALS):  # in turn, so that a busy moment slows both
            for function in (torch.mm, multiplied):
                begin = time.perf_counter()
                function(x, weight)
                taken = time.perf_counter() - begin
                times[function] = min(times.get(function, taken), taken)
    return times[torch.mm] > CLEARLY * times[multiplied]


def writes(out: torch.Tensor) -> bool:
    """Tell whether ``torch.mm`` writes into ``out`` as fast as `multiplied` makes a new tensor."""
    return out.device.type == "cpu" and out.dtype == torch.float32 and by_setting()


@functools.cache
def by_setting() -> bool:
    """Tell whether ``torch.mm`` is clearly faster with `SETTING`, since it uses oneDNN then, and as precise as before.
    Unlike `multiplied` it writes into a given tensor, which saves a copy.

    False on processors with matrix units, on which oneDNN really multiplies in bfloat16. Elsewhere it is tried once per
    process. Without bfloat16 instructions PyTorch does not call oneDNN, and nothing is faster.
    """
    part = getattr(torch.backends.mkldnn, "matmul", None)
    matrix_units = getattr(torch.cpu, "_is_amx_tile_supported", None)
    if not hasattr(part, "fp32_precision") or matrix_units is None or matrix_units() or not is_faster():
        return False
    x, weight = _trial()
    truth, before = x.double() @ weight.double(), part.fp32_precision  # type: ignore[union-attr]
    times = {"ieee": math.inf, SETTING: math.inf}
    try:
        for _ in range(TRIALS):  # in turn, as above
            for setting in times:
                part.fp32_precision = setting  # type: ignore[union-attr]
                begin = time.perf_counter()
                found = torch.mm(x, weight)
                times[setting] = min(times[setting], time.perf_counter() - begin)
    finally:
        part.fp32_precision = before  # type: ignore[union-attr]
    exact = torch.linalg.vector_norm(found - truth) < ROUNDING * torch.linalg.vector_norm(truth)
    return bool(exact) and times["ieee"] > CLEARLY * times[SETTING]


def _trial() -> tuple[torch.Tensor, torch.Tensor]:
    rows, channels, results = TRIAL_SIZES
    generator = torch.Generator("cpu").manual_seed(0)
    sizes = ((rows, channels), (channels, results))
    x, weight = (torch.randn(s, generator=generator, dtype=torch.float32, device="cpu") for s in sizes)
    return x, weight
