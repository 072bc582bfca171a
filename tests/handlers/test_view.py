"""The law for operations that move numbers: permuting, reshaping, padding, cropping, picking."""


import torch
import torch.nn.functional as F
from torch import nn

import yuzu  # noqa: F401  registers every handler
from tests.laws.bench import CHANNELS, bench, fn, laws_of


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
        for sizes in ((3, 2), (0, 4), (5, 0), (-2, 3), (1, -4)):
            case(f"pad {mode} {sizes}", fn(lambda x, mode=mode, s=sizes: F.pad(x, s, mode=mode).relu()), 5 if sizes[0] else 0)
        case(f"pad {mode} n,L,C", fn(lambda x, mode=mode: F.pad(x.transpose(1, 2), (1, 2), mode=mode).exp()))
        case(f"pad {mode} both axes", fn(lambda x, mode=mode: F.pad(x[:, None], (3, 2, 1, 1), mode=mode)), pad="view|whole values")
        case(f"pad {mode} a mask", fn(lambda x, mode=mode: F.pad((x > 0).double(), (3, 2), mode=mode)))
        case(f"pad {mode}, then a convolution", fn(lambda m, x, mode=mode: m.conv(F.pad(x, (3, 2), mode=mode)).relu(), conv=lambda: nn.Conv1d(CHANNELS, 3, 4)))
        case(f"pad {mode} whole", fn(lambda x, mode=mode: F.pad(x.softmax(2), (3, 2), mode=mode)), softmax="elementwise|whole values")
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
    for shift in (3, -2, 0, 13, 40):
        case(f"roll {shift}", fn(lambda x, s=shift: x.roll(s, 2).relu()), 0 if shift == -2 else 3)
    case("roll channels", fn(lambda x: x.roll(1, 1)))
    case("roll n,L,C", fn(lambda x: x.transpose(1, 2).roll(-4, 1).exp()))
    case("roll both", fn(lambda x: x.roll((1, 4), (1, 2))), roll="whole values")
    case("roll a mask", fn(lambda x: (x > 0).roll(2, 2).double()), roll="view|whole values")
    case("roll, then a convolution", fn(lambda m, x: m.conv(x.roll(5, 2)).relu(), conv=lambda: nn.Conv1d(CHANNELS, 3, 4, 2)))
    case("roll whole", fn(lambda x: x.softmax(2).roll(2, 2)), softmax="elementwise|whole values")
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
    case("upsample unevenly", lambda: nn.Upsample(size=20))
    case("interpolate after pool", fn(lambda x: F.interpolate(F.max_pool1d(x, 3), scale_factor=3.0) + x[:, :, :12]))
    case("upsample by a fraction more", lambda: nn.Upsample(scale_factor=2.04))
    case("upsample linear", fn(lambda x: F.interpolate(x, scale_factor=2, mode="linear")), upsample_linear1d="view")
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
    for name, places in {"from behind": range(12, -1, -1), "every third": range(0, 13, 3), "negative": range(-1, -9, -1), "twice": sorted([*range(13)] * 2), "one": [7]}.items():
        case(f"index positions {name}", fn(lambda x, p=list(places): x[:, :, p].relu()), 5 if name == "twice" else 3)
        case(f"index positions {name} by select", fn(lambda x, p=[place % 13 for place in places]: x.transpose(1, 2).index_select(1, torch.tensor(p)).exp()))
    case("index positions by a range", fn(lambda m, x: m.conv(x[:, :, torch.arange(24, -1, -2) // 2]).relu(), conv=lambda: nn.Conv1d(CHANNELS, 3, 3)))
    case("index positions in disorder", fn(lambda x: x.repeat(1, 1, 6)[:, :, torch.arange(78) * 31 % 78].relu()), index="whole values", repeat="view|whole values", relu="elementwise|whole values")
    case("index select positions", fn(lambda m, x: x.index_select(2, m.i), i=lambda: torch.tensor([3, 1, 12])), index_select="whole values")
    case("index by a table", fn(lambda x: x[:, torch.tensor([[0, 2], [1, 1]])].relu()))
    case("index positions by a table", fn(lambda x: x[:, :, torch.arange(4)[:, None] + torch.tensor([0, 3, -2])].relu()), index="whole values")
    case("index a mask's positions by a table", fn(lambda x: (x > 0)[:, :, torch.tensor([[0, 5], [-1, 5]])].double()), index="whole values")
    case("index of two axes", fn(lambda x: x[:, [0, 2, 1], [3, 3, 12]]), index="whole values")
    case("index of two other axes", fn(lambda x: x.unflatten(1, (2, 3))[:, [0, 1, 1], [2, 0, -1]].relu()))
    case("index of two axes behind the positions", fn(lambda x: x.unflatten(1, (2, 3)).movedim(3, 1)[:, :, [0, 1], [2, 0]].relu()))
    case("upper triangle", fn(lambda x: (x.transpose(1, 2) @ x)[:, torch.triu_indices(13, 13)[0], torch.triu_indices(13, 13)[1]]), index="whole values",
         matmul="whole values")  # fmt: skip
    case("index by a mask", fn(lambda m, x: x[:, :, m.i], i=lambda: torch.arange(13) % 3 == 0))
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


(
    test_the_law_in_float64,
    test_the_law_in_float32,
    test_the_family_that_handles_it,
    test_what_does_not_read_the_reference,
) = laws_of(view_cases)
