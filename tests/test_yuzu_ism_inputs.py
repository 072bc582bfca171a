"""The contract of `yuzu_ism` and `naive_ism`: sequences, alphabets, other inputs and dtypes, against brute force."""

import functools
import warnings

import numpy as np
import pytest
import torch

import yuzu
from tests.contract import with_args, with_columns
from tests.oracle import assert_close, assert_right, assert_same, errors, oracle
from tests.small_models import Net, Profile, one_hot, randomized, sequences

OUTPUTS = ("l2", "delta", "prediction")

L = 30


@functools.cache
def net_of(length, n_choices, dtype=torch.float32):
    """One `Net` for each kind of sequence, so that `yuzu_ism` prepares it once."""
    return randomized(Net(length, n_choices, width=4)).to(dtype).eval()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "bool", "int16", "int32", "int64", "float16", "float32", "float64"])
def test_input_dtypes(ism, net, dtype):
    X = sequences(2, L)
    expected = ism(net, X)
    assert_same(ism(net, X.to(getattr(torch, dtype))), expected)
    assert_same(ism(net, X.numpy().astype(dtype)), expected.numpy())


@pytest.mark.parametrize("output", OUTPUTS)
def test_float64_model(ism, device, output):
    model, X = net_of(L, 4, torch.float64), sequences(2, L)
    for given in (X, X.double(), X.to(torch.int8)):
        result = ism(model, given, output=output, device=device)
        assert result.dtype == torch.float64
    assert_right(result, model, X, output=output, device=device)
    assert ism(model, X.numpy(), output=output, device=device).dtype == np.float64


def test_bfloat16_model_gives_float32(ism):
    model = randomized(Net()).to(torch.bfloat16).eval()
    X = sequences(1, L)
    result = ism(model, X, output="delta")
    assert result.dtype == torch.float32
    truth = oracle(model, X)["delta"]  # of the rounded weights, in float64
    assert errors(result, truth)[1] < 0.1


def test_model_without_parameters(ism):
    class Count(torch.nn.Module):
        def forward(self, X):
            return torch.nn.functional.avg_pool1d(X, 3).square().sum(2)

    X = sequences(2, 12)
    assert_right(ism(Count(), X, output="delta"), Count(), X, output="delta")
    assert ism(Count(), X.double()).dtype == torch.float32


@pytest.mark.parametrize("layout", ["channels last", "reverse complement", "read-only", "every other", "Fortran order"])
def test_numpy_layouts(ism, net, layout):
    X = sequences(4, L).numpy()
    views = {
        "channels last": np.ascontiguousarray(X.transpose(0, 2, 1)).transpose(0, 2, 1),
        "reverse complement": X[:, ::-1, ::-1],
        "read-only": X.copy(),
        "every other": X[::2],
        "Fortran order": np.asfortranarray(X),
    }
    view = views[layout]
    if layout == "read-only":
        view.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = ism(net, view)
    assert_same(result, ism(net, view.copy()))


def test_torch_views_and_gradients(ism, net):
    X = sequences(4, L)
    expected = ism(net, X)
    assert_same(ism(net, X.permute(0, 2, 1).contiguous().permute(0, 2, 1)), expected)
    assert_same(ism(net, X[::2]), ism(net, X[::2].clone()))
    X.requires_grad_()
    result = ism(net, X)
    assert not result.requires_grad and X.grad is None and X.requires_grad
    assert_same(result, expected)


def test_input_is_not_written_to(ism, net):
    X = sequences(3, L)
    before, version = X.clone(), X._version
    for output in OUTPUTS:
        ism(net, X, output=output)
        ism(net, X.numpy(), output=output)
        ism(net, X, output=output, ranges=[(3, 6)], replace_with="ACG")
    assert torch.equal(X, before) and X._version == version

ODD = {
    "N in the middle": {(0, 10): [0, 0, 0, 0], (1, 11): [0, 0, 0, 0]},
    "N at both ends": {(0, 0): [0, 0, 0, 0], (0, L - 1): [0, 0, 0, 0]},
    "a run of N": {(0, p): [0, 0, 0, 0] for p in range(6, 13)},
    "soft": {(0, 3): [0.25, 0.25, 0.25, 0.25], (1, 8): [0.7, 0.1, 0.1, 0.1], (1, L - 1): [0.5, 0, 0.5, 0]},
    "two ones": {(0, 4): [1, 1, 0, 0]},
    "negative and large": {(0, 4): [-1, 2, 0, 0.5], (1, 0): [3, 0, 0, 0]},
    "nearly one": {(0, 5): [0.999, 0.001, 0, 0]},
    "N and soft side by side": {(0, 5): [0, 0, 0, 0], (0, 6): [0.5, 0.5, 0, 0], (1, 6): [0, 0, 0, 0]},
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", ODD)
def test_columns_without_a_reference_character(ism, net, device, name, output):
    X = with_columns(sequences(2, L), ODD[name])
    assert_right(ism(net, X, output=output, device=device), net, X, output=output, device=device)


def test_all_substitutions_are_made_at_an_n(ism, net):
    X = with_columns(sequences(1, L), {(0, 10): [0, 0, 0, 0], (0, 20): [0.5, 0.5, 0, 0]})
    l2 = ism(net, X)
    assert bool((l2[0, :, [10, 20]] > 0).all())
    assert int((l2[0] == 0).sum()) >= L - 2


@pytest.mark.parametrize("output", OUTPUTS)
def test_sequence_of_nothing_but_n(ism, net, output):
    X = torch.zeros(1, 4, L)
    assert_right(ism(net, X, output=output), net, X, output=output)


def test_ranges_over_n_and_soft_columns(ism, net):
    X = with_columns(sequences(2, L), {(0, 5): [0, 0, 0, 0], (1, 6): [0.5, 0.25, 0.25, 0]})
    result = ism(net, X, ranges=[(4, 7), (5, 8)], replace_with="ACG", output="delta")
    assert_right(result, net, X, ranges=[(4, 7), (5, 8)], replace_with=one_hot("ACG"), output="delta")


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("n_choices", [2, 5, 20])
def test_alphabets(ism, n_choices, output):
    model, X = net_of(16, n_choices), sequences(2, 16, n_choices)
    X[0, :, 3] = 0
    result = ism(model, X, output=output)
    assert result.shape[:3] == (2, n_choices, 16)
    assert_right(result, model, X, output=output)


def test_protein_strings(ism):
    alphabet = "ACDEFGHIKLMNPQRSTVWY"
    model, X = net_of(16, 20), sequences(2, 16, 20)
    result = ism(model, X, ranges=[(0, 4), (12, 16)], replace_with="WYAK", output="delta")
    assert_right(result, model, X, ranges=[(0, 4), (12, 16)], replace_with=one_hot("WYAK", alphabet), output="delta")
    result = ism(model, X, replace_with="A", output="delta")  # an alanine scan
    assert_right(result, model, X, replace_with=one_hot("A", alphabet), output="delta")


def extra(n, count):
    generator = torch.Generator().manual_seed(11)
    everything = (
        torch.rand(n, 1, generator=generator) + 0.5,
        torch.randn(n, 1, L, generator=generator),
        torch.arange(n) % 7,
    )
    return everything[:count]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_args(ism, device, count, output):
    model, X, args = with_args(), sequences(3, L), extra(3, count)
    for batch_size in (1, 2, 500):
        result = ism(model, X, args=args, output=output, batch_size=batch_size, device=device)
        assert_right(result, model, X, args=args, output=output, device=device)


def test_rows_of_args_belong_to_their_sequence(ism):
    model, X, args = with_args(), sequences(3, L)[[0, 0, 0]], extra(3, 3)
    together = ism(model, X, args=args)
    assert float((together[0] - together[1]).abs().max()) > 1e-3
    for i in range(3):
        alone = ism(model, X[i : i + 1], args=tuple(a[i : i + 1] for a in args))
        assert_close(together[i : i + 1], alone, 2e-6, 2e-6)
    order = [2, 0, 1]
    assert_close(ism(model, X[order], args=tuple(a[order] for a in args)), together[order], 2e-6, 2e-6)


def test_args_as_list_and_numpy(ism):
    model, X, args = with_args(), sequences(2, L), extra(2, 3)
    expected = ism(model, X, args=args)
    assert_same(ism(model, X, args=list(args)), expected)
    assert_same(ism(model, X, args=tuple(a.numpy() for a in args)), expected)
    before = [a.clone() for a in args]
    ism(model, X, args=args)
    assert all(torch.equal(a, b) for a, b in zip(args, before, strict=True))


def test_args_are_cast_to_the_models_dtype(ism):
    """Arrays of numpy are float64 as they are made; whole numbers stay whole."""
    model, X, args = with_args(), sequences(2, L), extra(2, 3)
    doubles = tuple(a.double() if a.is_floating_point() else a for a in args)
    expected = ism(model, X, args=args)
    assert_same(ism(model, X, args=doubles), expected)
    assert_same(ism(model, X, args=tuple(a.numpy() for a in doubles)), expected)
    assert yuzu.check(model, X, args=doubles).yuzu_relative_error < 1e-5
    precomputation = yuzu.precompute(model, L, args=args)
    assert_same(yuzu.yuzu_ism(model, X, precomputation, args=doubles), yuzu.yuzu_ism(model, X, precomputation, args=args))


def test_args_that_a_model_casts_itself(tmp_path):
    """A precomputation serves the inputs that it was made with, whatever their dtype."""

    class Casting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv1d(4, 3, 5)

        def forward(self, X, scale):
            return self.conv(X).sum(2) * scale.float()

    model, X, scale = Casting(), sequences(2, L), torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    precomputation = yuzu.precompute(model, L, args=(scale,))
    precomputation.save(tmp_path / "casting.yuzu")
    for used in (precomputation, yuzu.Precomputation.load(tmp_path / "casting.yuzu"), None):
        assert_right(yuzu.yuzu_ism(model, X, used, args=(scale,)), model, X, args=(scale,))


def test_args_with_ranges_func_and_batches(ism):
    model, X, args = with_args(), sequences(4, L), extra(4, 3)
    options = dict(ranges=[(0, 2), (15, 17)], func=lambda y: y[0], target=1, output="delta")
    result = ism(model, X, args=args, replace_with="CC", batch_size=3, **options)
    assert_right(result, model, X, args=args, replace_with=one_hot("CC"), **options)


def test_sequence_shorter_than_the_receptive_field(ism, device):
    model = randomized(Profile(width=3)).eval()
    for length in (1, 3, 6):
        X = sequences(2, length, seed=length)
        assert_right(ism(model, X, output="delta", device=device), model, X, output="delta", device=device)
