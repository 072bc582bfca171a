"""The memory that a batch and a row are expected to take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import yuzu
from yuzu._engine.plan.plan import make_plan
from yuzu._engine.rewrite.all import capture
from yuzu._engine.tune import memory as tune_memory


class Attends(nn.Module):
    """With an axis of heads, or without one."""

    def __init__(self, heads: bool) -> None:
        super().__init__()
        self.heads, self.wide = heads, nn.Conv1d(4, 8, 5, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.wide(x).mT
        parts = x.unflatten(2, (2, 4)).transpose(1, 2) if self.heads else x
        return nn.functional.scaled_dot_product_attention(parts, parts, parts).flatten(1)[:, :5]


@pytest.mark.parametrize("heads", [True, False])
def test_scores_that_attention_lays_out_are_counted(heads):
    """PyTorch does so where there is no axis of heads: they are the largest that a mutant takes, and no node's value."""
    length = 300
    plan = make_plan(capture(Attends(heads).eval(), (4, length), (), torch.float32))
    memory = tune_memory.memory_of(plan, length, 4, 1, 4, 3)
    scores = 4 * length * length
    assert (memory.block >= 3 * scores, memory.sequence >= 3 * scores) == (not heads, not heads)


class Uncaptured(nn.Module):
    """Asks for the values of its input, which no tracing has; and takes 4 MB a row."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv1d(4, 512, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if float(x.sum()) < 0:
            x = -x
        return torch.relu(self.wide(x)).mean(2)


@pytest.mark.parametrize("length", [200, 1000])
def test_a_batch_of_a_model_without_a_graph_fits_into_what_may_be_used(length):
    model, row = Uncaptured().eval(), 512 * length * 4
    with pytest.warns(yuzu.YuzuWarning, match="could not be captured"):
        made = yuzu.precompute(model, length, device="cpu", max_memory=30 * row)
    assert made.decisions.naive_model
    assert 4 <= made.decisions.naive_batch <= 15
    with pytest.warns(yuzu.YuzuWarning):
        assert yuzu.precompute(model, length, device="cpu").decisions.naive_batch == 128
    with pytest.raises(yuzu.YuzuError, match=f"max_memory={row} .*least that works"), pytest.warns(yuzu.YuzuWarning):
        yuzu.precompute(model, length, device="cpu", max_memory=row)


def test_bytes_of_a_row_are_those_of_tensors_that_live_at_once():
    deep = nn.Sequential(*[nn.Sequential(nn.Conv1d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(20)]).eval()
    x = torch.randn(1, 8, 500)
    with torch.no_grad():
        assert 2 * x.nbytes <= tune_memory.bytes_of_a_row(lambda: deep(x)) <= 5 * x.nbytes
        assert tune_memory.bytes_of_a_row(lambda: x.mT) == 0
