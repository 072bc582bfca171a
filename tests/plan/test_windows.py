"""Windows of whole models, against perturbing them."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.laws.random_models import CPU, one_hot
from tests.windows import hull
from yuzu._engine.derived import Derived
from yuzu._engine.edits import Sites
from yuzu._engine.graph import Weights
from yuzu._engine.plan.plan import make_plan
from yuzu._engine.rewrite.all import capture
from yuzu._engine.run.run import Run


class Stack(nn.Module):
    """Several towers of operations that spread a change as far as they can: positive weights, averages."""

    def __init__(self, towers: list[list[nn.Module]]) -> None:
        super().__init__()
        self.towers = nn.ModuleList([nn.Sequential(*tower) for tower in towers])
        for p in self.parameters():
            nn.init.constant_(p, 0.5)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [tower(x) for tower in self.towers]


class Crop(nn.Module):
    def __init__(self, left: int, right: int, step: int = 1) -> None:
        super().__init__()
        self.left, self.right, self.step = left, right, step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, self.left : x.shape[2] - self.right : self.step]


def conv(k: int, **settings: Any) -> nn.Module:
    return nn.Conv1d(4, 4, k, **settings)

TOWERS = {
    "one convolution": [conv(5, padding=2)],
    "unpadded": [conv(5), conv(4)],
    "stride": [conv(4, stride=3, padding=1), conv(3, padding=1)],
    "stride beyond kernel": [conv(2, stride=4)],
    "average pool": [conv(3, padding=1), nn.AvgPool1d(4), conv(3, padding=1)],
    "overlapping pool": [nn.AvgPool1d(5, 2, 2), nn.AvgPool1d(3, 3)],
    "ceil": [nn.AvgPool1d(4, 4, 1, ceil_mode=True), conv(2)],
    "crop": [conv(7, padding=3), Crop(5, 3)],
    "crop twice": [Crop(2, 0), conv(3), Crop(0, 4), conv(3, padding=1)],
    "every third": [conv(3, padding=1), Crop(1, 0, 3), conv(3, padding=1)],
    "padding": [nn.ZeroPad1d((3, 1)), conv(3), nn.ZeroPad1d((-2, 4)), conv(3)],
    "up": [nn.Upsample(scale_factor=3), conv(4)],
    "transposed": [nn.ConvTranspose1d(4, 4, 4, stride=2, padding=1), conv(3, padding=1)],
    "wider than the sequence": [conv(25, padding=12), conv(25, padding=12)],
    "to one position": [conv(19)],
}

LENGTH = 19


@pytest.fixture(scope="module")
def towers() -> tuple[nn.Module, Any]:
    model = Stack(list(TOWERS.values())).double().eval()
    return model, make_plan(capture(model, (4, LENGTH), (), torch.float64))


def changed_positions(model: nn.Module, X: torch.Tensor, position: int, width: int) -> list[np.ndarray]:
    mutant = X.clone()
    mutant[:, :, position : position + width] += 1
    with torch.no_grad():
        return [((a - b).abs().flatten(0, -2).amax(0) > 1e-12).numpy() for a, b in zip(model(mutant), model(X), strict=True)]


@pytest.mark.parametrize("width", [1, 3])
def test_windows_are_what_a_perturbation_changes(towers: Any, width: int) -> None:
    model, plan = towers
    X = one_hot(1, 4, LENGTH)
    positions = np.arange(LENGTH - width + 1)
    windows = plan.windows(positions, width)
    for p in positions:
        for name, o, changed in zip(TOWERS, plan.graph.outputs, changed_positions(model, X, p, width), strict=True):
            window = windows[o]
            declared = (int(window.first[p]), int(window.stop[p]))
            wanted = hull(changed)
            if wanted == (0, 0):
                assert declared[1] <= declared[0], (name, p, declared)
            else:
                assert declared == wanted, (name, p)


@pytest.mark.parametrize(
    "towers", [[[conv(2, stride=4)]], [[conv(3), Crop(5, 3)]], [[Crop(4, 0)], [Crop(0, 9)]], [[Crop(1, 0, 3), conv(2), nn.Flatten()]]]
)
def test_positions_that_reach_nothing_are_known(towers: list[list[nn.Module]]) -> None:
    """A crop, or a stride beyond the kernel, makes positions that no output sees: they need not be run at all."""
    model = Stack(towers).double()
    plan = make_plan(capture(model, (4, LENGTH), (), torch.float64))
    reach, _ = plan.reach(np.arange(LENGTH), 1)
    X = one_hot(1, 4, LENGTH)
    wanted = [any(c.any() for c in changed_positions(model, X, p, 1)) for p in range(LENGTH)]
    assert reach.tolist() == wanted
    assert any(wanted) and (len(towers) == 2 or not all(wanted))


def test_windows_are_cut_to_what_the_output_needs() -> None:
    """Behind a crop to the middle, no layer carries more positions of a site than the crop leaves, or hardly more where
    windows then lie alike.
    """
    model = nn.Sequential(conv(9, padding=4), nn.ReLU(), conv(9, padding=4), Crop(8, 8)).double()
    plan = make_plan(capture(model, (4, LENGTH), (), torch.float64))
    spans = [plan.needed[n.index] for n in plan.graph.nodes if n.mutated]
    assert spans == [(0, 19), (4, 15), (4, 15), (8, 11), (0, 3)]
    for positions in (np.arange(LENGTH), np.arange(4), np.arange(13, LENGTH), np.array([0, 18])):
        for node, window in zip(plan.graph.nodes, plan.windows(positions, 1), strict=True):
            if window is not None and window.width:
                low, high = plan.needed[node.index]
                assert window.width <= 1.125 * (np.minimum(window.stop, high) - np.maximum(window.first, low)).max()
                assert window.natural is not None or (window.start.min() >= low and window.start.max() + window.width <= high)


def test_nothing_is_moved_from_layer_to_layer_where_a_crop_cuts_windows() -> None:
    """From one layer to the next the windows of all sites move by as much, whichever side a crop cuts them on."""
    layers = [conv(9, padding=4), nn.ReLU(), conv(3, padding=8, dilation=8), nn.ReLU(), conv(9, padding=4), Crop(30, 30)]
    plan = make_plan(capture(nn.Sequential(*layers).double(), (4, 100), (), torch.float64))
    for positions in (np.arange(20, 30), np.arange(45, 55), np.arange(70, 80)):
        windows = [w for w in plan.windows(positions, 1)[:-1] if w is not None]
        assert len(windows) == 6 and all(w.step == 1 and w.natural is not None for w in windows)
        assert any(w.width < w.natural[1][0] - w.natural[0][0] for w in windows) or positions[0] == 45


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [
        ([conv(5, padding=2), conv(3, padding=4, dilation=2)], [(0, 0), (-2, 2), (-2, 6)]),
        ([Crop(3, 1), conv(3)], [(0, 0), (-3, -3), (-5, -3)]),
        ([conv(3, stride=2), conv(3)], [(0, 0), None, None]),
        ([nn.Upsample(scale_factor=2)], [(0, 0), None]),
        ([conv(19, padding=9), conv(3, padding=1)], [(0, 0), (-9, 9), None]),
    ],
)
def test_how_far_from_an_edit_windows_reach(layers: list[nn.Module], wanted: list[tuple[int, int] | None]) -> None:
    plan = make_plan(capture(nn.Sequential(*layers).double(), (4, LENGTH), (), torch.float64))
    assert [reach for node, reach in zip(plan.graph.nodes, plan.spreads, strict=True) if node.mutated] == wanted


def test_windows_do_not_depend_on_the_other_sites(towers: Any) -> None:
    """Each site has its own reach; only the carried width is common."""
    _, plan = towers
    together = plan.windows(np.arange(LENGTH), 1)
    for p in range(LENGTH):
        alone = plan.windows(np.array([p]), 1)
        for a, t in zip(alone, together, strict=True):
            if a is not None and t.stop[p] > t.first[p]:
                assert (a.first[0], a.stop[0]) == (t.first[p], t.stop[p]) and a.width <= t.width


def test_windows_are_kept_for_the_next_sequence(towers: Any) -> None:
    _, plan = towers
    assert plan.windows(np.arange(7), 1) is plan.windows(np.arange(7), 1)
    assert plan.windows(np.arange(7), 1) is not plan.windows(np.arange(7), 2)


def test_zero_padding_is_never_taken_for_a_position() -> None:
    """An overhanging window must stay zero outside the sequence, also after a bias and an activation that is not "
    "zero at zero."""
    model = nn.Sequential(conv(5, padding=2), nn.Sigmoid(), conv(5, padding=2), nn.Softplus(), conv(5, padding=2)).double()
    X = one_hot(1, 4, 6)
    plan = make_plan(capture(model, (4, 6), (), torch.float64))
    run = Run(plan, Weights(model, CPU), Derived(), CPU)
    with torch.no_grad():
        run.set_reference(X, ())
        for p in (0, 5):
            difference = torch.randn(1, 1, 1, 4, dtype=torch.float64)
            (change,) = run.chunk(Sites(np.array([0]), np.array([p]), 1, difference))
            mutant = X.clone()
            mutant[0, :, p] += difference[0, 0, 0]
            whole = run.whole(plan.graph.outputs[0], change)[0]
            assert torch.allclose(whole, model(mutant) - model(X), atol=1e-13, rtol=0)
