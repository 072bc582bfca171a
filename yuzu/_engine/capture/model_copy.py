"""Copies of the user's model in evaluation mode.

To set a flag on the user's model and set it back is not safe when two threads use the model, or an error is raised in
between. So nothing is ever set on it.
"""

from __future__ import annotations

import collections
import copy
import itertools
import types
from collections.abc import Callable
from typing import Any

import torch


def is_packed(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is of a class that runs operations by itself, as quantised weights do. It holds its
    numbers in other tensors, which a cast does not reach.
    """
    return type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def inner_tensors(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """The plain tensors that a packed one is made of, by their attributes' names ("scale", or "inner.scale"), in the
    order in which ``torch.export`` counts them; none where its class does not say.
    """
    found: dict[str, torch.Tensor] = {}
    if not hasattr(tensor, "__tensor_flatten__"):
        return found
    for name in tensor.__tensor_flatten__()[0]:
        value = getattr(tensor, name)
        found.update({f"{name}.{k}": v for k, v in inner_tensors(value).items()} if is_packed(value) else {name: value})
    return found


def _copied_tensors(
    model: torch.nn.Module, device: torch.device | None, dtype: torch.dtype | None, share: bool
) -> dict[int, Any]:
    """A deepcopy memo with a copy of every tensor of the model, for a forward may write to any of them.

    ``copy.deepcopy`` itself refuses tensors with a gradient, and copies the whole tensor that a view is a part of.
    Parameters that will be copied when they are moved are not copied here, nor those that may be shared.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        if is_packed(parameter):
            continue
        elsewhere = device is not None and parameter.device != device
        as_it_is = share and not parameter.is_inference()  # which tracing refuses
        if as_it_is or elsewhere or (dtype is not None and parameter.is_floating_point() and parameter.dtype != dtype):
            memo[id(parameter)] = parameter
    for module in model.modules():
        _copy_tensors(module.__dict__, memo)
    return memo


def _copy_tensors(value: Any, memo: dict[int, Any], depth: int = 0) -> None:
    if id(value) in memo:
        return
    kind = type(value)  # isinstance would ask a proxy for its referent, which may be gone
    if issubclass(kind, torch.Tensor) and is_packed(value):
        memo[id(value)] = _copied(value, memo)  # with its attributes, which are its tensors
    elif issubclass(kind, torch.Tensor) and isinstance(value, torch.nn.Parameter):
        own = memo[id(value)] = _copied(value, memo)
        own.__dict__.update(value.__dict__)
    elif issubclass(kind, torch.Tensor):
        memo[id(value)] = value.detach().clone()
    elif issubclass(kind, list | tuple | dict) and depth < 3:
        for item in value.values() if issubclass(kind, dict) else value:
            _copy_tensors(item, memo, depth + 1)


def _copy_modules(model: torch.nn.Module, memo: dict[int, Any]) -> torch.nn.Module:
    """A copy of the module tree, and of the attributes that ``copy.deepcopy`` can copy."""
    modules = list(model.modules())
    for module in modules:
        scripted = isinstance(module, torch.jit.ScriptModule)  # most of it does not lie in Python
        memo[id(module)] = copy.deepcopy(module) if scripted else object.__new__(type(module))
    for module in modules:
        if not isinstance(module, torch.jit.ScriptModule):
            memo[id(module)].__dict__.update({k: _copied(v, memo) for k, v in module.__dict__.items()})
    return memo[id(model)]


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """A copy, or the value itself if it cannot be copied. Parts of a copy that fails are forgotten."""
    trial: collections.ChainMap[int, Any] = collections.ChainMap({}, memo)
    try:
        found = copy.deepcopy(value, trial)  # type: ignore[arg-type]
    except Exception:  # locks, files, generators; the tree of modules is what matters
        return value
    kept = trial.maps[0].pop(id(trial), [])  # deepcopy keeps objects alive with a memo, under its id
    memo.setdefault(id(memo), []).extend(kept)
    memo.update(trial.maps[0])
    return found


def on_copies(model: Callable[..., Any], X: torch.Tensor, *args: torch.Tensor) -> Any:
    """A model's output for copies of its inputs, which a forward may write over."""
    return model(X.clone(), *(a.clone() for a in args))


def evaluation_copy(
    model: torch.nn.Module,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    share: bool = False,
) -> torch.nn.Module:
    """A copy of ``model`` in evaluation mode, with its tensors at their values now.

    It shares no tensor and no module with the user's, so running it changes nothing of theirs. Only a model that is
    known to write to none of its parameters may ``share`` these.
    """
    tensors = _copied_tensors(model, device, dtype, share)
    try:
        copied = copy.deepcopy(model, dict(tensors))
        if not {id(m) for m in model.modules()}.isdisjoint(map(id, copied.modules())):  # some return themselves
            copied = _copy_modules(model, tensors)
    except Exception:  # any attribute may refuse
        copied = _copy_modules(model, tensors)
    for module in copied.modules():
        if isinstance(module, torch.jit.ScriptModule):
            module.training = False
        else:
            module.__dict__["training"] = False
    if device is not None or dtype is not None:
        _move(copied, device, dtype)
    return copied


def writes_to_parameters(model: torch.nn.Module, copied: torch.nn.Module) -> bool:
    """Return whether a copy, once run, has other parameters than the model. Then it must never be run on the model's
    own.
    """
    theirs = dict(copied.named_parameters())
    return not all(name in theirs and _equal(parameter, theirs[name]) for name, parameter in model.named_parameters())


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two parameters hold the same numbers; unknown, and so False, for packed ones that do not show
    theirs.
    """
    if not (is_packed(a) or is_packed(b)):
        return torch.equal(a.detach().to(b.device), b.detach())
    mine, others = inner_tensors(a), inner_tensors(b)
    return bool(mine) and mine.keys() == others.keys() and all(_equal(mine[name], others[name]) for name in mine)


def _move(model: torch.nn.Module, device: torch.device | None, dtype: torch.dtype | None) -> None:
    """Move the copy's tensors; packed ones keep their dtype."""

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        if is_packed(tensor) and tensor.device == (device or tensor.device):
            return tensor
        target = dtype if tensor.is_floating_point() and not is_packed(tensor) else None
        return tensor.detach().to(device=device, dtype=target)

    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                value = moved(parameter)
                if value is not parameter and (
                    value.data_ptr() != parameter.data_ptr() or value.dtype != parameter.dtype or is_packed(value)
                ):
                    module._parameters[name] = torch.nn.Parameter(value, requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = moved(buffer)
        for name, value in list(module.__dict__.items()):
            if issubclass(type(value), torch.Tensor):
                module.__dict__[name] = moved(value)
        if isinstance(module, torch.nn.RNNBase):
            module._flat_weights = [
                getattr(module, n) if hasattr(module, n) else None for n in module._flat_weights_names
            ]


def held_tensors(module: torch.nn.Module) -> set[int]:
    """Memory addresses of all tensors that a module holds, including those in plain lists, dicts and objects."""
    found: set[int] = set()
    seen: set[int] = set()

    def visit(value: Any, depth: int) -> None:
        if id(value) in seen or depth > 12:
            return
        seen.add(id(value))
        if isinstance(value, torch.Tensor) and is_packed(value):
            found.update(inner.data_ptr() for inner in inner_tensors(value).values())
        elif isinstance(value, torch.Tensor):
            found.add(value.data_ptr())
        elif isinstance(value, list | tuple | set):
            for item in value:
                visit(item, depth + 1)
        elif isinstance(value, dict):
            for item in value.values():
                visit(item, depth + 1)
        elif not isinstance(value, type | types.ModuleType) and isinstance(getattr(value, "__dict__", None), dict):
            visit(value.__dict__, depth + 1)

    visit(module.__dict__, 0)
    return found


def model_dtype(model: torch.nn.Module) -> torch.dtype:
    """The dtype of the first floating point parameter, or else buffer; float32 if there is none. Weights of eight bits
    do not count: models cast them before anything reads them.
    """
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if tensor.is_floating_point() and tensor.dtype.itemsize > 1:
            return tensor.dtype
    return torch.float32
