"""What a precomputation is made for."""

from __future__ import annotations

from dataclasses import dataclass

CONV = ("auto", "windows", "taps", "cyclic", "banded", "blocks", "whole", "fold", "winograd", "fused", "gaussian")
PRECISIONS = ("highest", "high", "medium")
NAIVE_BATCH = 128  # mutants in one forward pass of a model that could not be captured


@dataclass(frozen=True)
class Settings:
    """What a precomputation was made for; see `precompute`."""

    seq_len: int
    n_choices: int
    dtype: str
    args: tuple[tuple[tuple[int, ...], str], ...]
    device: str
    conv: str
    alpha: float | None
    threshold: float
    precision: str
    max_memory: int
    random_state: int
