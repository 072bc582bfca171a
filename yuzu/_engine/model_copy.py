"""A stand-in for the user's model, in evaluation mode; and what tells two versions of a model apart.

Setting flags on the user's model and setting them back is not safe when two threads use it or an error is
raised half way, so nothing is ever set on it.
"""

from __future__ import annotations

import collections
import copy
import hashlib
import inspect
import itertools
import logging
import types
from typing import Any

import torch

# attributes of modules that decide nothing that is not seen elsewhere; Lightning's lead to the whole training
NO_STRUCTURE = ("training", "_modules", "_flat_weights", "_flat_weight_refs", "_trainer", "_fabric")


def _copied_tensors(model: torch.nn.Module) -> dict[int, Any]:
    """A deepcopy memo with a copy of every tensor of the model: a forward may write to any, as those that keep the norm
    of their weights do. ``copy.deepcopy`` itself refuses what has a gradient, and copies all that a view is a part of.
    """
    memo: dict[int, Any] = {}

    def keep(value: Any, depth: int) -> None:
        if id(value) in memo:
            return
        if isinstance(value, torch.nn.Parameter):
            own = memo[id(value)] = _copied(value, memo)
            own.__dict__.update(value.__dict__)
        elif isinstance(value, torch.Tensor):
            memo[id(value)] = value.detach().clone()
        elif isinstance(value, list | tuple) and depth < 3:
            for item in value:
                keep(item, depth + 1)
        elif isinstance(value, dict) and depth < 3:
            for item in value.values():
                keep(item, depth + 1)

    for module in model.modules():
        keep(module.__dict__, 0)
    return memo


def _copy_modules(model: torch.nn.Module, memo: dict[int, Any]) -> torch.nn.Module:
    """A copy of the module tree, and of those attributes that ``copy.deepcopy`` can copy."""
    modules = list(model.modules())
    for module in modules:
        scripted = isinstance(module, torch.jit.ScriptModule)  # most of it does not lie in Python
        memo[id(module)] = copy.deepcopy(module) if scripted else object.__new__(type(module))
    for module in modules:
        if not isinstance(module, torch.jit.ScriptModule):
            memo[id(module)].__dict__.update({k: _copied(v, memo) for k, v in module.__dict__.items()})
    return memo[id(model)]


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """A copy, or the value itself where it refuses to be copied; what was begun of one is forgotten."""
    trial: collections.ChainMap[int, Any] = collections.ChainMap({}, memo)
    try:
        found = copy.deepcopy(value, trial)  # type: ignore[arg-type]
    except Exception:  # locks, files, generators; the tree of modules is what matters
        return value
    trial.setdefault(id(trial), []).append(trial)  # it is in the memo by its id, which must not become another's
    memo.update(trial.maps[0])
    return found


def on_copies(model: torch.nn.Module, X: torch.Tensor, *args: torch.Tensor) -> Any:
    """What a model returns for copies of its inputs, which a forward may write over."""
    return model(X.clone(), *(a.clone() for a in args))


def evaluation_copy(
    model: torch.nn.Module, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> torch.nn.Module:
    """A copy of ``model`` in evaluation mode, with its tensors at their values now.

    It shares no tensor and no module with the user's, so running it changes nothing of theirs.
    """
    tensors = _copied_tensors(model)
    try:
        twin = copy.deepcopy(model, dict(tensors))
        if not {id(m) for m in model.modules()}.isdisjoint(map(id, twin.modules())):  # some return themselves
            twin = _copy_modules(model, tensors)
    except Exception:  # any attribute may refuse
        twin = _copy_modules(model, tensors)
    for module in twin.modules():
        if isinstance(module, torch.jit.ScriptModule):
            module.training = False
        else:
            module.__dict__["training"] = False
    if device is not None or dtype is not None:
        _move(twin, device, dtype)
    return twin


def _move(twin: torch.nn.Module, device: torch.device | None, dtype: torch.dtype | None) -> None:
    """Move the copy's tensors."""

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        target = dtype if tensor.is_floating_point() else None
        return tensor.detach().to(device=device, dtype=target)

    for module in twin.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                value = moved(parameter)
                if value.data_ptr() != parameter.data_ptr() or value.dtype != parameter.dtype:
                    module._parameters[name] = torch.nn.Parameter(value, requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = moved(buffer)
        for name, value in list(module.__dict__.items()):
            if isinstance(value, torch.Tensor):
                module.__dict__[name] = moved(value)
        if isinstance(module, torch.nn.RNNBase):
            module._flat_weights = [
                getattr(module, n) if hasattr(module, n) else None for n in module._flat_weights_names
            ]


def _identity_of_forward(module: torch.nn.Module) -> int:
    for kind in type(module).__mro__:  # not getattr: a scripted module's forward is a descriptor that raises
        if "forward" in vars(kind):
            return id(vars(kind)["forward"])
    return 0


def held_tensors(module: torch.nn.Module) -> set[int]:
    """Memory addresses of all tensors that a module holds in any way, also in plain lists, dicts and objects."""
    found: set[int] = set()
    seen: set[int] = set()

    def visit(value: Any, depth: int) -> None:
        if id(value) in seen or depth > 12:
            return
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
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


def structure_key(model: torch.nn.Module) -> str:
    """A quick digest of what decides how a model computes: classes with their plain attributes, settings, hooks, shapes
    and dtypes of its tensors, and which modules and tensors are one and the same.

    It notices an exchanged layer, a changed setting, and a weight that is no longer shared. It does not read weights:
    training on does not change it, unless the model counts or writes down what it does.
    """

    simple = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.Size, slice, range)
    quick = frozenset(simple)  # most values by far, and every call of `yuzu_ism` waits for this
    empty = (dict, collections.OrderedDict)
    bases: set[type] = set()
    places: dict[int, int] = {}  # of each module, tensor and object, which the model holds, where it was met first

    def place(value: Any) -> int:
        return places.setdefault(id(value), len(places))

    def constants(value: Any) -> str:
        """Of a class or a Python module, whose other attributes may lead anywhere."""
        return fields({k: v for k, v in vars(value).items() if type(v) in quick})

    def fields(value: dict[Any, Any]) -> str:
        return "{" + ",".join(f"{k!r}:{plain(v)}" for k, v in value.items()) + "}"

    def plain(value: Any) -> str:
        if type(value) in quick or (type(value) is tuple and quick.issuperset(map(type, value))):
            return repr(value)
        if isinstance(value, torch.Tensor):
            return f"tensor{place(value)}{tuple(value.shape)}{value.dtype}{value.device.type}"
        if isinstance(value, simple):
            return repr(value)
        kind, settings = type(value).__qualname__, None
        container = isinstance(value, dict | list | tuple | set | frozenset)
        if container and not value:
            return kind
        if not container:
            # a function, a module in a plain list and the like are told apart by identity: a new one is a change
            settings = getattr(value, "__dict__", None)
            opaque = isinstance(value, type | torch.nn.Module | logging.Logger) or inspect.isroutine(value)
            if opaque or not isinstance(settings, dict):
                return f"{kind}@{id(value)}"
        if id(value) in places:  # written out once, however many ways lead to it
            return f"{kind}#{places[id(value)]}"
        place(value)
        if isinstance(value, types.ModuleType):
            return f"{kind}@{id(value)}{constants(value)}"
        if isinstance(value, dict):
            return fields(value)
        if container:
            return f"{kind}[{','.join(plain(item) for item in value)}]"
        return f"{kind}{fields(settings or {})}"

    digest = hashlib.sha256()
    for name, module in model.named_modules(remove_duplicate=False):
        settings = {
            k: v
            for k, v in module.__dict__.items()
            if k not in NO_STRUCTURE
            and not (type(v) in empty and not v)  # mostly the tables of hooks
        }
        kind = type(module)
        digest.update(
            f"{name}|{place(module)}|{kind.__module__}.{kind.__qualname__}|{_identity_of_forward(module)}|".encode()
        )
        digest.update(fields(settings).encode())
        for base in kind.__mro__:
            if base not in bases and not base.__module__.startswith("torch."):
                bases.add(base)
                digest.update(constants(base).encode())
    return digest.hexdigest()


def model_dtype(model: torch.nn.Module) -> torch.dtype:
    """The dtype of the first floating point parameter, or else buffer; float32 for a model without any."""
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.float32
