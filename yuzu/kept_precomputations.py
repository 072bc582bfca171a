"""What calls without a precomputation had made: kept for the next call with the same model, as long as it lives."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch

from yuzu._engine.model_copy import evaluation_copy, model_dtype, structure_key
from yuzu.bound import Bound
from yuzu.errors import YuzuError
from yuzu.inputs import Kinds, argument_kinds
from yuzu.naive_ism import try_model
from yuzu.precomputation import Args, Precomputation
from yuzu.precompute import precompute
from yuzu.scores import Selection

_kept: list[tuple[weakref.ref[torch.nn.Module], tuple[Any, ...], Precomputation]] = []
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
        return precomputation.bind(model, seq_len, n_choices, args, device)
    key = (seq_len, n_choices, str(model_dtype(model)), argument_kinds(args), device.type, structure_key(model))
    with _kept_lock:
        _kept[:] = [k for k in _kept if k[0]() is not None]
        made = next((p for reference, known, p in _kept if reference() is model and known == key), None)
    if made is None:
        output = try_model(evaluation_copy(model, device), X, args, device, "X_0")
        if selection is not None:
            with torch.no_grad():
                selection.check(selection.leaves(output), 1)
        made = precompute(model, seq_len, n_choices, args=args or None, device=device)
        with _kept_lock:
            _kept[:] = [k for k in _kept if not (k[0]() is model and k[1][0] == seq_len and k[1][3] == key[3])]
            _kept.append((weakref.ref(model), key, made))
    return made.bind(model, seq_len, n_choices, args, device)
