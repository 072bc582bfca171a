"""Errors and warnings of yuzu. Both errors are a `ValueError`, so that one `except ValueError` catches them."""

from __future__ import annotations

import functools
import reprlib
import sys
import warnings
from typing import Any

__all__ = ["PrecomputationError", "YuzuError", "YuzuWarning"]


class YuzuError(ValueError):
    """An argument, a file or a model that yuzu cannot work with. The message names it and says what is wanted.

    Examples
    --------
    >>> from yuzu.sequence import one_hot_encode
    >>> try:
    ...     one_hot_encode("ACZT")
    ... except YuzuError as error:
    ...     print(error)
    sequences: got 'Z' at position 2, want characters of 'ACGT' or 'N' for unknown, in either case
    """


class PrecomputationError(YuzuError):
    """A precomputation that cannot be read, or that was made for another model, length, alphabet or device.

    Examples
    --------
    >>> import yuzu
    >>> try:
    ...     yuzu.Precomputation.load(__file__)
    ... except PrecomputationError as error:
    ...     print("refused")
    refused
    """


class YuzuWarning(UserWarning):
    """A result that is slower, approximate or smaller than expected, such as a layer that runs naively.

    It is never about a wrong result. ``warnings.simplefilter("error", yuzu.YuzuWarning)`` turns it into an error.
    """


def one_line(error: BaseException, most: int = 300) -> str:
    """Put the message of another library's error on one line, for use within one of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 4] + " ..."


def warn_user(message: str, *beside: type[Warning]) -> None:
    """Warn at the line that called yuzu, however many functions of yuzu and torch lie between.

    The warning is a `YuzuWarning`, and of the classes ``beside`` it.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("yuzu", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, _of_all(beside) if beside else YuzuWarning, stacklevel=level)


@functools.cache  # always the same class, so that Python shows a warning once for each place
def _of_all(beside: tuple[type[Warning], ...]) -> type[Warning]:
    return type("YuzuWarning", (YuzuWarning, *beside), {})


def shown(value: Any) -> str:
    """An argument as an error message shows it: the shape of an array, the beginning of a long text."""
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
