"""Products and convolutions of differences with weights, in the dtype that a precision asks for."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from yuzu._engine.kernels import onednn as onednn_products

# input channels of a convolution on a CPU below which its kernel stays in float32: see `low_precision_kernel`
LEAST_LOW_PRECISION_CHANNELS = 32
# input channels of a matrix on a CPU below which converting costs more than the product: see `low_precision_matrix`
LEAST_CONVERTED_CHANNELS = 128


def matrix_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``x @ weight`` of matrices of one dtype."""
    return onednn_products.multiplied(x, weight) if onednn_products.serves(x, weight) else x @ weight


def product(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight``, multiplied in the dtype of ``weight``, which comes from `in_low_precision`. The result has the
    dtype of ``x`` or ``out``.
    """
    lower = x.to(weight.dtype)
    if out is None:
        return matrix_product(lower, weight).to(x.dtype)
    if out.dtype == weight.dtype and (onednn_products.writes(out) or not onednn_products.serves(lower, weight)):
        return torch.mm(lower, weight, out=out)
    return out.copy_(matrix_product(lower, weight))


def add_product(total: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    """``total += x @ weight``; low-precision products are summed in the total's own precision."""
    if total.dtype == weight.dtype and not onednn_products.serves(x, weight):
        total.addmm_(x, weight)
    else:
        total += matrix_product(x.to(weight.dtype), weight)


def in_low_precision(weight: torch.Tensor, precision: str) -> torch.Tensor:
    """Convert a weight to the dtype that products of this precision read."""
    return weight.to(torch.bfloat16) if precision == "medium" and weight.dtype == torch.float32 else weight


def low_precision_matrix(matrix: torch.Tensor, precision: str, result: torch.dtype) -> torch.Tensor:
    """Convert a matrix ``(Cin, Cout)`` to the dtype of low-precision products where that pays. With few channels,
    converting inputs and results takes longer than the product.
    """
    if result != matrix.dtype or matrix.shape[0] >= LEAST_CONVERTED_CHANNELS or matrix.device.type != "cpu":
        matrix = in_low_precision(matrix, precision)
    return matrix


def low_precision_kernel(kernel: torch.Tensor, precision: str) -> torch.Tensor:
    """Lay out a kernel ``(Cout, Cin / groups, k)`` for ``conv2d`` on channels-last images, in the dtype of
    low-precision products where that is safe.

    oneDNN's bfloat16 convolutions on AMX (seen in PyTorch 2.13) sum wrongly with few input channels: under 16 if
    ``Cin * k`` is a multiple of 32, and under 32 if there is also no padding and a stride of 4 or more. Few
    channels gain little, so all such kernels stay in float32.
    """
    if kernel.shape[1] >= LEAST_LOW_PRECISION_CHANNELS or kernel.device.type != "cpu":
        kernel = in_low_precision(kernel, precision)
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
