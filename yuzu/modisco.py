"""The two files that TF-MoDISco reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from yuzu._engine.checks import to_user
from yuzu._engine.files import written_whole
from yuzu.errors import YuzuError
from yuzu.sequence import DNA, dna_order, reorder_alphabet

__all__ = ["ModiscoFiles", "to_modisco"]


class ModiscoFiles(NamedTuple):
    """The paths of the two files that `to_modisco` wrote: sequences and scores."""

    sequences: Path
    attributions: Path


def to_modisco(path: str | Path, X: Any, scores: Any, alphabet: str | Sequence[str] = DNA) -> ModiscoFiles:
    """Write sequences and hypothetical scores for TF-MoDISco.

    ``modisco motifs -s PATH.ohe.npz -a PATH.attr.npz -n 2000 -o motifs.h5`` reads them. Both hold one array, ``arr_0``,
    of shape ``(N, 4, L)``: the one-hot sequences as int8, the scores as float32, both in the order ``ACGT`` that
    TF-MoDISco expects. The file names are those of bpnet-lite.

    Parameters
    ----------
    path: str or Path
        The files' common path, to which ``.ohe.npz`` and ``.attr.npz`` are added. Its folder must exist.
    X: torch.Tensor or numpy.ndarray, shape=(N, 4, L)
        One-hot sequences over ``alphabet``; all-zero columns are ``N``.
    scores: torch.Tensor or numpy.ndarray, shape=(N, 4, L)
        Hypothetical scores (see `yuzu.attribution.hypothetical`) of one output, over ``alphabet``.
    alphabet: str, or list or tuple of single characters
        The order of the letters in ``X`` and ``scores``: DNA's in some order, such as ``"AGCT"`` for models trained in
        Lua Torch (DeepSEA, Beluga). The files are in the order ``ACGT`` all the same. Default ``"ACGT"``.

    Returns
    -------
    ModiscoFiles
        ``(sequences, attributions)``: the two paths, in the order of ``-s`` and ``-a``.

    Raises
    ------
    ValueError
        If shapes differ, the alphabet is not that of DNA, sequences are not one-hot, or scores are not finite. Also if
        the scores are plainly not hypothetical: projected ones (0 at every other letter), or plain differences (0 at
        every reference).

    Examples
    --------
    >>> import pathlib, tempfile, torch, yuzu
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> model, X = load_ctcf_model(), load_ctcf_peaks().X[:2]
    >>> scores = yuzu.attribution.hypothetical(yuzu.yuzu_ism(model, X, output="delta", target=0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [path.name for path in to_modisco(pathlib.Path(folder) / "ctcf", X, scores)]
    ['ctcf.ohe.npz', 'ctcf.attr.npz']
    """
    letters = dna_order(alphabet)
    sequences = _array("X", X)
    values = _array("scores", scores)
    if sequences.ndim != 3 or sequences.shape[1] != 4 or 0 in sequences.shape:
        raise YuzuError(f"X must have shape (N, 4, L), got {sequences.shape}")
    if values.shape != sequences.shape:
        raise YuzuError(f"scores must have the shape of X, {sequences.shape}, got {values.shape}")
    if not (np.isin(sequences, (0, 1)).all() and (sequences.sum(1) <= 1).all()):
        raise YuzuError("X must be one-hot: 0 and 1, at most one 1 in a column")
    if not np.isfinite(values).all():
        raise YuzuError("scores must be finite, got NaN or infinity")
    reference = sequences == 1
    if values.any() and not values[~reference].any():
        raise YuzuError(
            "scores are 0 at every letter but the reference, so they are projected; TF-MoDISco needs the hypothetical "
            "ones: pass the scores before they were multiplied by the sequence"
        )
    if values.any() and reference.any() and not values[reference].any():
        raise YuzuError(
            "scores are 0 at every reference letter, so they are plain differences; TF-MoDISco needs hypothetical: "
            "pass yuzu.attribution.hypothetical(scores)"
        )
    path = Path(path)
    files = ModiscoFiles(path.with_name(path.name + ".ohe.npz"), path.with_name(path.name + ".attr.npz"))
    _save(files.sequences, reorder_alphabet(sequences, letters, DNA).astype(np.int8))
    _save(files.attributions, reorder_alphabet(values, letters, DNA).astype(np.float32))
    return files


def _array(name: str, value: Any) -> np.ndarray:
    if not isinstance(value, torch.Tensor | np.ndarray):
        raise YuzuError(
            f"{name} must be a torch.Tensor or numpy.ndarray of shape (N, 4, L), got {type(value).__name__}"
        )
    array = to_user(value.detach().cpu(), as_numpy=True) if isinstance(value, torch.Tensor) else value
    if array.dtype.kind not in "biuf":
        raise YuzuError(f"{name} must hold real numbers, got dtype {array.dtype}")
    return array


def _save(path: Path, array: np.ndarray) -> None:
    with written_whole(path) as part, open(part, "wb") as file:
        np.savez_compressed(file, array)


def __dir__() -> list[str]:
    return sorted(__all__)
