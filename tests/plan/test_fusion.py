"""Which layers are found to run as one."""

import pytest
import torch
from torch import nn

from tests.kernels.layers import Layers, blocks_of
from tests.small_models import randomized
from yuzu._engine.plan.plan import make_plan
from yuzu._engine.rewrite.all import capture

L = 48


def lengths(then, **parts):
    """How many nodes each block has, behind the first convolution."""
    model = randomized(Layers(then, **parts)).eval()
    plan = make_plan(capture(model, (4, L), (), torch.float32))
    return [len(block.nodes) for block in blocks_of(plan)]

FOUND = {
    "alone": (lambda m, x: m.a(x), [1]),
    "a rectifier": (lambda m, x: m.a(x).relu(), [2]),
    "a sum": (lambda m, x: x + m.a(x), [2]),
    "both": (lambda m, x: x + m.a(x).relu(), [3]),
    "the sum's other side": (lambda m, x: m.a(x).relu() + x, [3]),
    "two in a row": (lambda m, x: m.b(m.a(x).relu()) + x, [2, 2]),
    "a sum of both": (lambda m, x: m.a(x).relu() + m.b(x).relu(), [2, 3]),  # the second adds the first's result
    "what is computed later": (lambda m, x: m.a(x).relu() + torch.sigmoid(x), [3]),
    "read twice": (lambda m, x: (y := m.a(x)) + y.relu(), [1]),
    "a rectifier that is read twice": (lambda m, x: x + (y := m.a(x).relu()) * y, [2]),
    "returned, too": (lambda m, x: (y := m.a(x), x + y.relu()), [1]),
    "twice the other": (lambda m, x: torch.add(m.a(x).relu(), x, alpha=2), [2]),
    "itself twice": (lambda m, x: (y := m.a(x).relu()) + y, [2]),
    "a sum that broadcasts": (lambda m, x: m.a(x).relu() + x[:, :1], [2]),
    "a number": (lambda m, x: m.a(x).relu() + 1.0, [2]),
    "positions cut off": (lambda m, x: m.a(x)[:, :, 2:].relu(), [2]),
    "positions cut off the sum": (lambda m, x: (x + m.a(x).relu())[:, :, 2:-3], [4]),
    "every other position": (lambda m, x: m.a(x)[:, :, ::2], [1]),
    "channels cut off": (lambda m, x: m.a(x)[:, 2:], [1]),
    "padded": (lambda m, x: nn.functional.pad(m.a(x), (2, 0)), [1]),
    "sum, then rectifier": (lambda m, x: (x + m.a(x)).relu(), [2]),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_blocks(name):
    then, wanted = FOUND[name]
    assert lengths(then) == wanted


def test_factors_of_a_batch_norm_lie_inside():
    assert lengths(lambda m, x: x + m.norm(m.a(x)).relu(), norm=nn.BatchNorm1d(16)) == [4]


def test_a_rectifier_that_divides_is_not_in_a_block():
    """Its factor is left to the convolution after it, so it works on other differences than the kernel knows."""
    assert lengths(lambda m, x: m.b(m.norm(x + m.a(x)).relu()), norm=nn.BatchNorm1d(16)) == [2, 1]


@pytest.mark.parametrize(
    "layer",
    [nn.Conv1d(16, 16, 3, padding=1, groups=2), nn.Conv1d(16, 16, 3, padding=1).double(), nn.ConvTranspose1d(16, 16, 3, padding=1)],
    ids=["groups", "float64", "transposed"],
)
def test_convolutions_without_a_block(layer):
    dtype = next(layer.parameters()).dtype
    assert lengths(lambda m, x: m.layer(x.to(dtype)).relu(), layer=layer) == []
