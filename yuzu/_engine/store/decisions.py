"""The decisions of `precompute` as records: for each layer, for the Gaussian probes, and for the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from yuzu._engine.settings import NAIVE_BATCH


class Layer(NamedTuple):
    """How an operation is run: a row of a summary.

    Attributes
    ----------
    layer, operation: str
        The module's path in the model, and the operation, such as ``"conv1d (kernel 5)"``.
    handler: str
        The family of its handler, or ``"naive"``.
    window: str
        The positions that a mutation in the middle reaches before and after it, ``"12 -> 28"``.
    probes: str
        The probes of compressed sensing, where that is its way.
    way: str
        Its way of running, if it has several.
    time: str
        Its share of the time.
    why_naive: str
        Empty, or why it runs naively.
    node: int
        Its number in the model's graph.
    """

    layer: str
    operation: str
    handler: str
    window: str
    probes: str
    way: str
    time: str
    why_naive: str
    node: int


@dataclass(frozen=True)
class Probing:
    """The Gaussian probes that were chosen.

    Attributes
    ----------
    alpha: float
        Probes for each nonzero.
    probes: mapping of int to int
        How many each node has.
    correlation: float
        Of the results with naive ISM.
    condition: float
        The largest condition number of the probes' matrices.
    """

    alpha: float
    probes: Mapping[int, int]
    correlation: float
    condition: float


@dataclass(frozen=True)
class PastStatistics:
    """Windows are carried past statistics.

    Attributes
    ----------
    norms: tuple of int
        The nodes of the captured graph that are taken apart: norms, and softmaxes of attention pooling. All other
        numbers of nodes are those of the graph that this leaves.
    numbers: int
        The statistics of a sequence, counted as numbers; 0 where attention pooling alone is taken apart.
    least_positions: int
        For fewer positions of a sequence the derivatives by these numbers take longer than they save.
    """

    norms: tuple[int, ...]
    numbers: int
    least_positions: int


@dataclass(frozen=True)
class Decisions:
    """The decisions of `precompute`. Nodes of the model's graph are given by their numbers.

    Attributes
    ----------
    fingerprint: str
        A digest of the graph; of the modules and the shapes of weights of a model that could not be captured.
    precision: str
        The precision of products: ``"highest"`` where those in low precision turned out to be far off.
    branches: tuple of pairs of str
        Identifies a model whose forward decides by values; see `branch_words`. Empty for others.
    naive_model: str or None
        Why the whole model runs naively; None if it does not.
    disagrees: bool
        Whether it does so because the captured graph does not give what the model gives.
    naive: mapping of int to str
        The nodes that run naively although they have handlers, and why.
    ways: mapping of int to str
        The way of each node that can be run in several.
    sites: int
        How many positions are carried at once.
    naive_batch: int
        Mutants in one forward pass where the whole model runs naively.
    layers: tuple of Layer
    probing: Probing or None
    kept: str
        Why differences are carried although naive ISM is faster; empty if it is not.
    statistics: PastStatistics or None
        None if windows are not carried past statistics.
    """

    fingerprint: str
    precision: str
    branches: tuple[tuple[str, str], ...] = ()
    naive_model: str | None = None
    disagrees: bool = False
    naive: Mapping[int, str] = field(default_factory=dict)
    ways: Mapping[int, str] = field(default_factory=dict)
    sites: int = 1
    naive_batch: int = NAIVE_BATCH
    layers: tuple[Layer, ...] = ()
    probing: Probing | None = None
    kept: str = ""
    statistics: PastStatistics | None = None
