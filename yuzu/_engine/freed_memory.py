"""Bounds the freed memory that the C library keeps: enough to be fast, and no more than a call may use.

A chunk's large tensors are freed, and allocated again for the next chunk. Small allocations that stay lie between them:
remembered windows, and the kernels that oneDNN prepares and keeps for up to a thousand shapes. A gap between two of
these only fits tensors of its size or less. So a run whose windows have many widths leaves more and more gaps: hundreds
of MB that nobody uses and that do not go back to the system.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

EVERY = 0.005  # seconds between two looks at the memory of the process; a look takes some microseconds
GROWTH_PART = 8  # an eighth of a call's allowed bytes is reserved for growth between two looks
SLACK_PART = 32  # by which chunks that need the same may differ
LEFT_BEHIND = 2  # half of a call's allowed bytes may stay with the process afterwards, freed but kept


def keep_freed_memory() -> None:
    """Make the C library keep the memory that chunks free for the next chunk, where that is possible.

    By default glibc returns blocks of some MB to the system and gets them anew, page by page, which takes longer than
    the computation in them. Freeing one block of just under 32 MiB raises both of glibc's thresholds to their maximum,
    for the whole process and for good. From then on all freed blocks of less than 32 MiB are kept for later ones, the
    user's own included, and at most 64 MiB at the end of the heap. `bounded` returns them in time.
    """
    np.empty((32 << 20) - (1 << 16), dtype=np.uint8)


@contextlib.contextmanager
def bounded(allowed: int | None) -> Iterator[None]:
    """A context that bounds the memory of a call to ``allowed`` bytes; None for no bound.

    In it, `give_back` returns freed memory to the system once the process has grown by nearly that much. The end of a
    call does so, too, if it and the calls before it have left much behind. If the C library has no such function,
    nothing happens.
    """
    outer, begin = getattr(_here, "bound", None), resident()
    _here.bound = None if allowed is None or _trim is None or begin is None else _Bound(begin, allowed)
    try:
        yield
    finally:
        if _here.bound is not None:
            _here.bound.end()
        _here.bound = outer


def give_back() -> None:
    """Return freed memory if the call at hand, if there is one, holds too much. Called between chunks; it costs almost
    nothing if the last look was recent.
    """
    bound: _Bound | None = getattr(_here, "bound", None)
    if bound is not None and time.perf_counter() >= bound.next_look:
        bound.look()


def count_from_here() -> None:
    """Do not count the memory that the process holds now against the call at hand."""
    bound: _Bound | None = getattr(_here, "bound", None)
    begin = resident()
    if bound is not None and begin is not None:
        _here.bound = _Bound(begin, bound.allowed)


def allow(result: int) -> None:
    """Allow the call at hand the bytes of its ``result`` in addition."""
    bound: _Bound | None = getattr(_here, "bound", None)
    if bound is not None:
        bound.result += result
        bound.most += result


def resident() -> int | None:
    """The bytes that the process holds; None if the system does not tell."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return None


class _Bound:
    def __init__(self, begin: int, allowed: int) -> None:
        self.begin, self.allowed, self.result = begin, allowed, 0
        self.most = begin + allowed - allowed // GROWTH_PART
        self.trimmed = False  # at the last look
        self.next_look = time.perf_counter() + EVERY

    def look(self) -> None:
        held = resident()
        if held is None or held <= self.most:
            self.trimmed = False
        elif self.trimmed:
            # one chunk takes it all again, or others' data does: trimming again and again would free nothing for long
            self.most, self.trimmed = held + self.allowed // SLACK_PART, False
        else:
            _given_back()
            self.trimmed = True
        self.next_look = time.perf_counter() + EVERY

    def end(self) -> None:
        held = resident()
        if held is None:
            return
        with _lock:
            _left[0] = max(_left[0] + held - self.begin - self.result, 0)
            much = _left[0] > self.allowed // LEFT_BEHIND
            if much:
                _left[0] = 0
        if much:
            _given_back()


def _given_back() -> None:
    """Return all free pages to the system."""
    assert _trim is not None
    _trim(0)


def _find_trim() -> Callable[[int], int] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    found: Callable[[int], int] = trim
    return found


_trim = _find_trim()
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_here = threading.local()  # holds the bound of the call that a thread is in
_lock = threading.Lock()
_left = [0]  # bytes by which calls have enlarged the process since memory last went back to the system
