"""How to build an architecture, and what it reads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.weights import rescale


@dataclass(frozen=True)
class Architecture:
    """How to build a model, and what it reads.

    Attributes
    ----------
    build: callable
        Makes the model from PyTorch's default random state.
    length: int
        Of its sequences.
    inputs: tuple of tuples
        Shapes, without the batch, of the inputs after the sequence.
    recurrent: bool
        Whether it holds recurrent layers.
    notes: str
        In what it is smaller than its publication's.
    wide: callable or None
        Makes a model in float64 of one that computes in float32 whatever its weights are; None for all others.
    """

    build: Callable[[], nn.Module]
    length: int
    inputs: tuple[tuple[int, ...], ...] = ()
    recurrent: bool = False
    notes: str = ""
    wide: Callable[[nn.Module], nn.Module] | None = None

    def model(self, seed: int = 0) -> nn.Module:
        """The model in evaluation mode with weights as in `models.weights`; the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.build()
            rescale(model)
        return model.eval()

    def in_float64(self, model: nn.Module) -> nn.Module:
        """A copy of its model with the same weights that computes in float64."""
        return (copy.deepcopy(model) if self.wide is None else self.wide(model)).double().eval()

    def sequences(self, count: int = 1, seed: int = 0) -> Tensor:
        """Random one-hot sequences ``(count, 4, length)``."""
        letters = torch.randint(4, (count, self.length), generator=torch.Generator().manual_seed(seed))
        return F.one_hot(letters, 4).permute(0, 2, 1).float()

    def args(self, count: int = 1, seed: int = 1) -> tuple[Tensor, ...]:
        """Random inputs after the sequences."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.rand(count, *shape, generator=generator) for shape in self.inputs)
