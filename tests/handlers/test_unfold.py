"""The law for unfolding."""

import torch
import torch.nn.functional as F
from torch import nn

import yuzu  # noqa: F401  registers every handler
from tests.laws.bench import CHANNELS, bench, fn, laws_of


def _far(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(1, (2, 3)).transpose(2, 3) @ m.w


def _relative_shift(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """As Transformer-XL does it."""
    far = F.pad(_far(m, x), (1, 0)).reshape(len(x), 2, 26, 13)[:, :, 1:]
    return far.reshape(len(x), 2, 13, 25)[..., : m.columns].softmax(-1)


def _shift_of_joined(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """As Enformer does it."""
    far = _far(m, x)
    far = torch.cat([torch.zeros_like(far[..., :1]), far], -1)
    far = far.reshape(-1, 2, 26, 13)[:, :, 1:, :].reshape(-1, 2, 13, 25)
    return far[..., : m.columns].softmax(-1)


def unfold_cases() -> None:
    case = bench("unfold")
    for trunk in (0, 3):
        for size, step in ((3, 1), (4, 2), (2, 5), (13, 1)):
            case(f"unfold {size} by {step} trunk{trunk}", fn(lambda x, k=size, s=step: x.unfold(2, k, s).exp()), trunk)
    case("unfold n,L,C", fn(lambda x: x.transpose(1, 2).unfold(1, 4, 3).softmax(-1)), 5)
    case("unfold channels", fn(lambda x: x.unfold(1, 2, 2).amax(-1)), amax="elementwise")
    case("unfold a mask", fn(lambda x: (x > 0).unfold(2, 3, 2).double()))
    case("unfold flattened", fn(lambda x: x.flatten(1).unfold(1, 4, 4)), unfold="whole values")
    case("unfold, then a convolution by hand", fn(lambda m, x: torch.einsum("bclk,ock->bol", x.unfold(2, 3, 1), m.w).relu(), w=lambda: nn.Parameter(torch.randn(5, CHANNELS, 3))), einsum="dense")
    case("unfold cropped", fn(lambda x: x.unfold(2, 3, 1)[:, :, 2:-4].amax(-1)), amax="elementwise")
    for name, settings in {"": {}, "padded": {"padding": (0, 2)}, "dilated": {"dilation": (1, 2), "padding": (0, 1)}, "strided": {"stride": (1, 3), "padding": (0, 1)}}.items():
        case(f"F.unfold {name}", fn(lambda x, s=settings: F.unfold(x.unsqueeze(2), (1, 3), **s).relu()), 5)
        turned = {key: value[::-1] for key, value in settings.items()}
        case(f"F.unfold on the first axis {name}", fn(lambda x, s=turned: F.unfold(x.unsqueeze(3), (3, 1), **s)))
    case("F.unfold of images", fn(lambda x: F.unfold(x.unsqueeze(1), (2, 3))), im2col="whole values")
    case("F.fold", fn(lambda x: F.fold(F.unfold(x.unsqueeze(2), (1, 3)), (1, 13), (1, 3))), col2im="whole values")
    case("windows by strides", fn(lambda x: x.contiguous().as_strided((len(x), CHANNELS, 11, 3), (CHANNELS * 13, 13, 1, 1)).amax(-1)), amax="elementwise")
    case("windows by strides of two", fn(lambda x: x.contiguous().as_strided((len(x), CHANNELS, 6, 3), (CHANNELS * 13, 13, 2, 1))))
    case("windows by strides of a transposed tensor", fn(lambda x: x.transpose(1, 2).contiguous().as_strided((len(x), 5, CHANNELS, 5), (CHANNELS * 13, 2 * CHANNELS, 1, CHANNELS))))
    case("scrambled by strides", fn(lambda x: x.transpose(1, 2).contiguous().as_strided((len(x), 7, 3), (CHANNELS * 13, 2, 5))), **{"yuzu.row_strides": "whole values"})
    strides = {"yuzu.row_strides": "view"}
    for trunk in (0, 5):
        case(f"shifted by strides, trunk {trunk}", fn(lambda m, x: (x.transpose(1, 2) @ m.w[: x.shape[1]]).contiguous().as_strided((len(x), 13, 13), (13 * 25, 24, 1), 12).softmax(-1), w=lambda: nn.Parameter(torch.randn(CHANNELS, 25))), trunk, matmul="dense", **strides)
        case(f"shifted by strides, part of the positions, trunk {trunk}", fn(lambda m, x: (x.transpose(1, 2) @ m.w[: x.shape[1]]).contiguous().as_strided((len(x), 7, 3), (13 * 9, 10, 1), 3 * 9).exp(), w=lambda: nn.Parameter(torch.randn(CHANNELS, 9))), trunk, matmul="dense", **strides)
    case("shifted by strides, heads", fn(lambda m, x: (x.unflatten(1, (2, 3)).transpose(2, 3) @ m.w).contiguous().as_strided((len(x), 2, 13, 13), (2 * 13 * 25, 13 * 25, 24, 1), 12).softmax(-1), w=lambda: nn.Parameter(torch.randn(2, 3, 25))), matmul="dense", **strides)
    case("axes exchanged by strides", fn(lambda x: x.contiguous().as_strided((len(x), 13, CHANNELS), (CHANNELS * 13, 1, 13)).softmax(-1)), **strides)
    case("some channels by strides", fn(lambda x: x.contiguous().as_strided((len(x), 2, 5, 2), (CHANNELS * 13, 2 * 13, 1, 13), 4).softmax(-1)), **strides)
    case("a mask by strides", fn(lambda x: (x > 0).contiguous().as_strided((len(x), 13, CHANNELS), (CHANNELS * 13, 1, 13)).double()), only_double=True, **strides)
    case("whole values by strides", fn(lambda x: x.softmax(2).contiguous().as_strided((len(x), 13, CHANNELS), (CHANNELS * 13, 1, 13)).exp()), any="whole values", softmax="elementwise|whole values", **{"yuzu.row_strides": "whole values"})
    case("overlapping strides", fn(lambda x: x.contiguous().as_strided((len(x), 20, 30), (CHANNELS * 13, 2, 1), 3) * 2), mul="elementwise", **{"yuzu.row_strides": "whole values"})
    for columns in (13, 7):
        case(f"relative shift to {columns}", fn(_relative_shift, w=lambda: nn.Parameter(torch.randn(2, 3, 25)), columns=lambda c=columns: c), matmul="dense", any="view", **strides)
        case(f"relative shift with zeros joined, to {columns}", fn(_shift_of_joined, w=lambda: nn.Parameter(torch.randn(2, 3, 25)), columns=lambda c=columns: c), matmul="dense", **strides)
    case("relative shift of whole values", fn(lambda m, x: _relative_shift(m, x.softmax(2)) * 3, w=lambda: nn.Parameter(torch.randn(2, 3, 25)), columns=lambda: 13), matmul="dense", any="whole values", softmax="elementwise|whole values", **{"yuzu.row_strides": "whole values"})
    case("relative shift to too many", fn(_relative_shift, w=lambda: nn.Parameter(torch.randn(2, 3, 25)), columns=lambda: 14), matmul="dense", any="whole values")


(
    test_the_law_in_float64,
    test_the_law_in_float32,
    test_the_family_that_handles_it,
    test_what_does_not_read_the_reference,
) = laws_of(unfold_cases)
