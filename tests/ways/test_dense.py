"""Ways of running dense layers."""


import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu
from tests.covering import covering
from tests.oracle import assert_right, errors, oracle
from tests.small_layers import Model, by_way, flattened
from tests.small_models import sequences
from yuzu._engine.derived import Derived
from yuzu._engine.edits import Mutations
from yuzu._engine.graph import Weights
from yuzu._engine.handlers import over_positions
from yuzu._engine.handlers.over_positions import DENSE_WAYS
from yuzu._engine.plan.plan import make_plan
from yuzu._engine.rewrite.all import capture
from yuzu._engine.run.run import Run
from yuzu._engine.store.in_use import InUse
from yuzu._engine.tune.examples import Examples

# what the check of precompute finds wrong would run naively, and be right all the same
pytestmark = pytest.mark.filterwarnings("error::yuzu.YuzuWarning")

L = 40


@pytest.mark.parametrize(
    *covering(way=DENSE_WAYS, spread=[1, 4000, 1 << 24], positions_last=[True, False], given=[(1, 60), (3, 24)])
)
def test_dense_layers_by_every_way(way, positions_last, given, spread, monkeypatch):
    number, length = given
    monkeypatch.setattr(over_positions, "SPREAD_BYTES", spread)  # one site in a block, a few, all

    def bind(self, *args, _bind=InUse.__init__, **kwargs):
        _bind(self, *args, **kwargs)
        if self.plan is not None:
            self.plan = by_way(self.plan, way)

    def forward(x, conv, linear):
        y = F.max_pool1d(conv(x), 4)
        return linear(y.flatten(1) if positions_last else y.transpose(1, 2).flatten(1))

    model = Model(forward, nn.Conv1d(4, 5, 5, padding=2), nn.Linear(5 * (length // 4), 3)).double()
    X = sequences(number, length)
    monkeypatch.setattr(InUse, "__init__", bind)
    precomputation = yuzu.precompute(model, length)
    assert_right(yuzu.yuzu_ism(model, X, precomputation, output="delta"), model, X, output="delta")
    some = yuzu.yuzu_ism(model, X, precomputation, output="delta", start=3, end=-2)
    assert max(errors(some, oracle(model, X, start=3, end=-2)["delta"])) < 1e-10


def test_large_weights_leave_room_for_chunks(monkeypatch):
    """Weights that fill the memory which runs get by themselves: as of models with a dense layer on all positions."""
    model = flattened()
    weights = sum(p.nbytes for p in model.parameters())
    monkeypatch.setattr("yuzu._engine.settings.LEAST_MEMORY", 2 * weights)
    made = yuzu.precompute(model, L, device="cpu")
    assert made.settings.max_memory == 4 * weights
    bound = made.bind(model, L, 4, (), torch.device("cpu"))
    mutations = Mutations.asked(4, L)
    assert bound.memory(mutations).weights > 2 * weights, "all of what would be there"
    assert bound.sites_at_once(mutations) > 1
    strict = yuzu.precompute(model, L, device="cpu", max_memory=3 * weights)
    assert strict.settings.max_memory == 3 * weights


@pytest.mark.parametrize("transposed", [False, True])
def test_a_single_chunk_reads_the_whole_weight_as_it_lies(transposed):
    """Verification lays out no second weight in float64."""
    body, weight = nn.Conv1d(4, 6, 5, padding=2), torch.randn(6 * L, 3)

    class ByMatrix(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.linear = body, nn.Linear(6 * L, 3)
            self.register_buffer("matrix", weight)

        def forward(self, x):
            x = self.body(x).relu().flatten(1)
            return self.linear(x) if transposed else x @ self.matrix

    model = ByMatrix().double().eval()
    graph = capture(model, (4, L), (), torch.float64)
    X = torch.as_tensor(sequences(1, L)).double()
    changes, laid_out = [], []
    for once in (False, True):
        derived = Derived()
        run = Run(make_plan(graph), Weights(model, torch.device("cpu")), derived, torch.device("cpu"))
        run.once = once
        run.set_reference(X, ())
        sites = Examples(4, L, 3).sites(run, 9)
        (change,) = run.chunk(sites)
        changes.append(change.tensor)
        laid_out.append(any("dense" in str(key) for key in derived._kept))
    torch.testing.assert_close(changes[0], changes[1], rtol=1e-12, atol=1e-12)
    assert laid_out == [True, False]
