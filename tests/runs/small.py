"""A small run: a model, 200 sequences, and its task."""

import functools

import pytest
import torch

from yuzu.runs.call import Call
from yuzu.runs.ism import given_sequences
from yuzu.runs.job import Job, begin
from yuzu.runs.worker import Task


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 8, 5, padding=2)
        self.end = torch.nn.Linear(8 * 24, 2)

    def forward(self, x):
        return self.end(torch.relu(self.conv(x)).flatten(1))


def small_call(output="delta", folds=1):
    models = []
    for fold in range(folds):
        torch.manual_seed(fold)
        models.append(Small().eval())
    settings = {"start": 0, "end": None, "batch_size": None, "device": "cpu"}
    return Call(models, None, None, None, output, settings)


def one_hot(n, length=24, seed=0):
    torch.manual_seed(seed)
    return torch.eye(4, dtype=torch.int8)[torch.randint(4, (n, length))].transpose(1, 2).contiguous()


@pytest.fixture
def small_run(tmp_path, monkeypatch):
    """Make the store of a run of ``n`` sequences, and return the task of its workers."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def made(name="s.zarr", n=200, block=4, **settings):
        load = functools.partial(small_call, **settings)
        X = one_hot(n)
        path = tmp_path / name
        begin(path, Job(load, {}, block=block), load(), lambda: given_sequences(X, [f"s{i}" for i in range(n)], "ACGT"))
        return Task(path, load)

    return made
