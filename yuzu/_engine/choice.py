"""How a plan has chosen to run one node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

# One factor for each channel, ``(C,)``, and the tensors that it was made from. It is given the `Context` of a run.
ChannelFactor: TypeAlias = "Callable[[Any], tuple[torch.Tensor, list[torch.Tensor]]]"


@dataclass(frozen=True)
class Choice:
    """How one node is run. A rule says what is possible; the plan chooses, once for all nodes.

    Attributes
    ----------
    way: str
        One of the rule's ways, if it has several.
    exact_zeros: bool
        The result is made exactly zero where the rule's `vanishes` says so.
    watched: bool
        The rule's `terms` may be asked for while it runs.
    well_conditioned: bool
        A small error in its change leaves small errors in all outputs.
    low_precision: bool
        All readers of the change can read it in the dtype of low-precision products.
    absorbed: bool
        Its factor is part of a neighbouring convolution's weight, so it has nothing to multiply.
    before, after: tuple of ChannelFactor
        Factors of its neighbours that its own weight takes in: of its input channels, and of its output channels.
    divisor: ChannelFactor or None
        Its differences come and go divided by this factor.
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
