"""A call's request: sequences, their edits, and the outputs that are scored. Checked once, before any work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from yuzu._engine.checks import Kinds, check_args, check_count, check_device, check_output, check_sequences
from yuzu._engine.edits import Mutations
from yuzu.errors import YuzuError, shown

Args = tuple[torch.Tensor, ...]  # the model's inputs after the sequence


@dataclass(frozen=True, eq=False)
class Selection:
    """``func`` and ``target``: the part of the model's output that is scored."""

    func: Callable[[Any], Any] | None = None
    target: Any = None

    def __post_init__(self) -> None:
        func, target = self.func, self.target
        if func is not None and not callable(func):
            raise YuzuError(f"func must be callable, got {type(func).__name__}")
        if target is not None and not isinstance(
            target, int | np.integer | slice | list | tuple | np.ndarray | torch.Tensor
        ):
            raise YuzuError(f"target must be an int, a slice or a list of ints, got {type(target).__name__}")
        target = _plain(target)
        if isinstance(target, bool | float | complex):
            raise YuzuError(f"target must be an int, a slice or a list of ints, got {type(target).__name__}")
        if isinstance(target, list) and not (
            target and all(isinstance(t, int | np.integer) and not isinstance(t, bool) for t in target)
        ):
            raise YuzuError(f"target must be a non-empty list of ints, got {shown(target)}")
        object.__setattr__(self, "target", target)

    def pick(self, tensor: torch.Tensor, axis: int) -> torch.Tensor:
        """``target`` on the axis of a tensor that is the output's first after the batch."""
        target = self.target
        if target is None:
            return tensor
        if tensor.dim() <= axis:
            raise YuzuError(f"target={shown(target)} does not exist: the output has no axis after the batch")
        size = tensor.shape[axis]
        if isinstance(target, slice):
            chosen = list(range(size))[target]
            if not chosen:
                raise YuzuError(f"target={shown(target)} selects nothing of an output of size {size}")
            index = torch.tensor(chosen, device=tensor.device)
            return tensor.index_select(axis, index)
        for t in [target] if isinstance(target, int | np.integer) else target:
            if not -size <= t < size:
                raise YuzuError(
                    f"target={shown(target)} does not exist: the output has size {size} on its first axis after the "
                    "batch"
                )
        if isinstance(target, int | np.integer):
            return tensor.select(axis, int(target))
        index = torch.tensor([int(t) % size for t in target], device=tensor.device)
        return tensor.index_select(axis, index)


def _plain(target: Any) -> Any:
    """A target without arrays: one without axes is an int, others and tuples are lists."""
    if isinstance(target, np.ndarray | torch.Tensor):
        return target.tolist()
    return [_plain(t) for t in target] if isinstance(target, list | tuple) else target


@dataclass(frozen=True, eq=False)
class Request:
    """A call that was checked.

    Attributes
    ----------
    X: torch.Tensor, shape=(n, C, L)
        On the CPU, in the model's dtype.
    states: sequence of tuples of torch.Tensor
        The model's inputs after the sequence, with ``n`` rows each: the same sequences may be scored with several.
    mutations: Mutations
    selection: Selection
    output: str
        ``"l2"``, ``"delta"`` or ``"prediction"``.
    batch_size: int or None
        Sequences carried at once, or mutants in one forward pass of a model that is run naively.
    device: torch.device
    verbose: bool
    as_numpy: bool
        Whether the sequences came as an array, as the results are to be.
    series: bool
        Differences may come from Taylor series in statistics. They are as exact as naive ISM's, but sums or
        differences of them may not be.
    """

    X: torch.Tensor
    states: Sequence[Args]
    mutations: Mutations
    device: torch.device
    selection: Selection = Selection()
    output: str = "l2"
    batch_size: int | None = None
    verbose: bool = False
    as_numpy: bool = False
    series: bool = True


@dataclass(frozen=True, eq=False)
class Arguments:
    """A call as the user made it, with several ``states`` of ``args``; see `yuzu_ism`."""

    X_0: Any
    states: Sequence[Any]
    output: Any = "l2"
    target: Any = None
    func: Any = None
    start: Any = 0
    end: Any = None
    ranges: Any = None
    replace_with: Any = None
    batch_size: Any = None
    device: Any = None
    verbose: bool = False

    def checked(self, dtype: torch.dtype, made_for: Kinds | None = None) -> Request:
        """The request, for a model of a dtype.

        Parameters
        ----------
        dtype: torch.dtype
        made_for: tuple or None
            The kinds of ``args`` that a given precomputation was made for.

        Raises
        ------
        YuzuError
            Naming the argument, what it is and what it should be.
        """
        X = check_sequences(self.X_0, dtype)
        states = [check_args(args, len(X), dtype, made_for) for args in self.states]
        output = check_output(self.output)
        edits = self.start, self.end, self.ranges, self.replace_with
        mutations = Mutations.asked(X.shape[1], X.shape[2], *edits)
        selection = Selection(self.func, self.target)
        batch_size = None if self.batch_size is None else check_count("batch_size", self.batch_size)
        device = check_device(self.device)
        as_numpy = isinstance(self.X_0, np.ndarray)
        return Request(X, states, mutations, device, selection, output, batch_size, self.verbose, as_numpy)
