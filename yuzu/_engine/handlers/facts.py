"""Facts that a rule declares: how it rounds, and the memory that it takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Numerics:
    """How the result of a rule depends on rounding, for the plan's choice of float64 and of exact zeros.

    Attributes
    ----------
    well_conditioned: bool
        A small error in its inputs leaves a small error in its result, whatever `ops` says of the operation.
    on_values: bool
        It runs the operation on the mutants' values, so a steep operation shows their rounding.
    may_widen: bool
        It can be run in float64.
    weighted: bool
        It multiplies with weights.
    sums_positions: bool
        It sums over positions.
    cancels: bool
        Its result may be small beside the reference's although its inputs are not.
    multiplies: bool
        It multiplies two mutated tensors.
    keeps_size: bool
        Its result is large where its input is.
    """

    well_conditioned: bool = False
    on_values: bool = False
    may_widen: bool = True
    weighted: bool = False
    sums_positions: bool = False
    cancels: bool = False
    multiplies: bool = False
    keeps_size: bool = False


@dataclass(frozen=True)
class Sizes:
    """The sizes that the memory of a rule follows from.

    Attributes
    ----------
    width: int
        Positions of a window before it.
    result: int
        Numbers of one row of its result, of all positions.
    precision: str
    itemsize: int
        Bytes of a number.
    """

    width: int
    result: int
    precision: str
    itemsize: int


@dataclass(frozen=True)
class RuleMemory:
    """Numbers that a rule holds beside its result.

    Attributes
    ----------
    weights: int
        Made from weights and kept.
    tables: int
        Made from the reference of one sequence and kept.
    largest: int
        The largest tensor of one mutant on the way to the result.
    blocks: int
        Tensors as large as its result that live at once.
    """

    weights: int = 0
    tables: int = 0
    largest: int = 0
    blocks: int = 4
