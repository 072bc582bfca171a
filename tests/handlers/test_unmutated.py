"""What no mutation reaches, beside the sequence: encodings repeated for the batch, tables looked up by a cell's number.
It must not make what reads it naive, unless it may depend on the size of the batch or on its other rows.
"""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu
from tests.oracle import assert_close, assert_right
from tests.small_models import randomized, sequences
from yuzu._engine.layout import ROWS, VALUES
from yuzu._engine.plan.plan import make_plan
from yuzu._engine.rewrite.all import capture
from yuzu.product import apply_product

L, D = 30, 6


class Beside(nn.Module):
    """Two convolutions, and between them what ``beside`` makes of the module, their value and the other inputs."""

    def __init__(self, beside):
        super().__init__()
        self.first, self.last = nn.Conv1d(4, D, 5, padding=2), nn.Conv1d(D, 2, 3, padding=1)
        self.encoding, self.token = nn.Parameter(torch.randn(1, D, L)), nn.Parameter(torch.randn(1, D, 1))
        self.places, self.cells = nn.Embedding(L, D), nn.Embedding(9, D)
        self.mix, self.norm = nn.Linear(D, D), nn.LayerNorm(D)
        self.beside = beside

    def forward(self, x, *args):
        return self.last(torch.relu(self.beside(self, self.first(x), *args)))


def arange(h):
    return torch.arange(L, device=h.device)


CELL = (torch.tensor([3, 7]),)
CELLS = (torch.tensor([[3, 0, 1], [7, 2, 7]]),)
BY_ROWS = {
    "repeat": (lambda m, h: h + m.encoding.repeat(h.shape[0], 1, 1), ()),
    "repeat with a new axis": (lambda m, h: h + m.encoding[0].repeat(h.shape[0], 1, 1), ()),
    "tile": (lambda m, h: h + m.encoding.tile(h.shape[0], 1, 1), ()),
    "repeat_interleave": (lambda m, h: h + m.encoding.repeat_interleave(h.shape[0], 0), ()),
    "token": (lambda m, h: torch.cat([m.token.repeat(h.shape[0], 1, 1), h], 2), ()),
    "token expanded": (lambda m, h: torch.cat([m.token.expand(h.shape[0], -1, -1), h], 2), ()),
    "numbered places": (lambda m, h: h + m.places(arange(h).expand(h.shape[0], -1)).mT, ()),
    "counted places": (lambda m, h: h + m.places(torch.ones(h.shape[0], L, dtype=torch.long).cumsum(1) - 1).mT, ()),
    "embedding": (lambda m, h, k: h + m.cells(k)[:, :, None], CELL),
    "embedding along the sequence": (lambda m, h, k: h * m.cells(k)[:, :, None].repeat(1, 1, L), CELL),
    "embedding and layers": (lambda m, h, k: h + torch.relu(m.norm(m.mix(m.cells(k))))[:, :, None], CELL),
    "index": (lambda m, h, k: h + m.cells.weight[k][:, :, None], CELL),
    "index_select": (lambda m, h, k: h + m.cells.weight.index_select(0, k)[:, :, None], CELL),
    "index_select within": (lambda m, h, k: h + k.index_select(1, torch.tensor([2])).float()[:, :, None], CELLS),
    "gather": (lambda m, h, k: h + k.gather(1, k % 3).sum(1).float()[:, None, None], CELLS),
    "argmax": (lambda m, h, k: h + m.cells(k.argmax(1))[:, :, None], CELLS),
    "joined": (lambda m, h, k: h + m.cells(torch.cat([k, k[:, :1]], 1)).sum(1)[:, :, None], CELLS),
    "type of the mutated": (lambda m, h, k: h + m.cells(k).double().softmax(1).type_as(h)[:, :, None], CELL),
    "mask in the type of the mutated": (lambda m, h, k: h * (arange(h) < 4 * k[:, None]).type_as(h)[:, None], CELL),
    "one hot": (lambda m, h, k: h + F.one_hot(k % D, D)[:, :, None], CELL),
}
ALL_ROWS = {
    "numbered rows": (lambda m, h: h + m.cells(torch.arange(h.shape[0]) // 10**6)[:, :, None], ()),
    "mean of the batch": (lambda m, h, k: h + k.float().mean(0), CELL),
    "mean of the batch for each row": (lambda m, h, k: h + m.cells(k + k - k.float().mean(0).long())[:, :, None], CELL),
    "sum of those before": (lambda m, h, k: h + m.cells(k.cumsum(0) // (torch.arange(k.shape[0]) + 1))[:, :, None], CELL),
    "another row": (lambda m, h, k: h + m.cells(k.flip(0))[:, :, None], CELL),
    "another row by its number": (
        lambda m, h, k: h + m.cells(k.index_select(0, k.shape[0] - 1 - torch.arange(k.shape[0])))[:, :, None],
        CELL,
    ),
    "another row by gather": (
        lambda m, h, k: h + m.cells(k.gather(0, k.shape[0] - 1 - torch.arange(k.shape[0])[:, None] + 0 * k)).sum(1)[:, :, None],
        CELLS,
    ),
    "as many as rows": (lambda m, h: h + torch.full((h.shape[0], 1, 1), h.shape[0]).clamp(max=1), ()),
    "divided by their number": (lambda m, h: h + m.encoding.repeat(h.shape[0], 1, 1) / h.shape[0] * h.shape[0], ()),
}


@pytest.mark.parametrize("name", BY_ROWS)
def test_what_follows_is_carried_on_windows(name):
    beside, args = BY_ROWS[name]
    torch.manual_seed(0)
    model = randomized(Beside(beside)).eval()
    X = sequences(2, L)
    with warnings.catch_warnings():
        warnings.simplefilter("error", yuzu.YuzuWarning)
        made = yuzu.precompute(model, L, args=args, conv="windows", device="cpu")
    naive = [layer for layer in made.layers if layer.handler == "naive"]
    assert made.decisions.naive_model is None and not naive
    for output in ("delta", "l2"):
        found = yuzu.yuzu_ism(model, X, made, args=args, output=output, device="cpu")
        assert_right(found, model, X, args=args, output=output)


@pytest.mark.filterwarnings("ignore::yuzu.YuzuWarning")
@pytest.mark.parametrize("name", ALL_ROWS)
def test_what_may_depend_on_the_batch_is_run_with_the_mutants(name):
    """A sequence is alone, its mutants are many, each with the same other inputs."""
    beside, args = ALL_ROWS[name]
    torch.manual_seed(0)
    model = randomized(Beside(beside)).eval()
    made = yuzu.precompute(model, L, args=args, conv="windows", device="cpu")
    for i, x in enumerate(sequences(2, L).split(1)):
        alone = [a[i : i + 1] for a in args]
        found = yuzu.yuzu_ism(model, x, made, args=alone, output="delta", device="cpu")
        assert_right(found, model, x, args=alone, output="delta")


def test_only_what_is_certain_has_rows():
    """A rule of thumb by shapes would take all of these for rows."""

    def layouts(beside, args):
        plan = make_plan(capture(Beside(beside).eval(), (4, L), args, torch.float32))
        nodes = plan.graph.nodes
        return {n.op: plan.layouts[n.index] for n in nodes if n.kind == "call" and n.batched and not n.mutated}

    assert layouts(*BY_ROWS["embedding"])["aten.embedding"] == ROWS
    assert layouts(*ALL_ROWS["numbered rows"])["aten.embedding"] == VALUES
    assert layouts(*ALL_ROWS["sum of those before"])["aten.embedding"] == VALUES
    assert layouts(*ALL_ROWS["another row"])["aten.embedding"] == VALUES
    assert layouts(*ALL_ROWS["another row by its number"])["aten.embedding"] == VALUES
    assert layouts(*ALL_ROWS["another row by gather"])["aten.gather"] == VALUES
    assert layouts(*ALL_ROWS["as many as rows"])["aten.full"] == VALUES
    assert layouts(lambda m, h, k: h + k[torch.arange(k.shape[0])][:, None, None], CELL)["aten.index"] == VALUES


def test_several_cells_for_one_sequence():
    beside, _ = BY_ROWS["embedding"]
    torch.manual_seed(0)
    model = randomized(Beside(beside)).eval()
    X, cells = sequences(2, L), torch.tensor([1, 5, 8])
    found = apply_product(yuzu.yuzu_ism, model, X, (cells,), device="cpu", additional_func_kwargs={"output": "delta"})
    for i, cell in enumerate(cells):
        assert_right(found[:, i], model, X, args=(cell.expand(2),), output="delta")


class Recurrent(nn.Module):
    def __init__(self, kind, pick):
        super().__init__()
        self.conv, self.out = nn.Conv1d(4, 8, 9), nn.Linear(8, 1)
        self.memory = kind(8, 8, batch_first=True)
        self.pick = pick

    def forward(self, x):
        y = F.max_pool1d(torch.relu(self.conv(x)), 4).mT
        start = x.new_full((1, len(x), 8), 0.3)
        states = (start, start) if isinstance(self.memory, nn.LSTM) else start
        return self.out(self.pick(self.memory(y, states)))


@pytest.mark.parametrize(("kind", "op"), [(nn.LSTM, "lstm"), (nn.GRU, "gru")])
@pytest.mark.parametrize("pick", [lambda y: y[0].mean(1), lambda y: (y[1][0] if isinstance(y[1], tuple) else y[1])[-1]])
def test_a_layer_that_reads_only_what_no_mutation_reaches_is_named(kind, op, pick):
    """Initial states that are not zero keep a recurrent layer naive. They are naive, too, but no layer."""
    model = randomized(Recurrent(kind, pick)).eval()
    with pytest.warns(yuzu.YuzuWarning, match=f"memory \\(aten.{op}\\): there is no handler for aten.{op}"):
        made = yuzu.precompute(model, L, conv="windows", device="cpu")
    X = sequences(1, L)
    assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device="cpu"), model, X, output="delta")


def test_a_layer_that_reads_what_depends_on_the_batch_is_named():
    beside, args = ALL_ROWS["numbered rows"]
    with pytest.warns(yuzu.YuzuWarning, match="may depend on the size of the batch or on its other rows"):
        yuzu.precompute(Beside(beside).eval(), L, args=args, conv="windows", device="cpu")


class Mixed(nn.Module):
    """Something that reads other rows of another input, and is not the same in a batch of one."""

    def __init__(self, mix):
        super().__init__()
        self.conv, self.last, self.mix = nn.Conv1d(4, 3, 5), nn.Linear(3, 2), mix

    def forward(self, x, k):
        return self.last(torch.relu(self.conv(x) * self.mix(k).unsqueeze(2)).mean(2))


MIXES = {
    "flipped": lambda k: k.flip(0),
    "less the batch's mean": lambda k: 1 + k - k.mean(0, keepdim=True),
    "its first row": lambda k: k.index_select(0, torch.zeros(k.shape[0], dtype=torch.int64)),
}


@pytest.mark.parametrize("function", [yuzu.yuzu_ism, yuzu.hybrid_ism], ids=["yuzu_ism", "hybrid_ism"])
@pytest.mark.parametrize("name", MIXES)
def test_sequences_do_not_reach_each_other_through_another_input(name, function):
    model, X, k = randomized(Mixed(MIXES[name])).eval(), sequences(3, 30), torch.rand(3, 3) + 0.5
    options = {} if function is yuzu.hybrid_ism else {"output": "delta"}
    together = function(model, X, args=(k,), device="cpu", **options)
    alone = torch.cat([function(model, X[i : i + 1], args=(k[i : i + 1],), device="cpu", **options) for i in range(3)])
    assert_close(together, alone, 1e-6, 1e-6)
    if function is yuzu.yuzu_ism:
        assert_close(together, yuzu.naive_ism(model, X, args=(k,), device="cpu", **options), 1e-5, 1e-5)
