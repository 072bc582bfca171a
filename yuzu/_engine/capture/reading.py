"""Gives ``forward`` the values that it decides by while it is traced, where no sequence reaches them.

``torch.export`` cannot trace ``if torch.any(index < 0)``, for it has no values. `Reading` follows the operations that
lead to such a value, runs them on the values at hand, and gives ``forward`` the result.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from yuzu._engine.capture.branches import Branches, Read
from yuzu._engine.capture.errors import ReadError
from yuzu._engine.capture.followed import MISSING, Followed, untraced
from yuzu._engine.graph import Node, Ref, map_refs, refs_of, with_refs

# Functions that need a value, which tracing does not have.
READS = {
    "__bool__",
    "__int__",
    "__float__",
    "__complex__",
    "__index__",
    "__contains__",
    "__array__",
    "numpy",
    "is_nonzero",
    "equal",
    "allclose",
    "_assert",
}
# For these, tracing has a symbol. Where a graph can be made with it, that is right for all values.
SYMBOLIC = {
    "item",
    "tolist",
    "__format__",
    # the sizes of these results depend on values
    "nonzero",
    "argwhere",
    "masked_select",
    "unique",
    "_unique_impl",
    "_return_output",
    "unique_consecutive",
    "_unique_consecutive_impl",
    "repeat_interleave",
}
FOLDERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))  # PyTorch's code and ours


class Reading(TorchFunctionMode):
    """Gives ``forward`` the values that it reads while it is traced, where no sequence reaches them.

    Parameters
    ----------
    model: torch.nn.Module
        The model that is traced.
    inputs: tuple of torch.Tensor
        The first is the sequences. Of the others, the first row is used.
    held: set of int
        Memory addresses of the tensors that the model holds.
    rows: tuple of int
        Batch sizes for which the values that are read must be the same.
    any_batch: bool
        True for a trace for batches of any size. Otherwise it is for batches of ``rows[0]``: a value with one entry
        for each row, or one that cannot be read in a batch of another size, may be another there.
    symbols: bool
        True if values are also given instead of symbols.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        inputs: Sequence[torch.Tensor],
        held: set[int],
        rows: tuple[int, ...],
        any_batch: bool = True,
        symbols: bool = False,
    ) -> None:
        super().__init__()
        self._followed = Followed(model, inputs, held, rows, any_batch)
        self._given = READS | SYMBOLIC if symbols else READS
        self._reads: list[tuple[int, Read]] = []  # each after so many nodes
        self._needed: set[int] = set()
        self.symbols = False  # true once there is a symbol for a value that no sequence reaches
        self.sizes = False  # true if such symbols are sizes of tensors

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "__getitem__" and len(args) == 2:
            args = args[0], self._without_masks(args[1])
        if name in READS or name in SYMBOLIC:
            found = self._read(func, args, kwargs)
            if found is not MISSING:
                return found
        return func(*args, **kwargs)

    def _without_masks(self, index: Any) -> Any:
        """An index with places instead of masks whose values are known, so that the result has a known size."""
        items = list(index) if isinstance(index, tuple) else [index]
        for at in reversed(range(len(items))):
            if isinstance(items[at], torch.Tensor) and items[at].dtype in (torch.bool, torch.uint8):
                places = self._read(torch.nonzero, (items[at],), {"as_tuple": True})
                if places is not MISSING:
                    items[at : at + 1] = places
        return tuple(items) if isinstance(index, tuple) or len(items) > 1 else items[0]

    def branches(self) -> Branches:
        """The values that were read so far."""
        steps: list[Node | Read] = []
        place: dict[int, int] = {}

        def moved(structure: Any) -> Any:
            return map_refs(structure, lambda ref: Ref(place[ref.index]))

        nodes = [node for node in self._followed.nodes if node.index in self._needed]
        # a node that was met after a read has its number or a larger one
        ordered: list[tuple[int, int, Node | Read]] = [(node.index, 1, node) for node in nodes]
        ordered += [(after, 0, read) for after, read in self._reads]
        for index, _, step in sorted(ordered, key=lambda one: one[:2]):
            args, kwargs = moved(step.args), moved(step.kwargs)
            if isinstance(step, Read):
                steps.append(Read(step.function, args, kwargs, step.value))
            else:
                place[index] = len(steps)
                value = step.value if step.kind == "constant" else None
                steps.append(Node(len(steps), step.kind, step.op, step.target, args, kwargs, step.key, value))
        followed = self._followed
        return Branches(steps, followed.rows if followed.any_batch else followed.rows[:1])

    def _read(self, func: Any, args: Any, kwargs: Any) -> Any:
        mode = get_proxy_mode()
        if mode is None:
            return MISSING
        followed = self._followed
        followed.meet(mode.tracer)
        traced = pytree.tree_map(lambda item: _traced(item, mode.tracer), (args, kwargs))
        nodes = [item for item in pytree.tree_leaves(traced) if isinstance(item, torch.fx.Node)]
        name = func.__name__.strip("_")
        if any(fx in followed.reached for fx in nodes) and func.__name__ in READS:
            raise ReadError(f"forward decides by a value that depends on the sequence: {name} of a tensor{_where()}")
        known = bool(nodes) and all(followed.known.get(fx) is not None for fx in nodes)
        if not known or any(item is MISSING for item in pytree.tree_leaves(traced)):
            return MISSING
        if func.__name__ not in self._given:
            self.symbols = True
            return MISSING
        given, named = with_refs(traced, followed.index_of)
        needed = followed.lead_to(set(refs_of((given, named))))
        read = Read(func, given, named, None)
        try:
            value, copied, others = untraced(lambda: followed.value_of(read, needed))
        except Exception:  # the model itself raises it: it is traced as it is
            return MISSING
        if others is not None:
            raise others(
                f"forward decides by values of several rows of a batch, or by how many there are: {name} of a "
                f"tensor{_where()}"
            )
        if any(followed.nodes[i].kind in ("weight", "extra") for i in needed):
            self._needed |= needed
            self._reads.append((len(followed.nodes), Read(func, given, named, value)))
        return copied


def _traced(item: Any, tracer: Any) -> Any:
    """The node of the trace that computes a tensor, `MISSING` where there is none; anything else as it is."""
    if isinstance(item, torch.SymInt | torch.SymFloat | torch.SymBool):
        return MISSING
    if not isinstance(item, torch.Tensor):
        return item
    slot = get_proxy_slot(item, tracer, None)
    return MISSING if slot is None else slot.proxy.node


def _where() -> str:
    """The line of the user's code that is being traced, in words."""
    frame: Any = sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(FOLDERS):
        frame = frame.f_back
    return "" if frame is None else f" in {Path(frame.f_code.co_filename).name}, line {frame.f_lineno}"


__all__ = ["Reading"]
