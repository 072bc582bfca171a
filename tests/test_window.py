"""The arithmetic of windows, against perturbing real operations and against plain indexing."""

import gc
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_models import CPU, one_hot
from torch import nn

from yuzu._engine.graph import Weights
from yuzu._engine.layout import FEW_SITES, Change, Layout, expand, read_windows, rewindow
from yuzu._engine.plan.plan import make_plan
from yuzu._engine.rewrite.all import capture
from yuzu._engine.run.run import Derived, Run, Sites
from yuzu._engine.window import Geometry, Window, union

quickly = settings(max_examples=150, deadline=None, derandomize=True)


# ---- geometry ------------------------------------------------------------------------------------------------------------------------------


@st.composite
def geometries(draw: Any) -> Geometry:
    k, s, d = draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    reach = (k - 1) * d
    p = draw(st.integers(0, reach + 2))
    length = draw(st.integers(1, 17))
    assume(length + 2 * p > reach)
    return Geometry(k, s, p, d, length, (length + 2 * p - reach - 1) // s + 1)


def taps(g: Geometry) -> np.ndarray:
    """Which input each output reads: ``(outputs, inputs)`` of booleans, from running a convolution of ones."""
    eye = torch.eye(g.input_length).unsqueeze(1)
    out = F.conv1d(eye, torch.ones(1, 1, g.kernel), stride=g.stride, padding=g.padding, dilation=g.dilation)
    assert out.shape[2] == g.output_length
    return (out[:, 0].T > 0).numpy()


def hull(mask: np.ndarray) -> tuple[int, int]:
    found = np.flatnonzero(mask)
    return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, 0)


@quickly
@given(geometries(), st.data())
def test_outputs_that_read_an_interval(g: Geometry, data: Any) -> None:
    first = data.draw(st.integers(0, g.input_length - 1))
    stop = data.draw(st.integers(first + 1, g.input_length))
    low, high = (int(v[0]) for v in g.outputs_of(np.array([first]), np.array([stop])))
    low, high = max(low, 0), min(high, g.output_length)
    changed = hull(taps(g)[:, first:stop].any(1))
    if changed == (0, 0):
        assert high <= low or g.dilation > 1
        return
    assert low <= changed[0] and high >= changed[1]
    if g.dilation == 1:
        assert (low, high) == changed


@quickly
@given(geometries(), st.data())
def test_inputs_that_an_interval_of_outputs_reads(g: Geometry, data: Any) -> None:
    low = data.draw(st.integers(0, g.output_length - 1))
    high = data.draw(st.integers(low + 1, g.output_length))
    first, stop = g.inputs_of(low, high)
    read = hull(taps(g)[low:high].any(0))
    assert 0 <= first <= stop <= g.input_length
    if read != (0, 0):
        assert first <= read[0] and stop >= read[1]
    if g.padding == 0:
        assert (first, stop) == read
    at = g.read_by(Window.at(np.array([low]), high - low))
    assert at.width == at.stop[0] - at.first[0] and at.start[0] == at.first[0]
    inside = max(at.first[0], 0), min(at.stop[0], g.input_length)
    assert (inside if inside[1] > inside[0] else (0, 0)) == (first, stop)


@quickly
@given(geometries())
def test_an_output_that_reads_a_position_is_reached_by_it(g: Geometry) -> None:
    table = taps(g)
    everywhere = np.arange(g.input_length)
    low, high = g.outputs_of(everywhere, everywhere + 1)
    for output, position in zip(*np.nonzero(table), strict=True):
        assert low[position] <= output < high[position]
        first, stop = g.inputs_of(output, output + 1)
        assert first <= position < stop


def test_empty_intervals_reach_nothing() -> None:
    g = Geometry(3, 1, 1, 1, 10, 10)
    low, high = g.outputs_of(np.array([4, 4]), np.array([4, 2]))
    assert (high <= low).all()
    assert g.inputs_of(5, 5) == (0, 0) and g.inputs_of(6, 2) == (0, 0)
    assert Geometry(2, 1, 5, 1, 3, 12).inputs_of(0, 1) == (0, 0)  # an output in the padding alone


# ---- windows -------------------------------------------------------------------------------------------------------------------------------


@st.composite
def intervals(draw: Any, length: int = 20, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    n = draw(st.integers(least, 6))
    first = np.array(draw(st.lists(st.integers(-5, length), min_size=n, max_size=n)))
    width = np.array(draw(st.lists(st.integers(-2, 9), min_size=n, max_size=n)))
    return first, first + width


@quickly
@given(intervals(), st.integers(0, 12), st.integers(0, 12))
def test_fit_holds_every_interval_in_the_least_width(spans: Any, low: int, size: int) -> None:
    (first, stop), high = spans, low + size
    window = Window.fit(first, stop, (low, high), high + 3)
    inside = [set(range(max(f, low), min(s, high))) for f, s in zip(first, stop, strict=True)]
    assert window.width == max(map(len, inside))
    for start, f, s, wanted in zip(window.start, window.first, window.stop, inside, strict=True):
        assert set(range(f, s)) == wanted
        if window.width:
            assert low <= start and start + window.width <= high
            assert wanted <= set(range(start, start + window.width))


@quickly
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(1, 9), st.integers(0, 10), st.integers(11, 31))
def test_starts_never_decrease_for_positions_that_never_decrease(places: list[int], width: int, low: int, high: int) -> None:
    first = np.array(sorted(places))
    window = Window.fit(first, first + width, (low, high), high)
    assert (np.diff(window.start) >= 0).all()
    natural = (first, first + width)
    assert (np.diff(Window.fit(*natural, (low, high), high + 2, natural).start) >= 0).all()


@quickly
@given(
    st.lists(st.integers(-9, 50), min_size=1, max_size=8),
    st.integers(1, 30),
    st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20)),
)
def test_windows_along_their_sites_hold_every_interval(places: list[int], width: int, sizes: tuple[int, int, int]) -> None:
    """What is needed of every interval lies in its window, and all that lies between the first and the last needed."""
    low, high, length = (sum(sizes[: i + 1]) for i in range(3))
    first = np.array(sorted(places))
    window = Window.fit(first, first + width, (low, high), length, (first, first + width))
    plain = Window.fit(first, first + width, (low, high), length)
    assert plain.width <= window.width <= 1.125 * plain.width
    assert (plain.first == window.first).all() and (plain.stop == window.stop).all()
    if not window.width:
        return
    for start, f, s in zip(window.start, window.first, window.stop, strict=True):
        assert 0 <= start and start + window.width <= length
        assert set(range(f, s)) <= set(range(start, start + window.width))
    if window.natural is not None and not (first < 0).any() and not (first + 2 * width > length).any():
        assert len(set(window.start - first)) == 1


def test_windows_cut_at_one_end_lie_alike_towards_their_sites() -> None:
    first = np.arange(40, 50)
    natural = (first, first + 60)
    left = Window.fit(*natural, (80, 200), 300, natural)
    assert left.width == 109 - 80 and left.step == 1 and left.start[-1] == 80
    right = Window.fit(*natural, (20, 90), 300, natural)
    assert right.width == 90 - 40 and right.step == 1 and right.start[0] == 40
    both = Window.fit(*natural, (70, 75), 300, natural)
    assert both.width == 5 and both.step == 0 and both.natural is None


@quickly
@given(st.lists(intervals(least=3), min_size=1, max_size=3))
def test_union(spans: Any) -> None:
    n = min(len(first) for first, _ in spans)
    windows = [Window(first[:n], stop[:n], first[:n], 5) for first, stop in spans]
    low, high = union(windows)
    for i in range(n):
        points = {p for w in windows for p in range(w.first[i], w.stop[i])}
        assert (low[i], high[i]) == ((min(points), max(points) + 1) if points else (0, 0))


def test_step_and_offset() -> None:
    even, odd = Window.at(np.array([2, 5, 8]), 4), Window.at(np.array([2, 5, 9]), 4)
    assert even.step == 3 and odd.step is None and Window.at(np.array([7]), 2).step == 0
    assert even.offset_to(Window.at(np.array([1, 4, 7]), 9)) == -1
    assert even.offset_to(odd) is None and Window.at(np.array([], dtype=np.int64), 1).offset_to(even.at(np.array([], dtype=np.int64), 2)) == 0


def test_offsets_are_not_mixed_up_when_windows_are_freed() -> None:
    """What is kept by the id of a window must not be served for a new window at the same id."""
    old = Window.at(np.array([5, 6, 7]), 3)
    for shift in range(100):
        new = Window.at(old.start + shift, 3)
        assert old.offset_to(new) == shift
        del new
    gc.collect()
    assert old.offset_to(Window.at(old.start - 1, 3)) == -1


# ---- moving between windows ----------------------------------------------------------------------------------------------------------------


def naively_moved(tensor: torch.Tensor, old: Window, new: Window, fill: float) -> torch.Tensor:
    result = tensor.new_full((*tensor.shape[:2], new.width, *tensor.shape[3:]), fill)
    for s in range(tensor.shape[0]):
        for i in range(new.width):
            j = int(new.start[s]) + i - int(old.start[s])
            if 0 <= j < old.width:
                result[s, :, i] = tensor[s, :, j]
    return result


@st.composite
def two_windows(draw: Any) -> tuple[Window, Window]:
    n = draw(st.integers(1, 5))
    start = np.array(draw(st.lists(st.integers(-3, 12), min_size=n, max_size=n)))
    offset = draw(st.one_of(st.integers(-9, 9), st.lists(st.integers(-9, 9), min_size=n, max_size=n)))
    return Window.at(start, draw(st.integers(1, 6))), Window.at(start + np.array(offset), draw(st.integers(1, 8)))


@quickly
@given(two_windows(), st.integers(1, 3), st.sampled_from([(), (2,), (2, 3)]), st.sampled_from([0.0, 7.0]))
def test_rewindow_is_plain_indexing(windows: Any, edits: int, rest: tuple[int, ...], fill: float) -> None:
    old, new = windows
    tensor = torch.randn(len(old.start), edits, old.width, *rest)
    before = tensor.clone()
    for _ in range(2):  # the second time with kept tables
        assert torch.equal(rewindow(tensor, old, new, fill), naively_moved(tensor, old, new, fill))
    assert torch.equal(tensor, before)


@quickly
@given(st.data(), st.integers(1, 3), st.sampled_from([(), (2,)]), st.sampled_from([0.0, 7.0]))
def test_few_windows_that_move_otherwise_are_moved_in_place(data: Any, edits: int, rest: tuple[int, ...], fill: float) -> None:
    """Near the ends of a sequence; only of a tensor that may be written over."""
    sites, old_width = data.draw(st.integers(8, 20)), data.draw(st.integers(1, 6))
    width = data.draw(st.integers(1, old_width))
    offset = np.full(sites, data.draw(st.integers(-1, old_width - width + 1)))
    for i in data.draw(st.lists(st.integers(0, sites - 1), min_size=1, max_size=sites // 4 + 1)):
        offset[i] = data.draw(st.integers(-8, 8))
    old = Window.at(np.arange(sites) * 2, old_width)
    new = Window.at(old.start + offset, width)
    offsets, counts = np.unique(offset, return_counts=True)
    most = int(offsets[counts.argmax()])
    few = counts.max() >= (1 - FEW_SITES) * sites
    inside = 0 <= most <= old_width - width
    for _ in range(2):
        tensor = torch.randn(sites, edits, old_width, *rest)
        truth = naively_moved(tensor, old, new, fill)
        moved = rewindow(tensor, old, new, fill, disposable=True)
        assert torch.equal(moved, truth)
        if len(offsets) > 1:
            in_place = moved.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
            assert in_place == (few and inside)


def test_rewindow_copies_only_where_it_must() -> None:
    old = Window.at(np.array([3, 4, 5]), 5)
    tensor = torch.randn(3, 2, 5, 4)
    for new in (old, Window.at(old.start.copy(), 5), Window.at(old.start + 1, 3)):
        assert rewindow(tensor, old, new).untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    assert rewindow(tensor, old, Window.at(old.start - 1, 5)).untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


def test_rewindow_of_booleans() -> None:
    old, new = Window.at(np.array([3, 4]), 2), Window.at(np.array([2, 5]), 4)
    moved = rewindow(torch.ones(2, 1, 2, dtype=torch.bool), old, new, fill=False)
    assert moved.tolist() == [[[False, True, True, False]], [[True, False, False, False]]]


@st.composite
def readings(draw: Any) -> tuple[torch.Tensor, Window, np.ndarray, bool]:
    length, batch, n = draw(st.integers(2, 12)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    width = draw(st.integers(1, length))
    overhang = draw(st.booleans())
    margin = 3 if overhang else 0
    if draw(st.booleans()):  # evenly spaced
        first, step = draw(st.integers(-margin, length - width)), draw(st.integers(0, 2))
        start = np.minimum(first + step * np.arange(n), length - width + margin)
    else:
        start = np.array(draw(st.lists(st.integers(-margin, length - width + margin), min_size=n, max_size=n)))
    sequences = np.sort(np.array(draw(st.lists(st.integers(0, batch - 1), min_size=n, max_size=n))))
    value = torch.randn(batch, length, *draw(st.sampled_from([(), (3,), (2, 3)])))
    return value, Window.at(start, width), sequences, overhang


@quickly
@given(readings())
def test_read_windows_is_plain_indexing(reading: Any) -> None:
    value, window, sequences, overhang = reading
    only = int(sequences[0]) if sequences[0] == sequences[-1] else None
    fill = 5.0 if overhang else None
    for _ in range(2):
        found = read_windows(value, window, sequences, only, fill)
        for s, sequence in enumerate(sequences):
            for i in range(window.width):
                j = int(window.start[s]) + i
                wanted = value[sequence, j] if 0 <= j < value.shape[1] else torch.full_like(value[0, 0], 5.0)
                assert torch.equal(found[s, i], wanted)


def test_read_windows_copies_nothing_for_neighbouring_sites_of_one_sequence() -> None:
    value = torch.randn(2, 10, 3)
    found = read_windows(value, Window.at(np.array([2, 3, 4]), 4), np.array([1, 1, 1]), 1)
    assert found.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()


def test_read_windows_tells_sequences_apart() -> None:
    """One window, read for other sequences: what is kept must not be served for them."""
    value = torch.randn(3, 10)
    window = Window.at(np.array([1, 4]), 3)
    for sequences in ([0, 1], [1, 2], [0, 2]):
        found = read_windows(value, window, np.array(sequences), None)
        assert torch.equal(found, torch.stack([value[sequences[0], 1:4], value[sequences[1], 4:7]]))


@pytest.mark.parametrize("mutant", [False, True])
def test_expand_is_plain_indexing(mutant: bool) -> None:
    window = Window.at(np.array([0, 3, 6]), 4)
    sequences = np.array([0, 0, 1])
    tensor, reference = torch.randn(3, 2, 4, 5), torch.randn(2, 10, 5)
    found = expand(Change(tensor, window, mutant), 10, sequences, reference)
    wanted = reference[sequences].unsqueeze(1).repeat(1, 2, 1, 1) if mutant else torch.zeros(3, 2, 10, 5)
    for s in range(3):
        wanted[s, :, window.start[s] : window.start[s] + 4] = tensor[s]
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [(Layout("windows", 2, 7), (2, 3, 7)), (Layout("windows", 1, 7), (2, 7, 3)), (Layout("windows", 3, 7), (2, 3, 4, 7)),
     (Layout("windows", 1, 7, 3, 1), (2, 21)), (Layout("windows", 1, 7, 1, 3), (2, 21)), (Layout("windows", 2, 7, 2, 3), (2, 5, 42))],
)  # fmt: skip
def test_position_first_and_back(layout: Layout, shape: tuple[int, ...]) -> None:
    value = torch.randn(shape)
    first = layout.position_first(value)
    assert first.shape[:2] == (2, 7)
    assert torch.equal(layout.natural(first), value)
    narrow = layout.natural(first[:, 2:5])  # any number of positions
    assert torch.equal(layout.position_first(narrow), first[:, 2:5])


# ---- windows of whole models ---------------------------------------------------------------------------------------------------------------


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
    """What a site reaches is its own; only the carried width is common."""
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
