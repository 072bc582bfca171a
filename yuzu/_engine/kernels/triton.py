"""Triton, if it is installed, and the devices that can run its kernels."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch

from yuzu._engine.context import Context

try:
    import triton
    import triton.language as tl
except ImportError:  # not installed, as with PyTorch for CPUs
    triton = tl = None

OLDEST = (8, 0)  # compute capability from which on GPUs have products of bfloat16 and TF32
LEAST_SHARED_MEMORY = 48 << 10  # bytes that every such GPU has
FUSED, POOL_KERNEL = KERNEL_WAYS = ("fused", "kernel")  # the ways of convolutions and pools that run Yuzu's own kernels
SPARE_SHARED_MEMORY = 2 << 10  # bytes that a program needs beside its operands


class KernelError(RuntimeError):
    """Triton or the driver cannot run a kernel on this device."""


@contextlib.contextmanager
def launching(tensor: torch.Tensor) -> Iterator[None]:
    """A context in which a kernel is launched on the device of a tensor.

    Raises
    ------
    KernelError
        For any error of Triton, its compiler or the driver.
    """
    try:
        with torch.cuda.device_of(tensor):
            yield
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise KernelError(f"Triton fails: {type(error).__name__}: {first}") from error


def why_not(device: torch.device) -> str | None:
    """The reason why kernels cannot run on a device; None if they can. On a CPU they run if Triton's interpreter is
    switched on, for tests.
    """
    if triton is None:
        return "Triton is not installed"
    interpreted = bool(triton.knobs.runtime.interpret) if hasattr(triton, "knobs") else False
    if device.type == "cpu" and not interpreted:
        return "a CPU runs no Triton kernels"
    return _failure(device) if device.type in ("cpu", "cuda") else f"{device.type} runs no Triton kernels here"


def may_run(run: Context, node: int) -> bool:
    """Tell whether a kernel may compute the change of a node: it is float32, and the device and the plan allow it."""
    if not run.plan.kernels or run.plan.kernels_failed.is_set():
        return False
    return run.value(node).dtype == torch.float32 and why_not(run.device) is None


@functools.lru_cache(maxsize=16)
def _failure(device: torch.device) -> str | None:
    """The reason why a small kernel fails, such as a GPU that is too old, or no C compiler for Triton's launcher."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < OLDEST:
        return f"{torch.cuda.get_device_name(device)} is too old for the kernels"
    x = torch.arange(16.0, device=device)
    result = torch.empty_like(x)
    try:
        with launching(x):
            doubled[(1,)](x, result, NUMBERS=16)
    except KernelError as error:
        return str(error)
    return None if torch.equal(result, 2 * x) else "Triton computes wrong numbers here"


@functools.lru_cache(maxsize=16)
def shared_memory(device: torch.device) -> int:
    """The bytes of shared memory of one of the device's processors that programs can use for their operands."""
    if device.type != "cuda":
        return 1 << 30
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", LEAST_SHARED_MEMORY) - SPARE_SHARED_MEMORY


if triton is not None:

    @triton.jit
    def doubled(x, result, NUMBERS: tl.constexpr):
        places = tl.arange(0, NUMBERS)
        tl.store(result + places, 2 * tl.load(x + places))
