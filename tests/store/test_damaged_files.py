"""Files of precomputations that are damaged, foreign or of another version are refused with the reason."""

import copy
import functools
import io
import json
import math
import pickle
import struct

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import yuzu
from tests.capturing import decide
from tests.oracle import assert_right
from tests.small_models import Net, randomized, sequences
from tests.store.saved import header_of, json_fields, refuse, with_header
from yuzu import Precomputation, PrecomputationError, naive_ism, precompute, yuzu_ism
from yuzu._engine.store.files import FORMAT_VERSION

L = 30

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


def refused_or_right(path, model, X):
    """One of these words, or the error that a changed file leads to."""
    try:
        result = outcome(path, model, X)
        if result is not None:
            assert_right(result, model, X, output="delta")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "refused" if result is None else "right"


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
            found = refused_or_right(path, model, X)
            refused += found == "refused"
            if found not in ("refused", "right"):
                failures.append(f"{name} without {key!r}: {found}")
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
            found = refused_or_right(path, model, X)
            refused += found == "refused"
            if found not in ("refused", "right"):
                failures.append(f"{name}[{key!r}] = {wrong!r}: {found}")
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
