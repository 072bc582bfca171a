"""What calls without a precomputation had made: kept for the next call with the same model, as long as it lives."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch

from yuzu._engine.model_copy import model_dtype, structure_key
from yuzu.bound import Bound
from yuzu.errors import YuzuError
from yuzu.inputs import argument_kinds
from yuzu.precomputation import Args, Precomputation
from yuzu.precompute import precompute

_kept: list[tuple[weakref.ref[torch.nn.Module], tuple[Any, ...], Precomputation]] = []
_kept_lock = threading.Lock()


def obtain(
    model: torch.nn.Module,
    precomputation: Any,
    seq_len: int,
    n_choices: int,
    args: Args,
    device: torch.device,
) -> Bound:
    """The given precomputation bound to the model, or one made now, or the one kept from the last call with
    the same model.
    """
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
        made = precompute(model, seq_len, n_choices, args=args or None, device=device)
        with _kept_lock:
            _kept[:] = [k for k in _kept if not (k[0]() is model and k[1][0] == seq_len and k[1][3] == key[3])]
            _kept.append((weakref.ref(model), key, made))
    return made.bind(model, seq_len, n_choices, args, device)
