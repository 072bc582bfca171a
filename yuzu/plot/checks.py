"""Checks of arguments, shared by all pictures; each raises before anything is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from yuzu.errors import YuzuError, shown
from yuzu.sequence import DNA, PROTEIN

ALPHABETS = {len(letters): letters for letters in (DNA, PROTEIN)}


def require_matplotlib(function: str) -> None:
    """Raise an ImportError that says what to install, if matplotlib is not there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{function} draws with matplotlib, which is not installed: pip install matplotlib"
        ) from error


def check_axes(ax: Any) -> None:
    """Refuse anything but one matplotlib axes or None, such as the array that `plt.subplots` returns."""
    from matplotlib.axes import Axes

    if ax is not None and not isinstance(ax, Axes):
        raise YuzuError(f"ax: got {type(ax).__name__}, want one matplotlib.axes.Axes or None")


def as_array(name: str, value: Any) -> np.ndarray:
    """A float64 copy or view on the CPU, of any shape; an error for NaN and infinity."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().double().numpy()
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise YuzuError(f"{name}: got {type(value).__name__}, want an array of numbers") from error
    finite = np.isfinite(array)
    if not finite.all():
        where = tuple(np.argwhere(~finite)[0].tolist())
        raise YuzuError(f"{name}: got {array[where]} at {list(where)}, want finite numbers")
    return array


def as_matrix(name: str, value: Any, shape: tuple[int, ...] | None = None, like: str = "attribution") -> np.ndarray:
    """A float64 matrix (C, L), of the given `shape`, that of the argument `like`."""
    matrix = as_array(name, value)
    if matrix.ndim != 2 or matrix.size == 0:
        raise YuzuError(f"{name}: got shape {matrix.shape}, want the two axes (C, L), neither of them empty")
    if shape is not None and matrix.shape != shape:
        raise YuzuError(f"{name}: got shape {matrix.shape}, want {shape}, the shape of {like}")
    return matrix


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise YuzuError(f"{name}: got {shown(value)}, want one of {', '.join(map(repr, choices))}")


def check_positive(name: str, value: float | None) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise YuzuError(f"{name}: got {shown(value)}, want a positive number or None")


def check_offset(offset: Any, start: Any = None) -> int:
    """The coordinate of the first position: an integer of Python or NumPy, or a float without fraction.

    ``start`` is its older name, and counts if it is given.
    """
    name, value = ("offset", offset) if start is None else ("start", start)
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise YuzuError(f"{name}: got {shown(value)}, want an integer")
    return int(value)


def check_zoom(zoom: Any, length: int) -> tuple[int, int] | bool | None:
    """``zoom`` as a pair of positions, False or None."""
    if zoom is None or zoom is False:
        return zoom
    pair = isinstance(zoom, tuple | list) and len(zoom) == 2
    if not pair or not all(isinstance(z, int | np.integer) and not isinstance(z, bool) for z in zoom):
        raise YuzuError(f"zoom: got {shown(zoom)}, want two positions (first, stop), False or None")
    first, stop = (int(z) for z in zoom)
    if not 0 <= first < stop <= length:
        raise YuzuError(f"zoom: got {shown(zoom)}, want 0 <= first < stop <= {length}")
    return first, stop


def check_alphabet(alphabet: str | None, n_choices: int) -> str:
    """The characters of the rows, by default those of DNA or of proteins."""
    if alphabet is None:
        if n_choices not in ALPHABETS:
            raise YuzuError(
                f"alphabet: got None for {n_choices} rows, want a string with one character a row; only 4 "
                f"({DNA}) and 20 ({PROTEIN}) have a default"
            )
        return ALPHABETS[n_choices]
    if len(alphabet) != n_choices:
        raise YuzuError(f"alphabet: got {shown(alphabet)}, want one character for each of the {n_choices} rows")
    return alphabet


def reference_rows(reference: Any, letters: str, shape: tuple[int, ...], like: str) -> np.ndarray:
    """The row of the observed character at each position, shape (L,); -1 for none.

    `reference` is a string, in which N (X for proteins) means none, or one-hot with the `shape` of the argument `like`.
    """
    if isinstance(reference, str):
        if len(reference) != shape[1]:
            raise YuzuError(f"reference: got {len(reference)} characters, want {shape[1]}, one a position")
        unknown = "X" if "N" in letters else "N"
        rows = {letter: _row(letter, letters) for letter in set(reference)}
        for letter, row in rows.items():
            if row < 0 and letter.upper() != unknown:
                raise YuzuError(
                    f"reference: got {letter!r} at position {reference.index(letter)}, want characters of {letters} or "
                    f"{unknown}"
                )
        return np.array([rows[letter] for letter in reference])
    return single_rows(as_matrix("reference", reference, shape, like) != 0)


def _row(letter: str, letters: str) -> int:
    """The row of a character, in the case that the alphabet has; -1 for other characters."""
    return next((letters.index(form) for form in (letter, letter.upper(), letter.lower()) if form in letters), -1)


def single_rows(chosen: np.ndarray) -> np.ndarray:
    """The row of the one true entry of each column of booleans (C, L); -1 for none, or more than one."""
    return np.where(chosen.sum(axis=0) == 1, chosen.argmax(axis=0), -1)
