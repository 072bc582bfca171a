"""Named normalisations of signed scores: the field has several, which differ by a factor, under the same words.

With ``d`` the signed difference ``y(mutant) - y(reference)``, 0 at the reference character, and ``C`` characters:

| name | at every character ``b`` | at the reference character | who uses it |
|---|---|---|---|
| `hypothetical` | ``d_b - sum(d) / C`` | ``-sum(d) / C`` | tangermeme, gReLU's logos, TISM's centred ISM, TF-MoDISco |
| `mean_effect` | 0 but at the reference | ``-sum(d) / (C - 1)`` | AlphaGenome, TISM's mean effects |
| `projected` | 0 but at the reference | the score itself | logos, genome browsers |

`hypothetical` equals the attribution to a baseline of ``1 / C`` at every character. TF-MoDISco asks for it, and its
projection is drawn as a logo. `mean_effect` is minus the mean difference over the ``C - 1`` alternatives, and
``C / (C - 1)`` times that projection: comparing one with the other is off by 4/3 for DNA.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from yuzu._engine.arrays import AnyArray, Array
from yuzu._engine.checks import from_numpy, to_user
from yuzu.errors import YuzuError

__all__ = ["hypothetical", "mean_effect", "projected"]


def hypothetical(deltas: Array, channel_axis: int = 1) -> Array:
    """Subtract the mean over all ``C`` characters from differences: ``d_b - sum(d) / C``.

    Parameters
    ----------
    deltas: torch.Tensor or numpy.ndarray, shape=(n, C, L, ...)
        Signed differences, 0 at the reference, as ``yuzu_ism(..., output="delta")`` gives them.
    channel_axis: int
        The axis of the characters. Default 1.

    Returns
    -------
    torch.Tensor or numpy.ndarray
        Hypothetical scores of the same shape and kind of array: at each position they sum to 0.

    Raises
    ------
    ValueError
        If ``deltas`` is no array, or has no such axis.

    Examples
    --------
    >>> import numpy as np
    >>> deltas = np.array([[[0.0], [-4.0], [-2.0], [-2.0]]])  # one position, whose letter is A
    >>> hypothetical(deltas)[0, :, 0]
    array([ 2., -2.,  0.,  0.])
    """
    values, as_numpy = _array("deltas", deltas, channel_axis)
    result: Array = to_user(values - values.mean(channel_axis, keepdim=True), as_numpy)
    return result


def mean_effect(deltas: Array, X: AnyArray, channel_axis: int = 1) -> Array:
    """Minus the mean difference over the ``C - 1`` alternatives, at the reference character; 0 at the others.

    It is positive at letters that raise the output. Columns without a reference (``N``) are 0.

    Parameters
    ----------
    deltas: torch.Tensor or numpy.ndarray, shape=(n, C, L, ...)
        Signed differences, 0 at the reference.
    X: torch.Tensor or numpy.ndarray, shape=(n, C, L)
        The one-hot sequences, cut to the same positions.
    channel_axis: int
        The axis of the characters in ``deltas``. Default 1.

    Returns
    -------
    torch.Tensor or numpy.ndarray
        Scores of the shape and kind of ``deltas``.

    Raises
    ------
    ValueError
        If the shapes do not fit, or there are fewer than two characters.

    Examples
    --------
    >>> import numpy as np
    >>> deltas = np.array([[[0.0], [-4.0], [-2.0], [-3.0]]])
    >>> mean_effect(deltas, np.array([[[1], [0], [0], [0]]]))[0, :, 0]
    array([3., 0., 0., 0.])
    """
    values, as_numpy = _array("deltas", deltas, channel_axis)
    count = values.shape[channel_axis]
    if count < 2:
        raise YuzuError(f"deltas must have at least 2 characters on axis {channel_axis}, got shape {values.shape}")
    letters = _letters(X, values, channel_axis)
    result: Array = to_user(values.sum(channel_axis, keepdim=True) * (-1 / (count - 1)) * letters, as_numpy)
    return result


def projected(scores: Array, X: AnyArray, channel_axis: int = 1) -> Array:
    """Multiply scores with the one-hot sequences, which keeps the scores of the reference characters.

    Parameters
    ----------
    scores: torch.Tensor or numpy.ndarray, shape=(n, C, L, ...)
    X: torch.Tensor or numpy.ndarray, shape=(n, C, L)
        The one-hot sequences, cut to the same positions.
    channel_axis: int
        The axis of the characters in ``scores``. Default 1; -2 for results ``(n, tracks, C, L)`` of `yuzu.taylor`.

    Returns
    -------
    torch.Tensor or numpy.ndarray
        Scores of the shape and kind of ``scores``, 0 at every other character.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> projected(np.array([[[2.0], [-2.0], [1.0], [-1.0]]]), np.array([[[1], [0], [0], [0]]]))[0, :, 0]
    array([2., 0., 0., 0.])
    """
    values, as_numpy = _array("scores", scores, channel_axis)
    result: Array = to_user(values * _letters(X, values, channel_axis) + 0.0, as_numpy)  # no -0
    return result


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
    """``X`` with its axes at the places where ``values`` has them, so that both broadcast."""
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


def __dir__() -> list[str]:
    return sorted(__all__)
