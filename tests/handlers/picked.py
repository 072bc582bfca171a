"""Models end to end, against naive ISM in float64."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

import yuzu

L = 40


class Net(nn.Module):
    """A convolution, a function that is given the module, and a dense layer."""

    def __init__(self, function, size=6, complex_weight=False):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.out = nn.Conv1d(4, 6, 5, padding=2), nn.Linear(size, 2)
            if complex_weight:
                self.weight = nn.Parameter(torch.randn(6, 6, 3, dtype=torch.complex64))
        self.function = function

    def forward(self, x, *args):
        return self.out(self.function(self, F.gelu(self.conv(x)), *args))


def sequences(n):
    letters = torch.randint(4, (n, L), generator=torch.Generator().manual_seed(1))
    X = torch.eye(4)[letters].transpose(1, 2).contiguous()
    X[0, :, 7] = 0  # N
    return X


def assert_exact(model, X, args=None, **options):
    plan = yuzu.precompute(model, L, args=args, device="cpu")
    assert "naive" not in [layer.handler for layer in plan.layers], plan.summary()
    found = yuzu.yuzu_ism(model, X, plan, args=args, output="delta", device="cpu", **options)
    truth = yuzu.naive_ism(copy.deepcopy(model).double(), X.double(), args=args, output="delta", device="cpu", **options)
    found, truth = torch.as_tensor(found).double(), torch.as_tensor(truth).double()
    assert truth.abs().max() > 0
    assert float((found - truth).norm() / truth.norm()) < 1e-5
