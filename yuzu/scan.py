"""Scans along a sequence: delete, insert, blank, shuffle, or write a motif, place after place.

Every function returns ``y(edited) - y(reference)`` for each place. `blanking`, `shuffling` and `tiling` keep all other
letters where they are; in `deletion` and `insertion` the letters of one side move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from yuzu._engine.arrays import AnyArray, Array, Device
from yuzu._engine.capture.model_copy import model_dtype
from yuzu._engine.checks import (
    check_choice,
    check_count,
    check_model,
    check_replacement,
    check_sequences,
)
from yuzu._engine.edits import Mutations, letters_of
from yuzu._engine.request import Arguments, Request
from yuzu._engine.store.obtain import inputs_of
from yuzu._engine.store.precomputation import Precomputation
from yuzu._engine.store.shuffled import Shuffles, shuffled_scores
from yuzu._engine.store.splices import Splices, moved_scores
from yuzu._engine.store.states import answer
from yuzu.errors import YuzuError, shown

__all__ = ["blanking", "deletion", "insertion", "shuffling", "tiling"]

SIDES = ("left", "right")


def blanking(
    model: torch.nn.Module,
    X_0: Array,
    width: int | Sequence[int],
    step: int = 1,
    *,
    start: int | None = 0,
    end: int | None = None,
    precomputation: Precomputation | None = None,
    args: tuple[Any, ...] | None = None,
    target: Any = None,
    func: Callable[[Any], Any] | None = None,
    batch_size: int | None = None,
    device: Device = None,
    verbose: bool = False,
) -> Any:
    """Blank (write ``N``, zeros) windows of a sequence: what if the model did not see this part?

    Parameters
    ----------
    model: torch.nn.Module
    X_0: numpy.ndarray or torch.Tensor, shape=(n, C, L)
        One-hot sequences.
    width: int, or list of int
        Positions that a window holds; a list scans with each.
    step: int
        Positions from one window to the next. Default 1.
    start, end: int or None
        Windows lie between them as a whole; those that would reach over ``end`` are
        left out. By Python's slice rules; default all.
    precomputation, args, target, func, batch_size, device, verbose
        As in `yuzu_ism`.

    Returns
    -------
    numpy.ndarray or torch.Tensor, or a container of them
        ``y(edited) - y(reference)``, ``(n, R, O...)``: window ``r`` begins at ``start + r * step``. For a list of
        widths, a dict from width to these.

    Raises
    ------
    ValueError
        For bad input, before any work.

    Examples
    --------
    >>> from yuzu import scan
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> model, X = load_ctcf_model(), load_ctcf_peaks().X[:2]  # (2, 4, 100)
    >>> scan.blanking(model, X, 10, step=5, target=0).shape
    torch.Size([2, 19])
    """
    arguments = Arguments(X_0, [args], "delta", target, func, start, end, None, None, batch_size, device, verbose)
    request = _checked(model, precomputation, arguments)
    step = check_count("step", step)
    places = {w: _places(request, w, step) for w in _widths("width", width, request)}
    blank = torch.zeros(request.X.shape[1], 1, dtype=torch.float64)
    found = {w: _written(model, precomputation, request, at, blank.expand(-1, w)) for w, at in places.items()}
    return _as_asked(width, found)


def tiling(
    model: torch.nn.Module,
    X_0: Array,
    motif: str | AnyArray,
    step: int = 1,
    *,
    start: int | None = 0,
    end: int | None = None,
    precomputation: Precomputation | None = None,
    args: tuple[Any, ...] | None = None,
    target: Any = None,
    func: Callable[[Any], Any] | None = None,
    batch_size: int | None = None,
    device: Device = None,
    verbose: bool = False,
) -> Array | Any:
    """Write a motif over each place of a sequence: where would this element work?

    Parameters
    ----------
    model: torch.nn.Module
    X_0: numpy.ndarray or torch.Tensor, shape=(n, C, L)
        One-hot sequences.
    motif: str, or array of shape (C, width)
        A string is over ``ACGT`` for ``C = 4`` and over the amino acids for ``C = 20``; its ``N`` (``X``) writes zeros.
    step: int
        Positions from one place to the next. Default 1.
    start, end: int or None
        The motif lies between them as a whole; places from which it would reach over ``end`` are left out. By Python's
        slice rules; default all.
    precomputation, args, target, func, batch_size, device, verbose
        As in `yuzu_ism`.

    Returns
    -------
    numpy.ndarray or torch.Tensor, or a container of them
        ``y(edited) - y(reference)``, ``(n, R, O...)``: place ``r`` begins at ``start + r * step``.

    Raises
    ------
    ValueError
        For bad input, before any work.

    Examples
    --------
    >>> from yuzu import scan
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> model, X = load_ctcf_model(), load_ctcf_peaks().X[:2]  # (2, 4, 100)
    >>> scan.tiling(model, X, "CCGCGAGGTGGCAG", target=0).shape
    torch.Size([2, 87])
    """
    arguments = Arguments(X_0, [args], "delta", target, func, start, end, None, None, batch_size, device, verbose)
    request = _checked(model, precomputation, arguments)
    written = check_replacement(motif, request.X.shape[1], None, "motif")
    at = _places(request, written.shape[1], check_count("step", step), "motif")
    return _written(model, precomputation, request, at, written)


def shuffling(
    model: torch.nn.Module,
    X_0: Array,
    width: int | Sequence[int],
    step: int = 1,
    samples: int = 8,
    dinucleotide: bool = False,
    random_state: int | None = None,
    *,
    start: int | None = 0,
    end: int | None = None,
    precomputation: Precomputation | None = None,
    args: tuple[Any, ...] | None = None,
    target: Any = None,
    func: Callable[[Any], Any] | None = None,
    batch_size: int | None = None,
    device: Device = None,
    verbose: bool = False,
) -> Any:
    """Shuffle windows of a sequence: what if this part were a random one of the same composition?

    Parameters
    ----------
    model: torch.nn.Module
    X_0: numpy.ndarray or torch.Tensor, shape=(n, C, L)
        One-hot sequences; ``N`` is shuffled like a letter.
    width: int, or list of int
        Positions that a window holds; a list scans with each.
    step: int
        Positions from one window to the next. Default 1.
    samples: int
        Shuffles of each window. Default 8.
    dinucleotide: bool
        True keeps the counts of all pairs of neighbouring letters, and so the first and the last letter; all such
        orders are equally likely. False, the default, keeps those of single letters.
    random_state: int or None
        Seed of the shuffles. A sequence's are the same whatever ``batch_size`` and the sequences after it are. Default
        None: others at each call. The global random state is not touched.
    start, end: int or None
        Windows lie between them as a whole; those that would reach over ``end`` are
        left out. By Python's slice rules; default all.
    precomputation, args, target, func, batch_size, device, verbose
        As in `yuzu_ism`.

    Returns
    -------
    numpy.ndarray or torch.Tensor, or a container of them
        ``y(edited) - y(reference)``, ``(n, R, samples, O...)``: window ``r`` begins at ``start + r * step``. For a list
        of widths, a dict from width to these.

    Raises
    ------
    ValueError
        For bad input, before any work: with ``dinucleotide`` also columns that are neither one-hot nor zero.

    References
    ----------
    Altschul and Erickson, "Significance of nucleotide sequence alignments", Molecular Biology and Evolution 1985.

    Examples
    --------
    >>> from yuzu import scan
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> model, X = load_ctcf_model(), load_ctcf_peaks().X[:2]  # (2, 4, 100)
    >>> found = scan.shuffling(model, X, 20, step=10, samples=4, dinucleotide=True, random_state=0, target=0)
    >>> found.shape
    torch.Size([2, 9, 4])
    """
    arguments = Arguments(X_0, [args], "delta", target, func, start, end, None, None, batch_size, device, verbose)
    request = _checked(model, precomputation, arguments)
    step, samples = check_count("step", step), check_count("samples", samples)
    if random_state is not None:
        check_count("random_state", random_state, 0)
    if dinucleotide:
        _refuse_soft_columns(request.X)
    places = {w: _places(request, w, step) for w in _widths("width", width, request)}
    seeds = np.random.SeedSequence(random_state).spawn(len(request.X))
    wanted = {w: Shuffles(at, w, samples, dinucleotide, seeds) for w, at in places.items()}
    found = {w: shuffled_scores(model, precomputation, request, shuffles) for w, shuffles in wanted.items()}
    return _as_asked(width, found)


def deletion(
    model: torch.nn.Module,
    X_0: Array,
    widths: int | Sequence[int],
    flanks: AnyArray | None = None,
    side: str = "left",
    *,
    start: int | None = 0,
    end: int | None = None,
    precomputation: Precomputation | None = None,
    args: tuple[Any, ...] | None = None,
    target: Any = None,
    func: Callable[[Any], Any] | None = None,
    batch_size: int | None = None,
    device: Device = None,
    verbose: bool = False,
) -> dict[int, Any]:
    """Delete letters at each place of a sequence; the letters of one side move up.

    Parameters
    ----------
    model: torch.nn.Module
    X_0: numpy.ndarray or torch.Tensor, shape=(n, C, L)
        One-hot sequences.
    widths: int, or list of int
        Letters that are deleted together.
    flanks: numpy.ndarray or torch.Tensor, shape=(n, C, F), or None
        Letters that move in, at least as many as the largest of ``widths``. For ``side="left"`` those after the
        sequence, of which the first comes in first; for ``side="right"`` those before it, of which the last does.
        Default None: zeros (``N``).
    side: str
        The side of the deletion that stays where it is, ``"left"`` (the default) or ``"right"``.
    start, end: int or None
        Deleted letters lie between them, by Python's slice rules. Default all.
    precomputation, args, target, func, batch_size, device, verbose
        As in `yuzu_ism`.

    Returns
    -------
    dict
        For each width ``y(edited) - y(reference)``, ``(n, P, O...)``: deletion ``p`` begins at ``start + p``, and
        ``P = end - start - width + 1``.

    Raises
    ------
    ValueError
        For bad input, before any work.

    Notes
    -----
    Left of a deletion the mutant is the sequence, right of it the moved one. So neighbouring deletions differ in single
    letters only: one mutant in 32 is run in full, and the others are edits of it, of up to 16 positions. That is exact
    in every model, and needs no precomputation of its own.

    Examples
    --------
    >>> from yuzu import scan
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> model, X = load_ctcf_model(), load_ctcf_peaks().X[:2]  # (2, 4, 100)
    >>> found = scan.deletion(model, X, [1, 5], target=0)
    >>> found[1].shape, found[5].shape
    (torch.Size([2, 100]), torch.Size([2, 96]))
    """
    arguments = Arguments(X_0, [args], "delta", target, func, start, end, None, None, batch_size, device, verbose)
    request = _checked(model, precomputation, arguments)
    check_choice("side", side, SIDES)
    found = _widths("widths", widths, request)
    X, (first, stop) = request.X, _span(request)
    moving = _flanks(flanks, X, max(found))
    kinds, nothing = [], X.new_zeros(X.shape[1], 0)
    for w in found:
        if side == "left":
            moved = torch.cat([X[:, :, w:], moving[:, :, :w]], 2)
            kinds.append(Splices(X, moved, nothing, first, stop - w + 1, left_stays=True))
        else:
            moved = torch.cat([moving[:, :, moving.shape[2] - w :], X[:, :, : X.shape[2] - w]], 2)
            kinds.append(Splices(moved, X, nothing, first + w, stop + 1, left_stays=False))
    return dict(zip(found, moved_scores(model, precomputation, request, kinds, "deletions"), strict=True))


def insertion(
    model: torch.nn.Module,
    X_0: Array,
    motif: str | AnyArray,
    side: str = "left",
    *,
    start: int | None = 0,
    end: int | None = None,
    precomputation: Precomputation | None = None,
    args: tuple[Any, ...] | None = None,
    target: Any = None,
    func: Callable[[Any], Any] | None = None,
    batch_size: int | None = None,
    device: Device = None,
    verbose: bool = False,
) -> Array | Any:
    """Insert a motif before each position of a sequence; the letters of one side move away.

    Parameters
    ----------
    model: torch.nn.Module
    X_0: numpy.ndarray or torch.Tensor, shape=(n, C, L)
        One-hot sequences.
    motif: str, or array of shape (C, width)
        A string is over ``ACGT`` for ``C = 4`` and over the amino acids for ``C = 20``; its ``N`` (``X``) writes zeros.
    side: str
        The side of the insertion that stays where it is. ``"left"``, the default: the motif begins at the position,
        and letters fall off the sequence's end. ``"right"``: it ends before the position, and letters fall off the
        beginning, those of the motif too where there is no room for it.
    start, end: int or None
        Positions before which the motif is inserted, by Python's slice rules. Default all.
    precomputation, args, target, func, batch_size, device, verbose
        As in `yuzu_ism`.

    Returns
    -------
    numpy.ndarray or torch.Tensor, or a container of them
        ``y(edited) - y(reference)``, ``(n, end - start, O...)``.

    Raises
    ------
    ValueError
        For bad input, before any work.

    Notes
    -----
    As for `deletion`, one mutant in 32 is run in full, and the others are edits of it.

    Examples
    --------
    >>> from yuzu import scan
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> model, X = load_ctcf_model(), load_ctcf_peaks().X[:2]  # (2, 4, 100)
    >>> scan.insertion(model, X, "CCGCGAGGTGGCAG", target=0).shape
    torch.Size([2, 100])
    """
    arguments = Arguments(X_0, [args], "delta", target, func, start, end, None, None, batch_size, device, verbose)
    request = _checked(model, precomputation, arguments)
    check_choice("side", side, SIDES)
    X, (first, stop) = request.X, _span(request)
    written = check_replacement(motif, X.shape[1], None, "motif").to(X)
    w, length = written.shape[1], X.shape[2]
    gone = X.new_zeros(*X.shape[:2], min(w, length))  # never read: they lie on the other side of the motif
    if side == "left":
        moved = torch.cat([gone, X[:, :, : max(length - w, 0)]], 2)
        kind = Splices(X, moved, written, first, stop, left_stays=True)
    else:
        moved = torch.cat([X[:, :, w:], gone], 2)
        kind = Splices(moved, X, written, first - w, stop - w, left_stays=False)
    return moved_scores(model, precomputation, request, [kind], "insertions")[0]


def _checked(model: torch.nn.Module, precomputation: Any, arguments: Arguments) -> Request:
    """The request of a user's arguments, which has all positions from ``start`` to ``end``."""
    check_model(model)
    return arguments.checked(model_dtype(model), inputs_of(precomputation))


def _span(request: Request) -> tuple[int, int]:
    positions = request.mutations.positions
    return int(positions[0]), int(positions[-1]) + 1


def _widths(name: str, asked: Any, request: Request) -> list[int]:
    """The widths that are asked for, each once: at least 1, and at most the positions between ``start`` and ``end``."""
    first, stop = _span(request)
    several = isinstance(asked, Sequence | np.ndarray | torch.Tensor) and not isinstance(asked, str)
    given = asked.tolist() if isinstance(asked, np.ndarray | torch.Tensor) else asked
    given = list(given) if several and isinstance(given, Sequence) else [given]
    if not given:
        raise YuzuError(f"{name} must hold at least one width, got {shown(asked)}")
    found = [check_count(name, w) for w in given]
    if max(found) > stop - first:
        raise YuzuError(
            f"{name} must be at most {stop - first}, the positions between start={first} and end={stop}, got "
            f"{max(found)}"
        )
    return list(dict.fromkeys(found))


def _as_asked(width: Any, found: dict[int, Any]) -> Any:
    """A dict where a list of widths was asked for, else its only value."""
    return next(iter(found.values())) if isinstance(width, int | np.integer) else found


def _places(request: Request, width: int, step: int, name: str = "width") -> np.ndarray:
    """The first positions of windows between ``start`` and ``end``."""
    first, stop = _span(request)
    if width > stop - first:
        raise YuzuError(
            f"{name} must have at most {stop - first} positions, those between start={first} and end={stop}, got "
            f"{width}"
        )
    return np.arange(first, stop - width + 1, step)


def _written(
    model: torch.nn.Module, precomputation: Any, request: Request, places: np.ndarray, letters: torch.Tensor
) -> Any:
    """The scores of letters ``(C, w)`` written at places, ``(n, R, O...)``."""
    n_choices, length = request.X.shape[1:]
    mutations = Mutations(n_choices, length, places, letters.shape[1], letters)
    return answer(model, precomputation, replace(request, mutations=mutations), stacked=False)


def _refuse_soft_columns(X: torch.Tensor) -> None:
    soft = letters_of(X) > X.shape[1]
    if soft.any():
        row, position = soft.nonzero()[0].tolist()
        raise YuzuError(
            f"X_0 must have one-hot or zero columns for dinucleotide=True, got {X[row, :, position].tolist()} at "
            f"position {position} of sequence {row}; dinucleotide=False shuffles any columns"
        )


def _flanks(flanks: Any, X: torch.Tensor, width: int) -> torch.Tensor:
    """The letters that move in, ``(n, C, F)`` with ``F`` at least the largest width."""
    if flanks is None:
        return X.new_zeros(*X.shape[:2], width)
    found = check_sequences(flanks, X.dtype, X.shape[1], name="flanks")
    if len(found) != len(X) or found.shape[2] < width:
        raise YuzuError(
            f"flanks must have shape ({len(X)}, {X.shape[1]}, F), F at least {width}, the largest of widths, got "
            f"{tuple(found.shape)}"
        )
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
