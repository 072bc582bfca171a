"""Weights that stand for trained ones: a start from scratch has norms and gates that do next to nothing.

Nothing is trained, since a benchmark must not depend on minutes of optimisation. The rescaling is this:

- Batch norms get running statistics and affine parameters of their own, so that evaluation is not training. Affine
  parameters of other norms are moved, too: gains between 0.5 and 1.5, offsets of 0.1.
- Weights of Cherimoya and LegNet are drawn anew with the scale that keeps the size of a signal; see `draw_anew`. With
  Cherimoya's own start (0.02) the variance under its norms is far below their epsilon, and the blocks add nothing.
  With PyTorch's, LegNet gives next to the same number for every sequence.
- Recurrent layers remember or forget as asked; see `remember`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d)


def rescale(model: nn.Module) -> None:
    """Move the statistics and the affine parameters of norms from their start."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            _affine(module)
        elif isinstance(module, NORMS) and module.weight is not None:
            _affine(module)


def draw_anew(model: nn.Module, deviation_of_biases: float = 0.1) -> nn.Module:
    """Draw weights with a deviation of 1 / sqrt(inputs), and biases, of convolutions and linear layers."""
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Linear):
            nn.init.normal_(module.weight, 0, 1 / math.sqrt(module.weight[0].numel()))
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, deviation_of_biases)
    return model


def _affine(norm: nn.Module) -> None:
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias, 0, 0.1)


def remember(build: Callable[[], nn.Module], offset: float) -> Callable[[], nn.Module]:
    """Build a model whose LSTMs and GRUs keep more of their state at each step (``offset`` > 0), or less (< 0).

    The offset goes to the biases of an LSTM's forget gate and of a GRU's update gate, whose sigmoid is the share that
    is kept: 0.73 for 1, a common start of forget gates, and 0.27 for -1. With the latter a mutant's states are the
    reference's again, in every bit or nearly, after some 20 steps.
    """

    def built() -> nn.Module:
        model = build()
        with torch.no_grad():
            for module in model.modules():
                if not isinstance(module, nn.LSTM | nn.GRU):
                    continue
                size = module.hidden_size
                for name, bias in module.named_parameters():
                    if name.startswith("bias_ih"):
                        bias[size : 2 * size] += offset
        return model

    return built
