"""Transcription initiation as a sum of what motifs add at a distance: Puffin."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
