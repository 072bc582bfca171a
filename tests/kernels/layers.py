"""Layers and fixtures for tests of kernels."""

import pytest
import torch
from torch import nn

from yuzu._engine.kernels import triton as kernels_of


@pytest.fixture
def kernels(device):
    """A device on which kernels run."""
    reason = kernels_of.why_not(torch.device(device))
    if reason is not None:
        if device == "cuda":
            pytest.fail(reason)
        pytest.skip(reason)
    return device


class Layers(nn.Module):
    """A few layers of 16 filters behind the first, written out in ``then``."""

    def __init__(self, then, **parts):
        super().__init__()
        self.first = nn.Conv1d(4, 16, 5, padding=2)
        self.a = nn.Conv1d(16, 16, 3, padding=2, dilation=2)
        self.b = nn.Conv1d(16, 16, 3, padding=1)
        for name, part in parts.items():
            setattr(self, name, part)
        self.then = then

    def forward(self, x):
        return self.then(self, torch.relu(self.first(x)))


def blocks_of(plan):
    """In the order of their convolutions."""
    return [block for i, block in plan.group_of.items() if i == block.nodes[0]]
