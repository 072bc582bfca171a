"""Progress bars, and messages about the stages of a long job.

Bars are those of tqdm, without its warning in notebooks that lack ipywidgets, where it prints text instead.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from types import TracebackType

from tqdm import TqdmWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

PATIENCE = 3.0  # seconds after which a job prints its stage


_hushed: ContextVar[bool] = ContextVar("hushed", default=False)


@contextlib.contextmanager
def hushed(quiet: bool = True) -> Iterator[None]:
    """A context in which no stages are printed, if ``quiet``."""
    token = _hushed.set(quiet)
    try:
        yield
    finally:
        _hushed.reset(token)


class Stages:
    """Prints the current stage of a job on standard error, after some seconds or ``at_once``, and erases it at the end.

    ``TQDM_DISABLE=1`` in the environment silences it, like all bars of tqdm.

    Examples
    --------
    >>> with Stages("precompute", at_once=False) as stage:
    ...     stage("tracing the model")
    """

    def __init__(self, job: str, at_once: bool) -> None:
        self.job, self.at_once = job, at_once
        self._stage = ""
        self._bar: tqdm | None = None
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Stages:
        self._begin = time.perf_counter()
        self._stream = None if _hushed.get() else sys.stderr  # capture replaces sys.stderr for a while
        if self._stream is not None and not self.at_once:
            # a single stage may take long, so another thread watches the clock
            self._timer = threading.Timer(PATIENCE, self._show)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __call__(self, stage: str) -> None:
        """Go on to another stage."""
        with self._lock:
            self._stage = stage
            if self._bar is not None:
                self._bar.set_description_str(stage)
        if self.at_once and self._bar is None and self._stream is not None:
            self._show()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            self._stream = None
            if self._bar is not None:
                self._bar.close()

    def _show(self) -> None:
        with self._lock:
            if self._stream is None:  # the job has ended meanwhile
                return
            form = f"{self.job}: {{desc}} [{{elapsed}}]"
            # the delay keeps tqdm from printing before its start time is set
            self._bar = tqdm(desc=self._stage, bar_format=form, leave=False, file=self._stream, delay=1e-9)
            if not self._bar.disable:
                self._bar.start_t -= time.perf_counter() - self._begin
                self._bar.refresh()


class Bar:
    """A bar of tqdm that appears when it is first shown, after a call's errors have been raised."""

    def __init__(self, total: int, verbose: bool, what: str) -> None:
        self._total, self._verbose, self._what = total, verbose, what
        self._bar: tqdm | None = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self) -> tqdm:
        """Make the bar, which is visible if ``verbose``."""
        if self._bar is None:
            self._bar = tqdm(total=self._total, disable=not self._verbose, desc=self._what, unit="sequence")
        return self._bar

    def update(self, sequences: int) -> None:
        """Count more sequences as done."""
        self.show().update(sequences)


__all__ = ["PATIENCE", "Bar", "Stages", "hushed", "tqdm"]
