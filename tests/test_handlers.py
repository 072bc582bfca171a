"""`yuzu.handlers`: rules of one's own, and the law as a function that a user's test calls."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu
from tests.small_models import sequences
from yuzu import handlers as kit
from yuzu._engine.handlers.registry import registered


def smooth(x):
    return F.avg_pool1d(x, 3, 1, 1)


def linear(kernel=3, padding=1):
    return lambda view: kit.Linear(view, lambda x: F.avg_pool1d(x, 3, 1), kernel=kernel, padding=padding)


def windowed(kernel=3, padding=1, fill=0.0):
    return lambda view: kit.Windowed(view, lambda x: F.avg_pool1d(x, 3, 1), kernel=kernel, padding=padding, fill=fill)


@pytest.mark.parametrize("handler", [linear(), windowed(), kit.RowWise, lambda view: kit.RowWise(view)])
def test_rules_that_obey_the_law(handler):
    before = registered()
    kit.check_law(handler, smooth)
    kit.check_law(handler, nn.AvgPool1d(3, 1, 1))
    assert registered() == before


class Twice(kit.Rule):
    """The delta itself, as if the operation were the identity."""

    def __init__(self, view):
        super().__init__(view, view.layout(view.node.args[0]))

    def run(self, run, changes, window):
        return changes[0].tensor


BROKEN = {
    "a kernel too narrow": linear(kernel=2),
    "another padding": linear(padding=0),
    "another fill": windowed(fill=1.0),
    "another function": lambda view: kit.Windowed(view, lambda x: 1.001 * F.avg_pool1d(x, 3, 1), kernel=3, padding=1),
    "another rule": Twice,
}


@pytest.mark.parametrize("name", BROKEN)
def test_rules_that_break_the_law(name):
    with pytest.raises(AssertionError, match=r"aten.avg_pool1d breaks the law for edits of . positions? .*differs"):
        kit.check_law(BROKEN[name], smooth)


def test_linear_rules_of_what_is_not_linear_break_the_law():
    def handler(view):
        return kit.Linear(view, lambda x: F.max_pool1d(x, 3, 1), kernel=3)

    with pytest.raises(AssertionError, match="breaks the law"):
        kit.check_law(handler, nn.MaxPool1d(3, 1))


def test_a_handler_that_gives_a_reason():
    with pytest.raises(AssertionError, match="aten.avg_pool1d runs naively: not today"):
        kit.check_law(lambda view: "not today", smooth)


def test_which_operation_is_meant():
    def several(x):
        return F.max_pool1d(x, 3, 1, 1) + F.avg_pool1d(x, 3, 1, 1)

    with pytest.raises(yuzu.YuzuError, match="operation must be named.*aten.avg_pool1d.*aten.max_pool1d"):
        kit.check_law(linear(), several)
    kit.check_law(linear(), several, "aten.avg_pool1d")
    with pytest.raises(AssertionError, match="aten.lgamma does not occur among"):
        kit.check_law(linear(), several, "aten.lgamma")


@pytest.mark.parametrize("channels", [5, 8])
def test_channels_are_found(channels):
    module = nn.Sequential(nn.Conv1d(channels, 3, 1), nn.AvgPool1d(3, 1, 1))
    kit.check_law(linear(), module, "aten.avg_pool1d")


def test_what_does_not_run():
    with pytest.raises(yuzu.YuzuError, match="does not run on .*channels= and lengths="):
        kit.check_law(linear(), nn.LayerNorm(7))


@pytest.fixture
def operator():
    """A custom operator that weighs positions by their distance from the middle: local, and of no other kind."""

    @torch.library.custom_op("kit_test::weighed", mutates_args=())
    def weighed(x: torch.Tensor) -> torch.Tensor:
        return x * torch.linspace(0, 1, x.shape[2], dtype=x.dtype, device=x.device)

    weighed.register_fake(torch.empty_like)
    yield weighed
    registered_names = [name for name in registered() if name.startswith("kit_test")]
    for name in registered_names:
        kit.handles(name)(lambda view: "the test is over")


def test_a_row_wise_operation_in_three_lines(operator):
    @kit.handles("kit_test::weighed")
    def handle(view):
        return kit.RowWise(view)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv1d(4, 5, 3), nn.Linear(5, 2)

        def forward(self, x):
            return self.head(operator(self.conv(x)).mean(2))

    kit.check_law(handle, operator)
    model, X = Model(), sequences(2, 30)
    plan = yuzu.precompute(model, 30, device="cpu")
    assert "naive" not in plan.summary()
    found = yuzu.yuzu_ism(model, X, plan, output="delta", device="cpu")
    truth = yuzu.naive_ism(model.double(), X.double(), output="delta", device="cpu")
    assert float((found - truth).norm() / truth.norm()) < 1e-5


INTERPOLATIONS = {
    "up": {"scale_factor": 2},
    "up, corners": {"scale_factor": 2, "align_corners": True},
    "as it is": {"scale_factor": 1},
    "down": {"scale_factor": 0.4},
    "odd": {"scale_factor": 2.04},
    "odd, computed anew": {"scale_factor": 2.04, "recompute_scale_factor": True},
    "to a size": {"size": 31},
    "to a size, corners": {"size": 31, "align_corners": True},
    "to one": {"size": 1},
}


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_linear_interpolation_obeys_the_law(name):
    from yuzu._engine.handlers.interpolate import upsample_linear

    kit.check_law(upsample_linear, lambda x: F.interpolate(x, mode="linear", **INTERPOLATIONS[name]))


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_linear_interpolation_keeps_windows(name):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv1d(4, 5, 5, padding=2), nn.Conv1d(5, 2, 3, padding=1)

        def forward(self, x):
            return self.b(F.interpolate(torch.relu(self.a(x)), mode="linear", **INTERPOLATIONS[name]))[:, :, 1:]

    if name == "to one":
        return
    model, X = Model(), sequences(2, 40)
    X[0, :, 7] = 0
    plan = yuzu.precompute(model, 40, device="cpu")
    (row,) = (row for row in plan.layers if row.operation == "upsample_linear1d")
    before, after = map(int, row.window.split(" -> "))
    assert row.handler == "view" and after < 40 * np.ceil(INTERPOLATIONS[name].get("scale_factor", 1)) / 2 and before == 5
    truth = yuzu.naive_ism(model.double(), X.double(), output="delta", device="cpu")
    found = yuzu.yuzu_ism(model.float(), X, plan, output="delta", device="cpu")
    assert float((found - truth).norm() / truth.norm()) < 1e-5
