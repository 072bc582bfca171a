"""Products and convolutions of differences with weights, in the dtype that a precision asks for."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from yuzu._engine.kernels import onednn as onednn_products

LEAST_LOWERED_CHANNELS = 32
LEAST_CONVERTED_CHANNELS = 128


def matrix_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``x @ weight`` of matrices of one dtype."""
    return onednn_products.multiplied(x, weight) if onednn_products.serves(x, weight) else x @ weight


def product(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight`` in the dtype of ``weight``, which comes from `lowered`; the result in that of ``x`` or ``out``."""
    lower = x.to(weight.dtype)
    if out is None:
        return matrix_product(lower, weight).to(x.dtype)
    if out.dtype == weight.dtype and (onednn_products.writes(out) or not onednn_products.serves(lower, weight)):
        return torch.mm(lower, weight, out=out)
    return out.copy_(matrix_product(lower, weight))


def add_product(total: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    """``total += x @ weight``; lowered products are summed in the total's own precision."""
    if total.dtype == weight.dtype and not onednn_products.serves(x, weight):
        total.addmm_(x, weight)
    else:
        total += matrix_product(x.to(weight.dtype), weight)


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
