"""A convolution and a head given as a function."""

import torch
from torch import nn

L = 30


class Headed(nn.Module):
    """A convolution and a head given as a function of its output and of the sequence."""

    def __init__(self, head):
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 5, padding=2)
        self.head = head

    def forward(self, x):
        return self.head(self.conv(x), x)


def sequences():
    letters = torch.randint(4, (2, L), generator=torch.Generator().manual_seed(3))
    X = nn.functional.one_hot(letters, 4).permute(0, 2, 1).float()
    X[0, :, [7, 20]] = 0
    return X
