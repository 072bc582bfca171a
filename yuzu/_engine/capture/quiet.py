"""Silences the messages, logs and warnings of one thread, and of no other."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any


class _ThisThread:
    """Tells whether it is asked in the thread that made it, until it is ``over``."""

    def __init__(self) -> None:
        self.thread, self.over = threading.get_ident(), False

    def here(self) -> bool:
        return not self.over and threading.get_ident() == self.thread

    def match(self, text: str) -> bool:
        """Take the place of the regular expression in a filter of warnings, which is asked in the thread that warns."""
        return self.here()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a logger keeps a record; this object is one of its filters."""
        return not self.here()


class _WithoutOne:
    """A stream that drops what one thread writes. Once that is over, it is the same as the stream itself."""

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
    """Drop this thread's output to standard error, its warnings, and its records in some loggers."""
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
