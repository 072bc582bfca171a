"""Outputs in objects of the user's classes: data classes, ``attrs``, subclasses of dict, any object with tensors.

An object is taken apart into its tensors, and built again with others; no class is registered anywhere. The containers
that PyTorch knows (tuples, lists, dicts, named tuples, registered classes) need none of this.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

VALUES = (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)  # these are taken out
WHOLE = (torch.nn.Module, torch.device, torch.dtype, type, types.ModuleType, types.BuiltinFunctionType)
DEEPEST = 16  # levels of objects in objects


class Inseparable(Exception):
    """Why an object cannot be taken apart."""


@dataclass(frozen=True)
class _Taken:
    """The number of a value that was taken out, in its place."""

    number: int


@dataclass(frozen=True)
class _Container:
    """A container that PyTorch knows."""

    spec: Any
    parts: list[Any]


@dataclass(frozen=True)
class _Object:
    """An object: its class, its items if that is a dict, list or tuple, and its attributes."""

    kind: type
    items: list[tuple[Any, Any]]
    attributes: list[tuple[Any, Any]]  # by their name, or their slot


class Recipe:
    """How an output is put together from its values."""

    def __init__(self, root: Any) -> None:
        self._root = root

    def __call__(self, values: list[Any]) -> Any:
        return _built(self._root, values)

    def __str__(self) -> str:
        return _described(self._root)


def taken_apart(output: Any) -> tuple[list[Any], Recipe | None]:
    """The tensors (and sizes, while tracing) of an output, and how it is built from them. For an output of containers
    that PyTorch knows, its leaves and None.

    Raises
    ------
    Inseparable
        If tensors are held where they cannot be exchanged.
    """
    leaves = pytree.tree_leaves(output)
    if not any(_is_opaque(leaf) for leaf in leaves):
        return leaves, None
    taking = _Taking()
    root = taking.part(output, 0)
    return (taking.values, Recipe(root)) if taking.objects else (leaves, None)


@contextlib.contextmanager
def objects_taken_apart(module: torch.nn.Module) -> Iterator[list[Recipe]]:
    """Let a module return the values in an object. The yielded list gets a recipe for the object at each call."""
    recipes: list[Recipe] = []

    def values_of(module: torch.nn.Module, given: Any, output: Any) -> Any:
        values, recipe = taken_apart(output)
        if recipe is None:
            return None  # the output is returned as it is
        recipes.append(recipe)
        return tuple(values)

    hook = module.register_forward_hook(values_of)
    try:
        yield recipes
    finally:
        hook.remove()


def map_tensors(function: Callable[[torch.Tensor], Any], output: Any) -> Any:
    """An output with ``function`` applied to every tensor, including those in objects that can be taken apart."""

    def mapped(value: Any) -> Any:
        return function(value) if isinstance(value, torch.Tensor) else value

    values, recipe = _apart_if_possible(output)
    return pytree.tree_map(mapped, output) if recipe is None else recipe([mapped(value) for value in values])


def tensors_in(output: Any) -> list[torch.Tensor]:
    """Every tensor in an output, in order, including those in objects that can be taken apart."""
    return [value for value in _apart_if_possible(output)[0] if isinstance(value, torch.Tensor)]


def _apart_if_possible(output: Any) -> tuple[list[Any], Recipe | None]:
    try:
        return taken_apart(output)
    except Inseparable:
        return pytree.tree_leaves(output), None


def _is_opaque(leaf: Any) -> bool:
    """Return whether a leaf may hold tensors."""
    kind = type(leaf)
    return kind.__module__ != "builtins" and not issubclass(kind, (*VALUES, *WHOLE))


class _Taking:
    def __init__(self) -> None:
        self.values: list[Any] = []
        self.numbers: dict[int, int] = {}  # by id: an object may hold a tensor twice, as an item and as an attribute
        self.objects = 0  # with tensors
        self.within: set[int] = set()

    def part(self, value: Any, depth: int) -> Any:
        if isinstance(value, VALUES):
            number = self.numbers.setdefault(id(value), len(self.values))
            if number == len(self.values):
                self.values.append(value)
            return _Taken(number)
        leaves, spec = pytree.tree_flatten(value)
        if len(leaves) != 1 or leaves[0] is not value:
            return _Container(spec, [self.part(leaf, depth) for leaf in leaves])
        if isinstance(value, types.FunctionType | functools.partial):
            hidden = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
            hidden += [getattr(value, "args", ()), getattr(value, "keywords", {})]
            if any(isinstance(item, VALUES) for item in pytree.tree_leaves(hidden)):
                raise Inseparable("the model returns a function that holds a tensor")
        if not _is_opaque(value):
            return value
        return self.object(value, depth)

    def object(self, value: Any, depth: int) -> Any:
        if id(value) in self.within or depth > DEEPEST:
            raise Inseparable(f"the model returns an object of {type(value).__name__} that holds itself")
        self.within.add(id(value))
        before = len(self.values), self.objects
        items = [(key, self.part(item, depth + 1)) for key, item in _items(value)]
        attributes = [(name, self.part(item, depth + 1)) for name, item in _attributes(value)]
        self.within.discard(id(value))
        held = [item for _, item in (*items, *attributes)]
        if not any(_holds(item) for item in held):
            assert before == (len(self.values), self.objects)
            return value
        self.objects += 1
        found = _Object(type(value), items, attributes)
        try:
            _built(found, self.values)
        except Exception as error:  # a class may refuse in any way
            raise Inseparable(f"the model returns a {type(value).__name__}, which cannot be built again") from error
        return found


def _holds(part: Any) -> bool:
    """Return whether anything was taken out of a part."""
    if isinstance(part, _Container):
        return any(_holds(item) for item in part.parts)
    return isinstance(part, _Taken | _Object)


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from dict.items(value)
    elif isinstance(value, list | tuple):
        yield from enumerate(value)


def _attributes(value: Any) -> Iterator[tuple[Any, Any]]:
    yield from list(getattr(value, "__dict__", {}).items())
    for base in type(value).__mro__:
        for slot in vars(base).values():
            if isinstance(slot, types.MemberDescriptorType) and slot.__name__ != "__dict__":
                try:
                    yield slot, slot.__get__(value)
                except AttributeError:  # it was not set
                    continue


def _built(part: Any, values: list[Any]) -> Any:
    if isinstance(part, _Taken):
        return values[part.number]
    if isinstance(part, _Container):
        return pytree.tree_unflatten([_built(item, values) for item in part.parts], part.spec)
    if not isinstance(part, _Object):
        return part
    kind: Any = part.kind
    items = [(key, _built(item, values)) for key, item in part.items]
    found: Any
    if issubclass(kind, torch.Size):
        return torch.Size([size for _, size in items])
    if issubclass(kind, tuple):
        found = tuple.__new__(kind, [item for _, item in items])
    elif issubclass(kind, list):
        found = list.__new__(kind)
        list.extend(found, [item for _, item in items])
    else:
        bases: tuple[Any, ...] = (OrderedDict, dict, types.SimpleNamespace, object)
        base = next(base for base in bases if issubclass(kind, base))
        found = base.__new__(kind)
        for key, item in items:
            base.__setitem__(found, key, item)
    for name, item in part.attributes:
        if isinstance(name, str):
            found.__dict__[name] = _built(item, values)
        else:
            name.__set__(found, _built(item, values))  # also in a frozen class
    return found


def _described(part: Any) -> str:
    if isinstance(part, _Container):
        return f"{part.spec}({', '.join(map(_described, part.parts))})"
    if isinstance(part, _Object):
        held = [*part.items, *((getattr(name, "__name__", name), item) for name, item in part.attributes)]
        inside = [f"{key}={_described(item)}" for key, item in held if _holds(item)]
        return f"{part.kind.__qualname__}({', '.join(inside)})"
    return "*" if isinstance(part, _Taken) else type(part).__name__
