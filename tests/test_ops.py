"""The table of operations' facts, and handlers that change no graph but those with their own operation."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu
from tests.oracle import assert_right
from tests.small_models import randomized, sequences
from yuzu import handlers as kit
from yuzu._engine import ops
from yuzu._engine.handlers import contract
from yuzu._engine.rewrite.all import capture

L = 30


@pytest.fixture
def registering(monkeypatch):
    """Handlers that are registered in a test are gone after it."""
    monkeypatch.setattr(contract, "_REGISTRY", dict(contract._REGISTRY))
    monkeypatch.setattr(ops, "_OF_THE_USER", set(ops._OF_THE_USER))


@pytest.fixture(scope="module")
def operators():
    """Custom operators: one takes tensors only, the other may be told an axis."""

    @torch.library.custom_op("ops_test::doubled", mutates_args=())
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @torch.library.custom_op("ops_test::turned", mutates_args=())
    def turned(x: torch.Tensor, dim: int) -> torch.Tensor:
        return x.flip(dim)

    for operator, fake in (doubled, torch.empty_like), (turned, lambda x, dim: torch.empty_like(x)):
        operator.register_fake(fake)
    return doubled, turned


def fingerprint(model, length=L):
    return capture(model, (4, length), (), torch.float32).fingerprint()


def small():
    return nn.Sequential(nn.Conv1d(4, 3, 5), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(39, 2)).eval()


def test_each_operation_of_the_table_exists():
    for name in ops._TABLE:
        namespace, _, operation = name.partition(".")
        assert namespace == "yuzu" or hasattr(torch.ops.aten, operation), name


def test_each_operation_that_we_have_a_handler_for_stays_whole():
    without = {name for name in contract.registered() if "." in name and not ops.stays_whole(name)}
    ours = {name for name in without if name.startswith(("aten.", "yuzu."))}
    assert not ours, "add rows to ops.py"


def test_facts():
    assert ops.of("aten.relu").monotone and ops.of("aten.conv1d").bias == 2 and ops.of("aten.addmm").bias == 0
    assert {"aten.addmm", "aten.linear"} < ops.with_fact("bias") and "aten.relu" not in ops.with_fact("bias")
    assert ops.of("mine.unknown") == ops.Op("") and not ops.stays_whole("mine.unknown")
    assert ops.stays_whole("aten.conv1d") and not ops.stays_whole("aten.var_mean")


def test_a_new_handler_leaves_a_saved_precomputation_valid(registering, tmp_path):
    model, X = small(), sequences(2, L)
    made = yuzu.precompute(model, L, device="cpu")
    made.save(tmp_path / "made.safetensors")
    for name in ("mine::other", "aten::renorm", "aten::var_mean", "aten::cosine_similarity"):
        kit.handles(name)(kit.RowWise)
    loaded = yuzu.Precomputation.load(tmp_path / "made.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = yuzu.yuzu_ism(model, X, loaded, output="delta", device="cpu")
    assert_right(found, model, X, output="delta")
    assert loaded.decisions.fingerprint == yuzu.precompute(model, L, device="cpu").decisions.fingerprint


def test_a_handler_like_ours_changes_no_graph(registering):
    """The operation is in the graph, and needs a second trace with or without its handler."""

    class Renormed(nn.Module):
        def forward(self, x):
            return torch.renorm(x.relu(), 2, 1, 1.0).sum(2)

    before = fingerprint(Renormed())
    kit.handles("aten.renorm")(kit.RowWise)
    assert fingerprint(Renormed()) == before


class Composite(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3)

    def forward(self, x):
        return F.pixel_shuffle(self.conv(x).unsqueeze(2), 2).flatten(1, 2).sum(2)


def test_a_users_handler_keeps_a_composite_operation_whole(registering):
    model, X = randomized(Composite()).eval(), sequences(2, L)
    taken_apart = fingerprint(model)
    assert "aten.pixel_shuffle" not in {n.op for n in capture(model, (4, L), (), torch.float32).nodes}
    kit.handles("aten.pixel_shuffle")(kit.RowWise)
    assert "aten.pixel_shuffle" in {n.op for n in capture(model, (4, L), (), torch.float32).nodes}
    assert fingerprint(model) != taken_apart
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = yuzu.yuzu_ism(model, X, output="delta", device="cpu")
    assert_right(found, model, X, output="delta")


class BothStrands(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv1d(4, 3, 5), function

    def forward(self, x):
        y = self.function(self.conv(torch.cat([x, x.flip(1, 2)]))).relu().sum(2)
        return y[: len(x)] + y[len(x) :]


def joined(model):
    return any(n.shape and n.shape[0] == -1 for n in capture(model, (4, L), (), torch.float32).nodes)


@pytest.mark.parametrize("handled", [False, True])
def test_both_strands_through_an_operator_of_the_users(handled, registering, operators):
    """Only with a handler is it known to treat sequences by themselves, and only where it cannot be told an axis."""
    doubled, turned = operators
    if handled:
        kit.handles("ops_test::doubled", "ops_test::turned")(kit.RowWise)
    assert joined(BothStrands(doubled)) == (not handled)
    assert joined(BothStrands(lambda y: turned(y, 0)))
    if handled:
        model, X = randomized(BothStrands(lambda y: doubled(y))).eval(), sequences(2, L)
        assert_right(yuzu.yuzu_ism(model, X, output="delta", device="cpu"), model, X, output="delta")


MIXES = {
    "softmax": lambda y: y.softmax(0),
    "roll of all": lambda y: y.roll(1),
    "roll": lambda y: y.roll(1, 0),
    "cumsum": lambda y: y.cumsum(0),
    "sort": lambda y: y.sort(0).values,
    "attention": lambda y: F.scaled_dot_product_attention(y[:, :, 0], y[:, :, 1], y[:, :, 2]).unsqueeze(2),
    "fft": lambda y: torch.fft.fft(y, dim=0).real,
    "batch norm": lambda y: F.batch_norm(y, None, None, training=True),
    "gather": lambda y: y.gather(0, torch.zeros_like(y, dtype=torch.int64)),
    "transposed": lambda y: y.transpose(0, 1).softmax(1).transpose(0, 1),
    "outer product": lambda y: (y[:, :, 0] @ y[:, :, 0].T @ y[:, :, 0]).unsqueeze(2),
    "tiled": lambda y: y.tile(2, 1, 1)[: len(y)],
    "repeated": lambda y: y.repeat(2, 1, 1)[: len(y)],
}
ALONE = {
    "softmax": lambda y: y.softmax(1),
    "instance norm": lambda y: F.instance_norm(y),
    "group norm": lambda y: F.group_norm(y, 3),
    "reflected": lambda y: F.pad(y, (2, 2), mode="reflect"),
    "fft": lambda y: torch.fft.fft(y).real,
    "windows": lambda y: y.unfold(2, 4, 2).amax(3),
    "attention": lambda y: F.scaled_dot_product_attention(y, y, y),
    "product": lambda y: y @ y.mT,
    "pool": lambda y: F.adaptive_avg_pool1d(y, 5),
    "resized": lambda y: F.interpolate(y, scale_factor=2),
    "tiled": lambda y: y.tile(2, 1),
    "subtracted from": lambda y: torch.rsub(y, y.flip(2)),
    "matrix and bias": lambda y: torch.addmm(torch.ones(3).to(y), y[:, :, 4], torch.linspace(-1, 1, 9).view(3, 3).to(y)).unsqueeze(2),
    "picked": lambda y: y[:, :, torch.tensor([3, 1, 4])],
}


@pytest.mark.parametrize("name", MIXES)
def test_a_batch_stays_together_where_rows_are_mixed(name):
    assert joined(BothStrands(MIXES[name]))


@pytest.mark.parametrize("name", ALONE)
def test_a_batch_is_taken_apart_where_rows_are_not_mixed(name):
    model, X = randomized(BothStrands(ALONE[name])).eval(), sequences(2, L)
    assert not joined(model)
    assert_right(yuzu.yuzu_ism(model, X, output="delta", device="cpu"), model, X, output="delta")
