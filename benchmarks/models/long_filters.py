"""Filters as long as the sequence, through FFTs: HyenaDNA."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.parts import Residual


class HyenaOperator(nn.Module):
    """Short convolutions, two gates, and a long convolution whose filter a small network makes, through FFTs."""

    def __init__(self, width: int, length: int, order: int = 16) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.short = nn.Conv1d(3 * width, 3 * width, 3, padding=2, groups=3 * width)
        at = torch.linspace(0, 1, length)[:, None]
        waves = at * 2 * math.pi * torch.arange(1, 3)
        self.register_buffer("features", torch.cat([at, waves.sin(), waves.cos()], 1))
        self.register_buffer("decay", torch.exp(-at * torch.linspace(1, 8, width)))
        self.filter1, self.filter2 = nn.Linear(5, order), nn.Linear(order, width)
        self.bias = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        a, b, v = self.short(self.project(x).transpose(1, 2))[..., :length].chunk(3, 1)
        k = (self.filter2(torch.sin(self.filter1(self.features))) * self.decay).T
        v = v * b
        y = torch.fft.irfft(torch.fft.rfft(v, n=2 * length) * torch.fft.rfft(k, n=2 * length), n=2 * length)[
            ..., :length
        ]
        return self.out(((y + v * self.bias[:, None]) * a).transpose(1, 2))


class HyenaDNA(nn.Module):
    def __init__(self, length: int = 1024, width: int = 128, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width, bias=False)
        self.mixers = nn.ModuleList(Residual(nn.LayerNorm(width), HyenaOperator(width, length)) for _ in range(layers))
        self.mlps = nn.ModuleList(
            Residual(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
            for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.transpose(1, 2))
        for mixer, mlp in zip(self.mixers, self.mlps, strict=True):
            x = mlp(mixer(x))
        return self.head(self.norm(x).mean(1))
