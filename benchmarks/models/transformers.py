"""Attention over positions, with and without convolutions before it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts import Residual, RMSNorm, block


class ConvTransformer(nn.Module):
    """A convolution tower and PyTorch's own transformer encoder."""

    def __init__(self, width: int = 128, layers: int = 2) -> None:
        super().__init__()
        self.tower = nn.Sequential(block(4, width, 15, 4), block(width, width, 5, 4))
        self.place = nn.Parameter(0.1 * torch.randn(1, 62, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True, activation="gelu", norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(self.tower(x).transpose(1, 2) + self.place)
        return self.head(x.mean(1))


class Satori(nn.Module):
    """One convolution, a pool, attention of many small heads, and a dense head."""

    def __init__(self, filters: int = 200, heads: int = 8, size: int = 32) -> None:
        super().__init__()
        self.conv = block(4, filters, 13, 6)
        self.q, self.k, self.v = (nn.ModuleList(nn.Linear(filters, size) for _ in range(heads)) for _ in range(3))
        self.norm, self.out = nn.LayerNorm(heads * size), nn.Linear(heads * size, 100)
        self.head = nn.Linear(100, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).transpose(1, 2)
        heads = []
        for q, k, v in zip(self.q, self.k, self.v, strict=True):
            a = F.softmax(q(x) @ k(x).transpose(-2, -1) / math.sqrt(q.out_features), -1)
            heads.append(a @ v(x))
        return self.head(F.relu(self.out(self.norm(torch.cat(heads, 2)))).sum(1))


class DilatedAttention(nn.Module):
    """Dilated residual convolutions, and one attention layer over their positions."""

    def __init__(self, width: int = 64, layers: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, width, 15, padding=7)
        self.dilated = nn.Sequential(
            *(
                Residual(nn.BatchNorm1d(width), nn.GELU(), nn.Conv1d(width, width, 3, padding=2**i, dilation=2**i))
                for i in range(layers)
            )
        )
        self.pool, self.attention = nn.AvgPool1d(4), nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.dilated(self.first(x))).transpose(1, 2)
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(x.mean(1))


class RotaryAttention(nn.Module):
    def __init__(self, width: int, length: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, width // heads, 2) * heads / width)
        self.register_buffer("cos", angles.cos().repeat(1, 2))
        self.register_buffer("sin", angles.sin().repeat(1, 2))

    def turned(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * self.cos + torch.cat([-b, a], -1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v)
        return self.out(y.transpose(1, 2).reshape(n, length, width))


class SwiGLU(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = (
            nn.Linear(width, 2 * width),
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class NucleotideTransformer(nn.Module):
    """Six letters a token, rotary attention, gated dense layers, root-mean-square norms."""

    def __init__(self, tokens: int = 100, width: int = 128, layers: int = 4) -> None:
        super().__init__()
        self.embed = nn.Conv1d(4, width, 6, stride=6)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    Residual(RMSNorm(width), RotaryAttention(width, tokens)), Residual(RMSNorm(width), SwiGLU(width))
                )
                for _ in range(layers)
            )
        )
        self.head = nn.Sequential(RMSNorm(width), nn.Linear(width, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(x).transpose(1, 2)).mean(1))
