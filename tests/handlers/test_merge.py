"""The law for sums, products and concatenations of several values, constants and other inputs."""


import torch
import torch.nn.functional as F
from torch import nn

import yuzu  # noqa: F401  registers every handler
from tests.laws.bench import CHANNELS, bench, fn, laws_of


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
    for equation, shape in {"...cl,cd->...dl": (CHANNELS, 3), "...l,l->...l": (13,), "bcl,cd": (CHANNELS, 3), "... c l, d c -> ... l d": (2, CHANNELS), "b...,...d->bd...": (CHANNELS, 13, 2)}.items():
        case(f"einsum {equation}", fn(lambda m, x, e=equation: torch.einsum(e, x, m.w).relu(), w=lambda s=shape: nn.Parameter(torch.randn(s))), relu="elementwise|whole values")
    case("einsum of two with ellipses", fn(lambda x: torch.einsum("...id,...jd->...ij", x, x.exp())), einsum="whole values")
    case("einsum of a mask", fn(lambda m, x: torch.einsum("bcl,c->bcl", x > 0.2, m.w), w=lambda: nn.Parameter(torch.randn(CHANNELS))), einsum="elementwise")
    case("einsum of a rare mask", fn(lambda m, x: torch.einsum("bcl,l->bcl", x > 1.0, m.w), w=lambda: nn.Parameter(torch.randn(13))), einsum="whole values")
    case("einsum of whole numbers", fn(lambda x: torch.einsum("bcl->bc", (x > 0).long()).double()), einsum="whole values", sum="reduce|whole values")
    case("einsum gram", fn(lambda x: torch.einsum("bcl,bdl->bcd", x, x)), einsum="whole values")
    case("einsum by position", fn(lambda m, x: torch.einsum("bcl,cl->bl", x, m.w), w=lambda: nn.Parameter(torch.randn(CHANNELS, 13))))
    case("matmul right", fn(lambda m, x: x.transpose(1, 2) @ m.w, w=lambda: nn.Parameter(torch.randn(CHANNELS, 3))))
    case("matmul over positions", fn(lambda m, x: x @ m.w, w=lambda: nn.Parameter(torch.randn(13, 3))))
    case("matmul left", fn(lambda m, x: m.w @ x, w=lambda: nn.Parameter(torch.randn(3, CHANNELS))), matmul="dense")
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


(
    test_the_law_in_float64,
    test_the_law_in_float32,
    test_the_family_that_handles_it,
    test_what_does_not_read_the_reference,
) = laws_of(merge_cases)
