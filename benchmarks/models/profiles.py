"""Profiles and counts from dilated residual convolutions: BPNet and its relatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProfileAndCounts(nn.Module):
    """A convolution, dilated residual ones, a profile head and a log-count head; with control tracks if asked."""

    def __init__(self, filters: int, layers: int, strands: int, trimming: int, controls: int = 0) -> None:
        super().__init__()
        self.trimming = trimming
        self.first = nn.Conv1d(4, filters, 21, padding=10)
        self.dilated = nn.ModuleList(
            nn.Conv1d(filters, filters, 3, padding=2**i, dilation=2**i) for i in range(1, layers + 1)
        )
        self.profile = nn.Conv1d(filters + controls, strands, 75, padding=37)
        self.counts = nn.Linear(filters + bool(controls), 1)

    def forward(self, x: Tensor, control: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = F.relu(self.first(x))
        for conv in self.dilated:
            x = x + F.relu(conv(x))
        a, b = self.trimming, x.shape[2] - self.trimming
        pooled = x[:, :, a - 37 : b + 37].mean(2)
        if control is not None:
            x = torch.cat([x, control], 1)
            pooled = torch.cat([pooled, torch.log1p(control[:, :, a:b].sum((1, 2)))[:, None]], 1)
        return self.profile(x)[:, :, a:b], self.counts(pooled)


class BiasAndSignal(nn.Module):
    """Two networks of one sequence, whose profiles are added as logits and counts as logarithms."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.signal = ProfileAndCounts(32, 4, 1, 557), ProfileAndCounts(128, 8, 1, 557)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        (p, a), (q, b) = self.bias(x), self.signal(x)
        return p + q, torch.logsumexp(torch.stack([a, b], -1), -1)
