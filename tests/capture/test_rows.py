"""Models that return something else for a sequence beside others than for the sequence alone."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu
from tests.oracle import errors, oracle
from tests.small_models import randomized, sequences
from yuzu._engine.capture.rows import depends_on_batch
from yuzu._engine.run import naive
from yuzu.errors import YuzuWarning

L = 20


class Model(nn.Module):
    def __init__(self, use):
        super().__init__()
        self.use = use
        self.conv, self.fc = nn.Conv1d(4, 6, 5, padding=2), nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(self.use(self.conv(x)).relu().mean(2))


class Quantised(nn.Module):
    """A linear layer on values that are quantised with one scale for the whole batch."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv1d(4, 6, 5, padding=2), nn.Linear(6 * L, 2)

    def forward(self, x):
        h = self.conv(x).relu().flatten(1)
        scale = h.amax() / 127
        return self.fc((h / scale).round().clamp(-128, 127) * scale)


MIXING = {
    "batch norm without running statistics": lambda: nn.Sequential(
        nn.Conv1d(4, 6, 5), nn.BatchNorm1d(6, track_running_stats=False), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 2)
    ),
    "batch norm in training": lambda: Model(lambda h: F.batch_norm(h, None, None, training=True)),
    "its largest value": lambda: Model(lambda h: h / h.abs().amax()),
    "less half of its mean": lambda: Model(lambda h: h - h.mean(0) / 2),
    "softmax over rows": lambda: Model(lambda h: h * (1 + h.softmax(0))),
    "sorted rows": lambda: Model(lambda h: h.sort(0)[0]),
    "its size": lambda: Model(lambda h: h / len(h)),
    "one scale of quantisation": Quantised,
}


def one_by_one(model, X):
    """By hand: each mutant less its reference, each run alone."""
    dtype = next(model.parameters()).dtype
    truth = torch.empty(len(X), 4, X.shape[2], 2, dtype=torch.float64)
    with torch.no_grad():
        for i, x in enumerate(X.to(dtype)):
            for c in range(4):
                for p in range(X.shape[2]):
                    row = x.clone()
                    row[:, p], row[c, p] = 0, 1
                    truth[i, c, p] = model(row[None])[0].double() - model(x[None])[0].double()
    return truth


@pytest.mark.parametrize(
    "dtype, name",
    [(torch.float32, name) for name in MIXING]
    + [(torch.float64, "batch norm in training"), (torch.float16, "less half of its mean")]
    + [(torch.bfloat16, "batch norm in training"), (torch.bfloat16, "one scale of quantisation")],
)
def test_rows_that_depend_on_their_batch(name, dtype):
    model, X = randomized(MIXING[name]()).eval().to(dtype), sequences(2, L)
    truth = one_by_one(model, X)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        precomputation = yuzu.precompute(model, L, device="cpu")
        found = [yuzu.yuzu_ism(model, X, precomputation, output="delta", device="cpu")]
        found += [yuzu.naive_ism(model, X, output="delta", device="cpu", batch_size=b) for b in (128, 7, 1)]
    words = [str(w.message) for w in said if issubclass(w.category, YuzuWarning)]
    assert len(words) == 3 and all("depends on the others in its batch" in w for w in words), words
    assert not any("exact" in w for w in words)
    assert "depends on the others in its batch" in precomputation.summary()
    for result in found:
        assert errors(result, truth)[0] < (1e-5 if dtype in (torch.float32, torch.float64) else 5e-3)


def test_they_are_checked_row_by_row():
    model, X = randomized(MIXING["batch norm in training"]()).eval(), sequences(1, L)
    with pytest.warns(YuzuWarning, match="depends on the others"):
        checked = yuzu.check(model, X, device="cpu")
    assert "as accurate as naive ISM" in checked.summary and checked.naive_relative_error < 1e-4


def test_it_is_kept_with_what_is_saved(tmp_path):
    model, X = randomized(MIXING["batch norm in training"]()).eval(), sequences(1, L)
    with pytest.warns(YuzuWarning):
        yuzu.precompute(model, L, device="cpu").save(tmp_path / "kept.yuzu")
    loaded = yuzu.Precomputation.load(tmp_path / "kept.yuzu")
    found = yuzu.yuzu_ism(model, X, loaded, output="delta", device="cpu")
    assert errors(found, one_by_one(model, X))[0] < 1e-5


APART = {
    "batch norm with running statistics": lambda: nn.Sequential(
        nn.Conv1d(4, 6, 5), nn.BatchNorm1d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 2)
    ),
    "instance norm": lambda: Model(lambda h: F.instance_norm(h)),
    "sorted positions": lambda: Model(lambda h: h.sort(2)[0]),
    "its own scale": lambda: Model(lambda h: h / h.abs().amax((1, 2), keepdim=True)),
    "Fourier": lambda: Model(lambda h: torch.fft.rfft(h.float()).abs().to(h.dtype)),
    "an autocast region": lambda: Model(lambda h: _in_low_precision(h)),
    "steep": lambda: Model(lambda h: (h * 30).exp() / (1 + (h * 30).exp()) - (h * 30).sigmoid()),
    "random": lambda: Model(lambda h: F.dropout(h, 0.3, training=True)),
    "one row": lambda: Model(lambda h: h.view(1, 6, L)),
}


def _in_low_precision(h):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return (h @ torch.ones(L, L, dtype=h.dtype).tril()).to(h.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", APART)
def test_rounding_and_chance_are_no_dependence(name, dtype):
    """Nor what a batch of another size rounds otherwise."""
    for seed in range(3):
        model = randomized(APART[name](), seed).eval().to(dtype)
        with torch.no_grad():
            assert not depends_on_batch(model, sequences(1, L, seed=seed).to(dtype), ())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_larger_models_do_not_depend_on_their_batch(dtype):
    """Their products are by other kernels in batches of one and of two."""
    layers = [nn.Conv1d(4, 64, 9, padding=4), nn.ReLU()]
    for _ in range(6):
        layers += [nn.Conv1d(64, 64, 5, padding=2), nn.BatchNorm1d(64), nn.GELU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 200, 64), nn.ReLU(), nn.Linear(64, 3))
    model = randomized(model).eval().to(dtype)
    with torch.no_grad():
        assert not depends_on_batch(model, sequences(1, 200).to(dtype), ())


def test_what_it_costs(monkeypatch):
    """Two small batches more in `naive_ism`, and none in `precompute` where every layer has a handler."""
    rows = []
    model, X = randomized(Model(torch.relu)).eval(), sequences(2, L)
    hook = model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    result = yuzu.naive_ism(model, X, output="delta", device="cpu")
    hook.remove()
    assert rows == [1, 2, 1] + 2 * [1, 3 * L]
    assert errors(result, oracle(model, X)["delta"])[0] < 1e-5
    original, asked = naive.depends_on_batch, []
    monkeypatch.setattr(naive, "depends_on_batch", lambda *args: asked.append(1) or original(*args))
    yuzu.precompute(model, L, device="cpu")
    assert not asked
    with pytest.warns(YuzuWarning, match="run naively"):
        yuzu.precompute(Model(lambda h: h.renorm(2, 0, 9.0)).eval(), L, device="cpu")
    assert asked


def test_batches_are_as_small_as_asked_for():
    rows = []
    model, X = randomized(Model(torch.relu)).eval(), sequences(1, L)
    model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    yuzu.naive_ism(model, X, batch_size=2, device="cpu")
    assert max(rows) == 2
