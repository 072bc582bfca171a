"""Norms, gates and pools over all positions: Cherimoya, group and instance norms, ConvNeXt, attention pools."""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts import Residual, Transposed, block
from models.weights import draw_anew


class PlaneNorm(nn.Module):
    """Three dilated depthwise taps, and a norm over positions and channels together; reads ``(n, L, C)``."""

    def __init__(self, filters: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.conv_weight = nn.Parameter(torch.randn(3, filters))

    def forward(self, x: Tensor) -> Tensor:
        d, length = self.dilation, x.shape[1]
        left, right = F.pad(x, (0, 0, d, 0))[:, :length], F.pad(x, (0, 0, 0, d))[:, d:]
        before, here, after = self.conv_weight
        y = left * before + x * here + right * after
        flat = y.reshape(len(y), -1)
        flat = (flat - flat.mean(1, keepdim=True)) * torch.rsqrt(flat.var(1, keepdim=True, unbiased=False) + 1e-3)
        return flat.reshape(y.shape)


class CherimoyaBlock(nn.Module):
    """A plane norm, a bottleneck that is twice as wide, and a scaled sum with the input."""

    def __init__(self, filters: int, dilation: int, scale: float = 0.15) -> None:
        super().__init__()
        self.scale, self.conv = scale, PlaneNorm(filters, dilation)
        self.linear1 = nn.Linear(filters, 2 * filters, bias=False)
        self.linear2 = nn.Linear(2 * filters, filters, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.linear2(F.gelu(self.linear1(self.conv(x)), approximate="tanh"))


class Cherimoya(nn.Module):
    """Nine such blocks of growing dilation after a convolution, a profile head, and a log-count head."""

    def __init__(self, filters: int = 128, layers: int = 9) -> None:
        super().__init__()
        self.trimming = 46 + sum(2**i for i in range(layers))
        self.first = nn.Conv1d(4, filters, 21, padding=10)
        self.blocks = nn.Sequential(*(CherimoyaBlock(filters, 2**i) for i in range(layers)))
        self.profile, self.counts = nn.Conv1d(filters, 1, 75, padding=37), nn.Linear(filters, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.gelu(self.first(x), approximate="tanh")
        x = self.blocks(x.transpose(1, 2)).transpose(1, 2)
        a, b = self.trimming, x.shape[2] - self.trimming
        return self.profile(x)[:, :, a:b], self.counts(x[:, :, a:b].mean(2))


def cherimoya() -> nn.Module:
    """Cherimoya at its published size, with weights that keep the size of a signal."""
    return lively(Cherimoya())


def lively(model: nn.Module) -> nn.Module:
    """Draw the weights of a Cherimoya, this one or the package's, anew."""
    for module in model.modules():
        taps = module._parameters.get("conv_weight")
        if taps is not None:
            nn.init.normal_(taps, 0, 3**-0.5)
    return draw_anew(model)


def has_package() -> bool:
    """Tell whether the package ``cherimoya`` and what it imports are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("cherimoya", "tangermeme"))


def packaged() -> nn.Module:
    """The package's Cherimoya as its users call it: not compiled, in the wrapper that stands in for control tracks."""
    from cherimoya import Cherimoya as Published
    from cherimoya import ControlWrapper

    return lively(ControlWrapper(Published(compile=False)))


def unpackaged(wrapped: nn.Module) -> nn.Module:
    """The package's Cherimoya in our own words, with the same weights: its norms compute in float32 always."""
    own, model = Cherimoya(), wrapped.model
    pairs = [(own.first, model.iconv), (own.profile, model.fconv), (own.counts, model.linear)]
    for ours, theirs in zip(own.blocks, model.blocks, strict=True):
        pairs += [(ours.linear1, theirs.linear1), (ours.linear2, theirs.linear2), (ours.conv, theirs.conv)]
    for ours, theirs in pairs:
        ours.load_state_dict(theirs.state_dict())
    return own


class LogCounts(nn.Module):
    """The second output of a model that gives a profile and log counts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[1]


class MeanHead(nn.Module):
    """The mean over positions, and a dense layer."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean(2))


def group_norms(width: int = 64, layers: int = 6, groups: int = 4) -> nn.Module:
    """Dilated residual convolutions, each with a group norm over a quarter of the channels and all positions."""
    return nn.Sequential(
        nn.Conv1d(4, width, 15, padding=7),
        *(
            Residual(nn.Conv1d(width, width, 3, padding=2**i, dilation=2**i), nn.GroupNorm(groups, width), nn.SiLU())
            for i in range(layers)
        ),
        MeanHead(width, 4),
    )


def instance_norms(width: int = 16, layers: int = 2) -> nn.Module:
    """Convolutions of few channels, each channel normalised over all positions."""
    convs = [nn.Conv1d(a, width, 11, padding=5) for a in (4, *[width] * (layers - 1))]
    norms = [nn.InstanceNorm1d(width, affine=True) for _ in convs]
    middle = [m for conv, norm in zip(convs, norms, strict=True) for m in (conv, norm, nn.SiLU())]
    last = [nn.Conv1d(width, 64, 9, padding=4), nn.SiLU(), nn.Conv1d(64, 64, 9, padding=4), nn.SiLU()]
    return nn.Sequential(*middle, *last, MeanHead(64, 4))


class ResponseNorm(nn.Module):
    """Each channel's length over positions, over the mean of all channels' lengths, as a gate; reads ``(n, L, C)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.randn(channels) / 2), nn.Parameter(torch.randn(channels) / 10)

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(dim=1, keepdim=True)
        return x + self.gamma * (x * (size / (size.mean(-1, keepdim=True) + 1e-6))) + self.beta


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, a norm over channels, and a bottleneck with a response norm."""

    def __init__(self, width: int, factor: int = 4) -> None:
        super().__init__()
        wide = factor * width
        self.depthwise = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.rest = Transposed(
            nn.Sequential(
                *(nn.LayerNorm(width), nn.Linear(width, wide), nn.GELU(), ResponseNorm(wide), nn.Linear(wide, width))
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.rest(self.depthwise(x))


def convnext(width: int = 64, layers: int = 3) -> nn.Module:
    """A wide convolution, three such blocks and a pooled head."""
    return nn.Sequential(
        nn.Conv1d(4, width, 15, padding=7), *(ConvNeXtBlock(width) for _ in range(layers)), MeanHead(width, 4)
    )


class GroupGate(nn.Module):
    """A gate for each group of channels, worked out from the groups' means over positions."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.gate = nn.Sequential(nn.Linear(groups, groups), nn.SiLU(), nn.Linear(groups, groups), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y = x.reshape(x.shape[0], self.groups, -1, x.shape[2])
        return (y * self.gate(y.mean((2, 3)))[:, :, None, None]).reshape(x.shape)


def group_gates(width: int = 64, layers: int = 5, groups: int = 8) -> nn.Module:
    """Dilated residual convolutions with a gate for each of eight groups of channels."""
    return nn.Sequential(
        nn.Conv1d(4, width, 15, padding=7),
        *(
            Residual(nn.Conv1d(width, width, 3, padding=2**i, dilation=2**i), nn.GELU(), GroupGate(groups))
            for i in range(layers)
        ),
        MeanHead(width, 4),
    )


class PooledByAttention(nn.Module):
    """Convolutions, and the sum of their positions weighted by a softmax over positions of a learned score."""

    def __init__(self, width: int = 128, outputs: int = 10) -> None:
        super().__init__()
        self.convs = nn.Sequential(block(4, width, 15, 4), block(width, width, 5), block(width, width, 5))
        self.score = nn.Linear(width, 1)
        self.head = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs(x).transpose(1, 2)
        return self.head((x * torch.softmax(self.score(x), 1)).sum(1))
