"""Recurrent layers: mutants start from the reference's states before their windows."""

import pytest
import torch
from torch import nn

import yuzu
from tests.laws.bench import CHANNELS, bench, fn, laws_of
from tests.oracle import assert_right
from tests.small_models import randomized, sequences
from yuzu._engine.graph import Recurrence

L = 40


def recurrent_cases() -> None:
    case = bench("recurrent", length=13)
    for name, kind in (("lstm", nn.LSTM), ("gru", nn.GRU), ("rnn", nn.RNN)):
        for both in (False, True):
            case(f"{name}, both {both}", fn(lambda m, x: m.rnn(x.transpose(1, 2))[0], rnn=lambda kind=kind, both=both: kind(
                CHANNELS, 3, batch_first=True, bidirectional=both)), **{"yuzu.recurrence": "recurrent"})  # fmt: skip
    case("two layers", fn(lambda m, x: m.rnn(x.transpose(1, 2))[0], rnn=lambda: nn.LSTM(CHANNELS, 3, 2, batch_first=True)),
         **{"yuzu.recurrence": "recurrent|whole values"})  # fmt: skip
    case("last state", fn(lambda m, x: m.rnn(x.transpose(1, 2))[1][0][-1], rnn=lambda: nn.LSTM(CHANNELS, 3, batch_first=True)), **{"yuzu.recurrence": "recurrent"})
    case("positions first", fn(lambda m, x: m.rnn(x.permute(2, 0, 1))[0].permute(1, 2, 0), rnn=lambda: nn.GRU(CHANNELS, 3)), **{"yuzu.recurrence": "recurrent"})


(
    test_the_law_in_float64,
    test_the_law_in_float32,
    test_the_family_that_handles_it,
    test_what_does_not_read_the_reference,
) = laws_of(recurrent_cases)


class Tower(nn.Module):
    """A convolution tower, a recurrent layer, and a head on all states or on the last ones."""

    def __init__(self, layer, head, pool=1, batch_first=True):
        super().__init__()
        self.first, self.pool, self.layer, self.head = nn.Conv1d(4, 6, 5, padding=2), nn.MaxPool1d(pool), layer, head
        self.batch_first = batch_first
        self.last = nn.LazyLinear(2)
        with torch.no_grad():
            self.forward(torch.zeros(1, 4, L))

    def forward(self, x):
        x = self.pool(torch.relu(self.first(x)))
        found, states = self.layer(x.transpose(1, 2) if self.batch_first else x.permute(2, 0, 1))
        hidden = states[0] if isinstance(states, tuple) else states
        if self.head == "all":
            found = found if self.batch_first else found.transpose(0, 1)
            return self.last(found.flatten(1))
        if self.head == "mean":
            return self.last(found.mean(1 if self.batch_first else 0))
        return self.last(hidden[-1] if self.head == "last" else torch.cat([hidden[-2], hidden[-1]], 1))


LAYERS = {
    "lstm": lambda: nn.LSTM(6, 5, batch_first=True),
    "lstm, both": lambda: nn.LSTM(6, 5, batch_first=True, bidirectional=True),
    "lstm, two layers, both": lambda: nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True),
    "lstm, projected": lambda: nn.LSTM(6, 5, batch_first=True, proj_size=3),
    "lstm, no bias": lambda: nn.LSTM(6, 5, batch_first=True, bias=False, bidirectional=True),
    "gru": lambda: nn.GRU(6, 5, batch_first=True),
    "gru, both": lambda: nn.GRU(6, 5, batch_first=True, bidirectional=True),
    "rnn": lambda: nn.RNN(6, 5, batch_first=True),
    "rnn, ReLU, both": lambda: nn.RNN(6, 5, batch_first=True, nonlinearity="relu", bidirectional=True),
}


@pytest.mark.parametrize("pool", [1, 3])
@pytest.mark.parametrize("head", ["all", "last", "mean"])
@pytest.mark.parametrize("name", LAYERS)
def test_after_a_tower(name, head, pool, device):
    model, X = randomized(Tower(LAYERS[name](), head, pool)).eval(), sequences(2, L)
    X[1, :, 17] = 0  # an N
    made = yuzu.precompute(model, L, device=device)
    assert "recurrent" in {layer.handler for layer in made.layers}
    for asked in ({}, {"start": 5, "end": 30}, {"ranges": [(0, 4), (21, 25), (36, 40)]}):
        found = yuzu.yuzu_ism(model, X, made, output="delta", device=device, **asked)
        assert_right(found, model, X, output="delta", device=device, **asked)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_positions_first_and_the_last_states_of_both_directions(kind, device):
    model = randomized(Tower(kind(6, 5, bidirectional=True), "ends", batch_first=False)).eval()
    X = sequences(3, L)
    made = yuzu.precompute(model, L, device=device)
    assert "recurrent" in {layer.handler for layer in made.layers}
    assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device=device), model, X, output="delta", device=device)


def test_in_float64_each_direction_is_exact(device):
    model = randomized(Tower(LAYERS["lstm, both"](), "all")).eval().double()
    X = sequences(2, L, dtype=torch.float64)
    found = torch.as_tensor(yuzu.yuzu_ism(model, X, output="delta", device=device))
    truth = torch.as_tensor(yuzu.naive_ism(model, X, output="delta", device=device))
    assert float((found - truth).norm() / truth.norm()) < 1e-12


class Given(nn.Module):
    def __init__(self, cells):
        super().__init__()
        self.layer, self.start, self.cells = nn.LSTM(4, 5, batch_first=True), nn.Parameter(torch.rand(1, 1, 5)), cells

    def forward(self, x):
        start = self.start.expand(1, len(x), 5).contiguous()
        found, (_, cells) = self.layer(x.transpose(1, 2), None if self.cells else (start, start))
        return cells[-1] if self.cells else found[:, -1]


@pytest.mark.parametrize("cells", [False, True], ids=["given states", "cell states"])
def test_layers_that_stay_as_they_are_run_naively_and_right(cells, device):
    model, X = Given(cells).eval(), sequences(2, L)
    with pytest.warns(yuzu.YuzuWarning, match="run naively"):
        found = yuzu.yuzu_ism(model, X, output="delta", device=device)
    assert_right(found, model, X, output="delta", device=device)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["lstm, both", "gru, both", "rnn, ReLU, both"])
def test_mutants_stop_where_their_states_are_the_references_again(name, seed, device, monkeypatch):
    """States that soon forget: all is as right, and far fewer steps are run than from the window to the end."""
    length, steps = 200, []
    model = randomized(Tower(LAYERS[name](), "mean"), seed=seed)
    for kind, weight in model.layer.named_parameters():
        if kind.startswith("weight_hh"):
            weight.data.mul_(0.2)
    model, X = model.eval(), sequences(2, length)
    made = yuzu.precompute(model, length, device=device)
    run = Recurrence.run
    monkeypatch.setattr(Recurrence, "run", lambda self, x, *rest: steps.append(x.shape[0] * x.shape[1]) or run(self, x, *rest))
    found = yuzu.yuzu_ism(model, X, made, output="delta", device=device)
    assert_right(found, model, X, output="delta", device=device)
    assert 0 < sum(steps) < 0.7 * (2 * 3 * length) * length  # half of the steps of both directions would be 1.0 of it


class RootOfA(nn.Module):
    """Not a number from the first A on."""

    def __init__(self):
        super().__init__()
        self.layer = nn.GRU(4, 5, batch_first=True)

    def forward(self, x):
        x = torch.cat([torch.sqrt(0.5 - x[:, :1]), x[:, 1:]], 1)
        return self.layer(x.transpose(1, 2))[0]


def test_a_mutant_that_is_not_a_number_never_stops(device):
    model, X = randomized(RootOfA()).eval(), torch.zeros(1, 4, 120)
    X[:, 2] = 1
    made = yuzu.precompute(model, 120, device=device)
    assert "recurrent" in {layer.handler for layer in made.layers}
    found = torch.as_tensor(yuzu.yuzu_ism(model, X, made, output="delta", device=device))
    wanted = torch.as_tensor(yuzu.naive_ism(model, X, output="delta", device=device))
    assert torch.equal(found.isnan(), wanted.isnan()) and 0.1 < float(wanted.isnan().float().mean()) < 0.2
    assert torch.allclose(found, wanted, atol=1e-5, equal_nan=True)


class SmallUnit(nn.Module):
    """The output reads a unit that is small beside another one, and fades or grows."""

    def __init__(self, kind, scale, gain):
        super().__init__()
        self.layer, self.scale = nn.RNN(4, 2, batch_first=True, nonlinearity=kind), scale
        with torch.no_grad():
            self.layer.weight_hh_l0.copy_(torch.diag(torch.tensor([0.1, gain])))
            self.layer.bias_hh_l0.zero_()
            self.layer.bias_ih_l0.copy_(torch.tensor([1.0, 0.0]))
            self.layer.weight_ih_l0[0] = 0
            self.layer.weight_ih_l0[1] = torch.tensor([1.0, 0.5, 0.3, 0.1]) * scale

    def forward(self, x):
        return self.layer(x.transpose(1, 2))[0][:, :, 1].mean(1, keepdim=True) / self.scale


@pytest.mark.parametrize("kind, scale, gain", [("tanh", 1e-2, 0.8), ("tanh", 1e-4, 0.8), ("relu", 1e-7, 1.05)])
def test_a_small_state_beside_a_large_one_is_not_dropped(kind, scale, gain, device):
    model, X = SmallUnit(kind, scale, gain).eval(), sequences(2, 200)
    found = yuzu.yuzu_ism(model, X, output="delta", device=device)
    assert_right(found, model, X, output="delta", device=device)


class Twins(nn.Module):
    """Two layers that share their weights and first states, but not the function."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.RNN(4, 5, batch_first=True), nn.RNN(4, 5, batch_first=True, nonlinearity="relu")
        for name, weight in self.a.named_parameters():
            setattr(self.b, name, weight)

    def forward(self, x):
        start, x = torch.zeros(1, len(x), 5, dtype=x.dtype, device=x.device), x.transpose(1, 2)
        return torch.cat([self.a(x, start)[0][:, -1], self.b(x, start)[0][:, -1]], 1)


def test_layers_of_the_same_weights_are_told_apart(device):
    model, X = Twins().eval(), sequences(2, L)
    made = yuzu.precompute(model, L, device=device, verify=False)
    assert [layer.handler for layer in made.layers].count("recurrent") == 2
    assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device=device), model, X, output="delta", device=device)


ZEROS = {
    "zeros": lambda x: torch.zeros(1, len(x), 5, dtype=x.dtype, device=x.device),
    "new_zeros": lambda x: x.new_zeros(1, len(x), 5),
    "zeros_like": lambda x: torch.zeros_like(x[:, 0, :1].expand(len(x), 5).unsqueeze(0)),
    "full": lambda x: torch.full((1, len(x), 5), 0.0, dtype=x.dtype, device=x.device),
    "expanded": lambda x: torch.zeros(1, 1, 5, dtype=x.dtype, device=x.device).expand(1, len(x), 5).contiguous(),
}


class Zeros(nn.Module):
    def __init__(self, zeros):
        super().__init__()
        self.layer, self.zeros = nn.LSTM(4, 5, batch_first=True), zeros

    def forward(self, x):
        start = self.zeros(x)
        return self.layer(x.transpose(1, 2), (start, start))[0][:, -1]


@pytest.mark.parametrize("name", ZEROS)
def test_zeros_that_are_given_in_any_way(name, device):
    model, X = Zeros(ZEROS[name]).eval(), sequences(2, L)
    made = yuzu.precompute(model, L, device=device)
    assert "recurrent" in {layer.handler for layer in made.layers}
    assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device=device), model, X, output="delta", device=device)


def test_first_states_of_another_number_stay_as_they_are(device):
    model, X = Zeros(lambda x: torch.full((1, len(x), 5), 0.5, dtype=x.dtype, device=x.device)).eval(), sequences(2, L)
    with pytest.warns(yuzu.YuzuWarning, match="lstm"):
        found = yuzu.yuzu_ism(model, X, output="delta", device=device)
    assert_right(found, model, X, output="delta", device=device)
