"""What a process holds while a model is planned and scored stays within what it may use, freed memory included."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import assert_right, sequences
from torch import nn

import yuzu
from yuzu._engine import freed_memory
from yuzu._engine.capture.export import capture
from yuzu._engine.plan.plan import make_plan
from yuzu._engine.tune import measure
from yuzu._engine.window import WIDTHS, Window

ROOT = Path(__file__).parents[1]
MIB = 1 << 20


class Dilated(nn.Module):
    """Residual convolutions of growing dilation, whose windows reach both ends from nearly everywhere, then attention,
    which runs naively.
    """

    def __init__(self, channels: int = 16, blocks: int = 6, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.stem = nn.Conv1d(4, channels, 9, padding=4)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(channels, channels, 3, dilation=2**i, padding=2**i) for i in range(blocks) for _ in range(2)
        )
        self.queries_keys_values = nn.Linear(channels, 3 * channels)
        self.head = nn.Linear(channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for convolution in self.convolutions:
            x = x + convolution(torch.relu(x))
        x = x.transpose(1, 2)
        batch, length, channels = x.shape
        parts = self.queries_keys_values(x).view(batch, length, 3, self.heads, channels // self.heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        scores = torch.softmax(queries @ keys.transpose(-1, -2), -1)
        return self.head((scores @ values).transpose(1, 2).reshape(batch, length, channels).mean(1))


LONG_RUN = """
import sys, warnings
import torch
import yuzu
sys.path.insert(0, sys.argv[1])
from conftest import decide
from test_peak_memory import MIB, Dilated

def held(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024

warnings.simplefilter("ignore")
torch.manual_seed(0)
torch.set_num_threads(1)
model = Dilated().eval()
X = torch.nn.functional.one_hot(torch.randint(4, (1, 300)), 4).mT.float()
made = yuzu.precompute(model, 300, max_memory=64 * MIB, device="cpu", conv="windows", verify=False)
decide(made, sites=1)
with torch.no_grad():
    model(X)
before = held("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
yuzu.yuzu_ism(model, X, made, end=130, device="cpu")
print(held("VmHWM") - before, held("VmRSS") - before)
"""


@pytest.mark.skipif(freed_memory._find_trim() is None, reason="the C library is not glibc")
def test_a_run_with_windows_of_many_widths_keeps_to_what_it_may_use():
    """oneDNN keeps a kernel for each new shape between the large tensors of chunks: the holes add up."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not tell the peak of resident memory anew")
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", LONG_RUN, str(ROOT / "tests")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak, left = (float(number) for number in done.stdout.split())
    assert peak < 64 + 24, "beside what is allowed there are kernels of oneDNN's, and Python's own objects"
    assert left < 48, "a call hands back what it leaves behind"


def test_windows_that_an_end_cuts_off_have_few_widths():
    """One site at a time, through convolutions that reach further and further."""
    plan = make_plan(capture(Dilated(4, 6, 2).eval(), (4, 300), (), torch.float32))
    widths = [set() for _ in plan.graph.nodes]
    for position in range(300):
        for i, window in enumerate(plan.windows(np.array([position]), 1)):
            if window is not None:
                widths[i].add(window.width)
    assert max(map(len, widths)) > WIDTHS
    # from half of the width between the ends to all of it, and what is narrower than needs a step
    assert max(map(len, widths)) <= 2 * WIDTHS + 2


@pytest.mark.parametrize("width", [1, 5, 16, 31, 33, 100, 511, 512, 513, 1000])
@pytest.mark.parametrize("end", ["left", "right", "both"])
@pytest.mark.parametrize("lie_alike", [True, False])
def test_a_widened_window_holds_all_that_is_reached_and_lies_inside(width, end, lie_alike):
    length = width if end == "both" else 2 * width + 40
    reach = width + 7
    first = np.array([-7 if end != "right" else length - width])
    stop = first + reach if end != "right" else np.array([length + 7])
    if end == "both":
        first, stop = np.array([-7]), np.array([length + 7])
    window = Window.fit(first, stop, (0, length), length, (first, stop) if lie_alike else None)
    low, high = max(int(first[0]), 0), min(int(stop[0]), length)
    assert window.start[0] <= low and window.start[0] + window.width >= high
    assert window.start[0] >= 0 and window.start[0] + window.width <= length
    assert window.width <= (high - low) * (1 + 1 / WIDTHS) + 1
    assert window.first[0] == low and window.stop[0] == high


def test_windows_between_the_ends_keep_their_width():
    position = np.array([300, 301, 302])
    for natural in (None, (position - 50, position + 51)):
        window = Window.fit(position - 50, position + 51, (0, 600), 600, natural)
        assert window.width == 101 and (window.start == position - 50).all()


@pytest.mark.parametrize("length", [40, 75, 150])
def test_scores_near_the_ends_are_right_with_widened_windows(length):
    torch.manual_seed(1)
    model, X = Dilated(6, 4, 2).eval(), sequences(2, length)
    with pytest.warns(yuzu.YuzuWarning, match="naively"):
        made = yuzu.precompute(model, length, device="cpu", conv="windows")
    assert_right(yuzu.yuzu_ism(model, X, made, device="cpu"), model, X)


class Process:
    """Answers for what a process holds: what lives, and what is freed and kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.live, self.free, self.trims, self.now = 1000 * MIB, 0, 0, 0.0
        monkeypatch.setattr(freed_memory, "resident", lambda: self.live + self.free)
        monkeypatch.setattr(freed_memory, "_trim", self.trim)
        monkeypatch.setattr(freed_memory, "_left", [0])
        monkeypatch.setattr(freed_memory, "time", SimpleNamespace(perf_counter=self.tick))

    def trim(self, pad: int) -> int:
        self.free, self.trims = 0, self.trims + 1
        return 1

    def tick(self) -> float:
        self.now += 1.0
        return self.now


def test_freed_memory_goes_back_before_a_call_holds_what_it_may(monkeypatch):
    process = Process(monkeypatch)
    most = 0
    with freed_memory.bounded(64 * MIB):
        for _ in range(100):
            process.free += 5 * MIB
            most = max(most, process.free)
            freed_memory.give_back()
    assert most <= 64 * MIB
    assert 5 <= process.trims <= 12


def test_what_a_call_returns_is_not_counted(monkeypatch):
    process = Process(monkeypatch)
    with freed_memory.bounded(64 * MIB):
        freed_memory.allow(500 * MIB)
        process.live += 500 * MIB
        freed_memory.give_back()
    assert process.trims == 0


def test_what_others_hold_is_not_asked_for_again_and_again(monkeypatch):
    process = Process(monkeypatch)
    with freed_memory.bounded(64 * MIB):
        process.live += 800 * MIB
        for _ in range(100):
            freed_memory.give_back()
    assert process.trims <= 2


def test_calls_do_not_add_up_what_they_leave_behind(monkeypatch):
    process = Process(monkeypatch)
    for _ in range(100):
        with freed_memory.bounded(64 * MIB):
            process.free += 10 * MIB
            freed_memory.give_back()
        assert process.free <= 40 * MIB
    assert process.trims > 10


def test_the_graph_that_capture_makes_is_not_counted(monkeypatch):
    process = Process(monkeypatch)
    with freed_memory.bounded(64 * MIB):
        process.live += 200 * MIB
        freed_memory.count_from_here()
        process.free += 50 * MIB
        freed_memory.give_back()
        assert process.trims == 0
        process.free += 10 * MIB
        freed_memory.give_back()
        assert process.trims == 1


def test_without_a_limit_or_another_c_library_nothing_is_done(monkeypatch):
    process = Process(monkeypatch)
    with freed_memory.bounded(None):
        process.free += 900 * MIB
        freed_memory.give_back()
    monkeypatch.setattr(freed_memory, "_trim", None)
    with freed_memory.bounded(MIB):
        process.free += 900 * MIB
        freed_memory.give_back()
    assert process.trims == 0


class Attends(nn.Module):
    """With an axis of heads, or without one."""

    def __init__(self, heads: bool) -> None:
        super().__init__()
        self.heads, self.wide = heads, nn.Conv1d(4, 8, 5, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.wide(x).mT
        parts = x.unflatten(2, (2, 4)).transpose(1, 2) if self.heads else x
        return nn.functional.scaled_dot_product_attention(parts, parts, parts).flatten(1)[:, :5]


@pytest.mark.parametrize("heads", [True, False])
def test_scores_that_attention_lays_out_are_counted(heads):
    """PyTorch does so where there is no axis of heads: they are the largest that a mutant takes, and no node's value."""
    length = 300
    plan = make_plan(capture(Attends(heads).eval(), (4, length), (), torch.float32))
    memory = measure.memory_of(plan, length, 4, 1, 4, 3)
    scores = 4 * length * length
    assert (memory.block >= 3 * scores, memory.sequence >= 3 * scores) == (not heads, not heads)


class Uncaptured(nn.Module):
    """Asks for the values of its input, which no tracing has; and takes 4 MB a row."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv1d(4, 512, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if float(x.sum()) < 0:
            x = -x
        return torch.relu(self.wide(x)).mean(2)


@pytest.mark.parametrize("length", [200, 1000])
def test_a_batch_of_a_model_without_a_graph_fits_into_what_may_be_used(length):
    model, row = Uncaptured().eval(), 512 * length * 4
    with pytest.warns(yuzu.YuzuWarning, match="could not be captured"):
        made = yuzu.precompute(model, length, device="cpu", max_memory=30 * row)
    assert made.decisions.naive_model
    assert 4 <= made.decisions.naive_batch <= 15
    with pytest.warns(yuzu.YuzuWarning):
        assert yuzu.precompute(model, length, device="cpu").decisions.naive_batch == 128
    with pytest.raises(yuzu.YuzuError, match=f"max_memory={row} .*least that works"), pytest.warns(yuzu.YuzuWarning):
        yuzu.precompute(model, length, device="cpu", max_memory=row)


def test_bytes_of_a_row_are_those_of_tensors_that_live_at_once():
    deep = nn.Sequential(*[nn.Sequential(nn.Conv1d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(20)]).eval()
    x = torch.randn(1, 8, 500)
    with torch.no_grad():
        assert 2 * x.nbytes <= measure.bytes_of_a_row(lambda: deep(x)) <= 5 * x.nbytes
        assert measure.bytes_of_a_row(lambda: x.mT) == 0
