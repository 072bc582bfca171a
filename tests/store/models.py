"""Models that tests of `precompute` and its precomputations share."""

import copy
import warnings

import numpy as np
import pytest
import torch

from tests.capturing import capturing_once
from tests.small_models import randomized
from yuzu import precompute


class Several(torch.nn.Module):
    """Convolutions of every kind: padded, strided, dilated, grouped, without bias, one by one; then dense layers."""

    def __init__(self, length=40):
        super().__init__()
        self.conv1 = torch.nn.Conv1d(4, 6, 7, padding=3)
        self.conv2 = torch.nn.Conv1d(6, 6, 5, padding=4, dilation=2)
        self.conv3 = torch.nn.Conv1d(6, 8, 4, stride=2, padding=1, bias=False)
        self.conv4 = torch.nn.Conv1d(8, 8, 3, padding="same", groups=2)
        self.conv5 = torch.nn.Conv1d(8, 2, 1)
        self.fc = torch.nn.Linear(2 * (length // 2), 3)

    def forward(self, X):
        X = torch.relu(self.conv1(X))
        X = X + torch.relu(self.conv2(X))
        X = torch.nn.functional.gelu(self.conv3(X))
        return self.fc(torch.tanh(self.conv5(torch.relu(self.conv4(X)))).flatten(1))


@pytest.fixture(scope="module")
def several():
    return randomized(Several(), seed=1).eval()


def pearson(a, b):
    return float(np.corrcoef(np.asarray(a, dtype=float).ravel(), np.asarray(b, dtype=float).ravel())[0, 1])


@pytest.fixture(scope="module")
def several64(several):
    return copy.deepcopy(several).double()


@pytest.fixture(scope="module")
def gaussian(several, device):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with capturing_once():
            return precompute(several, 40, conv="gaussian", device=device)


def in_place(model):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.9).add_(0.02)


class Optional(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 3, 5)

    def forward(self, X, *args):
        X = torch.relu(self.conv(X)).sum(2)
        for a in args:
            X = X * a.flatten(1).sum(1, keepdim=True)
        return X


def break_handler(monkeypatch, operation, spoil):
    """Let the handler of an operation return something wrong."""
    from yuzu._engine.handlers import registry

    original = registry.registered()[operation]

    def broken(view):
        rule = original(view)
        if not isinstance(rule, str):
            run = rule.run
            object.__setattr__(rule, "run", lambda *args: spoil(run(*args)))  # rules are frozen
        return rule

    monkeypatch.setitem(registry._REGISTRY, operation, broken)
