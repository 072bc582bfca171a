"""A precomputation for a call: the one that was given, the one kept from an earlier call, or one made now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from yuzu._engine.capture.model_copy import evaluation_copy, model_dtype
from yuzu._engine.capture.structure import structure_key
from yuzu._engine.checks import Kinds, argument_kinds
from yuzu._engine.handlers.registry import registered
from yuzu._engine.kept import Kept
from yuzu._engine.request import Args, Request
from yuzu._engine.run.naive import try_model
from yuzu._engine.run.scores import Outputs
from yuzu._engine.settings import Settings, Wanted, memory_for
from yuzu._engine.store.in_use import InUse
from yuzu._engine.store.making import make
from yuzu._engine.store.precomputation import OtherValues, Precomputation
from yuzu.errors import PrecomputationError, YuzuError

KEPT_OF_A_MODEL = 8  # each holds tensors that are derived from the model's weights

# a precomputation is made for the shapes and the device, and for what the model and the handlers are like
Key = tuple[tuple[Any, ...], str, frozenset[Any]]
kept_of_models: Kept[int, Kept[Key, Precomputation]] = Kept()  # by the model's id, as long as the model lives


def inputs_of(precomputation: Any) -> Kinds | None:
    """The inputs after the sequence that a given precomputation was made for."""
    return precomputation.settings.args if isinstance(precomputation, Precomputation) else None


def obtain(model: torch.nn.Module, precomputation: Any, request: Request, scored: bool = True) -> InUse:
    """The given precomputation in use with the model, or one made now, or the one kept from the last call with the same
    model, for the request's first state.

    Before one is made the model runs on the first sequence, to find inputs that do not fit, and outputs that cannot be
    scored (if they are to be ``scored`` as the request says).
    """
    X, args, device = request.X, request.states[0], request.device
    n_choices, seq_len = X.shape[1:]
    if precomputation is not None:
        if not isinstance(precomputation, Precomputation):
            raise YuzuError(
                f"precomputation must be a Precomputation from yuzu.precompute, got {type(precomputation).__name__}"
            )
        return _put_to_use(precomputation, model, request)
    key, made = _known(model, request)
    made = made or _fitting(model, key, request)
    if made is None:
        output, outputs = try_model(evaluation_copy(model, device), X, args, device, "X_0"), Outputs(request.selection)
        if scored:
            with torch.no_grad():
                outputs.check(outputs.leaves(output), 1)
        del output, outputs
        dtype, kinds = str(model_dtype(model)), argument_kinds(args)
        settings = Settings(seq_len, n_choices, dtype, kinds, device.type, memory_for(model, device))
        made = make(model, Wanted(settings, tuple(a[:1] for a in args), device))
        _keep(model, key, made)
    return _put_to_use(made, model, request)


def lend(lender: torch.nn.Module, model: torch.nn.Module, request: Request) -> None:
    """Keep one model's precomputation for another, too, if that has none, and is of the same architecture."""
    made, (key, own) = _known(lender, request)[1], _known(model, request)
    if made is None or own is not None:
        return
    try:
        _bind(made, model, request)
    except PrecomputationError:  # it gets its own when it is used
        return
    _keep(model, key, made)


def _known(model: torch.nn.Module, request: Request) -> tuple[Key, Precomputation | None]:
    """The key of a model's precomputation for a request, and the one that is kept."""
    n_choices, seq_len = request.X.shape[1:]
    shapes = seq_len, n_choices, str(model_dtype(model)), argument_kinds(request.states[0]), request.device
    # a handler that was registered since then may run what went naively
    key = shapes, structure_key(model), frozenset(registered().items())
    kept = kept_of_models.get(id(model))
    return key, None if kept is None else kept.get(key)


@dataclass(frozen=True)
class Part:
    """Sequences, and states of the other inputs, with which a model decides in the same way."""

    used: InUse
    rows: list[int]
    states: list[int]


def obtain_each(model: torch.nn.Module, precomputation: Any, request: Request, scored: bool = True) -> list[Part]:
    """`obtain` for each of the sequences with each state of the other inputs: mostly one for all of them, and several
    where the model's forward decides by those inputs.
    """
    states, n = request.states, len(request.X)
    used = obtain(model, precomputation, request, scored)
    if not used.branches.by_args:
        return [Part(used, list(range(n)), list(range(len(states))))]
    pairs = [(s, row) for s in range(len(states)) for row in range(n)]
    found = []
    while pairs:
        fits = {pairs[0]} | {pair for pair in pairs[1:] if used.fits(_row(states, pair))}
        rows_of_states: dict[tuple[int, ...], list[int]] = {}
        for s in dict.fromkeys(s for s, _ in pairs):
            rows_of_states.setdefault(tuple(row for row in range(n) if (s, row) in fits), []).append(s)
        found += [Part(used, list(rows), some) for rows, some in rows_of_states.items() if rows]
        pairs = [pair for pair in pairs if pair not in fits]
        if pairs:
            row = pairs[0][1]
            one = replace(request, X=request.X[row : row + 1], states=[_row(states, pairs[0])])
            used = obtain(model, precomputation, one, scored)
    return found


def _row(states: Sequence[Args], pair: tuple[int, int]) -> Args:
    state, row = pair
    return tuple(a[row : row + 1] for a in states[state])


def _put_to_use(made: Precomputation, model: torch.nn.Module, request: Request) -> InUse:
    """A precomputation in use with the model; or another with the same settings, where the model decides by values that
    are others now, and so computes in another way.
    """
    try:
        return _bind(made, model, request)
    except OtherValues:
        named = {reason.partition(" is in terminal_layers")[0] for reason in made.decisions.naive.values()}
        terminal = tuple({type(m) for m in model.modules() if type(m).__name__ in named})
        settings = replace(made.settings, device=request.device.type)
        args = tuple(a[:1] for a in request.states[0])
        asked = settings.max_memory
        other = make(model, Wanted(settings, args, request.device, terminal, asked_memory=asked))
        made.add(other)
        return _bind(other, model, request)


def _bind(made: Precomputation, model: torch.nn.Module, request: Request) -> InUse:
    n_choices, seq_len = request.X.shape[1:]
    return made.bind(model, seq_len, n_choices, request.states[0], request.device)


def _fitting(model: torch.nn.Module, key: Key, request: Request) -> Precomputation | None:
    """The precomputation that was made for the same before something in the model changed, if the model computes in the
    same way as before: it may count its calls.
    """
    kept = kept_of_models.get(id(model))
    for known in [] if kept is None else kept.keys():
        made = kept.get(known) if kept is not None else None
        if made is not None and (known[0], known[2]) == (key[0], key[2]):
            try:
                _bind(made, model, request)
            except OtherValues:
                pass  # another is made beside it
            except PrecomputationError:
                return None
            _keep(model, key, made)
            return made
    return None


def _keep(model: torch.nn.Module, key: Key, made: Precomputation) -> None:
    """In the place of one that was made for the same before the model changed."""
    kept = kept_of_models.made(id(model), lambda: Kept(KEPT_OF_A_MODEL), owner=model)
    kept.forget(lambda known: known[0] == key[0])
    kept.put(key, made)
