"""Whole models against brute force in float64, over all positions: random architectures, and every model of `yuzu.models`.

``YUZU_FUZZ=300`` tries that many more architectures; ``YUZU_FUZZ_FROM=1000`` says where to start.
"""

import copy
import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import yuzu
from tests.capturing import decide
from tests.laws.random_models import (
    CPU,
    Laboratory,
    RandomModel,
    brute_force,
    chunk,
    noise_of,
    one_hot,
    random_model,
    relative_error,
    tensors_of,
)
from yuzu import models
from yuzu._engine.handlers import values
from yuzu._engine.ways.convolution import WAYS
from yuzu.errors import YuzuWarning

ARCHITECTURES = 40
FUZZ = int(os.environ.get("YUZU_FUZZ", "0"))
FIRST = int(os.environ.get("YUZU_FUZZ_FROM", str(ARCHITECTURES)))
SEEDS = [*range(ARCHITECTURES), *range(FIRST, FIRST + FUZZ)]
EXACT_WAYS = ["auto", *(way for way, entry in WAYS.items() if entry.exact)]


@pytest.fixture(autouse=True)
def no_warnings_of_ours() -> Any:
    """Models made of known layers leave nothing to warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", YuzuWarning)
        yield


def mutagenesis(model: nn.Module, X: torch.Tensor, args: tuple[torch.Tensor, ...] = (), **settings: Any) -> list[torch.Tensor]:
    made = yuzu.precompute(model, X.shape[2], X.shape[1], args=args or None, device="cpu", **settings)
    return tensors_of(yuzu.yuzu_ism(model, X, made, args=args or None, output="delta", device="cpu"))


def assert_exact(found: list[torch.Tensor], truth: list[torch.Tensor], noise: list[float], what: Any) -> None:
    for f, t, n in zip(found, truth, noise, strict=True):
        assert f.shape == t.shape
        error = float((f - t).norm())
        assert error <= 1e-9 * float(t.norm()) + 100 * n, f"relative error {relative_error(f, t):.1e} in {what}"


def assert_as_good_as_naive(
    found: list[torch.Tensor],
    naive: list[torch.Tensor],
    truth: list[torch.Tensor],
    noise: list[float],
    what: Any,
    luck: float = 1.0,
) -> None:
    for f, m, t, n in zip(found, naive, truth, noise, strict=True):
        theirs = float((m.double() - t).norm())
        ours = float((f.double() - t).norm())
        # where the true change is no more than rounding noise both errors are noise of one size
        allowed = max(1e-5 * float(t.norm()), theirs * luck, 1e9 * n)
        assert ours <= allowed, f"relative error {relative_error(f, t):.1e}, naive float32 has {relative_error(m, t):.1e}, in {what}"


# ---- random architectures ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_random_architecture(seed: int) -> None:
    """Every other one is run in float64, and every other in float32 and, by the same plan, in float64."""
    drawn = random_model(seed)
    model, X, args = drawn.model, drawn.X, drawn.args
    truth = brute_force(model, X, args)
    noise = noise_of(model, X, args, truth)
    way = EXACT_WAYS[seed // 2 % len(EXACT_WAYS)]
    doubles = tuple(a.double() for a in args)
    if seed % 2 == 0:
        assert_exact(mutagenesis(copy.deepcopy(model).double(), X, doubles, conv=way), truth, noise, drawn.blocks)
        return
    made = yuzu.precompute(model, X.shape[2], X.shape[1], args=args or None, device="cpu", conv=way)
    found = tensors_of(yuzu.yuzu_ism(model, X, made, args=args or None, output="delta", device="cpu"))
    # of many more architectures, some whose error is naive's own (a norm over positions) have it a little larger by chance
    luck = 1.0 if seed < ARCHITECTURES else 2.0
    assert_as_good_as_naive(found, brute_force(model, X, args, torch.float32), truth, noise, drawn.blocks, luck)
    bound = made.bind(model, X.shape[2], X.shape[1], args, CPU)
    laboratory = Laboratory(model, X, args, bound.plan.graph)
    places = [(s, p) for s in range(2) for p in range(X.shape[2]) if X[s, :, p].any()]
    problems = list(laboratory.problems([chunk("everywhere", X.double(), places)], tolerance=1e-8))
    assert not problems, (problems[:5], drawn.blocks)


@pytest.mark.parametrize("seed", range(1, 40, 3))
def test_random_architecture_where_all_differences_count_as_small(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no formula is then run in float64 everywhere."""
    monkeypatch.setattr(values, "SMALL", float("inf"))
    drawn = random_model(seed)
    model, X, args = drawn.model, drawn.X, drawn.args
    truth = brute_force(model, X, args)
    naive, noise = brute_force(model, X, args, torch.float32), noise_of(model, X, args, truth)
    assert_as_good_as_naive(mutagenesis(model, X, args), naive, truth, noise, drawn.blocks)


@pytest.mark.parametrize("seed", [1, 2, 5, 8, 17, 25])
def test_results_do_not_depend_on_chunks(seed: int) -> None:
    drawn = random_model(seed)
    model, X, args = drawn.model.double(), drawn.X, tuple(a.double() for a in drawn.args)
    made = yuzu.precompute(model, X.shape[2], X.shape[1], args=args or None, device="cpu", conv="windows", verify=False)
    truth = brute_force(model, X, args)
    noise = noise_of(model, X, args, truth)
    for sites in (1, 3, 7, X.shape[2], 10_000):
        decide(made, sites=sites)
        for batch_size in (None, 1, 2):
            found = yuzu.yuzu_ism(model, X, made, args=args or None, output="delta", batch_size=batch_size, device="cpu")
            assert_exact(tensors_of(found), truth, noise, (sites, batch_size, drawn.blocks))


@pytest.mark.parametrize("seed", [3, 6, 11])
def test_results_do_not_depend_on_neighbours(seed: int) -> None:
    """A sequence's scores are its own, whatever lies beside it in the batch."""
    drawn = random_model(seed)
    model, args = drawn.model.double(), tuple(a[:1].double() for a in drawn.args)
    _, c, length = drawn.X.shape
    X = one_hot(4, c, length, seed)
    made = yuzu.precompute(model, length, c, args=args or None, device="cpu", conv="windows", verify=False)

    def run(rows: list[int]) -> list[torch.Tensor]:
        given = tuple(a.expand(len(rows), *a.shape[1:]) for a in args)
        return tensors_of(yuzu.yuzu_ism(model, X[rows], made, args=given or None, output="delta", device="cpu"))

    together, backwards = run([0, 1, 2, 3]), run([3, 2, 1, 0])
    for i in range(4):
        for a, b, c_ in zip(together, backwards, run([i]), strict=True):
            scale = float(a.abs().max()) + 1e-300
            assert float((a[i] - b[3 - i]).abs().max()) <= 1e-12 * scale and float((a[i] - c_[0]).abs().max()) <= 1e-12 * scale


def test_the_generator_covers_what_it_is_for() -> None:
    """The fixed architectures meet every kind of block and head, other inputs, an N, several outputs, windows to the end and whole values."""
    drawn = [random_model(seed) for seed in range(ARCHITECTURES)]
    text = " ".join(" ".join(d.blocks) for d in drawn)
    from tests.laws.random_models import BLOCKS

    missing = [b.__name__ for b, _ in BLOCKS if b.__name__ + " (" not in text]
    assert not missing
    assert text.count("head: ") >= ARCHITECTURES and len({w for d in drawn for w in d.blocks if w.startswith("head")}) >= 10
    assert any(d.args for d in drawn) and any(not d.X.any(1).all() for d in drawn)
    assert any(isinstance(output_of(d), dict) for d in drawn) and any(isinstance(output_of(d), tuple) for d in drawn)
    again = random_model(7)
    assert again.blocks == drawn[7].blocks and all(
        torch.equal(a, b) for a, b in zip(again.model.state_dict().values(), drawn[7].model.state_dict().values(), strict=True)
    )


def output_of(drawn: RandomModel) -> Any:
    with torch.no_grad():
        return drawn.model(drawn.X, *drawn.args)


# ---- the models of yuzu.models -------------------------------------------------------------------------------------------------------------------

MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {  # and the length, and how many positions are looked at from the start
    "OneLayer": (lambda: models.OneLayer(4), 30, 30),
    "ToyNet": (lambda: models.ToyNet(4), 40, 40),
    "ToyNet, protein": (lambda: models.ToyNet(20, n_filters=8), 15, 15),
    "DeepSEA": (lambda: models.DeepSEA(4, seq_len=32), 32, 32),
    "Basset": (lambda: models.Basset(4, seq_len=48), 48, 24),
    "FactorizedBasset": (lambda: models.FactorizedBasset(4, seq_len=48), 48, 16),
    "BPNet": (lambda: models.BPNet(4), 90, 45),
    "BPNet, even kernel": (lambda: models.BPNet(4, n_filters=8, kernel_size=4, n_layers=6), 50, 50),
    "SpliceAI 80": (lambda: models.SpliceAI(4, flanking=80, n_filters=16), 100, 100),
    "SpliceAI 400": (lambda: models.SpliceAI(4, flanking=400, n_filters=4), 402, 402),
    "Beluga": (lambda: models.Beluga(4, n_outputs=20, seq_len=310), 310, 3),
}  # fmt: skip


def truth_from_the_start(model: nn.Module, X: torch.Tensor, stop: int, dtype: torch.dtype) -> torch.Tensor:
    """`brute_force` of one sequence and its first ``stop`` positions."""
    model_copy = copy.deepcopy(model).to(dtype).eval()
    c = X.shape[1]
    rows = X.to(dtype).expand(c, stop, -1, -1).clone()
    for p in range(stop):
        rows[:, p, :, p] = torch.eye(c, dtype=dtype)
    with torch.no_grad():
        found = torch.cat([model_copy(part) for part in rows.flatten(0, 1).split(64)]) - model_copy(X.to(dtype))
    found = found.unflatten(0, (c, stop))
    found[X[0, :, :stop] == 1] = 0
    return found[None]


@pytest.mark.parametrize("name", list(MODELS))
def test_example_model(name: str) -> None:
    build, length, stop = MODELS[name]
    model = build().train()  # as the constructors leave it
    X = one_hot(1, 20 if "protein" in name else 4, length, 3, torch.float32)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for module in model.modules():  # statistics as after training
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
    made = yuzu.precompute(model, length, X.shape[1], device="cpu", conv="windows" if name == "Beluga" else "auto")
    found = yuzu.yuzu_ism(model, X, made, output="delta", end=stop, device="cpu")
    truth, naive = (truth_from_the_start(model, X, stop, dtype) for dtype in (torch.float64, torch.float32))
    assert model.training
    ours, theirs = relative_error(found, truth), relative_error(naive, truth)
    assert ours <= max(1e-5, theirs), f"relative error {ours:.1e}, naive float32 has {theirs:.1e}"
    largest = float((found - truth).abs().max() / truth.abs().max())
    assert largest <= 1e-4, f"largest error {largest:.1e} of the largest score"
    assert made.summary().count("\n") > 1


@pytest.mark.parametrize("name", ["OneLayer", "ToyNet", "BPNet, even kernel", "SpliceAI 80"])
def test_example_model_in_float64(name: str) -> None:
    build, length, _ = MODELS[name]
    model = build().double()
    X = one_hot(1, 4, length, 3)
    (found,) = mutagenesis(model, X)
    assert relative_error(found, truth_from_the_start(model, X, length, torch.float64)) < 1e-11


# ---- the saving ------------------------------------------------------------------------------------------------------------------------------------


class Convolved(TorchDispatchMode):
    """Counts what goes through convolutions: rows and positions of every input."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.calls.append((args[0].shape[0], args[0].shape[-1]))
        return func(*args, **(kwargs or {}))


def dense_net(length: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 16, 9, padding=4), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(16, 16, 5, padding=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * (length // 2), 32), nn.ReLU(), nn.Linear(32, 2),
    )  # fmt: skip


SAVINGS: dict[str, tuple[Callable[[], nn.Module], int, float]] = {  # and the length, and the most of naive's multiply-adds
    "ToyNet": (lambda: models.ToyNet(4), 300, 0.06),
    "BPNet": (lambda: models.BPNet(4, n_filters=16), 400, 0.25),
    "dense": (lambda: dense_net(400), 400, 0.06),
    "pooled": (lambda: nn.Sequential(nn.Conv1d(4, 16, 9, padding=4), nn.ReLU(), nn.Conv1d(16, 16, 9, padding=4), nn.AdaptiveAvgPool1d(1),
                                     nn.Flatten(), nn.Linear(16, 2)), 300, 0.08),
    "channelwise linear": (lambda: nn.Sequential(nn.Conv1d(4, 16, 5), Transposed(nn.Linear(16, 32)), nn.GELU(), nn.Conv1d(32, 2, 5)), 300, 0.08),
    "SpliceAI": (lambda: models.SpliceAI(4, flanking=80, n_filters=8), 500, 0.25),
}  # fmt: skip


class Transposed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize(("name", "way"), [(n, w) for n in SAVINGS for w in EXACT_WAYS if w == "auto" or n in ("ToyNet", "dense")])
def test_multiply_adds_are_saved(name: str, way: str) -> None:
    build, length, most = SAVINGS[name]
    model = build().eval()
    X = one_hot(1, 4, length, 1, torch.float32)
    made = yuzu.precompute(model, length, device="cpu", conv=way, verify=False)
    yuzu.yuzu_ism(model, X, made, device="cpu")  # weights are laid out anew
    with FlopCounterMode(display=False) as ours:
        yuzu.yuzu_ism(model, X, made, device="cpu")
    with FlopCounterMode(display=False) as once, torch.no_grad():
        model(X)
    naive = once.get_total_flops() * 3 * length
    assert 0 < ours.get_total_flops() <= most * naive, f"{ours.get_total_flops() / naive:.3f} of naive"


@pytest.mark.parametrize("way", EXACT_WAYS)
def test_no_convolution_runs_on_the_whole_length_for_mutants(way: str) -> None:
    model, length, n = models.ToyNet(4).eval(), 250, 2
    X = one_hot(n, 4, length, 1, torch.float32)
    made = yuzu.precompute(model, length, device="cpu", conv=way, verify=False)
    decide(made, sites=length)
    yuzu.yuzu_ism(model, X, made, device="cpu")
    with Convolved() as counted:
        yuzu.yuzu_ism(model, X, made, device="cpu")
    mutants = 3 * length * n
    references = 3 * n * length
    # a mutant's windows into the second and third convolution are 7 and 13 wide, what they reach 13 and 19; probes are as long as that
    carried = sum(rows * positions for rows, positions in counted.calls) - references
    assert carried <= 1.15 * mutants * (13 + 19 if way == "cyclic" else 7 + 13)
    if way != "cyclic":
        assert sum(rows for rows, positions in counted.calls if positions == length) == 3 * n


def test_the_model_itself_is_not_run_on_mutants() -> None:
    model, length = models.ToyNet(4).eval(), 60
    X = one_hot(3, 4, length, 1, torch.float32)
    rows: list[int] = []

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        if type(inputs[0].shape[0]) is int:  # not while it is captured
            rows.append(inputs[0].shape[0])

    model.conv1.register_forward_hook(count)
    made = yuzu.precompute(model, length, device="cpu", verify=False)
    rows.clear()
    yuzu.yuzu_ism(model, X, made, device="cpu")
    assert sum(rows) <= len(X)
    yuzu.naive_ism(model, X, device="cpu")
    assert sum(rows) >= 3 * length * len(X)


def test_positions_that_no_output_sees_are_not_run() -> None:
    """Of a model that crops to its middle, only the edits that reach it cost anything."""

    class Middle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv1d(4, 8, 5, padding=2), nn.Conv1d(8, 2, 5, padding=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.conv(x)))[:, :, 90:110].reshape(x.shape[0], -1)

    model = Middle().eval()
    X = one_hot(1, 4, 200, 1, torch.float32)
    made = yuzu.precompute(model, 200, device="cpu", conv="windows", verify=False)
    decide(made, sites=4)
    with FlopCounterMode(display=False) as middle:
        found = yuzu.yuzu_ism(model, X, made, output="delta", device="cpu", start=86, end=114)
    with FlopCounterMode(display=False) as all_of_it:
        everything = yuzu.yuzu_ism(model, X, made, output="delta", device="cpu")
    assert all_of_it.get_total_flops() == middle.get_total_flops()
    assert torch.allclose(everything[:, :, 86:114], found) and not everything[:, :, :86].any() and not everything[:, :, 114:].any()
