"""The model that ``--model`` and ``--weights`` name, functions that other options name, and its other inputs."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yuzu.errors import YuzuError, one_line


def load_model(place: str, weights: Path | None) -> torch.nn.Module:
    """Make the model that ``FILE.py:NAME`` or ``MODULE:NAME`` names, and load its weights."""
    made = load_named("--model", place)
    model = made if isinstance(made, torch.nn.Module) else _called(made, place)
    if not isinstance(model, torch.nn.Module):
        raise YuzuError(f"--model: {place} must make a torch.nn.Module, it returned {type(model).__name__}")
    if weights is not None:
        if not weights.is_file():
            raise YuzuError(f"--weights: there is no file {weights}")
        found = _read_weights(weights)
        try:
            model.load_state_dict(found)
        except Exception as error:  # a model may have a load_state_dict of its own
            raise YuzuError(f"--weights: {weights} does not fit the model: {' '.join(str(error).split())}") from error
    return model.eval()


def load_models(place: str, weights: Sequence[Path] | None) -> list[torch.nn.Module]:
    """Make a model for each file of weights, or one with those that it is made with."""
    paths: Sequence[Path | None] = weights or [None]
    return [load_model(place, path) for path in paths]


def load_pick(option: str, pick: str | None) -> Callable[[Any], Any] | None:
    """A function that picks an element of the model's output, or the one that ``FILE.py:NAME`` names."""
    if pick is None:
        return None
    if ":" in pick:
        found = load_named(option, pick)
        if not callable(found):
            raise YuzuError(f"{option}: {pick} must be a function of the model's output, got {type(found).__name__}")
        return found  # type: ignore[no-any-return]
    key = int(pick) if pick.lstrip("-").isdigit() else pick

    def picked(output: Any) -> Any:
        if isinstance(output, torch.Tensor):  # whose first axis is the batch
            raise YuzuError(
                f"{option} {pick}: the model returns one tensor, of shape {tuple(output.shape)}; use --target"
            )
        if isinstance(key, str) and hasattr(output, key):  # of a named tuple or a data class
            return getattr(output, key)
        try:
            return output[key]
        except (KeyError, IndexError, TypeError) as error:
            raise YuzuError(f"{option} {pick}: the model's output has no such element ({one_line(error)})") from error

    return picked


def load_args(path: Path | None, model: torch.nn.Module, rows: int | None) -> tuple[torch.Tensor, ...] | None:
    """Read the model's other inputs from an archive of numpy, in the order of ``forward`` if it has their names."""
    if path is None:
        return None
    if not path.is_file():
        raise YuzuError(f"--args: there is no file {path}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # zip, numpy and others raise many kinds
        raise YuzuError(f"--args: {path} is not an .npz file of numbers, or damaged ({one_line(error)})") from error
    for name, array in arrays.items():
        if array.ndim == 0 or array.dtype.kind not in "biuf" or rows not in (None, len(array)):
            want = "numbers with a row" if rows is None else f"numbers with {rows} rows, one"
            raise YuzuError(
                f"--args: `{name}` of {path} is {array.dtype} of shape {array.shape}, want {want} for each sequence "
                "of the input"
            )
    known = list(inspect.signature(model.forward).parameters)
    order = sorted(arrays, key=known.index) if set(arrays) <= set(known) else list(arrays)
    return tuple(torch.from_numpy(arrays[name]) for name in order)


def load_named(option: str, place: str) -> Any:
    """Find what ``FILE.py:NAME`` or ``MODULE:NAME`` names; errors begin with the option."""
    where, _, name = place.rpartition(":")
    if not where or not name:
        raise YuzuError(f"{option} must be FILE.py:NAME or MODULE:NAME, got {place!r}")
    if where.endswith(".py") and not Path(where).is_file():
        raise YuzuError(f"{option}: there is no file {where}")
    try:
        module = _imported(where)
    except (Exception, SystemExit) as error:  # importing a module runs all its code
        raise YuzuError(f"{option}: cannot import {where}: {_told(error)}") from error
    if not hasattr(module, name):
        raise YuzuError(f"{option}: {where} has no {name}")
    return getattr(module, name)


def _imported(where: str) -> Any:
    """Import a file, or a module by its name."""
    if not where.endswith(".py"):
        sys.path.insert(0, str(Path.cwd()))  # `python -m yuzu` has it, the command `yuzu` has not
        return importlib.import_module(where)
    spec = importlib.util.spec_from_file_location(Path(where).stem, where)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    ours = sys.modules.setdefault(spec.name, module) is module
    sys.path.insert(0, str(Path(where).resolve().parent))  # a model's file imports others beside it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if ours:  # a module that failed half way must not be found again
            sys.modules.pop(spec.name, None)
        raise
    return module


def _told(error: BaseException) -> str:
    """An error of the user's own code on one line, with the line of theirs that raised it."""
    kind, own = type(error).__name__, ""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{kind}: {error.msg} ({error.filename}, line {error.lineno})"
    others = Path(__file__).parents[1], Path(traceback.__file__).parent  # ours and Python's
    for frame in traceback.extract_tb(error.__traceback__):
        foreign = "site-packages" in frame.filename or any(Path(frame.filename).is_relative_to(one) for one in others)
        if not foreign and frame.line:  # modules frozen into Python have no source lines
            own = f" ({frame.filename}, line {frame.lineno})"
    said = one_line(error)
    return f"{kind}{'' if said == kind else f': {said}'}{own}"


def _called(made: Any, place: str) -> Any:
    """Call a function or class without arguments, and return its result."""
    if not callable(made):
        raise YuzuError(f"--model: {place} must be a function or class that makes a model, got {type(made).__name__}")
    try:
        inspect.signature(made).bind()
    except TypeError as error:
        raise YuzuError(
            f"--model: {place} is called without arguments, but needs some ({error}); name a function that passes them"
        ) from error
    except ValueError:  # Python knows no signature of it; the call itself will tell
        pass
    try:
        return made()
    except (Exception, SystemExit) as error:
        raise YuzuError(f"--model: {place} made no model: {_told(error)}") from error


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise YuzuError(
                f"--weights: {path} cannot be read: it is not safetensors, or not whole ({error})"
            ) from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # many kinds, whose messages advise programmers
        if "Unsupported global" in str(error) or "TorchScript" in str(error):
            raise YuzuError(
                f"--weights: {path} holds more than tensors, such as a whole model, and is not unpickled; save "
                "model.state_dict() and give that"
            ) from error
        why = f"{error}" if isinstance(error, OSError) else "torch.save did not write it, or not whole"
        raise YuzuError(f"--weights: {path} cannot be read: {why}") from error
    nested = found.get("state_dict") if isinstance(found, dict) else None  # as training frameworks keep it
    return nested if isinstance(nested, dict) else found
