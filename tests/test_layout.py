"""Moving values between windows, against plain indexing."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.windows import quickly
from yuzu._engine.layout import FEW_SITES, Change, Layout, expand, read_windows, rewindow
from yuzu._engine.window import Window


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
