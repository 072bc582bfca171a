"""Seconds of a call, as the next ones will take."""

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

MANY_PAGES = 500  # of 4 kB, that a run got anew: the next may need fewer, and be faster
WAY_REPEATS, SHORT_TRIAL = 3, 0.006  # of a way's call, and the seconds after which two are enough
LONG_CALL = 0.03  # seconds of a way's call after which one is enough
# that a way's first call may take beside the work: it lays out weights, and has kernels prepared, or loaded to a GPU
SETUP_SECONDS = {"cpu": 0.2, "cuda": 2.0}
LONGEST_SETTLING = 0.1  # of such calls until they ask for no more memory


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Of a call, without Python's garbage collection: that takes tenths of a second where a model was just captured."""
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
    """The least of some times after a call to set up; fewer when it will plainly not beat ``best``, or takes long.

    A call that had to ask the system for memory says nothing of the next, which finds it at hand.
    """
    try:
        if seconds_of(function, device) > 2 * best + SETUP_SECONDS.get(device.type, 0.2):
            return math.inf
    except torch.OutOfMemoryError:  # of a GPU: a way that does not fit with so many sites is not chosen for them
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
    """How many pages of memory the process has got from the system so far; 0 where the system does not say."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_minflt
