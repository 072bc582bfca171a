"""Ensembles by ``torch.func.vmap``: each member keeps its windows, as if the model had called it by itself."""

import copy
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

import yuzu
from tests.oracle import assert_right
from tests.small_models import randomized, sequences
from yuzu._engine.capture.unrolled_vmap import MOST_MEMBERS, vmap_unrolled
from yuzu._engine.rewrite.all import capture
from yuzu.errors import YuzuWarning

LENGTH = 24


class Member(nn.Module):
    def __init__(self, profile: bool = False) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv1d(4, 5, 3, padding=1), nn.BatchNorm1d(5), nn.Conv1d(5, 6, 3, dilation=2)
        self.over, self.dense, self.profile = nn.LayerNorm(5), nn.Linear(6, 2), profile

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.max_pool1d(torch.relu(self.norm(self.first(x))), 2)
        y = torch.relu(self.second(self.over(y.transpose(1, 2)).transpose(1, 2)))
        return y if self.profile else self.dense(y.mean(2))


class Ensemble(nn.Module):
    """Members whose tensors are stacked in each forward, or were stacked before."""

    def __init__(self, gather: Callable[[torch.Tensor], torch.Tensor], stacked: bool, profile: bool = False, **options: Any) -> None:
        super().__init__()
        members = [randomized(Member(profile), seed).eval() for seed in range(3)]
        self.bare, self.gather, self.options = [copy.deepcopy(members[0]).to("meta")], gather, options
        self.members = None if stacked else nn.ModuleList(members)
        if stacked:
            parameters, buffers = stack_module_state(members)
            self.names = [list(parameters), list(buffers)]
            for name, value in parameters.items():
                self.register_parameter(name.replace(".", "_"), nn.Parameter(value.detach()))
            for name, value in buffers.items():
                self.register_buffer(name.replace(".", "_"), value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.members is not None:
            state = stack_module_state(list(self.members))
        else:
            state = tuple({name: getattr(self, name.replace(".", "_")) for name in some} for some in self.names)
        one = vmap(lambda p, b, x: functional_call(self.bare[0], (p, b), (x,)), in_dims=(0, 0, None), **self.options)
        return self.gather(one(*state, x))


def mean(y: torch.Tensor) -> torch.Tensor:
    return y.mean(0)


def spread(y: torch.Tensor) -> torch.Tensor:
    return y.std(0) + y.amax(0)


def swapped(y: torch.Tensor) -> torch.Tensor:
    return y.transpose(0, 1)


def moved(y: torch.Tensor) -> torch.Tensor:
    return y.movedim(0, 1)


def as_it_is(y: torch.Tensor) -> torch.Tensor:
    return y


def right_and_planned(model: nn.Module, args: tuple[torch.Tensor, ...] = ()) -> yuzu.Precomputation:
    X = sequences(2, LENGTH)
    with warnings.catch_warnings():
        warnings.simplefilter("error", YuzuWarning)
        made = yuzu.precompute(model, LENGTH, args=args or None, conv="windows", device="cpu")  # whatever is faster here
        found = yuzu.yuzu_ism(model, X, made, args=args or None, output="delta", device="cpu")
    assert_right(found, model, X, args=args, output="delta")
    assert made.decisions.naive_model is None and not made.decisions.naive
    return made


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("gather", [mean, spread, swapped, moved])
def test_members_keep_their_windows(gather: Callable[[torch.Tensor], torch.Tensor], stacked: bool) -> None:
    model = Ensemble(gather, stacked).eval()
    made = right_and_planned(model)
    convolutions = [layer for layer in made.layers if layer.operation.startswith("conv1d")]
    assert len(convolutions) == 6 and all(layer.handler == "convolution" for layer in convolutions), made.summary()


def test_profiles_out_dims_and_chunks() -> None:
    right_and_planned(Ensemble(mean, True, profile=True).eval())
    right_and_planned(Ensemble(as_it_is, True, out_dims=1).eval())
    right_and_planned(Ensemble(mean, True, chunk_size=2).eval())


def test_weights_are_looked_up_at_each_call() -> None:
    for stacked in (True, False):
        model, X = Ensemble(mean, stacked).eval(), sequences(2, LENGTH)
        made = yuzu.precompute(model, LENGTH, device="cpu")
        yuzu.yuzu_ism(model, X, made, device="cpu")
        randomized(model, seed=7)
        assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device="cpu"), model, X, output="delta")


class Mapped(nn.Module):
    def __init__(self, use: Callable[..., Any]) -> None:
        super().__init__()
        self.conv, self.weights, self.use = nn.Conv1d(4, 5, 3), nn.Parameter(torch.zeros(3, 2, 5)), use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.use(self, torch.relu(self.conv(x)))


def nested(m, y):
    return vmap(lambda w: vmap(lambda row: (y * row[:, None]).sum(1))(w), out_dims=1)(m.weights).mean(1).transpose(0, 1)


def over_channels(m, y):
    return vmap(lambda one: one.mean(1), in_dims=1, out_dims=-1)(y)


def several_results(m, y):
    a, b = vmap(lambda w: (y.mean(2) @ w.T, {"sum": w.sum()}), out_dims=(1, 0))(m.weights)
    return a.sum(1) + b["sum"].sum()


def over_sequences(m, y):
    return vmap(lambda one: one.mean(1))(y)


def over_positions(m, y):
    positions = torch.arange(2 * MOST_MEMBERS, dtype=y.dtype)
    return vmap(lambda p: y.mean(2) * p, out_dims=1)(positions).sum(1)


@pytest.mark.parametrize("use", [nested, over_channels, several_results, over_sequences, over_positions])
def test_other_uses_of_vmap(use: Callable[..., Any]) -> None:
    model, X = randomized(Mapped(use)).eval(), sequences(2, LENGTH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", YuzuWarning)
        found = yuzu.yuzu_ism(model, X, output="delta", device="cpu")
    assert_right(found, model, X, output="delta")


def test_only_this_threads_vmap_is_unrolled_and_only_meanwhile() -> None:
    def batched(x: torch.Tensor) -> torch.Tensor:
        kinds.append(torch._C._functorch.is_batchedtensor(x))
        return x * 2

    kinds: list[bool] = []
    run = vmap(batched)
    with vmap_unrolled():
        assert torch.equal(run(torch.ones(2, 3)), torch.full((2, 3), 2.0)) and kinds == [False, False]
        thread = threading.Thread(target=run, args=(torch.ones(2, 3),))
        thread.start()
        thread.join()
        assert kinds == [False, False, True]
        with pytest.raises(ValueError, match="in_dims"):
            vmap(batched, in_dims=(0, 0))(torch.ones(2, 3))
    run(torch.ones(2, 3))
    assert kinds == [False, False, True, True]


# ---- convolutions under their general name


GENERAL = {
    "conv1d": ((6, 4, 3), lambda x, w, b: torch.convolution(x, w, b, [1], [1], [2], False, [0], 1)),
    "strided": ((6, 4, 3), lambda x, w, b: torch.ops.aten.convolution(x, w, None, [2], [0], [1], False, [0], 1)),
    "groups": ((6, 2, 3), lambda x, w, b: torch.convolution(x, w, b, [1], [1], [1], False, [0], 2)),
    "transposed": ((4, 6, 3), lambda x, w, b: torch.convolution(x, w, b, [2], [1], [1], True, [1], 1)),
    "conv2d": ((6, 4, 1, 3), lambda x, w, b: torch.convolution(x.unsqueeze(2), w, b, [1, 1], [0, 1], [1, 1], False, [0, 0], 1).squeeze(2)),
}


class General(nn.Module):
    def __init__(self, shape: tuple[int, ...], use: Callable[..., Any]) -> None:
        super().__init__()
        self.weight, self.bias, self.use = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(6)), use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.use(x, self.weight, self.bias)).mean(2)


@pytest.mark.parametrize("name", GENERAL)
def test_convolutions_by_their_general_name(name: str) -> None:
    model = randomized(General(*GENERAL[name])).eval()
    right_and_planned(model)
    usual = {n.op for n in capture(model, (4, LENGTH), (), torch.float32).nodes if "conv" in n.op}
    assert usual == {"aten.conv2d" if name == "conv2d" else "aten.conv_transpose1d" if name == "transposed" else "aten.conv1d"}
