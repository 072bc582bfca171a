"""The seconds of a call, measured such that later calls take as long."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable

import torch

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

from yuzu._engine.freed_memory import give_back

MANY_PAGES = 500  # new pages of 4 kB that a run got from the system: the next may need fewer, and be faster
WAY_REPEATS, SHORT_TRIAL = 3, 0.006  # repeats of a way's call, and the seconds after which two are enough
LONG_CALL = 0.03  # seconds of a way's call after which one is enough
# seconds of setup in a way's first call: it lays out weights, and prepares kernels, or loads them to a GPU
SETUP_SECONDS = {"cpu": 0.2, "cuda": 2.0}
LONGEST_SETTLING = 0.1  # seconds of calls that are not counted because they asked for new memory, at most


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Measure the seconds of a call, without Python's garbage collection, which takes tenths of a second after a model
    was captured.
    """
    give_back()
    collects = gc.isenabled()
    gc.disable()
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin
    finally:
        if collects:
            gc.enable()


def least_seconds(function: Callable[[], object], device: torch.device, best: float) -> float:
    """The least seconds of some calls after one to set up. There are fewer calls if the function plainly does not beat
    ``best``, or if a call takes long.

    A call that had to ask the system for memory tells nothing about the next, which reuses that memory.
    """
    try:
        if seconds_of(function, device) > 2 * best + SETUP_SECONDS.get(device.type, 0.2):
            return math.inf
    except torch.OutOfMemoryError:  # on a GPU: a way whose tensors do not fit with so many sites is not chosen for them
        return math.inf
    least, spent, settling, counted = math.inf, 0.0, 0.0, 0
    while counted < WAY_REPEATS:
        pages = new_pages()
        now = seconds_of(function, device)
        least = min(least, now)
        if new_pages() - pages > MANY_PAGES and settling < LONGEST_SETTLING:
            settling += now
            continue
        spent += now
        if least > (1.3 if counted else 2.0) * best or spent > (SHORT_TRIAL if counted else LONG_CALL):
            break
        counted += 1
    return least


def new_pages() -> int:
    """The number of memory pages that the process has got from the system so far; 0 if the system does not tell."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_minflt
