"""Convolutions with few channels."""

import pytest
import torch
from torch import nn

import yuzu
from tests.covering import covering
from tests.oracle import assert_close, assert_right, errors, oracle
from tests.small_models import sequences
from yuzu._engine.run.run import Run
from yuzu._engine.ways import few_output_channels

# what the check of precompute finds wrong would run naively, and be right all the same
pytestmark = pytest.mark.filterwarnings("error::yuzu.YuzuWarning")

L = 40


@pytest.mark.parametrize(
    *covering(
        geometry=[(1, 1), (2, 1), (2, 50), (7, 1), (7, 3), (30, 1), (30, 3)],  # kernel and dilation
        way=["banded", "blocks", "whole", "fold", "fold in one product"],
        channels=[1, 3, 8],
    )
)
def test_few_output_channels(geometry, channels, way, device, monkeypatch):
    kernel, dilation = geometry
    if way == "fold in one product":
        block = {1: 16, 3: 5, 8: 3}[channels]
        monkeypatch.setattr(few_output_channels, "folded_block", lambda shape, low_precision: block)
    reach = (kernel - 1) * dilation
    model = nn.Sequential(
        nn.Conv1d(4, 6, 5, padding=2), nn.ReLU(), nn.Conv1d(6, channels, kernel, padding=reach, dilation=dilation)
    ).eval()
    X = sequences(2, L)
    for dtype in (torch.float32, torch.float64):
        precomputation = yuzu.precompute(model.to(dtype), L, conv=way.split()[0], device=device)
        found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device=device)
        assert_right(found, model, X, output="delta", device=device)
    precomputation = yuzu.precompute(model.float(), L, conv=way.split()[0], precision="medium", device=device)
    found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device=device)
    assert errors(found, oracle(model, X)["delta"])[0] < 2e-2


@pytest.mark.parametrize("settings", [{}, {"stride": 3}, {"dilation": 2, "padding": 6}, {"bias": False}])
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_the_reference_of_few_output_channels(settings, channels, monkeypatch):
    """Computed channels last: the model's own values."""
    model = nn.Sequential(nn.Conv1d(4, 16, 5), nn.ReLU(), nn.Conv1d(16, channels, 16, **settings)).eval()
    X = sequences(3, 2 * L)
    calls = []
    conv2d = torch.conv2d
    monkeypatch.setattr(torch, "conv2d", lambda *args: calls.append(args) or conv2d(*args))
    run = bound_run(model, X)
    assert calls, "not as the model does it"
    (output,) = run.plan.graph.output_nodes
    found, wanted = run.value(output), model(X).detach()
    assert found.shape == wanted.shape and found.is_contiguous()
    assert_close(found, wanted)


def bound_run(model, X):
    """A run with the reference of some sequences."""
    bound = yuzu.precompute(model, X.shape[2], device="cpu").bind(model, X.shape[2], 4, (), torch.device("cpu"))
    run = Run(bound.plan, bound.weights(), bound.derived, torch.device("cpu"))
    run.set_reference(X, ())
    return run


@pytest.mark.parametrize("conv", ["windows", "banded", "blocks", "whole", "fold", "cyclic"])
@pytest.mark.parametrize(("channels", "kernel"), [(2, 32), (4, 16), (4, 24), (6, 16), (8, 8), (8, 12), (12, 8)])
def test_medium_precision_with_few_channels(conv, channels, kernel, device):
    """Sizes at which oneDNN's bfloat16 convolutions are wrong."""
    for outputs, stride in ((2, 1), (16, 1), (16, 2)):
        last = nn.Conv1d(channels, outputs, kernel, stride, padding=kernel - 1)
        model = nn.Sequential(nn.Conv1d(4, channels, 7, padding=3), nn.ReLU(), last).eval()
        X = sequences(1, L)
        precomputation = yuzu.precompute(model, L, precision="medium", conv=conv, device=device)
        found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device=device)
        wrong, _ = errors(found, oracle(model, X)["delta"])
        assert wrong < 2e-2


@pytest.mark.parametrize("channels", [16, 24, 28])
@pytest.mark.parametrize(("kernel", "stride", "outputs", "before"), [(8, 8, 32, 15), (4, 4, 32, 15), (9, 1, 4, 72), (9, 1, 4, 71)])
def test_medium_precision_with_no_padding_left(channels, kernel, stride, outputs, before, device):
    """Sizes at which oneDNN's bfloat16 convolutions are wrong with a long stride."""
    first = nn.Conv1d(4, channels, before, padding=before // 2)
    model = nn.Sequential(first, nn.ReLU(), nn.Conv1d(channels, outputs, kernel, stride)).eval()
    X = sequences(1, 120)
    for conv in ("auto", "fold"):
        precomputation = yuzu.precompute(model, 120, precision="medium", conv=conv, device=device)
        found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device=device)
        wrong, _ = errors(found, oracle(model, X)["delta"])
        assert wrong < 2e-2
