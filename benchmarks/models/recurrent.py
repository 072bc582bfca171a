"""Models that remember: LSTMs and GRUs after convolutions, before them, and between them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts import Transposed, block


class DanQ(nn.Module):
    """One wide convolution, a pool, a bidirectional LSTM and two dense layers."""

    def __init__(self, length: int = 1000, filters: int = 320, hidden: int = 320, outputs: int = 919) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, filters, 26)
        self.pool = nn.MaxPool1d(13, 13)
        self.lstm = nn.LSTM(filters, hidden, batch_first=True, bidirectional=True)
        self.drop1, self.drop2 = nn.Dropout(0.2), nn.Dropout(0.5)
        self.dense1 = nn.Linear((length - 25) // 13 * 2 * hidden, 925)
        self.dense2 = nn.Linear(925, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop1(self.pool(F.relu(self.conv(x))))
        x, _ = self.lstm(x.transpose(1, 2))
        x = self.drop2(x).flatten(1)
        return torch.sigmoid(self.dense2(F.relu(self.dense1(x))))


class TwoKernels(nn.Module):
    """Two convolutions of one input, side by side."""

    def __init__(self, cin: int, cout: int, kernels: tuple[int, int] = (9, 15)) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv1d(cin, cout // 2, k, padding="same"), nn.ReLU(), nn.Dropout(0.2)) for k in kernels
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(x) for conv in self.convs], 1)


class DreamRNN(nn.Module):
    """Two convolutions side by side, a bidirectional LSTM, the same again, an average; classes weighted to a number."""

    def __init__(self, hidden: int = 320) -> None:
        super().__init__()
        self.first = TwoKernels(4, 512)
        self.lstm = nn.LSTM(512, hidden, batch_first=True, bidirectional=True)
        self.core, self.drop = TwoKernels(2 * hidden, 320), nn.Dropout(0.5)
        self.mapper, self.head = nn.Conv1d(320, 256, 1), nn.Linear(256, 18)
        self.register_buffer("bins", torch.arange(18, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.lstm(self.first(x).permute(0, 2, 1))
        x = self.mapper(self.drop(self.core(x.permute(0, 2, 1))))
        x = F.softmax(self.head(F.adaptive_avg_pool1d(x, 1).squeeze(2)), 1)
        return (x * self.bins).sum(1)


class ConvGRU(nn.Module):
    """A convolution tower, two stacked bidirectional GRUs, the mean of their directions, a norm and a pooled head."""

    def __init__(self, channels: int = 128, layers: int = 2) -> None:
        super().__init__()
        self.tower = nn.Sequential(block(4, channels, 15, 2), *(block(channels, channels, 5, 2) for _ in range(2)))
        self.gru = nn.GRU(channels, channels, layers, batch_first=True, bidirectional=True, dropout=0.1)
        self.norm, self.head = nn.LayerNorm(channels), nn.Conv1d(channels, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.gru(self.tower(x).transpose(1, 2))
        forward, backward = x.chunk(2, -1)
        return self.head(self.norm(forward + backward).transpose(1, 2)).mean(-1)


class Saluki(nn.Module):
    """Convolutions with layer norms and pools, and the last state of a GRU that reads backwards; the sequence has two
    more tracks (frames and splice sites).
    """

    def __init__(self, filters: int = 64, blocks: int = 6) -> None:
        super().__init__()
        self.first = nn.Conv1d(6, filters, 5, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                Transposed(nn.LayerNorm(filters, eps=0.007)),
                nn.ReLU(),
                nn.Conv1d(filters, filters, 5),
                nn.Dropout(0.3),
                nn.MaxPool1d(2),
            )
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(filters, eps=0.007)
        self.gru = nn.GRU(filters, filters, batch_first=True)
        self.dense = nn.Sequential(
            nn.BatchNorm1d(filters), nn.ReLU(), nn.Linear(filters, filters), nn.BatchNorm1d(filters), nn.ReLU()
        )
        self.head = nn.Linear(filters, 1)

    def forward(self, x: Tensor, tracks: Tensor) -> Tensor:
        x = self.first(torch.cat([x, tracks], 1))
        for layer in self.blocks:
            x = layer(x)
        x = F.relu(self.norm(x.transpose(1, 2)))
        _, h = self.gru(x.flip(1))
        return self.head(self.dense(h[-1]))


class RnnAttention(nn.Module):
    """A convolution, an LSTM of two layers that starts from learned states, and attention over its states."""

    def __init__(self, filters: int = 128, hidden: int = 128) -> None:
        super().__init__()
        self.conv = block(4, filters, 19, 8)
        self.lstm = nn.LSTM(filters, hidden, 2, bidirectional=True)
        self.h, self.c = (nn.Parameter(0.1 * torch.randn(4, 1, hidden)) for _ in range(2))
        self.score, self.head = nn.Linear(2 * hidden, 1), nn.Linear(2 * hidden, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).permute(2, 0, 1)
        start = self.h.repeat(1, x.shape[1], 1), self.c.repeat(1, x.shape[1], 1)
        x = self.lstm(x, start)[0].transpose(0, 1)
        return self.head((torch.softmax(self.score(x), 1) * x).sum(1))
