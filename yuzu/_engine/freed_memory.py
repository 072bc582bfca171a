"""What the C library keeps of freed memory: enough to be fast, and no more than a call may use.

A chunk's large tensors are freed and made again for the next chunk. Small things that stay lie between them: windows
that are remembered, and kernels that oneDNN prepares for every new shape and keeps, a thousand of them. A hole between
two such things serves tensors of its size or less, so a run whose windows have many widths leaves more and more holes:
hundreds of MB that nobody uses and the system does not get back.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

EVERY = 0.02  # seconds between two looks at what the process holds: a look takes some microseconds
GROWTH_PART = 8  # the part of what a call may use that is left for one chunk's growth between two looks
LEFT_BEHIND = 2  # and the part of it that calls may leave behind, freed but kept, for the next ones


def keep_freed_memory() -> None:
    """Have the C library keep what chunks free for the next chunk, as far as it can be told to.

    By itself glibc hands blocks of some MB back to the system and gets them anew, page by page, which takes longer than
    what is done with them. Freeing one block of just under 32 MiB raises both of its limits to their most, in the whole
    process and for good: from then on all that the process frees in blocks of less than 32 MiB is kept for its next
    ones, the user's own included, and at most 64 MiB at the end of the heap. `bounded` hands it back in time.
    """
    np.empty((32 << 20) - (1 << 16), dtype=np.uint8)


@contextlib.contextmanager
def bounded(allowed: int | None) -> Iterator[None]:
    """A call that may use so many bytes; None where nobody counts. While it lasts, `give_back` hands freed memory to
    the system where the process has grown by nearly as much, and so does the end of a call that leaves much behind,
    with those before it. Nothing is done where the C library cannot be told to.
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
    """Look whether the call at hand, if there is one, holds too much. To be called between chunks: it costs nothing
    where the last look was just now.
    """
    bound: _Bound | None = getattr(_here, "bound", None)
    if bound is not None and time.perf_counter() >= bound.next_look:
        bound.look()


def count_from_here() -> None:
    """All that the process holds now is no part of what the call at hand may use."""
    bound: _Bound | None = getattr(_here, "bound", None)
    begin = resident()
    if bound is not None and begin is not None:
        _here.bound = _Bound(begin, bound.allowed)


def allow(result: int) -> None:
    """The call at hand returns so many bytes, beside what it may use."""
    bound: _Bound | None = getattr(_here, "bound", None)
    if bound is not None:
        bound.result += result
        bound.most += result


def resident() -> int | None:
    """Bytes that the process holds; None where the system does not say."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return None


class _Bound:
    def __init__(self, begin: int, allowed: int) -> None:
        self.begin, self.allowed, self.result = begin, allowed, 0
        self.most = begin + allowed - allowed // GROWTH_PART
        self.next_look = time.perf_counter() + EVERY

    def look(self) -> None:
        held = resident()
        if held is not None and held > self.most:
            kept = _given_back()
            if kept > self.begin + self.result + self.allowed // 2:
                # something else has grown, the user's own data perhaps: to ask for it again and again gives nothing
                self.most = held + self.allowed // GROWTH_PART
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


def _given_back() -> int:
    """Bytes that the process holds when all whole pages that are free have gone back to the system."""
    assert _trim is not None
    _trim(0)
    return resident() or 0


def _find_trim() -> Callable[[int], int] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # of another C library, or system
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    found: Callable[[int], int] = trim
    return found


_trim = _find_trim()
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_here = threading.local()  # the bound of the call that a thread is in
_lock = threading.Lock()
_left = [0]  # bytes by which calls have left the process larger since the system got some back
