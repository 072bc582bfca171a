"""Keeps the capture of a model apart from running models in other threads.

While ``torch.export`` traces, it replaces ``torch.nn.Module.__call__`` for the whole process and keeps global state. A
model that another thread runs meanwhile would end up in the trace. It also switches oneDNN off, so products would come
from other kernels, which are slower and round differently. Any number of threads may run models and plans at the same
time. Only one thread may trace, and nothing else runs then.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

_condition = threading.Condition()
_running: dict[int, int] = {}  # the number of times that each thread is inside `running`
_tracing: list[int] = []  # the thread that traces, once for each time that it entered
_waiting: list[int] = []  # threads that wait to trace; no other thread may start to run, or they might wait for ever


@contextlib.contextmanager
def running() -> Iterator[None]:
    """A context in which a model or a plan may run."""
    me = threading.get_ident()
    with _condition:
        _condition.wait_for(lambda: me in _running or (_tracing[0] == me if _tracing else not _waiting))
        _running[me] = _running.get(me, 0) + 1
    try:
        yield
    finally:
        with _condition:
            _running[me] -= 1
            if not _running[me]:
                del _running[me]
            _condition.notify_all()


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """A context in which a model may be captured."""
    me = threading.get_ident()
    with _condition:
        _waiting.append(me)
        try:
            _condition.wait_for(lambda: all(t == me for t in _running) and (not _tracing or _tracing[0] == me))
            _tracing.append(me)
        finally:
            _waiting.remove(me)
            _condition.notify_all()
    try:
        yield
    finally:
        with _condition:
            _tracing.pop()
            _condition.notify_all()
