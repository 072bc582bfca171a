"""Functions on every pairing of sequences with other inputs."""

import numpy as np
import pytest
import torch
from torch import nn

import yuzu
from tests.small_models import sequences
from yuzu.product import apply_pairwise, apply_product

L = 24


class Cell(nn.Module):
    """Sequences in cell states: the state joins after the convolutions; a number scales the result."""

    def __init__(self):
        super().__init__()
        self.conv, self.dense = nn.Conv1d(4, 6, 5, padding=2), nn.Linear(6 + 3, 2)

    def forward(self, x, state, depth):
        y = self.conv(x).relu().amax(2)
        return self.dense(torch.cat([y, state], 1)) * depth, y


X = sequences(3, L)
STATE, DEPTH = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.arange(1.0, 5.0)[:, None]
FUNCTIONS = {
    "predict": (yuzu.predict, {}),
    "yuzu_ism": (yuzu.yuzu_ism, {"output": "delta", "start": 3, "end": 9}),
    "saturation_mutagenesis": (yuzu.saturation_mutagenesis, {"func": lambda y: y[0], "end": 9}),
    "raw": (yuzu.saturation_mutagenesis, {"raw_outputs": True, "end": 4}),
}


def leaves(value):
    return torch.utils._pytree.tree_leaves(value)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_pairwise(name, batch_size):
    func, settings = FUNCTIONS[name]
    model = Cell().eval()
    found = apply_pairwise(func, model, X, (STATE, DEPTH), batch_size, "cpu", additional_func_kwargs=settings)
    for i in range(3):
        for j in range(4):
            alone = func(model, X[i : i + 1], args=(STATE[j : j + 1], DEPTH[j : j + 1]), device="cpu", **settings)
            for mine, other in zip(leaves(found), leaves(alone), strict=True):
                assert mine.shape[:2] == (3, 4) and isinstance(mine, torch.Tensor) and torch.allclose(mine[i, j], other[0], atol=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_product(name):
    func, settings = FUNCTIONS[name]
    model = Cell().eval()
    found = apply_product(func, model, X.numpy(), [STATE, DEPTH.numpy()[:2]], 7, "cpu", settings)
    for i, j, k in np.ndindex(3, 4, 2):
        alone = func(model, X[i : i + 1], args=(STATE[j : j + 1], DEPTH[k : k + 1]), device="cpu", **settings)
        for mine, other in zip(leaves(found), leaves(alone), strict=True):
            assert isinstance(mine, np.ndarray) and mine.shape[:3] == (3, 4, 2)
            assert np.allclose(mine[i, j, k], other[0], atol=1e-5)


def test_containers_become_lists():
    model = Cell().eval()
    raw = apply_pairwise(yuzu.saturation_mutagenesis, model, X, (STATE, DEPTH), device="cpu", raw_outputs=True)
    assert isinstance(raw, list) and len(raw) == 2 and all(isinstance(r, list) and len(r) == 2 for r in raw)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: apply_pairwise(yuzu.predict, m, X, (STATE, DEPTH[:2])), "same number of rows"),
        (lambda m: apply_pairwise(yuzu.predict, m, X, ()), "at least one input"),
        (lambda m: apply_product(yuzu.predict, m, X[:0], (STATE, DEPTH)), "X must hold at least one"),
        (lambda m: apply_product(yuzu.predict, m, X.numpy().astype(object), (STATE, DEPTH)), "X must hold numbers"),
        (lambda m: apply_pairwise(yuzu.yuzu_ism, m, X * torch.nan, (STATE, DEPTH)), "X must be finite"),
        (lambda m: apply_product(yuzu.predict, m, X, (STATE[:0], DEPTH)), "at least one row"),
        (lambda m: apply_product("predict", m, X, (STATE, DEPTH)), "func must be callable"),
        (lambda m: apply_product(yuzu.predict, m, X, (STATE, DEPTH), batch_size=0), "batch_size"),
        (lambda m: apply_product(yuzu.predict, "m", X, (STATE, DEPTH)), "model must be"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(yuzu.YuzuError, match=message):
        call(Cell().eval())


@pytest.mark.parametrize("name", ["apply_pairwise", "apply_product"])
def test_the_numbers_are_tangermemes(name):
    product = pytest.importorskip("tangermeme.product", reason="compares with tangermeme")
    from tangermeme.predict import predict

    model, mine = Cell().eval(), {"apply_pairwise": apply_pairwise, "apply_product": apply_product}[name]
    for func in (predict, yuzu.predict):
        found = mine(func, model, X, (STATE, DEPTH), device="cpu")
        other = getattr(product, name)(func, model, X, (STATE, DEPTH), device="cpu")
        assert isinstance(found, list) and isinstance(other, list)
        for a, b in zip(found, other, strict=True):
            assert torch.allclose(a, b, atol=1e-6)
