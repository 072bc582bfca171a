"""How far a run is, over all its workers: told from the store alone."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from yuzu._engine.progress import tqdm
from yuzu.runs.claims import living
from yuzu.runs.store import OWN, Store

RECENT = 600.0  # seconds whose blocks tell the rate
EVERY = 60.0  # seconds between two lines where there is no terminal
LOOK = 2.0  # seconds between two looks at the store, for a bar


class Status(NamedTuple):
    """How far a run is.

    Attributes
    ----------
    sequences, done, failed : int
        Sequences of the run; those that are done, failed ones included; those that have no scores.
    rate : float
        Sequences a second in the last ten minutes of work, over all workers; 0.0 if nothing is known.
    seconds_left : float
        At this rate; NaN if it is 0.
    working : int
        Blocks that workers hold now.
    failures : list of (str, str)
        The name of each sequence that failed, and the reason.
    """

    sequences: int
    done: int
    failed: int
    rate: float
    seconds_left: float
    working: int
    failures: list[tuple[str, str]]

    @property
    def complete(self) -> bool:
        """True if no sequence is left."""
        return self.done == self.sequences

    def __str__(self) -> str:
        share = f"{100 * self.done / max(self.sequences, 1):.1f}%"
        parts = [f"{self.done:,} of {self.sequences:,} sequences ({share})"]
        if self.rate and not self.complete:
            parts += [f"{self.rate:.3g} a second", f"{_duration(self.seconds_left)} left"]
        parts += [f"{self.failed:,} failed"] if self.failed else []
        return ", ".join(parts)


def status(path: str | Path) -> Status:
    """Tell how far a run is, from any machine that sees its store.

    Parameters
    ----------
    path : str or Path
        The store, such as "scores.zarr".

    Returns
    -------
    Status

    Raises
    ------
    YuzuError
        If there is no such store, or it is damaged.
    ImportError
        If zarr is not installed.

    Examples
    --------
    >>> print(yuzu.runs.status("scores.zarr"))                                          # doctest: +SKIP
    1,280 of 20,000 sequences (6.4%), 41 a second, 7.6 min left
    """
    store = Store(Path(path))
    blocks = store.done()
    done = store.sequences_of(blocks)
    times = sorted((store._file("scores", block).stat().st_mtime, block) for block in blocks)
    rate = 0.0
    if len(times) > 1:
        recent = [(at, block) for at, block in times if at >= times[-1][0] - RECENT]
        span = recent[-1][0] - recent[0][0]
        rate = store.sequences_of([block for _, block in recent[1:]]) / span if span > 0 else 0.0
    left = (store.n - done) / rate if rate else float("nan")
    failures = store.failures()
    return Status(store.n, done, len(failures), rate, left, living(Path(path) / OWN / "claims"), failures)


def _duration(seconds: float) -> str:
    for size, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} s"


class Progress:
    """A bar in a terminal, a line a minute elsewhere, and lines in the run's log."""

    def __init__(self, store: Store, quiet: bool) -> None:
        self._store, self._quiet = store, quiet
        self._looked = self._told = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if not self._quiet and sys.stderr.isatty():
            done = self._store.sequences_of(self._store.done())
            self._bar = tqdm(total=self._store.n, initial=done, unit="sequence")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._update()
            self._bar.close()

    def __call__(self) -> None:
        now = time.monotonic()
        if self._bar is not None and now >= self._looked + LOOK:
            self._looked = now
            self._update()
        if now >= self._told + EVERY:
            self._told = now
            line = str(status(self._store.path))
            self._store.log(line)
            if not self._quiet and self._bar is None:
                print(f"yuzu ism: {line}", file=sys.stderr, flush=True)

    def _update(self) -> None:
        done = self._store.sequences_of(self._store.done())
        self._bar.update(done - self._bar.n)
