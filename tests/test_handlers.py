"""The law that every handler obeys, over the registry of operations.

Each case is a small module around an operation, behind a convolution (or nothing) so that windows of several widths come in. All cases of
one bench are captured as one model, run for edits at the left edge, in the middle, at the right edge, everywhere, in two sequences, on an
``N``, on a soft column and three positions wide, and every node's change is compared with running its operation on the mutants, minus
running it on the reference. Each case also says which family must have handled each operation, so that nothing is silently naive.
"""

import functools
import itertools
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_models import Chunk, Fn, Laboratory, chunks, laboratory_sequences, settle, tensors_of
from torch import nn

import yuzu  # noqa: F401  registers every handler
from yuzu._engine.graph import Graph, Node, Ref, Result
from yuzu._engine.handlers import registered
from yuzu._engine.handlers.convolution import Convolution
from yuzu._engine.run.run import Reference
from yuzu._engine.ways.compressed_sensing import Sensing
from yuzu._engine.ways.convolution import WAYS

CHANNELS = 6  # after a case's first convolution; divisible by 2 and 3

# ---- cases ---------------------------------------------------------------------------------------------------------------------------------

# the family that handles each operation, where a case does not say otherwise; "elementwise" for what is not listed
USUAL = {
    **dict.fromkeys(["conv1d", "conv2d", "conv_transpose1d"], "convolution"),
    **dict.fromkeys(["max_pool1d", "max_pool2d", "max_pool1d_with_indices", "max_pool2d_with_indices", "avg_pool1d", "avg_pool2d"], "pool"),
    **dict.fromkeys(["linear", "matmul", "mm", "addmm", "einsum"], "dense"),
    **dict.fromkeys(["add", "sub", "rsub", "cat", "stack", "concat"], "merge"),
    **dict.fromkeys(
        ["permute", "transpose", "unsqueeze", "squeeze", "view", "reshape", "flatten", "unflatten", "slice", "select", "pad",
         "constant_pad_nd", "unfold", "im2col", "gather", "yuzu.index_of_rows", "flip", "expand", "_unsafe_view", "upsample_nearest1d", "index", "index_select", "repeat", "tile", "repeat_interleave"], "view"
    ),
    **dict.fromkeys(["mul", "add"], "elementwise|merge"),  # a product of two mutated values is a merge, a sum of different dtypes is not
    **dict.fromkeys(["to", "_to_copy", "type_as"], "view|elementwise|whole values"),
    **dict.fromkeys(["sum", "mean", "amax", "amin", "max", "min", "yuzu.sum_of_slice", "yuzu.mean_of_slice"], "reduce"),
    **dict.fromkeys(["adaptive_avg_pool1d", "adaptive_max_pool1d"], "pool"),
    **dict.fromkeys(["group_norm", "instance_norm", "scaled_dot_product_attention", "baddbmm"], "whole values"),
}  # fmt: skip


@dataclass
class Case:
    """An operation to put to the law.

    ``build`` makes its module; ``trunk`` is the kernel of the convolution before it (0: it reads the letters themselves); ``families`` names
    the family for operations where it is not the usual one, ``"naive"`` among them, and ``"a|b"`` for either. ``only_double``: its graph
    has a dtype in it, or ties, and is not run in float32.
    """

    name: str
    build: Callable[[], nn.Module]
    trunk: int = 3
    families: dict[str, str] = field(default_factory=dict)
    only_double: bool = False


@dataclass
class Bench:
    """Cases that are captured together: length of the sequence, and which of the `extras` they read."""

    length: int = 13
    extras: tuple[str, ...] = ()
    cases: list[Case] = field(default_factory=list)


BENCHES: dict[str, Bench] = {}


def bench(name: str, length: int = 13, extras: tuple[str, ...] = ()) -> Callable[..., None]:
    """Open a bench; what is returned puts a case on it."""
    made = BENCHES[name] = Bench(length, extras)

    def case(label: str, build: Callable[[], Any], trunk: int = 3, only_double: bool = False, **families: str) -> None:
        made.cases.append(Case(label, build, trunk, families, only_double))

    return case


def fn(function: Callable[..., Any], **parts: Any) -> Callable[[], nn.Module]:
    """A builder of a module from a function; ``parts`` are builders of its submodules and tensors."""
    return lambda: Fn(function, **{name: part() for name, part in parts.items()})


def extras_for(names: tuple[str, ...], length: int) -> tuple[torch.Tensor, ...]:
    """Other inputs of two rows, in the shapes that operands come in."""
    made = torch.Generator().manual_seed(5)
    shapes = {"channel": (CHANNELS, 1), "whole": (CHANNELS, length), "position": (1, length), "flat": (5,), "number": ()}
    places = {"place": torch.tensor([5, 11]), "places": torch.tensor([[0, 12, 5], [7, 7, 3]]), "span": torch.tensor([[4, 0, 12, 6, 5, 7], [9, 8, 12, 1, 0, 9]])}
    return tuple(places[n] if n in places else torch.rand(2, *shapes[n], dtype=torch.float64, generator=made) + 0.5 for n in names)


class Branch(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        k = case.trunk
        self.trunk = nn.Conv1d(4, CHANNELS, k, padding=k // 2) if k else nn.Identity()
        self.operation = case.build()

    def forward(self, x: torch.Tensor, *extras: torch.Tensor) -> Any:
        return self.operation(self.trunk(x), *extras)


class Branches(nn.Module):
    def __init__(self, cases: list[Case]) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        for case in cases:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(zlib.crc32(case.name.encode()))
                branch = Branch(case)
                settle(branch)
            self.branches.append(branch)

    def forward(self, x: torch.Tensor, *extras: torch.Tensor) -> Any:
        return [branch(x, *extras) for branch in self.branches]


# -- convolutions

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


# -- pools and reductions

def pool_cases() -> None:
    for length in (13, 16):
        case = bench(f"pool {length}", length)
        for trunk in (1, 3) if length == 13 else (3,):
            for k, s, p, d, ceil in ((2, 2, 0, 1, False), (3, 3, 0, 1, True), (4, 4, 2, 1, False), (3, 1, 1, 1, False), (4, 3, 2, 1, True),
                                     (2, 5, 0, 1, False), (3, 2, 1, 2, True), (2, 5, 1, 1, True)):  # fmt: skip
                name = f"k{k} s{s} p{p} d{d} ceil{ceil:d} trunk{trunk}"
                case(f"max {name}", functools.partial(nn.MaxPool1d, k, s, p, d, ceil_mode=ceil), trunk)
                if d == 1:
                    case(f"average {name}", functools.partial(nn.AvgPool1d, k, s, p, ceil), trunk)
                    case(f"average without padding {name}", functools.partial(nn.AvgPool1d, k, s, p, ceil, count_include_pad=False), trunk)
        case("max of letters", lambda: nn.MaxPool1d(4), 0)
        case("average of letters", lambda: nn.AvgPool1d(4, 2, 1), 0)
        case("max 2d n,C,1,L", fn(lambda x: F.max_pool2d(x.unsqueeze(2), (1, 3), (1, 2))))
        case("max 2d n,C,L,1", fn(lambda x: F.max_pool2d(x.unsqueeze(3), (3, 1), ceil_mode=True)))
        case("average 2d", fn(lambda x: F.avg_pool2d(x.unsqueeze(2), (1, 4), (1, 3), (0, 2))))
        case("average 2d divisor", fn(lambda x: F.avg_pool2d(x.unsqueeze(2), (1, 4), (1, 3), (0, 2), divisor_override=3)))
        case("average 2d no padding counted", fn(lambda x: F.avg_pool2d(x.unsqueeze(3), (4, 1), (3, 1), (2, 0), True, False)))
        case("pool over channels", fn(lambda x: F.max_pool1d(x.transpose(1, 2), 2)), max_pool1d="whole values",
             max_pool1d_with_indices="whole values")  # fmt: skip
        case("pool over both", fn(lambda x: F.max_pool2d(x.unsqueeze(1), 2)), max_pool2d="whole values", max_pool2d_with_indices="whole values")
        case("twice", lambda: nn.Sequential(nn.MaxPool1d(2), nn.ReLU(), nn.AvgPool1d(3, 1, 1)))
        case("indices read", fn(lambda x: F.max_pool1d(x, 2, return_indices=True)[1].double()), only_double=True,
             max_pool1d_with_indices="naive", getitem="naive", _to_copy="naive", to="naive", max_pool1d="naive", squeeze="naive",
             unsqueeze="naive", max_pool2d_with_indices="naive")  # fmt: skip
        case("lp pool", lambda: nn.LPPool1d(2, 3, 2))
        for size in (1, 4, 5, 13):
            whole = "pool" if length % size == 0 and size > 1 else "reduce" if size == 1 else "whole values"
            case(f"adaptive average {size}", functools.partial(nn.AdaptiveAvgPool1d, size), adaptive_avg_pool1d=whole, mean="reduce")
            case(f"adaptive max {size}", functools.partial(nn.AdaptiveMaxPool1d, size), adaptive_max_pool1d=whole)

    case = bench("reduce")
    for trunk in (0, 3):
        for name, function in {
            "sum": torch.sum, "mean": torch.mean, "amax": torch.amax, "amin": torch.amin, "logsumexp": torch.logsumexp, "var": torch.var,
            "std": torch.std,
        }.items():  # fmt: skip
            for axis, keep in ((2, False), (2, True), (1, False), (1, True), ((1, 2), False))[:: 1 if trunk else 2]:
                family = {"sum": "reduce", "mean": "reduce"}.get(name, "elementwise" if axis == 1 else "whole values")
                family = "reduce" if name in ("amax", "amin") and axis == 2 else family
                case(f"{name} {axis} keep{keep:d} trunk{trunk}", fn(lambda x, f=function, a=axis, k=keep: f(x, dim=a, keepdim=k)), trunk, **{name: family})
    case("max over positions", fn(lambda x: x.max(2).values))
    case("max over positions keepdim", fn(lambda x: x.max(2, keepdim=True)[0]))
    case("min over positions", fn(lambda x: x.min(-1)[0]))
    case("max over channels", fn(lambda x: x.max(1)[0]), max="elementwise")
    case("min over channels keepdim", fn(lambda x: x.min(1, keepdim=True)[0]), min="elementwise")
    case("prod over channels", fn(lambda x: x.prod(1)), prod="elementwise")
    case("prod over positions", fn(lambda x: x.prod(2)), prod="whole values")
    case("norm over channels", fn(lambda x: x.norm(dim=1)), linalg_vector_norm="elementwise", norm="elementwise")
    case("norm over positions", fn(lambda x: torch.linalg.vector_norm(x, dim=2)), linalg_vector_norm="whole values")
    case("normalize", fn(lambda x: F.normalize(x, dim=1)), linalg_vector_norm="elementwise")
    case("var without correction", fn(lambda x: x.var(1, unbiased=False)), var="elementwise")
    case("mean after flatten", fn(lambda x: x.flatten(1).mean(1)), mean="whole values")
    for trunk in (0, 3):
        cuts = {"middle": slice(2, -3), "end": slice(-5, 100), "one": slice(6, 7), "all but one": slice(1, None)}
        for name, cut in cuts.items():
            case(f"mean of {name} trunk{trunk}", fn(lambda x, c=cut: x[:, :, c].mean(2, keepdim=True)), trunk)
            case(f"sum of {name} and channels trunk{trunk}", fn(lambda x, c=cut: x[:, :, c].sum((1, 2))), trunk)
    case("mean of some channels", fn(lambda x: x[:, 1:4].mean(1)))
    case("mean of some channels at all positions", fn(lambda x: x[:, 1:4].mean((1, 2))))
    case("sum of some channels at some positions", fn(lambda x: x[:, 1:4, 3:-2].sum((1, 2))))
    case("sum of nothing", fn(lambda x: x[:, :, 5:5].sum(2)))
    case("sum from beyond the end", fn(lambda x: x[:, :, 40:].sum(2)))
    case("sum of channels from beyond their end", fn(lambda x: x[:, 40:].sum((1, 2))))
    case("sum from before the beginning", fn(lambda x: x[:, :, -40:5].sum(2)))
    case("mean of every other", fn(lambda x: x[:, :, ::2].mean(2)))
    case("mean of some and all of them", fn(lambda x: (lambda y: y.mean(2, keepdim=True) + y)(x[:, :, 2:-3])))
    case("mean of some flattened", fn(lambda x: x.flatten(1)[:, 5:].mean(1)), **{"yuzu.mean_of_slice": "whole values", "slice": "whole values"})
    case("sum of some counts", fn(lambda x: (x > 0)[:, :, 2:].sum(2).double()), **{"yuzu.sum_of_slice": "whole values"})
    case("mean of some along a line", fn(lambda x: x[:, 0][:, 2:-1].mean(1)))
    case("sum of counts", fn(lambda x: (x > 0).sum(2).double()), sum="whole values")
    case("sum of integers", fn(lambda x: (x > 0).long().sum(2).double()), sum="reduce|whole values")
    case("mean of integers over channels", fn(lambda x: (x > 0).long().sum(1).double()), sum="reduce|elementwise")
    case("any", fn(lambda x: (x > 0.5).any(2).double()), any="whole values", to="whole values", _to_copy="whole values")
    case("pooled attention", fn(lambda m, x: (lambda y: (y * m.logits(y).softmax(3)).sum(3))(
        x[:, :, :12].unflatten(2, (4, 3))), logits=lambda: nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False)))  # fmt: skip
    case("sum over split positions", fn(lambda x: x[:, :, 1:].reshape(x.shape[0], CHANNELS, 6, 2).sum(-1)))
    case("max over split positions", fn(lambda x: x[:, :, 1:].reshape(x.shape[0], CHANNELS, 6, 2).amax(-1)), amax="elementwise")
    case("mean twice", fn(lambda x: x.mean(1).mean(1)))
    case("sum then linear", fn(lambda m, x: m.fc(x.sum(2)), fc=lambda: nn.Linear(CHANNELS, 3)))
    case("sum over three axes", fn(lambda x: x.unsqueeze(1).sum((1, 2, 3))))
    case("cumsum over channels", fn(lambda x: x.cumsum(1)))
    case("cumsum over positions", fn(lambda x: x.cumsum(2)), cumsum="whole values")


# -- elementwise

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.LeakyReLU, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish,
    nn.Sigmoid, nn.Tanh, nn.Mish, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink,
)  # fmt: skip


def elementwise_cases() -> None:
    case = bench("activations")
    for activation in ACTIVATIONS:
        case(activation.__name__, activation)
    case("GELU after flatten", lambda: nn.Sequential(nn.Flatten(), nn.GELU(), nn.Linear(13 * CHANNELS, 2)))
    case("SiLU after flatten L,C", fn(lambda x: F.silu(x.transpose(1, 2).flatten(1))))
    case("GELU tanh", lambda: nn.GELU(approximate="tanh"))
    case("exp", fn(torch.exp))
    case("ReLU in place", lambda: nn.Sequential(nn.BatchNorm1d(CHANNELS), nn.ReLU(inplace=True), nn.Conv1d(CHANNELS, 2, 3)))
    case("ReLU of letters", nn.ReLU, 0)
    case("softmax that turns over", fn(lambda x: (torch.softmax(20 * x, 1), torch.log_softmax(20 * x, 1), torch.softmax(20 * x, 2))),
         softmax="elementwise|whole values")  # fmt: skip
    case("large arguments", fn(lambda x: (torch.sigmoid(40 * x), torch.tanh(30 * x), torch.exp(8 * x), F.softplus(50 * x))))
    case("relu on rows", fn(lambda x: F.relu(x.sum(2) - 1)))
    case("sigmoid on rows", fn(lambda x: torch.sigmoid(x.sum(2) - 1).tanh().exp()))
    case("PReLU", nn.PReLU)
    case("PReLU for each channel", lambda: nn.PReLU(CHANNELS))
    case("PReLU on rows", fn(lambda m, x: m.slope(x.sum(2)), slope=lambda: nn.PReLU(CHANNELS)), _prelu_kernel="whole values", prelu="whole values")
    case("dropout", lambda: nn.Sequential(nn.Dropout(), nn.Dropout1d(), nn.AlphaDropout(), nn.Identity(), nn.ReLU()))
    case("clamp", fn(lambda x: x.clamp(-0.2, 0.4)))
    case("clamp min", fn(lambda x: x.clamp_min(0.1) + x.clamp(max=0.3)))
    case("where", fn(lambda x: torch.where(x > 0.1, x, -2 * x)))
    case("where scalar", fn(lambda x: torch.where(x > 0.1, x, 0.5)))
    case("mask multiply", fn(lambda x: x * (x > 0)))
    case("mask of floats", fn(lambda x: (x > 0).double() * (x < 0.5).to(x.dtype)), _to_copy="elementwise")
    case("comparisons", fn(lambda x: ((x >= 0.1) & (x != 0.3) | ~(x <= 0.7)).double()), _to_copy="elementwise")
    case("mask output", fn(lambda x: x > 0.2))
    case("mask sliced", fn(lambda x: (x > 0)[:, :, 2:-3].double()))
    case("mask padded", fn(lambda x: F.pad((x > 0).double(), (2, 3))), _to_copy="elementwise")
    case("mask transposed", fn(lambda x: (x > 0).transpose(1, 2).double()))
    case("mask flipped", fn(lambda x: (x > 0).flip(2).double()))
    case("mask reshaped", fn(lambda x: (x > 0).unflatten(1, (2, 3)).double()))
    case("mask split", fn(lambda x: (x > 0)[:, :, :12].unflatten(2, (4, 3)).double()))
    case("mask flattened", fn(lambda x: (x > 0).flatten(1).double()))
    case("mask strided", fn(lambda x: (x > 0)[:, :, ::3].double()))
    case("mask of one position", fn(lambda x: (x > 0)[:, :, 4].double()), select="whole values")
    case("mask expanded", fn(lambda x: (x[:, :1] > 0).expand(-1, 3, -1) * x[:, :3]))
    case("mask repeated", fn(lambda x: (x > 0).repeat_interleave(2, 1).double()))
    case("argmax", fn(lambda x: x.argmax(1).double()))
    case("argmax kept", fn(lambda x: x.argmin(1, keepdim=True) * x))
    case("argmax over positions", fn(lambda x: x.argmax(2).double()), only_double=True, argmax="whole values", to="whole values", _to_copy="whole values")
    case("any and all", fn(lambda x: (x > 0).any(1, keepdim=True) * x + (x[:, :2] > 0).all(1).unsqueeze(1)))
    case("any over positions", fn(lambda x: (x > 0.4).any(2).double()), any="whole values", to="whole values", _to_copy="whole values")
    case("tokens", fn(lambda m, x: m.table(x.argmax(1)).transpose(1, 2), table=lambda: nn.Embedding(4, 3)), 0)
    case("tokens of k-mers", fn(lambda m, x: m.table(_kmers(x)).transpose(1, 2).relu(), table=lambda: nn.Embedding(64, 3)), 0)
    case("tokens of some", fn(lambda m, x: m.table(x.argmax(1)[:, ::2].flip(1)), table=lambda: nn.Embedding(4, 3)), 0)
    case("tokens before a linear layer", fn(lambda m, x: m.fc(m.table(x.argmax(1)).flatten(1)), table=lambda: nn.Embedding(4, 3), fc=lambda: nn.Linear(39, 2)), 0)
    case("rows of a matrix", fn(lambda m, x: m.table[x.argmax(1)].transpose(1, 2).relu(), table=lambda: torch.linspace(-1, 1, 12).view(4, 3).double()), 0, only_double=True, index="elementwise")
    case("rows of rows", fn(lambda m, x: m.table[x.mean(2).argmax(1)], table=lambda: torch.linspace(-1, 1, 18).view(6, 3).double()), only_double=True,
         argmax="whole values", index="whole values")  # fmt: skip
    case("one-hot of tokens", fn(lambda m, x: m.conv(F.one_hot(x.argmax(1), 5).transpose(1, 2)[:, :4].to(x.dtype)), conv=lambda: nn.Conv1d(4, 3, 4)), 0, only_double=True)
    case("tokens of whole values", fn(lambda m, x: m.table(x.mean(2).argmax(1)), table=lambda: nn.Embedding(CHANNELS, 3)),
         argmax="whole values", embedding="whole values")  # fmt: skip
    case("mask moved on", fn(lambda x: x.transpose(1, 2) * (x.sum(1) > 0).unsqueeze(2) + (x[:, 0] > 0).flip(1)[:, :, None]), 5)
    case("integer arithmetic", fn(lambda x: ((x * 10).round().long() % 3 - 1).double()), sub="elementwise", _to_copy="elementwise")
    whole = {"_to_copy": "elementwise"}
    case("masks multiplied", fn(lambda x: ((x > 0.1) * (x.flip(1) > 0)).double()), mul="elementwise", **whole)
    case("whole numbers multiplied", fn(lambda x: ((x * 9).long() * (x * 5).long().flip(1)).double()), mul="elementwise", any="whole values")
    case("whole numbers rectified", fn(lambda x: F.relu((x * 9).long()).double()), **whole)
    case("whole numbers by a matrix", fn(lambda x: ((x * 9).long() @ torch.arange(26).view(13, 2)).double()), matmul="naive", _to_copy="elementwise|naive")
    case("whole numbers convolved", fn(lambda x: F.conv1d((x * 9).long(), torch.ones(2, CHANNELS, 3, dtype=torch.long)).double()),
         conv1d="convolution|naive", _to_copy="elementwise|naive")  # fmt: skip
    case("divided by whole numbers", fn(lambda x: x / torch.arange(3, 16)))
    case("divided by whole numbers for each channel", fn(lambda x: x / torch.arange(3, 3 + CHANNELS)[:, None]))
    case("masked fill", fn(lambda x: x.masked_fill(x > 0.2, -1.0)))
    case("masked softmax", fn(lambda x: x.masked_fill(x > 0.2, float("-inf")).softmax(1)))
    case("masked softmax over positions", fn(lambda x: x.masked_fill(x > 0.4, float("-inf")).softmax(2)), softmax="whole values",
         _softmax="whole values")  # fmt: skip
    case("mask by constant, softmax", fn(lambda m, x: x.masked_fill(m.mask, float("-inf")).softmax(2),
         mask=lambda: torch.arange(13) % 3 == 0), softmax="whole values", _softmax="whole values")  # fmt: skip
    case("log of rectified", fn(lambda x: torch.log(F.relu(x)).exp()))
    case("log", fn(lambda x: torch.log(x.abs() + 0.1)))
    case("powers", fn(lambda x: x**2 + x.abs() ** 0.5 + (x * x + 1).rsqrt() + 1 / (x + 9)))
    case("rounding", fn(lambda x: x.floor() + (3 * x).round() + x.sign() + x.trunc() + x.frac()))
    case("in place", fn(lambda x: x.mul_(2).add_(1).clamp_(min=0.5).relu_()))
    case("in place on a slice", fn(_half_relu), cat="merge", copy="elementwise", slice_scatter="naive", clone="naive")
    case("minimum and maximum", fn(lambda x: torch.maximum(x[:, :3], x[:, 3:]) - torch.minimum(x[:, :3], 2 * x[:, 3:])))
    case("atan2", fn(lambda x: torch.atan2(x[:, :3], x[:, 3:])))
    case("polynomial of branches", fn(lambda m, x: torch.addcmul(x, m.conv(x), x, value=0.5), conv=lambda: nn.Conv1d(CHANNELS, CHANNELS, 5, padding=2)))
    case("lerp", fn(lambda m, x: torch.lerp(x, m.conv(x), 0.3), conv=lambda: nn.Conv1d(CHANNELS, CHANNELS, 5, padding=2)))
    case("division of branches", fn(lambda m, x: x / (m.conv(x) ** 2 + 1), conv=lambda: nn.Conv1d(CHANNELS, CHANNELS, 5, padding=2)))
    case("scalar over", fn(lambda x: 2.0 / (x + 9)))
    case("floor division", fn(lambda x: torch.div(x, 0.3, rounding_mode="floor")))
    case("negative", fn(lambda x: -x))
    case("negative integers", fn(lambda x: -(x > 0).long()))
    case("nan_to_num", fn(lambda x: torch.nan_to_num(x / x.clamp(min=0))), only_double=True)


def _kmers(x: torch.Tensor) -> torch.Tensor:
    letters = x.argmax(1)
    return 16 * letters[:, :-2] + 4 * letters[:, 1:-1] + letters[:, 2:]


def _half_relu(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, :3] = F.relu(y[:, :3])
    return y


def norm_cases() -> None:
    case = bench("norms")
    case("batch norm", lambda: nn.BatchNorm1d(CHANNELS))
    case("batch norm of letters", lambda: nn.BatchNorm1d(4), 0)
    case("batch norm plain", lambda: nn.BatchNorm1d(CHANNELS, affine=False))
    case("batch norm after flatten", lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(CHANNELS * 13)))
    case("batch norm on rows", fn(lambda m, x: m.norm(x.sum(2)), norm=lambda: nn.BatchNorm1d(CHANNELS)))
    case("batch norm over positions as channels", fn(lambda m, x: m.norm(x.transpose(1, 2)), norm=lambda: nn.BatchNorm1d(13)))
    case("batch norm 2d", fn(lambda m, x: m.norm(x.unsqueeze(2)), norm=lambda: nn.BatchNorm2d(CHANNELS)))
    case("batch norm 2d n,1,C,L", fn(lambda m, x: m.norm(x.unsqueeze(1)), norm=lambda: nn.BatchNorm2d(1)))
    case("layer norm over channels", fn(lambda m, x: m.norm(x.transpose(1, 2)), norm=lambda: nn.LayerNorm(CHANNELS)))
    case("layer norm over positions", lambda: nn.LayerNorm(13), layer_norm="whole values", native_layer_norm="whole values")
    case("layer norm over both", lambda: nn.LayerNorm((CHANNELS, 13)), layer_norm="whole values", native_layer_norm="whole values")
    case("layer norm on rows", fn(lambda m, x: m.norm(x.sum(2)), norm=lambda: nn.LayerNorm(CHANNELS)), layer_norm="whole values")
    case("layer norm by hand", fn(lambda x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()))
    case("rms norm", fn(lambda m, x: m.norm(x.transpose(1, 2)), norm=lambda: nn.RMSNorm(CHANNELS)))
    case("group norm", lambda: nn.GroupNorm(2, CHANNELS))
    case("instance norm", lambda: nn.InstanceNorm1d(CHANNELS, affine=True))
    case("instance norm with statistics", lambda: nn.InstanceNorm1d(CHANNELS, track_running_stats=True))
    case("instance norm 2d with statistics", fn(lambda m, x: m.norm(x.unsqueeze(2)), norm=lambda: nn.InstanceNorm2d(CHANNELS, track_running_stats=True)))
    case("instance norm with statistics and weights", lambda: nn.InstanceNorm1d(CHANNELS, affine=True, track_running_stats=True))
    case("local response norm", lambda: nn.LocalResponseNorm(3), avg_pool2d="whole values", mul="merge|whole values", add="merge|whole values",
         pow="whole values", div="whole values")  # fmt: skip
    case("softmax over channels", lambda: nn.Softmax(1))
    case("log softmax over channels", lambda: nn.LogSoftmax(1))
    case("softmax over positions", lambda: nn.Softmax(2), softmax="whole values", _softmax="whole values")
    case("log softmax over positions", lambda: nn.LogSoftmax(-1), log_softmax="whole values", _log_softmax="whole values")
    case("softmax in float32", fn(lambda x: F.softmax(x, 1, dtype=torch.float64)))
    case("GLU", lambda: nn.GLU(1))
    case("GLU over positions", fn(lambda x: F.glu(x[:, :, :12], 2)), glu="whole values")


# -- merges

def merge_cases() -> None:
    conv = lambda k: lambda: nn.Conv1d(CHANNELS, CHANNELS, k, padding=k // 2)  # noqa: E731
    case = bench("merge")
    two = {"a": conv(3), "b": conv(7)}
    for trunk in (1, 5):
        case(f"add branches trunk{trunk}", fn(lambda m, x: m.a(x) + m.b(x), **two), trunk)
        case(f"residual trunk{trunk}", fn(lambda m, x: x + F.relu(m.b(x)), **two), trunk)
        case(f"subtract trunk{trunk}", fn(lambda m, x: m.a(x) - m.b(x), **two), trunk)
        case(f"multiply trunk{trunk}", fn(lambda m, x: m.a(x) * m.b(x), **two), trunk, mul="merge")
        case(f"cat channels trunk{trunk}", fn(lambda m, x: torch.cat([m.a(x), x, m.b(x)], 1), **two), trunk)
        case(f"cat positions trunk{trunk}", fn(lambda m, x: torch.cat([m.a(x), x, m.b(x)], 2), **two), trunk)
        case(f"stack trunk{trunk}", fn(lambda m, x: torch.stack([m.a(x), m.b(x)], 1), **two), trunk)
    case("stack last", fn(lambda m, x: torch.stack([m.a(x), m.b(x)], -1), **two))
    case("stack between", fn(lambda m, x: torch.stack([m.a(x), m.b(x)], 2), **two))
    case("stack rows", fn(lambda x: torch.stack([x.sum(2), x.mean(2)], 1)))
    case("stack of letters of different layout", fn(lambda x: torch.stack([x.sum(1), x.amax(1)], 1)), amax="elementwise")
    case("add scaled", fn(lambda m, x: torch.add(m.a(x), m.b(x), alpha=-3), **two))
    case("subtract scaled", fn(lambda m, x: torch.sub(x, m.b(x), alpha=2), **two))
    case("rsub", fn(lambda x: torch.rsub(x, 3)))
    case("rsub branch", fn(lambda m, x: torch.rsub(x, m.b(x)), **two))
    case("from a number", fn(lambda x: 1 - x))
    case("twice itself", fn(lambda x: x + x))
    case("itself minus itself", fn(lambda x: (x - x, x - 0.5 * x, x * x)))
    case("broadcast over channels", fn(lambda m, x: x + m.b(x)[:, :1], **two))
    case("broadcast product", fn(lambda m, x: x[:, :1] * m.b(x), **two), mul="merge")
    case("broadcast over positions", fn(lambda x: x + x.mean(2, keepdim=True)))
    case("product over positions", fn(lambda x: x * x.amax(2, keepdim=True)), mul="merge")
    case("squeeze and excite", fn(lambda m, x: x * m.gate(x), gate=lambda: nn.Sequential(
        nn.AdaptiveAvgPool1d(1), nn.Conv1d(CHANNELS, 3, 1), nn.ReLU(), nn.Conv1d(3, CHANNELS, 1), nn.Sigmoid())), mul="merge",
        adaptive_avg_pool1d="reduce")  # fmt: skip
    case("squeeze and excite by linear", fn(lambda m, x: x * m.gate(x.mean(2)).unsqueeze(-1), gate=lambda: nn.Sequential(
        nn.Linear(CHANNELS, 3), nn.ReLU(), nn.Linear(3, CHANNELS), nn.Sigmoid())), mul="merge")  # fmt: skip
    case("cat of letters and convolution", fn(lambda m, x: torch.cat([x, m.c(x)], 1), c=lambda: nn.Conv1d(4, 2, 5, padding=2)), 0)
    case("cat with itself", fn(lambda x: torch.cat([x, x.flip(2)], 2)))
    case("cat rows", fn(lambda x: torch.cat([x.sum(2), x.amax(2), x.flatten(1)], 1)))
    case("cat of windows and rows", fn(lambda x: torch.cat([x, x.softmax(2)], 1)), softmax="whole values", _softmax="whole values")
    case("cat along positions of windows and rows", fn(lambda x: torch.cat([x, x.mean(2, keepdim=True)], 2)))
    case("cat of flattened", fn(lambda m, x: torch.cat([m.a(x).flatten(1), m.b(x).flatten(1)], 1), **two), cat="whole values")
    case("cat of different pools", fn(lambda x: torch.cat([F.max_pool1d(x, 3, 1, 1), F.avg_pool1d(x, 5, 1, 2)], 1)))
    case("cropped residual", fn(lambda m, x: x[:, :, 4:-4] + m.c(m.c(x)), c=lambda: nn.Conv1d(CHANNELS, CHANNELS, 3, dilation=2)))
    case("both strands", fn(lambda m, x: m.net(x) + m.net(x.flip([1, 2])).flip(2), net=lambda: nn.Conv1d(4, 3, 5, padding=1)), 0)
    case("both strands, larger", fn(lambda m, x: torch.maximum(m.net(x), m.net(x.flip([1, 2]))), net=lambda: nn.Sequential(
        nn.Conv1d(4, 5, 5), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(20, 2))), 0, maximum="whole values")  # fmt: skip
    case("both strands pooled", fn(lambda m, x: (m.net(x) + m.net(x.flip([1, 2]))) / 2, net=lambda: nn.Sequential(
        nn.Conv1d(4, 5, 5), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(5, 2))), 0, adaptive_max_pool1d="reduce")  # fmt: skip
    case("u-net", fn(lambda m, x: F.interpolate(m.a(F.max_pool1d(x[:, :, :12], 2)), scale_factor=2) + x[:, :, :12], **two))
    case("zeros like", fn(lambda x: x + torch.zeros_like(x) + torch.full_like(x, 2.0) * x + torch.ones_like(x)))
    case("cat with zeros", fn(lambda x: torch.cat([x, torch.zeros_like(x)[:, :2]], 1)))
    case("cat positions with zeros", fn(lambda x: torch.cat([x.new_zeros(x.shape[0], CHANNELS, 3), x], 2)))
    case("cat with new full", fn(lambda x: torch.cat([x, torch.full((x.shape[0], 1, 13), 0.5, dtype=x.dtype)], 1)))
    case("cat with ones", fn(lambda x: torch.cat([x, torch.ones(x.shape[0], 2, 13, dtype=x.dtype), x.new_full((x.shape[0], 1, 13), 3.0), x.new_ones(x.shape[0], 1, 13)], 1)))
    case("stack with zeros", fn(lambda x: torch.stack([x, torch.zeros_like(x)], 1)))
    case("class token", fn(lambda m, x: torch.cat([m.token.expand(x.shape[0], -1, -1), x], 2),
         token=lambda: nn.Parameter(torch.randn(1, CHANNELS, 1))))  # fmt: skip
    case("cat with constant", fn(lambda m, x: torch.cat([x, m.c.expand(x.shape[0], -1, -1)], 1), c=lambda: torch.randn(1, 2, 13, dtype=torch.float64)))
    case("einsum on channels", fn(lambda m, x: torch.einsum("bcl,cd->bdl", x, m.w), w=lambda: nn.Parameter(torch.randn(CHANNELS, 3))))
    case("einsum over positions", fn(lambda m, x: torch.einsum("bcl,ld->bcd", x, m.w), w=lambda: nn.Parameter(torch.randn(13, 3))))
    case("einsum of a mask", fn(lambda m, x: torch.einsum("bcl,c->bcl", x > 0.2, m.w), w=lambda: nn.Parameter(torch.randn(CHANNELS))), einsum="elementwise")
    case("einsum of a rare mask", fn(lambda m, x: torch.einsum("bcl,l->bcl", x > 1.0, m.w), w=lambda: nn.Parameter(torch.randn(13))), einsum="whole values")
    case("einsum of whole numbers", fn(lambda x: torch.einsum("bcl->bc", (x > 0).long()).double()), einsum="whole values", sum="reduce|whole values")
    case("einsum gram", fn(lambda x: torch.einsum("bcl,bdl->bcd", x, x)), einsum="whole values")
    case("einsum by position", fn(lambda m, x: torch.einsum("bcl,cl->bl", x, m.w), w=lambda: nn.Parameter(torch.randn(CHANNELS, 13))))
    case("matmul right", fn(lambda m, x: x.transpose(1, 2) @ m.w, w=lambda: nn.Parameter(torch.randn(CHANNELS, 3))))
    case("matmul over positions", fn(lambda m, x: x @ m.w, w=lambda: nn.Parameter(torch.randn(13, 3))))
    case("matmul left", fn(lambda m, x: m.w @ x, w=lambda: nn.Parameter(torch.randn(3, CHANNELS))), matmul="whole values")
    case("bmm", fn(lambda x: torch.bmm(x, x.transpose(1, 2))), bmm="whole values")
    case("matmul of branches", fn(lambda m, x: torch.matmul(m.a(x).transpose(1, 2), m.b(x)), **two), matmul="whole values")

    case = bench("constants")
    for shape in ((1, CHANNELS, 13), (CHANNELS, 1), (13,), (1, 13), (1, 1, 13), (1, CHANNELS, 1), (CHANNELS, 13), (1,), ()):
        parameter = {"p": lambda shape=shape: nn.Parameter(torch.rand(shape) + 0.5)}
        case(f"add {shape}", fn(lambda m, x: x + m.p, **parameter))
        case(f"multiply {shape}", fn(lambda m, x: x * m.p, **parameter))
        case(f"from {shape}", fn(lambda m, x: (m.p - x) / m.p, **parameter))
        case(f"maximum {shape}", fn(lambda m, x: torch.maximum(x, m.p), **parameter))
        case(f"compare {shape}", fn(lambda m, x: torch.where(x > m.p / 4, x, m.p), **parameter))
    case("positions by hand", fn(lambda x: x + torch.arange(13, dtype=x.dtype) / 13))
    case("tensor attribute", lambda: WithAttributes())
    case("made in forward", fn(lambda x: x * torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]], dtype=x.dtype)))
    case("python numbers", fn(lambda x: 2 * x / 3 - 1.5 + x * True))
    case("n,L,C with (L, C)", fn(lambda m, x: x.transpose(1, 2) * m.p + m.p, p=lambda: nn.Parameter(torch.rand(13, CHANNELS))))
    case("n,L,C with (C,)", fn(lambda m, x: x.transpose(1, 2) * m.p + m.p, p=lambda: nn.Parameter(torch.rand(CHANNELS))))
    case("flat with table", fn(lambda m, x: x.flatten(1) * m.p + m.p, p=lambda: nn.Parameter(torch.rand(13 * CHANNELS))))
    case("flat with table, relu", fn(lambda m, x: F.relu(x.transpose(1, 2).flatten(1) - m.p), p=lambda: nn.Parameter(torch.rand(13 * CHANNELS))))
    case("n,C,1,L with (C,1,L)", fn(lambda m, x: torch.sigmoid(x.unsqueeze(2) * m.p), p=lambda: nn.Parameter(torch.rand(CHANNELS, 1, 13))))
    case("n,1,C,L with (C, L)", fn(lambda m, x: torch.maximum(x.unsqueeze(1), m.p), p=lambda: nn.Parameter(torch.rand(CHANNELS, 13))))
    case("n,1,C,L with (L,)", fn(lambda m, x: torch.maximum(x.unsqueeze(1), m.p), p=lambda: nn.Parameter(torch.rand(13))))
    case("embedding", lambda: Positions())

    case = bench("other inputs", extras=("channel", "whole", "position", "flat", "number"))
    for i, name in enumerate(("channel", "whole", "position")):
        case(f"add {name}", fn(lambda x, *extra, i=i: x + extra[i]))
        case(f"multiply {name}", fn(lambda x, *extra, i=i: x * extra[i]))
        case(f"divide {name}", fn(lambda x, *extra, i=i: x / extra[i]))
        case(f"minimum {name}", fn(lambda x, *extra, i=i: torch.minimum(x, extra[i] - 0.7)))
        case(f"where {name}", fn(lambda x, *extra, i=i: torch.where(extra[i] > 0.9, x.exp(), -x)))
        case(f"after pool {name}", fn(lambda x, *extra, i=i: F.max_pool1d(x * extra[i] + extra[i], 2)))
        case(f"on rows {name}", fn(lambda x, *extra, i=i: (x.softmax(2) + extra[i]) * extra[i]), softmax="whole values", _softmax="whole values")
        case(f"transposed {name}", fn(lambda x, *extra, i=i: torch.tanh(x.transpose(1, 2) * extra[i].transpose(1, 2))))
    case("cat channels", fn(lambda x, c, w, p, f, n: torch.cat([x, w, p], 1)))
    case("cat positions", fn(lambda x, c, w, p, f, n: torch.cat([c, x, w], 2)))
    case("cat flat", fn(lambda m, x, c, w, p, f, n: m.fc(torch.cat([x.flatten(1), f], 1)), fc=lambda: nn.Linear(13 * CHANNELS + 5, 2)), cat="whole values")
    case("cat rows", fn(lambda x, c, w, p, f, n: torch.cat([f, x.mean(2)], 1)))
    case("stack", fn(lambda x, c, w, p, f, n: torch.stack([w, x], 1)))
    case("number by view", fn(lambda x, c, w, p, f, n: x * n.view(-1, 1, 1) + n[:, None, None]))
    case("film", fn(lambda m, x, c, w, p, f, n: x * m.scale(f).unsqueeze(2) + m.shift(f)[:, :, None], scale=lambda: nn.Linear(5, CHANNELS),
                    shift=lambda: nn.Linear(5, CHANNELS)))  # fmt: skip
    case("own convolution", fn(lambda m, x, c, w, p, f, n: F.relu(x + m.conv(w)), conv=lambda: nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1)))
    case("expanded", fn(lambda x, c, w, p, f, n: torch.cat([x, f.unsqueeze(2).expand(-1, -1, 13)], 1)))
    case("returned as it is", fn(lambda x, c, w, p, f, n: (x, f, n)))
    case("product of matrices", fn(lambda x, c, w, p, f, n: torch.bmm(x, w.transpose(1, 2))), bmm="whole values")
    case("einsum", fn(lambda x, c, w, p, f, n: torch.einsum("bcl,bcl->bc", x, w)), einsum="whole values", bmm="whole values")


class WithAttributes(nn.Module):
    """Plain tensors and numbers as attributes, neither parameters nor buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.rand(CHANNELS, 13, dtype=torch.float64)
        self.scale = 3.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.exp(x * self.table) / self.scale


class Positions(nn.Module):
    """A learned embedding of positions, looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(13, CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2) + self.table(torch.arange(13))


# -- moving numbers

def view_cases() -> None:
    case = bench("view")
    case("n,L,C and back", fn(lambda m, x: m.conv(x.transpose(1, 2).permute(0, 2, 1)), conv=lambda: nn.Conv1d(CHANNELS, 3, 3, padding=1)))
    case("swapaxes movedim t", fn(lambda x: F.relu(x.swapaxes(1, 2).movedim(2, 1))))
    case("permute of four", fn(lambda x: x.unsqueeze(1).permute(0, 3, 1, 2).permute(0, 2, 3, 1)))
    case("unsqueeze everywhere", fn(lambda x: F.relu(x.unsqueeze(1).unsqueeze(3).unsqueeze(-1)).squeeze(1).squeeze(-1).squeeze(2)))
    case("squeeze nothing", fn(lambda x: x.squeeze(1)))
    case("split channels", fn(lambda x: F.relu(x.view(x.shape[0], 2, 3, 13)).reshape(x.shape[0], 6, 13)))
    case("unflatten channels", fn(lambda x: x.unflatten(1, (3, 2)).softmax(2).flatten(1, 2)))
    case("group channels into positions", fn(lambda x: F.relu(x.reshape(x.shape[0], 3, 26))))
    case("scrambling reshape", fn(lambda x: x.reshape(x.shape[0], 13, 6)), view="whole values")
    for name, sizes in {"left": (3, 0), "right": (0, 2), "both": (2, 5), "crop": (-2, -3), "mixed": (-4, 2), "channels": (0, 0, 1, 2),
                        "all": (1, 2, 3, 1)}.items():  # fmt: skip
        case(f"pad {name}", fn(lambda x, s=sizes: F.pad(x, s)))
        case(f"pad {name} by a value", fn(lambda x, s=sizes: F.relu(F.pad(x, s, value=0.7)).exp()))
    for mode in ("reflect", "circular", "replicate"):
        case(f"pad {mode}", fn(lambda x, mode=mode: F.pad(x, (3, 2), mode=mode)), pad="whole values", reflection_pad1d="naive",
             replication_pad1d="naive", copy="naive", slice_scatter="naive", empty="naive")  # fmt: skip
    case("zero pad module", lambda: nn.ZeroPad1d((2, 1)))
    case("constant pad module", lambda: nn.ConstantPad1d((2, 1), 0.5))
    for start, stop, step in ((2, None, 1), (None, -3, 1), (3, 9, 1), (None, None, 2), (1, None, 3), (-5, None, 1), (4, 5, 1), (-50, 50, 1), (2, 11, 4)):
        case(f"slice {start}:{stop}:{step}", fn(lambda x, s=slice(start, stop, step): x[:, :, s]))
        case(f"slice {start}:{stop}:{step}, wide", fn(lambda x, s=slice(start, stop, step): F.relu(x[..., s])), 5)
    case("slice of channels", fn(lambda x: x[:, 1:5:2]))
    case("slice of both", fn(lambda x: F.relu(x)[:, 2:, 3:-3]))
    case("empty slice", fn(lambda x: torch.cat([x[:, :, 20:], x], 2)))
    for place in (0, 6, -1):
        case(f"position {place}", fn(lambda x, p=place: x[:, :, p]), select="whole values")
        case(f"channel {place % 6}", fn(lambda x, p=place % 6: x[:, p]))
    case("position then linear", fn(lambda m, x: m.fc(x[:, :, 6]), fc=lambda: nn.Linear(CHANNELS, 2)), select="whole values")
    case("last position of n,L,C", fn(lambda x: x.transpose(1, 2)[:, -1]), select="whole values")
    case("chunk", fn(lambda x: (lambda a, b: a * torch.sigmoid(b))(*x.chunk(2, 1))), mul="merge")
    case("chunk positions", fn(lambda x: torch.cat(x.chunk(3, 2)[::-1], 2)))
    case("split", fn(lambda x: x.split([1, 2, 3], 1)[1] + x.split(2, 1)[0]))
    case("split positions", fn(lambda x: x.split([4, 5, 4], 2)[0] + x.split(4, 2)[2]))
    case("tensor_split", fn(lambda x: torch.tensor_split(x, 2, 1)[1]))
    case("unbind", fn(lambda x: x.unbind(1)[2] + x.unbind(1)[5]))
    case("unbind positions", fn(lambda x: x.unbind(2)[3] - x.unbind(2)[4]), select="whole values")
    case("narrow", fn(lambda x: x.narrow(2, 3, 6)))
    case("flip", fn(lambda x: x.flip(2)))
    case("flip, wide", fn(lambda x: F.relu(x.flip([1, 2]))), 5)
    case("flip channels", fn(lambda x: x.flip(1)))
    case("flip letters", fn(lambda m, x: m.conv(x.flip([1, 2])), conv=lambda: nn.Conv1d(4, 3, 4, padding=1)), 0)
    case("flip n,L,C", fn(lambda x: x.transpose(1, 2).flip(1)))
    case("flip rows", fn(lambda x: x.sum(2).flip(1)))
    case("flip cropped", fn(lambda x: x.flip(2)[:, :, 2:7]), 5)
    case("flip twice", fn(lambda x: F.relu(x.flip(2)).flip(2)), 5)
    case("roll", fn(lambda x: x.roll(3, 2)), roll="whole values")
    case("roll channels", fn(lambda x: x.roll(1, 1)), roll="whole values")
    case("expand", fn(lambda x: x.unsqueeze(1).expand(-1, 3, -1, -1)))
    case("expand then linear", fn(lambda m, x: m.fc(x[:, :1].expand(-1, 3, -1)), fc=lambda: nn.Linear(13, 2)))
    case("expand, add in place", fn(lambda x: x[:, :1].expand(-1, 3, -1) + 1 + x[:, :3]))
    case("expand rows over positions", fn(lambda x: x.mean(2, keepdim=True).expand(-1, -1, 4)))
    case("repeat", fn(lambda x: x.repeat(1, 2, 1)))
    case("repeat positions", fn(lambda x: F.relu(x.repeat(1, 1, 2))), repeat="whole values")
    case("repeat in n,L,C", fn(lambda m, x: m.fc(x.transpose(1, 2).repeat(1, 1, 2)), fc=lambda: nn.Linear(2 * CHANNELS, 2)))
    case("tile", fn(lambda x: x.tile(2, 1)), 5)
    case("tile rows", fn(lambda x: x.mean(2).tile(2)))
    case("repeat mask", fn(lambda x: (x > 0).repeat(1, 2, 1).double()))
    case("repeat interleaved", fn(lambda x: F.relu(x.repeat_interleave(2, 2))))
    case("repeat interleaved n,L,C", fn(lambda x: x.transpose(1, 2).repeat_interleave(3, -2)), 5)
    case("repeat interleaved channels", fn(lambda x: x.repeat_interleave(2, dim=1)))
    case("repeat interleaved rows", fn(lambda x: x.amax(2).repeat_interleave(2, 1)))
    case("repeat interleaved flat", fn(lambda x: x.repeat_interleave(torch.tensor([1, 2, 0, 1, 3, 1]), 1)), repeat_interleave="naive")
    case("upsample", lambda: nn.Upsample(scale_factor=2))
    case("upsample to size", lambda: nn.Upsample(size=39), 5)
    case("upsample unevenly", lambda: nn.Upsample(size=20), upsample_nearest1d="whole values")
    case("interpolate after pool", fn(lambda x: F.interpolate(F.max_pool1d(x, 3), scale_factor=3.0) + x[:, :, :12]))
    case("upsample by a fraction more", lambda: nn.Upsample(scale_factor=2.04), upsample_nearest1d="whole values")
    case("upsample linear", fn(lambda x: F.interpolate(x, scale_factor=2, mode="linear")), upsample_linear1d="whole values")
    case("index by list", fn(lambda x: x[:, [0, 2, 1]]))
    case("index by list, wide", fn(lambda x: F.relu(x[:, [-1, 2, 1, 2]])), 5)
    case("complement", fn(lambda m, x: m.conv(x) + m.conv(x[:, [3, 2, 1, 0]].flip(-1)).flip(-1), conv=lambda: nn.Conv1d(4, 3, 4)), 0)
    case("index select channels", fn(lambda m, x: x.index_select(1, m.i), i=lambda: torch.tensor([3, 1])))
    case("index channels of n,L,C", fn(lambda m, x: x.transpose(1, 2)[..., m.i].transpose(1, 2), i=lambda: torch.tensor([3, 1], dtype=torch.int32)))
    case("index rows", fn(lambda x: x.sum(2)[:, [4, 0, 0]]))
    case("index mask", fn(lambda x: (x > 0)[:, [0, 2, 1]].double()))
    case("index mask's positions", fn(lambda x: (x > 0)[:, :, [0, 2, 1]].double()), index="whole values")
    case("index flattened", fn(lambda x: x.flatten(1)[:, [0, 2, 1, 60, -1]]), index="whole values")
    case("index positions", fn(lambda m, x: x[:, :, m.i], i=lambda: torch.tensor([3, -1, 1, 12, 3])), index="whole values")
    case("index positions of n,L,C", fn(lambda m, x: x.transpose(1, 2)[:, m.i].relu(), i=lambda: torch.tensor([0])), 5, index="whole values")
    case("index select positions", fn(lambda m, x: x.index_select(2, m.i), i=lambda: torch.tensor([3, 1, 12])), index_select="whole values")
    case("index by a table", fn(lambda x: x[:, torch.tensor([[0, 2], [1, 1]])].relu()))
    case("index positions by a table", fn(lambda x: x[:, :, torch.arange(4)[:, None] + torch.tensor([0, 3, -2])].relu()), index="whole values")
    case("index a mask's positions by a table", fn(lambda x: (x > 0)[:, :, torch.tensor([[0, 5], [-1, 5]])].double()), index="whole values")
    case("index of two axes", fn(lambda x: x[:, [0, 2, 1], [3, 3, 12]]), index="whole values")
    case("index of two other axes", fn(lambda x: x.unflatten(1, (2, 3))[:, [0, 1, 1], [2, 0, -1]].relu()))
    case("index of two axes behind the positions", fn(lambda x: x.unflatten(1, (2, 3)).movedim(3, 1)[:, :, [0, 1], [2, 0]].relu()))
    case("upper triangle", fn(lambda x: (x.transpose(1, 2) @ x)[:, torch.triu_indices(13, 13)[0], torch.triu_indices(13, 13)[1]]), index="whole values",
         matmul="whole values")  # fmt: skip
    case("index by a mask", fn(lambda m, x: x[:, :, m.i], i=lambda: torch.arange(13) % 3 == 0), index="whole values")
    case("pixel shuffle by hand", fn(lambda x: x.unflatten(1, (3, 2)).transpose(2, 3).flatten(2)))
    case("pixel shuffle, relu, conv", fn(lambda m, x: m.conv(F.relu(x.unflatten(1, (3, 2)).transpose(2, 3).flatten(2))),
         conv=lambda: nn.Conv1d(3, 2, 3, padding=1)), conv1d="convolution|whole values")  # fmt: skip
    case("contiguous and clone", fn(lambda x: x.transpose(1, 2).contiguous().clone().view(x.shape[0], -1)))
    case("tril mask", fn(lambda x: torch.tril(x)), tril="whole values")

    case = bench("cropped")
    conv = lambda: nn.Conv1d(CHANNELS, CHANNELS, 5, padding=2)  # noqa: E731
    before = {
        "convolution": (lambda m, x: m.conv(x), {"conv": conv}),
        "strided convolution": (lambda m, x: m.conv(x), {"conv": lambda: nn.Conv1d(CHANNELS, 3, 5, stride=2, padding=4)}),
        "max pool": (lambda x: F.max_pool1d(x, 3, 1, 1), {}),
        "average pool": (lambda x: F.avg_pool1d(x, 3, 2, 1), {}),
        "upsample": (lambda x: F.interpolate(x, scale_factor=2), {}),
        "transposed convolution": (lambda m, x: m.up(x), {"up": lambda: nn.ConvTranspose1d(CHANNELS, 3, 4, 2, 1)}),
        "cat positions": (lambda m, x: torch.cat([m.conv(x), x, x.flip(2)], 2), {"conv": conv}),
        "cat with itself": (lambda x: torch.cat([x, x], 2), {}),
        "cat channels": (lambda m, x: torch.cat([m.conv(x), x], 1), {"conv": conv}),
        "residual": (lambda m, x: m.conv(x) + x, {"conv": conv}),
        "cropped residual": (lambda m, x: m.conv(x)[:, :, 1:] + x[:, :, :-1], {"conv": conv}),
        "pad": (lambda x: F.pad(x, (3, 5)), {}),
        "flip": (lambda x: x.flip(2), {}),
        "step": (lambda x: x[:, :, ::2], {}),
        "crop": (lambda x: x[:, :, 2:-1], {}),
        "groups": (lambda x: x[:, :, 1:].unflatten(2, (6, 2)).amax(3), {}),
        "stack": (lambda m, x: torch.stack([m.conv(x), x], 1).sum(1), {"conv": conv}),
        "n,L,C": (lambda x: F.gelu(x.transpose(1, 2)).transpose(1, 2), {}),
        "shared": (lambda m, x: torch.cat([m.conv(x)[:, :, :9], x[:, :, 4:]], 1), {"conv": conv}),
    }
    case("crop of many channels", lambda: nn.Sequential(nn.Conv1d(CHANNELS, 12, 5, padding=2), nn.Conv1d(12, 12, 5, padding=2), Crop(3, 5)))
    case("crop of some", lambda: nn.Sequential(*[m for _ in range(3) for m in (nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU())], Crop(5, 4)))
    for name, (function, parts) in before.items():
        family = {"amax": "elementwise"} if name == "groups" else {}
        for low, high in ((3, 5), (11, 15), (16, 19))[: 3 if name.startswith("cat ") and "channels" not in name else 1]:
            if parts:
                case(f"{name} {low}:{high}", fn(lambda m, x, f=function, a=low, b=high: f(m, x)[:, :, a:b], **parts), **family)
            else:
                case(f"{name} {low}:{high}", fn(lambda x, f=function, a=low, b=high: f(x)[:, :, a:b]), **family)
        tail = (lambda m, x, f=function: F.relu(f(m, x)).transpose(1, 2)[:, 2:4]) if parts else (lambda x, f=function: F.relu(f(x)).transpose(1, 2)[:, 2:4])
        case(f"{name}, relu, n,L,C", fn(tail, **parts), **family)

    case = bench("split positions", length=24)
    for size in (2, 3, 6):
        case(f"enformer attention pool {size}", lambda size=size: AttentionPool(size))
        case(f"group last {size}", fn(lambda x, s=size: x.reshape(x.shape[0], CHANNELS, 24 // s, s).amax(3)), amax="elementwise")
        case(f"group n,L,C {size}", fn(lambda x, s=size: x.transpose(1, 2).reshape(x.shape[0], 24 // s, s, CHANNELS).mean(2)))
        case(f"group and linear {size}", fn(lambda m, x, s=size: m.fc(x.transpose(1, 2).reshape(x.shape[0], 24 // s, s * CHANNELS)),
             fc=lambda size=size: nn.Linear(size * CHANNELS, 3)))  # fmt: skip
        case(f"group and back {size}", fn(lambda x, s=size: F.relu(x.unflatten(2, (24 // s, s))).flatten(2)))
        case(f"group letters {size}", fn(lambda x, s=size: x.unflatten(2, (24 // s, s)).sum(3)), 0)


class Crop(nn.Module):
    def __init__(self, left: int, right: int) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, self.left : -self.right]


class AttentionPool(nn.Module):
    """Enformer's: positions in groups, a softmax within each, a weighted sum."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.logits = nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.reshape(x.shape[0], x.shape[1], x.shape[2] // self.size, self.size)
        return (y * self.logits(y).softmax(-1)).sum(-1)


# -- dense

def dense_cases() -> None:
    case = bench("dense")
    flat = 13 * CHANNELS
    for trunk in (1, 5):
        case(f"flatten C,L trunk{trunk}", lambda: nn.Sequential(nn.Flatten(), nn.Linear(13 * CHANNELS, 4)), trunk)
        case(f"flatten L,C trunk{trunk}", fn(lambda m, x: m.fc(x.transpose(1, 2).flatten(1)), fc=lambda: nn.Linear(flat, 4)), trunk)
        case(f"over positions trunk{trunk}", lambda: nn.Linear(13, 4), trunk)
        case(f"on channels trunk{trunk}", fn(lambda m, x: m.fc(x.transpose(1, 2)), fc=lambda: nn.Linear(CHANNELS, 4)), trunk)
    case("flatten letters", lambda: nn.Sequential(nn.Flatten(), nn.Linear(52, 4)), 0)
    case("flatten letters L,C", fn(lambda m, x: m.fc(x.transpose(1, 2).flatten(1)), fc=lambda: nn.Linear(52, 4)), 0)
    case("no bias", lambda: nn.Sequential(nn.Flatten(), nn.Linear(flat, 4, bias=False)))
    case("flatten after pool", lambda: nn.Sequential(nn.MaxPool1d(3), nn.Flatten(), nn.Linear(4 * CHANNELS, 4)))
    case("flatten L,C after pool", fn(lambda m, x: m.fc(F.max_pool1d(x, 3).transpose(1, 2).flatten(1)), fc=lambda: nn.Linear(4 * CHANNELS, 4)))
    case("flatten relu linear", lambda: nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(flat, 4), nn.ReLU(), nn.Linear(4, 2)))
    case("flatten with an axis before", fn(lambda m, x: m.fc(x.view(x.shape[0], 2, 3, 13).flatten(2)), fc=lambda: nn.Linear(39, 2)))
    case("flatten with an axis before, L,C", fn(lambda m, x: m.fc(x.view(x.shape[0], 2, 3, 13).transpose(2, 3).flatten(2)), fc=lambda: nn.Linear(39, 2)))
    case("flatten between", fn(lambda m, x: m.fc(x.view(x.shape[0], 2, 3, 13).permute(0, 1, 3, 2).flatten(1)), fc=lambda: nn.Linear(flat, 2)))
    case("flatten flipped", fn(lambda m, x: m.fc(x.flip(2).flatten(1)), fc=lambda: nn.Linear(flat, 2)), 5)
    case("flatten sliced", fn(lambda m, x: m.fc(x[:, :, ::2].flatten(1)), fc=lambda: nn.Linear(7 * CHANNELS, 2)))
    case("part of the flattened", fn(lambda x: F.relu(x.flatten(1)[:, 5:30])), slice="whole values")
    case("linear on rows", fn(lambda m, x: m.fc(x.amax(2)), fc=lambda: nn.Linear(CHANNELS, 3)))
    case("linear on a middle axis of rows", fn(lambda m, x: m.fc(x.softmax(2).transpose(1, 2)), fc=lambda: nn.Linear(CHANNELS, 3)),
         softmax="whole values", _softmax="whole values")  # fmt: skip
    case("mlp on channels", fn(lambda m, x: x + m.net(x.transpose(1, 2)).transpose(1, 2), net=lambda: nn.Sequential(
        nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 9), nn.GELU(), nn.Linear(9, CHANNELS))))  # fmt: skip
    case("linear over positions, n,C,1,L", fn(lambda m, x: m.fc(x.unsqueeze(2)), fc=lambda: nn.Linear(13, 3)))
    case("addmm", fn(lambda m, x: torch.addmm(m.b, x.flatten(1), m.w), b=lambda: nn.Parameter(torch.randn(3)), w=lambda: nn.Parameter(torch.randn(flat, 3))))
    case("addmm on rows", fn(lambda m, x: torch.addmm(m.b, x.sum(2), m.w), b=lambda: nn.Parameter(torch.randn(3)), w=lambda: nn.Parameter(torch.randn(CHANNELS, 3))))
    case("addmm with factors", fn(lambda m, x: torch.addmm(m.b, x.sum(2), m.w, beta=2.0, alpha=0.5), b=lambda: nn.Parameter(torch.randn(3)),
         w=lambda: nn.Parameter(torch.randn(CHANNELS, 3))), addmm="naive")  # fmt: skip
    case("mm", fn(lambda m, x: torch.mm(x.flatten(1), m.w), w=lambda: nn.Parameter(torch.randn(flat, 3))))
    case("matmul with a vector", fn(lambda m, x: x.transpose(1, 2) @ m.w, w=lambda: nn.Parameter(torch.randn(CHANNELS))))
    case("matmul of positions with a vector", fn(lambda m, x: x @ m.w, w=lambda: nn.Parameter(torch.randn(13))))
    case("matmul of letters with a vector", fn(lambda m, x: (x.transpose(1, 2) @ m.w).relu(), w=lambda: nn.Parameter(torch.randn(4))), 0)
    case("matmul of rows with a vector", fn(lambda m, x: x.sum(2) @ m.w, w=lambda: nn.Parameter(torch.randn(CHANNELS))))
    case("bilinear", fn(lambda m, x: m.f(x.sum(2), x.amax(2)), f=lambda: nn.Bilinear(CHANNELS, CHANNELS, 2)), bilinear="whole values")
    case("two heads", fn(lambda m, x: (m.a(x.flatten(1)), m.b(x.transpose(1, 2))), a=lambda: nn.Linear(flat, 2), b=lambda: nn.Linear(CHANNELS, 3)))
    case("transposed linear", fn(lambda m, x: F.linear(x.flatten(1), m.w.t()), w=lambda: nn.Parameter(torch.randn(flat, 3))))
    case("weight made of weights", fn(lambda m, x: F.linear(x.flatten(1), torch.softmax(m.w, 1) * 2), w=lambda: nn.Parameter(torch.randn(3, flat))))

    case = bench("attention and recurrence", length=10)
    for causal in (False, True):
        case(f"scaled dot product, causal {causal}", fn(lambda x, c=causal: (lambda y: F.scaled_dot_product_attention(y, y, y, is_causal=c))(
            x.transpose(1, 2).unflatten(2, (2, 3)).transpose(1, 2))))  # fmt: skip
    case("multihead", lambda: SelfAttention())
    case("multihead by a mask", lambda: SelfAttention(torch.ones(10, 10).triu(1).bool()), only_double=True)
    case("encoder layer", fn(lambda m, x: m.layer(x.transpose(1, 2)), layer=lambda: nn.TransformerEncoderLayer(CHANNELS, 2, 8, batch_first=True)))
    case("product and sum", fn(lambda m, x: torch.baddbmm(m.w, x.transpose(1, 2), x), w=lambda: nn.Parameter(torch.randn(10, 10))))
    case("a matrix for each group", fn(lambda m, x: x.unflatten(1, (2, 3)).transpose(2, 3) @ m.w, w=lambda: nn.Parameter(torch.randn(2, 3, 4))))
    case("a matrix for each group of one row", fn(lambda m, x: x.unflatten(1, (2, 3)).mT @ m.w, w=lambda: nn.Parameter(torch.randn(1, 2, 3, 4))))
    case("a matrix over positions for each group", fn(lambda m, x: x.unflatten(1, (2, 3)) @ m.w, w=lambda: nn.Parameter(torch.randn(2, 10, 4))))
    case("a matrix for each position", fn(lambda m, x: x.unflatten(1, (2, 3)).movedim(3, 1) @ m.w, w=lambda: nn.Parameter(torch.randn(10, 3, 4))))
    case("complex numbers", fn(lambda m, x: torch.view_as_real(
        torch.view_as_complex(x.transpose(1, 2).contiguous().unflatten(2, (3, 2))) * torch.complex(m.w, 1 - m.w)), w=lambda: nn.Parameter(torch.randn(10, 3))), view_as_complex="view", view_as_real="view")  # fmt: skip
    case("complex numbers of positions", fn(lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(2, (5, 2))).cumsum(2))),
         cumsum="whole values", view_as_complex="view", view_as_real="whole values")  # fmt: skip
    case("attention by hand", lambda: HandAttention(), matmul="whole values")
    case("attention by hand, batch in the middle", lambda: HandAttention(batch_first=False), matmul="whole values")
    case("lstm", fn(lambda m, x: m.rnn(x.transpose(1, 2))[0], rnn=lambda: nn.LSTM(CHANNELS, 3, batch_first=True, bidirectional=True)),
         only_double=True, lstm="naive", getitem="naive", transpose="view")  # fmt: skip
    case("gru", fn(lambda m, x: m.rnn(x.transpose(1, 2))[0].mean(1), rnn=lambda: nn.GRU(CHANNELS, 3, batch_first=True)),
         only_double=True, gru="naive", getitem="naive", mean="naive")  # fmt: skip
    case("lstm, last state", fn(lambda m, x: m.rnn(x.transpose(1, 2))[1][0][-1], rnn=lambda: nn.LSTM(CHANNELS, 3, batch_first=True)),
         only_double=True, lstm="naive", getitem="naive", select="naive", transpose="view")  # fmt: skip


class SelfAttention(nn.Module):
    def __init__(self, mask: torch.Tensor | None = None) -> None:
        super().__init__()
        self.mask = mask
        self.attention = nn.MultiheadAttention(CHANNELS, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.transpose(1, 2)
        return y + self.attention(y, y, y, need_weights=False, attn_mask=self.mask)[0]


class HandAttention(nn.Module):
    """Softmax attention written out, with a learned bias of relative positions."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS)
        self.bias = nn.Parameter(torch.randn(2, 10, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(x.transpose(1, 2)).unflatten(2, (3, 2, 3))
        q, k, v = qkv.transpose(1, 3).unbind(2) if self.batch_first else qkv.permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) / 3**0.5 + self.bias, -1)
        return (weights @ v).transpose(1, 2).flatten(2)


def dtype_cases() -> None:
    case = bench("dtypes")
    case("double and back", fn(lambda x: x.double().exp().float()))
    case("to float64", fn(lambda x: x.mean(2).to(torch.float32).double()))
    case("type_as", fn(lambda x: x * (x > 0).type_as(x)), _to_copy="elementwise", type_as="elementwise")
    case("type_as of another float", fn(lambda x: x.double().exp().type_as(x)))
    case("rounded to bfloat16", fn(lambda x: x.bfloat16().float()), _to_copy="naive")
    case("sum in bfloat16", fn(lambda x: x.sum(2, dtype=torch.bfloat16).float()), sum="naive", _to_copy="naive")
    case("divided by bfloat16", fn(lambda m, x: x / m.p.bfloat16(), p=lambda: nn.Parameter(torch.rand(CHANNELS, 1) + 0.5)))
    case("float of mask", fn(lambda x: (x > 0).float().mean(2)), _to_copy="elementwise")
    case("mixed dtypes", fn(lambda x: x + x.double(),))
    case("one result unread", fn(lambda x: torch.max(x, 2)[0] + torch.var_mean(x, 2)[0]), var="whole values")


# -- operations along an axis, several results, numbers picked for each row, complex numbers

def order_cases() -> None:
    case = bench("along an axis")
    values = {
        "median": lambda x, d: x.median(d).values, "nanmedian": lambda x, d: x.nanmedian(d, keepdim=True).values, "kthvalue": lambda x, d: x.kthvalue(2, d)[0],
        "mode": lambda x, d: (9 * x).round().mode(d).values, "quantile": lambda x, d: x.quantile(0.3, d), "nanquantile": lambda x, d: x.nanquantile(0.7, d, keepdim=True),
        "sort": lambda x, d: x.sort(d).values, "topk": lambda x, d: x.topk(3, d).values.mean(d), "cummax": lambda x, d: x.cummax(d).values,
        "cummin": lambda x, d: x.cummin(d)[0], "nansum": lambda x, d: x.nansum(d), "count_nonzero": lambda x, d: x.relu().count_nonzero(d).double(),
        "norm": lambda x, d: F.pairwise_distance(x.movedim(d, -1), x.exp().movedim(d, -1)),
    }  # fmt: skip
    for name, function in values.items():
        only = {"only_double": name in ("mode", "count_nonzero")}
        case(f"{name} over channels", fn(lambda x, f=function: f(x, 1)), **only, **{name: "elementwise"})
        whole = {name: "whole values", "mean": "reduce", "_to_copy": "whole values"}
        case(f"{name} over positions", fn(lambda x, f=function: f(x, 2)), **only, **whole)
        case(f"{name} of n,L,C", fn(lambda x, f=function: f(x.transpose(1, 2), -1)), **only, **{name: "elementwise"})
    for name, function in {"max": torch.max, "min": torch.min, "median": torch.median, "sort": torch.sort, "cummax": torch.cummax}.items():
        case(f"both results of {name}", fn(lambda x, f=function: (lambda v: v[0] * v[1])(f(x, 1))), only_double=True, **{name: "elementwise"})
        case(f"places of {name}", fn(lambda x, f=function: f(x, 1)[1].double()), only_double=True, **{name: "elementwise"})
    case("places of topk", fn(lambda x: x.topk(2, 1).indices.double() + x.argsort(1)[:, :2]), only_double=True, topk="elementwise", sort="elementwise", argsort="elementwise")
    case("largest of rows", fn(lambda x: (lambda v, i: v + i)(*x.mean(2).max(1))), only_double=True, max="whole values")
    whole = {"var": "whole values", "std": "whole values", "linalg_vector_norm": "whole values", "clamp_min": "whole values", "div": "whole values", "mul": "merge",
             "cumsum": "whole values", "sort": "whole values", "select": "whole values", "prod": "whole values"}  # fmt: skip
    composite = {
        "var_mean": lambda x, d: (lambda v, m: v * m)(*torch.var_mean(x, d)), "std_mean": lambda x, d: torch.std_mean(x, d, correction=0)[0],
        "aminmax": lambda x, d: (lambda lo, hi: hi - lo)(*torch.aminmax(x, dim=d)), "diff": lambda x, d: x.diff(dim=d, n=2),
        "cosine_similarity": lambda x, d: F.cosine_similarity(x, x.flip(d).exp(), dim=d), "nanmean": lambda x, d: x.nanmean(d),
        "trapezoid": lambda x, d: torch.trapezoid(x, dim=d), "take_along_dim": lambda x, d: torch.take_along_dim(x, torch.tensor([[[1, 0]]]).movedim(2, d).expand(len(x), -1, -1), d),
    }  # fmt: skip
    for name, function in composite.items():
        also = {"nansum": "whole values"} | ({"gather": "whole values"} if name == "take_along_dim" else {})
        counted = {"sum": "whole values"} if name == "nanmean" else {"sum": "reduce"}  # a sum of truth values counts
        case(f"{name} over positions", fn(lambda x, f=function: f(x, 2)), any="merge", **{**whole, **also, **counted})
        smallest = {"amin": "elementwise", "amax": "elementwise"} | ({"sum": "elementwise"} if name == "nanmean" else {})
        case(f"{name} over channels", fn(lambda x, f=function: f(x, 1)), any="merge", gather="view", **smallest)
    case("cosine similarity to prototypes", fn(lambda m, x: F.cosine_similarity(x.transpose(1, 2).unsqueeze(2), m.w, dim=-1), w=lambda: nn.Parameter(torch.randn(5, CHANNELS))))
    case("cosine similarity of rows", fn(lambda m, x: F.cosine_similarity(x.mean(2)[:, None], m.w, dim=-1), w=lambda: nn.Parameter(torch.randn(5, CHANNELS))))
    case("channel shuffle", fn(lambda x: F.channel_shuffle(x, 3).relu()))
    case("pixel shuffle", fn(lambda x: F.pixel_shuffle(x.unflatten(1, (6, 1)).repeat(1, 2, 4, 1), 2)))
    case("pixel unshuffle", fn(lambda x: F.pixel_unshuffle(x[:, None, :, 1:], 2)))
    case("stacks of one kind", fn(lambda x: (torch.hstack([x, x.relu()]), torch.dstack([x, x.exp()]), torch.column_stack([x.mean(2), x.amax(2)]))))
    case("tensordot", fn(lambda m, x: torch.tensordot(x, m.w, ([1], [1])), w=lambda: nn.Parameter(torch.randn(3, CHANNELS, 2))))
    case("tensordot over both", fn(lambda m, x: torch.tensordot(x, m.w, ([2, 1], [0, 1])), w=lambda: nn.Parameter(torch.randn(13, CHANNELS, 2))))
    case("inner", fn(lambda m, x: torch.inner(x.transpose(1, 2), m.w), w=lambda: nn.Parameter(torch.randn(3, CHANNELS))))
    case("inner with a vector", fn(lambda m, x: torch.inner(x.transpose(1, 2), m.w), w=lambda: nn.Parameter(torch.randn(CHANNELS))))
    case("written over", fn(lambda x: (_written(x, 0.5), _written(x, x[:, 1:3, 2:5].exp()))), any="merge", select="whole values")
    case("one channel written over", fn(lambda x: x.select_scatter(x[:, 1].exp(), 1, 4) + x.select_scatter(x[:, :, 1].exp(), 2, -1)), exp="elementwise|whole values", any="whole values")
    case("written over by a mask", fn(_without_negative))
    case("fast fourier transform of channels", fn(lambda x: torch.fft.rfft(x, dim=1).abs() + torch.fft.irfft(x.transpose(1, 2) * (1 + 2j), n=6).transpose(1, 2)[:, :4]),
         fft_rfft="dense", fft_irfft="dense")  # fmt: skip
    case("fast fourier transforms of positions", fn(lambda m, x: torch.fft.irfft(torch.fft.rfft(x, n=26) * m.w, n=26)[..., :13] + torch.fft.fft(x).real + torch.fft.ifft(x).imag
         + torch.fft.hfft(x, n=13) + torch.fft.ihfft(x, n=24).real, w=lambda: torch.randn(CHANNELS, 14, dtype=torch.complex128)), any="whole values",
         **dict.fromkeys(["fft_rfft", "fft_irfft", "fft_fft", "fft_ifft", "fft_hfft", "fft_ihfft"], "dense"))  # fmt: skip

    case = bench("matrices and images")
    square = lambda x: x @ x.transpose(1, 2) + 5 * torch.eye(CHANNELS)  # noqa: E731
    matrices = {
        "det": torch.det, "logdet": torch.logdet, "inverse": torch.linalg.inv, "exponential": lambda x: torch.matrix_exp(x / 50), "singular": torch.linalg.svdvals,
        "eigenvalues": torch.linalg.eigvalsh, "cholesky": torch.linalg.cholesky, "solve": lambda x: torch.linalg.solve(x, x[:, :, :2].exp()), "norm": torch.linalg.matrix_norm,
        "nuclear": lambda x: torch.linalg.matrix_norm(x, ord="nuc"), "pinv": torch.linalg.pinv, "power": lambda x: torch.linalg.matrix_power(x, -2),
        "slogdet": lambda x: (lambda sign, value: sign * value)(*torch.linalg.slogdet(x)), "upper": torch.triu, "diagonal": lambda x: x.diagonal(dim1=-2, dim2=-1),
    }  # fmt: skip
    for name, function in matrices.items():
        case(f"{name} of products", fn(lambda x, f=function: f(square(x))), any="whole values|dense|reduce|merge|view|elementwise", matmul="whole values")
    case("matrices at positions", fn(lambda x: torch.matrix_exp(x.transpose(1, 2).unflatten(2, (1, 6)).repeat(1, 1, 6, 1) / 20)), repeat="view", any="elementwise", matrix_exp="elementwise",
         linalg_matrix_exp="elementwise")  # fmt: skip
    case("diagonal", fn(lambda x: x.diagonal(1, 1, 2) + x.diagonal(dim1=2, dim2=1, offset=-1)), any="whole values", diagonal="dense")
    case("diagonal matrix", fn(lambda x: x.mean(2).diag_embed() + x.mean(2).diag_embed(0, 2, 1)), diag_embed="dense")
    case("cross product", fn(lambda x: torch.linalg.cross(x[:, :3], x[:, 3:], dim=1)), linalg_cross="whole values")
    case("baddbmm", fn(lambda x: torch.baddbmm(x, x @ x.transpose(1, 2), x, beta=0.5)), any="whole values")
    case("bilinear of channels", fn(lambda m, x: m.f(x.transpose(1, 2), x.exp().transpose(1, 2)), f=lambda: nn.Bilinear(CHANNELS, CHANNELS, 2)), bilinear="elementwise")
    case("distances to points", fn(lambda m, x: torch.cdist(x.transpose(1, 2), m.w), w=lambda: torch.randn(5, CHANNELS, dtype=torch.float64)), cdist="elementwise")
    case("distances of rows", fn(lambda m, x: torch.cdist(x.mean(2), m.w), w=lambda: torch.randn(5, CHANNELS, dtype=torch.float64)), cdist="whole values")
    case("distances of one another", fn(lambda x: torch.cdist(x.transpose(1, 2), x.exp().transpose(1, 2))), cdist="whole values")
    case("between borders", fn(lambda m, x: torch.searchsorted(m.b, x).double() + torch.bucketize(x, m.b), b=lambda: torch.linspace(-1, 1, 5, dtype=torch.float64)), only_double=True)
    case("scatter", fn(lambda x: torch.zeros_like(x).scatter(1, x.argmax(1, keepdim=True), 1.0) * x), only_double=True)
    case("scatter add", fn(lambda m, x: x.new_zeros(len(x), 3, 13).scatter_add(1, m.i.expand(len(x), -1, 13), x), i=lambda: torch.tensor([0, 1, 2, 0, 1, 2])[None, :, None]))
    case("scatter maximum", fn(lambda m, x: x[:, :3].scatter_reduce(1, m.i.expand(len(x), -1, 13), x, "amax"), i=lambda: torch.tensor([0, 1, 2, 0, 1, 2])[None, :, None]))
    case("scatter over positions", fn(lambda m, x: x.scatter_add(2, m.i.expand(len(x), 6, -1), x.exp()), i=lambda: torch.tensor([[[3, 0, 5, 0]]])), scatter_add="whole values")
    case("index add", fn(lambda m, x: x.new_zeros(len(x), 3, 13).index_add(1, m.i, x), i=lambda: torch.tensor([0, 1, 2, 0, 1, 2])), index_add="whole values")
    case("index copy", fn(lambda x: x.index_copy(1, torch.tensor([0]), x[:, :1].relu()) + x.index_fill(2, torch.tensor([3, 0]), 0.5)), any="whole values")
    image = {"bilinear": (1, 2), "bicubic": (1, 2), "nearest": (2, 2), "nearest-exact": (1, 3)}
    for mode, scale in image.items():
        case(f"image resized by {mode}", fn(lambda x, mode=mode, s=scale: F.interpolate(x.unsqueeze(2), scale_factor=s, mode=mode)), any="dense")
    case("image resized smoothly", fn(lambda x: F.interpolate(x.unsqueeze(2), size=(1, 7), mode="bilinear", antialias=True) + F.interpolate(x.unsqueeze(2), size=(1, 7), mode="bicubic",
         antialias=True)), add="merge", any="dense")  # fmt: skip
    case("volume resized", fn(lambda x: F.interpolate(x[:, :, None, None], scale_factor=(1, 1, 2), mode="trilinear") + F.interpolate(x[:, :, None, None], scale_factor=(1, 1, 2))),
         add="merge", any="dense")  # fmt: skip
    case("resized by nearest", fn(lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact").relu()), _upsample_nearest_exact1d="view")
    case("resized by linear", fn(lambda x: F.interpolate(x, size=20, mode="linear", align_corners=True)), upsample_linear1d="dense")
    case("adaptive pools of images", fn(lambda x: F.adaptive_avg_pool2d(x.unsqueeze(2), (1, 4)) + F.adaptive_max_pool2d(x.unsqueeze(2), (1, 4))), add="merge", any="whole values", _adaptive_avg_pool2d="dense")
    case("adaptive pool to one", fn(lambda x: F.adaptive_avg_pool2d(x.unsqueeze(2), 1).flatten(1)))
    case("pools of volumes", fn(lambda x: F.avg_pool3d(x[:, :, None, None], (1, 1, 2)) + F.max_pool3d(x[:, :, None, None], (1, 1, 2)) + F.adaptive_avg_pool3d(x[:, :, None, None], (1, 1, 6))
         + F.adaptive_max_pool3d(x[:, :, None, None], (1, 1, 6))), any="whole values", avg_pool3d="dense", _adaptive_avg_pool3d="dense", add="merge")  # fmt: skip
    case("convolved volume", fn(lambda m, x: m.b(m.a(x[:, :, None, None])), a=lambda: nn.Conv3d(CHANNELS, 3, (1, 1, 3)), b=lambda: nn.ConvTranspose3d(3, 2, (1, 1, 3))),
         conv3d="whole values", conv_transpose3d="whole values")  # fmt: skip
    case("transposed convolution of an image", fn(lambda m, x: m.a(x.unsqueeze(2)), a=lambda: nn.ConvTranspose2d(CHANNELS, 3, (1, 3), stride=(1, 2))), conv_transpose2d="whole values")
    case("grid sample", fn(lambda m, x: F.grid_sample(x.unsqueeze(2), m.g.expand(len(x), -1, -1, -1), align_corners=False), g=lambda: 1.6 * torch.rand(1, 1, 7, 2, dtype=torch.float64) - 0.8),
         any="whole values")  # fmt: skip


def _written(x: torch.Tensor, value: Any) -> torch.Tensor:
    y = x.clone()
    y[:, 1:3, 2:5] = value
    y[:, :, -1] = 1.0
    return y


def _without_negative(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[y < 0] = 0.1
    return y


def pick_cases() -> None:
    case = bench("picked for each row", extras=("place", "places", "span"))
    rows = lambda x: torch.arange(len(x), device=x.device)  # noqa: E731
    whole = {"gather": "whole values", "yuzu.index_of_rows": "whole values"}
    for trunk in (0, 3, 5):
        c = CHANNELS if trunk else 4
        case(f"gather a position, trunk {trunk}", fn(lambda x, p, q, s, c=c: x.gather(2, p[:, None, None].expand(-1, c, 1)).squeeze(2)), trunk, **whole)
        case(f"row and position, trunk {trunk}", fn(lambda x, p, q, s: x[rows(x), :, p]), trunk, **whole)
    case("gather several", fn(lambda x, p, q, s: x.gather(2, q[:, None].expand(-1, CHANNELS, -1))), **whole)
    case("gather for each channel", fn(lambda x, p, q, s: x.gather(2, s[:, :, None].expand(-1, -1, 2))), **whole)
    case("gather of some channels", fn(lambda x, p, q, s: x.gather(2, s[:, :4, None])), **whole)
    case("gather a span", fn(lambda x, p, q, s: x.gather(2, (p[:, None] // 2 + torch.arange(3))[:, None].expand(-1, CHANNELS, -1)).relu()), **whole, relu="whole values|elementwise")
    case("gather channels", fn(lambda x, p, q, s: x.gather(1, (p % CHANNELS)[:, None, None].expand(-1, 2, 13)).relu()))
    case("gather channels at each position", fn(lambda m, x, p, q, s: x.gather(1, m.i + (p % 2)[:, None, None]), i=lambda: torch.arange(13)[None, None] % 5))
    case("gather channels at some positions", fn(lambda x, p, q, s: x.gather(1, (p % CHANNELS)[:, None, None].expand(-1, 2, 4))), **whole)
    case("gather by a constant", fn(lambda m, x, p, q, s: x.gather(2, m.i.expand(len(x), CHANNELS, -1)) + x.gather(1, m.i.expand(len(x), 13, -1).transpose(1, 2))[:, :, :3].relu()[:, :1],
         i=lambda: torch.tensor([[[1, 4, 3]]])), gather="whole values|view")  # fmt: skip
    case("gather of rows", fn(lambda x, p, q, s: x.mean(2).gather(1, s[:, :3] % CHANNELS)), **whole)
    case("gather of flattened", fn(lambda x, p, q, s: x.flatten(1).gather(1, q)), **whole)
    case("gather of a mask", fn(lambda x, p, q, s: (x > 0).gather(2, q[:, None].expand(-1, CHANNELS, -1)).double()), only_double=True, _to_copy="whole values|elementwise", **whole)
    case("gather of n,L,C", fn(lambda x, p, q, s: x.transpose(1, 2).gather(1, q[:, :, None].expand(-1, -1, CHANNELS))), **whole)
    case("take along", fn(lambda x, p, q, s: torch.take_along_dim(x, p[:, None, None], 2)), **whole)
    case("places made of the sequence", fn(lambda x, p, q, s: x.gather(2, x.mean(2).argmax(1)[:, None, None].expand(-1, CHANNELS, 1))), gather="whole values", any="whole values")
    case("channels made of the sequence", fn(lambda x, p, q, s: x.gather(1, x.argmax(1, keepdim=True))), gather="elementwise")
    case("row and place of the sequence", fn(lambda x, p, q, s: x[rows(x), :, x.mean(2).argmax(1)]), any="whole values")
    case("row and several positions", fn(lambda x, p, q, s: x[rows(x)[:, None], :, q]), **whole)
    case("row and a span from behind", fn(lambda x, p, q, s: x[rows(x)[:, None], :, -p[:, None] // 2 + torch.arange(-3, 0)]), **whole)
    case("row, channel and position", fn(lambda x, p, q, s: x[rows(x), p % CHANNELS - 2, p]), **whole)
    case("row, some channels and a position", fn(lambda x, p, q, s: x[rows(x)[:, None], torch.tensor([3, -1]), p[:, None]]), **whole)
    case("row, channel and a constant position", fn(lambda x, p, q, s: x[rows(x), p % CHANNELS, 7] + x[rows(x), p % CHANNELS, torch.tensor(-2)]), **whole, select="view|whole values")
    case("row and channel", fn(lambda x, p, q, s: x[rows(x), p % CHANNELS].relu()))
    case("row and two channels", fn(lambda x, p, q, s: x[rows(x)[:, None], q[:, :2] % CHANNELS].relu()))
    case("row and channel behind the positions", fn(lambda x, p, q, s: x.transpose(1, 2)[rows(x), :, p % CHANNELS].relu()))
    case("row and position of a line", fn(lambda x, p, q, s: x[:, 2][rows(x), p]), **whole)
    case("row and place of flattened", fn(lambda x, p, q, s: x.flatten(1)[rows(x), p * 2]), **whole)
    case("row and position of a mask", fn(lambda x, p, q, s: (x > 0)[rows(x), :, p].double()), only_double=True, _to_copy="whole values|elementwise", **whole)
    case("row and position of four axes", fn(lambda x, p, q, s: x.unflatten(1, (2, 3))[rows(x), 1, :, p]), **whole)
    case("row of whole values", fn(lambda x, p, q, s: x.softmax(2)[rows(x), :, p]), softmax="whole values", _softmax="whole values", **whole)
    case("after a pool", fn(lambda x, p, q, s: F.max_pool1d(x, 2)[rows(x), :, p // 3]), **whole)
    case("then a linear layer", fn(lambda m, x, p, q, s: m.fc(x.relu()[rows(x), :, p]), fc=lambda: nn.Linear(CHANNELS, 3)), **whole)


def member_cases() -> None:
    case = bench("members")
    parts = {name: (lambda: nn.Conv1d(CHANNELS, 3, 3, padding=1)) for name in "abc"}
    members = lambda m, x: torch.stack([m.a(x), m.b(x), m.c(x)])  # noqa: E731
    combined = {
        "median": lambda s: s.median(0).values, "quantile": lambda s: s.quantile(0.4, dim=0, keepdim=True)[0], "sort": lambda s: s.sort(dim=0).values[1:].mean(0), "topk": lambda s: s.topk(2, 0)[0].sum(0),
        "kthvalue": lambda s: s.kthvalue(2, 0)[0], "softmax": lambda s: (s.softmax(0) * s).sum(0), "cumsum": lambda s: s.cumsum(0)[-1], "norm": lambda s: s.norm(dim=0),
        "std": lambda s: s.std(0), "std_mean": lambda s: (lambda a, b: a / (b.abs() + 1))(*torch.std_mean(s, 0)), "all": lambda s: (s > 0).all(0), "trimmed": lambda s: s.exp().sort(0).values[1],
        "moved": lambda s: s.movedim(0, -1).median(-1).values, "permuted": lambda s: s.permute(1, 2, 0, 3).flatten(1, 2), "of positions": lambda s: s.mean(3).median(0).values,
        "negative axis": lambda s: s.median(-4).values, "positions first": lambda s: s.amax(-1).softmax(0)[0], "log of mean": lambda s: s.log_softmax(2).exp().mean(0).log(),
        "clamped": lambda s: s.clamp(-0.1, 0.3).mean(0), "several": lambda s: s.mean((0, 3)),
    }  # fmt: skip
    for name, function in combined.items():
        families = {"of positions": {"median": "whole values"}, "positions first": {"softmax": "whole values", "amax": "reduce"}}.get(name, {})
        case(f"{name} of members", fn(lambda m, x, f=function: f(members(m, x)), **parts), mul="merge", **families)
    case("median of heads", fn(lambda m, x: torch.stack([m.a(x.flatten(1)), m.b(x.flatten(1)), m.c(x.flatten(1))]).median(0)[0], **dict.fromkeys("abc", lambda: nn.Linear(78, 2))),
         median="whole values")  # fmt: skip


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


def complex_cases() -> None:
    case = bench("complex numbers")
    # `Module.to` leaves nothing of a complex parameter's imaginary part
    made = lambda *shape: lambda: nn.Parameter(torch.randn(*shape, 2))  # noqa: E731
    wide = lambda x: x.to(torch.complex128)  # noqa: E731
    families = {"view_as_real": "view", "view_as_complex": "view", "_conj": "view", "_to_copy": "view", "to": "view"}

    def one(name: str, function: Callable[..., Any], trunk: int = 3, parts: dict[str, Any] | None = None, **more: str) -> None:
        def run(m: nn.Module, x: torch.Tensor) -> Any:
            weights = {key: torch.view_as_complex(value) for key, value in m.named_parameters(recurse=False)}
            return function(SimpleNamespace(**weights, **dict(m.named_children())), x)

        case(name, fn(run if parts else function, **(parts or {})), trunk, only_double=True, **{**families, **more})

    for k, s, p, d, g in ((3, 1, 1, 1, 1), (4, 2, 3, 1, 2), (3, 1, 2, 2, 1), (5, 3, 0, 1, 1)):
        one(f"convolution k{k} s{s} p{p} d{d} g{g}", lambda m, x, s=s, p=p, d=d, g=g: F.conv1d(wide(x), m.w, m.b, s, p, d, g).abs(), parts={"w": made(4, CHANNELS // g, k), "b": made(4)})
    one("convolution of letters", lambda m, x: F.conv1d(wide(x), m.w, padding=2).abs(), 0, {"w": made(4, 4, 5)})
    one("convolution padding same", lambda m, x: F.conv1d(wide(x), m.w, padding="same").real, 5, {"w": made(4, CHANNELS, 4)})
    one("convolution of n,C,1,L", lambda m, x: F.conv2d(wide(x).unsqueeze(2), m.w, padding=(0, 1)).imag, parts={"w": made(4, CHANNELS, 1, 3)})
    one("convolution of n,C,L,1", lambda m, x: F.conv2d(wide(x).unsqueeze(3), m.w, stride=(2, 1)).imag, parts={"w": made(4, CHANNELS, 3, 1)})
    one("transposed convolution", lambda m, x: F.conv_transpose1d(wide(x), m.w, stride=2).abs(), parts={"w": made(CHANNELS, 3, 4)})
    one("parts squared", lambda m, x: (lambda z: z.real**2 + z.imag**2)(F.conv1d(wide(x), m.w)), parts={"w": made(4, CHANNELS, 3)})
    one("two convolutions", lambda m, x: torch.complex(m.a(x), m.b(x)).abs(), parts=dict.fromkeys("ab", lambda: nn.Conv1d(CHANNELS, 3, 3)))
    one("rectified parts", lambda m, x: (lambda z: torch.complex(z.real.relu(), z.imag.relu()))(x * m.w).abs(), parts={"w": made(CHANNELS, 1)})
    one("product and conjugate", lambda m, x: (x * m.w * (x.flip(1) * m.w).conj()).real, parts={"w": made(CHANNELS, 1)}, mul="merge|elementwise")
    one("angle and length", lambda m, x: (x * m.w + 1).angle() + (x * m.w).abs(), parts={"w": made(CHANNELS, 1)})
    one("polar", lambda x: torch.polar(x.abs(), x).imag + torch.exp(1j * x).real)
    one("sum over positions", lambda m, x: (x * m.w).mean(2).abs(), parts={"w": made(CHANNELS, 1)})
    one("linear", lambda m, x: F.linear(wide(x.transpose(1, 2)), m.w, m.b).abs(), parts={"w": made(3, CHANNELS), "b": made(3)})
    one("linear of flattened", lambda m, x: F.linear(wide(x.flatten(1)), m.w).abs(), parts={"w": made(3, 13 * CHANNELS)})
    one("joined, cropped, sorted out", lambda m, x: torch.cat([x * m.w, wide(x)], 1)[:, 2:, 3:-2].flip(2).abs(), parts={"w": made(CHANNELS, 1)})
    one("rotary", lambda m, x: torch.view_as_real(torch.view_as_complex(x.transpose(1, 2).unflatten(2, (3, 2)).contiguous()) * m.w).flatten(2), parts={"w": made(13, 3)})
    one("divided", lambda m, x: (x * m.w / (x * m.v + 3)).abs(), parts={"w": made(CHANNELS, 1), "v": made(CHANNELS, 1)})
    one("returned", lambda m, x: x * m.w, parts={"w": made(CHANNELS, 1)})


for build in (conv_cases, order_cases, pick_cases, member_cases, unfold_cases, complex_cases, pool_cases, elementwise_cases, norm_cases, merge_cases, view_cases, dense_cases, dtype_cases):
    build()
ALL = [(name, case.name) for name, made in BENCHES.items() for case in made.cases]
CONVOLUTIONS = [n for n in BENCHES if "convolution" in n or "receptive" in n]


FLOAT32_CHUNKS = ("both sequences", "three wide", "N", "soft")

# ---- running a bench ------------------------------------------------------------------------------------------------------------------------


@dataclass
class Findings:
    """What a bench showed: for each case, the law's violations and what handled each operation; or the error."""

    laboratory: Laboratory
    owners: dict[int, int]  # node -> number of its case
    cases: list[Case]

    def of(self, problems: list[tuple[int, str]], label: str) -> list[str]:
        number = [c.name for c in self.cases].index(label)
        nodes = self.laboratory.graph.nodes
        return [f"{nodes[i].op or nodes[i].kind} ({i}): {text}" for i, text in problems if self.owners.get(i) == number]


def set_up(cases: list[Case], made: Bench, dtype: torch.dtype = torch.float64) -> Findings:
    model = Branches(cases).to(dtype)
    X = laboratory_sequences(4, made.length).to(dtype)
    extras = tuple(e.to(dtype) if e.is_floating_point() else e for e in extras_for(made.extras, made.length))
    laboratory = Laboratory(model, X, extras)
    outputs = [len(tensors_of(branch(X, *extras))) for branch in laboratory.model.branches]
    owners: dict[int, int] = {}
    number = [i for i, count in enumerate(outputs) for _ in range(count)]
    for leaf, owner in zip(laboratory.graph.outputs, number, strict=True):
        waiting = [leaf] if isinstance(leaf, int) else []
        while waiting:
            i = waiting.pop()
            if i not in owners and laboratory.graph.nodes[i].kind == "call":
                owners[i] = owner
                waiting.extend(laboratory.graph.nodes[i].inputs)
    return Findings(laboratory, owners, cases)


@functools.cache
def bench_findings(name: str) -> Findings:
    return set_up(BENCHES[name].cases, BENCHES[name], torch.float32 if name == "dtypes" else torch.float64)


@functools.cache
def bench_chunks(name: str) -> list[Chunk]:
    return chunks(laboratory_sequences(4, BENCHES[name].length))


@functools.cache
def bench_problems(name: str, dtype: torch.dtype, tolerance: float) -> list[tuple[int, str]] | Exception:
    made = bench_chunks(name)
    if dtype == torch.float32:
        made = [c for c in made if c.name in FLOAT32_CHUNKS]
    try:
        return list(bench_findings(name).laboratory.problems(made, dtype, tolerance))
    except Exception as error:  # one case of the bench raised; each is then run by itself
        return error


def violations(name: str, label: str, dtype: torch.dtype, tolerance: float) -> list[str]:
    problems = bench_problems(name, dtype, tolerance)
    if not isinstance(problems, Exception):
        return bench_findings(name).of(problems, label)
    case = next(c for c in BENCHES[name].cases if c.name == label)
    alone = set_up([case], BENCHES[name], torch.float32 if name == "dtypes" else torch.float64)
    return alone.of(list(alone.laboratory.problems(bench_chunks(name), dtype, tolerance)), label)


# ---- the tests ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "label"), ALL)
def test_the_law_in_float64(name: str, label: str) -> None:
    tolerance = 1e-5 if name == "dtypes" else 1e-10  # a model with float32 inside is not run in float64
    found = violations(name, label, torch.float64, tolerance)
    assert not found, "\n".join(found[:8])


@pytest.mark.parametrize(("name", "label"), [(n, c.name) for n, made in BENCHES.items() for c in made.cases if not c.only_double])
def test_the_law_in_float32(name: str, label: str) -> None:
    found = violations(name, label, torch.float32, 2e-3)
    assert not found, "\n".join(found[:8])


@pytest.mark.parametrize(("name", "label"), ALL)
def test_the_family_that_handles_it(name: str, label: str) -> None:
    findings = bench_findings(name)
    number = [c.name for c in findings.cases].index(label)
    case, laboratory = findings.cases[number], findings.laboratory
    nodes, layouts = laboratory.graph.nodes, laboratory.plan.layouts
    wrong = []
    for i, family in laboratory.families().items():
        if findings.owners.get(i) == number:
            op = nodes[i].op.removeprefix("aten.").removeprefix("_operator.").removeprefix("operator.")
            wanted = case.families.get(op, USUAL.get(op, "elementwise"))
            given = {layouts[j].kind for j in nodes[i].inputs if nodes[j].mutated}
            if not any(fits(option, family, layouts[i].kind, given) for option in [*wanted.split("|"), case.families.get("any", "")]):
                reason = laboratory.plan.reasons.get(i, layouts[i].kind)
                wrong.append(f"{op} is handled as {family!r}, not {wanted!r} ({reason})")
    assert not wrong, "\n".join(wrong)


def fits(wanted: str, family: str, layout: str, given: set[str]) -> bool:
    """Whether a node is handled as wanted; windows must stay windows, except in reductions, dense layers, and where "
    "it says so."""
    if wanted == "naive" or family == "naive":
        return wanted == family
    if wanted == "whole values" or given == {"rows"}:
        return layout == "rows"
    return wanted == family and (layout == "windows" or family in ("reduce", "dense") or "rows" in given)


# ---- every registered operation has a case ------------------------------------------------------------------------------------------------

aten = torch.ops.aten
Arguments = Callable[..., tuple[Any, ...]]


def random_weights(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(shape, dtype=torch.float64, generator=generator) + 0.5 for shape in shapes]


class ByHand(nn.Module):
    """A convolution and one overload, which is given ``(x, size of the batch, *weights)``."""

    def __init__(self, target: Any, arguments: Arguments, weights: list[torch.Tensor]) -> None:
        super().__init__()
        self.target, self.arguments = target, arguments
        self.conv = nn.Conv1d(4, CHANNELS, 3, padding=1)
        for i, value in enumerate(weights):
            self.register_buffer(f"weight{i}", value)

    def forward(self, x: torch.Tensor) -> Any:
        weights = [b for n, b in self.named_buffers() if n.startswith("weight")]
        value = self.target(*self.arguments(self.conv(x), x.shape[0], *weights))
        return value[0] if isinstance(value, tuple | list) else value

    def graph(self, X: torch.Tensor) -> Graph:
        count = len(list(self.buffers()))
        nodes = [Node(i, "weight", key=f"weight{i}", shape=tuple(b.shape), dtype=b.dtype) for i, b in enumerate(self.buffers())]
        for name in ("conv.weight", "conv.bias"):
            nodes.append(Node(len(nodes), "weight", key=name, shape=tuple(self.get_parameter(name).shape), dtype=X.dtype))
        sequence, mutated = len(nodes), {"mutated": True, "batched": True}
        nodes.append(Node(sequence, "sequence", shape=(None, *X.shape[1:]), dtype=X.dtype, **mutated))
        size = Node(sequence + 1, "call", "aten.sym_size", aten.sym_size.int, (Ref(sequence), 0), batched=True)
        x = Node(sequence + 2, "call", "aten.conv1d", aten.conv1d.default, (Ref(sequence), Ref(count), Ref(count + 1), [1], [1]),
                 shape=(None, CHANNELS, X.shape[2]), dtype=X.dtype, **mutated)  # fmt: skip
        result = self(X)
        several = len(self.target._schema.returns) > 1
        name = f"{self.target.namespace}.{self.target._schema.name.split('::')[1]}"
        arguments = self.arguments(Ref(x.index), Ref(size.index), *(Ref(i) for i in range(count)))
        node = Node(sequence + 3, "call", name, Result(self.target) if several else self.target, arguments,
                    shape=(None, *result.shape[1:]), dtype=result.dtype, **mutated)  # fmt: skip
        return Graph([*nodes, size, x, node], [node.index], lambda values: values[0], "*", "by hand")


# overloads that this version of torch.export does not give, but another may
C6 = (CHANNELS,)
BY_HAND: list[tuple[Any, Arguments, list[tuple[int, ...]], str]] = [
    (aten._softmax.default, lambda x, n: (x, 1, False), [], "elementwise"),
    (aten._softmax.default, lambda x, n: (x, 2, False), [], "whole values"),
    (aten._log_softmax.default, lambda x, n: (x, 1, False), [], "elementwise"),
    (aten.cumprod.default, lambda x, n: (x, 1), [], "elementwise"),
    (aten.logcumsumexp.default, lambda x, n: (x, 1), [], "elementwise"),
    (aten._prelu_kernel.default, lambda x, n, w: (x, w), [(1, CHANNELS, 1)], "elementwise"),
    (aten.batch_norm.default, lambda x, n, w, b, m, v: (x, w, b, m, v, False, 0.1, 1e-5, False), [C6] * 4, "elementwise"),
    (aten.native_batch_norm.default, lambda x, n, w, b, m, v: (x, w, b, m, v, False, 0.1, 1e-5), [C6] * 4, "elementwise"),
    (aten.native_batch_norm.default, lambda x, n, m, v: (x, None, None, m, v, False, 0.1, 1e-5), [C6] * 2, "elementwise"),
    (aten._native_batch_norm_legit_no_training.default, lambda x, n, w, b, m, v: (x, w, b, m, v, 0.1, 1e-5), [C6] * 4, "elementwise"),
    (aten.native_layer_norm.default, lambda x, n, w, b: (x, [13], w, b, 1e-5), [(13,)] * 2, "whole values"),
    (aten.max_pool2d_with_indices.default, lambda x, n: (x, [1, 3], [1, 2]), [], "naive"),
    (aten.max_pool1d_with_indices.default, lambda x, n: (x, [3], [2]), [], "pool"),
    (aten.max_pool1d.default, lambda x, n: (x, [3]), [], "pool"),
    (aten.concat.default, lambda x, n: ([x, x], 1), [], "merge"),
    (aten.cat.default, lambda x, n: ([x, x], -1), [], "merge"),
    (aten.constant_pad_nd.default, lambda x, n: (x, [2, 1], 0.5), [], "view"),
    (aten.pad.default, lambda x, n: (x, [2, -1]), [], "view"),
    (aten.movedim.int, lambda x, n: (x, 1, 2), [], "view"),
    (aten.swapaxes.default, lambda x, n: (x, 1, 2), [], "view"),
    (aten.transpose.int, lambda x, n: (x, -1, -2), [], "view"),
    (aten.unflatten.int, lambda x, n: (x, 1, [2, 3]), [], "view"),
    (aten.flatten.using_ints, lambda x, n: (x, 1), [], "view"),
    (aten.reshape.default, lambda x, n: (x, [n, 2, 3, 13]), [], "view"),
    (aten.view.default, lambda x, n: (x, [-1, 3, 2, 13]), [], "view"),
    (aten.squeeze.dims, lambda x, n: (x, [1, 2]), [], "view"),
    (aten.to.dtype, lambda x, n: (x, torch.float32), [], "view"),
    (aten.adaptive_avg_pool1d.default, lambda x, n: (x, [13]), [], "pool"),
    (aten.upsample_nearest1d.default, lambda x, n: (x, [26]), [], "view"),
    (aten.max.dim, lambda x, n: (x, 2, True), [], "reduce"),
    (aten.min.dim, lambda x, n: (x, -1), [], "reduce"),
    (aten.amax.default, lambda x, n: (x, [2]), [], "reduce"),
    (aten.mean.dim, lambda x, n: (x, [-1], True), [], "reduce"),
    (aten.conv1d.padding, lambda x, n, w: (x, w, None, [1], "same"), [(3, CHANNELS, 4)], "convolution"),
]
# operations that no case can put to the law
EXCUSED = {"pointwise": "a stand-in for everything that PyTorch tags so", "aten.empty": "has no values", "aten.resolve_conj": "a copy"}


@pytest.mark.parametrize(("target", "arguments", "shapes", "wanted"), BY_HAND, ids=[f"{t}-{i}" for i, (t, *_) in enumerate(BY_HAND)])
def test_the_law_for_graphs_by_hand(target: Any, arguments: Arguments, shapes: list[tuple[int, ...]], wanted: str) -> None:
    X = laboratory_sequences(4, 13)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ByHand(target, arguments, random_weights(*shapes)).double()
    laboratory = Laboratory(model, X, (), model.graph(X))
    tolerance = 1e-6 if target is aten.to.dtype else 1e-10
    found = [text for _, text in laboratory.problems(chunks(X), torch.float64, tolerance)]
    assert not found, "\n".join(found[:8])
    last = len(laboratory.graph.nodes) - 1
    assert fits(wanted, laboratory.families()[last], laboratory.plan.layouts[last].kind, {"windows"}), laboratory.plan.reasons


@pytest.mark.parametrize("name", list(BENCHES))
def test_what_does_not_read_the_reference(name: str) -> None:
    """The change is the same when every value that depends on the batch is another one."""
    laboratory = bench_findings(name).laboratory
    run, checked = laboratory.run(), 0
    nodes = laboratory.graph.nodes
    floating = [n.shape is not None and n.floating for n in nodes]
    run.keep_all = True
    with torch.no_grad():
        for item in bench_chunks(name):
            if item.name not in FLOAT32_CHUNKS:
                continue
            windows = run.set_sites(item.sites)
            run.chunk(item.sites)
            changes, true = list(run._changes), run.reference
            scrambled = [torch.randn_like(v) if f and n.batched else v for n, f, v in zip(nodes, floating, true.values, strict=True)]
            run.reference = Reference(scrambled, true.batch)
            for node, rule, change in zip(nodes, run.plan.rules, changes, strict=True):
                if rule is None or rule.reads_reference or change is None or not all(floating[i] for i in (node.index, *rule.sources)):
                    continue
                again = rule.run(run, [changes[s] for s in rule.sources], windows[node.index])
                assert torch.equal(again, change.tensor), f"{item.name}: {node.op} ({node.index})"
                checked += 1
            run.reference = true
    assert checked, "no rule says so"


def test_every_registered_operation_has_a_case() -> None:
    met = {node.op for name in BENCHES for node in bench_findings(name).laboratory.graph.nodes}
    met |= {f"aten.{target._schema.name.split('::')[1]}" for target, *_ in BY_HAND}
    without = set(registered()) - met - set(EXCUSED)
    assert not without, f"no case puts these to the law: {sorted(without)}"


# ---- ways of running a convolution ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convolution", "convolution in two dimensions", "shorter than the receptive field", "cropped"])
@pytest.mark.parametrize("way", list(WAYS))
def test_the_law_for_every_way_of_convolving(way: str, name: str) -> None:
    findings = bench_findings(name)
    theirs = findings.laboratory
    laboratory = Laboratory(theirs.model, theirs.X, theirs.args, theirs.graph)  # a plan of its own
    laboratory.plan.sensing = Sensing(1.5, 0)
    everywhere, run = laboratory.plan.windows(np.arange(BENCHES[name].length), 3), laboratory.run()
    forced = []
    for rule in laboratory.plan.rules:
        if isinstance(rule, Convolution):
            rule.way = way if way in rule.applicable(run, everywhere[rule.sources[0]].width) else "windows"
            forced.append(rule.way == way)
    few = way == "blocks" and name != "convolution"  # which has the layers with channels enough
    wanted = 5 if not few else int(name in ("shorter than the receptive field", "cropped"))
    assert sum(forced) >= wanted, f"{way} applies to {sum(forced)} convolutions only"
    exact = WAYS[way].exact
    found = [f"{findings.cases[findings.owners[i]].name}: {text}" for i, text in laboratory.problems(bench_chunks(name), tolerance=1e-10 if exact else 1e-4)]
    assert not found, "\n".join(found[:8])
    if not exact:
        assert way_correlation(laboratory, bench_chunks(name)) > 0.9999


def way_correlation(laboratory: Laboratory, made: list[Chunk]) -> float:
    """Pearson correlation of all outputs' changes with the truth, the least over chunks."""
    run, least = laboratory.run(), 1.0
    with torch.no_grad():
        for item in made:
            edits = item.sites.difference.shape[1]
            before = laboratory.X[torch.from_numpy(item.sites.sequence.repeat(edits))]
            truth = [m - b for m, b in zip(tensors_of(laboratory.twin(item.mutants)), tensors_of(laboratory.twin(before)), strict=True)]
            changes = run.chunk(item.sites)
            found = [laboratory.difference(run, o, c) for o, c in zip(laboratory.graph.outputs, changes, strict=True)]
            both = torch.stack([torch.cat([t.flatten() for t in tensors]) for tensors in (found, truth)])
            least = min(least, float(torch.corrcoef(both)[0, 1]))
    return least


@pytest.mark.parametrize("name", ["convolution", "dense"])
def test_medium_precision_stays_near_the_law(name: str) -> None:
    """Products in bfloat16: near, and for some cases plainly not float32."""
    findings = bench_findings(name)
    theirs = findings.laboratory
    laboratory = Laboratory(theirs.model, theirs.X, theirs.args, theirs.graph)
    laboratory.plan.precision = "medium"
    made = [c for c in bench_chunks(name) if c.name in FLOAT32_CHUNKS]
    found = [f"{findings.cases[findings.owners[i]].name}: {text}" for i, text in laboratory.problems(made, torch.float32, 0.04)]
    assert not found, "\n".join(found[:8])
    assert list(laboratory.problems(made, torch.float32, 1e-4))


def test_a_broken_handler_is_noticed() -> None:
    """The law itself can fail: a convolution whose weight differs from the model's."""
    X = laboratory_sequences(4, 13)
    laboratory = Laboratory(nn.Sequential(nn.Conv1d(4, 3, 3), nn.ReLU()).double(), X)
    assert not list(laboratory.problems(chunks(X)))
    rule = next(r for r in laboratory.plan.rules if isinstance(r, Convolution))
    kernel = rule.kernel
    rule.kernel = lambda weight: kernel(weight) * (1 + 1e-8)
    assert {i for i, _ in laboratory.problems(chunks(X))} == {3, 4}
