"""A digest of everything that decides how a model computes, except for its weights."""

from __future__ import annotations

import collections
import dis
import functools
import hashlib
import inspect
import logging
import random
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

# attributes of modules that are looked at elsewhere, or lead to all of a training, as Lightning's do
NO_STRUCTURE = ("training", "_modules", "_flat_weights", "_flat_weight_refs", "_trainer", "_fabric")
SIMPLE = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.Size, slice, range)
QUICK = frozenset(SIMPLE)  # by far the most values; every call of `yuzu_ism` waits for this digest
CONTAINERS = (dict, list, tuple, set, frozenset)
EMPTY = (dict, collections.OrderedDict)
INSTALLED = ("site-packages", "dist-packages")  # folders of code that nobody changes while it runs
NOT_LOOKED_INTO = frozenset({*sys.stdlib_module_names, "torch", "numpy"})  # modules that are not looked into
MOST_NUMBERS = 64  # in a tensor of settings, which a forward may read; a larger one holds data
MOST_HASHED = 1 << 18  # elements of an array
DEEPEST = 40  # levels of objects in objects
# objects that change by themselves, in training or as numbers are drawn, and decide nothing
CHANGING = (
    logging.Logger,
    torch.optim.Optimizer,
    torch.optim.lr_scheduler.LRScheduler,
    torch.Generator,
    np.random.Generator,
    np.random.RandomState,
    random.Random,
)
SILENT = frozenset({"__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "_abc_impl", "__slots__"})


def structure_key(model: torch.nn.Module) -> str:
    """A quick digest of everything that decides how a model computes: classes with their plain attributes and
    functions, settings, hooks, shapes and dtypes of tensors, and which modules and tensors are the same object.

    It notices an exchanged layer, a changed setting, and a weight that is no longer shared. It does not read weights,
    so further training does not change it, unless the model keeps count or a record of its calls.
    """
    return _Digest(model).of(model)


class _Digest:
    """Describes everything that a model holds; each object once, however many ways lead to it."""

    def __init__(self, model: torch.nn.Module) -> None:
        # by id: when each module, tensor or object was met first
        self.places: dict[int, int] = {}
        self.live = {id(t) for m in model.modules() for t in (*m._parameters.values(), *m._buffers.values())}
        self.made: list[Any] = []  # objects made for the digest, kept so that no other object gets their ids
        self.depth = 0
        self.outside = False  # true among the values that functions close over, or read from their modules
        self.collects = False  # true within a list or table there, in which hooks may collect tensors

    def of(self, model: torch.nn.Module) -> str:
        digest = hashlib.sha256()
        named = list(model.named_modules(remove_duplicate=False))
        for name, module in named:
            digest.update(f"{name}|{self.place(module)}|".encode())
        for module in {id(module): module for _, module in named}.values():
            digest.update(self.module(module).encode())
        return digest.hexdigest()

    def place(self, value: Any) -> int:
        return self.places.setdefault(id(value), len(self.places))

    def plain(self, value: Any) -> str:
        if type(value) in QUICK or (type(value) is tuple and QUICK.issuperset(map(type, value))):
            return repr(value)
        self.depth += 1
        try:
            if self.depth > DEEPEST:
                raise RecursionError
            return self.described(value)
        except Exception:  # an attribute may raise anything when it is read
            return f"{type(value).__qualname__}@{id(value)}"
        finally:
            self.depth -= 1

    def described(self, value: Any) -> str:
        kind = type(value).__qualname__
        if isinstance(value, torch.Tensor):
            return self.tensor(value)
        if isinstance(value, SIMPLE):
            return repr(value)
        if isinstance(value, CONTAINERS) and not value:
            return kind
        if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            return f"{kind}{value.shape}{value.dtype}{_hash(value)}"
        if isinstance(value, types.MethodType):  # made anew each time it is looked up
            return f"{kind}{self.plain(value.__func__)}{self.plain(value.__self__)}"
        if isinstance(value, staticmethod | classmethod | property):
            return f"{kind}{self.plain(value.fget if isinstance(value, property) else value.__func__)}"
        if id(value) in self.places:
            return f"{kind}#{self.places[id(value)]}"
        place = self.place(value)
        if isinstance(value, torch.nn.Module):  # in a plain list and the like
            return self.module(value)
        if isinstance(value, types.FunctionType):
            return self.function(value)
        if isinstance(value, type):
            return f"{value.__module__}.{value.__qualname__}@{id(value)}{self.classes(value)}"
        if isinstance(value, types.ModuleType):
            return f"{kind}@{id(value)}{'' if _is_installed(value.__name__) else self.constants(value)}"
        if isinstance(value, CHANGING) or inspect.isroutine(value):
            return f"{kind}@{id(value)}"
        if isinstance(value, dict):
            return self.fields(value)
        if isinstance(value, CONTAINERS):
            return f"{kind}[{self.items(value)}]"
        return f"{kind}#{place}{self.object(value)}"

    def fields(self, value: dict[Any, Any]) -> str:
        return "{" + ",".join([f"{k!r}:{self.plain(v)}" for k, v in list(value.items()) if not self.collected(v)]) + "}"

    def items(self, values: Iterable[Any]) -> str:
        return ",".join([self.plain(item) for item in values if not self.collected(item)])

    def collected(self, value: Any) -> bool:
        """Return whether a value is passed over: a tensor that a hook has collected, which changes with every call."""
        return self.collects and issubclass(type(value), torch.Tensor)

    def constants(self, module: types.ModuleType) -> str:
        """The constants of a Python module; its other attributes may lead anywhere."""
        return self.fields({k: v for k, v in vars(module).items() if type(v) in QUICK})

    def tensor(self, value: torch.Tensor) -> str:
        read = id(value) not in self.live and type(value) is torch.Tensor and value.numel() <= MOST_NUMBERS
        numbers = value.tolist() if read else ""
        which = id(value) if self.outside else self.place(value)  # a tensor outside of the model is not known by name
        return f"tensor{which}{tuple(value.shape)}{value.dtype}{value.device.type}{numbers}"

    def module(self, module: torch.nn.Module) -> str:
        kind = type(module)
        settings = {
            k: v
            for k, v in module.__dict__.items()
            if k not in NO_STRUCTURE and not (type(v) in EMPTY and not v)  # mostly the tables of hooks
        }
        forward = id(_found(kind, "forward"))
        collects, self.collects = self.collects, False
        words = f"{kind.__module__}.{kind.__qualname__}|{forward}|{self.fields(settings)}{self.classes(kind)}"
        self.collects = collects
        return words

    def object(self, value: Any) -> str:
        """The attributes and slots of an object. For one that keeps its content elsewhere, such as
        ``functools.partial`` or ``collections.deque``, also what pickle would write.
        """
        kind = type(value)
        settings = getattr(value, "__dict__", None)
        own = kind.__reduce__ is object.__reduce__ and kind.__reduce_ex__ is object.__reduce_ex__
        names = [name for base in kind.__mro__ for name in _names(vars(base).get("__slots__", ()))]
        slots = [getattr(value, name, None) for name in names if name not in SILENT]
        if own and not isinstance(settings, dict) and not slots:
            return f"@{id(value)}"
        words = f"{self.fields(settings or {})}{self.items(slots)}{self.classes(kind)}"
        if not own:
            try:
                parts = value.__reduce_ex__(4)
                parts = [list(p) if isinstance(p, Iterator) else p for p in parts if p is not settings]
            except Exception:  # it cannot be pickled
                return f"{words}@{id(value)}"
            self.made.append(parts)
            words += self.items(parts)
        return words

    def classes(self, kind: type) -> str:
        """The functions and settings of a class and its bases."""
        words = []
        for base in kind.__mro__:
            if not _is_installed(base.__module__) and base is not object and ("class", base) not in self.places:
                self.places["class", base] = len(self.places)  # type: ignore[index]
                words.append(self.fields({k: v for k, v in vars(base).items() if k not in SILENT}))
        return "".join(words)

    def function(self, function: types.FunctionType) -> str:
        """The code of a function, the values that it closes over, and those that it reads from its Python module."""
        code = function.__code__
        read = [function.__defaults__, function.__kwdefaults__, function.__dict__]
        read += [cell.cell_contents for cell in function.__closure__ or () if _is_set(cell)]
        if not any(folder in code.co_filename for folder in INSTALLED) and not _is_installed(function.__module__):
            read += _globals(function.__globals__, code)
        before = self.outside, self.collects
        self.outside = self.collects = True
        words = f"{hash(code)}{[self.plain(value) for value in read]}"
        self.outside, self.collects = before
        return words


def _globals(there: dict[str, Any], code: types.CodeType) -> Iterator[Any]:
    """The values that a function reads from its Python module, and from the modules that this imports."""
    names, attributes = _names_in(code)
    for name in sorted(names & there.keys()):
        yield there[name]
        if isinstance(there[name], types.ModuleType) and not _is_installed(there[name].__name__):
            yield [vars(there[name])[inner] for inner in sorted(attributes & vars(there[name]).keys())]


@functools.lru_cache(maxsize=1000)
def _names_in(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The names that a function, or one defined in it, looks up in its Python module; and all attributes' names."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    attributes = set(code.co_names)
    for inner in [c for c in code.co_consts if isinstance(c, types.CodeType)]:
        more = _names_in(inner)
        names, attributes = names | more[0], attributes | more[1]
    return frozenset(names), frozenset(attributes)


def _is_installed(name: str | None) -> bool:
    return str(name).partition(".")[0] in NOT_LOOKED_INTO


def _names(slots: Any) -> list[str]:
    return [slots] if isinstance(slots, str) else list(slots)


def _is_set(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _found(kind: type, name: str) -> Any:
    """A class's attribute as it is stored. ``getattr`` would raise for the forward of a scripted module."""
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)


def _hash(array: Any) -> str:
    """A digest of an array; for a large one, such as a genome on a disk, of evenly spaced elements and its id."""
    if array.size <= MOST_HASHED:
        return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    some = np.ascontiguousarray(array.flat[:: array.size // MOST_HASHED])
    return f"{id(array)}{hashlib.sha256(some.data).hexdigest()}"
