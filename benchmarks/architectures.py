"""Architectures of the field with random weights, written anew from their publications, for benchmarks.

    from architectures import ARCHITECTURES
    case = ARCHITECTURES["DanQ"]
    model, X, args = case.model(), case.sequences(), case.args()

The kinds of layers, their order and the lengths of sequences are the published ones as far as two cores allow: `notes`
says where a model is narrower, shorter or less deep. Weights mean nothing, and batch norm has running statistics of its
own, so that evaluation is not training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yuzu import models


@dataclass(frozen=True)
class Architecture:
    """How to build a model, and what it reads.

    Attributes
    ----------
    build: callable
        Makes the model from PyTorch's default random state.
    length: int
        Of its sequences.
    inputs: tuple of tuples
        Shapes, without the batch, of the inputs after the sequence.
    recurrent: bool
        Whether it holds recurrent layers.
    notes: str
        In what it is smaller than its publication's.
    """

    build: Callable[[], nn.Module]
    length: int
    inputs: tuple[tuple[int, ...], ...] = ()
    recurrent: bool = False
    notes: str = ""

    def model(self, seed: int = 0) -> nn.Module:
        """The model in evaluation mode; the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.build().eval()
            for module in model.modules():
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
                    nn.init.normal_(module.running_mean, 0, 0.1)
                    nn.init.uniform_(module.running_var, 0.5, 2)
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, 0, 0.1)
        return model

    def sequences(self, count: int = 1, seed: int = 0) -> Tensor:
        """Random one-hot sequences ``(count, 4, length)``."""
        letters = torch.randint(4, (count, self.length), generator=torch.Generator().manual_seed(seed))
        return F.one_hot(letters, 4).permute(0, 2, 1).float()

    def args(self, count: int = 1, seed: int = 1) -> tuple[Tensor, ...]:
        """Random inputs after the sequences."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.rand(count, *shape, generator=generator) for shape in self.inputs)


# ---- parts that several models share -------------------------------------------------------------------------------


class Residual(nn.Module):
    """``x + f(x)``."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Transposed(nn.Module):
    """A module that reads ``(n, L, C)`` where the model has ``(n, C, L)``."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


class LastAxisMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1)


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)``."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(1.702 * x) * x


class RMSNorm(nn.Module):
    """Root-mean-square norm over channels, written out."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale


def block(cin: int, cout: int, k: int, pool: int = 1, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Convolution, batch norm, activation and pool."""
    layers: list[nn.Module] = [nn.Conv1d(cin, cout, k, padding=k // 2), nn.BatchNorm1d(cout), act()]
    return nn.Sequential(*layers, *([nn.MaxPool1d(pool)] if pool > 1 else []))


# ---- recurrent -----------------------------------------------------------------------------------------------------


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


# ---- convolutions --------------------------------------------------------------------------------------------------


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


class Puffin(nn.Module):
    """Motifs on both strands, their activations, and what each adds at a distance."""

    def __init__(self, motifs: int = 18) -> None:
        super().__init__()
        self.motif, self.initiator = nn.Conv1d(4, motifs, 51, padding=25), nn.Conv1d(4, 10, 15, padding=7)
        self.trinucleotide = nn.Conv1d(4, 32, 3, padding=1)
        self.motif_effect = nn.Conv1d(2 * motifs, 10, 601, padding=300)
        self.initiator_effect, self.trinucleotide_effect = (
            nn.Conv1d(20, 10, 15, padding=7),
            nn.Conv1d(64, 10, 601, padding=300),
        )

    def both_strands(self, conv: nn.Conv1d, x: Tensor) -> Tensor:
        return torch.cat([conv(x), conv(x.flip((1, 2))).flip(2)], 1)

    def forward(self, x: Tensor) -> Tensor:
        motif = self.both_strands(self.motif, x)
        initiator = self.both_strands(self.initiator, x)
        three = self.both_strands(self.trinucleotide, x)
        y = self.motif_effect(torch.sigmoid(motif) * motif)
        y = y + self.initiator_effect(torch.sigmoid(initiator) * initiator)
        y = y + self.trinucleotide_effect(torch.sigmoid(three) * three)
        return F.softplus(y)[:, :, 325:-325]


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


# ---- norms, gates and long filters ---------------------------------------------------------------------------------


class Cherimoya(nn.Module):
    """Blocks of a dilated depthwise convolution, a norm over channels and positions together, and a bottleneck."""

    def __init__(self, filters: int = 64, layers: int = 9, trimming: int = 557) -> None:
        super().__init__()
        self.trimming = trimming
        self.first = nn.Conv1d(4, filters, 21, padding=10)
        self.depthwise = nn.ModuleList(
            nn.Conv1d(filters, filters, 3, padding=2**i, dilation=2**i, groups=filters) for i in range(layers)
        )
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(filters, 2 * filters), nn.GELU("tanh"), nn.Linear(2 * filters, filters))
            for _ in range(layers)
        )
        self.gains = nn.ParameterList(nn.Parameter(torch.ones(filters, 1)) for _ in range(layers))
        self.profile, self.counts = nn.Conv1d(filters, 1, 75, padding=37), nn.Linear(filters, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.gelu(self.first(x))
        for conv, mlp, gain in zip(self.depthwise, self.mlps, self.gains, strict=True):
            y = F.layer_norm(conv(x), x.shape[1:]) * gain
            x = x + mlp(y.transpose(1, 2)).transpose(1, 2)
        a, b = self.trimming, x.shape[2] - self.trimming
        return self.profile(x)[:, :, a:b], self.counts(x[:, :, a:b].mean(2))


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


# ---- attention -----------------------------------------------------------------------------------------------------


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


class Ensemble(nn.Module):
    """The mean of several networks of one architecture."""

    def __init__(self, build: Callable[[], nn.Module], count: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(build() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


ARCHITECTURES: dict[str, Architecture] = {
    "ToyNet": Architecture(lambda: models.ToyNet(4, seq_len=1000), 1000),
    "DeepSEA": Architecture(lambda: models.DeepSEA(4, seq_len=1000), 1000),
    "Basset": Architecture(lambda: models.Basset(4, seq_len=1000), 1000),
    "FactorizedBasset": Architecture(lambda: models.FactorizedBasset(4, seq_len=1000), 1000),
    "BPNet": Architecture(lambda: ProfileAndCounts(64, 8, 2, 557, 2), 2114, ((2, 2114),)),
    "ChromBPNet": Architecture(BiasAndSignal, 2114, notes="128 of 512 filters"),
    "ProCapNet": Architecture(lambda: ProfileAndCounts(128, 8, 2, 557), 2114, notes="128 of 512 filters"),
    "Beluga": Architecture(
        lambda: models.Beluga(4, 1000, 2002, 0, (96, 128, 160), 500),
        1000,
        notes="a quarter of the width, half the length",
    ),
    "DeepSTARR": Architecture(DeepSTARR, 249),
    "Malinois": Architecture(Malinois, 600),
    "Puffin": Architecture(Puffin, 1650),
    "Sei": Architecture(Sei, 1024, notes="a quarter of width and length, 2,000 of 21,907 outputs"),
    "LegNet": Architecture(LegNet, 230),
    "scBasset": Architecture(ScBasset, 1344),
    "Basenji": Architecture(Basenji, 4096, notes="96 of 288 to 768 filters, 4,096 of 131,072 positions"),
    "SpliceAI": Architecture(lambda: models.SpliceAI(flanking=2000), 3000),
    "Pangolin": Architecture(Pangolin, 3000, notes="three of four groups of units"),
    "APARENT2": Architecture(Aparent2, 205, ((13,),)),
    "Cherimoya": Architecture(Cherimoya, 2114, notes="64 of 128 filters"),
    "HyenaDNA": Architecture(HyenaDNA, 1024),
    "Enformer": Architecture(Enformer, 2048, notes="96 of 1,536 channels, 3 of 11 layers, 2,048 of 196,608 positions"),
    "Borzoi": Architecture(UNet, 2048, notes="64 of 1,536 channels, 2 of 8 layers"),
    "ConvTransformer": Architecture(ConvTransformer, 1000),
    "SATORI": Architecture(Satori, 600),
    "DilatedAttention": Architecture(DilatedAttention, 600),
    "NucleotideTransformer": Architecture(NucleotideTransformer, 600, notes="128 of 512 channels, 4 of 12 layers"),
    "Ensemble": Architecture(lambda: Ensemble(DeepSTARR, 5), 249),
    "DanQ": Architecture(DanQ, 1000, recurrent=True),
    "DREAM-RNN": Architecture(DreamRNN, 230, recurrent=True),
    "ConvGRU": Architecture(ConvGRU, 600, recurrent=True),
    "Saluki": Architecture(Saluki, 3072, ((2, 3072),), recurrent=True, notes="3,072 of 12,288 positions"),
    "RNN with attention": Architecture(RnnAttention, 600, recurrent=True),
}
