"""A model that is tuned for, the sequence that its plans are tried on, and the memory that they may use."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from yuzu._engine.capture.errors import DRAWS
from yuzu._engine.capture.model_copy import evaluation_copy
from yuzu._engine.plan.plan import Plan
from yuzu._engine.settings import NAIVE_BATCH, Settings
from yuzu._engine.tune.examples import Examples
from yuzu._engine.tune.memory import Memory, memory_of
from yuzu.errors import YuzuError, warn_user


class RunsNaively(Exception):
    """The whole model runs naively.

    Parameters
    ----------
    reason: str
    batch: int
        Mutants in one forward pass.
    plan: Plan or None
        The plan, if the model could run by one.
    disagrees: bool
        The plan, or the graph, disagrees with the model.
    """

    def __init__(
        self, reason: str, batch: int = NAIVE_BATCH, plan: Plan | None = None, disagrees: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason, self.batch, self.plan, self.disagrees = reason, batch, plan, disagrees


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and a sequence to try its plans on.

    Attributes
    ----------
    model: torch.nn.Module
    settings: Settings
    X: torch.Tensor, shape=(1, C, L)
    args: tuple of torch.Tensor
        One row of each input after the sequence.
    device: torch.device
    share: bool
        Copies of the model may share its parameters: see `evaluation_copy`.
    asked_memory: int or None
        The bytes that the user allows; None if ``settings.max_memory`` is the default.
    """

    model: torch.nn.Module
    settings: Settings
    X: torch.Tensor
    args: tuple[torch.Tensor, ...]
    device: torch.device
    share: bool
    asked_memory: int | None

    def evaluation_copy(self) -> torch.nn.Module:
        """An evaluation copy of the model on the device."""
        return evaluation_copy(self.model, self.device, share=self.share)

    @property
    def examples(self) -> Examples:
        """The mutants that plans are timed with."""
        s = self.settings
        return Examples(s.n_choices, s.seq_len, self.edits, s.random_state)

    @property
    def edits(self) -> int:
        """Mutants of each position."""
        return self.settings.n_choices - 1

    def on_device(self, sequences: int = 1) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """The sequence and the inputs after it on the device, repeated for a number of ``sequences``."""
        tensors = (t.to(self.device) for t in (self.X, *self.args))
        x, *rest = (t.expand(sequences, *t.shape[1:]).contiguous() for t in tensors)
        return x, tuple(rest)

    def memory(self, plan: Plan) -> Memory:
        """The memory that substitutions take, with one for every character, as an N has."""
        s = self.settings
        return memory_of(plan, s.seq_len, s.n_choices, 1, self.X.element_size(), s.n_choices)

    def refuse_too_little(self, least: int) -> None:
        """Raise an error if the user allows fewer bytes than the model needs at least."""
        asked = self.asked_memory
        if asked is not None and asked < least:
            raise YuzuError(f"max_memory={asked} is too little for this model: the least that works is {least} bytes")


def warn_naive_model(model: torch.nn.Module, reason: str) -> None:
    """Warn that a model runs naively because it could not be captured."""
    exact = "results are as random as the model" if DRAWS in reason else "results are exact but not faster"
    warn_user(
        f"{type(model).__name__} runs naively, mutant by mutant: {exact}. The model could not be captured: {reason}"
    )
