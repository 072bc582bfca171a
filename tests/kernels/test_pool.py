"""Pools by the kernel, in whole models. Without a GPU it runs in Triton's interpreter; see `tests/kernels/layers.py`."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu
from tests.capturing import decide
from tests.oracle import assert_right
from tests.small_models import randomized, sequences
from yuzu._engine.handlers import pool
from yuzu._engine.kernels import pool as pool_kernel
from yuzu._engine.kernels.triton import POOL_KERNEL, KernelError

L = 47  # divisible by nothing


@pytest.fixture
def launched(monkeypatch):
    """Pools run by the kernel; how many were."""
    monkeypatch.setattr(pool.Pool, "ways", lambda self, run, window: [POOL_KERNEL])
    count, original = [], pool_kernel.pool

    def counted(*args):
        count.append(1)
        return original(*args)

    monkeypatch.setattr(pool_kernel, "pool", counted)
    return count


class Pooled(nn.Module):
    def __init__(self, function, channels=5, flat=False):
        super().__init__()
        self.first, self.second = nn.Conv1d(4, channels, 5, padding=2), nn.Conv1d(channels, 3, 3, padding=1)
        self.function = function

    def forward(self, x):
        return self.second(self.function(self.first(x)))


POOLS = {
    "maximum": lambda y: F.max_pool1d(y, 3),
    "overlapping": lambda y: F.max_pool1d(y, 5, 2, padding=2),
    "ceil mode": lambda y: F.max_pool1d(y, 4, 3, padding=1, ceil_mode=True),
    "dilated": lambda y: F.max_pool1d(y, 3, 2, padding=1, dilation=3),
    "stride of 1": lambda y: F.max_pool1d(y, 2, 1),
    "two in a row": lambda y: F.max_pool1d(F.max_pool1d(y, 3).relu(), 2),
    "average": lambda y: F.avg_pool1d(y, 3),
    "average with padding": lambda y: F.avg_pool1d(y, 5, 2, padding=2),
    "average without it": lambda y: F.avg_pool1d(y, 5, 2, padding=2, count_include_pad=False),
    "average, ceil mode": lambda y: F.avg_pool1d(y, 4, 3, padding=1, ceil_mode=True),
    "in two dimensions": lambda y: F.max_pool2d(y.unsqueeze(2), (1, 3)).squeeze(2),
    "divisor": lambda y: F.avg_pool2d(y.unsqueeze(3), (4, 1), divisor_override=3).squeeze(3),
    "adaptive": lambda y: F.adaptive_max_pool1d(y[:, :, 1:], 23),
    "longer than a row of places": lambda y: F.max_pool1d(y, 40, 1),
}  # fmt: skip


@pytest.mark.filterwarnings("error::yuzu.YuzuWarning")
@pytest.mark.parametrize(
    ("name", "channels"),
    [*((name, 5) for name in POOLS), *((name, n) for name in ("overlapping", "average, ceil mode") for n in (1, 130))],
)
def test_pools(name, channels, kernels, launched):
    model, X = randomized(Pooled(POOLS[name], channels), seed=3).eval(), sequences(1, L)
    X[0, :, 20] = 0  # an N
    made = yuzu.precompute(model, L, conv="windows", device=kernels)  # "auto" might find the interpreter too slow
    assert POOL_KERNEL in made.decisions.ways.values()
    before = len(launched)
    found = yuzu.yuzu_ism(model, X, made, device=kernels, output="delta")
    assert_right(found, model, X, output="delta", device=kernels)
    assert len(launched) > before


@pytest.mark.parametrize("sites", [1, 11])
def test_chunks_and_ranges(sites, kernels, launched):
    model, X = randomized(Pooled(POOLS["overlapping"]), seed=3).eval(), sequences(3, L)
    made = yuzu.precompute(model, L, conv="windows", device=kernels)  # "auto" might find the interpreter too slow
    decide(made, sites=sites)
    motif = dict(ranges=[(0, 4), (21, 25), (L - 4, L)], replace_with="TGAC")
    found = yuzu.yuzu_ism(model, X, made, device=kernels, output="delta", **motif)
    letters = torch.eye(4)[:, [3, 2, 0, 1]]
    assert_right(found, model, X, output="delta", device=kernels, ranges=motif["ranges"], replace_with=letters)
    found = yuzu.yuzu_ism(model, X, made, device=kernels, start=3, end=20)
    assert_right(found, model, X, device=kernels, start=3, end=20)


def test_a_model_in_float64_is_pooled_by_phases(kernels, launched):
    model, X = randomized(Pooled(POOLS["maximum"]), seed=3).double().eval(), sequences(1, L, dtype=torch.float64)
    made = yuzu.precompute(model, L, conv="windows", device=kernels)  # "auto" might find the interpreter too slow
    assert_right(yuzu.yuzu_ism(model, X, made, device=kernels), model, X, device=kernels)
    assert not launched


def test_wrong_kernels_are_not_used(kernels, launched, monkeypatch):
    counted = pool_kernel.pool
    monkeypatch.setattr(pool_kernel, "pool", lambda *args: counted(*args) * 1.01)
    model, X = randomized(Pooled(POOLS["maximum"]), seed=3).eval(), sequences(1, L)
    with pytest.warns(yuzu.YuzuWarning, match="pools by phases.*off by"):
        made = yuzu.precompute(model, L, conv="windows", device=kernels)
    del launched[:]
    assert_right(yuzu.yuzu_ism(model, X, made, device=kernels), model, X, device=kernels)
    assert not launched


def test_kernels_that_fail_later(kernels, launched, monkeypatch):
    model, X = randomized(Pooled(POOLS["maximum"]), seed=3).eval(), sequences(1, L)
    made = yuzu.precompute(model, L, conv="windows", device=kernels)

    def fails(*args):
        raise KernelError("Triton fails")

    monkeypatch.setattr(pool_kernel, "pool", fails)
    with pytest.warns(yuzu.YuzuWarning, match="pools by phases"):
        found = yuzu.yuzu_ism(model, X, made, device=kernels)
    assert_right(found, model, X, device=kernels)


def test_on_a_cpu_phases_are_chosen():
    model = randomized(Pooled(POOLS["maximum"]), seed=3).eval()
    made = yuzu.precompute(model, L, device="cpu")
    assert "phases" in made.decisions.ways.values() and "kernel" not in made.decisions.ways.values()


def test_what_is_no_number_stays_so(kernels, launched):
    """One mutant's infinity, or what is no number, is not lost to a maximum."""
    x = torch.zeros(4, 6, 2)
    x[1, 2, 0], x[2, 3, 1] = torch.nan, torch.inf
    reference = torch.randn(1, 6, 2)
    after = F.max_pool1d(reference.transpose(1, 2), 3).transpose(1, 2).contiguous()
    zeros = torch.zeros(4, dtype=torch.int32)
    geometry = pool.Geometry(3, 3, 0, 1, 6, 2)
    places = pool_kernel.Sites(*(zeros.to(kernels) for _ in range(3)))
    given = (t.to(kernels) for t in (x, reference, after))
    x, reference, after = given
    found = pool_kernel.pool(x, 1, 2, geometry, places, reference, after).cpu()
    assert torch.isnan(found[1, 0, 0]) and found[2, 1, 1] == torch.inf
    found[1, 0, 0] = found[2, 1, 1] = 0
    assert torch.equal(found, torch.zeros_like(found))
