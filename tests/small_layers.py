"""Models put together from a few layers."""

import torch
from torch import nn

L = 40


class Model(nn.Module):
    """A function of the sequence and of the layers that it uses."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


def with_signs(model):
    """Random weights; those of batch norms of both signs, and one of zero."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.weight.data = torch.randn(module.num_features, generator=generator)
            module.weight.data[0] = 0.0
            module.bias.data = torch.randn(module.num_features, generator=generator)
            module.running_mean = torch.randn(module.num_features, generator=generator)
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
    return model.eval()


def chain(*layers, tail=True):
    return with_signs(nn.Sequential(nn.Conv1d(4, 6, 5, padding=2), *layers, *([nn.Conv1d(6, 3, 3)] if tail else [])))


def flattened(channels=6, out=40):
    layers = nn.Conv1d(4, channels, 5, padding=2), nn.ReLU(), nn.Flatten(), nn.Linear(channels * L, out)
    return nn.Sequential(*layers).eval()


def by_way(plan, way):
    """The plan with a way for every layer that has it."""
    return plan.with_ways({r.node.index: way for r in plan.rules if r is not None and way in r.all_ways()})
