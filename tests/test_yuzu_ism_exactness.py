"""How errors hide: no N is an A, no output is left out, no small score is wrong behind a large one."""

import time

import numpy as np
import pytest
import torch
from torch import nn

import yuzu
from tests.oracle import LARGEST, assert_close, assert_right, errors, oracle
from tests.small_models import Net, Profile, randomized, sequences
from yuzu import precompute, yuzu_ism

L = 36


@pytest.mark.parametrize("conv", ["auto", "windows", "banded", "fold", "cyclic", "gaussian"])
def test_n_is_not_a(profile, captured_once, conv):
    """At an ``N`` all four substitutions are made; the published Yuzu took it for an ``A``, and scored 0 there."""
    model = profile
    X = sequences(2, L)
    X[0, :, [0, 17, L - 1]] = 0
    as_a = X.clone()
    as_a[0, 0, [0, 17, L - 1]] = 1
    options = {"alpha": 2.0} if conv == "gaussian" else {}
    precomputation = precompute(model, L, conv=conv, **options)
    result, truth = yuzu_ism(model, X, precomputation, output="delta"), oracle(model, X)["delta"]
    assert_close(result, truth, 1e-3 if conv == "gaussian" else 1e-5, 1e-3 if conv == "gaussian" else LARGEST)
    assert errors(truth[0], oracle(model, as_a)["delta"][0])[1] > 0.1, "the test is empty: it makes no difference"
    l2 = yuzu_ism(model, X, precomputation)
    assert bool((l2[0, :, [0, 17, L - 1]] > 1e-3).all())


def test_a_high_correlation_hides_errors():
    """Scores wrong by 5% at one position in eight pass a correlation test at 0.999; the largest error tells."""
    model, X = randomized(Profile()).eval(), sequences(2, L)
    truth = oracle(model, X)["delta"][0]
    wrong = truth.clone()
    wrong[:, :, ::8] *= 1.05
    assert np.corrcoef(wrong.flatten(), truth.flatten())[0, 1] > 0.999
    assert errors(wrong, truth)[1] > 0.02
    with pytest.raises(AssertionError, match="error"):
        assert_close(wrong, truth)
    result = yuzu_ism(model, X, output="delta")[0]
    assert errors(result, truth)[1] < LARGEST


def test_errors_of_small_scores_do_not_hide_behind_large_ones():
    """One output a million times larger than another: each is right by its own measure."""
    model, X = randomized(Profile()).double().eval(), sequences(1, L)
    with torch.no_grad():
        model.counts.weight.mul_(1e6)
    for result, truth in zip(yuzu_ism(model, X, output="delta"), oracle(model, X)["delta"], strict=True):
        assert_close(result, truth, 1e-10, 1e-10)


class ThreeHeads(nn.Module):
    """Three outputs of equal shapes, so that a mix-up would not show in shapes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 5, padding=2)
        self.heads = nn.ModuleList([nn.Conv1d(6, 3, 1), nn.Conv1d(6, 3, 3, padding=1), nn.Conv1d(6, 3, 5, padding=2)])

    def forward(self, X):
        X = torch.relu(self.conv(X))
        c, a, b = (head(X) for head in self.heads)
        return {"b": b, "a": a, "c": c}


def test_not_only_the_first_output(device):
    model, X = randomized(ThreeHeads()), sequences(2, L)
    precomputation = precompute(model, L, device=device)
    result = yuzu_ism(model, X, precomputation, output="delta", device=device)
    assert_right(result, model, X, output="delta", device=device)
    assert list(result) == ["b", "a", "c"] and float((result["a"] - result["b"]).abs().max()) > 0.1
    l2 = yuzu_ism(model, X, precomputation, device=device)
    alone = sum(r.double().square().sum((3, 4)) for r in result.values()).sqrt()
    assert_close(l2, alone, 1e-6, 1e-6)
    assert errors(result["b"].double().square().sum((3, 4)).sqrt(), alone)[0] > 0.1


def test_outputs_are_not_scrambled(device):
    """``n``, ``C``, ``L`` and the output's axes are all 4, so that a transposition keeps the shape."""

    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(4, 4, 3, padding=1)

        def forward(self, X):
            return torch.tanh(self.conv(X))

    model, X = randomized(Square()), sequences(4, 4)
    result = yuzu_ism(model, X, output="prediction", device=device)
    assert result.shape == (4, 4, 4, 4, 4)
    with torch.no_grad():
        for i in range(4):
            for c in range(4):
                for p in range(4):
                    mutant = X[i : i + 1].clone()
                    mutant[0, :, p] = torch.eye(4)[c]
                    assert float((result[i, c, p] - model(mutant)[0]).abs().max()) < 1e-6


def test_outputs_are_not_averaged():
    model, X = randomized(Net(L, n_outputs=5)).eval(), sequences(1, L)
    result = yuzu_ism(model, X, output="delta")
    assert result.shape == (1, 4, L, 5)
    assert float(result.std(3).max()) > 0.05
    assert_right(result, model, X, output="delta")


def test_the_model_is_not_left_changed(device):
    """tangermeme moved models and left them in evaluation mode; yuzu left hooks and attributes on the layers."""
    model, X = randomized(Net(L)).train(), sequences(2, L)
    model.norm.eval()
    flags = [m.training for m in model.modules()]
    attributes = [sorted(m.__dict__) for m in model.modules()]
    bits = {k: v.clone() for k, v in model.state_dict().items()}
    precomputation = precompute(model, L, device=device)
    for _ in range(2):
        yuzu_ism(model, X, precomputation, device=device)
        yuzu.naive_ism(model, X, device=device)
        with pytest.raises(ZeroDivisionError):
            yuzu_ism(model, X, precomputation, func=lambda y: 1 / 0, device=device)
    assert [m.training for m in model.modules()] == flags
    assert [sorted(m.__dict__) for m in model.modules()] == attributes
    assert all(not getattr(m, k) for m in model.modules() for k in m.__dict__ if k.endswith("hooks"))
    assert all(torch.equal(v, bits[k]) and v.device.type == "cpu" for k, v in model.state_dict().items())
    model(X).sum().backward()  # and its weights can still be trained


def test_precompute_costs_less_than_naive_ism():
    """In CPU seconds, so that a busy machine does not matter. The published one took up to eight times naive ISM."""
    model = nn.Sequential(
        nn.Conv1d(4, 64, 15, padding=7),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(64, 64, 15, padding=7),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Flatten(),
        nn.Linear(64 * 250, 10),
    )
    model, X = randomized(model).eval(), sequences(1, 1000)
    precompute(nn.Conv1d(4, 1, 3), 20)  # imports
    begin = time.process_time()
    precomputation = precompute(model, 1000)
    middle = time.process_time()
    naive = yuzu.naive_ism(model, X)
    end = time.process_time()
    assert middle - begin < end - middle, f"precompute {middle - begin:.2f} s, naive ISM {end - middle:.2f} s"
    assert_close(yuzu_ism(model, X, precomputation), naive, 1e-4, 1e-4)
