"""Precomputations on disk: safetensors, with everything but arrays as JSON in its header. Reading executes
nothing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from yuzu.errors import PrecomputationError

FORMAT_NAME, FORMAT_VERSION = "yuzu precomputation", 1
REQUIRED: dict[str, Any] = {
    "fingerprint": str,
    "naive_model": (str, type(None)),
    "naive": dict,
    "ways": dict,
    "sites": int,
    "naive_batch": int,
    "layers": list,
    "probes": dict,
    "alpha": (float, type(None)),
}


def write(path: Path, settings: Any, decisions: dict[str, Any], arrays: dict[str, torch.Tensor]) -> None:
    """Write a precomputation; the file appears whole or not at all."""
    header = {
        "format": FORMAT_NAME,
        "version": str(FORMAT_VERSION),
        "torch": torch.__version__,
        "settings": json.dumps(dataclasses.asdict(settings)),
        "decisions": json.dumps(decisions),
    }
    arrays = arrays or {"empty": torch.zeros(1)}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    os.close(handle)
    try:
        save_file({k: v.contiguous() for k, v in arrays.items()}, temporary, header)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read(path: Path) -> tuple[Any, dict[str, Any], dict[str, torch.Tensor]]:
    """Settings, decisions and arrays from a file.

    Raises
    ------
    PrecomputationError
        Saying whether the file is foreign, truncated, or of another version.
    FileNotFoundError
        If there is no such file.
    """
    from yuzu.precompute import Settings

    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    again = "make it again with precompute and save"
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            names = file.keys()
            arrays = {name: file.get_tensor(name) for name in names if name != "empty"}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise PrecomputationError(f"{path} is truncated, or not a Yuzu precomputation ({error}); {again}") from error
    if header.get("format") != FORMAT_NAME:
        raise PrecomputationError(f"{path} is a safetensors file but not a Yuzu precomputation; {again}")
    if header.get("version") != str(FORMAT_VERSION):
        raise PrecomputationError(
            f"{path} has format version {header.get('version')!r}, this version of Yuzu reads {FORMAT_VERSION!r}; "
            f"{again}"
        )
    try:
        stored = json.loads(header["settings"])
        decisions = json.loads(header["decisions"])
        stored["args"] = tuple((tuple(int(i) for i in shape), str(dtype)) for shape, dtype in stored["args"])
        settings = Settings(**stored)
        for key, kind in REQUIRED.items():
            if not isinstance(decisions[key], kind):
                raise TypeError(f"{key} is a {type(decisions[key]).__name__}")
        if (
            not hasattr(torch, settings.dtype.removeprefix("torch."))
            or decisions["sites"] < 1
            or decisions["naive_batch"] < 1
        ):
            raise ValueError("a setting is out of range")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PrecomputationError(f"{path} is a damaged Yuzu precomputation ({error}); {again}") from error
    return settings, decisions, arrays
