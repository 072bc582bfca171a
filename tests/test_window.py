"""The arithmetic of windows, against perturbing real operations."""

import gc
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.windows import hull, quickly
from yuzu._engine.window import Geometry, Window, union


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
