"""The law for unfolding."""

import torch
import torch.nn.functional as F
from torch import nn

import yuzu  # noqa: F401  registers every handler
from tests.laws.bench import CHANNELS, bench, fn, laws_of


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
    case("scrambled by strides", fn(lambda x: x.transpose(1, 2).contiguous().as_strided((len(x), 7, 3), (CHANNELS * 13, 2, 5))), as_strided="naive")


(
    test_the_law_in_float64,
    test_the_law_in_float32,
    test_the_family_that_handles_it,
    test_what_does_not_read_the_reference,
) = laws_of(unfold_cases)
