"""How a plan has chosen to run one node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

# Takes the `Context` of a run. Returns one factor for each channel, ``(C,)``, and the tensors that it was made from.
ChannelFactor: TypeAlias = "Callable[[Any], tuple[torch.Tensor, list[torch.Tensor]]]"


@dataclass(frozen=True)
class Choice:
    """How one node runs. A rule declares the possibilities; the plan chooses, once for all nodes.

    Attributes
    ----------
    way: str
        One of the rule's ways, if it has several.
    exact_zeros: bool
        Elements for which the rule's `vanishes` is true are made exactly zero.
    watched: bool
        The rule's `terms` may be needed while it runs.
    well_conditioned: bool
        A small error in its change leaves small errors in all outputs.
    low_precision: bool
        All readers of the change can read it in the dtype of low-precision products.
    absorbed: bool
        Its factor is part of a neighbouring convolution's weight, so it has nothing to multiply.
    before, after: tuple of ChannelFactor
        Factors of its neighbours that its own weight absorbs: for its input channels, and for its output channels.
    divisor: ChannelFactor or None
        Its differences are divided by this factor, both before and after it.
    """

    way: str = ""
    exact_zeros: bool = False
    watched: bool = False
    well_conditioned: bool = True
    low_precision: bool = False
    absorbed: bool = False
    before: tuple[ChannelFactor, ...] = ()
    after: tuple[ChannelFactor, ...] = ()
    divisor: ChannelFactor | None = None
