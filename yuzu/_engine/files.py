"""Files that are written whole or not at all: an interrupted run leaves no half file, and keeps the old one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write to, which replaces ``path`` at the end, or is deleted after an error.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        If the folder is missing, a folder has the file's name, or the folder cannot be written to. The message names
        the file, and not a temporary one.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} in")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give a file in it")
    try:
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    except PermissionError as error:
        raise PermissionError(f"{path.name} cannot be written: no permission to write in {path.parent}") from error
    os.close(handle)
    try:
        yield Path(part)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(part, 0o666 & ~mask)  # a temporary file can be read by its owner only
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
