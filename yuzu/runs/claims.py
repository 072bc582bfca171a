"""Claims on blocks of a run: files that one worker alone can make, on a file system that workers share.

Claim number ``g`` on block ``b`` is the file ``b.g``, made by exclusive creation. The highest number holds the block. A
claim is dead once its process has ended, or, seen from another machine, once its file has not been touched for a while.
Then the next number is made: also by one worker alone, so no claim is ever deleted under a living worker. All claims on
a block are deleted after it is done. A worker that comes late finds it done, and gives its new claim back.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import uuid
from pathlib import Path

TIMEOUT = 60.0  # seconds without a beat after which a claim of another machine is dead
POLL = 0.5  # seconds between two looks at what other workers hold
BEAT = 5.0  # seconds between two beats


class Claims:
    """The claims of one worker, which a thread touches while it lives.

    Parameters
    ----------
    folder : Path
        The folder of all workers' claims.
    timeout : float
        Seconds after which a claim that was not touched is dead.
    parent : int or None
        Process without which this one ends.
    """

    def __init__(self, folder: Path, timeout: float = TIMEOUT, parent: int | None = None) -> None:
        self._folder, self._timeout, self._parent = folder, timeout, parent
        self._held: dict[int, Path] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._probe = folder / f"now.{uuid.uuid4().hex}"
        self._who = json.dumps({"host": host(), "pid": os.getpid(), "began": _began(os.getpid())})

    def __enter__(self) -> Claims:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for block in list(self._held):
            self.release(block)

    def take(self, block: int) -> bool:
        """Claim a block, unless a worker that lives has."""
        known = self._of(block)
        if known and not self._dead(known[-1]):
            return False
        number = int(known[-1].suffix[1:]) + 1 if known else 0
        path = self._folder / f"{block:08d}.{number}"
        # the content comes with the name: a file that is empty for a moment would have no owner
        draft = self._folder / f"draft.{uuid.uuid4().hex}"
        draft.write_text(self._who)
        try:
            os.link(draft, path)
        except FileExistsError:  # another worker was first
            return False
        except OSError:  # a file system without hard links
            try:
                with open(path, "x") as file:
                    file.write(self._who)
            except FileExistsError:
                return False
        finally:
            draft.unlink()
        self._held[block] = path
        return True

    def holds(self, block: int) -> bool:
        """Tell whether a block is still this worker's: one that was stopped for long may have lost it."""
        known = self._of(block)
        return bool(known) and known[-1] == self._held.get(block)

    def release(self, block: int) -> None:
        """Give a block back, which is done, or was not begun."""
        mine = self._held.pop(block, None)
        for path in self._of(block):
            if mine is not None and int(path.suffix[1:]) <= int(mine.suffix[1:]):
                path.unlink(missing_ok=True)

    def _of(self, block: int) -> list[Path]:
        """The claims on a block, the one that holds it last."""
        return sorted(self._folder.glob(f"{block:08d}.*"), key=lambda path: int(path.suffix[1:]))

    def _dead(self, claim: Path) -> bool:
        """Tell whether the worker that made a claim has ended."""
        try:
            content = claim.read_text()
            touched = claim.stat().st_mtime
        except FileNotFoundError:  # it was released just now; the next look will tell
            return False
        with contextlib.suppress(ValueError, KeyError):
            who = json.loads(content)
            if who["host"] == host():
                return bool(_began(who["pid"]) != who["began"])
        return self._now() - touched > self._timeout

    def _now(self) -> float:
        """The time by the clock of the file system, which may be another machine's."""
        self._probe.touch()
        try:
            return self._probe.stat().st_mtime
        finally:
            self._probe.unlink()

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            if self._parent is not None and os.getppid() != self._parent:
                os._exit(1)
            for path in list(self._held.values()):
                with contextlib.suppress(OSError):  # without a beat it is dead to others, which is safe
                    os.utime(path)


def living(folder: Path, timeout: float = TIMEOUT) -> int:
    """The number of blocks that are being worked on."""
    claims = Claims(folder, timeout)
    blocks = {path.stem: path for path in sorted(folder.glob("[0-9]*.*"), key=lambda p: int(p.suffix[1:]))}
    return sum(not claims._dead(path) for path in blocks.values())


def host() -> str:
    """A name of this machine since it was started, and of its container: processes of one see each other's numbers."""
    found = [socket.gethostname()]
    with contextlib.suppress(OSError):
        found += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(found)


def _began(pid: int) -> str | None:
    """The time at which a process began, which tells it from a later one of the same number; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # a zombie is dead
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"
