"""Snapshots of models, to show that nothing changed."""

import pytest
import torch

import yuzu


def precompute_only(model, X, **kwargs):
    kwargs.pop("func", None)
    return yuzu.precompute(model, X.shape[2], **kwargs)


def check_only(model, X, **kwargs):
    kwargs.pop("func", None)
    return yuzu.check(model, X, positions=3, **kwargs)

CALLS = {"precompute": precompute_only, "yuzu_ism": yuzu.yuzu_ism, "naive_ism": yuzu.naive_ism, "check": check_only}


@pytest.fixture(params=CALLS)
def call(request):
    return CALLS[request.param]


def snapshot(model):
    """Everything about a model that a caller could notice, by identity and by value."""
    seen = {}
    for name, module in model.named_modules(remove_duplicate=False):
        seen[name] = {
            "class": type(module),
            "identity": id(module),
            "training": module.training,
            "attributes": {k: id(v) for k, v in module.__dict__.items() if k != "training"},
            "children": [(k, id(m)) for k, m in module._modules.items()],
            "hooks": {k: [(i, id(h)) for i, h in v.items()] for k, v in module.__dict__.items() if k.endswith("hooks")},
            "plain": {k: v for k, v in module.__dict__.items() if isinstance(v, int | float | str | tuple)},
        }
        for kind in ("_parameters", "_buffers"):
            for key, tensor in module.__dict__[kind].items():
                if tensor is None:
                    continue
                grad = tensor.grad
                seen[f"{name}.{key}"] = {
                    "identity": id(tensor),
                    "address": tensor.data_ptr(),
                    "bits": tensor.detach().cpu().numpy().tobytes(),
                    "version": tensor._version,
                    "dtype": tensor.dtype,
                    "device": tensor.device,
                    "requires_grad": tensor.requires_grad,
                    "leaf": tensor.is_leaf,
                    "inference": tensor.is_inference(),
                    "grad": None if grad is None else (id(grad), grad.numpy().tobytes(), grad._version),
                    "hooks": None if tensor._backward_hooks is None else list(tensor._backward_hooks),
                }
    return seen


class Boom(Exception):
    pass


def raise_at_call(count):
    calls = []

    def func(y):
        calls.append(1)
        if len(calls) == count:
            raise Boom("half way")
        return y

    return func


def count(model):
    model.seen.add_(1)


class Noisy(torch.nn.Module):
    """Dropout as a module, as a function and over channels; batch norm; and a branch on the flag itself."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 6, 5, padding=2)
        self.norm = torch.nn.BatchNorm1d(6)
        self.dropout = torch.nn.Dropout(0.5)
        self.channels = torch.nn.Dropout1d(0.5)
        self.fc = torch.nn.Linear(6, 2)

    def forward(self, X):
        X = self.channels(torch.relu(self.norm(self.conv(X))))
        X = torch.nn.functional.dropout(X, 0.3, training=self.training)
        y = self.fc(self.dropout(X).mean(2))
        return y + 100 * X.amax(2)[:, :2] if self.training else y
