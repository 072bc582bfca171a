"""Attention by distance after a tower of convolutions: Enformer and Borzoi."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts import QuickGELU, Residual


class RelativeAttention(nn.Module):
    """Attention with a term for each distance, shifted into place as Transformer-XL does."""

    def __init__(self, width: int, length: int, heads: int = 4, key: int = 32, features: int = 12) -> None:
        super().__init__()
        self.heads, self.key = heads, key
        self.q, self.k = nn.Linear(width, heads * key, bias=False), nn.Linear(width, heads * key, bias=False)
        self.v, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.relative = nn.Linear(features, heads * key, bias=False)
        self.content, self.position = (nn.Parameter(torch.randn(1, heads, 1, key)) for _ in range(2))
        distance = torch.arange(1 - length, length).float()[:, None]
        half = torch.exp(-distance.abs() / 2.0 ** torch.arange(1, features // 2 + 1))
        self.register_buffer("distances", torch.cat([half, distance.sign() * half], 1))

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = (f(x).reshape(n, length, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        q = q * self.key**-0.5
        r = self.relative(self.distances).reshape(2 * length - 1, self.heads, self.key).permute(1, 2, 0)
        far = (q + self.position) @ r
        far = F.pad(far, (1, 0)).reshape(n, self.heads, 2 * length, length)[:, :, 1:]
        far = far.reshape(n, self.heads, length, 2 * length - 1)[..., :length]
        weights = torch.softmax((q + self.content) @ k.transpose(2, 3) + far, -1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, length, width))


class AttentionPool(nn.Module):
    """Each pair of positions weighted by a softmax over the two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(x.shape[0], x.shape[1], -1, 2)
        return (x * torch.softmax(self.score(x), -1)).sum(-1)


class Enformer(nn.Module):
    """A stem, a tower with attention pools, transformer layers and two heads."""

    def __init__(self, width: int = 96, length: int = 2048, stages: int = 4, layers: int = 3) -> None:
        super().__init__()
        act = QuickGELU

        def conv(k: int) -> list[nn.Module]:
            return [nn.BatchNorm1d(width), act(), nn.Conv1d(width, width, k, padding=k // 2)]

        self.stem = nn.Sequential(nn.Conv1d(4, width, 15, padding=7), Residual(*conv(1)), AttentionPool(width))
        self.tower = nn.Sequential(
            *(nn.Sequential(*conv(5), Residual(*conv(1)), AttentionPool(width)) for _ in range(stages))
        )
        tokens = length // 2 ** (stages + 1)
        self.transformer = nn.Sequential(
            *(
                nn.Sequential(
                    Residual(nn.LayerNorm(width), RelativeAttention(width, tokens), nn.Dropout(0.4)),
                    Residual(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)),
                )
                for _ in range(layers)
            )
        )
        self.last = nn.Sequential(*conv(1), nn.Dropout(0.05), act())
        self.human, self.mouse = nn.Linear(width, 100), nn.Linear(width, 50)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.transformer(self.tower(self.stem(x)).transpose(1, 2))
        x = self.last(x[:, 8:-8].transpose(1, 2)).transpose(1, 2)
        return {"human": F.softplus(self.human(x)), "mouse": F.softplus(self.mouse(x))}


class UNet(nn.Module):
    """Down by pools, attention, and up again by repeats with what was on the way: Borzoi's shape."""

    def __init__(self, width: int = 64, length: int = 2048) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(4, width, 11, padding=5), nn.MaxPool1d(2))
        self.down = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(width), nn.GELU("tanh"), nn.Conv1d(width, width, 5, padding=2))
            for _ in range(5)
        )
        self.attention = nn.ModuleList(
            Residual(nn.LayerNorm(width), RelativeAttention(width, length // 64)) for _ in range(2)
        )
        self.side = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(2))
        self.up = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1, groups=width) for _ in range(2))
        self.head = nn.Conv1d(width, 20, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, kept = self.stem(x), []
        for layer in self.down:
            x = layer(x)
            kept.append(x)
            x = F.max_pool1d(x, 2)
        x = x.transpose(1, 2)
        for layer in self.attention:
            x = layer(x)
        x = x.transpose(1, 2)
        for up, side, other in zip(self.up, self.side, reversed(kept), strict=False):
            x = up(F.interpolate(x, scale_factor=2.0) + side(other))
        return F.softplus(self.head(F.gelu(x)))
