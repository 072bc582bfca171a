"""The errors that yuzu raises. Both are `ValueError`, so that one `except ValueError` catches them."""

from __future__ import annotations

import sys
import warnings


class YuzuError(ValueError):
    """An argument, a file or a model that yuzu cannot work with; the message says which and what it wants."""


class PrecomputationError(YuzuError):
    """A precomputation that cannot be read, or that was made for something else than it is used with."""


class YuzuWarning(UserWarning):
    """Something is other than the user may expect: slower, or approximate, or regions were left out. Never a wrong
    result.
    """


def warn_user(message: str) -> None:
    """Warn at the line that called yuzu, however many of its own and of torch's functions lie between."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("yuzu", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, YuzuWarning, stacklevel=level)
