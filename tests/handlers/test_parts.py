"""The law for operations on segments, positions or channels that a model has in the batch, and models end to end."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu  # noqa: F401  registers every handler
from tests.handlers.picked import Net, assert_exact, sequences
from tests.laws.bench import CHANNELS, bench, fn, laws_of


def positions(m, x, length=13):
    """Every position in a row of its own."""
    y = m.inner(x.transpose(1, 2).reshape(-1, x.shape[1]))
    return y.reshape(len(x), length, -1)


def segments(m, x, count=4):
    """Segments of equal lengths, each in a row of its own."""
    y = x.unflatten(2, (count, -1)).transpose(1, 2).flatten(0, 1)
    y = m.inner(y)
    return y.unflatten(0, (len(x), count))


def channels(m, x):
    """Every channel in a row of its own."""
    return m.inner(x.reshape(-1, 1, x.shape[2])).reshape(len(x), x.shape[1], -1)


def parts_cases() -> None:
    part = "yuzu.on_parts"
    case = bench("parts", 16)
    for trunk in (0, 5):
        c = CHANNELS if trunk else 4
        case(f"batch norm of positions, trunk {trunk}", fn(lambda m, x: positions(m, x, 16).relu(), inner=lambda c=c: nn.BatchNorm1d(c)), trunk)
        case(f"convolution of segments, trunk {trunk}", fn(lambda m, x: segments(m, x).relu(), inner=lambda c=c: nn.Conv1d(c, 3, 3, padding=1)), trunk, **{part: "convolution"})
        case(f"encoder of segments, trunk {trunk}", fn(lambda m, x: segments(m, x), inner=lambda c=c: nn.Sequential(nn.Conv1d(c, 5, 2), nn.BatchNorm1d(5), nn.ReLU(), nn.MaxPool1d(3), nn.Flatten(), nn.Linear(5, 2), nn.Tanh())), trunk,
             **{part: "convolution|elementwise"})  # fmt: skip
    inner = {
        "no bias": lambda: nn.Conv1d(CHANNELS, 3, 3, bias=False), "same": lambda: nn.Conv1d(CHANNELS, 3, 3, padding="same", dilation=2), "groups": lambda: nn.Conv1d(CHANNELS, 4, 2, 2, groups=2),
    }  # fmt: skip
    for name, build in inner.items():
        case(f"convolution of segments, {name}", fn(lambda m, x: segments(m, x).exp(), inner=build), **{part: "convolution"})
    pools = {"max": nn.MaxPool1d(2), "adaptive max": nn.AdaptiveMaxPool1d(2), "instance norm": nn.InstanceNorm1d(CHANNELS), "group norm": nn.GroupNorm(2, CHANNELS), "PReLU": nn.PReLU(CHANNELS)}
    for name, module in pools.items():
        case(f"{name} of segments", fn(lambda m, x: segments(m, x).exp(), inner=lambda module=module: module))
    for name, module in {"average": nn.AvgPool1d(2), "adaptive average": nn.AdaptiveAvgPool1d(3)}.items():
        case(f"{name} of segments", fn(lambda m, x: segments(m, x).exp(), inner=lambda module=module: module), **{part: "reduce"})
    case("convolution of channels", fn(lambda m, x: channels(m, x).relu(), inner=lambda: nn.Conv1d(1, 2, 3, padding=1)), any="whole values", relu="whole values", add="merge", **{part: "convolution"})
    case("norm of channels", fn(lambda m, x: channels(m, x).relu(), inner=lambda: nn.InstanceNorm1d(1)), any="whole values", relu="whole values")
    case("segments of whole values", fn(lambda m, x: segments(m, x.softmax(2)).relu(), inner=lambda: nn.Conv1d(CHANNELS, 3, 3)), any="whole values", softmax="elementwise|whole values", **{part: "convolution"})
    case("segments in two axes", fn(lambda m, x: m.inner(x.reshape(len(x) * 2, 3, 4, 4).transpose(1, 2).flatten(0, 1)).reshape(len(x), 2, 4, -1).relu(), inner=lambda: nn.Conv1d(3, 2, 2)), any="whole values", **{part: "convolution"})
    case("matrix on the left", fn(lambda m, x: (m.w @ x).relu(), w=lambda: nn.Parameter(torch.randn(3, CHANNELS))), matmul="dense")
    case("matrix on the left, over positions", fn(lambda m, x: (m.w @ x.transpose(1, 2)).relu(), w=lambda: nn.Parameter(torch.randn(3, 16))), matmul="dense", relu="whole values")
    case("matrix on the left, over others", fn(lambda m, x: (m.w @ x.unflatten(1, (2, 3)).movedim(3, 1)).relu(), w=lambda: nn.Parameter(torch.randn(4, 2))), matmul="dense")


(
    test_the_law_in_float64,
    test_the_law_in_float32,
    test_the_family_that_handles_it,
    test_what_does_not_read_the_reference,
) = laws_of(parts_cases)


@pytest.mark.parametrize("options", [{}, {"start": 6, "end": 33}, {"batch_size": 3}], ids=str)
def test_an_encoder_of_segments(options):
    def function(m, x):
        return m.after(segments(m, x, 8).flatten(2).transpose(1, 2)).mean(2)

    model = Net(function)
    model.inner = nn.Sequential(nn.Conv1d(6, 5, 3), nn.GELU(), nn.BatchNorm1d(5), nn.AvgPool1d(2, 1))
    model.after = nn.Conv1d(10, 6, 3, padding=1)
    assert_exact(model.eval(), sequences(3), **options)


def test_only_the_segments_that_a_mutation_reaches_are_run():
    model = Net(lambda m, x: segments(m, x, 8).flatten(2).mean(1), size=20)
    model.inner = nn.Sequential(nn.Conv1d(6, 5, 2), nn.ReLU())
    layers = yuzu.precompute(model.eval(), 40, device="cpu").layers
    assert [layer.window for layer in layers if "on_parts" in layer.operation] == ["2 -> 2"]
    assert [layer.handler for layer in layers if "on_parts" in layer.operation] == ["convolution"]


def test_batch_norm_of_the_batch_itself_stays_out():
    model = Net(lambda m, x: F.batch_norm(x.transpose(1, 2).reshape(-1, 6), None, None, training=True).reshape(len(x), 40, 6).mean(1))
    with pytest.warns(yuzu.errors.YuzuWarning):
        made = yuzu.precompute(model.eval(), 40, device="cpu")
    assert "on_parts" not in str(made)
