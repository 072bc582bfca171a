"""The errors that yuzu raises. Both are `ValueError`, so that one `except ValueError` catches them."""

from __future__ import annotations

import functools
import reprlib
import sys
import warnings
from typing import Any

__all__ = ["PrecomputationError", "YuzuError", "YuzuWarning"]


class YuzuError(ValueError):
    """An argument, a file or a model that yuzu cannot work with; the message says which and what it wants."""


class PrecomputationError(YuzuError):
    """A precomputation that cannot be read, or that was made for something else than it is used with."""


class YuzuWarning(UserWarning):
    """Something is other than the user may expect: slower, or approximate, or regions were left out. Never a wrong
    result.
    """


def one_line(error: BaseException, most: int = 300) -> str:
    """The message of another library's error on one line, to be part of one of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 4] + " ..."


def warn_user(message: str, *beside: type[Warning]) -> None:
    """Warn at the line that called yuzu, however many of its own and of torch's functions lie between; of other classes
    of warnings ``beside`` our own.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("yuzu", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, _of_all(beside) if beside else YuzuWarning, stacklevel=level)


@functools.cache  # one class, so that Python shows a warning once for each place
def _of_all(beside: tuple[type[Warning], ...]) -> type[Warning]:
    return type("YuzuWarning", (YuzuWarning, *beside), {})


def shown(value: Any) -> str:
    """An argument as an error message shows it: of arrays the shape, and of what is long the beginning."""
    shape = getattr(value, "shape", ())
    if isinstance(shape, tuple) and shape:
        name = type(value).__name__
        return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name} of shape {tuple(shape)}"
    text = _brief.repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


LONGEST_SHOWN = 120  # characters
_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = LONGEST_SHOWN


def __dir__() -> list[str]:
    return sorted(__all__)
