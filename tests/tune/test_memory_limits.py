"""The option ``max_memory`` of `precompute`: results do not change, and memory stays within it."""

import re

import pytest
import torch

import yuzu
from tests.oracle import assert_close, assert_right
from tests.small_models import Net, Profile, randomized, sequences
from yuzu import precompute, yuzu_ism
from yuzu._engine.edits import Mutations
from yuzu._engine.store.scoring import Job

L = 30


def least_memory(model, **kwargs):
    with pytest.raises(ValueError, match="max_memory") as caught:
        precompute(model, L, max_memory=1, **kwargs)
    numbers = [int(n.replace(",", "").replace("_", "")) for n in re.findall(r"\d[\d,_]*", str(caught.value))]
    assert 1 in numbers and len(numbers) >= 2, f"names neither what it got nor the least: {caught.value}"
    return max(numbers)


def test_too_little_memory_names_the_least_that_works(net, captured_once, device):
    least = least_memory(net, device=device)
    X = sequences(3, L)
    X[1, :, 5] = 0
    with pytest.raises(ValueError, match=str(least)):
        precompute(net, L, max_memory=least - 1, device=device)
    precomputation = precompute(net, L, max_memory=least, device=device)
    assert_right(yuzu_ism(net, X, precomputation, output="delta", device=device), net, X, output="delta", device=device)


def test_max_memory_does_not_change_the_result(captured_once):
    model, X = randomized(Net()).double().eval(), sequences(3, L)
    X[1, :, 5], X[2, :, 7] = 0, 0.25
    ranges = [(p, p + 5) for p in range(0, 26)]
    least = least_memory(model)
    for memory in (least, 3 * least, 10**9):
        precomputation = precompute(model, L, max_memory=memory)
        assert_right(yuzu_ism(model, X, precomputation, output="delta"), model, X, output="delta")
        assert_right(yuzu_ism(model, X, precomputation, ranges=ranges), model, X, ranges=ranges)


def peak_bytes(run):
    """The most bytes that torch's allocator held at once on the CPU, above what it held before ``run``."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU:
            held += event.nbytes()
            peak = max(peak, held)
    return peak, result


def test_memory_stays_within_max_memory(captured_once):
    length = 400
    model = torch.nn.Sequential(
        torch.nn.Conv1d(4, 32, 15, padding=7),
        torch.nn.ReLU(),
        torch.nn.Conv1d(32, 32, 15, padding=7),
        torch.nn.ReLU(),
        torch.nn.Conv1d(32, 1, 1),
    )
    model, X = randomized(model).eval(), sequences(4, length)
    free = precompute(model, length, device="cpu")
    yuzu_ism(model, X, free, device="cpu")
    unbounded, expected = peak_bytes(lambda: yuzu_ism(model, X, free, device="cpu"))
    asked = 2_000_000
    assert unbounded > asked, "the test is empty: the run is small anyway"
    bounded = precompute(model, length, max_memory=asked, device="cpu")
    peak, result = peak_bytes(lambda: yuzu_ism(model, X, bounded, device="cpu"))
    assert_close(result, expected, 1e-5, 1e-5)
    output = result.numel() * result.element_size()
    assert peak - output <= asked, f"{peak - output:,} bytes beyond the output, {asked:,} allowed"


@pytest.mark.parametrize(
    "options",
    [{"target": 1}, {"target": [0, 2]}, {"func": lambda y: y.sum(2)}, {"output": "delta"}, {"output": "prediction", "target": 0}],
    ids=["target", "targets", "func", "delta", "prediction"],
)
def test_outputs_laid_out_whole_stay_within_max_memory(options, captured_once):
    """Windows of a few positions in sequences so long that outputs take far more than windows."""
    length, allowed = 3000, 6_000_000
    layers = torch.nn.Conv1d(4, 4, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv1d(4, 3, 5, padding=2)
    model, X = randomized(torch.nn.Sequential(*layers)).eval(), sequences(1, length)
    some = {**options, "start": 1000, "end": 1300}
    made = precompute(model, length, max_memory=allowed, device="cpu")
    expected = yuzu_ism(model, X, precompute(model, length, device="cpu"), device="cpu", **some)
    peak, result = peak_bytes(lambda: yuzu_ism(model, X, made, device="cpu", **some))
    assert_close(result, expected, 1e-6, 1e-6)
    output = result.numel() * result.element_size()
    assert peak - output <= allowed, f"{peak - output:,} bytes beyond the output, {allowed:,} allowed"


def test_ways_that_lay_out_too_much_are_not_taken(device):
    layers = (torch.nn.Conv1d(4, 8, 9, padding=4), torch.nn.Conv1d(8, 8, 9, padding=4), torch.nn.Conv1d(8, 8, 9, padding=4))
    model, X = randomized(torch.nn.Sequential(*layers)).eval(), sequences(2, L)
    least = least_memory(model, device=device)
    with pytest.warns(yuzu.YuzuWarning, match=r"conv='whole' does not fit .*: 2, 1.* run by 'windows'"):
        made = precompute(model, L, conv="whole", max_memory=least, device=device)
    assert set(made.decisions.ways.values()) == {"windows"}
    bound = made._used.values()[0][0].used
    assert bound.memory(Mutations.asked(4, L)).least <= least
    assert_right(yuzu_ism(model, X, made, output="delta", device=device), model, X, output="delta", device=device)
    free = precompute(model, L, conv="whole", max_memory=100 * least, device=device)
    assert "whole" in free.decisions.ways.values()


def test_wide_ranges_within_max_memory(device):
    """By ways that lay out less if these are needed; and never without memory for one."""
    length = 400
    model = torch.nn.Sequential(torch.nn.Conv1d(4, 8, 9, padding=4), torch.nn.ReLU(), torch.nn.Conv1d(8, 8, 9, padding=4))
    model, X = randomized(model).eval(), sequences(1, length)
    wide, widest = ([(p, p + width) for p in range(3)] for width in (30, 390))

    def memory(made, ranges):
        return made._used.values()[0][0].used.memory(Mutations.asked(4, length, ranges=ranges))

    free = precompute(model, length, conv="whole", device=device)
    windows = precompute(model, length, conv="windows", device=device)
    assert memory(free, wide).least > memory(windows, wide).least
    made = precompute(model, length, conv="whole", max_memory=memory(free, wide).least - 1, device=device)
    assert "whole" in made.decisions.ways.values()
    assert_right(yuzu_ism(model, X, made, ranges=wide, device=device), model, X, ranges=wide, device=device)
    edits = Mutations.asked(4, length, ranges=wide)
    fitted = made._used.values()[0][0].used.fitting(edits)
    assert fitted.memory(edits).least <= made.settings.max_memory < made._used.values()[0][0].used.memory(edits).least
    assert fitted is made._used.values()[0][0].used.fitting(edits)
    assert_right(yuzu_ism(model, X, made, output="delta", device=device), model, X, output="delta", device=device)

    least = memory(windows, widest).least
    small = precompute(model, length, conv="windows", max_memory=least - 1, device=device)
    with pytest.raises(ValueError, match=rf"max_memory={least - 1} .* 390 positions .* least that works is {least}"):
        yuzu_ism(model, X, small, ranges=widest, device=device)
    enough = precompute(model, length, conv="windows", max_memory=least, device=device)
    assert_right(yuzu_ism(model, X, enough, ranges=widest, device=device), model, X, ranges=widest, device=device)


def test_memory_limits_a_given_batch_size(monkeypatch, device):
    model, X = randomized(Profile()).eval(), sequences(9, L)
    made = precompute(model, L, max_memory=2 * least_memory(model, device=device), device=device)
    most = made._used.values()[0][0].used.most_sequences(Mutations.asked(4, L))
    sizes, score = [], Job.score
    monkeypatch.setattr(Job, "score", lambda job, X, *rest: sizes.append(len(X)) or score(job, X, *rest))
    found = yuzu_ism(model, X, made, batch_size=9, device=device)
    assert 1 <= max(sizes) <= most < 9 and sum(sizes) == 9
    sizes.clear()
    assert_close(yuzu_ism(model, X, made, batch_size=1, device=device), found, 1e-6, 1e-6)
    assert sizes == [1] * 9
