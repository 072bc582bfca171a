"""The settings that a precomputation is made for."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

CONV = ("auto", "windows", "taps", "cyclic", "banded", "blocks", "whole", "fold", "winograd", "fused", "gaussian")
PRECISIONS = ("highest", "high", "medium")
NAIVE_BATCH = 128  # mutants in one forward pass of a model that could not be captured
LEAST_MEMORY = 1 << 30  # bytes that a run may use at least if the user does not say, where there are as many


@dataclass(frozen=True)
class Settings:
    """The model's inputs and the options that a precomputation was made for; see `precompute`."""

    seq_len: int
    n_choices: int
    dtype: str
    args: tuple[tuple[tuple[int, ...], str], ...]
    device: str
    max_memory: int
    conv: str = "auto"
    alpha: float | None = None
    threshold: float = 0.9999
    precision: str = "highest"
    random_state: int = 0


@dataclass(frozen=True)
class Wanted:
    """A precomputation that is asked for.

    Attributes
    ----------
    settings: Settings
    args: tuple of torch.Tensor
        One row of each of the model's inputs after the sequence.
    device: torch.device
    terminal_layers: tuple of classes
    verify: bool
    asked_memory: int or None
        The ``max_memory`` that the user asked for; None where it is the default.
    """

    settings: Settings
    args: tuple[torch.Tensor, ...]
    device: torch.device
    terminal_layers: tuple[type, ...] = ()
    verify: bool = True
    asked_memory: int | None = None


def memory_for(model: torch.nn.Module, device: torch.device) -> int:
    """Bytes that a run may use when the user does not say: half of what is free on a GPU, or 1 GiB where that is more
    and free; on a CPU 1 GiB beside the model's weights, which may be laid out anew, and are compared with a copy.
    """
    if device.type == "cuda":
        free = int(torch.cuda.mem_get_info(device)[0])
        return max(free // 2, min(free, LEAST_MEMORY))
    return LEAST_MEMORY + 2 * sum(t.nbytes for t in itertools.chain(model.parameters(), model.buffers()))
