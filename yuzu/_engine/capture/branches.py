"""The decisions of a model's ``forward``: the values that it read while it was traced, where no sequence reaches them.

An organism's index in ``args``, a buffer or a table may decide what ``forward`` does. The graph is right for these
values alone. `Branches` computes the same values again from other inputs or weights, and tells whether they are the
same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from yuzu._engine.gate import running
from yuzu._engine.graph import Graph, Node, Weights, evaluate, map_refs

WRITE_NOTHING = {"aten::detach_", "aten::requires_grad_", "aten::lift_fresh"}


@dataclass(frozen=True)
class Read:
    """A value that ``forward`` read: ``function`` of its arguments, which refer to nodes."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Any

    def run(self, value_of: Callable[[int], Any]) -> Any:
        """Read again, from the values of the nodes."""
        args, kwargs = map_refs((self.args, self.kwargs), lambda ref: value_of(ref.index))
        return self.function(*args, **kwargs)


@dataclass(frozen=True)
class Branches:
    """The values that were read, in order, with the operations that lead to them.

    Attributes
    ----------
    steps: list of Node or Read
        Nodes of the kind ``"rows"`` are the batch size. Arguments refer to places in this list.
    rows: tuple of int
        Batch sizes for which the values must be the same.
    """

    steps: list[Node | Read] = field(default_factory=list)
    rows: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps)

    @property
    def by_args(self) -> bool:
        """Return whether ``forward`` decides by inputs after the sequence."""
        return any(isinstance(step, Node) and step.kind == "extra" for step in self.steps)

    @property
    def weights(self) -> set[str]:
        """The parameters, buffers and attributes that ``forward`` decides by."""
        return {str(step.key) for step in self.steps if isinstance(step, Node) and step.kind == "weight"}

    def hold(self, model: torch.nn.Module, args: Sequence[torch.Tensor], device: torch.device) -> bool:
        """Return whether ``forward`` reads the same values with the first row of ``args``, and the model's tensors as
        they are now.
        """
        if not self:
            return True
        with running(), torch.no_grad():
            return all(self._same(Weights(model, device), args, device, rows) for rows in self.rows)

    def _same(self, weights: Weights, args: Sequence[torch.Tensor], device: torch.device, rows: int) -> bool:
        values: list[Any] = []
        writes = any(isinstance(step, Node) and written_by(step.target) for step in self.steps)
        try:
            for step in self.steps:
                if isinstance(step, Read):
                    found = step.run(values.__getitem__)
                    if not alike(found, step.value):
                        return False
                elif step.kind == "call":
                    found = evaluate(step, values.__getitem__, device)
                elif step.kind == "rows":
                    found = rows
                else:
                    found = weights[step.key] if step.kind == "weight" else step.value
                    if step.kind == "extra":
                        found = rows_of(args[step.key], rows)
                    found = found.to(device)
                    found = found.clone() if writes else found
                values.append(found)
        except Exception:  # an operation does not take the other values
            return False
        return True

    def words(self) -> list[list[str]]:
        """For each value, a digest of how it is computed and one of the value itself. They tell other values from
        another model.
        """
        found: list[list[str]] = []
        nodes: list[Node] = []
        for step in self.steps:
            if isinstance(step, Node):
                nodes.append(step)
            else:
                name = getattr(step.function, "__name__", "")
                nodes.append(Node(len(nodes), "read", name, name, step.args, step.kwargs))
                found.append([Graph(nodes, [], list, "", "").fingerprint(), _digest(step.value)])
        return found


@dataclass
class Captured(Graph):
    """A graph that is right where ``branches`` hold."""

    branches: Branches = field(default_factory=Branches)


def written_by(target: Any) -> set[int | str]:
    """The arguments that an operation writes over, by place and name."""
    if not isinstance(target, torch._ops.OpOverload) or target._schema.name in WRITE_NOTHING:
        return set()
    found: set[int | str] = set()
    for place, argument in enumerate(target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found |= {place, argument.name}
    return found


def rows_of(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """The first row of a tensor, so many times."""
    return tensor[:1].expand(rows, *tensor.shape[1:])


def alike(a: Any, b: Any) -> bool:
    """Return whether two values are the same in type, shape and numbers; NaN is NaN."""
    return _words(a) == _words(b)


def _words(value: Any) -> list[Any]:
    """A value in pieces that can be compared."""
    leaves, spec = pytree.tree_flatten(value)
    arrays = [leaf.detach().cpu().numpy() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    return [str(spec), *((a.dtype.str, a.shape, a.tobytes()) if isinstance(a, np.ndarray) else repr(a) for a in arrays)]


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(_words(value)).encode()).hexdigest()


__all__ = ["Branches", "Captured", "Read", "alike", "rows_of", "written_by"]
