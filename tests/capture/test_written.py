"""Tensors that a forward writes to, read later or not."""

import copy
import warnings

import pytest
import torch
from torch import nn

import yuzu
from tests.oracle import assert_right
from tests.small_models import randomized, sequences
from yuzu._engine.capture.errors import CaptureError
from yuzu._engine.rewrite.all import capture
from yuzu.errors import YuzuWarning

LENGTH = 12


class Writing(nn.Module):
    """Writes down what it does, in buffers, attributes and lists; what it returns is by ``use``."""

    def __init__(self, use):
        super().__init__()
        self.conv, self.last, self.use = nn.Conv1d(4, 5, 3, padding=1), nn.Linear(5 * LENGTH, 2), use
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("more", torch.ones(3))
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("cache", torch.zeros(8, 5))
        self.register_buffer("empty", None)
        self.attribute, self.seen, self.kept, self.table, self.number = torch.zeros(()), None, [], {}, 0

    def forward(self, x):
        y = self.conv(x)
        given = self.use(self, x, y)
        return self.last((y if given is None else given).flatten(1))


def several_counters(m, x, y):
    m.calls.add_(1)
    m.more[0] += 1
    m.more.mul_(2)


def assigned(m, x, y):
    m.calls = m.calls + 1


def running_mean(m, x, y):
    m.mean.mul_(0.9).add_(y.mean((0, 2)), alpha=0.1)


def copied_mean(m, x, y):
    m.mean.copy_(0.9 * m.mean + 0.1 * y.detach().mean((0, 2)))


def largest(m, x, y):
    m.more[0] = torch.maximum(m.more[0], y.abs().max())


def rows_of_a_cache(m, x, y):
    m.cache[3] = y.mean((0, 2))
    m.cache.index_put_((torch.tensor([1]),), y[:1, :, 0])


def seen_last(m, x, y):
    m.seen, m.empty = y, y.mean(0)


def in_lists(m, x, y):
    m.kept.append(y)
    m.table["y"] = y.detach()
    m.number += 1


def in_place_on_an_attribute(m, x, y):
    m.attribute += 1


def input_written_over(m, x, y):
    return m.conv(x.mul_(2))


def overwritten_before_it_is_read(m, x, y):
    m.mean.copy_(y.mean((0, 2)))
    m.more.zero_().add_(2)
    return y * m.more[0]

WRITTEN = [several_counters, assigned, running_mean, copied_mean, largest, rows_of_a_cache, seen_last, in_lists, in_place_on_an_attribute,
           input_written_over, overwritten_before_it_is_read]  # fmt: skip


@pytest.mark.parametrize("use", WRITTEN)
def test_what_is_written_and_not_read_is_in_nobodys_way(use):
    model, X = randomized(Writing(use)).eval(), sequences(2, LENGTH)
    before, attribute = copy.deepcopy(model.state_dict()), model.attribute.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error", YuzuWarning)
        made = yuzu.precompute(model, LENGTH, device="cpu")
        for _ in range(2):
            assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device="cpu"), model, X, output="delta")
    assert made.decisions.naive_model is None and not made.decisions.naive
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(model.attribute, attribute) and model.seen is None and model.empty is None
    assert not model.kept and not model.table and model.number == 0


def read_after(m, x, y):
    m.calls += 1
    return y * m.calls


def read_before(m, x, y):
    scaled = y * (m.mean.sum() + 1)
    m.mean.add_(1)
    return scaled


def read_by_another(m, x, y):
    m.calls += 1
    m.more.add_(m.calls)
    return y + m.more[1]


def decided_by(m, x, y):
    m.calls += 1
    return y * 2 if m.calls > 2 else y


def partly_overwritten(m, x, y):
    m.cache[3] = y.mean((0, 2))
    return y + m.cache.sum()


def read_of_an_attribute(m, x, y):
    m.attribute += 1
    return y * m.attribute


@pytest.mark.parametrize("use", [read_after, read_before, read_by_another, decided_by, partly_overwritten, read_of_an_attribute])
def test_what_is_written_and_read_is_refused(use):
    with pytest.raises(CaptureError, match=r"forward changes '\w+' and reads it: what it returns depends on the calls before"):
        capture(randomized(Writing(use)).eval(), (4, LENGTH), (), torch.float32)
