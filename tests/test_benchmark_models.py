"""The architectures of the benchmarks, and the script that compares them with naive ISM."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def benchmarks():
    """The scripts of the benchmarks can be imported."""
    added = [str(BENCHMARKS), str(BENCHMARKS / "peers")]
    sys.path[:0] = added
    yield
    for path in added:
        sys.path.remove(path)


@pytest.fixture
def registry(benchmarks):
    import models

    return models.ARCHITECTURES


def names():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import models
    finally:
        sys.path.remove(str(BENCHMARKS))
    return list(models.ARCHITECTURES)


NAMES = names()


@pytest.mark.parametrize("name", NAMES)
def test_every_output_is_finite_and_reads_the_sequence(name, registry):
    case = registry[name]
    before = torch.get_rng_state()
    model, X, args = case.model(), case.sequences(2), case.args(2)
    assert torch.equal(before, torch.get_rng_state()) and not model.training
    with torch.no_grad():
        outputs = torch.utils._pytree.tree_leaves(model(X, *args))
    for output in outputs:
        assert torch.isfinite(output).all() and len(output) == 2
        assert not torch.equal(output[0], output[1])


@pytest.mark.parametrize("name", ["LegNet", "DanQ", "Cherimoya", "Group norms"])
def test_the_same_seed_gives_the_same_weights(name, registry):
    one, two, other = (registry[name].model(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_there_are_thirty_architectures():
    assert len([name for name in NAMES if "," not in name]) >= 30


def test_the_plane_norm_is_a_layer_norm_over_positions_and_channels(benchmarks):
    from models.norms import PlaneNorm

    torch.manual_seed(0)
    norm, x = PlaneNorm(6, 4).double(), torch.randn(3, 50, 6).double()
    conv = F.conv1d(x.transpose(1, 2), norm.conv_weight.T[:, None], padding=4, dilation=4, groups=6).transpose(1, 2)
    torch.testing.assert_close(norm(x), F.layer_norm(conv, conv.shape[1:], eps=1e-3), rtol=1e-12, atol=1e-12)


def test_the_package_in_our_words_gives_what_the_package_gives(benchmarks, registry):
    pytest.importorskip("cherimoya")
    case = registry["Cherimoya, package"]
    model, X = case.model(), case.sequences(2)
    with torch.no_grad():
        for theirs, ours in zip(model(X), case.in_float64(model)(X.double()), strict=True):
            assert ours.dtype == torch.float64
            torch.testing.assert_close(theirs.double(), ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("offset", "settles"), [(-1.0, True), (3.0, False)])
@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU])
def test_recurrent_layers_forget_or_remember_as_asked(kind, offset, settles, benchmarks):
    from models.weights import remember

    torch.manual_seed(0)
    layer = remember(lambda: torch.nn.Sequential(kind(8, 32, batch_first=True)), offset)()[0].double()
    x = torch.randn(1, 40, 8).double()
    changed = x.clone()
    changed[:, 0] += 1
    with torch.no_grad():
        difference = (layer(x)[0] - layer(changed)[0])[0].norm(dim=1)
    assert bool(difference[25] < 1e-5 * difference[0]) == settles


def test_a_row_is_measured(benchmarks, monkeypatch):
    import models_benchmark
    import models_measured
    from models.architecture import Architecture

    def build():
        return torch.nn.Sequential(
            torch.nn.Conv1d(4, 16, 9, padding=4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16 * 60, 3)
        )

    monkeypatch.setitem(models_measured.ARCHITECTURES, "small", Architecture(build, 60))
    job = models_measured.Job("small", 10, 50, repeats=2, naive_seconds=0.2, whole_seconds=5.0, peers=False)
    row = models_measured.measure(job)
    assert row["positions"] == 40 and row["timed_positions"]["yuzu"] == 40
    assert len(row["errors"]) == len(row["naive_errors"]) == 1 and not models_benchmark.wrong(row)
    assert all(s > 0 for turns in row["seconds"].values() for s in turns)
    assert models_benchmark.line("small", row).count("|") == models_benchmark.HEAD.splitlines()[0].count("|")
    row["errors"] = [1e-2]
    assert models_benchmark.wrong(row) and "error" in models_benchmark.verdict("small", row)


def test_a_sample_is_extrapolated(benchmarks, monkeypatch):
    import models_measured

    peer = models_measured.Peer(lambda first, stop: 3.0 + 0.5 * (stop - first), 3.0, (40, 60))
    monkeypatch.setattr(models_measured, "seconds", lambda work: work() or peer.scores)
    assert peer.seconds(20) == 13.0
    assert peer.seconds(100) == 53.0


def test_rows_name_architectures_and_their_targets_name_rows(benchmarks):
    import models_benchmark

    assert set(models_benchmark.TARGETS) <= set(models_benchmark.ROWS)
    for name, start, end, _ in models_benchmark.ROWS.values():
        assert 0 <= start < (end or models_benchmark.ARCHITECTURES[name].length)


def test_the_peers_build_the_models_of_this_checkout(benchmarks):
    import definitions

    import yuzu

    model = definitions.build("ToyNet", 50)
    torch.manual_seed(0)
    ours = yuzu.models.ToyNet(4, seq_len=50)
    assert sys.modules["yuzu"] is yuzu and sys.modules["yuzu.models"] is yuzu.models
    for name, value in ours.state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[name], value)
