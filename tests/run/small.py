"""Small models for tests of runs."""

import torch
from torch import nn

L = 15


class WritesSequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.dense = nn.Conv1d(4, 5, 3, padding=1), nn.Linear(5 * L + 3, 2)

    def forward(self, x, state):
        x -= 0.25
        return self.dense(torch.cat([self.conv(x).relu().flatten(1), state], 1)).tanh()


class WritesUncaptured(WritesSequence):
    """Branches on its data, so that it runs naively."""

    def forward(self, x, state):
        x.mul_(2)
        state.mul_(0.5)
        y = self.dense(torch.cat([self.conv(x).relu().flatten(1), state], 1))
        return y.tanh() if float(y.sum()) > 1e9 else y
