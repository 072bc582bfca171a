"""Traps that others fell into, one test each.

The published Yuzu fails on average pooling, ``bias=False``, strides and files, and scores an ``N`` as ``A``; captures
that trust ``children()`` are wrong for loops and branches; and so on. Each test compares with brute force in float64.
"""

import copy
import time
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import (
    LARGEST,
    Net,
    Profile,
    assert_close,
    assert_right,
    assert_same,
    errors,
    oracle,
    randomized,
    sequences,
)
from torch import nn

import yuzu
from yuzu import Precomputation, precompute, yuzu_ism

L = 36


FLOATS = (torch.float32, torch.float64)


def assert_exact(model, X, device="cpu", dtypes=FLOATS[1:], quiet=True, one_by_one=False):
    """All three outputs are right, by default in float64, and without a warning where none is expected."""
    for dtype in dtypes:
        model = copy.deepcopy(model).to(dtype)
        with warnings.catch_warnings():
            if quiet:
                warnings.simplefilter("error")
            precomputation = precompute(model, X.shape[2], X.shape[1], device=device)
        for output in ("delta", "l2", "prediction"):
            result = yuzu_ism(model, X, precomputation, output=output, device=device)
            assert_right(result, model, X, output=output, device=device, one_by_one=one_by_one)
    return precomputation


def assert_gains(precomputation):
    """No layer runs naively: what the engine is for."""
    assert "naive" not in precomputation.summary().lower(), precomputation.summary()


# what the published Yuzu fails on


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool1d(3),
        nn.AvgPool1d(4, stride=2, padding=1),
        nn.AvgPool1d(4, stride=3, padding=2, count_include_pad=False),
        nn.AvgPool1d(5, stride=4, ceil_mode=True),
        nn.AvgPool1d(3, stride=2, padding=1, ceil_mode=True),
    ],
    ids=str,
)
def test_average_pooling(pool, device):
    model = nn.Sequential(
        nn.Conv1d(4, 5, 5), nn.ReLU(), pool, nn.Conv1d(5, 3, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)
    )
    with torch.no_grad():
        model(sequences(1, L))
    assert_gains(assert_exact(randomized(model), sequences(2, L), device))


def test_no_bias(device):
    model = nn.Sequential(
        nn.Conv1d(4, 6, 5, padding=2, bias=False),
        nn.BatchNorm1d(6, affine=False),
        nn.ReLU(),
        nn.Conv1d(6, 4, 3, dilation=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * (L - 4), 5, bias=False),
        nn.ReLU(),
        nn.Linear(5, 2, bias=False),
    )
    assert_gains(assert_exact(randomized(model).eval(), sequences(2, L), device, FLOATS))


@pytest.mark.parametrize(
    "kernel, stride, padding, dilation",
    [(5, 2, 2, 1), (4, 4, 0, 1), (3, 2, 1, 3), (2, 3, 0, 1), (1, 2, 0, 1), (7, 5, 6, 1)],
)
def test_strided_convolutions(device, kernel, stride, padding, dilation):
    class Strided(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv1d(4, 4, kernel, stride=stride, padding=padding, dilation=dilation)
            self.second = nn.Conv1d(4, 3, 3, stride=2, padding=1)
            self.third = nn.Conv1d(3, 2, 2, padding=1)

        def forward(self, X):
            return self.third(torch.relu(self.second(torch.relu(self.first(X)))))

    assert_gains(assert_exact(randomized(Strided()), sequences(2, L), device))


@pytest.mark.parametrize("kind", ["average pooling", "stride", "no bias"])
def test_save_and_load(tmp_path, captured_once, kind):
    layers = {
        "average pooling": [nn.Conv1d(4, 3, 5), nn.AvgPool1d(2)],
        "stride": [nn.Conv1d(4, 3, 5, stride=3)],
        "no bias": [nn.Conv1d(4, 3, 5, bias=False)],
    }[kind]
    model, X = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)), sequences(2, L)
    with torch.no_grad():
        model(X)
    randomized(model)
    precomputation = precompute(model, L)
    precomputation.save(tmp_path / "file")
    loaded = Precomputation.load(tmp_path / "file")
    result = yuzu_ism(model, X, loaded, output="delta")
    assert_same(result, yuzu_ism(model, X, precomputation, output="delta"))
    assert_right(result, model, X, output="delta")


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


# how errors hide


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


# the order in which forward uses its modules


def test_a_module_used_twice(device):
    class Reused(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv1d(4, 5, 3, padding=1)
            self.shared = nn.Conv1d(5, 5, 3, padding=2, dilation=2)
            self.relu = nn.ReLU()
            self.head = nn.Linear(5, 2)

        def forward(self, X):
            X = self.relu(self.first(X))
            X = self.relu(self.shared(X))
            X = X + self.relu(self.shared(X))
            return self.head(self.shared(X).mean(2))

    assert_gains(assert_exact(randomized(Reused()), sequences(2, L), device, FLOATS))


def test_functional_calls(device):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(5, 4, 5))
            self.gain = nn.Parameter(torch.zeros(5, 1))
            self.linear = nn.Parameter(torch.zeros(3, 5 * 12))

        def forward(self, X):
            X = F.conv1d(X, self.weight, padding=2) * self.gain
            X = F.max_pool1d(F.relu(X, inplace=True), 3)
            X = F.linear(X.reshape(X.shape[0], -1), self.linear)
            return F.elu(X)

    assert_gains(assert_exact(randomized(Functional()), sequences(2, L), device, FLOATS))


def test_layers_registered_in_another_order(device):
    """``children()`` in order would run, as the shapes agree, and compute something else."""

    class Shuffled(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()
            self.last = nn.Conv1d(4, 4, 3, padding=1)
            self.first = nn.Conv1d(4, 4, 3, padding=1)

        def forward(self, X):
            return self.last(self.relu(self.first(X)))

    model, X = randomized(Shuffled()), sequences(2, L)
    in_order = nn.Sequential(*model.children())
    assert errors(oracle(in_order, X)["delta"], oracle(model, X)["delta"])[0] > 0.1
    assert_gains(assert_exact(model, X, device))


def test_a_loop_over_positions():
    """forward loops over positions; for a sequence of one letter (such as a probe of zeros) children in order agree."""

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(4, 3, 3, padding=1)
            self.relu = nn.ReLU()

        def forward(self, X):
            y = self.relu(self.conv(X))
            state, rows = torch.zeros_like(y[:, :, 0]), []
            for p in range(y.shape[2]):
                rows.append(y[:, :, p] + 0.5 * torch.tanh(state))
                state = rows[-1]
            return torch.stack(rows, 2)

    model, X = randomized(Loop()), sequences(1, 14)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it gains little may be said
        precomputation = precompute(model, 14)
    for output in ("delta", "l2"):
        assert_right(yuzu_ism(model, X, precomputation, output=output), model, X, output=output)


class Branch(nn.Module):
    """Children in order, unless the sequence holds a motif anywhere: then twice as much."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 3, 3)
        self.relu = nn.ReLU()

    def forward(self, X):
        y = self.relu(self.conv(X))
        rows = []
        for row, x in zip(y, X, strict=True):
            motif = bool((x[0, :-2] * x[1, 1:-1] * x[2, 2:]).any())  # ACG
            rows.append(row * 2 if motif else row)
        return torch.stack(rows)


def test_a_branch_on_content():
    """On most sequences, and on all zeros, children in order agree. It must warn, say why, and be exact."""
    model, X = randomized(Branch()), sequences(2, L, seed=5)
    X[0, :, 10:13] = torch.eye(4)[:3].T  # with the motif; some mutants lose it
    X[1, :, 20:23] = torch.eye(4)[[0, 1, 3]].T  # one mutation away from it
    with pytest.warns(UserWarning, match=r"(?s)Branch.*naive.*exact"):
        precomputation = precompute(model, L)
    assert "naive" in precomputation.summary()
    for output in ("delta", "prediction"):
        result = yuzu_ism(model, X, precomputation, output=output)
        assert_right(result, model, X, output=output, one_by_one=True)
    in_order = oracle(nn.Sequential(*model.children()), X)["delta"]
    assert errors(in_order, oracle(model, X, one_by_one=True)["delta"])[1] > 0.1, (
        "the test is empty: no mutant branches"
    )


def test_a_branch_on_content_without_a_precomputation():
    model, X = randomized(Branch(), seed=2), sequences(1, L, seed=5)
    X[0, :, 10:13] = torch.eye(4)[:3].T
    with pytest.warns(UserWarning, match="naive"):
        result = yuzu_ism(model, X, output="delta")
    assert_right(result, model, X, output="delta", one_by_one=True)


def test_a_branch_on_content_without_looking_at_it():
    """``torch.where`` is a branch that can be captured."""

    class Where(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(4, 3, 3, padding=1)
            self.fc = nn.Linear(3, 2)

        def forward(self, X):
            y = self.conv(X)
            y = torch.where(y > 0.1, y, 0.2 * y)
            return torch.where(y.amax((1, 2), keepdim=True) > 1.0, 2 * y, y).mean(2) @ self.fc.weight.T

    assert_exact(randomized(Where()), sequences(2, L), quiet=False)


def test_children_in_order_that_differ_in_evaluation():
    """Agreement in training mode, or of a part that evaluation leaves out, says nothing about evaluation."""

    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(4, 3, 3, padding=1)
            self.extra = nn.Conv1d(3, 3, 3, padding=1)

        def forward(self, X):
            X = self.conv(X)
            return self.extra(X) if self.training else torch.relu(X)

    assert_exact(randomized(Auxiliary()).train(), sequences(2, L))


# several outputs


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


# the user's model


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


# both strands


class BothStrands(nn.Module):
    """Puts the reverse complement into the same batch, as wrappers for strand-symmetric models do."""

    def __init__(self, interleaved, together):
        super().__init__()
        self.net = Net(L)
        self.interleaved, self.together = interleaved, together

    def forward(self, X):
        n = X.shape[0]
        both = torch.stack([X, X.flip(1, 2)], 1).flatten(0, 1) if self.interleaved else torch.cat([X, X.flip(1, 2)])
        y = self.net(both)
        y = y.unflatten(0, (n, 2)) if self.interleaved else torch.stack([y[:n], y[n:]], 1)
        return y.mean(1) if self.together else y.amax(1)


@pytest.mark.parametrize("interleaved, together", [(False, True), (True, False)])
def test_both_strands_in_one_batch(interleaved, together):
    model = randomized(BothStrands(interleaved, together)).eval()
    X = sequences(3, L)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it gains little
        precomputation = precompute(model, L)
    for output in ("delta", "l2", "prediction"):
        for batch_size in (None, 2):
            result = yuzu_ism(model, X, precomputation, output=output, batch_size=batch_size)
            assert_right(result, model, X, output=output, one_by_one=True)


def test_an_output_with_two_rows_a_sequence_is_refused():
    """What row belongs to what sequence cannot be known."""

    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(4, 2, 3)

        def forward(self, X):
            return self.conv(torch.cat([X, X.flip(1, 2)])).amax(2)

    for function in (yuzu.naive_ism, yuzu_ism):
        with warnings.catch_warnings(), pytest.raises(ValueError, match="one row for each sequence"):
            warnings.simplefilter("ignore")
            function(Doubled(), sequences(2, L))


# what is kept between calls


def test_a_kept_precomputation_is_not_stale():
    model, X = randomized(Net(L)).eval(), sequences(1, L)
    assert_right(yuzu_ism(model, X), model, X)
    model.conv2 = randomized(nn.Conv1d(6, 6, 7, padding=3), seed=5)  # a layer exchanged
    assert_right(yuzu_ism(model, X), model, X)
    model.conv2 = randomized(nn.Conv1d(6, 6, 3, padding=2, dilation=2), seed=6)  # one of the old one's shapes
    assert_right(yuzu_ism(model, X), model, X)
    model.pool = nn.AvgPool1d(2)
    assert_right(yuzu_ism(model, X), model, X)
    model.double()  # the dtype changed
    assert_right(yuzu_ism(model, X), model, X)
    model.float()
    with torch.no_grad():
        model.conv1.weight.mul_(-1)  # the weights changed
    assert_right(yuzu_ism(model, X), model, X)


# the ends


PADDINGS = {
    "zeros": dict(padding=4),
    "same": dict(padding="same"),
    "wider than the kernel": dict(padding=11),
    "dilated": dict(padding=8, dilation=2),
    "strided": dict(padding=5, stride=2),
    "reflect": dict(padding=4, padding_mode="reflect"),
    "replicate": dict(padding=4, padding_mode="replicate"),
    "circular": dict(padding=4, padding_mode="circular"),
}


CASES = [(name, "windows") for name in PADDINGS] + [("zeros", "banded"), ("same", "fold"), ("strided", "cyclic")]


@pytest.mark.parametrize("name, conv", CASES)
def test_padding_is_not_a_reference_value(name, conv):
    """With biases, a layer's values just behind the ends are not zero; the next layer's padding is. In float64."""

    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv1d(4, 3, 9, **PADDINGS[name])
            self.second = nn.Conv1d(3, 3, 7, padding=6)
            self.third = nn.Conv1d(3, 2, 5, padding=2)

        def forward(self, X):
            X = torch.sigmoid(self.first(X))  # sigmoid(0) is not 0 either
            X = F.softplus(self.second(X)) + 1
            return self.third(F.avg_pool1d(X, 4, stride=2, padding=2))

    model, X = randomized(Padded()).double(), sequences(2, L)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a padding mode may be run naively
        precomputation = precompute(model, L, conv=conv)
    result, truth = yuzu_ism(model, X, precomputation, output="delta"), oracle(model, X)["delta"]
    for positions in (slice(0, 6), slice(-6, None), slice(None)):
        assert_close(result[:, :, positions], truth[:, :, positions], 1e-12, 1e-12)


@pytest.mark.parametrize("pad", [(3, 2), (0, 5), (-3, -2), (-4, 6), (5, 0)], ids=str)
def test_explicit_padding_and_cropping(pad):
    class Padding(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv1d(4, 4, 5)
            self.second = nn.Conv1d(4, 3, 3)

        def forward(self, X):
            X = F.pad(torch.sigmoid(self.first(F.pad(X, pad, value=0.5))), pad, value=-1.0)
            return self.second(X).square()

    assert_exact(randomized(Padding()), sequences(2, L))


def test_a_sequence_shorter_than_a_kernel_with_padding():
    model = nn.Sequential(nn.Conv1d(4, 3, 9, padding=8), nn.Sigmoid(), nn.Conv1d(3, 2, 9, padding=4))
    for length in (1, 5):
        assert_exact(randomized(model), sequences(2, length))
