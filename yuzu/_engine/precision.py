"""Which arithmetic float32 products may use while a run lasts, whatever the caller has set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch


@contextlib.contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """No autocast; on CUDA TF32 for ``"high"`` and ``"medium"`` and none for ``"highest"``; on a CPU float32, since a
    run lowers what it lowers by itself. Put back afterwards.

    cuDNN uses TF32 for float32 convolutions unless told not to, and oneDNN multiplies in bfloat16, where it can, after
    ``torch.set_float32_matmul_precision("medium")``, so it has to be said.
    """
    setting = _on_cuda(precision != "highest") if device.type == "cuda" else _on_cpu()
    with torch.autocast(device.type, enabled=False), setting:
        yield


@contextlib.contextmanager
def _on_cuda(tf32: bool) -> Iterator[None]:
    try:
        matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    except RuntimeError:  # the caller set one of them by `fp32_precision`, and so they have to be read
        parts = [torch.backends.cuda.matmul, *(getattr(torch.backends.cudnn, name) for name in ("conv", "rnn"))]
        with _fp32_precision(parts, "tf32" if tf32 else "ieee"):
            yield
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


@contextlib.contextmanager
def _on_cpu() -> Iterator[None]:
    parts = [getattr(torch.backends.mkldnn, name, None) for name in ("matmul", "conv", "rnn")]
    if all(hasattr(part, "fp32_precision") for part in parts):
        with _fp32_precision([part for part in parts if part.fp32_precision != "none"], "ieee"):  # type: ignore[union-attr]
            yield
        return
    before = torch.get_float32_matmul_precision()  # before PyTorch 2.9
    try:
        if before == "medium":
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        if before == "medium":
            torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def _fp32_precision(parts: Sequence[Any], wanted: str) -> Iterator[None]:
    found = [(part, part.fp32_precision) for part in parts if part.fp32_precision != wanted]
    try:
        for part, _ in found:
            part.fp32_precision = wanted
        yield
    finally:
        for part, before in found:
            part.fp32_precision = "none"  # what is said for all parts at once holds for it again
            if part.fp32_precision != before:
                part.fp32_precision = before
