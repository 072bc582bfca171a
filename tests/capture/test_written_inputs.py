"""Models that write over what they are given."""

import numpy as np
import pytest
import torch

import yuzu
from tests.run.small import WritesSequence, WritesUncaptured
from tests.small_models import randomized, sequences
from yuzu.product import apply_pairwise

L = 15


class WritesState(WritesSequence):
    def forward(self, x, state):
        state.add_(1)
        return self.dense(torch.cat([self.conv(x).relu().flatten(1), state], 1)).tanh()


def by_hand(model, X, state):
    """The deltas, each forward on tensors of its own."""
    with torch.no_grad():
        reference = model(X.clone(), state.clone())
        found = torch.zeros(len(X), 4, L, 2, dtype=X.dtype)
        for c in range(4):
            for p in range(L):
                mutant = X.clone()
                mutant[:, :, p] = 0
                mutant[:, c, p] = 1
                found[:, c, p] = model(mutant, state.clone()) - reference
    return found


@pytest.mark.filterwarnings("ignore::yuzu.YuzuWarning")
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("kind", [WritesSequence, WritesState, WritesUncaptured])
@pytest.mark.parametrize("as_numpy", [False, True])
def test_a_forward_that_writes_over_its_inputs(kind, as_numpy, device):
    model, X = randomized(kind(), seed=1).double().eval(), sequences(2, L, dtype=torch.float64)
    state = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = by_hand(model, X, state)
    given = [(t.numpy().copy() if as_numpy else t.clone()) for t in (X, state)]

    def same(found):
        assert np.allclose(np.asarray(found), wanted, atol=1e-10)
        for before, after in zip((X, state), given, strict=True):
            assert np.array_equal(np.asarray(after), np.asarray(before)), "what the user passed has changed"

    settings = {"output": "delta", "device": device}
    made = yuzu.precompute(model, L, args=(given[1],), device=device)
    same(yuzu.yuzu_ism(model, given[0], made, args=(given[1],), **settings))
    same(yuzu.yuzu_ism(model, given[0], args=(given[1],), batch_size=1, **settings))
    same(yuzu.naive_ism(model, given[0], args=(given[1],), batch_size=7, **settings))
    paired = apply_pairwise(yuzu.yuzu_ism, model, given[0], (given[1],), **settings)
    same(np.stack([np.asarray(paired)[i, i] for i in range(2)]))
    assert yuzu.check(model, given[0], made, args=(given[1],), device=device).yuzu_relative_error < 1e-10
    yuzu.hybrid_ism(model, given[0], args=(given[1],), device=device)
    yuzu.taylor.takegrad(given[0], model, args=(given[1],), device=device)
    yuzu.saturation_mutagenesis(model, given[0], args=(given[1],), device=device)
    same(wanted)
