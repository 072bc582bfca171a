"""A function on every pairing of sequences with a model's other inputs, as tangermeme has it: the same regions in
hundreds of cell states.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from yuzu._engine.arrays import Array, Device
from yuzu._engine.checks import check_args, check_count, check_device, check_model, check_sequences, to_user
from yuzu._engine.progress import tqdm
from yuzu._engine.request import Arguments
from yuzu._engine.store.states import ism_of_states
from yuzu.errors import YuzuError
from yuzu.saturation_mutagenesis import Asked, saturation_mutagenesis, saturation_mutagenesis_of_states
from yuzu.yuzu_ism import yuzu_ism

States = list[tuple[torch.Tensor, ...]]


def _yuzu_ism(model: torch.nn.Module, X: Any, states: States, asked: dict[str, Any]) -> Any:
    precomputation = asked.pop("precomputation")
    return ism_of_states(model, precomputation, Arguments(X, states, **asked))


def _saturation_mutagenesis(model: torch.nn.Module, X: Any, states: States, asked: dict[str, Any]) -> Any:
    return saturation_mutagenesis_of_states(model, X, states, Asked(**asked))


__all__ = ["apply_pairwise", "apply_product"]

# functions that score the same sequences with many states at once
SHARING: list[tuple[Callable[..., Any], Callable[..., Any]]] = [
    (yuzu_ism, _yuzu_ism),
    (saturation_mutagenesis, _saturation_mutagenesis),
]


def apply_pairwise(
    func: Callable[..., Any],
    model: torch.nn.Module,
    X: Array,
    args: Sequence[Any],
    batch_size: int = 32,
    device: Device = None,
    additional_func_kwargs: dict[str, Any] | None = None,
    verbose: bool = False,
    **kwargs: Any,
) -> Array | Any:
    """Apply a function to every sequence with every row of the other inputs, which belong together row by row.

    With `yuzu.yuzu_ism` and `yuzu.saturation_mutagenesis` what does not depend on the other inputs is computed once for
    each sequence: where they join after the convolutions, that is nearly everything.

    Parameters
    ----------
    func: callable
        Called as ``func(model, X, args=..., batch_size=..., device=..., verbose=False, **kwargs)`` with up to
        ``batch_size`` pairs: `yuzu.yuzu_ism`, `yuzu.saturation_mutagenesis`, `yuzu.predict`, tangermeme's ``predict``,
        ``deep_lift_shap``, ``marginalize``. A ``functools.partial`` of the first two is known as theirs.
    model: torch.nn.Module
    X: torch.Tensor or numpy.ndarray, shape=(n, C, L)
        One-hot sequences.
    args: sequence of arrays, each of ``m`` rows
        The model's inputs after the sequence; row ``j`` of all of them is one state.
    batch_size: int
        Pairs handed to ``func`` at once; the functions that share pick their own. Default 32.
    device: str, torch.device or None
        Handed to ``func`` as a string. Default None: CUDA when available and the CPU otherwise.
    additional_func_kwargs: dict or None
        Further arguments of ``func``, also such as have a name of this function's own. Default None.
    verbose: bool
        Whether to show a progress bar. Default False.
    kwargs
        Further arguments of ``func``.

    Returns
    -------
    torch.Tensor (numpy.ndarray for a numpy ``X``), shape=(n, m, ...)
        The result of ``func`` for each pair; lists of them, nested as ``func`` and the model nest theirs.

    Raises
    ------
    ValueError
        For bad input, before any work.

    Examples
    --------
    >>> import torch, yuzu
    >>> class Cells(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.conv, self.head = torch.nn.Conv1d(4, 8, 5), torch.nn.Linear(11, 1)
    ...     def forward(self, x, cell):
    ...         return self.head(torch.cat([self.conv(x).amax(2), cell], dim=1))
    >>> X = torch.eye(4)[torch.randint(4, (2, 30))].transpose(1, 2)
    >>> yuzu.product.apply_pairwise(yuzu.yuzu_ism, Cells(), X, (torch.rand(5, 3),)).shape  # two sequences, five cells
    torch.Size([2, 5, 4, 30])
    """
    sequences, extra = _check(X, args)
    as_numpy = isinstance(X, np.ndarray)
    counts = [len(a) for a in extra]
    if len(set(counts)) > 1:
        raise YuzuError(
            f"args must all have the same number of rows, which belong together, got {counts}; apply_product "
            "pairs every row with every other"
        )
    pairs = _Pairs(sequences, extra, [torch.arange(counts[0])] * len(extra), counts[:1])
    asked = _Settings(batch_size, device, additional_func_kwargs or {}, verbose, kwargs)
    return _apply(func, model, pairs, asked, as_numpy)


def apply_product(
    func: Callable[..., Any],
    model: torch.nn.Module,
    X: Array,
    args: Sequence[Any],
    batch_size: int = 32,
    device: Device = None,
    additional_func_kwargs: dict[str, Any] | None = None,
    verbose: bool = False,
    **kwargs: Any,
) -> Array | Any:
    """Apply a function to every sequence with every row of every other input.

    The parameters are those of `apply_pairwise`, except that each of ``args`` may have its own number of rows.

    Returns
    -------
    torch.Tensor (numpy.ndarray for a numpy ``X``), shape=(n, len(args[0]), len(args[1]), ...)
        The result of ``func`` for each combination; lists of them, nested as ``func`` and the model nest theirs.

    Raises
    ------
    ValueError
        For bad input, before any work.

    Examples
    --------
    >>> import torch, yuzu
    >>> class Cells(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.conv, self.head = torch.nn.Conv1d(4, 8, 5), torch.nn.Linear(11, 1)
    ...     def forward(self, x, cell, dose):
    ...         return self.head(torch.cat([self.conv(x).amax(2), cell, dose], dim=1))
    >>> X = torch.eye(4)[torch.randint(4, (2, 30))].transpose(1, 2)
    >>> states = torch.rand(5, 2), torch.rand(3, 1)  # five cells, three doses
    >>> yuzu.product.apply_product(yuzu.yuzu_ism, Cells(), X, states).shape
    torch.Size([2, 5, 3, 4, 30])
    """
    sequences, extra = _check(X, args)
    as_numpy = isinstance(X, np.ndarray)
    counts = [len(a) for a in extra]
    states = [torch.from_numpy(rows) for rows in np.indices(counts).reshape(len(extra), -1)]
    asked = _Settings(batch_size, device, additional_func_kwargs or {}, verbose, kwargs)
    return _apply(func, model, _Pairs(sequences, extra, states, counts), asked, as_numpy)


def _check(X: Any, args: Any) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    sequences, extra = check_sequences(X, None, name="X", least_choices=1), check_args(args, None)
    if not extra:
        raise YuzuError("args must hold at least one input after the sequence, got none")
    return sequences, extra


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Sequences, and states of the other inputs: ``states`` holds for each of ``args`` its row in each state, of which
    there are the product of ``counts``.
    """

    X: torch.Tensor
    args: tuple[torch.Tensor, ...]
    states: list[torch.Tensor]
    counts: list[int]

    def inputs(self) -> States:
        """The other inputs of each state, with a row for each sequence."""
        rows = zip(*self.states, strict=True)
        states = [[a[r : r + 1] for a, r in zip(self.args, state, strict=True)] for state in rows]
        return [tuple(a.expand(len(self.X), *a.shape[1:]) for a in state) for state in states]


@dataclass(frozen=True, eq=False)
class _Settings:
    """How a function is to be applied, as the user said."""

    batch_size: Any
    device: Any
    additional: dict[str, Any]
    verbose: bool
    kwargs: dict[str, Any]


def _apply(func: Callable[..., Any], model: torch.nn.Module, pairs: _Pairs, asked: _Settings, as_numpy: bool) -> Any:
    if not callable(func):
        raise YuzuError(f"func must be callable, got {type(func).__name__}")
    check_model(model)
    batch_size = check_count("batch_size", asked.batch_size)
    device = str(check_device(asked.device))
    settings = {"batch_size": batch_size, "device": device, **asked.additional, **asked.kwargs}
    partial = isinstance(func, functools.partial) and not func.args
    known, preset = (func.func, func.keywords) if partial else (func, {})  # type: ignore[attr-defined]
    if {**preset, **settings}.get("return_timings"):
        raise YuzuError("return_timings is for single calls, not for products")
    sharing = next((f for own, f in SHARING if own is known), None)
    X = pairs.X
    if sharing is None:
        table = _pair_by_pair(func, model, pairs, batch_size, asked.verbose, settings)
        leaves, spec = table.leaves, table.spec
    else:
        if known is yuzu_ism and "batch_size" not in asked.additional:
            del settings["batch_size"]  # it counts pairs, that of yuzu_ism sequences
        given = inspect.signature(known).bind(model, X, **{"verbose": asked.verbose, **preset, **settings})
        given.apply_defaults()
        elsewhere = ("model", "X", "X_0", "args", "return_timings")
        arguments = {name: value for name, value in given.arguments.items() if name not in elsewhere}
        leaves, spec = pytree.tree_flatten(_lists(sharing(model, X, pairs.inputs(), arguments)))
    shaped = [v.reshape(len(X), *pairs.counts, *v.shape[2:]) if _is_array(v) else v for v in leaves]
    return pytree.tree_unflatten([to_user(v, as_numpy) if _is_array(v) else v for v in shaped], spec)


class _Table:
    """The results of a function for every sequence in every state, written as they come, so that they are held once."""

    def __init__(self, sequences: int, states: int) -> None:
        self.shape = (sequences, states)
        self.leaves: list[Any] = []
        self.spec: Any = None

    def write(self, found: Any, sequence: torch.Tensor, state: torch.Tensor) -> None:
        """Write the result of a call for some pairs, one row each. Of values that are no arrays the first stays."""
        leaves, spec = pytree.tree_flatten(_lists(found))
        if self.spec is None:
            self.spec = spec
            self.leaves = [
                torch.empty(*self.shape, *leaf.shape[1:], dtype=torch.as_tensor(leaf[:1]).dtype)
                if _is_array(leaf)
                else leaf
                for leaf in leaves
            ]
        for whole, leaf in zip(self.leaves, leaves, strict=True):
            if _is_array(leaf):
                whole[sequence, state] = torch.as_tensor(leaf).to(whole.device)


def _is_array(value: Any) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray)


def _pair_by_pair(
    func: Callable[..., Any],
    model: torch.nn.Module,
    pairs: _Pairs,
    batch_size: int,
    verbose: bool,
    settings: dict[str, Any],
) -> _Table:
    X, count = pairs.X, len(pairs.states[0])
    table, places = _Table(len(X), count), torch.arange(len(X) * count)
    with tqdm(total=len(places), disable=not verbose, unit="pair") as progress:
        for some in places.split(batch_size):
            sequence, state = some // count, some % count
            inputs = [a[rows[state].to(a.device)] for a, rows in zip(pairs.args, pairs.states, strict=True)]
            found = func(model, X[sequence.to(X.device)], args=inputs, **{"verbose": False, **settings})
            table.write(found, sequence, state)
            progress.update(len(some))
    return table


def _lists(value: Any) -> Any:
    """Tuples, named ones too, as lists: results of many calls are no longer what ``func`` returned."""
    if isinstance(value, tuple | list):
        return [_lists(v) for v in value]
    return {k: _lists(v) for k, v in value.items()} if isinstance(value, dict) else value


def __dir__() -> list[str]:
    return sorted(__all__)
