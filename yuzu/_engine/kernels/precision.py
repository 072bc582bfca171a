"""Which arithmetic float32 products may use while a run lasts, whatever the caller has set."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from yuzu._engine.kernels import onednn as onednn_products


@contextlib.contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """No autocast; on CUDA TF32 for ``"high"`` and ``"medium"`` and none for ``"highest"``; on a CPU float32, since a
    run lowers what it lowers by itself. Put back afterwards.

    cuDNN uses TF32 for float32 convolutions unless told not to, and oneDNN multiplies in bfloat16, where it can, after
    ``torch.set_float32_matmul_precision("medium")``, so it has to be said. PyTorch has one setting for all threads: on
    a CPU the last run to end puts it back; on CUDA runs of different precision at the same time disturb each other.
    """
    setting = _on_cuda(precision != "highest") if device.type == "cuda" else _on_cpu.held()
    with torch.autocast(device.type, enabled=False), setting:
        yield


@contextlib.contextmanager
def _on_cuda(tf32: bool) -> Iterator[None]:
    try:
        matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    except RuntimeError:  # the caller set one of them by `fp32_precision`, and so they have to be read
        parts = [torch.backends.cuda.matmul, *(getattr(torch.backends.cudnn, name) for name in ("conv", "rnn"))]
        found = _set(parts, "tf32" if tf32 else "ieee")
        try:
            yield
        finally:
            _put_back(found)
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


class _Float32:
    """float32 products on a CPU, as long as anyone holds it."""

    def __init__(self) -> None:
        self._lock, self._holders = threading.Lock(), 0
        self._legacy = ""
        self._found: list[tuple[Any, str]] = []

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            if not self._holders:
                self._begin()
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    self._end()

    def _begin(self) -> None:
        parts = [getattr(torch.backends.mkldnn, name, None) for name in ("matmul", "conv", "rnn")]
        if all(hasattr(part, "fp32_precision") for part in parts):
            self._found = _set([part for part in parts if part.fp32_precision != "none"], "ieee")  # type: ignore[union-attr]
        elif torch.get_float32_matmul_precision() == "medium":  # before PyTorch 2.9
            self._legacy = "medium"
            torch.set_float32_matmul_precision("highest")

    def _end(self) -> None:
        _put_back(self._found)
        if self._legacy:
            torch.set_float32_matmul_precision(self._legacy)
        self._legacy, self._found = "", []


class _ByOneDNN(_Float32):
    """`onednn_products.SETTING`, where products are float32 all the same, as long as anyone holds it."""

    def _begin(self) -> None:
        if onednn_products.by_setting():
            self._found = _set([torch.backends.mkldnn.matmul], onednn_products.SETTING)  # type: ignore[attr-defined]


_on_cpu, _by_onednn = _Float32(), _ByOneDNN()


def fastest_products(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """While a plan's own operations run, and no model or function of the user's: PyTorch refuses to say what
    ``torch.get_float32_matmul_precision()`` is where the setting is held.
    """
    return _by_onednn.held() if device.type == "cpu" else contextlib.nullcontext()


def _set(parts: Sequence[Any], wanted: str) -> list[tuple[Any, str]]:
    """The parts whose setting was another one, and that."""
    found = [(part, part.fp32_precision) for part in parts if part.fp32_precision != wanted]
    for part, _ in found:
        part.fp32_precision = wanted
    return found


def _put_back(found: list[tuple[Any, str]]) -> None:
    for part, before in found:
        part.fp32_precision = "none"  # what is said for all parts at once holds for it again
        if part.fp32_precision != before:
            part.fp32_precision = before
