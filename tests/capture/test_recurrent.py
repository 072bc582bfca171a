"""Recurrent layers are kept whole while a model is traced, and long loops are noticed before it is."""

import sys
import warnings

import pytest
import torch
from torch import nn

import yuzu
from tests.capture.models import run_graph
from tests.oracle import assert_right
from tests.small_models import sequences
from yuzu._engine import ops
from yuzu._engine.capture import recurrent
from yuzu._engine.capture.errors import CaptureError
from yuzu._engine.capture.recurrent import kept_whole, loops_in
from yuzu._engine.capture.routes import capture_plain
from yuzu._engine.rewrite.all import capture

L, FILTERS, HIDDEN = 24, 5, 4
KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k)}


class Model(nn.Module):
    """A convolution, and what ``run`` does with its result ``(n, C, L)``."""

    def __init__(self, run, **layers):
        super().__init__()
        self.conv, self.run = nn.Conv1d(4, FILTERS, 3, padding=1), run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, torch.relu(self.conv(x)))


def states(y):
    return y[1][0] if isinstance(y[1], tuple) else y[1]


def ones(m, x, layers=1):
    """Given states, made from the size of the batch."""
    h = torch.ones(layers, x.shape[0], HIDDEN, dtype=x.dtype)
    return (h, 2 * h) if isinstance(m.rnn, nn.LSTM) else h


def learned(m, x):
    h = m.h.expand(-1, x.shape[0], -1).contiguous()
    return (h, m.h.repeat(1, x.shape[0], 1)) if isinstance(m.rnn, nn.LSTM) else h


def flattened(m, x):
    m.rnn.flatten_parameters()
    return m.rnn(x.mT)[0].mean(1)


class Turned(nn.Module):
    """A layer of one's own around one of PyTorch's."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x.transpose(1, 2))[0].transpose(1, 2)


def first(kind, **options):
    return KINDS[kind](FILTERS, HIDDEN, batch_first=True, **options)


def second(kind, **options):
    return KINDS[kind](FILTERS, HIDDEN, **options)


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer, "weight_hh_l0")


FORMS = {
    "all states": lambda kind: Model(lambda m, x: m.rnn(x.mT)[0].mean(1), rnn=first(kind)),
    "all states, left as they are": lambda kind: Model(lambda m, x: m.rnn(x.mT)[0], rnn=first(kind)),
    "last state": lambda kind: Model(lambda m, x: states(m.rnn(x.mT))[-1], rnn=first(kind)),
    "both": lambda kind: Model(lambda m, x: torch.cat([m.rnn(x.mT)[0].amax(1), states(m.rnn(x.mT))[0]], 1), rnn=first(kind)),
    "batch second": lambda kind: Model(lambda m, x: m.rnn(x.permute(2, 0, 1))[0].mean(0), rnn=second(kind)),
    "batch second, last state": lambda kind: Model(lambda m, x: states(m.rnn(x.permute(2, 0, 1)))[-1], rnn=second(kind)),
    "both directions": lambda kind: Model(lambda m, x: m.rnn(x.mT)[0].mean(1), rnn=first(kind, bidirectional=True)),
    "stacked": lambda kind: Model(
        lambda m, x: m.rnn(x.mT)[0].mean(1), rnn=first(kind, num_layers=2, dropout=0.5, bidirectional=True)
    ),
    "without biases": lambda kind: Model(lambda m, x: m.rnn(x.mT)[0].mean(1), rnn=first(kind, bias=False)),
    "given states": lambda kind: Model(lambda m, x: m.rnn(x.mT, ones(m, x))[0].mean(1), rnn=first(kind)),
    "given states, batch second": lambda kind: Model(lambda m, x: m.rnn(x.permute(2, 0, 1), ones(m, x, 2))[0].mean(0), rnn=second(kind, num_layers=2)),
    "learned states": lambda kind: Model(
        lambda m, x: m.rnn(x.mT, learned(m, x))[0].mean(1), rnn=first(kind), h=nn.Parameter(torch.randn(1, 1, HIDDEN))
    ),
    "flatten_parameters in forward": lambda kind: Model(flattened, rnn=first(kind)),
    "within a layer of one's own": lambda kind: Model(lambda m, x: m.rnn(x).mean(2), rnn=Turned(first(kind))),
    "two, one after the other": lambda kind: Model(
        lambda m, x: m.top(m.rnn(x.mT)[0])[0].mean(1), rnn=first(kind), top=KINDS[kind](HIDDEN, 3, batch_first=True)
    ),
    "a norm of weights": lambda kind: Model(
        lambda m, x: m.rnn(x.mT)[0].mean(1), rnn=nn.utils.parametrizations.weight_norm(first(kind), "weight_hh_l0")
    ),
    "an old norm of weights": lambda kind: Model(lambda m, x: m.rnn(x.mT)[0].mean(1), rnn=old_weight_norm(first(kind))),
    # an operation that is taken apart, for which all of the graph is traced again
    "beside what is taken apart": lambda kind: Model(
        lambda m, x: m.rnn(x.mT)[0].mean(1) + torch.einsum("ncl,cd->nd", x, m.w), rnn=first(kind), w=nn.Parameter(torch.randn(FILTERS, HIDDEN))
    ),
    "read in chunks": lambda kind: Model(lambda m, x: sum(part.sum(1) for part in m.rnn(x.mT)[0].chunk(3, 1)), rnn=first(kind)),
    "a batch size that is an integer": lambda kind: Model(lambda m, x: m.rnn(x.mT.reshape(len(x), -1, FILTERS))[0].reshape(len(x), -1), rnn=first(kind)),
}  # fmt: skip


def seeded(build, *args):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(*args).eval()


def projected(kind):
    return Model(lambda m, x: m.rnn(x.mT)[0].mean(1), rnn=first("lstm", proj_size=2, bidirectional=kind == "both directions"))


SOME = ("all states", "batch second, last state", "stacked", "given states, batch second")
MODELS = {f"{kind}, {form}": (FORMS[form], kind) for kind in KINDS for form in (FORMS if kind == "lstm" else SOME)}
MODELS |= {f"gru, {form}": (FORMS[form], "gru") for form in ("learned states", "a norm of weights")}
MODELS |= {f"lstm, projected, {kind}": (projected, kind) for kind in ("one direction", "both directions")}


def run_steps(monkeypatch):
    """How many operations are run on tensors without values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    count, dispatch = [0], FakeTensorMode.dispatch

    def counted(*args, **kwargs):
        count[0] += 1
        return dispatch(*args, **kwargs)

    monkeypatch.setattr(FakeTensorMode, "dispatch", counted)
    return count


@pytest.mark.parametrize("name", MODELS)
def test_it_is_one_node_with_the_weights_at_hand(name):
    build, kind = MODELS[name]
    model = seeded(build, kind).double()
    found = [node for node in capture_plain(model, (4, L), (), torch.float64).nodes if ops.of(node.op).recurrent]
    assert {node.op for node in found} == {f"aten.{name.split(',')[0]}"}
    assert len(found) == (2 if name in ("lstm, both", "lstm, two, one after the other") else 1)
    assert all(node.layer.startswith(("rnn", "top")) for node in found)
    graph = capture(model, (4, L), (), torch.float64)
    assert not [n.op for n in graph.nodes if n.op.startswith("yuzu.") and "slice" not in n.op and not ops.of(n.op).recurrent]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
        for batch in (1, 3):
            X = torch.rand(batch, 4, L, dtype=torch.float64)
            assert torch.allclose(run_graph(graph, model, X), model(X), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["lstm, all states", "gru, stacked", "rnn_tanh, all states", "lstm, beside what is taken apart"])
def test_tracing_takes_no_more_for_more_steps(name, monkeypatch):
    build, kind = MODELS[name]
    counts = []
    for length in (20, 60):
        with monkeypatch.context() as patch:
            count = run_steps(patch)
            capture(seeded(build, kind), (4, length), (), torch.float32)
        counts.append(count[0])
    assert counts[1] <= counts[0]


@pytest.mark.parametrize("name", ["lstm, last state", "gru, batch second, last state", "rnn_relu, all states", "lstm, projected, both directions"])
def test_scores_are_right_and_nothing_is_naive(name):
    build, kind = MODELS[name]
    model = seeded(build, kind)
    made = yuzu.precompute(model, L, conv="windows", device="cpu")
    assert "naive" not in {layer.handler for layer in made.layers}
    X = sequences(2, L)
    assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device="cpu"), model, X, output="delta")


def test_another_dtype_is_kept(monkeypatch):
    model = seeded(FORMS["all states"], "gru").bfloat16()
    graph = capture(model, (4, L), (), torch.bfloat16)
    assert next(node for node in graph.nodes if node.op == "yuzu.recurrence").index
    assert {node.dtype for node in graph.nodes if node.floating} == {torch.bfloat16}


class Dropping(nn.LSTM):
    """It drops values between its layers in evaluation, too."""

    def forward(self, x):
        zeros = x.new_zeros(self.num_layers, x.shape[0], self.hidden_size)
        weights = [getattr(self, name) for name in self._flat_weights_names]
        return torch.lstm(x, (zeros, zeros), weights, True, self.num_layers, 0.5, True, False, True)


def test_what_draws_random_numbers_is_refused():
    model = seeded(lambda: Model(lambda m, x: m.rnn(x.mT)[0].mean(1), rnn=Dropping(FILTERS, HIDDEN, 2, batch_first=True)))
    with pytest.raises(CaptureError, match="random numbers \\(aten.lstm\\)"):
        capture(model, (4, L), (), torch.float32)


# each agrees with itself most of the time, so that no comparison of a few runs would notice
RANDOM = {
    "attention": lambda h: torch.nn.functional.scaled_dot_product_attention(h.mT, h.mT, h.mT, dropout_p=1e-6).mT,
    "exponential_": lambda h: h * (h.new_empty(1).exponential_() < 30),
    "uniform_": lambda h: h * (h.new_empty(1).uniform_() > 1e-6),
    "normal_": lambda h: h * (h.new_empty(1).normal_() < 6),
    "cauchy_": lambda h: h * (h.new_empty(1).cauchy_() < 1e6),
    "geometric_": lambda h: h * (h.new_empty(1).geometric_(0.5) < 30),
    "multinomial": lambda h: h * torch.multinomial(h.new_tensor([1e-6, 1.0]), 1),
    "poisson": lambda h: h + torch.poisson(h.new_full((1,), 1e-6)),
    "binomial": lambda h: h + torch.binomial(h.new_full((1,), 2.0), h.new_full((1,), 1e-6)),
    "bernoulli": lambda h: h + torch.bernoulli(h.new_full((1,), 1e-6)),
    "rand_like": lambda h: h * (torch.rand_like(h) > 1e-9),
    "rrelu": lambda h: torch.nn.functional.rrelu(h, 0.1, 0.1001, training=True),
    "dropout": lambda h: torch.nn.functional.dropout(h, 1e-6, training=True),
}


@pytest.mark.parametrize("name", RANDOM)
def test_operations_that_draw_random_numbers_are_refused(name):
    model = seeded(lambda: Model(lambda m, x: RANDOM[name](x).mean(2)))
    with pytest.raises(CaptureError, match="random numbers"):
        capture(model, (4, L), (), torch.float32)


CALM = {
    "attention": lambda h: torch.nn.functional.scaled_dot_product_attention(h.mT, h.mT, h.mT).mT,
    "rrelu": lambda h: torch.nn.functional.rrelu(h, training=False),
    "dropout": lambda h: torch.nn.functional.dropout(h, 0.5, training=False),
    "alpha_dropout": lambda h: torch.nn.functional.alpha_dropout(h, 0.5, training=False),
    "dropout1d": lambda h: torch.nn.functional.dropout1d(h, 0.5, training=False),
}


@pytest.mark.parametrize("name", CALM)
def test_they_are_captured_if_they_draw_none(name):
    model = seeded(lambda: Model(lambda m, x: CALM[name](x).mean(2)))
    assert capture(model, (4, L), (), torch.float32).nodes


def test_packed_sequences_are_right():
    def packed(m, x):
        rows = nn.utils.rnn.pack_padded_sequence(x.mT, [x.shape[2]] * len(x), batch_first=True)
        return nn.utils.rnn.pad_packed_sequence(m.rnn(rows)[0], batch_first=True)[0].mean(1)

    model, X = seeded(lambda: Model(packed, rnn=first("lstm"))), sequences(2, L)
    with pytest.warns(yuzu.YuzuWarning, match="results are exact but not faster"):
        made = yuzu.precompute(model, L, device="cpu")
    assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device="cpu"), model, X, output="delta")


# ---- loops -----------------------------------------------------------------------------------------------------------


def gru_cells(m, x):
    h = x.new_zeros(x.shape[0], HIDDEN)
    for i in range(x.shape[2]):
        h = m.cell(x[:, :, i], h)
    return h


def lstm_cells(m, x):
    h, kept = (x.new_zeros(x.shape[0], HIDDEN),) * 2, []
    for step in x.unbind(2):
        h = m.cell(step, h)
        kept.append(h[0])
    return torch.stack(kept, 1).sum(1)


def written_out(m, x):
    h = x.new_zeros(x.shape[0], HIDDEN)
    for i in range(x.shape[2]):
        both = torch.cat([x[:, :, i], h], 1)
        gate = torch.sigmoid(m.gate(both))
        h = (1 - gate) * h + gate * torch.tanh(m.new(both))
    return h


def scan(m, x):
    """Without weights, as of a state-space model."""
    h, decay, kept = x.new_zeros(x.shape[0], FILTERS), torch.sigmoid(x), []
    for i in range(x.shape[2]):
        h = decay[:, :, i] * h + x[:, :, i]
        kept.append(h)
    return torch.stack(kept, 2).mean(2)


def written_into(m, x):
    out = torch.zeros_like(x)
    for i in range(x.shape[2]):
        out[:, :, i] = torch.tanh(x[:, :, i] + out[:, :, i - 1])
    return out.mean(2)


class Step(nn.Module):
    def forward(self, h, x):
        return torch.tanh(h + x)


def with_a_module(m, x):
    h = x[:, :, 0]
    for step in x.unbind(2):
        h = m.step(h + 1, step)
    return h


def cells(kind):
    return {"cell": kind(FILTERS, HIDDEN)}


LOOPS = {
    "GRU cells": (gru_cells, lambda: cells(nn.GRUCell)),
    "RNN cells": (gru_cells, lambda: cells(nn.RNNCell)),
    "LSTM cells": (lstm_cells, lambda: cells(nn.LSTMCell)),
    "written out": (written_out, lambda: {n: nn.Linear(FILTERS + HIDDEN, HIDDEN) for n in ("gate", "new")}),
    "a scan": (scan, dict),
    "written into": (written_into, dict),
    "a module": (with_a_module, lambda: {"step": Step()}),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_long_loop_is_not_traced(name, monkeypatch):
    run, layers = LOOPS[name]
    length = 420 if "cells" not in name else 250
    model = seeded(lambda: Model(run, **layers()))
    traced = []
    monkeypatch.setattr(sys.modules["yuzu._engine.store.making"], "capture", lambda *args: traced.append(args))
    with pytest.warns(yuzu.YuzuWarning, match=r"loops over many steps.* \(line \d+ of test_recurrent.py\)"):
        made = yuzu.precompute(model, length, device="cpu")
    assert not traced
    X = sequences(1, length)
    options = {"output": "delta", "start": length - 4, "end": length - 2}  # what came long before is forgotten
    assert_right(yuzu.yuzu_ism(model, X, made, **options, device="cpu"), model, X, **options)


@pytest.mark.parametrize("name", LOOPS)
def test_nor_is_it_by_who_has_not_run_it(name, monkeypatch):
    monkeypatch.setattr(recurrent, "LONG_CHAIN", 12)
    monkeypatch.setattr(recurrent, "MANY_RESULTS", 0)
    run, layers = LOOPS[name]
    with pytest.raises(CaptureError, match="loops over many steps"):
        capture(seeded(lambda: Model(run, **layers())), (4, 60), (), torch.float32)


@pytest.mark.parametrize("name", ["GRU cells", "LSTM cells", "a scan"])
def test_a_short_loop_is_traced_with_its_cells_whole(name):
    run, layers = LOOPS[name]
    model = seeded(lambda: Model(run, **layers()))
    graph = capture(model, (4, 9), (), torch.float32)
    assert sum(ops.of(node.op).recurrent for node in graph.nodes) == (9 if "cells" in name else 0)
    X = torch.rand(3, 4, 9)
    with torch.no_grad():
        assert torch.allclose(run_graph(graph, model, X), model(X), rtol=1e-4, atol=1e-6)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(FILTERS, FILTERS, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.conv(torch.tanh(x) * 0.5))


def in_pieces(m, x):
    return torch.stack([torch.relu(m.head(x[:, :, i]) * 2) for i in range(x.shape[2])], 1)


def into_pieces(m, x):
    out = x.new_zeros(x.shape[0], x.shape[2], 2)
    for i in range(x.shape[2]):
        out[:, i] = torch.relu(m.head(x[:, :, i]))
    return out


def both_strands(m, x):
    return m.blocks(x) + m.blocks(x.flip(2)).flip(2)


BESIDE = {
    "blocks one after the other": (lambda m, x: m.blocks(x), lambda: {"blocks": nn.Sequential(*(Block() for _ in range(40)))}),
    "members of an ensemble": (lambda m, x: torch.stack([b(x) for b in m.blocks]), lambda: {"blocks": nn.ModuleList(Block() for _ in range(40))}),
    "both strands": (both_strands, lambda: {"blocks": nn.Sequential(*(Block() for _ in range(20)))}),
    "one head for each position": (in_pieces, lambda: {"head": nn.Linear(FILTERS, 2)}),
    "one head for each position, into a tensor": (into_pieces, lambda: {"head": nn.Linear(FILTERS, 2)}),
    "activations of PyTorch's": (lambda m, x: m.acts(x), lambda: {"acts": nn.Sequential(*(nn.Tanh() for _ in range(60)))}),
    "a few rounds": (lambda m, x: [x := m.blocks(x) for _ in range(4)][-1], lambda: {"blocks": nn.Sequential(*(Block() for _ in range(9)))}),
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_repetitions_beside_each_other_are_no_loop(name, monkeypatch):
    monkeypatch.setattr(recurrent, "LONG_CHAIN", 12)
    monkeypatch.setattr(recurrent, "MANY_RESULTS", 0)
    run, layers = BESIDE[name]
    model = seeded(lambda: Model(run, **layers()))
    with loops_in(model) as loops:
        model(torch.rand(1, 4, 60))
    assert not loops


def test_a_loop_of_whole_layers_is_none(monkeypatch):
    """Its steps are PyTorch's own."""
    model = seeded(FORMS["stacked"], "lstm")
    with loops_in(model) as loops:
        model(torch.rand(1, 4, 1000))
    assert not loops


def test_nothing_of_the_model_is_left_changed():
    model, modes = seeded(FORMS["all states"], "lstm"), torch.overrides._get_current_function_mode_stack()
    hooks = [dict(m._forward_hooks) | dict(m._forward_pre_hooks) for m in model.modules()]
    capture(model, (4, L), (), torch.float32)
    with pytest.raises(ZeroDivisionError), kept_whole(model):
        1 / 0  # noqa: B018
    with loops_in(model), pytest.raises(RuntimeError):
        model(torch.rand(1, 7, L))
    assert [dict(m._forward_hooks) | dict(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert torch.overrides._get_current_function_mode_stack() == modes
