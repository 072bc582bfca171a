"""Named normalisations of signed scores: the field uses several that differ by a factor, and the same words for them.

With ``d`` the signed difference ``y(mutant) - y(reference)``, 0 at the reference character, and ``C`` characters:

===============  ==================================  =========================================  =====================
name             at every character ``b``            at the reference character                 who uses it
===============  ==================================  =========================================  =====================
`hypothetical`   ``d_b - sum(d) / C``                ``-sum(d) / C``                            tangermeme, gReLU's
                                                                                                logos, TISM's centred
                                                                                                ISM, TF-MoDISco's input
`mean_effect`    0 but at the reference              ``-sum(d) / (C - 1)``: minus the mean      AlphaGenome, TISM's
                                                     over the ``C - 1`` alternatives            mean effects
`projected`      0 but at the reference              the score itself                           logos, genome browsers
===============  ==================================  =========================================  =====================

`hypothetical` is what an attribution to a baseline of ``1 / C`` at every character would be: it is the score that
TF-MoDISco asks for, and its projection is what is drawn as a logo. `mean_effect` is ``C / (C - 1)`` times that
projection: comparing one with the other is off by 4/3 for DNA.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from yuzu._engine.checks import from_numpy, to_user
from yuzu.errors import YuzuError


def hypothetical(deltas: Any, channel_axis: int = 1) -> Any:
    """Differences minus their mean over all ``C`` characters, the reference counting as 0.

    Parameters
    ----------
    deltas: torch.Tensor or numpy.ndarray, shape=(n, C, L, ...)
        Signed differences, 0 at the reference, as ``yuzu_ism(..., output="delta")`` gives them.
    channel_axis: int
        Where the characters are. Default 1.

    Returns
    -------
    torch.Tensor or numpy.ndarray
        Of the same shape: the change to be expected of each character, had a position none before.

    Raises
    ------
    ValueError
        For something else than an array, or an axis it does not have.
    """
    values, as_numpy = _array("deltas", deltas, channel_axis)
    return to_user(values - values.mean(channel_axis, keepdim=True), as_numpy)


def mean_effect(deltas: Any, X: Any, channel_axis: int = 1) -> Any:
    """Minus the mean difference over the ``C - 1`` alternatives, at the reference character; 0 at the others.

    Positive where the letter that stands there raises the output. Columns without a reference (``N``) are 0.

    Parameters
    ----------
    deltas: torch.Tensor or numpy.ndarray, shape=(n, C, L, ...)
        Signed differences, 0 at the reference.
    X: torch.Tensor or numpy.ndarray, shape=(n, C, L)
        The one-hot sequences, cut to the same positions.
    channel_axis: int
        Where the characters are in ``deltas``. Default 1.

    Raises
    ------
    ValueError
        For shapes that do not fit, or fewer than two characters.
    """
    values, as_numpy = _array("deltas", deltas, channel_axis)
    count = values.shape[channel_axis]
    if count < 2:
        raise YuzuError(f"deltas must have at least 2 characters on axis {channel_axis}, got shape {values.shape}")
    letters = _letters(X, values, channel_axis)
    return to_user(values.sum(channel_axis, keepdim=True) * (-1 / (count - 1)) * letters, as_numpy)


def projected(scores: Any, X: Any, channel_axis: int = 1) -> Any:
    """Scores times the one-hot sequences: what is left is the score of the character that stands there.

    Parameters
    ----------
    scores: torch.Tensor or numpy.ndarray, shape=(n, C, L, ...)
    X: torch.Tensor or numpy.ndarray, shape=(n, C, L)
        The one-hot sequences, cut to the same positions.
    channel_axis: int
        Where the characters are in ``scores``. Default 1; -2 for results ``(n, tracks, C, L)`` of `yuzu.taylor`.

    Raises
    ------
    ValueError
        For shapes that do not fit.
    """
    values, as_numpy = _array("scores", scores, channel_axis)
    return to_user(values * _letters(X, values, channel_axis) + 0.0, as_numpy)  # no -0


def _array(name: str, value: Any, channel_axis: int) -> tuple[torch.Tensor, bool]:
    if not isinstance(value, torch.Tensor | np.ndarray):
        raise YuzuError(f"{name} must be a torch.Tensor or numpy.ndarray, got {type(value).__name__}")
    found = from_numpy(value, name) if isinstance(value, np.ndarray) else value.detach()
    if not found.is_floating_point():
        found = found.float()
    if found.dim() < 3 or not -found.dim() < channel_axis < found.dim() or channel_axis == 0:
        raise YuzuError(
            f"{name} must have at least 3 axes, the characters on axis {channel_axis}, got shape {tuple(found.shape)}"
        )
    return found, isinstance(value, np.ndarray)


def _letters(X: Any, values: torch.Tensor, channel_axis: int) -> torch.Tensor:
    """``X`` with its characters and positions where ``values`` has them, to broadcast."""
    if not isinstance(X, torch.Tensor | np.ndarray):
        raise YuzuError(f"X must be a torch.Tensor or numpy.ndarray of shape (n, C, L), got {type(X).__name__}")
    letters = from_numpy(X, "X") if isinstance(X, np.ndarray) else X.detach()
    axis = channel_axis % values.dim()
    wanted = (values.shape[0], *values.shape[axis : axis + 2])
    if letters.dim() != 3 or tuple(letters.shape) != wanted:
        raise YuzuError(f"X must have shape {wanted} (n, C, L) as the scores have, got {tuple(letters.shape)}")
    before, after = axis - 1, values.dim() - axis - 2
    shape = (letters.shape[0], *[1] * before, *letters.shape[1:], *[1] * after)
    return letters.to(values.device, values.dtype).reshape(shape)
