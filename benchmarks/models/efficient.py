"""Inverted bottlenecks with a gate for each channel: LegNet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts import block


class SqueezeExcitation(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean(2))[:, :, None]


class EfficientBlock(nn.Module):
    """An inverted bottleneck: wider, depthwise, gated, narrower."""

    def __init__(self, channels: int, factor: int = 4) -> None:
        super().__init__()
        wide = channels * factor
        self.layers = nn.Sequential(
            *(nn.Conv1d(channels, wide, 1, bias=False), nn.BatchNorm1d(wide), nn.SiLU()),
            *(nn.Conv1d(wide, wide, 9, padding=4, groups=wide, bias=False), nn.BatchNorm1d(wide), nn.SiLU()),
            SqueezeExcitation(wide, channels),
            *(nn.Conv1d(wide, channels, 1, bias=False), nn.BatchNorm1d(channels), nn.SiLU()),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], 1)


class LegNet(nn.Module):
    def __init__(self, stem: int = 64, sizes: tuple[int, ...] = (80, 96, 112, 128)) -> None:
        super().__init__()
        self.stem = block(4, stem, 11, act=nn.SiLU)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(EfficientBlock(cin), block(2 * cin, cout, 9, 2, nn.SiLU))
                for cin, cout in zip((stem, *sizes), sizes, strict=False)
            )
        )
        self.mapper = nn.Sequential(nn.BatchNorm1d(sizes[-1]), nn.SiLU(), nn.Conv1d(sizes[-1], 2 * sizes[-1], 1))
        wide = 2 * sizes[-1]
        self.head = nn.Sequential(nn.Linear(wide, wide), nn.BatchNorm1d(wide), nn.SiLU(), nn.Linear(wide, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.mapper(self.blocks(self.stem(x)))
        return self.head(F.adaptive_avg_pool1d(x, 1).squeeze(-1))
