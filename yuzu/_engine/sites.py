"""The edits of one chunk of mutants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Sites:
    """The edits of one chunk: ``S`` sites with ``A`` edits each.

    Attributes
    ----------
    sequence: integer array, shape=(S,)
        Row of the batch each site lies in; never decreasing.
    position: integer array, shape=(S,)
        First edited position; never decreasing within a sequence.
    width: int
        Number of edited positions.
    difference: torch.Tensor, shape=(S, A, width, C)
        Edited minus reference letters.
    codes: torch.Tensor or None, shape=(S, A)
        See `Change`.
    """

    sequence: np.ndarray
    position: np.ndarray
    width: int
    difference: torch.Tensor
    codes: torch.Tensor | None = None

    @property
    def only(self) -> int | None:
        """The sequence that all sites lie in, if it is one."""
        return int(self.sequence[0]) if self.sequence[0] == self.sequence[-1] else None
