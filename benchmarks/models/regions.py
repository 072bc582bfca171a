"""A few numbers for a region: convolutions, pools and dense layers; and ensembles of such models."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts import block


class DeepSTARR(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(block(4, 256, 7, 2), block(256, 60, 3, 2), block(60, 60, 5, 2), block(60, 120, 3, 2))
        dense: list[nn.Module] = []
        for size in (1800, 256):
            dense += [nn.Linear(size, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.4)]
        self.dense, self.dev, self.hk = nn.Sequential(nn.Flatten(), *dense), nn.Linear(256, 1), nn.Linear(256, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense(self.convs(x))
        return torch.cat([self.dev(x), self.hk(x)], 1)


class GroupedLinear(nn.Module):
    """A dense layer for each group of features, as one batched product."""

    def __init__(self, size: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.randn(groups, size, outputs) / math.sqrt(size))
        self.bias = nn.Parameter(torch.zeros(groups, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), self.groups, -1).transpose(0, 1)
        x = torch.bmm(x, self.weight) + self.bias
        return x.transpose(0, 1).reshape(x.shape[1], -1)


class Malinois(nn.Module):
    """Basset's convolutions, one dense layer and a branch for each of three cell types."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(block(4, 300, 19, 3), block(300, 200, 11, 4), block(200, 200, 7), nn.ZeroPad1d(1))
        self.pool = nn.MaxPool1d(4)
        self.dense = nn.Sequential(nn.Linear(200 * 13, 1000), nn.BatchNorm1d(1000), nn.ReLU(), nn.Dropout(0.12))
        self.first, self.branches = (
            nn.Linear(1000, 3 * 140),
            nn.ModuleList([GroupedLinear(140, 140, 3) for _ in range(2)]),
        )
        self.output = GroupedLinear(140, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.convs(x))
        x = F.relu(self.first(self.dense(x.flatten(1))))
        for branch in self.branches:
            x = F.relu(branch(x))
        return self.output(x)


class Sei(nn.Module):
    """Linear and non-linear blocks in turn, dilated residual sums, and a spline basis along positions."""

    def __init__(self, widths: tuple[int, int, int] = (120, 160, 240), outputs: int = 2000, length: int = 1024) -> None:
        super().__init__()
        a, b, c = widths
        sizes = [(4, a), (a, b), (b, c)]
        self.linear = nn.ModuleList(
            nn.Sequential(
                *([] if i == 0 else [nn.MaxPool1d(4), nn.Dropout(0.2)]),
                nn.Conv1d(m, n, 9, padding=4),
                nn.Conv1d(n, n, 9, padding=4),
            )
            for i, (m, n) in enumerate(sizes)
        )
        self.plain = nn.ModuleList(
            nn.Sequential(*(m for _ in range(2) for m in (nn.Conv1d(n, n, 9, padding=4), nn.ReLU()))) for _, n in sizes
        )
        self.dilated = nn.ModuleList(
            nn.Sequential(nn.Dropout(0.1), nn.Conv1d(c, c, 5, dilation=d, padding=2 * d), nn.ReLU())
            for d in (2, 4, 8, 16, 25)
        )
        at, knots = torch.linspace(0, 1, length // 16), torch.linspace(0, 1, 13)
        self.register_buffer(
            "basis", torch.stack([at**p for p in range(4)] + [F.relu(at - k) ** 3 for k in knots[1:-1]]).T
        )
        self.head = nn.Sequential(nn.Linear(c * 15, outputs), nn.ReLU(), nn.Linear(outputs, outputs), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        for linear, plain in zip(self.linear, self.plain, strict=True):
            y = linear(x)
            x = plain(y) + y
        for layer in self.dilated:
            x = x + layer(x)
        return self.head((x @ self.basis).flatten(1))


class Ensemble(nn.Module):
    """The mean of several networks of one architecture."""

    def __init__(self, build: Callable[[], nn.Module], count: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(build() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)
