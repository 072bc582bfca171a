"""What calls without a precomputation had made: kept for the next call with the same model, as long as it lives."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from yuzu._engine.capture.model_copy import evaluation_copy, model_dtype
from yuzu._engine.capture.structure import structure_key
from yuzu._engine.handlers.contract import registered
from yuzu._engine.request import Kinds, argument_kinds
from yuzu._engine.run.bound import Bound
from yuzu._engine.run.scores import Selection
from yuzu._engine.store.precomputation import Args, OtherValues, Precomputation
from yuzu.errors import PrecomputationError, YuzuError
from yuzu.naive_ism import try_model
from yuzu.precompute import precompute

KEPT_OF_A_MODEL = 8  # each holds what it derives from the model's weights

# by the model's id, and by what it was made for: the model goes without what is kept for it
_kept: dict[tuple[int, tuple[Any, ...]], tuple[weakref.ref[torch.nn.Module], Precomputation]] = {}
_kept_lock = threading.Lock()


def inputs_of(precomputation: Any) -> Kinds | None:
    """The inputs after the sequence that a given precomputation was made for."""
    return precomputation.settings.args if isinstance(precomputation, Precomputation) else None


def obtain(
    model: torch.nn.Module,
    precomputation: Any,
    X: torch.Tensor,
    args: Args,
    device: torch.device,
    selection: Selection | None = None,
) -> Bound:
    """The given precomputation bound to the model, or one made now, or the one kept from the last call with
    the same model. Before one is made the model runs on the first sequence, to find what does not fit: the inputs, or
    outputs of which the ``selection`` cannot be scored.
    """
    n_choices, seq_len = X.shape[1:]
    if precomputation is not None:
        if not isinstance(precomputation, Precomputation):
            raise YuzuError(
                f"precomputation must be a Precomputation from yuzu.precompute, got {type(precomputation).__name__}"
            )
        return _bound(precomputation, model, X, args, device)
    made_for = (seq_len, n_choices, str(model_dtype(model)), argument_kinds(args), device)
    # a handler that was registered since then may run what went naively
    key = (made_for, structure_key(model), frozenset(registered().items()))
    _, made = _kept.get((id(model), key), (None, None))
    made = made or _fitting(model, key, seq_len, n_choices, args, device)
    if made is None:
        output = try_model(evaluation_copy(model, device), X, args, device, "X_0")
        if selection is not None:
            with torch.no_grad():
                selection.check(selection.leaves(output), 1)
        made = precompute(model, seq_len, n_choices, args=args or None, device=device)
        _keep(model, key, made)
    return _bound(made, model, X, args, device)


@dataclass(frozen=True)
class Part:
    """Sequences and, of several values of the other inputs, those with which a model decides in the same way."""

    bound: Bound
    rows: list[int]
    states: list[int]


def obtain_each(
    model: torch.nn.Module,
    precomputation: Any,
    X: torch.Tensor,
    states: Sequence[Args],
    device: torch.device,
    selection: Selection | None = None,
) -> list[Part]:
    """What `obtain` gives for each of the sequences with each of several ``states`` of the other inputs: mostly one for
    all of them, and several where the model's forward decides by those inputs.
    """
    bound = obtain(model, precomputation, X, states[0], device, selection)
    if not bound.branches.by_args:
        return [Part(bound, list(range(len(X))), list(range(len(states))))]
    pairs = [(s, row) for s in range(len(states)) for row in range(len(X))]
    found = []
    while pairs:
        fits = {pairs[0]} | {pair for pair in pairs[1:] if bound.fits(_row(states, pair))}
        rows_of_states: dict[tuple[int, ...], list[int]] = {}
        for s in dict.fromkeys(s for s, _ in pairs):
            rows_of_states.setdefault(tuple(row for row in range(len(X)) if (s, row) in fits), []).append(s)
        found += [Part(bound, list(rows), some) for rows, some in rows_of_states.items() if rows]
        pairs = [pair for pair in pairs if pair not in fits]
        if pairs:
            row = pairs[0][1]
            bound = obtain(model, precomputation, X[row : row + 1], _row(states, pairs[0]), device, selection)
    return found


def _row(states: Sequence[Args], pair: tuple[int, int]) -> Args:
    state, row = pair
    return tuple(a[row : row + 1] for a in states[state])


def _bound(made: Precomputation, model: torch.nn.Module, X: torch.Tensor, args: Args, device: torch.device) -> Bound:
    """A precomputation bound to the model; or another with the same settings, where the model decides by values that
    are others now, and so computes in another way.
    """
    s, (n_choices, seq_len) = made.settings, X.shape[1:]
    try:
        return made.bind(model, seq_len, n_choices, args, device)
    except OtherValues:
        named = {reason.partition(" is in terminal_layers")[0] for reason in made.decisions["naive"].values()}
        other = precompute(
            model,
            seq_len,
            n_choices,
            args=tuple(a[:1] for a in args) or None,
            alpha=s.alpha,
            threshold=s.threshold,
            conv=s.conv,
            precision=s.precision,
            terminal_layers=tuple({type(m) for m in model.modules() if type(m).__name__ in named}),
            max_memory=s.max_memory,
            device=device,
            random_state=s.random_state,
        )
        made.add(other)
        return other.bind(model, seq_len, n_choices, args, device)


def _fitting(
    model: torch.nn.Module, key: tuple[Any, ...], seq_len: int, n_choices: int, args: Args, device: torch.device
) -> Precomputation | None:
    """What was made for the same before something in the model changed, if it computes in the same way as before: a
    model may count its calls.
    """
    for (of_model, known), (_, made) in list(_kept.items()):
        if of_model == id(model) and (known[0], known[2]) == (key[0], key[2]):
            try:
                made.bind(model, seq_len, n_choices, args, device)
            except OtherValues:
                pass  # another is made beside it
            except PrecomputationError:
                return None
            _keep(model, key, made)
            return made
    return None


def _keep(model: torch.nn.Module, key: tuple[Any, ...], made: Precomputation) -> None:
    """In the place of one that was made for the same before the model changed, and of the oldest of too many."""
    with _kept_lock:
        of_model = [k for k in list(_kept) if k[0] == id(model)]
        outdated = [k for k in of_model if k[1][0] == key[0]]
        too_many = max(len(of_model) - KEPT_OF_A_MODEL + 1, 0)
        for k in outdated or of_model[:too_many]:
            _kept.pop(k, None)
        _kept[id(model), key] = weakref.ref(model, functools.partial(_forget, id(model))), made


def _forget(of_model: int, _: weakref.ref[torch.nn.Module]) -> None:
    """Without the lock, which whoever holds may be collecting garbage; each step is one that no other thread splits."""
    for key in [k for k in list(_kept) if k[0] == of_model]:
        _kept.pop(key, None)
