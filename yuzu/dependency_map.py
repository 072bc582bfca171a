"""Dependency maps: how much one position's letter matters for the effects at another."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from yuzu._engine.arrays import Array
from yuzu._engine.checks import from_numpy, to_user
from yuzu.errors import YuzuError, shown


def dependency_map(interaction: Array) -> Array:
    """Largest change of any substitution's effect at one position when another position changes.

    The change of the effect of ``b`` by ``a`` is the interaction ``[y(ab) - y(a)] - [y(b) - y(0)]``. The map has its
    largest absolute value over all letters at both positions, and over all outputs.

    Parameters
    ----------
    interaction: torch.Tensor or numpy.ndarray, shape=(n, W, C, W, C, O...)
        From `yuzu.epistasis`, of one output tensor.

    Returns
    -------
    torch.Tensor or numpy.ndarray, shape=(n, W, W)
        Symmetric, 0 on the diagonal.

    Raises
    ------
    ValueError
        If ``interaction`` is no array of such a shape.

    References
    ----------
    da Silva et al., "Nucleotide dependency analysis of genomic language models detects functional elements", Nature
    Genetics 2025, who take it of log odds.

    Examples
    --------
    >>> import yuzu
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> model, X = load_ctcf_model(), load_ctcf_peaks().X[:1]  # (1, 4, 100)
    >>> pairs = yuzu.epistasis(model, X, start=45, end=57, target=0)
    >>> yuzu.dependency_map(pairs).shape
    torch.Size([1, 12, 12])
    """
    largest: Array = to_user(strongest(interaction).abs(), isinstance(interaction, np.ndarray))
    return largest


def strongest(interaction: Any) -> torch.Tensor:
    """The interaction of the largest absolute value for each pair of positions, with its sign: ``(n, W, W)``."""
    if not isinstance(interaction, torch.Tensor | np.ndarray):
        raise YuzuError(
            f"interaction must be an array from yuzu.epistasis, got {type(interaction).__name__}; of a model with "
            "several outputs pass one"
        )
    values = from_numpy(interaction, "interaction") if isinstance(interaction, np.ndarray) else interaction.detach()
    shape = tuple(values.shape)
    if values.dim() < 5 or shape[1] != shape[3] or shape[2] != shape[4] or 0 in shape:
        raise YuzuError(
            f"interaction must have shape (n, W, C, W, C, ...), as yuzu.epistasis returns it for substitutions, got "
            f"{shown(shape)}"
        )
    values = values.flatten(5) if values.dim() > 5 else values.unsqueeze(5)
    axes = (2, 4, 5)
    high, low = values.amax(axes), values.amin(axes)
    return torch.where(high >= -low, high, low)
