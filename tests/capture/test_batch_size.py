"""Integers that a model makes of the size of its batch."""

import warnings

import pytest
import torch
from torch import nn

import yuzu
from tests.oracle import assert_right
from tests.small_models import randomized, sequences
from yuzu._engine.capture.errors import CaptureError
from yuzu._engine.rewrite.all import capture
from yuzu.errors import YuzuWarning


class WithSize(nn.Module):
    """A layer, and something that makes a plain integer of the batch size."""

    def __init__(self, use):
        super().__init__()
        self.conv, self.last, self.use = nn.Conv1d(4, 3, 5), nn.Linear(3 * 26, 2), use

    def forward(self, x, *args):
        return self.use(self, x, *args)


def with_positions(model, x):
    positions = torch.linspace(0, 1, 26, dtype=x.dtype).view(1, 1, 26).repeat(len(x), 3, 1)
    return model.last((model.conv(x).relu() * positions).flatten(1))


def both_strands(model, x):
    y = model.last(model.conv(torch.cat([x, x.flip(1, 2)])).relu().flatten(1))
    return y[: len(x)] + y[len(x) :]


def with_another_input(model, x, a):
    return model.last(model.conv(x).relu().reshape(len(x), -1)) * a.reshape(int(a.shape[0]), -1)[:, :2]

SIZES = {
    "length": lambda model, x: model.last(model.conv(x).relu().reshape(len(x), -1)),
    "integer": lambda model, x: model.last(model.conv(x).relu().view(int(x.shape[0]), 3 * 26)),
    "multiple": lambda model, x: model.conv(x).relu().reshape(3 * len(x), 26).mean(1).reshape(len(x), 3),
    "repeated": with_positions,
    "both strands": both_strands,
    "another input": with_another_input,
    "one piece": lambda model, x: torch.cat([model.last(h.relu().flatten(1)) for h in model.conv(x).split(max(int(len(x)), 1))]),
    "all rows": lambda model, x: model.last(model.conv(x).relu()[: int(len(x))].flatten(1)),
}


@pytest.mark.parametrize("name", SIZES)
def test_integers_made_of_the_batch_size(name):
    model, X = randomized(WithSize(SIZES[name])).eval(), sequences(3, 30)
    args = (torch.randn(3, 4),) if name == "another input" else ()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="These layers, and what follows them")
        warnings.filterwarnings("error", message=".*could not be captured")
        for output in ("delta", "l2"):
            found = yuzu.yuzu_ism(model, X, args=args or None, output=output, device="cpu")
            assert_right(found, model, X, args=args, output=output)


@pytest.mark.parametrize(
    "use",
    [
        lambda model, x: torch.stack([model.last(model.conv(x[i : i + 1]).relu().flatten(1))[0] for i in range(len(x))]),
        lambda model, x: model.last(model.conv(x).relu().flatten(1)) * (2.0 if len(x) > 4 else 1.0),
        lambda model, x: model.last(model.conv(x).relu().reshape(len(x), -1)) / torch.tensor([len(x), 1]),
    ],
    ids=["a loop over the batch", "another factor", "a constant"],
)
def test_batch_sizes_that_change_more_than_sizes(use):
    model = randomized(WithSize(use)).eval()
    with pytest.raises(CaptureError, match="Constraints violated.*for two batch sizes: Unlike"):
        capture(model, (4, 30), (), torch.float32)

APART = {
    "split": lambda model, x: torch.cat([model.last(h.relu().flatten(1)) for h in model.conv(x).split(16)]),
    "loop": lambda model, x: torch.cat([model.last(model.conv(x[i : i + 16]).relu().flatten(1)) for i in range(0, len(x), 16)]),
    "first rows": lambda model, x: model.last(model.conv(x)[:10**6].relu().flatten(1)),
}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", APART)
def test_batches_taken_apart(name, verify):
    """In pieces that fit into memory: a small batch, such as the one that is traced and the one that verifies, is one."""
    model, X = randomized(WithSize(APART[name])).eval(), sequences(3, 30)
    with pytest.warns(YuzuWarning, match="could not be captured.*splits the batch into pieces"):
        made = yuzu.precompute(model, 30, verify=verify, device="cpu")
    assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device="cpu"), model, X, output="delta")


def test_a_graph_that_does_not_run_on_the_mutants():
    """Padded to an even number of rows: those of both traces are odd, and the mutants that verify are not."""

    def in_pairs(model, x):
        padded = torch.cat([x, x.new_zeros(int(len(x)) % 2, 4, 30)]).reshape(-1, 2, 4, 30).flatten(0, 1)
        return model.last(model.conv(padded)[: int(len(x))].relu().flatten(1))

    model, X = randomized(WithSize(in_pairs)).eval(), sequences(2, 30)
    with pytest.warns(YuzuWarning, match="the captured graph does not agree with the model"):
        found = yuzu.yuzu_ism(model, X, output="delta", device="cpu")
    assert_right(found, model, X, output="delta")
