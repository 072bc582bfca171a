"""Files that are written whole or not at all: an interrupted run leaves no half a file, and no old one is lost."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of ``path`` when all went well and is deleted otherwise.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        With the folder that is missing, that is where the file should be, or that cannot be written in; not with a
        temporary name.
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
        os.chmod(part, 0o666 & ~mask)  # a temporary file is the owner's alone
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
