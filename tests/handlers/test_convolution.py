"""The law for convolutions of all geometries."""

import functools
import itertools
import random

import torch
import torch.nn.functional as F
from torch import nn

import yuzu  # noqa: F401  registers every handler
from tests.laws.bench import CHANNELS, bench, fn, laws_of


def conv_cases() -> None:
    """Kernel, padding, stride, dilation and groups: a fixed draw from their product, and what is special."""
    case = bench("convolution")
    settings = list(itertools.product((1, 2, 3, 4, 7), (0, 1, 3, "same"), (1, 1, 2, 3), (1, 1, 2, 3), (1, 1, 2, 6), (0, 1, 3, 5)))
    for k, p, s, d, g, trunk in random.Random(0).sample(settings, 50):
        cin = CHANNELS if trunk else 4
        g = g if cin % g == 0 else 2
        s = 1 if p == "same" else s
        p = min(p, 2 * d * (k - 1)) if p != "same" else p
        case(f"k{k} p{p} s{s} d{d} g{g} trunk{trunk}",
             functools.partial(nn.Conv1d, cin, 2 * g, k, stride=s, padding=p, dilation=d, groups=g), trunk)  # fmt: skip
    case("no bias", lambda: nn.Conv1d(CHANNELS, 3, 3, padding=1, bias=False))
    case("depthwise then pointwise", lambda: nn.Sequential(nn.Conv1d(CHANNELS, 12, 5, padding=2, groups=6), nn.Conv1d(12, 3, 1)))
    case("padding valid", lambda: nn.Conv1d(CHANNELS, 3, 4, padding="valid"))
    for sizes in ((4, 0), (0, 4), (1, 3), (-2, 1), (-3, -4), (9, 9)):
        case(f"after F.pad {sizes}", fn(lambda m, x, sizes=sizes: m.conv(F.pad(x, sizes)), conv=lambda: nn.Conv1d(CHANNELS, 3, 4)))
    case("functional", fn(lambda m, x: F.conv1d(x, m.weight, padding=2), weight=lambda: torch.randn(3, CHANNELS, 5, dtype=torch.float64)))
    case("more padding than kernel", lambda: nn.Conv1d(CHANNELS, 3, 2, padding=5))
    case("stride beyond kernel", lambda: nn.Conv1d(CHANNELS, 3, 2, stride=5))
    for k, out in ((4, 9), (5, 12), (7, 40), (9, 300), (4, 900), (12, 12)):
        case(f"k{k} to {out} channels", functools.partial(nn.Conv1d, CHANNELS, out, k, padding=k // 2))
    for k, d, trunk in ((2, 2, 0), (3, 2, 1), (3, 3, 5), (5, 2, 5), (4, 5, 1)):
        case(f"k{k} d{d} to 12 channels, trunk {trunk}", functools.partial(nn.Conv1d, CHANNELS if trunk else 4, 12, k, padding=d, dilation=d), trunk)
    case("after pool", lambda: nn.Sequential(nn.MaxPool1d(3), nn.ReLU(), nn.Conv1d(CHANNELS, 3, 3, padding=1)))
    case("batch folded into groups", fn(lambda m, x: F.conv1d(x.reshape(1, -1, 13), m.w.repeat(x.shape[0], 1, 1), groups=x.shape[0]).view(
        x.shape[0], 3, -1), w=lambda: nn.Parameter(torch.randn(3, CHANNELS, 3))), conv1d="convolution|naive", reshape="naive", view="naive")  # fmt: skip

    case = bench("convolution in two dimensions")
    for k, p, s, d, g in ((3, 1, 1, 1, 1), (4, 0, 2, 1, 1), (3, 2, 1, 2, 1), (5, 2, 1, 1, 2), (2, 1, 3, 1, 1)):
        cin = CHANNELS
        case(f"n,C,1,L k{k} s{s} g{g}", fn(lambda m, x: m.conv(x.unsqueeze(2)).squeeze(2), conv=functools.partial(
            nn.Conv2d, cin, 4, (1, k), stride=(1, s), padding=(0, p), dilation=(1, d), groups=g)))  # fmt: skip
        case(f"n,C,L,1 k{k} s{s} g{g}", fn(lambda m, x: m.conv(x.unsqueeze(3)).squeeze(3), conv=functools.partial(
            nn.Conv2d, cin, 4, (k, 1), stride=(s, 1), padding=(p, 0), dilation=(d, 1), groups=g)))  # fmt: skip
        case(f"n,1,C,L k{k} s{s}", fn(lambda m, x: m.conv(x.unsqueeze(1)), conv=functools.partial(
            nn.Conv2d, 1, 3, (cin, k), stride=(1, s), padding=(0, p), dilation=(1, d))))  # fmt: skip
        case(f"n,1,L,C k{k} s{s}", fn(lambda m, x: m.conv(x.transpose(1, 2).unsqueeze(1)), conv=functools.partial(
            nn.Conv2d, 1, 3, (k, cin), stride=(s, 1), padding=(p, 0), dilation=(d, 1))))  # fmt: skip
    case("first layer n,C,1,L", fn(lambda m, x: m.conv(x.unsqueeze(2)), conv=lambda: nn.Conv2d(4, 3, (1, 5), padding=(0, 2))), 0)
    case("first layer n,1,C,L", fn(lambda m, x: m.conv(x.unsqueeze(1)), conv=lambda: nn.Conv2d(1, 3, (4, 5), padding=(0, 2))), 0)
    case("padding same", fn(lambda m, x: m.conv(x.unsqueeze(2)), conv=lambda: nn.Conv2d(CHANNELS, 3, (1, 4), padding="same")))
    case("stride number", fn(lambda m, x: m.conv(x.unsqueeze(2)), conv=lambda: nn.Conv2d(CHANNELS, 3, (1, 4), stride=2)))
    case("mixes rows only in part", fn(lambda m, x: m.conv(x.unsqueeze(1)), conv=lambda: nn.Conv2d(1, 3, (3, 5), padding=(1, 2))),
         conv2d="whole values")  # fmt: skip
    case("a pointwise kernel", fn(lambda m, x: m.conv(x.unflatten(1, (3, 2))), conv=lambda: nn.Conv2d(3, 4, 1)))
    case("twice", fn(lambda m, x: m.b(F.relu(m.a(x.unsqueeze(1)))), a=lambda: nn.Conv2d(1, 5, (CHANNELS, 3), padding=(0, 1)),
                     b=lambda: nn.Conv2d(5, 2, (1, 3), padding=(0, 1))))  # fmt: skip
    case("both axes padded", fn(lambda m, x: m.conv(x.unsqueeze(2)), conv=lambda: nn.Conv2d(CHANNELS, 3, (3, 3), padding=1)),
         conv2d="whole values")  # fmt: skip
    case("one-dimensional after conv2d", fn(lambda m, x: m.b(m.a(x.unsqueeze(2)).flatten(2)), a=lambda: nn.Conv2d(CHANNELS, 5, (1, 3)),
                                            b=lambda: nn.Conv1d(5, 2, 3)))  # fmt: skip

    case = bench("transposed convolution")
    for k, s, p, o, d, g in ((3, 1, 1, 0, 1, 1), (4, 2, 1, 0, 1, 1), (2, 2, 0, 0, 1, 1), (5, 3, 2, 1, 1, 2), (3, 2, 4, 1, 2, 1), (2, 4, 0, 2, 1, 1)):
        case(f"k{k} s{s} p{p} o{o} d{d} g{g}", functools.partial(nn.ConvTranspose1d, CHANNELS, 2 * g, k, stride=s, padding=p,
                                                                output_padding=o, dilation=d, groups=g))  # fmt: skip
    case("after letters", lambda: nn.ConvTranspose1d(4, 3, 4, stride=2, padding=1), 0)
    case("down and up", lambda: nn.Sequential(nn.Conv1d(CHANNELS, 5, 3, stride=2, padding=1), nn.ReLU(), nn.ConvTranspose1d(5, 3, 4, stride=2)))
    case("after mean", fn(lambda m, x: m.up(x.mean(2, keepdim=True)), up=lambda: nn.ConvTranspose1d(CHANNELS, 3, 4)))

    case = bench("shorter than the receptive field", length=5)
    for k, d in ((3, 1), (9, 1), (5, 3)):
        case(f"k{k} d{d}", functools.partial(nn.Conv1d, CHANNELS, 3, k, dilation=d, padding=(k - 1) * d // 2), 5)
        case(f"letters k{k} d{d}", functools.partial(nn.Conv1d, 4, 3, k, dilation=d, padding=(k - 1) * d // 2), 0)
    case("many channels", functools.partial(nn.Conv1d, CHANNELS, 12, 9, padding=4), 5)
    case("strided", lambda: nn.Conv1d(CHANNELS, 3, 5, stride=2, padding=4))
    case("one output", lambda: nn.Conv1d(CHANNELS, 3, 5))
    case("pool to one", lambda: nn.MaxPool1d(5), 1)
    case("wide average", lambda: nn.AvgPool1d(4, stride=1, padding=2))
    case("dilated stack", lambda: nn.Sequential(*[m for d in (1, 2, 4) for m in (nn.Conv1d(CHANNELS, CHANNELS, 3, padding=d, dilation=d), nn.ReLU())]))
    case("flatten", lambda: nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * 5, 2)))
    case("amax", fn(lambda x: x.amax(2)))

    case = bench("one position", length=3)
    case("crop to one", fn(lambda x: x[:, :, 1:2]))
    case("valid conv to one", lambda: nn.Sequential(nn.Conv1d(CHANNELS, 3, 3), nn.ReLU(), nn.Conv1d(3, 2, 1)))


(
    test_the_law_in_float64,
    test_the_law_in_float32,
    test_the_family_that_handles_it,
    test_what_does_not_read_the_reference,
) = laws_of(conv_cases)
