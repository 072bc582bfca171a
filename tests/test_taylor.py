"""Taylor ISM: its formulas, against ISM where it is exact, and against gradients made one by one."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

import yuzu
from tests.oracle import oracle
from tests.small_models import Net, sequences
from yuzu import taylor

L = 12


class Linear(nn.Module):
    """Linear in the sequence: first-order Taylor is exact."""

    def __init__(self, outputs=3, length=L):
        super().__init__()
        self.conv, self.dense = nn.Conv1d(4, 5, 3, padding=1), nn.Linear(5 * length, outputs)

    def forward(self, x):
        return self.dense(self.conv(x).flatten(1))


def gradients(model, X, args=(), pick=lambda y: y):
    """``(n, T, C, L)``, one output and one sequence at a time."""
    rows = []
    for i in range(len(X)):
        x = X[i : i + 1].clone().requires_grad_()
        y = pick(model(x, *(a[i : i + 1] for a in args))).reshape(-1)
        rows.append(torch.stack([torch.autograd.grad(v, x, retain_graph=True)[0][0] for v in y]))
    return torch.stack(rows)


def test_tism_is_ism_for_a_linear_model(device):
    model = Linear().double().eval()
    X = sequences(3, L, dtype=torch.float64)
    X[1, :, 4] = 0  # N
    truth = oracle(model, X)["delta"].permute(0, 3, 1, 2)
    found = taylor.takegrad(X, model, output="tism", device=device)
    assert found.shape == (3, 3, 4, L)
    assert torch.allclose(found, truth, atol=1e-10)
    assert torch.allclose(taylor.ism(X, model, device=device), truth, atol=1e-10)
    # and so are the scores that are made of either
    for output, other in (("hypothetical", "ism_attributions"), ("corrected", "ism_attributions")):
        mine = taylor.takegrad(X, model, output=output, device=device)
        centred = taylor.ism(X, model, output=other, device=device)
        assert torch.allclose(mine, centred, atol=1e-10)


@pytest.mark.parametrize("output", taylor.OUTPUTS)
@pytest.mark.parametrize("base", ["none", "C", "CL", "nCL"])
def test_formulas(output, base):
    model = nn.Sequential(nn.Conv1d(4, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * (L - 2), 2)).double().eval()
    X = sequences(2, L, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    shape = {"none": None, "C": (4,), "CL": (4, L), "nCL": (2, 4, L)}[base]
    given = None if shape is None else torch.rand(shape, generator=generator, dtype=torch.float64)
    found = taylor.takegrad(X, model, output=output, baseline=given, device="cpu")
    p = torch.full((2, 4, L), 0.25).double() if given is None else given.reshape(given.shape + (1,) * (base == "C"))
    p = p.expand(2, 4, L)
    g = gradients(model, X)
    for i in range(2):
        for t in range(2):
            for at in range(L):
                for b in range(4):
                    column, letters, base_column = g[i, t, :, at], X[i, :, at], p[i, :, at]
                    wanted = {
                        "local": column[b],
                        "corrected": column[b] - column.sum() / 4,
                        "hypothetical": column[b] - sum(base_column[c] * column[c] for c in range(4)),
                        "global": (letters[b] - base_column[b]) * column[b],
                        "tism": column[b] - column[int(letters.argmax())],
                    }[output]
                    assert abs(found[i, t, b, at] - wanted) < 1e-12
    assert torch.allclose(taylor.correct_multipliers(g, output, X, given), found)
    assert torch.allclose(taylor.correct_multipliers(g[:, 0], output, X, given, channel_axis=1), found[:, 0])
    as_numpy = taylor.takegrad(X.numpy(), model, output=output, baseline=given, device="cpu")
    assert isinstance(as_numpy, np.ndarray) and np.allclose(as_numpy, found)


class Several(nn.Module):
    """Two inputs; a profile and a number in a list."""

    def __init__(self):
        super().__init__()
        self.conv, self.dense = nn.Conv1d(4, 2, 5, padding=2), nn.Linear(2 + 3, 1)

    def forward(self, x, cell):
        y = self.conv(x).tanh()
        return [y[:, :, :3], self.dense(torch.cat([y.mean(2), cell], 1))]


@pytest.mark.parametrize("tracks", [None, 6, -1, [0, 6, 2], np.array([1, 5])])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_several_outputs_and_inputs(tracks, batch_size, monkeypatch):
    monkeypatch.setattr(sys.modules["yuzu._engine.gradients"], "TRACKS_AT_ONCE", 3)
    model = Several().double().eval()
    X, cell = sequences(3, L, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    everything = gradients(model, X, (cell,), lambda y: torch.cat([y[0].flatten(1), y[1]], 1))
    assert everything.shape[1] == 7
    chosen = slice(None) if tracks is None else [tracks] if isinstance(tracks, int) else list(tracks)
    found = taylor.takegrad(X, model, tracks, "local", args=(cell,), batch_size=batch_size, device="cpu")
    assert torch.allclose(found, everything[:, chosen])
    exact = taylor.ism(X, model, tracks, args=(cell,), device="cpu")
    truth = oracle(model, X, args=(cell,))["delta"]
    truth = torch.cat([truth[0].flatten(3), truth[1]], 3).permute(0, 3, 1, 2)[:, chosen]
    assert torch.allclose(exact, truth, atol=1e-12)


def test_ism_outputs(net, device):
    X = sequences(2, 30)
    d = yuzu.yuzu_ism(net, X, output="delta", start=3, end=20, device=device).permute(0, 3, 1, 2)
    settings = {"start": 3, "end": 20, "device": device}
    assert torch.equal(taylor.ism(X, net, **settings), d)
    y = yuzu.yuzu_ism(net, X, output="prediction", **settings).permute(0, 3, 1, 2)
    assert torch.equal(taylor.ism(X, net, output="predictions", **settings), y)
    assert torch.allclose(taylor.ism(X, net, output="ism_attributions", **settings), d - d.mean(2, keepdim=True))
    means = taylor.ism(X, net, output="mean_effects", **settings)
    assert torch.allclose(means, -d.sum(2, keepdim=True) / 3 * X[:, None, :, 3:20], atol=1e-6)
    one = taylor.ism(X.numpy(), net, 0, **settings)
    assert isinstance(one, np.ndarray) and one.shape == (2, 1, 4, 17)
    assert np.allclose(one, d[:, :1], atol=1e-5)


def test_what_cannot_be_batched_is_done_one_by_one():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return torch.from_numpy(2 * (x * gradient).numpy())

    class Model(nn.Module):
        def forward(self, x):
            return Square.apply(x.cumsum(2)).sum(1)[:, :2]

    X = sequences(2, 6)
    assert torch.allclose(taylor.takegrad(X, Model(), output="local", device="cpu"), gradients(Model(), X))


def test_the_model_is_left_alone():
    model = Net().train()
    model.requires_grad_(True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    X = sequences(2, 30).requires_grad_()
    with torch.no_grad():
        first = taylor.takegrad(X, model, device="cpu")
    assert model.training and all(p.grad is None for p in model.parameters()) and X.grad is None
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not first.requires_grad
    assert torch.equal(first, taylor.takegrad(X.detach(), model.eval(), device="cpu")), "evaluation semantics"


def test_recurrent_layers():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.dense = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 1)

        def forward(self, x):
            return self.dense(self.rnn(x.transpose(1, 2))[0][:, -1])

    model, X = Recurrent().double().eval(), sequences(2, 8, dtype=torch.float64)
    assert torch.allclose(taylor.takegrad(X, model, output="local", device="cpu"), gradients(model, X))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": "ism"}, "output must be one of 'local'"),
        ({"tracks": 5}, "tracks must be integers from 0 to"),
        ({"tracks": []}, "at least one output"),
        ({"tracks": [True]}, "tracks must be integers"),
        ({"baseline": np.zeros(3)}, "baseline must have one of the shapes"),
        ({"baseline": "uniform"}, "baseline must be an array of numbers"),
        ({"baseline": [np.nan] * 4}, "baseline must be finite"),
        ({"x": torch.zeros(2, 4)}, "^x must have 3 axes"),
        ({"tracks": torch.zeros(1, 1).long()}, "tracks must be integers"),
        ({"model": "model"}, "model must be a torch.nn.Module"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"func": 3}, "func must be callable"),
        ({"func": lambda y: y.detach()}, "do not depend on the sequence"),
        ({"func": lambda y: y.sum()}, "one row for each"),
    ],
)
def test_bad_input(change, message):
    given = {"x": sequences(2, L), "model": Linear().eval(), "device": "cpu", **change}
    with pytest.raises(yuzu.YuzuError, match=message):
        taylor.takegrad(**given)


@pytest.mark.parametrize("tracks", [1, np.int64(1), np.array(1), torch.tensor(1), [1], np.array([1]), torch.tensor([1]), (torch.tensor(1),)])
def test_one_track_in_any_form(tracks):
    model, X = Linear().eval(), sequences(2, L)
    found = taylor.takegrad(X, model, tracks, device="cpu")
    assert torch.equal(found, taylor.takegrad(X, model, device="cpu")[:, 1:2])


def test_bad_input_of_the_others():
    g, X = torch.zeros(2, 3, 4, L), sequences(2, L)
    for call, message in (
        (lambda: taylor.correct_multipliers(g, "gradient", X), "output must be one of"),
        (lambda: taylor.correct_multipliers(g, "tism", X, channel_axis=1), "x must have the sequences"),
        (lambda: taylor.correct_multipliers(g, "tism", X, channel_axis=-1), "channel_axis=-1"),
        (lambda: taylor.correct_multipliers(g, "tism", X[:, :, 1:]), "x must have the sequences"),
        (lambda: taylor.correct_multipliers([1], "tism", X), "grad must be"),
        (lambda: taylor.correct_multipliers(X[:, None].numpy().astype(object), "tism", X), "grad must hold numbers"),
        (lambda: taylor.ism(X, Linear().eval(), output="tism"), "output must be one of 'ism'"),
        (lambda: taylor.ism(X, Linear().eval(), tracks=7, device="cpu"), "tracks must be integers"),
    ):
        with pytest.raises(yuzu.YuzuError, match=message):
            call()


def test_correlation_with_ism_on_the_trained_model():
    """Approximate, but far from chance, as in the paper."""
    from yuzu.examples import load_ctcf_model, load_ctcf_peaks

    model, X = load_ctcf_model(), load_ctcf_peaks().X[:8]
    exact = taylor.ism(X, model, device="cpu").flatten()
    found = taylor.takegrad(X, model, output="tism", device="cpu").flatten()
    assert 0.6 < float(torch.corrcoef(torch.stack([exact, found]))[0, 1]) < 0.9999


def test_deepliftshap():
    pytest.importorskip("tangermeme", reason="DeepLIFT/SHAP runs tangermeme's")
    from tangermeme.deep_lift_shap import deep_lift_shap

    model, X = Linear().eval(), sequences(3, L)
    base = torch.full((4, L), 0.25)
    # of a linear model the multipliers are the gradient
    for output in taylor.OUTPUTS:
        found = taylor.deepliftshap(X, model, output=output, baseline=base, device="cpu")
        assert torch.allclose(found, taylor.takegrad(X, model, output=output, device="cpu"), atol=1e-5)
    model = nn.Sequential(nn.Conv1d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * (L - 2), 2)).eval()
    found = taylor.deepliftshap(X, model, [1, 0], n_shuffles=5, random_state=3, device="cpu")
    for place, track in enumerate((1, 0)):
        wanted = deep_lift_shap(model, X, target=track, n_shuffles=5, random_state=3, hypothetical=True, device="cpu")
        assert torch.allclose(found[:, place], wanted, atol=1e-5)


def test_deepliftshap_says_what_is_missing(monkeypatch):
    import importlib

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match="pip install tangermeme"):
        taylor.deepliftshap(sequences(1, L), Linear())
