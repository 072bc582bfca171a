"""Verification of what really runs: the chosen ways and the weights laid out for them, which the comparison in float64
does without. Each is made wrong.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import pytest
import torch
from torch import nn

import yuzu
from tests.oracle import assert_close, assert_right
from tests.small_models import randomized, sequences
from yuzu._engine.handlers import dense
from yuzu._engine.ways.convolution import WAYS
from yuzu.taylor import takegrad

L = 60
ladder = importlib.import_module("yuzu._engine.tune.ladder")


@pytest.fixture
def model():
    layers = nn.Conv1d(4, 16, 5, padding=2), nn.ReLU(), nn.Conv1d(16, 16, 5, padding=2), nn.ReLU(), nn.Flatten()
    return randomized(nn.Sequential(*layers, nn.Linear(16 * L, 3))).eval()


def wrong(found: torch.Tensor, only: torch.dtype | None = None) -> torch.Tensor:
    return found * 1.5 if only in (None, found.dtype) else found


def shifted(found: Any) -> Any:
    runs, order = found
    return [dataclasses.replace(r, start=max(r.start - 1, 0)) for r in runs], order


def make_wrong(monkeypatch: pytest.MonkeyPatch, name: str, only: torch.dtype | None = None) -> None:
    """A function of dense layers, or a way of convolutions; for one dtype or all."""
    if name in WAYS:
        entry = WAYS[name]
        monkeypatch.setitem(WAYS, name, dataclasses.replace(entry, run=lambda call: wrong(entry.run(call), only)))
        return
    right = getattr(dense, name)
    spoil = shifted if name == "_even_runs" else lambda found: wrong(found, only)
    monkeypatch.setattr(dense, name, lambda *args: spoil(right(*args)))
    way = "positions" if name == "_by_positions" else "slices"
    monkeypatch.setattr(dense.OverPositions, "ways", lambda self, run, window: [way])


@pytest.mark.parametrize(
    ("name", "layer"), [("_by_slices", "5"), ("_even_runs", "5"), ("_by_positions", "5"), ("banded", "2"), ("fold", "2")]
)
def test_what_is_wrong_only_as_it_is_run_runs_naively(monkeypatch, model, device, name, layer):
    make_wrong(monkeypatch, name)
    conv = name if name in WAYS else "windows"
    assert yuzu.precompute(model, L, conv=conv, device=device, verify=False).decisions.naive == {}
    with pytest.warns(yuzu.YuzuWarning, match=rf"naively on every mutant.*\b{layer} \(.*as it runs here by the way"):
        made = yuzu.precompute(model, L, conv=conv, device=device)
    assert len(made.decisions.naive) == 1 and made.decisions.naive_model is None
    assert "naive" in made.summary()
    X = sequences(2, L)
    assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device=device), model, X, output="delta", device=device)


def test_ways_that_are_wrong_in_the_models_own_dtype_only(monkeypatch, model, device):
    """No layer can be blamed by a comparison in float64."""
    make_wrong(monkeypatch, "banded", torch.float32)
    with pytest.warns(yuzu.YuzuWarning, match="by the first of its ways"):
        made = yuzu.precompute(model, L, conv="banded", device=device)
    assert set(made.decisions.ways.values()) == {"windows", "slices"} and not made.decisions.naive
    X = sequences(1, L)
    assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device=device), model, X, output="delta", device=device)


@pytest.mark.filterwarnings("ignore:.*first of its ways")
def test_nothing_that_is_right_is_left(monkeypatch, model, device):
    make_wrong(monkeypatch, "_by_slices", torch.float32)
    with pytest.warns(yuzu.YuzuWarning, match="wrong on this machine"):
        made = yuzu.precompute(model, L, device=device)
    assert "wrong on this machine" in made.decisions.naive_model
    X = sequences(1, L)
    assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device=device), model, X, output="delta", device=device)


@pytest.mark.filterwarnings("ignore:.*(first of its ways|not faster)")
def test_a_layer_is_blamed_also_where_nothing_is_right(monkeypatch, device):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.conv = nn.Conv1d(4, 16, 5, padding=2), nn.Conv1d(16, 16, 5, padding=2)
            self.dense = nn.Linear(16 * L, 3)

        def forward(self, x):
            y = self.first(x).relu()
            return self.conv(y), 100 * self.dense(y.flatten(1))  # neither is lost beside the other

    make_wrong(monkeypatch, "banded")
    make_wrong(monkeypatch, "_by_slices", torch.float32)
    made = yuzu.precompute(randomized(Branches()).eval(), L, conv="banded", device=device)
    assert "wrong on this machine" in made.decisions.naive_model
    (reason,) = made.decisions.naive.values()
    assert "by the way 'banded'" in reason


@pytest.mark.filterwarnings("ignore:.*(first of its ways|not faster)")
def test_hybrid_ism_runs_nothing_that_is_wrong(monkeypatch, model, device, tmp_path):
    make_wrong(monkeypatch, "_by_slices", torch.float32)
    made = yuzu.precompute(model, L, device=device)
    made.save(tmp_path / "made.yuzu")
    X = sequences(2, L)
    expected = takegrad(X, model, output="tism", device=device)
    for given in (made, yuzu.Precomputation.load(tmp_path / "made.yuzu", device=device)):
        with pytest.warns(yuzu.YuzuWarning, match="is Taylor ISM for this model: .*wrong on this machine"):
            found = yuzu.hybrid_ism(model, X, given, device=device)
        assert_close(found, expected)


@pytest.mark.filterwarnings("error::yuzu.YuzuWarning")
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_right_is_run_once_more(monkeypatch, model, device, precision, dtype):
    """A chunk of few mutants; nothing is planned anew, or compared by layers."""
    chunks = []
    right = ladder.error_of_products
    monkeypatch.setattr(ladder, "error_of_products", lambda run, *rest: chunks.append(run) or right(run, *rest))
    model = model.to(dtype)
    made = yuzu.precompute(model, L, precision=precision, device=device)
    assert made.decisions.naive == {}
    kernels = torch.device(device).type != "cpu"  # of our own are checked by themselves, where they are chosen
    assert 1 <= len(chunks) - (precision == "medium") <= 1 + kernels
    assert not any(run.once for run in chunks)


@pytest.mark.filterwarnings("error::yuzu.YuzuWarning")
def test_gaussian_ways_are_not_compared(monkeypatch, model, device):
    monkeypatch.setattr(ladder, "error_of_products", None)
    yuzu.precompute(model, L, conv="gaussian", alpha=1.5, device=device)
