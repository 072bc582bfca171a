"""Towers of convolutions and pools: scBasset and Basenji."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts import QuickGELU, Residual


class ScBasset(nn.Module):
    def __init__(self, cells: int = 1000) -> None:
        super().__init__()
        widths = [288, 288, 323, 363, 407, 456, 512]
        self.stem = nn.Sequential(nn.Conv1d(4, 288, 17, padding=8), nn.BatchNorm1d(288), nn.MaxPool1d(3))
        self.tower = nn.ModuleList(
            nn.Sequential(QuickGELU(), nn.Conv1d(a, b, 5, padding=2), nn.BatchNorm1d(b), nn.MaxPool1d(2))
            for a, b in zip(widths, widths[1:], strict=False)
        )
        self.last = nn.Sequential(QuickGELU(), nn.Conv1d(512, 256, 1), nn.BatchNorm1d(256), QuickGELU())
        self.bottleneck = nn.Sequential(nn.Linear(256 * 7, 32), nn.BatchNorm1d(32), nn.Dropout(0.2), QuickGELU())
        self.cells = nn.Linear(32, cells)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.tower:
            x = layer(x)
        return torch.sigmoid(self.cells(self.bottleneck(self.last(x).transpose(1, 2).flatten(1))))


class Basenji(nn.Module):
    """A tower of convolutions and pools, dilated residual convolutions with a pointwise one after each, and a head."""

    def __init__(self, width: int = 96, layers: int = 11, tracks: int = 200) -> None:
        super().__init__()
        act = QuickGELU
        self.tower = nn.Sequential(
            *(act(), nn.Conv1d(4, width, 15, padding=7), nn.BatchNorm1d(width), nn.MaxPool1d(2)),
            *(
                nn.Sequential(act(), nn.Conv1d(width, width, 5, padding=2), nn.BatchNorm1d(width), nn.MaxPool1d(2))
                for _ in range(5)
            ),
        )
        dilated = []
        for i in range(layers):
            d, half = min(round(1.5**i), 24), width // 2
            dilated.append(
                Residual(
                    *(act(), nn.Conv1d(width, half, 3, padding=d, dilation=d), nn.BatchNorm1d(half)),
                    *(act(), nn.Conv1d(half, width, 1), nn.BatchNorm1d(width), nn.Dropout(0.3)),
                )
            )
        self.dilated = nn.Sequential(*dilated)
        self.head = nn.Sequential(
            act(), nn.Conv1d(width, 2 * width, 1), nn.BatchNorm1d(2 * width), act(), nn.Conv1d(2 * width, tracks, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(self.head(self.dilated(self.tower(x)))[:, :, 8:-8])
