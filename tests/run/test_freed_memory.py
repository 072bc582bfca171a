"""Freed memory goes back to the system while a model is planned and scored."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from yuzu._engine import freed_memory

ROOT = Path(__file__).parents[2]

MIB = 1 << 20

LONG_RUN = """
import sys, warnings
import torch
import yuzu
from tests.capturing import decide
from tests.plan.test_widening import Dilated

def held(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024

warnings.simplefilter("ignore")
torch.manual_seed(0)
torch.set_num_threads(1)
model = Dilated().eval()
X = torch.nn.functional.one_hot(torch.randint(4, (1, 300)), 4).mT.float()
made = yuzu.precompute(model, 300, max_memory=64 << 20, device="cpu", conv="windows", verify=False)
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
    command = [sys.executable, "-c", LONG_RUN]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak, left = (float(number) for number in done.stdout.split())
    assert peak < 64 + 24, "beside what is allowed there are kernels of oneDNN's, and Python's own objects"
    assert left < 48, "a call hands back what it leaves behind"


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


def test_what_a_call_keeps_does_not_raise_its_bound(monkeypatch):
    """Kernels that stay in use beside freed tensors leave less room for these, not the same again."""
    process = Process(monkeypatch)
    most = 0
    with freed_memory.bounded(64 * MIB):
        for _ in range(100):
            process.live += MIB * 2 // 5
            process.free += 4 * MIB
            most = max(most, process.live + process.free - 1000 * MIB)
            freed_memory.give_back()
    assert most <= 64 * MIB


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
