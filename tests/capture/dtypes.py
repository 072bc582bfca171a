"""Models of several dtypes."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from tests.small_models import randomized

L = 30


class Dtypes(nn.Module):
    """Writes down what the forward casts to, so that a float64 copy can be made by hand."""

    def __init__(self, low=torch.bfloat16, high=torch.float32):
        super().__init__()
        self.low, self.high = low, high
        self.conv, self.fc = nn.Conv1d(4, 6, 5, padding=2), nn.Linear(6 * (L // 2), 3)

    def own(self):
        self.conv.to(self.low)
        self.fc.to(self.high)
        return self

    def double_by_hand(self):
        model_copy = copy.deepcopy(self).double()
        for name, value in vars(model_copy).items():
            if isinstance(value, torch.dtype):
                setattr(model_copy, name, torch.float64)
        return model_copy


class Trunk(Dtypes):
    """A trunk in less precision than the head."""

    def forward(self, x):
        return self.fc(F.max_pool1d(self.conv(x.to(self.low)).relu(), 2).to(self.high).flatten(1))


class Casts(Dtypes):
    """All weights in one dtype; the forward says float32, as a norm written out by hand does."""

    def own(self):
        return self.to(self.high)

    def forward(self, x):
        h = self.conv(x.to(self.high))
        h = h.to(self.high) - h.to(self.high).mean(1, keepdim=True)
        h = h * torch.rsqrt(h.pow(2).mean(1, keepdim=True) + 1e-5)
        return self.fc(F.max_pool1d(h.to(self.high), 2).flatten(1))


def made(kind, low, high=torch.float32, seed=0):
    torch.manual_seed(seed)
    return randomized(kind(low, high), seed).own().eval()


def own_naive(model, X):
    """By hand, in the model's own dtypes."""
    first = next(t.dtype for t in model.parameters())
    with torch.no_grad():
        found = []
        for x in X.to(first):
            rows = x.repeat(4 * L, 1, 1)
            for k in range(len(rows)):
                rows[k, :, k % L], rows[k, k // L, k % L] = 0, 1
            found.append((model(rows).double() - model(x[None]).double()).unflatten(0, (4, L)))
    return torch.stack(found)
