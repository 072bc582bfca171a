"""Precomputations on disk: a round trip changes nothing, and no file, however made, does harm or gets by unnoticed."""

import contextlib
import copy
import functools
import io
import json
import math
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import Net, Profile, assert_right, assert_same, decide, randomized, sequences
from torch import nn

import yuzu
from yuzu import Precomputation, PrecomputationError, naive_ism, precompute, yuzu_ism
from yuzu._engine.handlers import contract
from yuzu._engine.store.files import FORMAT_VERSION

L = 30


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model, its precomputation, and the bytes of its file."""
    model = randomized(Profile(), seed=1).eval()
    precomputation = precompute(model, L)
    path = tmp_path_factory.mktemp("saved") / "profile.yuzu"
    precomputation.save(path)
    return model, precomputation, path.read_bytes()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "precomputation.yuzu"


def header_of(data):
    """The JSON header of a safetensors file, and the bytes after it."""
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(data, change):
    """The file with its ``__metadata__`` changed by ``change(metadata)``."""
    header, rest = header_of(data)
    change(header["__metadata__"])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


# the round trip


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


# used with something else


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


# truncated, foreign, damaged


def refuse(path, match):
    with pytest.raises(PrecomputationError, match=match) as caught:
        Precomputation.load(path)
    message = str(caught.value)
    assert path.name in message and "precompute" in message  # which file, and what to do
    assert sum(word in message for word in ("truncated", "not a Yuzu", "damaged", "version", "folder")) == 1, message
    return caught.value


LENGTHS = [0, 1, 7, 8, 9, 20, 100, 0.5, 0.9, -100, -5, -4, -1]


@pytest.mark.parametrize("length", LENGTHS)
def test_truncated(saved, path, length):
    data = saved[2]
    cut = int(len(data) * length) if isinstance(length, float) else length
    path.write_bytes(data[:cut])
    refuse(path, "truncated")


@pytest.mark.parametrize("conv", ["cyclic", "gaussian"])
def test_truncated_where_there_are_matrices(saved, path, captured_once, conv):
    precompute(saved[0], L, conv=conv, alpha=1.5 if conv == "gaussian" else None).save(path)
    data = path.read_bytes()
    for cut in range(0, len(data), max(len(data) // 12, 1)):
        path.write_bytes(data[:cut])
        refuse(path, "truncated")


def foreign_files():
    model = Net()
    buffer, archive = io.BytesIO(), io.BytesIO()
    torch.save(model.state_dict(), buffer)
    np.savez(archive, a=np.zeros(3))
    return {
        "text": b"not a precomputation at all, but a note of some length that somebody left here\n" * 3,
        "json": json.dumps({"format": "yuzu precomputation", "version": "2"}).encode(),
        "pickle": pickle.dumps({"seq_len": L}),
        "torch.save": buffer.getvalue(),
        "numpy": archive.getvalue(),
        "zeros": bytes(1000),
        "ones": b"\xff" * 1000,
        "random": np.random.default_rng(0).bytes(5000),
        "safetensors of a model": safetensors.torch.save(model.state_dict()),
        "safetensors with a header": safetensors.torch.save(model.state_dict(), {"format": "pt"}),
        "safetensors of another library": safetensors.torch.save(
            {"a": torch.zeros(2)}, {"format": "plan", "version": "2"}
        ),
        "a huge header": struct.pack("<Q", 2**62) + b"{}",
        "a header of rubbish": struct.pack("<Q", 10) + b"[[[[[[[[[[" + bytes(100),
    }


FOREIGN = foreign_files()


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign(path, name):
    path.write_bytes(FOREIGN[name])
    refuse(path, "not a Yuzu precomputation")


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        Precomputation.load(tmp_path / "missing.yuzu")
    (tmp_path / "folder").mkdir()
    refuse(tmp_path / "folder", "is a folder")


@pytest.mark.parametrize("version", ["0", str(FORMAT_VERSION - 1), str(FORMAT_VERSION + 1), "99", "2.5", "", "two", None])
def test_another_format_version(saved, path, version):
    def change(metadata):
        del metadata["version"]
        if version is not None:
            metadata["version"] = version

    path.write_bytes(with_header(saved[2], change))
    refuse(path, "version")


@pytest.mark.parametrize("version", ["3", str(FORMAT_VERSION + 1), "17", "x" * 500, None])
@pytest.mark.parametrize("damage", ["nothing", "cut", "arrays of a kind to come", "other fields", "no fields"])
def test_another_format_version_is_told_whatever_else_is_wrong(saved, path, version, damage):
    """Which it has, and which is wanted: its arrays and fields may be of kinds that nobody knows yet."""

    def change(metadata):
        metadata.update(version=version) if version is not None else metadata.pop("version")
        if damage == "other fields":
            metadata.update(settings='{"length": 3}', extra="1")
        if damage == "no fields":
            del metadata["settings"], metadata["decisions"]

    data = with_header(saved[2], change)
    if damage == "arrays of a kind to come":
        data = data.replace(b'"F32"', b'"Q17"')
    path.write_bytes(data[:-2] if damage == "cut" else data)
    has = "has no format version" if version is None else f"has format version '{version[:40]}'"
    with pytest.raises(PrecomputationError, match=f"{path.name} {has}, this version of Yuzu reads '{FORMAT_VERSION}'.*make it again"):
        Precomputation.load(path)


def test_the_unchanged_header_loads(saved, path):
    """So that the tests of changed headers fail for their reason."""
    path.write_bytes(with_header(saved[2], lambda metadata: None))
    assert Precomputation.load(path).summary() == saved[1].summary()


def json_fields(data):
    """Every field of the header that holds JSON, with the keys of its first level."""
    metadata = header_of(data)[0]["__metadata__"]
    return {name: json.loads(text) for name, text in metadata.items() if text.startswith("{")}


WRONG = [None, -1, 0, "x", [], {}, [1, 2], {"a": 1}, True, 1e300, [[["x"]]], {"7": {"8": 9}}, "é\u0000"]


def outcome(path, model, X):
    """None if a file is refused as it should be, else what ``yuzu_ism`` makes of it."""
    try:
        loaded = Precomputation.load(path)
        loaded.summary()
        return yuzu_ism(model, X, loaded, output="delta")
    except PrecomputationError as error:
        assert "precompute" in str(error)
        return None


def test_missing_fields(saved, path, captured_once):
    """Without any one field the file is refused, or the field is optional and the result right; never another error."""
    model, _, data = saved
    X, refused, failures = sequences(1, L), 0, []
    for name, fields in json_fields(data).items():
        for key in [None, *fields]:

            def change(metadata, name=name, key=key):
                if key is None:
                    del metadata[name]
                else:
                    metadata[name] = json.dumps({k: v for k, v in json.loads(metadata[name]).items() if k != key})

            path.write_bytes(with_header(data, change))
            try:
                result = outcome(path, model, X)
                refused += result is None
                if result is not None:
                    assert_right(result, model, X, output="delta")
            except Exception as error:
                failures.append(f"{name} without {key!r}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)
    assert refused >= 15


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_fields_of_the_wrong_type(saved, path, captured_once, wrong):
    """Whatever stands in a field: refused when loading or when used, or the result is right. Never another error."""
    model, _, data = saved
    X, refused, failures = sequences(1, L), 0, []
    for name, fields in json_fields(data).items():
        for key, value in fields.items():
            if type(value) is type(wrong) and value == wrong:
                continue

            def change(metadata, name=name, key=key):
                metadata[name] = json.dumps({**json.loads(metadata[name]), key: wrong})

            path.write_bytes(with_header(data, change))
            try:
                result = outcome(path, model, X)
                refused += result is None
                if result is not None:
                    assert_right(result, model, X, output="delta")
            except Exception as error:
                failures.append(f"{name}[{key!r}] = {wrong!r}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)
    assert refused >= 8


ONE_IN = 8  # of the changed files is tried; all of them take a minute and a half


def changed(value):
    """A dozen ways in which a value read from JSON may be another."""
    others = [None, True, -1, 0, 1, 3, 99999, 10**30, 1.5, -0.5, 1e308, math.nan, math.inf, "", "7", "fold", [], [[]], {}, {"a": 1}]
    if isinstance(value, int) and not isinstance(value, bool):
        others += [value + 1, value - 1, -value, 2**63, 2**64, float(value), str(value)]
    if isinstance(value, str):
        others += [value + " ", value[:-1], value.upper(), value * 1000, "torch." + value, "gaussian", "medium", "high", "cuda", "meta"]
    if isinstance(value, list):
        others += [value[1:], value[:-1], value + value[:1], value[::-1], value * 2, [*value, None], [*value, "x"], dict(enumerate(value))]
        others += [[*value[:i], other, *value[i + 1 :]] for i in {0, len(value) // 2, len(value) - 1} & set(range(len(value))) for other in (changed(value[i]) if isinstance(value[i], list) else (None, 3, "", "x", "-1", "1.5", "99999", "²", "007", [], {}))]
    if isinstance(value, dict):
        keys = ["99999", "-1", "1.5", "x", "", "²", "٣", "007", "+1", " 1", str(10**30), "0", *map(str, range(1, 12))]
        others += [{**value, key: one} for key in keys for one in ("fold", "windows", "winograd", "gaussian", "a user's own", 5, 0, -1, None, 1.5, [], math.nan)]
        others += [dict(list(value.items())[1:]), [*value.items()], [*value]]
    return [other for other in others if repr(other) != repr(value)]


def fuzzed(data):
    """Files of which one field is another, or missing, or one more."""
    for name, fields in json_fields(data).items():
        for key, value in fields.items():
            for other in changed(value):
                yield f"{name}[{key!r}] = {other!r}", name, {**fields, key: other}
            yield f"{name} without {key!r}", name, {k: v for k, v in fields.items() if k != key}
        yield f"{name} with one more", name, {**fields, "one more": 3}


class Strided(nn.Module):
    """Some ways do not apply to its convolutions."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(4, 6, 5, stride=2), nn.ReLU(), nn.Conv1d(6, 6, 1), nn.ReLU(), nn.Conv1d(6, 6, 3, groups=3), nn.GELU(), nn.MaxPool1d(2))
        self.head = nn.Linear(6, 2)

    def forward(self, X):
        return self.head(self.body(X).mean(2))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["profile", "strided", "gaussian", "naive"])
def test_whatever_a_field_holds(saved, path, captured_once, kind):
    """A file of which a field is changed is refused as a damaged one, or gives the right result; never another error."""
    kinds = {"profile": randomized(Net(L)), "gaussian": randomized(Net(L))}
    model = kinds.get(kind, randomized(Strided(), seed=2)).eval()
    settings = {"gaussian": {"conv": "gaussian", "alpha": 3.0}, "naive": {"terminal_layers": (nn.Conv1d,)}}.get(kind, {})
    precompute(model, L, **settings).save(path)
    data, X = path.read_bytes(), sequences(1, L)
    truth = naive_ism(copy.deepcopy(model).double(), X.double(), output="delta").float()
    right = functools.partial(torch.testing.assert_close, rtol=0, atol=(1e-2 if kind == "gaussian" else 1e-4) * float(truth.abs().max()))
    counts, failures = {True: 0, False: 0}, []
    some = slice({"profile": 0, "strided": 1, "gaussian": 2, "naive": 3}[kind], None, ONE_IN)
    for label, name, fields in list(fuzzed(data))[some]:
        path.write_bytes(with_header(data, lambda metadata, name=name, fields=fields: metadata.update({name: json.dumps(fields)})))
        try:
            result = outcome(path, model, X)
            counts[result is None] += 1
            if result is not None:
                right(result, truth)
        except Exception as error:
            failures.append(f"{label[:150]}: {type(error).__name__}: {str(error)[:200]}")
    assert not failures, f"{len(failures)}\n" + "\n".join(failures[:40])
    assert counts[True] > 400 / ONE_IN and counts[False] > 20 / ONE_IN, counts


@pytest.mark.parametrize("field, value, message", [
    ("ways", {"99999": "fold"}, r"decisions\['ways'\] has node 99999, where the model's graph has \d+ nodes"),
    ("ways", {"²": "fold"}, r"decisions\['ways'\] cannot be"),
    ("naive", {"99999": "why"}, r"decisions\['naive'\] has node 99999"),
    ("naive", {"0": "why"}, r"decisions\['naive'\] has node 0, which is no operation"),
    ("naive", {"4": 5}, r"decisions\['naive'\] cannot be"),
    ("probing", {"alpha": 2, "probes": {"99999": 5}, "correlation": 1, "condition": 9}, r"decisions\['probing'\]\['probes'\] has node 99999"),
    ("sites", 0, r"decisions\['sites'\] cannot be 0"),
    ("naive_batch", 10**12, r"decisions\['naive_batch'\] is 1000000000000, which is more than a sequence has mutants"),
    ("precision", "medium", r"decisions\['precision'\] is 'medium', where settings\['precision'\] is 'highest'"),
    ("probing", {"alpha": 1.5}, r"decisions\['probing'\]: 'condition' is missing"),
    ("probing", {"alpha": 2, "probes": {}, "correlation": 1, "condition": math.nan}, r"decisions\['probing'\]\['condition'\] cannot be nan"),
])
def test_a_damaged_field_is_named(saved, path, captured_once, field, value, message):
    model, _, data = saved
    path.write_bytes(with_header(data, lambda metadata: metadata.update(decisions=json.dumps({**json.loads(metadata["decisions"]), field: value}))))
    with pytest.raises(PrecomputationError, match=f"damaged.*{message}.*make it again with precompute and save"):
        yuzu_ism(model, sequences(1, L), Precomputation.load(path))


@pytest.mark.parametrize("place, value", [("node", "x"), ("node", 1.5), ("node", -1), ("node", 99999), ("node", 0), ("node", None), ("layer", "another layer"), ("operation", "relu?"), ("window", None), ("window", 5)])
def test_a_damaged_row_of_a_layer_is_named(saved, path, captured_once, place, value):
    model, _, data = saved

    def change(metadata):
        decisions = json.loads(metadata["decisions"])
        decisions["layers"][1][place] = value
        metadata["decisions"] = json.dumps(decisions)

    path.write_bytes(with_header(data, change))
    with pytest.raises(PrecomputationError, match=r"damaged.*decisions\['layers'\].*make it again with precompute and save"):
        yuzu_ism(model, sequences(1, L), Precomputation.load(path))


def test_a_way_that_does_not_apply(path, captured_once):
    model, X = randomized(Strided(), seed=2).eval(), sequences(1, L)
    made = precompute(model, L, device="cpu")
    strided = next(layer.node for layer in made.layers if "stride 2" in layer.operation)
    decide(made, ways={**made.decisions.ways, strided: "winograd"})
    made.save(path)
    with pytest.raises(PrecomputationError, match=rf"decisions\['ways'\] has 'winograd' for node {strided} .*, to which that way does not apply"):
        yuzu_ism(model, X, Precomputation.load(path), device="cpu")
    decide(made, ways={**made.decisions.ways, strided: "a way of old"})
    made.save(path)
    with pytest.warns(yuzu.YuzuWarning, match="ways for these layers that they do not have here"):
        found = yuzu_ism(model, X, Precomputation.load(path), output="delta", device="cpu")
    assert_right(found, model, X, output="delta")


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "3", '"x"', "{}", "NaN", "[" * 5000], ids=lambda t: t[:5] or "empty"
)
def test_fields_that_are_no_json_object(saved, path, text):
    for name in json_fields(saved[2]):

        def change(metadata, name=name):
            metadata[name] = text

        path.write_bytes(with_header(saved[2], change))
        refuse(path, "damaged|not a Yuzu precomputation")


def test_matrices_that_are_missing_or_wrong(saved, path, captured_once):
    """With Gaussian probes the file holds matrices: damaged ones are refused or made again, not believed."""
    model, X = saved[0], sequences(1, L)
    precomputation = precompute(model, L, conv="gaussian", alpha=2.0)
    expected = yuzu_ism(model, X, precomputation, output="delta")
    precomputation.save(path)
    header, _ = header_of(path.read_bytes())
    tensors = safetensors.torch.load(path.read_bytes())
    changes = {
        "missing": {},
        "one missing": dict(list(tensors.items())[1:]),
        "of another shape": {k: t.flatten()[:1] for k, t in tensors.items()},
        "of another dtype": {k: t.to(torch.int64) for k, t in tensors.items()},
        "not finite": {k: torch.full_like(t, float("nan")) for k, t in tensors.items()},
        "unknown": {**tensors, "something else": torch.zeros(3)},
        "float8": {k: t.to(torch.float8_e5m2) for k, t in tensors.items()},
        "of another layer": {k.replace(".", ".9", 1): t for k, t in tensors.items()},
        "of two axes": {k: t[0] for k, t in tensors.items()},
        "float64": {k.replace("float32", "float64"): t.double() for k, t in tensors.items()},
    }
    for name, changed in changes.items():
        path.write_bytes(safetensors.torch.save(changed or {"empty": torch.zeros(1)}, header["__metadata__"]))
        try:
            result = yuzu_ism(model, X, Precomputation.load(path), output="delta")
        except PrecomputationError:
            continue
        for a, b in zip(result, expected, strict=True):
            assert float((a - b).abs().max()) <= 1e-4 * float(b.abs().max()), name


# hostile


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_the_payload_works(tmp_path):
    """So that the tests below would notice."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "marker")))
    assert (tmp_path / "marker").is_dir()


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_does_not_run(path, tmp_path, protocol):
    path.write_bytes(pickle.dumps(Payload(tmp_path / "marker"), protocol))
    refuse(path, "not a Yuzu precomputation")
    assert not (tmp_path / "marker").exists()


def test_a_torch_file_does_not_run(path, tmp_path):
    for zipped in (True, False):
        torch.save({"x": Payload(tmp_path / "marker")}, path, _use_new_zipfile_serialization=zipped)
        refuse(path, "not a Yuzu precomputation")
        assert not (tmp_path / "marker").exists()


def test_a_numpy_file_does_not_run(path, tmp_path):
    with open(path, "wb") as file:
        np.save(file, np.array([Payload(tmp_path / "marker")], dtype=object), allow_pickle=True)
    refuse(path, "not a Yuzu precomputation")
    assert not (tmp_path / "marker").exists()


def test_code_in_a_field_does_not_run(saved, path, tmp_path, captured_once):
    model, _, data = saved
    marker = tmp_path / "marker"
    code = f"__import__('os').mkdir({str(marker)!r})"
    pickled = pickle.dumps(Payload(marker), 0).decode("latin1")
    for name, fields in json_fields(data).items():
        for key in fields:
            for text in (code, pickled):

                def change(metadata, name=name, key=key, text=text):
                    metadata[name] = json.dumps({**json.loads(metadata[name]), key: text})

                path.write_bytes(with_header(data, change))
                with contextlib.suppress(Exception):  # which errors may come is the business of the tests above
                    yuzu_ism(model, sequences(1, L), Precomputation.load(path))
                assert not marker.exists()


# beside files


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
from test_storage import Sized
torch.manual_seed(0)
print(yuzu.precompute(Sized(), 20, device="cpu").decisions.fingerprint)
"""


def test_a_fingerprint_is_the_same_in_every_process():
    here = yuzu.precompute(Sized(), 20, device="cpu").decisions.fingerprint
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    command = [sys.executable, "-W", "ignore", "-c", FINGERPRINT]
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert there.strip() == here


def test_a_handler_that_is_missing_where_it_is_loaded(path, monkeypatch):
    model, X = nn.Sequential(nn.Conv1d(4, 3, 5), nn.AvgPool1d(3, 1), nn.Conv1d(3, 2, 3)).eval(), sequences(1, L)
    yuzu.precompute(model, L, device="cpu").save(path)
    monkeypatch.delitem(contract._REGISTRY, "aten.avg_pool1d")
    loaded = yuzu.Precomputation.load(path)
    with pytest.warns(yuzu.YuzuWarning, match=r"had handlers when the precomputation was made.*: 1\b.*yuzu\.handles"):
        found = yuzu.yuzu_ism(model, X, loaded, output="delta", device="cpu")
    assert_right(found, model, X, output="delta")


def test_ways_of_a_rule_of_a_users_own(saved, path):
    """Where the rule is not there, or has other ways now, its way is passed over."""
    model, precomputation, _ = saved
    made = copy.deepcopy(precomputation)
    decide(made, ways={**made.decisions.ways, 3: "a user's own"})
    made.save(path)
    loaded = Precomputation.load(path)
    assert loaded.decisions.ways == made.decisions.ways
    assert_right(yuzu_ism(model, sequences(1, L), loaded, output="delta"), model, sequences(1, L), output="delta")
