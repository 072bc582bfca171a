"""Trials of ways and chunk sizes, with a clock and a memory counter of our own: a fresh process and a busy machine must
not mislead them.
"""

from __future__ import annotations

import gc
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import yuzu
from tests.oracle import assert_right
from tests.small_models import sequences
from yuzu._engine.tune import chunks, clock
from yuzu._engine.tune import memory as tune_memory
from yuzu._engine.tune import ways as trial_ways
from yuzu._engine.tune.examples import Examples, span_of
from yuzu._engine.tune.verify import few_places

CPU = torch.device("cpu")


class Machine:
    """Answers for the clock and the page counter: each call of a work takes its next seconds and its next new pages, the
    last ones for ever.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.pages = 0, 0
        for module in (clock, chunks):
            monkeypatch.setattr(module, "seconds_of", lambda function, device: function())
            monkeypatch.setattr(module, "new_pages", lambda: self.pages)

    def work(self, seconds: list[float], pages: tuple[int, ...] = (0,)) -> Any:
        left = iter(range(10**6))

        def run() -> float:
            i = next(left)
            self.calls += 1
            self.pages += pages[min(i, len(pages) - 1)]
            return seconds[min(i, len(seconds) - 1)]

        return run


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def test_a_way_is_judged_after_its_first_call(machine):
    assert clock.least_seconds(machine.work([0.1, 0.001]), CPU, 0.002) == 0.001


def test_a_way_that_does_not_fit_is_not_chosen(machine):
    def work() -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert clock.least_seconds(work, CPU, 1.0) == math.inf


def test_a_way_is_judged_when_it_asks_for_no_more_memory(machine):
    """As ToyNet's: 13 ms while pages are new, 1.3 after; an earlier way that found its memory took 3."""
    work = machine.work([0.02, 0.013, 0.012, 0.0013], (5000, 4000, 4000, 0))
    assert clock.least_seconds(work, CPU, 0.003) == 0.0013


def test_a_way_that_always_asks_for_memory_is_not_tried_for_ever(machine):
    assert clock.least_seconds(machine.work([0.02], (5000,)), CPU, math.inf) == 0.02
    assert machine.calls < 12


@pytest.mark.parametrize(("seconds", "most"), [(0.5, 1), (0.01, 2)])
def test_a_hopeless_way_is_given_up_early(machine, seconds, most):
    found = clock.least_seconds(machine.work([seconds]), CPU, 0.004)
    assert found in (seconds, math.inf) and machine.calls <= most


def test_no_garbage_is_collected_while_a_call_is_timed():
    seen = []
    assert gc.isenabled()
    assert clock.seconds_of(lambda: seen.append(gc.isenabled()), CPU) >= 0
    assert seen == [False] and gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        clock.seconds_of(lambda: 1 // 0, CPU)
    assert gc.isenabled()
    gc.disable()
    try:
        clock.seconds_of(lambda: None, CPU)
        assert not gc.isenabled(), "whoever switched it off wants it off"
    finally:
        gc.enable()


@pytest.mark.parametrize(("budget", "again"), [(10.0, True), (0.0, False)])
def test_rivals_are_tried_again_with_more_sites(monkeypatch, budget, again):
    """With few sites one way is the fastest, with many another; a third is out of the race."""
    trials = []

    def times(rule, ways, run, window, sites):
        count = len(sites.position)
        trials.append((count, list(ways)))
        few = {way: 0.02 for way in ways} | {"fold": 0.001, "banded": 0.0015}
        many = {way: 0.02 for way in ways} | {"fold": 0.009, "banded": 0.008}
        return {way: (few if count == trials[0][0] else many)[way] for way in ways}

    monkeypatch.setattr(trial_ways, "times_of", times)
    monkeypatch.setattr(trial_ways, "AGAIN_SECONDS", budget)
    monkeypatch.setattr(trial_ways, "TRIAL_PRODUCTS", {"cpu": 1.0})
    monkeypatch.setitem(tune_memory.CACHE_TARGET, "cpu", 1 << 16)  # a chunk of few sites
    length = 300
    model = nn.Sequential(nn.Conv1d(4, 16, 5, padding=2), nn.ReLU(), nn.Conv1d(16, 16, 5, padding=2)).eval()
    made = yuzu.precompute(model, length, device="cpu")
    (first, ways), *others = trials
    assert {"fold", "banded", "windows"} <= set(ways)
    assert [set(rivals) for _, rivals in others] == ([{"fold", "banded"}] if again else [])
    assert all(count > trial_ways.MORE_SITES * first for count, _ in others)
    assert set(made.decisions.ways.values()) >= {"banded" if again else "fold"}


def costs(monkeypatch: pytest.MonkeyPatch, found: dict[int, list[float]]) -> list[int]:
    """Has each chunk size cost its next seconds for a site, the last for ever; the sizes tried, in order."""
    tried: list[int] = []

    def cost(run: Any, examples: Any, size: int, hopeless: float) -> tuple[float, list[float]]:
        tried.append(size)
        return found[size][min(tried.count(size), len(found[size])) - 1], [float(size)]

    monkeypatch.setattr(chunks, "cost_of_chunk", cost)
    return tried


def choose(first: int, most: int = 10**6, length: int = 1024, spent: float = 0.0) -> tuple[int, list[float], float]:
    plan = SimpleNamespace(reach=lambda positions, width: (np.ones(len(positions), dtype=bool),) * 2, sensing=None)
    return chunks.choose_chunk(SimpleNamespace(plan=plan), Examples(4, length, 3), first, most, spent)


def test_the_chunk_size_that_costs_least(monkeypatch):
    tried = costs(monkeypatch, {16: [9e-6], 32: [8e-6], 64: [5e-6], 128: [6e-6], 256: [7e-6], 512: [1e-9]})
    assert choose(32) == (64, [64.0], 5e-6)
    assert 512 not in tried and 16 not in tried, "two plainly worse sizes end the search"


def test_a_size_that_was_slowed_once_is_tried_again(monkeypatch):
    """A busy machine slowed the best size by a third the first time; the shares are those of the better trial."""
    tried = costs(monkeypatch, {16: [9e-6], 32: [8e-6], 64: [7e-6, 5e-6], 128: [6e-6], 256: [7e-6], 512: [7e-6]})
    size, shares, cost = choose(32)
    assert (size, shares, cost) == (64, [64.0], 5e-6)
    assert tried.count(64) == 2


def test_a_size_far_from_the_best_is_tried_once(monkeypatch):
    tried = costs(monkeypatch, {16: [9e-6], 32: [5e-6], 64: [30e-6], 128: [30e-6]})
    assert choose(32)[0] == 32
    assert tried.count(64) == tried.count(128) == 1


def test_half_the_first_size_where_larger_ones_are_no_better(monkeypatch):
    costs(monkeypatch, {16: [3e-6], 32: [5e-6], 64: [6e-6], 128: [7e-6]})
    assert choose(32)[0] == 16


def test_no_more_sites_than_fit(monkeypatch):
    tried = costs(monkeypatch, {size: [1e-3 / size] for size in range(1, 2000)})
    assert choose(32, most=100)[0] <= 100
    assert max(tried) <= 100


@pytest.mark.parametrize(("spent", "sizes"), [(0.0, 5), (1.1, 3), (9.0, 2)])
def test_the_search_is_shorter_where_ways_took_long(monkeypatch, spent, sizes):
    """A run of each size takes 0.04 s, and four times that must be left for another; a trial takes 0.1 s."""
    tried: list[int] = []

    def cost(run: Any, examples: Any, size: int, *rest: Any) -> tuple[float, list[float]]:
        tried.append(size)
        return 0.04 / size, []

    monkeypatch.setattr(chunks, "time", SimpleNamespace(perf_counter=lambda: 0.1 * len(tried)))
    monkeypatch.setattr(chunks, "cost_of_chunk", cost)
    choose(1, spent=spent)
    assert len(tried) == sizes


@pytest.mark.parametrize("pages", [0, 5000])
def test_a_chunk_is_timed_until_it_settles(machine, monkeypatch, pages):
    """Each run is faster than the one before while memory is new, or while the clock says so; then the least counts."""
    seconds = [0.05, 0.04, 0.02, 0.01, 0.012]
    work = machine.work(seconds, (pages, pages, pages, 0))
    run = SimpleNamespace(plan=SimpleNamespace(graph=SimpleNamespace(nodes=[0, 1])), chunk=lambda sites: work(), device=CPU, seconds=None)
    least, shares = chunks._chunk_seconds(run, None, math.inf)
    assert least == 0.01 and shares == [0.0, 0.0] and run.seconds is None
    assert machine.calls <= 8


@pytest.mark.parametrize("sequences", [1, 3])
@pytest.mark.parametrize("size", [16, 594])
def test_a_site_costs_its_part_of_the_sites_there_are(monkeypatch, size, sequences):
    """A chunk may hold several short sequences; the trial has the sites of those of its reference."""
    model = pooled(nn.Conv1d(4, 16, 9, padding=4), nn.ReLU())
    plan = yuzu.precompute(model, 100, conv="windows", verify=False, device="cpu")._used.values()[0][0].used.plan
    reference = SimpleNamespace(batch=sequences)
    run = SimpleNamespace(plan=plan, device=CPU, value=lambda i: torch.zeros(1, 4, 1000), reference=reference)
    trials: list[Any] = []
    monkeypatch.setattr(chunks, "_chunk_seconds", lambda *given: (trials.append(given), (0.5, []))[1])
    cost, _ = chunks.cost_of_chunk(run, Examples(4, 100, 3), size, hopeless=1e-3)
    count = sequences * min(size, 100)
    assert cost == (0.5 + chunks.CHUNK_OVERHEAD) / count
    ((_, sites, hopeless),) = trials
    assert hopeless == 1e-3 * count, "a trial is hopeless by the seconds of the sites that it has"
    assert len(sites.position) == len(sites.sequence) == len(sites.difference) == len(sites.codes) == count
    assert sites.sequence.tolist() == sorted(sites.sequence) and set(sites.sequence) == set(range(sequences))
    assert (np.diff(sites.position)[np.diff(sites.sequence) == 0] == 1).all()


def batches_of_a_model(monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], most: int = 10**6) -> tuple[Any, list[int]]:
    """What comparing finds for a plan of 1 ms a mutant and a model with these seconds for a batch, and what it runs."""
    ran: list[int] = []
    monkeypatch.setattr(chunks, "seconds_of", lambda function, device: (function(), seconds[ran[-1]])[1])
    model = lambda x: ran.append(len(x))  # noqa: E731
    found = chunks.naive_is_faster(model, torch.zeros(1, 4, 5), (), CPU, 1e-3, most)
    return found, list(dict.fromkeys(ran))


def test_a_model_that_loses_plainly_is_not_run_in_large_batches(monkeypatch):
    assert batches_of_a_model(monkeypatch, {1: 0.1}) == (None, [1])
    assert batches_of_a_model(monkeypatch, {1: 0.02, 16: 0.2}) == (None, [1, 16])
    assert batches_of_a_model(monkeypatch, {1: 0.02, 16: 0.05, 128: 0.3}) == (None, [1, 16, 128])


def test_a_batch_of_the_model_takes_more_than_the_model(monkeypatch):
    """Its mutants are made and its scores are written; of a short sequence it has few mutants to share that."""
    found, _ = batches_of_a_model(monkeypatch, {1: 0.02, 16: 0.05, 128: 0.1, 512: 0.3})
    assert found == (pytest.approx((0.3 + chunks.CHUNK_OVERHEAD) / 512), 512)
    assert batches_of_a_model(monkeypatch, {1: 0.0009, 16: 0.0159}, most=16)[0] is None


def test_a_batch_holds_mutants_of_one_sequence(monkeypatch):
    most: list[int] = []
    monkeypatch.setattr(chunks, "WORTH_COMPARING", 0.0)
    monkeypatch.setattr(chunks, "naive_is_faster", lambda *args: most.append(args[-1]))
    yuzu.precompute(pooled(nn.Conv1d(4, 16, 3)), 20, device="cpu")
    assert most == [60]


class Crop(nn.Module):
    def __init__(self, first: int, stop: int) -> None:
        super().__init__()
        self.first, self.stop = first, stop

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return X[:, :, self.first : self.stop]


def pooled(*layers: nn.Module) -> nn.Module:
    found = (*layers, nn.Conv1d(16, 16, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 2))
    return nn.Sequential(*found).eval()


@pytest.mark.parametrize("length", [12, 24])
def test_little_memory_where_the_middle_is_stepped_over(length, monkeypatch):
    """With room for one site its windows are those of a position that a stride reads."""
    monkeypatch.setattr(chunks, "WORTH_COMPARING", math.inf)  # on a busy machine the model itself may be faster
    model = pooled(nn.Conv1d(4, 16, 1, stride=3), nn.ReLU(), nn.Conv1d(16, 16, 3, padding=1), nn.ReLU())
    with pytest.raises(yuzu.YuzuError) as refused:
        yuzu.precompute(model, length, max_memory=1, device="cpu")
    least = int(str(refused.value).split("least that works is ")[1].split()[0])
    made = yuzu.precompute(model, length, max_memory=least, device="cpu")
    assert made.decisions.sites == 1
    plan = made._used.values()[0][0].used.plan
    assert plan.reached(length, 1).tolist() == list(range(0, length, 3))


def test_what_a_cropping_model_takes_is_measured_where_it_reads():
    """Neither the ends nor the middle of its sequences reach the output."""
    crop, whole = (pooled(Crop(*ends), nn.Conv1d(4, 16, 9), nn.ReLU()) for ends in ((40, 360), (0, 1000)))
    plans = []
    for model in (crop, whole):
        made = yuzu.precompute(model, 1000, device="cpu")
        plans.append(made._used.values()[0][0].used.plan)
    of_crop, of_whole = (tune_memory.memory_of(plan, 1000, 4, 1, 4, 3) for plan in plans)
    assert of_crop.site == of_whole.site and of_crop.block == of_whole.block
    assert plans[0].reached(1000, 1).tolist() == list(range(40, 360))
    assert plans[0].reached(1000, 5).tolist() == list(range(36, 360))
    assert span_of(plans[0], 1000) < 320 < span_of(plans[1], 1000)
    sites = Examples(4, 1000, 3).sites(SimpleNamespace(plan=plans[0], device=CPU, value=lambda i: torch.zeros(1, 4, 1000)), 500)
    assert sites.position.tolist() == list(range(40, 360))


class Numbered(nn.Module):
    """Looks letters up by numbers that are no letters' where a letter that is not there is taken away."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 3)

    def forward(self, x):
        return self.table((x * torch.arange(4, device=x.device)[:, None]).sum(1).long()).flatten(1)


@pytest.mark.filterwarnings("error::yuzu.YuzuWarning")
@pytest.mark.parametrize("verify", [False, True])
def test_what_is_timed_overwrites_the_letters_that_are_there(verify, device):
    model, X = Numbered(), sequences(2, 60)
    made = yuzu.precompute(model, 60, device=device, verify=verify)
    assert_right(yuzu.yuzu_ism(model, X, made, device=device), model, X, device=device)


@pytest.mark.filterwarnings("error::yuzu.YuzuWarning")
def test_a_cropping_model_is_verified_where_it_reads():
    model = pooled(Crop(40, 360), nn.Conv1d(4, 16, 9), nn.ReLU())
    X = torch.eye(4)[torch.arange(1000) % 4].T[None]
    made = yuzu.precompute(model, 1000, device="cpu")
    found = yuzu.yuzu_ism(model, X, made, output="delta", device="cpu", start=30, end=370)
    right = yuzu.naive_ism(model, X, output="delta", device="cpu", start=30, end=370)
    assert torch.allclose(found, right, atol=1e-6)
    assert (found[:, :, :10] == 0).all() and (found[:, :, -10:] == 0).all()
    places = few_places(made._used.values()[0][0].used.plan, 1000)
    assert places == (0, 40, 200, 359, 500, 999)
