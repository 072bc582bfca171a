"""Normalisations of signed scores, and the files made of them."""

import numpy as np
import pytest
import torch

import yuzu
from tests.small_models import sequences
from yuzu.attribution import hypothetical, mean_effect, projected
from yuzu.modisco import to_modisco
from yuzu.sequence import decode, one_hot_encode

DELTAS = np.array([[[0.0], [3.0], [6.0], [-1.0]]])  # (1, 4, 1); the reference is the first letter
LETTERS = np.array([[[1], [0], [0], [0]]])


def test_each_by_hand():
    assert hypothetical(DELTAS).ravel().tolist() == [-2.0, 1.0, 4.0, -3.0], "minus the mean of four, 8 / 4"
    assert mean_effect(DELTAS, LETTERS).ravel() == pytest.approx([-8 / 3, 0, 0, 0]), "minus the mean of three"
    assert projected(hypothetical(DELTAS), LETTERS).ravel().tolist() == [-2.0, 0, 0, 0]


@pytest.mark.parametrize("rest", [(), (2,), (2, 3)])
@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_shapes_and_relations(rest, kind):
    X = sequences(3, 7)
    X[0, :, 2] = 0  # N
    d = torch.randn(3, 4, 7, *rest, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    letters = X.reshape(3, 4, 7, *[1] * len(rest)).double()
    d = d * (1 - letters)
    if kind == "numpy":
        d, X = d.numpy(), X.numpy()
    h, m, p = hypothetical(d), mean_effect(d, X), projected(hypothetical(d), X)
    for found in (h, m, p):
        assert type(found) is type(d) and found.shape == d.shape and found.dtype == d.dtype
    h, m, p, d = (torch.as_tensor(v) for v in (h, m, p, d))
    assert torch.allclose(h.sum(1), torch.zeros(()).double(), atol=1e-12)
    assert torch.allclose(m, p * 4 / 3), "the two are 4/3 apart"
    assert (m[0, :, 2] == 0).all() and (p[0, :, 2] == 0).all(), "no letter stands there"
    reference = (h * letters).sum(1, keepdim=True)
    standing = letters.sum(1, keepdim=True) == 1
    assert torch.allclose(torch.where(standing, h - reference, d), d), "differences come back from hypothetical scores"


def test_characters_on_another_axis():
    X = sequences(2, 5, n_choices=20)
    d = torch.randn(2, 3, 20, 5)
    assert torch.allclose(hypothetical(d, channel_axis=-2)[:, 1], hypothetical(d[:, 1]))
    assert torch.allclose(mean_effect(d, X, channel_axis=2)[:, 1], mean_effect(d[:, 1], X))
    assert torch.allclose(projected(d, X, channel_axis=-2)[:, 2], projected(d[:, 2], X))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hypothetical([1, 2]), "deltas must be a torch.Tensor or numpy.ndarray, got list"),
        (lambda: hypothetical(np.zeros((3, 4, 5), object)), "deltas must hold numbers, got dtype object"),
        (lambda: projected(np.zeros((3, 4, 5)), np.zeros((3, 4, 5), str)), "X must hold numbers, got dtype <U1"),
        (lambda: hypothetical(torch.zeros(3, 4)), "at least 3 axes"),
        (lambda: hypothetical(torch.zeros(3, 4, 5), channel_axis=4), "axis 4"),
        (lambda: hypothetical(torch.zeros(3, 4, 5), channel_axis=0), "axis 0"),
        (lambda: mean_effect(torch.zeros(3, 4, 5), torch.zeros(3, 4, 6)), r"X must have shape \(3, 4, 5\)"),
        (lambda: mean_effect(torch.zeros(3, 1, 5), torch.zeros(3, 1, 5)), "at least 2 characters"),
        (lambda: projected(torch.zeros(3, 4, 5), [1]), "X must be a torch.Tensor"),
        (lambda: projected(torch.zeros(3, 4, 5), torch.zeros(2, 4, 5)), r"X must have shape \(3, 4, 5\)"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(yuzu.YuzuError, match=message):
        call()


def test_to_modisco(tmp_path, net):
    X = sequences(3, 30)
    X[1, :, 4] = 0
    scores = hypothetical(yuzu.yuzu_ism(net, X, output="delta", target=0))
    files = to_modisco(tmp_path / "peaks", X, scores)
    assert [f.name for f in files] == ["peaks.ohe.npz", "peaks.attr.npz"]
    with np.load(files.sequences) as ohe, np.load(files.attributions) as attr:
        assert list(ohe) == list(attr) == ["arr_0"]
        assert ohe["arr_0"].dtype == np.int8 and attr["arr_0"].dtype == np.float32
        assert np.array_equal(ohe["arr_0"], X.numpy()) and np.array_equal(attr["arr_0"], scores.numpy())
    to_modisco(str(tmp_path / "peaks"), X.numpy(), scores.numpy())  # over the old ones
    assert sorted(f.name for f in tmp_path.iterdir()) == ["peaks.attr.npz", "peaks.ohe.npz"]


@pytest.mark.parametrize("alphabet", ["AGCT", "cgat", ["C", "A", "T", "G"]])
@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_to_modisco_writes_acgt_whatever_the_order(tmp_path, alphabet, kind):
    texts = ["ACGTNACC", "GGTTACAN"]
    letters = "".join(alphabet).upper()
    X = one_hot_encode(texts, alphabet=alphabet)
    scores = hypothetical(torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)) * (1 - X))
    if kind == "numpy":
        X, scores = X.numpy(), scores.numpy()
    files = to_modisco(tmp_path / "lua", X, scores, alphabet=alphabet)
    with np.load(files.sequences) as ohe, np.load(files.attributions) as attr:
        assert decode(ohe["arr_0"]) == texts
        for place, letter in enumerate("ACGT"):
            assert np.array_equal(attr["arr_0"][:, place], scores[:, letters.index(letter)])
        assert ohe["arr_0"].dtype == np.int8 and attr["arr_0"].dtype == np.float32


def test_to_modisco_is_for_dna(tmp_path):
    X = sequences(2, 10)
    scores = hypothetical(torch.randn(2, 4, 10) * (1 - X))
    for alphabet in ("ACGU", "ACG", "ACGTN", "ACDEFGHIKLMNPQRSTVWY"):
        with pytest.raises(yuzu.YuzuError, match=f"alphabet: got '{alphabet}', want the letters of DNA"):
            to_modisco(tmp_path / "out", X, scores, alphabet=alphabet)
    assert not list(tmp_path.iterdir())


def test_to_modisco_refuses_what_is_not_hypothetical(tmp_path):
    X = sequences(2, 10)
    d = torch.randn(2, 4, 10) * (1 - X)
    good = hypothetical(d)
    for scores, letters, message in (
        (d, X, "plain differences"),
        (projected(good, X), X, "projected"),
        (good[:, :, 1:], X, "the shape of X"),
        (good, X * 0.5, "one-hot"),
        (good.where(X == 1, torch.nan), X, "finite"),
        (good[:, :3], X[:, :3], r"\(N, 4, L\)"),
        (good.tolist(), X, "got list"),
        (good.numpy().astype(str), X, "scores must hold real numbers, got dtype <U"),
        (good + 1j, X, "scores must hold real numbers, got dtype complex64"),
    ):
        with pytest.raises(yuzu.YuzuError, match=message):
            to_modisco(tmp_path / "out", letters, scores)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    X = sequences(2, 10)
    scores = hypothetical(torch.randn(2, 4, 10) * (1 - X))
    files = to_modisco(tmp_path / "out", X, scores)
    before = files.sequences.read_bytes()

    def broken(file, array):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", broken)
    with pytest.raises(OSError, match="disk full"):
        to_modisco(tmp_path / "out", X, scores)
    assert files.sequences.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
