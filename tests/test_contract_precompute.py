"""The public contract of `precompute` and `Precomputation`: its options, what it is valid for, and what it refuses."""

import collections
import copy
import functools
import gc
import re
import sys
import types
import warnings
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import (
    Net,
    Profile,
    assert_close,
    assert_right,
    assert_same,
    capturing_once,
    errors,
    oracle,
    randomized,
    sequences,
)

import yuzu
from yuzu import PrecomputationError, naive_ism, precompute, yuzu_ism
from yuzu._engine.edits import Mutations
from yuzu._engine.run.run import Run
from yuzu._engine.store.scoring import Job

L = 30


class Several(torch.nn.Module):
    """Convolutions of every kind: padded, strided, dilated, grouped, without bias, one by one; then dense layers."""

    def __init__(self, length=40):
        super().__init__()
        self.conv1 = torch.nn.Conv1d(4, 6, 7, padding=3)
        self.conv2 = torch.nn.Conv1d(6, 6, 5, padding=4, dilation=2)
        self.conv3 = torch.nn.Conv1d(6, 8, 4, stride=2, padding=1, bias=False)
        self.conv4 = torch.nn.Conv1d(8, 8, 3, padding="same", groups=2)
        self.conv5 = torch.nn.Conv1d(8, 2, 1)
        self.fc = torch.nn.Linear(2 * (length // 2), 3)

    def forward(self, X):
        X = torch.relu(self.conv1(X))
        X = X + torch.relu(self.conv2(X))
        X = torch.nn.functional.gelu(self.conv3(X))
        return self.fc(torch.tanh(self.conv5(torch.relu(self.conv4(X)))).flatten(1))


@pytest.fixture(scope="module")
def several():
    return randomized(Several(), seed=1).eval()


def pearson(a, b):
    return float(np.corrcoef(np.asarray(a, dtype=float).ravel(), np.asarray(b, dtype=float).ravel())[0, 1])


# the ways of running a convolution


@pytest.fixture(scope="module", params=["auto", "windows", "cyclic", "banded", "fold"])
def exact_way(request, several, device):
    with capturing_once():
        return request.param, precompute(several, 40, conv=request.param, device=device)


@pytest.mark.parametrize("output", ["l2", "delta", "prediction"])
def test_every_exact_way_is_exact(several, exact_way, device, output):
    X = sequences(2, 40, seed=3)
    X[0, :, 0] = 0  # an N at the end, and a soft column
    X[1, :, 20] = 0.25
    result = yuzu_ism(several, X, exact_way[1], output=output, device=device)
    assert_right(result, several, X, output=output, device=device)


def test_every_exact_way_with_ranges_and_part(several, exact_way, device):
    X, table = sequences(2, 40, seed=3), torch.arange(16.0).reshape(4, 4) / 16
    ranges = [(0, 4), (17, 21), (19, 23), (36, 40)]
    result = yuzu_ism(several, X, exact_way[1], ranges=ranges, replace_with=table, output="delta", device=device)
    assert_right(result, several, X, ranges=ranges, replace_with=table, output="delta", device=device)
    result = yuzu_ism(several, X, exact_way[1], start=-7, end=-1, device=device)
    assert_right(result, several, X, start=-7, end=-1, device=device)


def test_the_asked_for_way_is_the_one_used(several, exact_way):
    way, precomputation = exact_way
    if way != "auto":
        assert re.search(rf"^conv[23].*\b{way}\b", precomputation.summary(), re.M), precomputation.summary()


@pytest.fixture(scope="module")
def several64(several):
    return copy.deepcopy(several).double()


@pytest.mark.parametrize("way", ["windows", "cyclic", "banded", "fold"])
def test_every_exact_way_in_float64(several64, captured_once, way):
    model, X = several64, sequences(2, 40, seed=4)
    assert_right(yuzu_ism(model, X, precompute(model, 40, conv=way), output="delta"), model, X, output="delta")


# compressed sensing as published: not exact, so it is held to its own promise


@pytest.fixture(scope="module")
def gaussian(several, device):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with capturing_once():
            return precompute(several, 40, conv="gaussian", device=device)


@pytest.mark.parametrize("output", ["l2", "delta"])
def test_gaussian_reaches_the_default_threshold(several, gaussian, device, output):
    X = sequences(2, 40, seed=3)
    result = yuzu_ism(several, X, gaussian, output=output, device=device)
    truth = oracle(several, X)[output]
    assert result.shape == truth.shape and pearson(result, truth) >= 0.9999
    assert errors(result, truth)[1] < 0.05  # a high correlation alone hides errors of single scores


def test_gaussian_is_used(several, gaussian):
    assert re.search(r"^conv2.*\bgaussian\b", gaussian.summary(), re.M), gaussian.summary()
    assert "alpha" in gaussian.summary()


def test_gaussian_keeps_the_reference_slots(several, gaussian, device):
    X = sequences(2, 40, seed=3)
    assert bool((yuzu_ism(several, X, gaussian, device=device)[X.bool()] == 0).all())


@pytest.mark.parametrize("threshold", [0.99, 0.999999])
def test_gaussian_reaches_the_threshold_asked_for(several, captured_once, threshold):
    X = sequences(2, 40, seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        precomputation = precompute(several, 40, conv="gaussian", threshold=threshold)
    assert pearson(yuzu_ism(several, X, precomputation, output="delta"), oracle(several, X)["delta"]) >= threshold


def test_gaussian_with_generous_alpha(several, captured_once):
    X = sequences(2, 40, seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        precomputation = precompute(several, 40, conv="gaussian", alpha=2.0)
    truth = oracle(several, X)["delta"]
    result = yuzu_ism(several, X, precomputation, output="delta")
    assert pearson(result, truth) >= 0.99999 and errors(result, truth)[1] < 1e-3


def test_gaussian_in_float64_is_nearly_exact(several64, captured_once):
    """What costs accuracy is rounding, amplified by the condition: in float64 hardly anything is left of it."""
    model, X = several64, sequences(1, 40, seed=5)
    precomputation = precompute(model, 40, conv="gaussian", alpha=1.5)
    assert errors(yuzu_ism(model, X, precomputation, output="delta"), oracle(model, X)["delta"])[1] < 1e-7


def test_gaussian_badly_conditioned_alpha_warns():
    """With as many probes as nonzeros a square Gaussian matrix is nearly singular somewhere; it says how badly."""
    model = randomized(Profile(width=4)).eval()
    with pytest.warns(UserWarning, match=r"(?s)condition number.*correlation|correlation.*condition number"):
        precompute(model, L, conv="gaussian", alpha=1.0, threshold=1.0)


@pytest.mark.parametrize("condition, correlation, threshold, wanted", [
    (10.2, 0.9999999999993584, 1.0, r"ISM of 0\.999999999999, below threshold=1\.0\. .*condition number is 10\.2.*rounding.*lower threshold"),
    (1000.0, 0.98, 0.9999, r"ISM of 0\.980000, below threshold=0\.9999\. .*badly conditioned.*number is 1e\+03.*larger alpha"),
    (1000.0, 0.99989999, 0.9999, r"ISM of 0\.99989999, below threshold=0\.9999\. "),
])  # fmt: skip
def test_gaussian_warning_says_why(condition, correlation, threshold, wanted):
    from yuzu._engine.store.alpha_search import _too_low

    text = _too_low(1.5, condition, correlation, threshold)
    assert re.search(wanted, text) and ("badly" in text) == (condition >= 100), text
    assert "alpha=1.5" in text and "conv='cyclic' is exact" in text


def test_gaussian_that_only_rounding_keeps_from_the_threshold(several, captured_once):
    with pytest.warns(UserWarning, match=r"ISM of 0\.99999\d+, below threshold=1.*condition number is [\d.]+, which is small"):
        precompute(several, 40, conv="gaussian", alpha=3.0, threshold=1)


def test_gaussian_ranges_n_and_batches(several, gaussian, device):
    X = sequences(3, 40, seed=6)
    X[1, :, 7:9] = 0
    for options in ({}, {"ranges": [(0, 2), (18, 20), (19, 21)]}, {"start": 5, "end": 11}, {"batch_size": 2}):
        shared = {k: v for k, v in options.items() if k != "batch_size"}
        result = yuzu_ism(several, X, gaussian, output="delta", device=device, **options)
        assert pearson(result, oracle(several, X, **shared)["delta"]) >= 0.9999, options


def test_random_state_decides_the_probes(several, captured_once):
    X = sequences(1, 40, seed=7)
    results = []
    for state in (1, 1, 2):
        precomputation = precompute(several, 40, conv="gaussian", alpha=1.5, random_state=state)
        results.append(yuzu_ism(several, X, precomputation, output="delta"))
    assert_same(results[0], results[1])
    assert not torch.equal(results[0], results[2])


# precision


@pytest.mark.parametrize("way", ["windows", "banded", "cyclic"])
def test_high_is_highest_on_a_cpu(several, captured_once, way):
    X = sequences(2, 40, seed=3)
    highest, high = (precompute(several, 40, conv=way, precision=p, device="cpu") for p in ("highest", "high"))
    assert_same(
        yuzu_ism(several, X, high, output="delta", device="cpu"),
        yuzu_ism(several, X, highest, output="delta", device="cpu"),
    )


@pytest.mark.parametrize("way", ["windows", "banded", "blocks", "whole", "fold", "cyclic"])
def test_medium(several, captured_once, device, way):
    X = sequences(2, 40, seed=3)
    precomputation = precompute(several, 40, conv=way, precision="medium", device=device)
    for output in ("l2", "delta"):
        result, truth = yuzu_ism(several, X, precomputation, output=output, device=device), oracle(several, X)[output]
        assert result.dtype == torch.float32 and bool((result[X.bool()] == 0).all())
        assert pearson(result, truth) > 0.999
        assert errors(result, truth)[0] < 5e-2 and errors(result, truth)[1] < 5e-2


def test_high_stays_accurate(several, captured_once, device):
    X = sequences(2, 40, seed=3)
    precomputation = precompute(several, 40, precision="high", device=device)
    relative, largest = errors(
        yuzu_ism(several, X, precomputation, output="delta", device=device), oracle(several, X)["delta"]
    )
    assert relative < 5e-3 and largest < 5e-3


def test_medium_keeps_the_reference_in_float32(several, captured_once):
    """Reference and non-linearities stay in float32, so the reference prediction is as accurate as ever."""
    X = sequences(1, 40, seed=3)
    prediction = yuzu_ism(several, X, precompute(several, 40, precision="medium"), output="prediction")
    with torch.no_grad():
        y = copy.deepcopy(several).double()(X.double())[0]
    assert errors(prediction[0][X[0].bool()], y.expand(40, 3))[1] < 1e-6


# terminal layers


@pytest.mark.parametrize(
    "classes", [(torch.nn.Linear,), [torch.nn.MaxPool1d, torch.nn.Linear], (torch.nn.Conv1d,), (Net,)]
)
def test_terminal_layers(net, captured_once, device, classes):
    X = sequences(2, L)
    precomputation = precompute(net, L, terminal_layers=classes, device=device)
    assert "terminal_layers" in precomputation.summary()
    assert_right(yuzu_ism(net, X, precomputation, output="delta", device=device), net, X, output="delta", device=device)


def test_terminal_layers_that_do_not_occur(net, captured_once):
    precomputation = precompute(net, L, terminal_layers=(torch.nn.LSTM,))
    assert "terminal_layers" not in precomputation.summary()
    assert_right(yuzu_ism(net, sequences(1, L), precomputation), net, sequences(1, L))


# memory


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


# what it says


def test_summary_and_print(net, captured_once, capsys):
    precomputation = precompute(net, L)
    text = precomputation.summary()
    assert isinstance(text, str) and str(precomputation) == text
    print(precomputation)
    assert capsys.readouterr().out == text + "\n"
    for word in (
        "layer",
        "operation",
        "handler",
        "window",
        "way",
        "time",
        "conv1",
        "conv2",
        "fc1",
        "fc2",
        "conv1d",
        "linear",
        "%",
    ):
        assert word in text, f"{word} is missing from\n{text}"
    assert str(L) in text and "4" in text
    assert re.search(r"conv1 .*1 -> 5\b", text), "the window before and after the first convolution"
    assert isinstance(repr(precomputation), str) and "30" in repr(precomputation)


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.lstm = torch.nn.Conv1d(4, 3, 3), torch.nn.LSTM(3, 4, batch_first=True)
        self.fc = torch.nn.Linear(4, 2)

    def forward(self, X):
        return self.fc(self.lstm(self.conv(X).transpose(1, 2))[0].mean(1))


def test_summary_says_why_a_layer_is_naive():
    model, X = randomized(Recurrent()), sequences(2, L)
    with pytest.warns(UserWarning, match="lstm"):
        precomputation = precompute(model, L)
    assert "naive" in precomputation.summary() and "lstm" in precomputation.summary()
    assert_right(yuzu_ism(model, X, precomputation, output="delta"), model, X, output="delta")


def test_summary_tells_the_probes(several, captured_once):
    text = precompute(several, 40, conv="cyclic").summary()
    assert "probes" in text
    # conv2 is reached by windows of 7, which become 15 wide: at a position 15 * 3 mutants are nonzero
    assert re.search(r"^conv2 .*7 -> 15 +45 +cyclic", text, re.M), text


def test_verbose_false_is_silent(net, capfd):
    precompute(net, L)
    assert capfd.readouterr() == ("", "")


def test_precompute_has_its_seed(several, captured_once):
    """Two identical calls decide the same: the sensing matrices must not come from the global random state."""
    torch.manual_seed(1)
    first = precompute(several, 40, conv="gaussian", alpha=1.5)
    torch.manual_seed(2)
    second = precompute(several, 40, conv="gaussian", alpha=1.5)
    X = sequences(1, 40)
    assert_same(yuzu_ism(several, X, first), yuzu_ism(several, X, second))


# nothing of the weights is in it


@pytest.fixture(scope="module", params=["auto", "windows", "banded", "fold", "cyclic", "gaussian"])
def trained(request):
    """A model whose weights the tests below change, and one precomputation from before all changes."""
    model = randomized(Net(), seed=20).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alpha = 1.5 if request.param == "gaussian" else None
        precomputation = precompute(model, L, conv=request.param, alpha=alpha)
    given = (precomputation, None) if request.param == "auto" else (precomputation,)
    for p in given:
        yuzu_ism(model, sequences(1, L), p)  # whatever is derived from weights is derived now
    return model, given, request.param


def train_a_step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    model(sequences(4, L, seed=30)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def in_place(model):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.9).add_(0.02)


def through_data(model):
    for p in model.parameters():
        p.data.mul_(1.2)


def assign_data(model):
    for p in model.parameters():
        p.data = p.data.flip(0).clone()


def through_numpy(model):
    for p in model.parameters():
        p.detach().numpy()[...] *= 1.1


def one_column(model):
    model.conv1.weight.data[:, 0, 1] += 0.7


def replace_parameters(model):
    for module in (model.conv1, model.conv2, model.fc1):
        module.weight = torch.nn.Parameter(module.weight.detach() * 1.1 + 0.01)


def load_state(model):
    model.load_state_dict(randomized(Net(), seed=31).state_dict())


def assign_state(model):
    model.load_state_dict(randomized(Net(), seed=32).state_dict(), assign=True)


def batch_statistics(model):
    model.norm.running_mean.add_(0.5)
    model.norm.running_var.mul_(2)


def replace_statistics(model):
    model.norm.running_mean = torch.full((6,), 0.1)
    model.norm.running_var = torch.full((6,), 0.7)


def training_forward_pass(model):
    model.train()
    model(sequences(8, L, seed=33))  # moves the running statistics
    model.eval()


WEIGHT_CHANGES = [
    train_a_step,
    in_place,
    through_data,
    assign_data,
    through_numpy,
    one_column,
    replace_parameters,
    load_state,
    assign_state,
    batch_statistics,
    replace_statistics,
    training_forward_pass,
]


@pytest.mark.parametrize("change", WEIGHT_CHANGES)
def test_the_weights_of_now_are_used(trained, change):
    model, given, way = trained
    X = sequences(1, L, seed=8)
    before = yuzu_ism(model, X, given[0], output="delta")
    change(model)
    for precomputation in given:
        result, truth = yuzu_ism(model, X, precomputation, output="delta"), oracle(model, X)["delta"]
        if way == "gaussian":
            assert pearson(result, truth) >= 0.9999 and errors(result, truth)[1] < 0.01
        else:
            assert_right(result, model, X, output="delta")
    assert errors(before, truth)[0] > 1e-3, "the test is empty: the change does not show"


def test_one_precomputation_for_two_models_of_one_architecture():
    a, b, X = randomized(Net(), seed=40).eval(), randomized(Net(), seed=41).eval(), sequences(2, L)
    precomputation = precompute(a, L)
    for model in (b, a, b):
        assert_right(yuzu_ism(model, X, precomputation, output="delta"), model, X, output="delta")


def test_weights_that_are_zero_when_precomputed():
    """Nothing may be concluded from the weights' values, such as that a channel is dead."""
    model, X = Net().eval(), sequences(2, L)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    precomputation = precompute(model, L)
    assert bool((yuzu_ism(model, X, precomputation) == 0).all())
    randomized(model, seed=50)
    assert_right(yuzu_ism(model, X, precomputation), model, X)


def test_reparametrized_weights(net):
    """Weight norm computes the weight from two parameters at every forward pass."""
    model = randomized(Profile(), seed=3).eval()
    torch.nn.utils.parametrizations.weight_norm(model.dilated)
    X = sequences(2, L)
    precomputation = precompute(model, L)
    assert_right(yuzu_ism(model, X, precomputation), model, X)
    with torch.no_grad():
        model.dilated.parametrizations.weight.original0.mul_(1.5)
    assert_right(yuzu_ism(model, X, precomputation), model, X)


def test_the_model_is_not_kept_alive():
    model = randomized(Net(), seed=60).eval()
    precomputation = precompute(model, L)
    yuzu_ism(model, sequences(1, L), precomputation)
    yuzu_ism(model, sequences(1, L))
    weight = weakref.ref(model.fc1.weight)
    model = weakref.ref(model)
    gc.collect()
    assert model() is None and weight() is None
    assert precomputation.summary()


def test_no_run_waits_to_be_collected():
    """With it would wait what lies on a GPU: weights, and the values of a reference."""
    model = randomized(Net(), seed=60).eval()
    gc.collect()
    gc.disable()
    try:
        yuzu_ism(model, sequences(1, L), precompute(model, L))
        assert not [found for found in gc.get_objects() if isinstance(found, Run)]
    finally:
        gc.enable()


# the precomputation that is kept between calls


class Settings(torch.nn.Module):
    """A model that reads settings of its own at every forward pass."""

    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv1d(4, 5, 3, padding=1)
        self.conv2 = torch.nn.Conv1d(5, 5, 3, padding=1)
        self.act = torch.nn.ReLU()
        self.pool = torch.nn.MaxPool1d(3, stride=1, padding=1)
        self.fc = torch.nn.Linear(5, 2)
        self.scale = 1.0
        self.function = torch.relu
        self.config = types.SimpleNamespace(shift=0.0, power=1)
        self.table = {"gain": [1.0]}

    def forward(self, X):
        X = self.pool(self.act(self.conv1(X)))
        X = self.function(self.conv2(X)) * self.scale * self.table["gain"][0] + self.config.shift
        return self.fc((X**self.config.power).mean(2))


def exchange_layer(model):
    model.conv2 = randomized(torch.nn.Conv1d(5, 5, 5, padding=2), seed=9)


def exchange_layer_of_equal_shapes(model):
    model.conv2 = randomized(torch.nn.Conv1d(5, 5, 3, padding=2, dilation=2), seed=9)


def change_dilation_in_place(model):
    model.conv2.dilation, model.conv2.padding = (2,), (2,)


def exchange_activation(model):
    model.act = torch.nn.GELU()


def exchange_pool(model):
    model.pool = torch.nn.AvgPool1d(3, stride=1, padding=1)


def change_pool_in_place(model):
    model.pool.kernel_size, model.pool.padding = 5, 2


def drop_bias(model):
    model.conv2.bias = None


def change_scale(model):
    model.scale = 2.5


def change_function(model):
    model.function = torch.tanh


def change_config_object(model):
    model.config.power = 3


def change_nested_setting(model):
    model.table["gain"][0] = 3.0


def register_hook(model):
    model.conv1.register_forward_hook(lambda module, inputs, y: y.abs())


def replace_forward(model):
    model.forward = types.MethodType(lambda self, X: self.fc(self.conv2(self.conv1(X)).mean(2)), model)


def replace_forward_of_a_layer(model):
    model.act.forward = lambda X: torch.sigmoid(X)


LAYER_CHANGES = [
    exchange_layer,
    exchange_layer_of_equal_shapes,
    change_dilation_in_place,
    exchange_activation,
    exchange_pool,
    change_pool_in_place,
    drop_bias,
    change_function,
    register_hook,
    replace_forward,
    replace_forward_of_a_layer,
]
SETTING_CHANGES = [change_scale, change_config_object, change_nested_setting]


@pytest.fixture(scope="module")
def made_for_settings():
    return precompute(Settings().eval(), L)


@pytest.mark.parametrize("change", LAYER_CHANGES + SETTING_CHANGES)
def test_changed_architecture(made_for_settings, change):
    """Without a precomputation a new one is made; a given one is refused. Never a result of the old architecture."""
    model, X = randomized(Settings(), seed=70).eval(), sequences(2, L)
    before = yuzu_ism(model, X, output="delta")
    change(model)
    result = yuzu_ism(model, X, output="delta")
    assert errors(oracle(model, X)["delta"], before)[0] > 1e-2, "the test is empty: the change does not show"
    assert_right(result, model, X, output="delta")
    if change in LAYER_CHANGES[::2]:
        with pytest.raises(PrecomputationError, match="architecture"):
            yuzu_ism(model, X, made_for_settings)


@pytest.mark.parametrize("change", SETTING_CHANGES)
def test_changed_setting_with_a_precomputation(made_for_settings, change):
    """A number that forward reads may be refused or used, but its old value is never used."""
    model, X = randomized(Settings(), seed=70).eval(), sequences(2, L)
    assert_right(yuzu_ism(model, X, made_for_settings), model, X)
    change(model)
    try:
        result = yuzu_ism(model, X, made_for_settings, output="delta")
    except PrecomputationError as error:
        assert "architecture" in str(error)
    else:
        assert_right(result, model, X, output="delta")


class Slots:
    __slots__ = ("slope",)

    def __init__(self):
        self.slope = 0.1


class Leaky:
    def __init__(self):
        self.slope = 0.1

    def run(self, x):
        return F.leaky_relu(x, self.slope)


class Reading(torch.nn.Module):
    """Applies what it holds between two layers."""

    settings = types.MappingProxyType({})

    def __init__(self, held, apply):
        super().__init__()
        self.conv, self.fc = torch.nn.Conv1d(4, 5, 3, padding=1), torch.nn.Linear(5, 2)
        self.held, self.apply_held = held, apply

    def forward(self, X):
        return self.fc(self.apply_held(self, self.conv(X)).mean(2))


class OfItsClass(Reading):
    settings = types.SimpleNamespace(slope=0.1)
    table = {"slope": 0.1}

    def activate(self, x):
        return F.leaky_relu(x, self.settings.slope) * self.table["slope"]


def of_closure():
    slope = 0.1

    def leaky(x):
        return F.leaky_relu(x, slope)

    def change(model):
        nonlocal slope
        slope = 0.8

    return leaky, change


OUTSIDE = 0.1
outer = torch.nn.Linear(L, L)
leaky, change_closure = of_closure()


def change_outside(model):
    global OUTSIDE
    OUTSIDE = 0.8


def exchange_outer_weight(model):
    outer.weight = torch.nn.Parameter(torch.randn(L, L, generator=torch.Generator().manual_seed(3)))


def by_number(number):
    return lambda model, x: x * float(number(model.held))


def slope_of(settings):
    return lambda model, x: F.leaky_relu(x, settings(model).slope)


HELD = {
    "partial": (
        lambda: functools.partial(F.leaky_relu, negative_slope=0.1),
        lambda model, x: model.held(x),
        lambda model: setattr(model, "held", functools.partial(F.leaky_relu, negative_slope=0.8)),
    ),
    "object with slots": (Slots, slope_of(lambda model: model.held), lambda model: setattr(model.held, "slope", 0.8)),
    "array": (
        lambda: np.ones(L, dtype=np.float32),
        lambda model, x: x * torch.as_tensor(model.held),
        lambda model: model.held.__setitem__(slice(5), 3),
    ),
    "deque": (
        lambda: collections.deque([1]),
        by_number(lambda held: held[0]),
        lambda model: model.held.__setitem__(0, 3),
    ),
    "tensor read as a number": (
        lambda: torch.tensor(2.0),
        by_number(lambda held: held),
        lambda model: model.held.fill_(5),
    ),
    "layer in a list": (
        lambda: [torch.nn.LeakyReLU(0.1)],
        lambda model, x: model.held[0](x),
        lambda model: setattr(model.held[0], "negative_slope", 0.8),
    ),
    "method of an object": (
        lambda: Leaky().run,
        lambda model, x: model.held(x),
        lambda model: setattr(model.held.__self__, "slope", 0.8),
    ),
    "closure": (lambda: leaky, lambda model, x: model.held(x), change_closure),
    "layer elsewhere": (lambda: None, lambda model, x: outer(x), exchange_outer_weight),
    "number elsewhere": (lambda: None, lambda model, x: F.leaky_relu(x, OUTSIDE), change_outside),
    "object of the class": (
        lambda: None,
        lambda model, x: model.activate(x),
        lambda model: setattr(OfItsClass.settings, "slope", 0.8),
    ),
    "table of the class": (
        lambda: None,
        lambda model, x: model.activate(x),
        lambda model: OfItsClass.table.update(slope=0.8),
    ),
    "method of the class": (
        lambda: None,
        lambda model, x: model.activate(x),
        lambda model: setattr(OfItsClass, "activate", lambda self, x: torch.tanh(x)),
    ),
}


@pytest.mark.parametrize("name", HELD)
def test_changes_of_whatever_forward_reads(name):
    make, apply, change = HELD[name]
    model, X = randomized(OfItsClass(make(), apply), seed=71).eval(), sequences(1, L)
    precomputation = precompute(model, L, device="cpu")
    before = yuzu_ism(model, X, output="delta", device="cpu")
    change(model)
    truth = naive_ism(model, X, output="delta", device="cpu")  # not of a copy, which has what it holds of its own
    assert errors(truth, before)[0] > 1e-2, "the test is empty: the change does not show"
    assert_close(yuzu_ism(model, X, output="delta", device="cpu"), truth, 1e-5, 1e-4)
    try:
        found = yuzu_ism(model, X, precomputation, output="delta", device="cpu")
    except PrecomputationError as error:
        assert "architecture" in str(error)
    else:
        assert_close(found, truth, 1e-5, 1e-4)


conv1 = 0  # not what forward reads as ``self.conv1``


def test_what_trains_or_collects_is_captured_once(monkeypatch):
    """Collected values, an optimizer's state and random numbers decide nothing, and capturing takes time."""
    model, X, collected = randomized(Settings(), seed=72), sequences(1, L), []
    model.conv1.register_forward_hook(lambda module, inputs, output: collected.append(output))
    model.optimizer, model.random = torch.optim.Adam(model.parameters()), np.random.default_rng(0)
    yuzu_ism(model, X, device="cpu")
    monkeypatch.setattr("yuzu._engine.store.precomputation.capture", lambda *args: pytest.fail("it is captured again"))
    for number in range(2):
        monkeypatch.setattr(sys.modules[__name__], "conv1", number + 1)
        model.random.random()
        model(X).sum().backward()
        model.optimizer.step()
        found = yuzu_ism(model, X, output="delta", device="cpu")
        assert_close(found, naive_ism(model, X, output="delta", device="cpu"), 1e-5, 1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_reference_to_what_is_gone():
    gone = Leaky()
    model = randomized(Settings(), seed=73)
    truth, X = copy.deepcopy(model), sequences(1, L)
    model.parent = weakref.proxy(gone)
    del gone
    assert_right(yuzu_ism(model, X, output="delta"), truth, X, output="delta")


class Tied(torch.nn.Module):
    """Two convolutions of one weight."""

    slope = 0.25

    def __init__(self):
        super().__init__()
        self.first, self.second = (torch.nn.Conv1d(4, 4, 5, padding=2) for _ in range(2))
        self.second.weight = self.first.weight

    def forward(self, X):
        X = torch.nn.functional.leaky_relu(self.first(X), self.slope)
        return torch.nn.functional.leaky_relu(self.second(X), self.slope).mean(-1)


def untied(model):
    model.second.weight = torch.nn.Parameter(torch.randn(4, 4, 5))


def made_one(model):
    model.second = model.first


def another_slope(model):
    type(model).slope = 2.0


@pytest.mark.parametrize("change", [untied, made_one, another_slope])
def test_what_is_no_longer_shared(change, monkeypatch):
    """Which tensors and modules are the same, and attributes of classes, are part of what a plan is made for."""
    monkeypatch.setattr(Tied, "slope", 0.25)
    model, X = randomized(Tied(), seed=4).eval(), sequences(2, L)
    model.second.weight = model.first.weight
    made = precompute(model, L)
    assert_right(yuzu_ism(model, X), model, X)
    change(model)
    assert_right(yuzu_ism(model, X), model, X)
    try:
        found = yuzu_ism(model, X, made)
    except PrecomputationError as error:
        assert "architecture" in str(error)
    else:
        assert_right(found, model, X)


def test_changed_back_and_forth():
    model, X = randomized(Settings(), seed=71).eval(), sequences(1, L)
    first, other = model.conv2, randomized(torch.nn.Conv1d(5, 5, 5, padding=2), seed=9)
    for layer in (first, other, first, other):
        model.conv2 = layer
        assert_right(yuzu_ism(model, X), model, X)


def test_changed_dtype():
    model, X = randomized(Net(), seed=72).eval(), sequences(1, L)
    precomputation = precompute(model, L)
    yuzu_ism(model, X)
    model.double()
    assert_right(yuzu_ism(model, X), model, X)  # at float64's accuracy
    with pytest.raises(PrecomputationError, match=r"dtype.*float32.*float64"):
        yuzu_ism(model, X, precomputation)
    model.float()
    assert_right(yuzu_ism(model, X), model, X)
    assert_right(yuzu_ism(model, X, precomputation), model, X)


def test_changed_length():
    model = randomized(Profile(), seed=73).eval()
    for length in (30, 31, 30, 24):
        X = sequences(1, length)
        assert_right(yuzu_ism(model, X), model, X)


class Optional(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 3, 5)

    def forward(self, X, *args):
        X = torch.relu(self.conv(X)).sum(2)
        for a in args:
            X = X * a.flatten(1).sum(1, keepdim=True)
        return X


def test_changed_inputs():
    model, X = randomized(Optional(), seed=74), sequences(2, L)
    a, b = torch.tensor([[0.5], [2.0]]), torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    for args in ((), (a,), (b,), (a, b), (), (a,)):
        assert_right(yuzu_ism(model, X, args=args), model, X, args=args)


def model_at_an_old_id(X):
    """A new model, not yet initialized, where one that `yuzu_ism` knew has been; None if the address went elsewhere."""
    old = randomized(Settings(), seed=1).eval()
    yuzu_ism(old, X)
    address, alive = id(old), weakref.ref(old)
    del old
    gc.collect()
    shells = [object.__new__(Settings) for _ in range(20_000)]
    assert alive() is None, "something keeps the old model alive"
    return next((shell for shell in shells if id(shell) == address), None)


def test_new_model_at_an_old_id():
    X = sequences(1, L)
    model = next((m for m in (model_at_an_old_id(X) for _ in range(20)) if m is not None), None)
    assert model is not None, "no address was given out again: the test is empty"
    model.__init__()
    model.function = torch.tanh
    randomized(model, seed=2).eval()
    assert_right(yuzu_ism(model, X), model, X)


def test_kept_precomputation_is_used_again(monkeypatch):
    """The second call with one model must not prepare again (it would cost more than the run)."""
    model, X = randomized(Net(), seed=75).eval(), sequences(1, L)
    exports = []
    export = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *a, **k: exports.append(1) or export(*a, **k))
    yuzu_ism(model, X)
    first = len(exports)
    assert first >= 1
    yuzu_ism(model, X)
    in_place(model)
    yuzu_ism(model, sequences(3, L), start=3, output="delta")
    assert len(exports) == first


# what it refuses


@pytest.fixture(scope="module")
def made_for_net(net):
    return precompute(net, L)


def test_refuses_another_architecture(made_for_net):
    for model in (Net(width=7), Net(n_outputs=4)):
        with pytest.raises(PrecomputationError, match=r"(?s)architecture.*precompute"):
            yuzu_ism(model, sequences(1, L), made_for_net)


def test_refuses_the_same_shapes_in_another_order():
    class Swapped(torch.nn.Module):
        def __init__(self, swapped):
            super().__init__()
            self.conv = torch.nn.Conv1d(4, 4, 3, padding=1)
            self.swapped = swapped

        def forward(self, X):
            return (torch.relu(self.conv(X)) if self.swapped else self.conv(torch.relu(X))).mean(2)

    precomputation = precompute(Swapped(False), L)
    with pytest.raises(PrecomputationError, match="architecture"):
        yuzu_ism(Swapped(True), sequences(1, L), precomputation)


def test_refuses_another_length(profile):
    with pytest.raises(PrecomputationError, match=r"length 30\b.*\b31\b"):
        yuzu_ism(profile, sequences(1, 31), precompute(profile, 30))


def test_refuses_another_alphabet(made_for_net):
    with pytest.raises(PrecomputationError, match=r"(alphabet|characters).*4.*20"):
        yuzu_ism(Net(n_choices=20), sequences(1, L, 20), made_for_net)


def test_refuses_another_dtype(net, made_for_net):
    with pytest.raises(PrecomputationError, match=r"dtype.*float32.*float64"):
        yuzu_ism(copy.deepcopy(net).double(), sequences(1, L), made_for_net)


def test_refuses_other_inputs():
    model, X, a = randomized(Optional()), sequences(2, L), torch.ones(2, 1)
    without, with_one = precompute(model, L), precompute(model, L, args=(a,))
    for precomputation, args in (
        (without, (a,)),
        (with_one, None),
        (with_one, (a, a)),
        (with_one, (torch.ones(2, 3),)),
    ):
        with pytest.raises(PrecomputationError, match=r"input|args"):
            yuzu_ism(model, X, precomputation, args=args)
    assert_right(yuzu_ism(model, X, with_one, args=(a * 3,)), model, X, args=(a * 3,))


def test_refusals_say_what_to_do(net, made_for_net):
    with pytest.raises(PrecomputationError, match="precompute"):
        yuzu_ism(copy.deepcopy(net).double(), sequences(1, L), made_for_net)


def test_check_refuses_too(made_for_net):
    with pytest.raises(PrecomputationError, match="architecture"):
        yuzu.check(Net(width=7), sequences(1, L), made_for_net)


# verification


def break_handler(monkeypatch, operation, spoil):
    """Let the handler of an operation return something wrong."""
    from yuzu._engine.handlers import contract

    original = contract.registered()[operation]

    def broken(view):
        rule = original(view)
        if not isinstance(rule, str):
            run = rule.run
            rule.run = lambda *args: spoil(run(*args))
        return rule

    monkeypatch.setitem(contract._REGISTRY, operation, broken)


def off_by_one_position(change):
    return change.roll(1, 2)


SPOILS = {
    "off by one percent": lambda change: change * 1.01,
    "zero": torch.zeros_like,
    "shifted": off_by_one_position,
    "wrong in one channel": lambda change: torch.cat([change[..., :-1], change[..., -1:] * 1.05], -1),
    "wrong in one substitution": lambda change: torch.cat([change[:, :-1], change[:, -1:] * 1.05], 1),
}


@pytest.mark.parametrize("name", SPOILS)
def test_verify_catches_a_wrong_handler(monkeypatch, captured_once, name):
    """Errors of a percent keep a correlation above 0.9999, and must be found all the same."""
    break_handler(monkeypatch, "aten.conv1d", SPOILS[name])
    model, X = randomized(Profile(), seed=80).eval(), sequences(2, L)
    wrong = yuzu_ism(model, X, precompute(model, L, verify=False), output="delta")
    assert errors(wrong[0], oracle(model, X)["delta"][0])[1] > 1e-3, "the test is empty: nothing is broken"
    with pytest.warns(UserWarning, match=r"first|dilated|profile"):
        precomputation = precompute(model, L)
    assert_right(yuzu_ism(model, X, precomputation, output="delta"), model, X, output="delta")
    assert "naive" in precomputation.summary()


def test_verify_catches_what_is_wrong_at_the_ends_only(monkeypatch):
    def spoil(change):
        change = change.clone()
        change[-1] += 1.0  # the last site of a chunk
        return change

    break_handler(monkeypatch, "aten.relu", spoil)
    model, X = randomized(Profile(), seed=81).eval(), sequences(1, L)
    with pytest.warns(UserWarning, match="relu"):
        precomputation = precompute(model, L)
    assert_right(yuzu_ism(model, X, precomputation, output="delta"), model, X, output="delta")


def test_on_the_spot_is_verified_too(monkeypatch):
    break_handler(monkeypatch, "aten.relu", lambda change: change * 1.01)
    model, X = randomized(Profile(), seed=82).eval(), sequences(1, L)
    with pytest.warns(UserWarning, match="relu"):
        result = yuzu_ism(model, X, output="delta")
    assert_right(result, model, X, output="delta")


# check


def test_check(net, device):
    X = sequences(2, L)
    report = yuzu.check(net, X, device=device)
    assert isinstance(report, tuple) and len(report._fields) == 7
    assert report.yuzu_relative_error <= max(1e-5, report.naive_relative_error)
    assert 0 < report.naive_relative_error < 1e-4 and 0 < report.naive_largest_error < 1e-4
    assert report.yuzu_largest_error < 1e-4
    assert report.yuzu_seconds > 0 and report.naive_seconds > 0
    sentence = report[-1]
    assert isinstance(sentence, str) and sentence.endswith(".") and "float64" in sentence and str(report) == sentence


def test_check_takes_what_yuzu_ism_takes(profile):
    precomputation = precompute(profile, L)
    for X in (sequences(1, L).numpy(), sequences(3, L, dtype=torch.int8)):
        for positions in (1, 5, 10**6):
            assert yuzu.check(profile, X, precomputation, positions=positions).yuzu_largest_error < 1e-4
    model, a = randomized(Optional()), torch.tensor([[0.5], [2.0]])
    assert yuzu.check(model, sequences(2, L), args=(a,)).yuzu_largest_error < 1e-4
    protein = randomized(Net(16, 20, width=4)).eval()
    assert yuzu.check(protein, sequences(1, 16, 20)).yuzu_largest_error < 1e-4


def test_check_of_a_float64_model():
    model = randomized(Net()).double().eval()
    report = yuzu.check(model, sequences(1, L))
    assert report.yuzu_relative_error < 1e-10


@pytest.mark.parametrize(
    "ours, naive, words",
    [
        (2e-7, 3e-7, "is as accurate as naive ISM or better: "),
        (2e-4, 3e-4, "is as accurate as naive ISM or better: "),
        (4e-7, 3e-7, "is accurate to 4.0e-07, within the 1e-05 that is promised: "),
        (2e-5, 3e-7, "is LESS accurate than naive ISM: "),
    ],
)
def test_the_sentence_of_check_is_true(net, monkeypatch, ours, naive, words):
    errors = iter([(ours, 0.0), (naive, 0.0)])
    monkeypatch.setattr(sys.modules["yuzu.check"], "errors_against", lambda *_: next(errors))
    assert words in str(yuzu.check(net, sequences(1, L)))


def test_check_finds_what_is_wrong(monkeypatch, net):
    """An error of 3% in one channel, which a correlation hides, shows in the report and in its sentence."""
    good = yuzu.check(net, sequences(1, L))
    break_handler(monkeypatch, "aten.relu", lambda change: change * 1.03)
    model = copy.deepcopy(net)
    bad = yuzu.check(model, sequences(1, L), precompute(model, L, verify=False))
    assert bad.yuzu_relative_error > 5e-3 and bad.yuzu_largest_error > 5e-3
    assert bad.naive_relative_error < 1e-4
    assert ("LESS" in str(bad)) and ("LESS" not in str(good))
