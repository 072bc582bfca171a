"""Precomputations on disk: safetensors, with everything but arrays as JSON in its header. Reading executes nothing."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from yuzu._engine.checks import FLOATS
from yuzu._engine.files import written_whole
from yuzu._engine.settings import CONV, PRECISIONS, Settings
from yuzu._engine.store.decisions import Decisions, Layer, PastStatistics, Probing
from yuzu.errors import PrecomputationError

FORMAT_NAME = "yuzu precomputation"
FORMAT_VERSION = 7  # decisions count the graph's nodes: another rewriting of graphs is another version


def write(path: Path, settings: Settings, decisions: Decisions, arrays: dict[str, torch.Tensor]) -> None:
    """Write a precomputation; the file appears complete or not at all."""
    header = {
        "format": FORMAT_NAME,
        "version": str(FORMAT_VERSION),
        "torch": torch.__version__,
        "settings": json.dumps(dataclasses.asdict(settings)),
        "decisions": json.dumps(_stored(decisions)),
    }
    arrays = arrays or {"empty": torch.zeros(1, device="cpu")}
    with written_whole(path) as part:
        save_file({k: v.contiguous() for k, v in arrays.items()}, part, header)


def read(path: Path) -> tuple[Settings, Decisions, dict[str, torch.Tensor]]:
    """Settings, decisions and arrays from a file.

    Raises
    ------
    PrecomputationError
        Saying whether the file is a folder, foreign, truncated, damaged, or of another version.
    FileNotFoundError
        If there is no such file.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    again = "make it again with precompute and save"
    if path.is_dir():
        raise PrecomputationError(f"{path} is a folder; give the file that save wrote, or make one with precompute")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            # a foreign file is not read further, nor one of another version, whose arrays may be of other kinds
            ours = header.get("format") == FORMAT_NAME and header.get("version") == str(FORMAT_VERSION)
            arrays = {name: file.get_tensor(name) for name in file.keys() if ours and name != "empty"}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise PrecomputationError(f"{path} {_why_unreadable(path)} ({error}); {again}") from error
    if header.get("format") != FORMAT_NAME:
        raise PrecomputationError(f"{path} is a safetensors file but not a Yuzu precomputation; {again}")
    if not ours:
        raise PrecomputationError(f"{path} {_of_version(header.get('version'))}; {again}")
    if not all(t.dtype in FLOATS and bool(torch.isfinite(t).all()) for t in arrays.values()):
        raise PrecomputationError(f"{path} is damaged: it holds matrices that are not finite numbers; {again}")
    try:
        _check_names("the header", header, ("format", "version", "torch", "settings", "decisions"))
        settings = _settings(json.loads(header["settings"]))
        decisions = _decisions(json.loads(header["decisions"]))
    except (KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        raise PrecomputationError(f"{path} is a damaged Yuzu precomputation ({error}); {again}") from error
    return settings, decisions, arrays


def _of_version(version: Any) -> str:
    """The version that a file has, and the one that is wanted."""
    has = "no format version" if version is None else f"format version {str(version)[:40]!r}"
    return f"has {has}, this version of Yuzu reads '{FORMAT_VERSION}'"


def _why_unreadable(path: Path) -> str:
    """The reason why a file cannot be read as safetensors: eight bytes with the length of a header, least byte first,
    then the header, a JSON object, then arrays.
    """
    with open(path, "rb") as file:
        head = file.read(9)
        length, size = int.from_bytes(head[:8], "little"), path.stat().st_size
        if any(head[4:8]) or head[8:] not in (b"", b"{"):  # no header is as long as 4 GB
            return "is not a Yuzu precomputation"
        if size < 8 + length:  # also a file of less than nine bytes
            return "is truncated"
        file.seek(8)
        header = file.read(length)
    try:
        fields = json.loads(header)
        ours = fields["__metadata__"]["format"] == FORMAT_NAME
        version = fields["__metadata__"].get("version")
        stops = [field["data_offsets"][1] for name, field in fields.items() if name != "__metadata__"]
    except (KeyError, IndexError, TypeError, ValueError, RecursionError):
        return "is not a Yuzu precomputation, or a damaged one"
    if not ours:
        return "is not a Yuzu precomputation"
    if version != str(FORMAT_VERSION):
        return _of_version(version)
    return "is truncated" if size < 8 + length + max(stops, default=0) else "is a damaged Yuzu precomputation"


def _is(value: Any, kind: type | tuple[type, ...], least: float = -math.inf, most: float = math.inf) -> bool:
    """Tell whether a value read from JSON is of a type, and a number within bounds; true and false are no numbers."""
    if isinstance(value, bool) or not isinstance(value, kind):
        return False
    return not isinstance(value, int | float) or least <= value <= most


def _settings(s: Any) -> Settings:
    """Settings from JSON, after a check of every field's type and bounds."""
    good = {
        "seq_len": lambda v: _is(v, int, 1),
        "n_choices": lambda v: _is(v, int, 2),
        "dtype": lambda v: v in ("torch.float32", "torch.float64", "torch.float16", "torch.bfloat16"),
        "args": lambda v: isinstance(v, list) and all(map(_is_input, v)),
        "device": lambda v: _is(v, str) and v == torch.device(v).type,
        "conv": lambda v: v in CONV,
        "alpha": lambda v: v is None or _is(v, (int, float), 1, 1e3),
        "threshold": lambda v: _is(v, (int, float), 0, 1),
        "precision": lambda v: v in PRECISIONS,
        "max_memory": lambda v: _is(v, int, 1),
        "random_state": lambda v: _is(v, int, 0, 2**64 - 1),  # seeds of PyTorch
    }
    _check_fields("settings", s, good)
    return Settings(**{**s, "args": tuple((tuple(shape), dtype) for shape, dtype in s["args"])})


def _stored(decisions: Decisions) -> dict[str, Any]:
    """Decisions as JSON has them: layers as objects, and numbers of nodes as text where they are keys."""
    stored = {field.name: getattr(decisions, field.name) for field in dataclasses.fields(decisions)}
    stored |= {"naive": dict(decisions.naive), "ways": dict(decisions.ways)}
    stored["layers"] = [layer._asdict() for layer in decisions.layers]
    if decisions.statistics is not None:
        stored["statistics"] = vars(decisions.statistics)
    if decisions.probing is not None:
        stored["probing"] = {**vars(decisions.probing), "probes": dict(decisions.probing.probes)}
    return stored


def _decisions(d: Any) -> Decisions:
    """Decisions from JSON, after a check of every field's type and bounds."""
    good = {
        "fingerprint": lambda v: _is(v, str),
        "precision": lambda v: v in PRECISIONS,
        "branches": lambda v: isinstance(v, list) and all(_is_pair(pair) for pair in v),
        "naive_model": lambda v: v is None or _is(v, str),
        "disagrees": lambda v: isinstance(v, bool),
        "naive": _numbered(lambda v: _is(v, str)),
        "ways": _numbered(lambda v: _is(v, str)),  # also ways of a user's own rules; unknown ones are skipped
        "sites": lambda v: _is(v, int, 1),
        "naive_batch": lambda v: _is(v, int, 1),
        "layers": lambda v: isinstance(v, list) and all(map(_is_layer, v)),
        "probing": lambda v: v is None or isinstance(v, dict),
        "kept": lambda v: _is(v, str),
        "statistics": lambda v: v is None or isinstance(v, dict),
    }
    _check_fields("decisions", d, good)
    return Decisions(
        **{
            **d,
            "branches": tuple((how, result) for how, result in d["branches"]),
            "naive": _by_number(d["naive"]),
            "ways": _by_number(d["ways"]),
            "layers": tuple(Layer(**layer) for layer in d["layers"]),
            "probing": None if d["probing"] is None else _probing(d["probing"]),
            "statistics": None if d["statistics"] is None else _past_statistics(d["statistics"]),
        }
    )


def _probing(p: dict[str, Any]) -> Probing:
    good = {
        "alpha": lambda v: _is(v, (int, float), 1, 1e3),
        "probes": _numbered(lambda v: _is(v, int, 1)),
        "correlation": lambda v: _is(v, (int, float), -1.001, 1.001),
        "condition": lambda v: _is(v, (int, float), 1),
    }
    _check_fields("decisions['probing']", p, good)
    return Probing(**{**p, "probes": _by_number(p["probes"])})


def _past_statistics(p: dict[str, Any]) -> PastStatistics:
    good = {
        "norms": lambda v: isinstance(v, list) and all(_is(i, int, 0) for i in v),
        "numbers": lambda v: _is(v, int, 0),
        "least_positions": lambda v: _is(v, int, 1),
    }
    _check_fields("decisions['statistics']", p, good)
    return PastStatistics(**{**p, "norms": tuple(p["norms"])})


def _numbered(values: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A check of an object whose keys are numbers of nodes."""
    return lambda v: isinstance(v, dict) and all(is_number(k) and values(item) for k, item in v.items())


def _by_number(fields: dict[str, Any]) -> dict[int, Any]:
    return {int(number): value for number, value in fields.items()}


def is_number(text: str) -> bool:
    """Tell whether a text is a node's number, as `str` writes it."""
    return text.isascii() and text.isdecimal() and text == str(int(text[:20]))


def _check_names(what: str, fields: Any, wanted: Iterable[str]) -> None:
    if not isinstance(fields, dict):
        raise ValueError(f"{what} cannot be {fields!r}"[:200])
    if wrong := sorted(set(wanted) - set(fields)):
        raise ValueError(f"{what}: {wrong[0]!r} is missing")
    if wrong := sorted(set(fields) - set(wanted)):
        raise ValueError(f"{what}: {wrong[0][:40]!r} is unknown")


def _check_fields(name: str, fields: Any, good: dict[str, Callable[[Any], bool]]) -> None:
    _check_names(name, fields, good)
    for key, fits in good.items():
        value = fields[key]
        if not fits(value):
            raise ValueError(f"{name}[{key!r}] cannot be {value!r}"[:200])


def _is_input(value: Any) -> bool:
    """A shape without the batch, and a dtype."""
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not isinstance(value[0], list)
        or not isinstance(value[1], str)
    ):
        return False
    return all(_is(size, int, 0) for size in value[0])


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value)


def _is_layer(value: Any) -> bool:
    """A layer's row in a summary, with its node's number."""
    if not isinstance(value, dict) or set(value) != set(Layer._fields):
        return False
    return _is(value["node"], int, 0) and all(isinstance(v, str) for name, v in value.items() if name != "node")
