"""Precomputations on disk: a round trip changes nothing."""

import copy
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import safetensors.torch
import torch
from torch import nn

import yuzu
from tests.capturing import decide
from tests.oracle import assert_right, assert_same
from tests.small_models import Net, Profile, randomized, sequences
from tests.store.saved import header_of
from yuzu import Precomputation, PrecomputationError, precompute, yuzu_ism
from yuzu._engine.handlers import registry

L = 30


@pytest.mark.parametrize("conv", ["auto", "windows", "banded", "fold", "cyclic", "gaussian"])
def test_round_trip_gives_the_same_bits(saved, path, captured_once, conv):
    model, X = saved[0], sequences(3, L)
    X[0, :, 4], X[1, :, 9] = 0, 0.25
    precomputation = precompute(model, L, conv=conv, alpha=1.5 if conv == "gaussian" else None)
    expected = [yuzu_ism(model, X, precomputation, output=output) for output in ("l2", "delta", "prediction")]
    precomputation.save(path)
    loaded = Precomputation.load(path)
    assert isinstance(loaded, Precomputation)
    for output, wanted in zip(("l2", "delta", "prediction"), expected, strict=True):
        assert_same(yuzu_ism(model, X, loaded, output=output), wanted)
    ranges = [(0, 3), (14, 17), (27, 30)]
    assert_same(yuzu_ism(model, X, loaded, ranges=ranges), yuzu_ism(model, X, precomputation, ranges=ranges))


def test_round_trip_keeps_what_it_says(saved, path):
    _, precomputation, data = saved
    path.write_bytes(data)
    loaded = Precomputation.load(path)
    assert loaded.summary() == precomputation.summary() and str(loaded) == str(precomputation)
    assert repr(loaded) == repr(precomputation)


def test_saved_twice(saved, path, tmp_path):
    model, _, data = saved
    path.write_bytes(data)
    Precomputation.load(path).save(tmp_path / "again.yuzu")
    again = Precomputation.load(tmp_path / "again.yuzu")
    assert again.summary() == Precomputation.load(path).summary()
    assert_right(yuzu_ism(model, sequences(1, L), again), model, sequences(1, L))


def test_a_file_made_before_training_serves_after_it(saved, path):
    path.write_bytes(saved[2])
    loaded, X = Precomputation.load(path), sequences(1, L)
    for seed in (5, 6):
        model = randomized(Profile(), seed=seed).eval()
        assert_right(yuzu_ism(model, X, loaded, output="delta"), model, X, output="delta")


def test_what_kind_of_model_does_not_matter(path):
    """Inputs, precision, terminal layers, a protein alphabet, float64, memory: all of it is in the file."""

    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net(16, 20, width=4)

        def forward(self, X, scale):
            return self.net(X) * scale

    model, X, args = randomized(Scaled()).double().eval(), sequences(2, 16, 20), (torch.rand(2, 1),)
    settings = dict(args=args, terminal_layers=(torch.nn.Linear,), max_memory=10**8, conv="cyclic")
    precomputation = precompute(model, 16, 20, **settings)
    precomputation.save(path)
    loaded = Precomputation.load(path)
    assert loaded.summary() == precomputation.summary()
    expected = yuzu_ism(model, X, precomputation, args=args)
    assert_same(yuzu_ism(model, X, loaded, args=args), expected)
    assert_right(expected, model, X, args=args)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_that_runs_naively(path):
    class Branching(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv1d(4, 2, 3)

        def forward(self, X):
            return self.conv(X).amax(2) * (2 if bool(X.sum() > 3) else 1)

    model, X = randomized(Branching()), sequences(1, L)
    precompute(model, L).save(path)
    assert_right(yuzu_ism(model, X, Precomputation.load(path)), model, X)
    with pytest.raises(PrecomputationError, match="architecture"):
        yuzu_ism(torch.nn.Conv1d(4, 2, 3), X, Precomputation.load(path))


def test_load_takes_a_device(saved, path, device):
    model, _, data = saved
    path.write_bytes(data)
    loaded, X = Precomputation.load(path, device=device), sequences(1, L)
    assert_right(yuzu_ism(model, X, loaded, device=device), model, X, device=device)
    with pytest.raises(ValueError, match="device"):
        Precomputation.load(path, device="graphics card")


def test_paths_as_strings_and_loading_by_class(saved, tmp_path):
    saved[1].save(str(tmp_path / "a.yuzu"))
    assert Precomputation.load(str(tmp_path / "a.yuzu")).summary() == saved[1].summary()
    assert [p.name for p in tmp_path.iterdir()] == ["a.yuzu"], "something else was left beside it"


def test_save_replaces_whole(saved, path):
    path.write_text("something else")
    saved[1].save(path)
    assert Precomputation.load(path).summary() == saved[1].summary()


def test_save_where_it_cannot(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"no folder {tmp_path / 'missing'} to write a\.yuzu in$"):
        saved[1].save(tmp_path / "missing" / "a.yuzu")
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError, match=rf"^{tmp_path / 'taken'} is a folder"):
        saved[1].save(tmp_path / "taken")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"] and not list((tmp_path / "taken").iterdir())


def test_nothing_of_the_weights_is_in_the_file(path):
    """A model with a million weights makes a small file, the same for other weights; and it works for both."""
    models = [
        randomized(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4 * L, 10_000)), seed=s) for s in (1, 2)
    ]
    precompute(models[0], L).save(path)
    assert path.stat().st_size < 100_000
    loaded, X = Precomputation.load(path), sequences(1, L)
    for model in models:
        assert_right(yuzu_ism(model, X, loaded, start=3, end=5), model, X, start=3, end=5)


def test_the_format(saved):
    """Safetensors with a JSON header that holds, in words, what it was made for."""
    header, _ = header_of(saved[2])
    tensors = safetensors.torch.load(saved[2])
    assert all(isinstance(t, torch.Tensor) for t in tensors.values())
    text = json.dumps(header["__metadata__"])
    for word in ("version", "torch", "seq_len", "n_choices", "precision", "device", "fingerprint", str(L), "highest"):
        assert word in text, word
    assert b"pickle" not in saved[2] and zipfile.is_zipfile(io.BytesIO(saved[2])) is False


def test_loaded_then_used_with_something_else(saved, path):
    model, _, data = saved
    path.write_bytes(data)
    loaded, X = Precomputation.load(path), sequences(1, L)
    with pytest.raises(PrecomputationError, match="architecture"):
        yuzu_ism(randomized(Profile(width=6)), X, loaded)
    with pytest.raises(PrecomputationError, match="architecture"):
        yuzu_ism(Net(), X, loaded)
    with pytest.raises(PrecomputationError, match=r"dtype.*float32.*float64"):
        yuzu_ism(copy.deepcopy(model).double(), X, loaded)
    with pytest.raises(PrecomputationError, match=r"length.*30.*31"):
        yuzu_ism(model, sequences(1, 31), loaded)
    with pytest.raises(PrecomputationError, match=r"4.*20"):
        yuzu_ism(Profile(20), sequences(1, L, 20), loaded)
    with pytest.raises(PrecomputationError, match=r"input|args"):
        yuzu_ism(model, X, loaded, args=(torch.ones(1, 1),))
    assert_right(yuzu_ism(model, X, loaded), model, X)


@pytest.mark.parametrize("conv", ["auto", "gaussian"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))], ids=["copied", "pickled"])
def test_a_duplicate_is_bound_anew(duplicate, conv):
    model, X = Profile().eval(), sequences(1, L)
    made = yuzu.precompute(model, L, conv=conv, device="cpu")
    expected = yuzu.yuzu_ism(model, X, made, device="cpu")
    other = duplicate(made)
    assert other.settings == made.settings and other.summary() == made.summary() and not other._used
    assert torch.equal(yuzu.yuzu_ism(model, X, other, device="cpu"), expected)


class Sized(nn.Module):
    """Its graph calls a function of Python on the size of the batch."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 3, 5)

    def forward(self, x):
        return self.conv(x).relu().mean(2) + 0 * max(x.shape[0], 5)

FINGERPRINT = """
import torch, yuzu
from tests.store.test_files import Sized
torch.manual_seed(0)
print(yuzu.precompute(Sized(), 20, device="cpu").decisions.fingerprint)
"""


def test_a_fingerprint_is_the_same_in_every_process():
    here = yuzu.precompute(Sized(), 20, device="cpu").decisions.fingerprint
    environment = {**os.environ, "PYTHONPATH": os.path.abspath(f"{__file__}/../../..")}
    command = [sys.executable, "-W", "ignore", "-c", FINGERPRINT]
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert there.strip() == here


def test_a_handler_that_is_missing_where_it_is_loaded(path, monkeypatch):
    model, X = nn.Sequential(nn.Conv1d(4, 3, 5), nn.AvgPool1d(3, 1), nn.Conv1d(3, 2, 3)).eval(), sequences(1, L)
    yuzu.precompute(model, L, device="cpu").save(path)
    monkeypatch.delitem(registry._REGISTRY, "aten.avg_pool1d")
    loaded = yuzu.Precomputation.load(path)
    with pytest.warns(yuzu.YuzuWarning, match=r"had handlers when the precomputation was made.*: 1\b.*yuzu\.handles"):
        found = yuzu.yuzu_ism(model, X, loaded, output="delta", device="cpu")
    assert_right(found, model, X, output="delta")


def test_ways_of_a_rule_of_a_users_own(saved, path):
    """A saved way is ignored if its rule is gone or has other ways now."""
    model, precomputation, _ = saved
    made = copy.deepcopy(precomputation)
    decide(made, ways={**made.decisions.ways, 3: "a user's own"})
    made.save(path)
    loaded = Precomputation.load(path)
    assert loaded.decisions.ways == made.decisions.ways
    assert_right(yuzu_ism(model, sequences(1, L), loaded, output="delta"), model, sequences(1, L), output="delta")
