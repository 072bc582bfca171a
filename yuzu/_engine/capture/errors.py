"""Why a model could not be captured."""

from __future__ import annotations

from yuzu._engine.capture.branches import Branches

DRAWS = "forward draws random numbers"


class CaptureError(Exception):
    """Why a model could not be captured, with the decisions of its forward that led there if others may not."""

    def __init__(self, reason: str, branches: Branches | None = None) -> None:
        super().__init__(reason)
        self.branches = branches or Branches()


class ReadError(Exception):
    """Why a value that ``forward`` decides by cannot be followed."""


class RowsError(ReadError):
    """The value that ``forward`` decides by is another for a batch of another size."""


def first_line(error: BaseException) -> str:
    """The first line of an error, with its kind if it is not ours."""
    lines = str(error).strip().splitlines()
    text = lines[0][:200] if lines else "no message"
    return text if isinstance(error, CaptureError | ReadError) else f"{type(error).__name__}: {text}"


__all__ = ["DRAWS", "CaptureError", "ReadError", "RowsError", "first_line"]
