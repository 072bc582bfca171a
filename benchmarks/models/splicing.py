"""Residual units at full resolution: Pangolin (splicing) and APARENT2 (polyadenylation)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts import Residual


class Pangolin(nn.Module):
    """SpliceAI's residual units with two heads for each of four tissues."""

    def __init__(self, groups: tuple[tuple[int, int], ...] = ((11, 1), (11, 4), (21, 10)), filters: int = 32) -> None:
        super().__init__()
        self.first, self.skip = nn.Conv1d(4, filters, 1), nn.Conv1d(filters, filters, 1)
        self.units, self.skips = nn.ModuleList(), nn.ModuleList()
        self.flank = sum(4 * d * (k - 1) for k, d in groups)
        for k, d in groups:
            for _ in range(4):
                conv = [nn.Conv1d(filters, filters, k, dilation=d, padding=d * (k - 1) // 2) for _ in range(2)]
                norms = [nn.BatchNorm1d(filters) for _ in range(2)]
                self.units.append(Residual(norms[0], nn.ReLU(), conv[0], norms[1], nn.ReLU(), conv[1]))
            self.skips.append(nn.Conv1d(filters, filters, 1))
        self.classes = nn.ModuleList(nn.Conv1d(filters, 2, 1) for _ in range(4))
        self.usage = nn.ModuleList(nn.Conv1d(filters, 1, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        skip = self.skip(x)
        for i, unit in enumerate(self.units):
            x = unit(x)
            if i % 4 == 3:
                skip = skip + self.skips[i // 4](x)
        skip = F.pad(skip, (-self.flank, -self.flank))
        heads = zip(self.classes, self.usage, strict=True)
        return torch.cat([y for a, b in heads for y in (F.softmax(a(skip), 1), torch.sigmoid(b(skip)))], 1)


class Aparent2(nn.Module):
    """Residual groups over a sequence of height 1, a cut probability at each position and elsewhere, and a library."""

    def __init__(self, filters: int = 32, length: int = 205) -> None:
        super().__init__()
        self.first, self.skip = nn.Conv2d(4, filters, 1), nn.Conv2d(filters, filters, 1)
        self.groups, self.skips = nn.ModuleList(), nn.ModuleList()
        for d in (1, 2, 4, 8, 4, 2, 1):
            units = []
            for _ in range(4):
                layers: list[nn.Module] = []
                for _ in range(2):
                    conv = nn.Conv2d(filters, filters, (1, 3), padding=(0, d), dilation=(1, d))
                    layers += [nn.BatchNorm2d(filters), nn.ReLU(), conv]
                units.append(Residual(*layers))
            self.groups.append(nn.Sequential(*units))
            self.skips.append(nn.Conv2d(filters, filters, 1))
        self.last, self.score = nn.Conv2d(filters, filters, 1), nn.Conv2d(filters, 1, 1)
        self.library, self.elsewhere = nn.Linear(13, length), nn.Linear(13, 1)

    def forward(self, x: Tensor, library: Tensor) -> Tensor:
        x = self.first(x.unsqueeze(2))
        total = self.skip(x)
        for group, skip in zip(self.groups, self.skips, strict=True):
            x = group(x)
            total = total + skip(x)
        score = self.score(self.last(x) + total).squeeze(1).squeeze(1) + self.library(library)
        return F.softmax(torch.cat([score, self.elsewhere(library)], 1), 1)
