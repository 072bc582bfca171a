"""Windows that an end cuts off are widened to few widths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import yuzu
from tests.oracle import assert_right
from tests.small_models import sequences
from yuzu._engine.plan.plan import make_plan
from yuzu._engine.rewrite.all import capture
from yuzu._engine.window import WIDTHS, Window


class Dilated(nn.Module):
    """Residual convolutions of growing dilation, whose windows reach both ends from nearly everywhere, then attention.
    """

    def __init__(self, channels: int = 16, blocks: int = 6, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.stem = nn.Conv1d(4, channels, 9, padding=4)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(channels, channels, 3, dilation=2**i, padding=2**i) for i in range(blocks) for _ in range(2)
        )
        self.queries_keys_values = nn.Linear(channels, 3 * channels)
        self.head = nn.Linear(channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for convolution in self.convolutions:
            x = x + convolution(torch.relu(x))
        x = x.transpose(1, 2)
        batch, length, channels = x.shape
        parts = self.queries_keys_values(x).view(batch, length, 3, self.heads, channels // self.heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        scores = torch.softmax(queries @ keys.transpose(-1, -2), -1)
        return self.head((scores @ values).transpose(1, 2).reshape(batch, length, channels).mean(1))


def test_windows_that_an_end_cuts_off_have_few_widths():
    """One site at a time, through convolutions that reach further and further."""
    plan = make_plan(capture(Dilated(4, 6, 2).eval(), (4, 300), (), torch.float32))
    widths = [set() for _ in plan.graph.nodes]
    for position in range(300):
        for i, window in enumerate(plan.windows(np.array([position]), 1)):
            if window is not None:
                widths[i].add(window.width)
    assert max(map(len, widths)) > WIDTHS
    # from half of the width between the ends to all of it, and what is narrower than needs a step
    assert max(map(len, widths)) <= 2 * WIDTHS + 2


@pytest.mark.parametrize("width", [1, 5, 16, 31, 33, 100, 511, 512, 513, 1000])
@pytest.mark.parametrize("end", ["left", "right", "both"])
@pytest.mark.parametrize("lie_alike", [True, False])
def test_a_widened_window_holds_all_that_is_reached_and_lies_inside(width, end, lie_alike):
    length = width if end == "both" else 2 * width + 40
    reach = width + 7
    first = np.array([-7 if end != "right" else length - width])
    stop = first + reach if end != "right" else np.array([length + 7])
    if end == "both":
        first, stop = np.array([-7]), np.array([length + 7])
    window = Window.fit(first, stop, (0, length), length, (first, stop) if lie_alike else None)
    low, high = max(int(first[0]), 0), min(int(stop[0]), length)
    assert window.start[0] <= low and window.start[0] + window.width >= high
    assert window.start[0] >= 0 and window.start[0] + window.width <= length
    assert window.width <= (high - low) * (1 + 1 / WIDTHS) + 1
    assert window.first[0] == low and window.stop[0] == high


def test_windows_between_the_ends_keep_their_width():
    position = np.array([300, 301, 302])
    for natural in (None, (position - 50, position + 51)):
        window = Window.fit(position - 50, position + 51, (0, 600), 600, natural)
        assert window.width == 101 and (window.start == position - 50).all()


@pytest.mark.parametrize("length", [40, 75, 150])
def test_scores_near_the_ends_are_right_with_widened_windows(length):
    torch.manual_seed(1)
    model, X = Dilated(6, 4, 2).eval(), sequences(2, length)
    made = yuzu.precompute(model, length, device="cpu", conv="windows")
    assert_right(yuzu.yuzu_ism(model, X, made, device="cpu"), model, X)
