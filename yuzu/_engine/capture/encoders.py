"""Makes PyTorch's own transformer encoders and decoders traceable, so that a trace computes the same as a run.

Without gradients ``nn.TransformerEncoder`` packs rows that are padded at their end into nested tensors, and returns
zeros at padded positions; while it is traced it does not. Given a mask without ``is_causal``, it checks whether the
mask is causal, to choose a faster kernel for the same numbers. Such a check of values cannot be traced.
"""

from __future__ import annotations

import inspect
import types
from typing import Any

import torch
from torch import nn

_DECODE = inspect.signature(nn.TransformerDecoder.forward)


def make_traceable(model: nn.Module) -> None:
    """Let the encoders and decoders of a copy of a model compute without reading values. Those with a ``forward`` of
    their own are left alone.
    """
    for module in model.modules():
        if "forward" in module.__dict__:
            continue
        forward = getattr(type(module), "forward", None)  # scripted modules have none that can be read
        if forward is nn.TransformerEncoder.forward:
            module.__dict__["forward"] = types.MethodType(_encode, module)
        elif forward is nn.TransformerDecoder.forward:
            module.__dict__["forward"] = types.MethodType(_decode, module)


def _encode(
    self: nn.TransformerEncoder,
    src: torch.Tensor,
    mask: torch.Tensor | None = None,
    src_key_padding_mask: torch.Tensor | None = None,
    is_causal: bool | None = None,
) -> torch.Tensor:
    padding = src_key_padding_mask
    if padding is None or not _packs(self, src, mask):
        return nn.TransformerEncoder.forward(self, src, mask, padding, bool(is_causal))
    output = src
    for layer in self.layers:
        output = layer(output, src_key_padding_mask=padding)
    read = padding.logical_not()
    # each row decides for itself, although PyTorch packs rows only if all of a batch are padded at the end
    at_the_end = (read[:, 1:] & padding[:, :-1].ne(0)).any(1, keepdim=True).logical_not()
    output = output.masked_fill((at_the_end & read.logical_not()).unsqueeze(2), 0.0)
    return output if self.norm is None else self.norm(output)


def _packs(self: nn.TransformerEncoder, src: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Return whether an encoder packs its rows if they are padded at their end, and nowhere else."""
    return (
        getattr(self, "use_nested_tensor", False)
        and getattr(self, "mask_check", True)
        and torch.backends.mha.get_fastpath_enabled()
        and mask is None
        and src.dim() == 3
    )


def _decode(self: nn.TransformerDecoder, *args: Any, **kwargs: Any) -> torch.Tensor:
    given = _DECODE.bind(self, *args, **kwargs).arguments
    given["tgt_is_causal"] = bool(given.get("tgt_is_causal"))
    return nn.TransformerDecoder.forward(**given)


__all__ = ["make_traceable"]
