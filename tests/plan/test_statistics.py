"""Windows carried past statistics: means and scales of norms, gates and the like, by series of second order."""

import copy
import dataclasses
import math
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu
from tests.oracle import assert_right
from yuzu._engine.derived import Derived
from yuzu._engine.edits import mutants_of, substitutions_at
from yuzu._engine.graph import Weights, evaluate
from yuzu._engine.named_edits import NamedEdits
from yuzu._engine.plan.plan import make_plan, make_plan_with_statistics
from yuzu._engine.request import Selection
from yuzu._engine.rewrite.all import capture
from yuzu._engine.rewrite.norms_apart import NORMS, norms_apart
from yuzu._engine.run import run
from yuzu._engine.run.run import Run
from yuzu._engine.store.trials import Asked, Pairs, Trials, run_trials
from yuzu._engine.tune import chunks, statistics
from yuzu.product import apply_product

CPU = torch.device("cpu")


def relative_error(found, truth):
    found, truth = torch.as_tensor(found).double(), torch.as_tensor(truth).double()
    return float((found - truth).norm() / truth.norm())


def plane(y, **settings):
    return F.layer_norm(y, y.shape[1:], eps=1e-3, **settings)


class Gate(nn.Module):
    """Every position is multiplied with a few numbers made from the mean of all."""

    def __init__(self, channels=8):
        super().__init__()
        self.squeeze, self.excite = nn.Linear(channels, 2), nn.Linear(2, channels)

    def forward(self, y):
        return y * torch.sigmoid(self.excite(F.silu(self.squeeze(y.mean(2))))).unsqueeze(2)


NORMALISED = {
    "plane": plane,
    "one group": lambda y: F.group_norm(y, 1, eps=1e-3) * 0.7 + 0.1,
    "two groups": lambda y: F.group_norm(y, 2, eps=1e-3),
    "root mean square": lambda y: F.rms_norm(y, y.shape[1:], eps=1e-3),
    "mean": lambda y: y - y.mean((1, 2), keepdim=True),
    "standard deviation": lambda y: y / (y.std((1, 2), keepdim=True) + 0.1),
    "variance": lambda y: y - torch.var(y, (1, 2), keepdim=True, unbiased=False),
    "flat, as Cherimoya's": lambda y: _flat(y),
    "gate of one": lambda y: y * torch.sigmoid(3 * y.mean((1, 2), keepdim=True)),
    "and over channels": lambda y: torch.softmax(plane(y), 1),
    "and a product": lambda y: plane(y) * torch.tanh(plane(y)),
}


def _flat(y):
    flat = y.reshape(len(y), -1)
    normed = (flat - flat.mean(1, keepdim=True)) * (flat.var(1, keepdim=True, unbiased=False) + 1e-3).rsqrt()
    return normed.reshape(y.shape)


class Block(nn.Module):
    def __init__(self, channels, dilation, norm, activation):
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels)
        self.up, self.down = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.norm, self.activation = norm, activation

    def forward(self, x):
        y = self.norm(self.conv(x)).transpose(1, 2)
        return x + 0.3 * self.down(self.activation(self.up(y))).transpose(1, 2)


class Normalising(nn.Module):
    """Blocks that normalise over the whole sequence; a cropped profile and log-counts."""

    def __init__(self, norm=plane, activation=F.silu, channels=8, blocks=2, controls_at=0, last=None):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv1d(4, channels, 9, padding=4)
        self.blocks = nn.ModuleList(Block(channels, 2**i, norm, activation) for i in range(blocks))
        self.profile, self.counts = nn.Conv1d(channels, 1, 5, padding=2), nn.Linear(channels, 2)
        self.last = last or (lambda y: y)
        self.controls_at = controls_at

    def forward(self, x, control=None):
        x = F.gelu(self.first(x), approximate="tanh")
        for i, block in enumerate((*self.blocks, nn.Identity())):
            if control is not None and i == self.controls_at:
                x = x * (1 + control)
            x = block(x)
        return self.last(self.profile(x)[:, :, 10:-10]), self.counts(x[:, :, 10:-10].mean(2))


def sequences(length, n=1, seed=1):
    letters = torch.randint(4, (n, length), generator=torch.Generator().manual_seed(seed))
    return F.one_hot(letters, 4).movedim(2, 1).float()


def planned(model, length, args=()):
    with torch.no_grad():
        graph = capture(model, (4, length), args, torch.float32)
    found = make_plan_with_statistics(make_plan(graph))
    assert found is not None
    return found[0]


@torch.no_grad()
def errors(model, plan, X, places, dtype, args=()):
    """The relative error of each output's differences, and the part of the mutants that are in doubt."""
    model, X, args = model.to(dtype), X.to(dtype), tuple(a.to(dtype) for a in args)
    run = Run(plan, Weights(model, CPU), Derived(), CPU)
    run.set_reference(X, args)
    position = np.array(places)
    letters = X[0].argmax(0)[torch.from_numpy(position)]
    sites = substitutions_at(position, (letters[:, None] + torch.arange(1, 4)) % 4, X)
    changes = run.chunk(sites)
    wide = model.double()
    mutants = mutants_of(X.double(), sites)
    truth, reference = wide(mutants, *(a.double().expand(len(mutants), -1, -1) for a in args)), wide(X.double(), *(a.double() for a in args))
    model.float()
    sure = ~run.doubtful if run.doubtful is not None else torch.ones(len(places), 3, dtype=torch.bool)
    found = []
    for change, t, r in zip(changes, truth, reference, strict=True):
        true = (t - r).unflatten(0, (len(places), 3))
        wrong = (change.tensor.double() - true)[sure]
        found.append(float(wrong.norm() / true[sure].norm()) if sure.any() else 0.0)
    return found, 1 - float(sure.float().mean())


BOTH = [*((name, F.silu) for name in NORMALISED), *(("plane", f) for f in (F.gelu, torch.tanh, F.softplus, F.mish))]


@pytest.mark.parametrize(("name", "activation"), BOTH, ids=[f"{name}-{f.__name__}" for name, f in BOTH])
def test_differences_past_statistics(name, activation):
    norm = NORMALISED[name]
    model, X = Normalising(norm, activation), sequences(240)
    plan = planned(model, 240)
    windowed = [n.index for n in plan.graph.nodes if n.op == "aten.linear" and plan.layouts[n.index].kind == "windows"]
    assert len(windowed) == 4
    places = [0, 3, 119, 120, 236, 239]
    in_float64, doubtful = errors(model, plan, X, places, torch.float64)
    assert max(in_float64) < 2e-6 and doubtful < 0.5  # the series alone
    in_float32, _ = errors(model, plan, X, places, torch.float32)
    assert max(in_float32) < 5e-6


@pytest.mark.parametrize("last", [lambda y: torch.softmax(y, 2), lambda y: y.flatten(1) @ torch.ones(y.shape[2], 3).to(y), lambda y: y.amax(2)])
def test_what_follows_the_last_statistic(last):
    model, X = Normalising(last=last), sequences(240)
    found, _ = errors(model, planned(model, 240), X, [5, 100, 239], torch.float32)
    assert max(found) < 5e-6


def test_a_gate_that_is_a_vector():
    gate = Gate()
    model, X = Normalising(gate), sequences(400)
    plan = planned(model, 400)
    assert plan.statistics.count == 16  # eight numbers for each of two blocks
    found, _ = errors(model, plan, X, [5, 100, 239], torch.float32)
    assert max(found) < 5e-6


def test_a_kink_after_a_statistic_ends_the_windows():
    """Off the window a ReLU has no series, so it runs on whole values, and stays right."""
    model, X = Normalising(activation=F.relu), sequences(240)
    plan = planned(model, 240)
    kinks = [n.index for n in plan.graph.nodes if n.op == "aten.relu"]
    assert kinks and all(plan.layouts[i].kind == "rows" for i in kinks)
    found, _ = errors(model, plan, X, [5, 100, 239], torch.float64)
    assert max(found) < 2e-6


def test_mutants_beyond_the_series_are_noted():
    """One letter changes the scale by half: terms of third order matter."""
    model, X = Normalising(), sequences(60)
    with torch.no_grad():
        model.first.weight[:, :, 4] += torch.tensor([3.0, 0, 0, 0])
        model.first.bias -= 1
    plan = planned(model, 60)
    X[:, :, 30], X[:, :, 31:] = torch.tensor([0.0, 1, 0, 0]), torch.tensor([0.0, 1, 0, 0])[:, None]
    found, doubtful = errors(model, plan, X, list(range(0, 60, 4)), torch.float64)
    assert doubtful > 0
    assert max(found) < 1e-5  # of the others


@pytest.fixture
def always(monkeypatch):
    """Statistics are carried past wherever that is right, however long it takes."""
    monkeypatch.setattr(statistics, "FASTER", math.inf)
    monkeypatch.setattr(chunks, "WORTH_COMPARING", math.inf)

    def make(model, length, args=None, **settings):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made = yuzu.precompute(model, length, device="cpu", args=args, **settings)
        past = made.decisions.statistics
        assert past is not None, "no statistics were found"
        past = dataclasses.replace(past, least_positions=1)
        return yuzu.Precomputation(made.settings, dataclasses.replace(made.decisions, statistics=past))

    return make


CALLS = {
    "all": {},
    "part": {"start": 50, "end": 90},
    "L2 norms": {"output": "l2"},
    "predictions": {"output": "prediction"},
    "func": {"func": lambda y: y[0].softmax(2).square().sum((1, 2)) + y[1][:, 0]},
    "ranges": {"ranges": [(3, 9), (100, 106), (134, 140)]},
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_calls(always, call):
    model, X = Normalising(), sequences(140, n=3)
    X[1, :, 70:73] = 0  # N
    made = always(model, 140)
    call = {"output": "delta", **call}
    assert_right(yuzu.yuzu_ism(model, X, made, device="cpu", **call), model, X, **call)


@pytest.mark.parametrize(("name", "length", "blocks"), [("mean", 100, 6), ("gate of one", 64, 6), ("plane", 140, 5)])
def test_windows_wider_than_the_sequence(name, length, blocks, always):
    """The receptive field is longer than the sequence; letters at both ends are N."""
    model, X = Normalising(NORMALISED[name], blocks=blocks), sequences(length, n=3)
    X[1, :, 0] = X[1, :, -1] = 0
    X[2, :, length // 2 : length // 2 + 5] = 0
    made = always(model, length)
    for sites in (made.decisions.sites, 7):
        some = yuzu.Precomputation(made.settings, dataclasses.replace(made.decisions, sites=sites))
        for start, end in ((0, length), (0, 3), (length - 3, length)):
            found = yuzu.yuzu_ism(model, X, some, device="cpu", output="delta", start=start, end=end)
            assert_right(found, model, X, output="delta", start=start, end=end)


def test_chunks_files_and_batches_give_the_same(always, tmp_path):
    model, X = Normalising(), sequences(140, n=3)
    made = always(model, 140)
    whole = yuzu.yuzu_ism(model, X, made, device="cpu", output="delta")[1]
    assert "statistics" in made.summary()
    made.save(tmp_path / "made.yuzu")
    loaded = yuzu.Precomputation.load(tmp_path / "made.yuzu")
    assert loaded.decisions.statistics == made.decisions.statistics
    again = yuzu.yuzu_ism(model, X, loaded, device="cpu", output="delta", batch_size=2)[1]
    assert relative_error(again, whole) < 1e-6
    loaded.decisions = dataclasses.replace(loaded.decisions, sites=3)
    few = yuzu.yuzu_ism(model, X, yuzu.Precomputation(loaded.settings, loaded.decisions), device="cpu", output="delta")[1]
    assert relative_error(few, whole) < 1e-6


def test_a_series_is_made_before_a_chunk_takes_memory(always, monkeypatch):
    model, X, held = Normalising(), sequences(140), []
    made, original = always(model, 140), run.make_series

    def spy(context):
        held.append([change for change in context._changes if change is not None])
        return original(context)

    monkeypatch.setattr(run, "make_series", spy)
    yuzu.yuzu_ism(model, X, made, device="cpu", batch_size=60)
    assert held == [[]]


def test_few_positions_go_without(always):
    model, X = Normalising(), sequences(140)
    made = always(model, 140)
    past = dataclasses.replace(made.decisions.statistics, least_positions=20)
    made = yuzu.Precomputation(made.settings, dataclasses.replace(made.decisions, statistics=past))
    for stop in (65, 100):
        found = yuzu.yuzu_ism(model, X, made, device="cpu", output="delta", start=60, end=stop)
        assert_right(found, model, X, output="delta", start=60, end=stop)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_products_of_states(place, always):
    model, X = Normalising(controls_at=place), sequences(140, n=2)
    controls = torch.rand(2, 1, 140)
    made = always(model, 140, args=(controls[:1],))
    found = yuzu.yuzu_ism(model, X, made, args=(controls,), device="cpu", output="delta")
    assert_right(found, model, X, output="delta", args=(controls,))
    states = torch.rand(3, 1, 140)
    settings = {"precomputation": made, "output": "delta"}
    each = apply_product(yuzu.yuzu_ism, model, X, (states,), device="cpu", additional_func_kwargs=settings)
    for i, state in enumerate(states):
        args = (state.expand(2, 1, 140),)
        assert_right(tuple(leaf[:, i] for leaf in each), model, X, output="delta", args=args)


@pytest.mark.parametrize("each, whole", [(1, True), (12, True), (12, False)])
def test_trials(always, each, whole):
    """One edit a sequence goes without statistics unless the precomputation says otherwise; many go past them."""
    model, X, n = Normalising(), sequences(140, n=3), 3 * each
    rng, made, found = np.random.default_rng(0), always(model, 140), {}
    edits = [
        NamedEdits(np.arange(n) % 3, rng.integers(138, size=n), rng.integers(4, size=(n, width)), np.arange(n) + n * width)
        for width in (1, 2)
    ]

    def take(outcome):
        sides = zip(outcome.change, outcome.reference or [None] * 2, outcome.edited or [None] * 2, strict=True)
        for head, (change, reference, edited) in enumerate(sides):
            for i, number in enumerate(outcome.number):
                difference = None if reference is None else edited[i].double() - reference[i].double()
                found[number, head] = change[i].double(), difference

    pairs = Pairs(np.zeros(0, int), X[:0], np.zeros(0, int))
    run_trials(model, made, Trials(X, (), edits, pairs), Asked(CPU, Selection(), whole=whole), take)
    double = copy.deepcopy(model).double()
    for some in edits:
        with torch.no_grad():
            before, after = double(X[some.row].double()), double(some.mutants(X).double())
        for head in range(2):
            truth = after[head] - before[head]
            mine = [found[number, head] for number in some.number]
            assert relative_error(torch.stack([change for change, _ in mine]), truth) < 1e-5
            if whole:
                assert relative_error(torch.stack([difference for _, difference in mine]), truth) < 1e-3


def test_other_weights_with_one_precomputation(always):
    made = always(Normalising(), 140)
    other, X = Normalising(), sequences(140)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.2)
    assert_right(yuzu.yuzu_ism(other, X, made, device="cpu", output="delta"), other, X, output="delta")


@pytest.mark.parametrize("seed", range(6))
def test_random_architectures(seed):
    """Norms, gates and activations at every place."""
    draw = np.random.default_rng(seed)

    def pick(among):
        return among[draw.integers(len(among))]

    norms = [NORMALISED[n] for n in ("plane", "one group", "root mean square", "mean", "gate of one", "flat, as Cherimoya's")]

    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(seed)
            self.first = nn.Conv1d(4, 8, 7, padding=3)
            self.steps = nn.ModuleList(nn.Conv1d(8, 8, 3, padding=1 + i, dilation=1 + i) for i in range(4))
            self.norms = [pick([None, *norms]) for _ in self.steps]
            self.acts = [pick([F.silu, torch.sigmoid, torch.tanh, torch.sin]) for _ in self.steps]
            self.residual = [bool(draw.integers(2)) for _ in self.steps]
            self.pools = [bool(draw.integers(4) == 0) for _ in self.steps]
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            x = torch.relu(self.first(x))
            for conv, norm, act, residual, pool in zip(self.steps, self.norms, self.acts, self.residual, self.pools, strict=True):
                y = conv(x) if norm is None else norm(conv(x))
                x = act(y) + x if residual else act(y)
                x = F.avg_pool1d(x, 2) if pool else x
            return x[:, :2], self.head(x.mean(2))

    model, X = Random(), sequences(300, seed=seed)
    with torch.no_grad():
        graph = capture(model, (4, 300), (), torch.float32)
    plan = make_plan(graph)
    found = make_plan_with_statistics(plan)
    plan = plan if found is None else found[0]
    wrong, _ = errors(model, plan, X, [0, 7, 150, 151, 299], torch.float64)
    assert max(wrong) < 5e-6
    wrong, _ = errors(model, plan, X, [0, 7, 150, 151, 299], torch.float32)
    assert max(wrong) < 1e-5


def test_means_of_any_form_stand_beside_a_norm():
    """One axis as an integer, and all axes as none, are forms that PyTorch takes."""
    model = Edge(lambda m, y: m.head(torch.sin(y).mean(2)))
    with torch.no_grad():
        graph = capture(model, (4, 50), (), torch.float32)
    mean = torch.ops.aten.mean.dim
    place = next(n.index for n in graph.nodes if n.target is mean)
    for axes in (2, [-1], [2]):
        nodes = list(graph.nodes)
        nodes[place] = dataclasses.replace(nodes[place], args=(nodes[place].args[0], axes))
        apart, same = norms_apart(dataclasses.replace(graph, nodes=nodes), {n.index for n in nodes if n.op in NORMS})
        assert len(apart.nodes) > len(nodes) and apart.nodes[same[place]].args[1] == axes
    nodes[place] = dataclasses.replace(nodes[place], args=(nodes[place].args[0], None))
    assert len(norms_apart(dataclasses.replace(graph, nodes=nodes), set())[0].nodes) == len(nodes)


class Norms(nn.Module):
    """One of each norm that can be taken apart."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.group = nn.LayerNorm([6, 20], eps=1e-3), nn.GroupNorm(3, 6)
        self.each, self.single = nn.InstanceNorm1d(6, affine=True), nn.GroupNorm(1, 6)
        self.root = nn.RMSNorm([6, 20], eps=1e-4)
        for weight in self.parameters():
            nn.init.normal_(weight)

    def forward(self, x):
        x = torch.cat([x, x[:, :2] ** 2], 1)
        found = [norm(x) for norm in (self.layer, self.group, self.each, self.single, self.root)]
        return *found, x.var(2), x.std((1, 2), keepdim=True), torch.var(x, 2, correction=0), x.var(2, unbiased=False)


def test_norms_apart_compute_the_same():
    model, X = Norms().double(), torch.randn(3, 4, 20, dtype=torch.float64)
    with torch.no_grad():
        graph = capture(model, (4, 20), (), torch.float64)
        which = {n.index for n in graph.nodes if n.op in NORMS}
        assert len(which) == 9
        apart, _ = norms_apart(graph, which)
        assert not any(n.op in NORMS for n in apart.nodes)
        run = Run(make_plan(apart), Weights(model, CPU), Derived(), CPU)
        values = []
        for node in apart.nodes:
            values.append(run.leaf(node, X, []) if node.kind != "call" else evaluate(node, values.__getitem__, CPU))
            if node.shape is not None and isinstance(values[-1], torch.Tensor) and node.kind == "call":
                assert tuple(values[-1].shape) == tuple(3 if s is None else s for s in node.shape)
        for o, truth in zip(apart.outputs, model(X), strict=True):
            assert torch.allclose(values[o], truth, rtol=1e-12, atol=1e-13)


class Edge(nn.Module):
    """A tower and a norm; ``after`` makes the outputs."""

    def __init__(self, after, first=None, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv1d(4, 8, 7, padding=3), nn.Conv1d(8, 8, 3, padding=1)
        self.channels, self.head, self.after = nn.LayerNorm(8), nn.Linear(8, 2), after
        self.gate = nn.Conv1d(8, 8, 1)
        nn.init.zeros_(self.gate.weight)

    def forward(self, x):
        return self.after(self, plane(self.second(F.silu(self.first(x)))))


# once wrong, or once an error: what reads the norm, and how
EDGES = {
    "layer norm over channels": lambda m, y: m.head(torch.sin(m.channels(y.transpose(1, 2))).mean(1)),
    "a channel of each": lambda m, y: F.softplus(y) / F.softplus(y).sum(1, keepdim=True),
    "a number": lambda m, y: 100 * (F.silu(m.second(y))[:, :2] * torch.sigmoid(y[:, :2])).mean((1, 2)),
    "steep": lambda m, y: m.head(torch.log1p(torch.exp(y)).mean(2)),
    "steep of a square": lambda m, y: torch.log(y.square() + 0.1).mean(2),
    "a zero gate": lambda m, y: m.head((y * torch.tanh(m.gate(y)) + y).mean(2)),
    "a mean added": lambda m, y: m.head((y + torch.sin(m.second(y)).mean((1, 2), keepdim=True)).mean(2)),
}


@pytest.mark.parametrize("edge", EDGES.values(), ids=EDGES)
def test_edges(edge, monkeypatch):
    monkeypatch.setattr(statistics, "FASTER", math.inf)
    monkeypatch.setattr(chunks, "WORTH_COMPARING", math.inf)
    model, X = Edge(edge), sequences(150, n=2)
    X[0, :, 70] = 0  # N: a chunk of its own
    X[1] = torch.tensor([1.0, 0, 0, 0])[:, None]  # one letter alone
    made = yuzu.precompute(model, 150, device="cpu")
    past = made.decisions.statistics and dataclasses.replace(made.decisions.statistics, least_positions=1)
    made = yuzu.Precomputation(made.settings, dataclasses.replace(made.decisions, statistics=past))
    assert_right(yuzu.yuzu_ism(model, X, made, device="cpu", output="delta"), model, X, output="delta")


def test_threads(always):
    """PyTorch's derivatives are kept in levels that threads share."""
    model, X = Normalising(), sequences(140)
    made = always(model, 140)
    alone = yuzu.yuzu_ism(model, X, made, device="cpu", output="delta")[1]
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda _: yuzu.yuzu_ism(Normalising(), X, made, device="cpu", output="delta")[1], range(4))
        assert all(relative_error(other, alone) < 1e-6 for other in found)


def test_nodes_stay_naive(always):
    """Nodes that run naively without statistics do so with them, too."""
    made = always(Normalising(), 140, terminal_layers=(nn.Linear,))
    assert len(made.decisions.naive) == 5
    assert all("terminal_layers" in layer.why_naive or "follows" in layer.why_naive for layer in made.layers if layer.why_naive)


def test_a_trial_that_fails_is_told(monkeypatch):
    """Windows then end at the norm, as they do without statistics."""

    def fails(run):
        raise NotImplementedError("forward AD of aten::strange\nmore")

    monkeypatch.setattr("yuzu._engine.run.run.make_series", fails)
    model, X = Normalising(), sequences(140)
    with pytest.warns(yuzu.YuzuWarning, match=r"Windows end at the first norm.*\(NotImplementedError: forward AD of aten::strange\)"):
        made = yuzu.precompute(model, 140, device="cpu")
    assert made.decisions.statistics is None
    assert_right(yuzu.yuzu_ism(model, X, made, device="cpu", output="delta"), model, X, output="delta")
