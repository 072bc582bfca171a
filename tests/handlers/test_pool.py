"""The law for pools and reductions: kernels, strides, paddings, dilations, adaptive ones."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

import yuzu  # noqa: F401  registers every handler
from tests.laws.bench import CHANNELS, bench, fn, laws_of


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
            case(f"adaptive average {size}", functools.partial(nn.AdaptiveAvgPool1d, size), adaptive_avg_pool1d="reduce" if size == 1 else "pool", mean="reduce")
            case(f"adaptive max {size}", functools.partial(nn.AdaptiveMaxPool1d, size), adaptive_max_pool1d=whole)

    case = bench("reduce")
    for trunk in (0, 3):
        for name, function in {
            "sum": torch.sum, "mean": torch.mean, "amax": torch.amax, "amin": torch.amin, "logsumexp": torch.logsumexp, "var": torch.var,
            "std": torch.std,
        }.items():  # fmt: skip
            for axis, keep in ((2, False), (2, True), (1, False), (1, True), ((1, 2), False))[:: 1 if trunk else 2]:
                family = {"sum": "reduce", "mean": "reduce"}.get(name, "elementwise" if axis == 1 else "whole values")
                family = "reduce" if name in ("amax", "amin", "var", "std") and axis == 2 else family
                case(f"{name} {axis} keep{keep:d} trunk{trunk}", fn(lambda x, f=function, a=axis, k=keep: f(x, dim=a, keepdim=k)), trunk, **{name: family})
    for name, function in {"population": lambda x: x.var(2, correction=0), "correction": lambda x: x.std(2, correction=3), "unbiased": lambda x: x.std(2, unbiased=False),
                           "n,L,C": lambda x: x.transpose(1, 2).std(1), "norm": lambda x: x.norm(dim=2), "vector norm": lambda x: torch.linalg.vector_norm(x, dim=-1, keepdim=True),
                           "four axes": lambda x: x.unflatten(1, (2, -1)).std(3, keepdim=True), "with the mean": lambda x: sum(torch.var_mean(x, 2))}.items():  # fmt: skip
        for trunk in (0, 5):
            case(f"spread, {name}, trunk {trunk}", fn(function), trunk, **dict.fromkeys(["var", "std", "linalg_vector_norm"], "reduce"), any="whole values", sub="merge")
    case("spread of a ReLU", fn(lambda x: x.relu().std(2).log1p() + x.relu().norm(dim=2)), 5, std="reduce", linalg_vector_norm="reduce", log1p="whole values")
    case("spread of channels, unbiased given by place", fn(lambda x: torch.ops.aten.std.dim(x, [1], True) + torch.ops.aten.var.dim(x, [1], False)), any="merge")
    case("one norm", fn(lambda x: x.norm(p=1, dim=2)), linalg_vector_norm="whole values")
    case("spread of all", fn(lambda x: x.std((1, 2))), std="whole values")
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
    for trunk in (0, 5):
        case(f"cumsum over positions, trunk {trunk}", fn(lambda x: x.cumsum(2).relu()), trunk, cumsum="reduce")
    case("cumsum of n,L,C, cropped", fn(lambda x: x.transpose(1, 2).cumsum(1)[:, 4:9].exp()), cumsum="reduce")
    case("cumsum of a mask", fn(lambda x: (x > 0).cumsum(2).double()), cumsum="whole values", _to_copy="whole values", only_double=True)
    case("cumsum twice", fn(lambda m, x: m.conv(x.cumsum(2)).relu().flip(2).cumsum(2), conv=lambda: nn.Conv1d(CHANNELS, 3, 3)), 5, cumsum="reduce")


(
    test_the_law_in_float64,
    test_the_law_in_float32,
    test_the_family_that_handles_it,
    test_what_does_not_read_the_reference,
) = laws_of(pool_cases)
