"""Rules that move or sum positions are linear: series of statistics go through them as they are."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.plan.test_statistics import Normalising, errors, plane, planned, sequences

LENGTH = 240


def filtered(m, y):
    n = 2 * y.shape[2]
    return torch.fft.irfft(torch.fft.rfft(y, n=n) * torch.fft.rfft(m.signal, n=n), n=n)[..., : y.shape[2]]


MOVES = {
    "roll": lambda m, y: y + y.roll(5, 2),
    "mirrored pad": lambda m, y: F.pad(y, (3, 2), mode="reflect")[:, :, 2:-3],
    "resized": lambda m, y: F.interpolate(F.interpolate(y, size=157, mode="linear"), size=LENGTH),
    "picked": lambda m, y: y[:, :, torch.arange(LENGTH - 1, -1, -1)],
    "average of parts": lambda m, y: y + F.interpolate(F.adaptive_avg_pool1d(y, 7), size=LENGTH),
    "running sum": lambda m, y: y + 0.01 * y.cumsum(2),
    "long convolution": filtered,
    "channels by strides": lambda m, y: y.transpose(1, 2).contiguous().as_strided((len(y), 8, LENGTH), (8 * LENGTH, 1, 8)),
    "matrix on the left": lambda m, y: m.matrix @ y,
}


class Moved(nn.Module):
    """A norm over the plane, and a move after it."""

    def __init__(self, move):
        super().__init__()
        torch.manual_seed(1)
        self.move, self.matrix = move, nn.Parameter(torch.randn(8, 8) / 3)
        self.signal = nn.Parameter(torch.randn(8, 60) * torch.exp(-torch.arange(60) / 9))

    def forward(self, y):
        return self.move(self, plane(y))


@pytest.mark.parametrize("name", MOVES)
def test_a_move_past_statistics(name):
    model, X = Normalising(Moved(MOVES[name])), sequences(LENGTH)
    plan = planned(model, LENGTH)
    windowed = [n.index for n in plan.graph.nodes if n.op == "aten.linear" and plan.layouts[n.index].kind == "windows"]
    assert len(windowed) == 4
    found, _ = errors(model, plan, X, [0, 3, 119, 120, 236, 239], torch.float64)
    assert max(found) < 2e-6
    found, _ = errors(model, plan, X, [0, 3, 119, 120, 236, 239], torch.float32)
    assert max(found) < 5e-6
