"""Silence for what one thread prints, logs and warns of; other threads are heard as ever."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any


class _ThisThread:
    """What is true in the thread that made it, as long as it is not over."""

    def __init__(self) -> None:
        self.thread, self.over = threading.get_ident(), False

    def here(self) -> bool:
        return not self.over and threading.get_ident() == self.thread

    def match(self, text: str) -> bool:
        """In the place of the regular expression of a filter for warnings, which are asked in the thread that warns."""
        return self.here()

    def filter(self, record: logging.LogRecord) -> bool:
        """As a filter of a logger: whether a record is to be kept."""
        return not self.here()


class _WithoutOne:
    """A stream without what one thread writes. Whoever holds on to it has the stream itself once that is over."""

    def __init__(self, stream: Any, quiet: _ThisThread) -> None:
        self._stream, self._quiet = stream, quiet

    def write(self, text: str) -> int:
        return len(text) if self._quiet.here() else self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def quiet(loggers: list[logging.Logger]) -> Iterator[None]:
    """Drop what this thread writes to standard error, warns of, or tells some loggers; nothing of other threads."""
    me = _ThisThread()
    ignored: Any = ("ignore", me, Warning, None, 0)
    filters, stream = warnings.filters, sys.stderr
    silent = None if stream is None else _WithoutOne(stream, me)  # there is none in a program without a console
    for logger in loggers:
        logger.addFilter(me)
    filters.insert(0, ignored)  # type: ignore[attr-defined]
    if silent is not None:
        sys.stderr = silent
    try:
        yield
    finally:
        me.over = True
        if silent is not None and sys.stderr is silent:  # else it is another thread's, which may put this one back
            sys.stderr = stream
        if ignored in filters:
            filters.remove(ignored)  # type: ignore[attr-defined]
        for logger in loggers:
            logger.removeFilter(me)
