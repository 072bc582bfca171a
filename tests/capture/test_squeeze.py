"""Models that squeeze without saying which axis: for one sequence that takes the axis of the batch, too."""

import pytest
import torch
from torch import nn

import yuzu
from tests.oracle import assert_right
from tests.small_models import randomized, sequences
from yuzu._engine.rewrite.all import capture

L = 20


class Squeezed(nn.Module):
    """What a function makes of a convolution, ``(n, 6, L)``, and of a dense layer to one number, ``(n, 1)``."""

    def __init__(self, head):
        super().__init__()
        self.conv, self.one, self.last = nn.Conv1d(4, 6, 5, padding=2), nn.Linear(6, 1), nn.Conv1d(6, 1, 3)
        self.head = head

    def forward(self, x):
        return self.head(self, torch.relu(self.conv(x)))


# the head, and the shape of its result after the batch
HEADS = {
    "at the end": (lambda m, h: m.one(h.mean(2)).squeeze(), ()),
    "at the end, by its axes": (lambda m, h: m.one(h.mean(2)).squeeze((0, 1)), ()),
    "in the middle": (lambda m, h: m.one(nn.functional.adaptive_avg_pool1d(h, 1).squeeze()), (1,)),
    "of several axes": (lambda m, h: h.mean(2)[:, None, None, :3].squeeze(), (3,)),
    "of the batch's axis": (lambda m, h: h.mean(2).squeeze(0), (6,)),
    "of nothing": (lambda m, h: h.squeeze(), (6, L)),
    "along the sequence": (lambda m, h: m.last(h).squeeze(), (L - 2,)),
    "two outputs": (lambda m, h: (m.one(h.mean(2)).squeeze(), h.mean(2)), ()),
}
ISM = [yuzu.naive_ism, yuzu.yuzu_ism]


@pytest.fixture(params=HEADS)
def squeezed(request):
    head, shape = HEADS[request.param]
    return randomized(Squeezed(head)).eval(), shape


@pytest.mark.filterwarnings("error::yuzu.YuzuWarning")
@pytest.mark.parametrize("ism", ISM)
@pytest.mark.parametrize("n", [1, 2])
def test_one_row_for_each_sequence(squeezed, ism, n):
    model, shape = squeezed
    X = sequences(n, L)
    for output in ("delta", "prediction", "l2"):
        found = ism(model, X, output=output, device="cpu")
        assert_right(found, model, X, output=output)
    first = torch.utils._pytree.tree_leaves(ism(model, X, output="delta", device="cpu"))[0]
    assert first.shape == (n, 4, L, *shape)


@pytest.mark.parametrize("ism", ISM)
def test_func_gets_the_axis_of_the_batch(ism):
    model = randomized(Squeezed(HEADS["at the end"][0])).eval()
    X = sequences(2, L)
    func = lambda y: y.reshape(len(y), 1) ** 2  # noqa: E731
    assert_right(ism(model, X, func=func, output="delta", device="cpu"), model, X, func=func, output="delta")


def test_mutants_one_by_one(squeezed):
    """A batch of one mutant keeps its axis, as one sequence does."""
    model, _ = squeezed
    X, ranges = sequences(1, L), [(2, 4), (9, 11)]
    settings = {"ranges": ranges, "replace_with": torch.full((4, 2), 0.25), "output": "delta"}
    assert_right(yuzu.naive_ism(model, X, batch_size=1, device="cpu", **settings), model, X, **settings)


def test_predictions_and_saturation_mutagenesis(squeezed):
    model, _ = squeezed
    X = sequences(3, L)
    single = lambda y: y[0] if isinstance(y, tuple) else y  # noqa: E731
    with torch.no_grad():
        whole = single(model(X))
    assert torch.allclose(yuzu.predict(model, X, func=single, batch_size=2, device="cpu"), whole, atol=1e-6)
    one, mutants = yuzu.saturation_mutagenesis(model, X[:1], func=single, raw_outputs=True, device="cpu")[:2]
    assert one.shape == whole[:1].shape and torch.allclose(one, whole[:1], atol=1e-6)
    assert mutants.shape[:1] == (1,) and mutants.shape[3:] == whole.shape[1:]


@pytest.mark.parametrize("name", ["at the end", "of several axes", "of the batch's axis", "two outputs"])
def test_the_graph_squeezes_what_is_one_for_every_batch(name):
    graph = capture(randomized(Squeezed(HEADS[name][0])).eval(), (4, L), (), torch.float32)
    for node in graph.nodes:
        if node.op == "aten.squeeze":
            source = graph.nodes[node.inputs[0]].shape
            assert all(source[axis] == 1 for axis in node.args[1])
    assert not any(n.op == "aten.squeeze" for n in graph.nodes) or name != "of the batch's axis"


def test_what_has_no_rows_at_all_is_still_refused():
    model = Squeezed(lambda m, h: h.mean()).eval()
    for ism in ISM:
        with pytest.raises(ValueError, match="one row for each sequence"):
            ism(model, sequences(1, L), device="cpu")
