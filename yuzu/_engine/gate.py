"""Keeps the capture of a model apart from running models in other threads.

While ``torch.export`` traces, it replaces ``torch.nn.Module.__call__`` for the whole process and keeps global state, so
a model that another thread runs meanwhile would land in the trace; and it switches oneDNN off, so products would come
from other kernels, slower and with other last digits. Any number of threads may run models and plans; one may trace,
and then nothing else.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

_condition = threading.Condition()
_running: dict[int, int] = {}  # how deep each thread is in `running`
_tracing: list[int] = []  # the thread that traces, as often as it entered
_waiting: list[int] = []  # threads that are about to: no other starts to run before them, or they might wait for ever


@contextlib.contextmanager
def running() -> Iterator[None]:
    """While a model or a plan runs."""
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
    """While a model is captured."""
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
