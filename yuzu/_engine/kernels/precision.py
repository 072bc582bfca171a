"""The arithmetic of float32 products during a run, whatever the caller has set."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from yuzu._engine.kernels import onednn as onednn_products


@contextlib.contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """A context with the arithmetic of a precision; it restores the caller's settings. There is no autocast. On CUDA
    products use TF32 for ``"high"`` and ``"medium"``, but not for ``"highest"``. On a CPU they are float32, since a run
    converts its operands to bfloat16 by itself.

    cuDNN and oneDNN must be told. cuDNN uses TF32 for float32 convolutions unless told not to. oneDNN multiplies in
    bfloat16, where it can, after ``torch.set_float32_matmul_precision("medium")``. PyTorch has one setting for all
    threads: on a CPU the last run to end restores it; on CUDA simultaneous runs of different precision disturb each
    other.
    """
    setting = _on_cuda(precision != "highest") if device.type == "cuda" else _on_cpu.held()
    with torch.autocast(device.type, enabled=False), setting:
        yield


@contextlib.contextmanager
def _on_cuda(tf32: bool) -> Iterator[None]:
    try:
        matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    except RuntimeError:  # the caller set one by `fp32_precision`; PyTorch then refuses to read `allow_tf32`
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
    """float32 products on a CPU, as long as any run holds this."""

    def __init__(self) -> None:
        self._lock, self._holders, self._suspensions = threading.Lock(), 0, 0
        self._legacy = ""
        self._found: list[tuple[Any, str]] = []

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            if not self._holders and not self._suspensions:
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
    """`onednn_products.SETTING`, if products stay float32 with it, as long as any run holds this."""

    def _begin(self) -> None:
        if onednn_products.by_setting():
            self._found = _set([torch.backends.mkldnn.matmul], onednn_products.SETTING)  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """A context with PyTorch's own products, for all threads."""
        with self._lock:
            if not self._suspensions:
                self._end()
            self._suspensions += 1
        try:
            yield
        finally:
            with self._lock:
                self._suspensions -= 1
                if self._holders and not self._suspensions:
                    self._begin()


_on_cpu, _by_onednn = _Float32(), _ByOneDNN()


def fastest_products(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """A context with the fastest float32 products, for a plan's own operations only. While the setting is held, PyTorch
    refuses ``torch.get_float32_matmul_precision()``, which a model or function of the user may call.
    """
    return _by_onednn.held() if device.type == "cpu" else contextlib.nullcontext()


def small_products(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """A context for an operation that makes many small products inside, such as attention over few positions: a call of
    oneDNN costs more than each of them. It takes effect within `fastest_products`.
    """
    return _by_onednn.suspended() if device.type == "cpu" else contextlib.nullcontext()


def _set(parts: Sequence[Any], wanted: str) -> list[tuple[Any, str]]:
    """Set all parts to ``wanted``. Returns the parts that had another setting, and that setting."""
    found = [(part, part.fp32_precision) for part in parts if part.fp32_precision != wanted]
    for part, _ in found:
        part.fp32_precision = wanted
    return found


def _put_back(found: list[tuple[Any, str]]) -> None:
    for part, before in found:
        part.fp32_precision = "none"  # it follows the setting for all parts again
        if part.fp32_precision != before:
            part.fp32_precision = before
