"""What tells two versions of a model apart, but for its weights: a digest of all that decides how it computes."""

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

# attributes of modules that decide nothing that is not seen elsewhere; Lightning's lead to the whole training
NO_STRUCTURE = ("training", "_modules", "_flat_weights", "_flat_weight_refs", "_trainer", "_fabric")
SIMPLE = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.Size, slice, range)
QUICK = frozenset(SIMPLE)  # most values by far, and every call of `yuzu_ism` waits for this
CONTAINERS = (dict, list, tuple, set, frozenset)
EMPTY = (dict, collections.OrderedDict)
INSTALLED = ("site-packages", "dist-packages")  # folders of what nobody changes while it runs
STEADY = frozenset({*sys.stdlib_module_names, "torch", "numpy"})  # and modules that are not looked into
MOST_NUMBERS = 64  # that a forward may read of a tensor as settings: of more, it keeps them
MOST_HASHED = 1 << 18  # numbers of an array
DEEPEST = 40  # objects in objects
# what changes by itself, in training or as numbers are drawn, and decides nothing
RESTLESS = (
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
    """A quick digest of what decides how a model computes: classes with their plain attributes and functions, settings,
    hooks, shapes and dtypes of its tensors, and which modules and tensors are one and the same.

    It notices an exchanged layer, a changed setting, and a weight that is no longer shared. It does not read weights:
    training on does not change it, unless the model counts or writes down what it does.
    """
    return _Digest(model).of(model)


class _Digest:
    """Words for everything a model holds, each thing written out once, however many ways lead to it."""

    def __init__(self, model: torch.nn.Module) -> None:
        # of each module, tensor and object, which the model holds, where it was met first
        self.places: dict[int, int] = {}
        self.live = {id(t) for m in model.modules() for t in (*m._parameters.values(), *m._buffers.values())}
        self.made: list[Any] = []  # for the digest alone: as long as they are there no other has their ids
        self.depth = 0
        self.outside = False  # of the model: in what its functions close over or read of their modules
        self.collects = False  # in a list or table there, in which hooks may collect the tensors they see

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
        except Exception:  # an attribute may raise whatever it likes when it is looked at
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
            return f"{kind}@{id(value)}{'' if _steady(value.__name__) else self.constants(value)}"
        if isinstance(value, RESTLESS) or inspect.isroutine(value):
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
        """Whether it is not looked at: what hooks write down changes with every call."""
        return self.collects and issubclass(type(value), torch.Tensor)

    def constants(self, module: types.ModuleType) -> str:
        """Of a Python module, whose other attributes may lead anywhere."""
        return self.fields({k: v for k, v in vars(module).items() if type(v) in QUICK})

    def tensor(self, value: torch.Tensor) -> str:
        read = id(value) not in self.live and type(value) is torch.Tensor and value.numel() <= MOST_NUMBERS
        numbers = value.tolist() if read else ""
        which = id(value) if self.outside else self.place(value)  # what is no part of the model is not followed by name
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
        """What an object is made of: its attributes and slots, and what pickle would write of one that is not Python's
        (``functools.partial``, ``collections.deque``).
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
            except Exception:  # what cannot be pickled
                return f"{words}@{id(value)}"
            self.made.append(parts)
            words += self.items(parts)
        return words

    def classes(self, kind: type) -> str:
        """A class and what it inherits: functions and settings."""
        words = []
        for base in kind.__mro__:
            if not _steady(base.__module__) and base is not object and ("class", base) not in self.places:
                self.places["class", base] = len(self.places)  # type: ignore[index]
                words.append(self.fields({k: v for k, v in vars(base).items() if k not in SILENT}))
        return "".join(words)

    def function(self, function: types.FunctionType) -> str:
        """Its code, what it closes over, and what it reads of its module."""
        code = function.__code__
        read = [function.__defaults__, function.__kwdefaults__, function.__dict__]
        read += [cell.cell_contents for cell in function.__closure__ or () if _is_set(cell)]
        if not any(folder in code.co_filename for folder in INSTALLED) and not _steady(function.__module__):
            read += _globals(function.__globals__, code)
        before = self.outside, self.collects
        self.outside = self.collects = True
        words = f"{hash(code)}{[self.plain(value) for value in read]}"
        self.outside, self.collects = before
        return words


def _globals(there: dict[str, Any], code: types.CodeType) -> Iterator[Any]:
    """Of a Python module, and of those that it imports, what a function reads."""
    names, attributes = _names_in(code)
    for name in sorted(names & there.keys()):
        yield there[name]
        if isinstance(there[name], types.ModuleType) and not _steady(there[name].__name__):
            yield [vars(there[name])[inner] for inner in sorted(attributes & vars(there[name]).keys())]


@functools.lru_cache(maxsize=1000)
def _names_in(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """What a function, or one written in it, looks up in its Python module; and all that it looks up by name."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    attributes = set(code.co_names)
    for inner in [c for c in code.co_consts if isinstance(c, types.CodeType)]:
        more = _names_in(inner)
        names, attributes = names | more[0], attributes | more[1]
    return frozenset(names), frozenset(attributes)


def _steady(name: str | None) -> bool:
    return str(name).partition(".")[0] in STEADY


def _names(slots: Any) -> list[str]:
    return [slots] if isinstance(slots, str) else list(slots)


def _is_set(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _found(kind: type, name: str) -> Any:
    """The attribute of a class as it is written; not ``getattr``: a scripted module's forward is one that raises."""
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)


def _hash(array: Any) -> str:
    """Of a large array, such as a genome on a disk, so many of its numbers, evenly spaced, and which it is."""
    if array.size <= MOST_HASHED:
        return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    some = np.ascontiguousarray(array.flat[:: array.size // MOST_HASHED])
    return f"{id(array)}{hashlib.sha256(some.data).hexdigest()}"
