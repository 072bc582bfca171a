"""Average pooling in whole models."""

import pytest
import torch
from torch import nn

from tests.exactness import assert_exact, assert_gains
from tests.small_models import randomized, sequences

L = 36

FLOATS = (torch.float32, torch.float64)


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool1d(3),
        nn.AvgPool1d(4, stride=2, padding=1),
        nn.AvgPool1d(4, stride=3, padding=2, count_include_pad=False),
        nn.AvgPool1d(5, stride=4, ceil_mode=True),
        nn.AvgPool1d(3, stride=2, padding=1, ceil_mode=True),
    ],
    ids=str,
)
def test_average_pooling(pool, device):
    model = nn.Sequential(
        nn.Conv1d(4, 5, 5), nn.ReLU(), pool, nn.Conv1d(5, 3, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)
    )
    with torch.no_grad():
        model(sequences(1, L))
    assert_gains(assert_exact(randomized(model), sequences(2, L), device))
