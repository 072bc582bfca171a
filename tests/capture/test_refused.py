"""Models that are refused, with the reason, and run naively."""

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu
from tests.capture.models import Decides, Remembers, assert_right_or_refused, conv, seeded
from tests.laws.random_models import (
    one_hot,
)
from yuzu._engine.capture.errors import CaptureError
from yuzu._engine.rewrite.all import capture
from yuzu.errors import YuzuWarning

LENGTH = 12


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Sequential(conv(), nn.ReLU(), conv(5, 5)))


@pytest.mark.parametrize("kind", ["if", "while", "positions", "numpy", "all"])
def test_control_flow_on_content_is_refused_and_runs_naively(kind: str) -> None:
    model = seeded(lambda: Decides(kind)).eval()
    with pytest.raises(CaptureError):
        capture(model, (4, LENGTH), (), torch.float64)
    with pytest.warns(YuzuWarning, match="Decides runs naively.*(could not be captured|each mutant is run alone)"):
        made = yuzu.precompute(model, LENGTH, device="cpu")
    assert "naively" in made.summary()
    if kind in ("if", "numpy"):  # what depends on one row at a time
        X = one_hot(1, 4, LENGTH)
        found = yuzu.yuzu_ism(model, X, made, output="delta", device="cpu")
        assert found.shape == (1, 4, LENGTH, 5, LENGTH)


class Random(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.kind = conv(), kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "noise":
            return self.conv(x) + torch.randn_like(x[:, :1])
        if self.kind == "dropout":
            return F.dropout(self.conv(x), 0.5)  # training=True whatever the mode
        return self.conv(x)[:, torch.randperm(5)]


@pytest.mark.parametrize(
    ("build", "reason"),
    [(Remembers, "calls before"), (lambda: Random("noise"), "random"), (lambda: Random("dropout"), "random"), (lambda: Random("permutation"), "random")],
)
def test_what_changes_from_call_to_call_is_refused(build: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(CaptureError, match=reason):
        capture(seeded(build).eval(), (4, LENGTH), (), torch.float64)


def test_a_constant_model_is_refused_or_zero() -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ones(x.shape[0], 3)

    found = yuzu.yuzu_ism(Constant(), one_hot(2, 4, LENGTH, dtype=torch.float32), output="delta", device="cpu")
    assert found.shape == (2, 4, LENGTH, 3) and not found.any()


def test_a_scripted_model_runs_naively_at_worst() -> None:
    assert_right_or_refused(seeded(scripted).eval())


def test_a_fixed_batch_is_refused() -> None:
    class ThreeAtATime(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).view(3, -1)

    with pytest.raises(CaptureError):
        capture(seeded(ThreeAtATime), (4, LENGTH), (), torch.float64)


def test_both_strands_in_one_batch_are_not_mixed_up() -> None:
    """A wrapper that stacks the reverse complement onto the batch: its rows are not the sequences'."""

    class BothStrands(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), nn.Linear(5 * LENGTH, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            both = self.net(torch.cat([x, x.flip([1, 2])]))
            forward, backward = both.chunk(2)
            return (forward + backward) / 2

    assert_right_or_refused(seeded(BothStrands).eval())


def test_the_reason_stands_in_the_warning() -> None:
    model = seeded(lambda: Random("noise")).float()
    with pytest.warns(YuzuWarning) as caught:
        yuzu.precompute(model, LENGTH, device="cpu")
    (message,) = [str(w.message) for w in caught if issubclass(w.category, YuzuWarning)]
    assert "Random" in message and "rand" in message and "\n" not in message
