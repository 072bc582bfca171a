"""Positions that other inputs name, and medians over members, from end to end."""

import pytest
import torch

from tests.handlers.picked import Net, assert_exact, sequences

L = 40


def rows(x):
    return torch.arange(len(x), device=x.device)

PLACES = {
    "gather": lambda m, x, p: x.gather(2, p[:, None, None].expand(-1, 6, 1)).squeeze(2),
    "take_along_dim": lambda m, x, p: torch.take_along_dim(x, p[:, None, None], 2).squeeze(2),
    "row and position": lambda m, x, p: x[rows(x), :, p],
    "from behind": lambda m, x, p: x[rows(x), :, -1 - p],
    "in n,L,C": lambda m, x, p: x.transpose(1, 2)[rows(x), p],
    "mean of a span": lambda m, x, p: x[rows(x)[:, None], :, (p // 2)[:, None] + torch.arange(4)].mean(1),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_position_that_another_input_names(name):
    model, X = Net(PLACES[name]).eval(), sequences(4)
    place = torch.tensor([0, L - 1, 17, 7])  # both ends, the middle, and an N
    assert_exact(model, X, (place,))


@pytest.mark.parametrize("options", [{"start": 3, "end": 29}, {"batch_size": 7}], ids=str)
def test_a_position_in_a_range_and_in_small_chunks(options):
    assert_exact(Net(PLACES["row and position"]).eval(), sequences(3), (torch.tensor([5, 28, 29]),), **options)

MEMBERS = {
    "median": lambda s: s.median(0).values,
    "quantile": lambda s: s.quantile(0.25, dim=0),
    "trimmed": lambda s: s.sort(0).values[1:-1].mean(0),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_members_that_are_ranked(name):
    def function(m, x):
        return MEMBERS[name](torch.stack([x, x.tanh(), 2 * x, x.flip(1)])).mean(2)

    assert_exact(Net(function).eval(), sequences(2))
