"""Batches that hold each sequence several times: taken apart where each operation treats rows by themselves, and naive elsewhere."""

import warnings

import pytest
import torch
from torch import nn

import yuzu
from tests.oracle import assert_right
from tests.small_models import randomized, sequences
from yuzu import precompute, yuzu_ism
from yuzu._engine.capture.errors import CaptureError
from yuzu._engine.rewrite.all import capture

L = 30


def reverse(x):
    return x.flip(1, 2)


class Both(nn.Module):
    def __init__(self, use):
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(4, 5, 5), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(5, 3, 3, padding=1), nn.Flatten(), nn.Linear(39, 2))
        self.use = use

    def forward(self, x, *args):
        return self.use(self.net, x, len(x), *args)


def halves(y):
    half = y.shape[0] // 2
    return torch.maximum(y[:half], y[half:])


def residual(net, x, n):
    """Two values of the batch, other shapes of it, and a table."""
    both = net[0](torch.cat([x, reverse(x)]))
    both = (both + both.tanh() * torch.linspace(0, 1, 26, dtype=x.dtype, device=x.device)).reshape(2 * n, -1, 2).amax(2)
    return both.unflatten(1, (5, -1))[:n].sum(2) + both.view(2 * n, 5, 13)[n:, :, :4].flatten(1).cumsum(1)[:, ::4]


def with_a_cell(net, x, n, cell):
    """Another input that is in both parts, too."""
    both = net(torch.cat([x, reverse(x)])) * torch.cat([cell, cell.tanh()])
    return both[:n] + both[n:]


APART = {
    "slices": lambda net, x, n: (lambda y: y[:n] + y[n:])(net(torch.cat([x, reverse(x)]))),
    "chunks": lambda net, x, n: sum(net(torch.cat([x, reverse(x)])).chunk(2)) / 2,
    "split": lambda net, x, n: torch.maximum(*net(torch.cat([x, reverse(x)])).split(n)),
    "split by sizes": lambda net, x, n: torch.minimum(*net(torch.cat([x, reverse(x)])).split([n, n])),
    "halves": lambda net, x, n: halves(net(torch.cat([x, reverse(x)]))),
    "view": lambda net, x, n: net(torch.cat([x, reverse(x)])).view(2, -1, 2).mean(0),
    "unflattened": lambda net, x, n: net(torch.cat([x, reverse(x)])).unflatten(0, (2, -1)).amax(0),
    "row by row": lambda net, x, n: net(torch.stack([x, reverse(x)], 1).flatten(0, 1)).unflatten(0, (-1, 2)).mean(1),
    "row by row, by sizes": lambda net, x, n: net(torch.stack([x, reverse(x)], 1).view(2 * n, 4, L)).view(n, 2, -1).mean(1),
    "every other row": lambda net, x, n: (lambda y: y[::2] - 2 * y[1::2])(net(torch.stack([x, reverse(x)], 1).flatten(0, 1))),
    "stacked first": lambda net, x, n: (lambda y: y[:n] - 2 * y[n:])(net(torch.stack([x, reverse(x)]).flatten(0, 1))),
    "three": lambda net, x, n: (lambda y: y[:n] - y[n : 2 * n] * y[2 * n :])(net(torch.cat([x, reverse(x), x / 2]))),
    "one is not read": lambda net, x, n: net(torch.cat([x, reverse(x)]))[n:],
    "twice": lambda net, x, n: sum(net(torch.cat([x, reverse(x)])).chunk(2)) * sum(net(torch.cat([reverse(x), x.flip(2)])).chunk(2)),
    "ensemble": lambda net, x, n: torch.stack([net(x), net(x.flip(1)), net(reverse(x))]).mean(0),
    "ensemble's maximum": lambda net, x, n: torch.stack([net(x), net(x.flip(1))]).max(0).values,
    "ensemble's spread": lambda net, x, n: torch.stack([net(x), net(x.flip(1))]).std(dim=0),
    "one of an ensemble": lambda net, x, n: torch.stack([net(x), net(x.flip(1))])[1],
    "one chunk": lambda net, x, n: net(torch.cat([x, reverse(x)])).chunk(2)[0],
    "from the end": lambda net, x, n: (lambda y: y[:-n] - 2 * y[-n:])(net(torch.cat([x, reverse(x)]))),
    "ensemble of both": lambda net, x, n: (lambda both: sum(torch.stack([net(both), net(both / 2)]).amax(0).chunk(2)))(torch.cat([x, reverse(x)])),
    "residual": residual,
    "with a cell": with_a_cell,
    "beside another input": lambda net, x, n, other: (lambda y: y[:n] * y[n:])(net(torch.cat([other[:, :1, None].expand(-1, 4, L), x]))),
}

TOGETHER = {
    "rows of both": lambda net, x, n: (lambda y: y[:n] + y[n:])(net(torch.stack([x, reverse(x)], 1).flatten(0, 1))),
    "pairs of neighbours": lambda net, x, n: net(torch.cat([x, reverse(x)])).view(-1, 2, 2).mean(1),
    "less the mean": lambda net, x, n: (lambda y: sum((y - y.mean(0)).chunk(2)))(net(torch.cat([x, reverse(x)]))),
    "turned round": lambda net, x, n: (lambda y: y[:n] - 2 * y[n:])(net(torch.cat([x, reverse(x)])).flip(0)),
    "softmax of all": lambda net, x, n: (lambda y: y[:n] - 2 * y[n:])(net(torch.cat([x, reverse(x)])).softmax(0)),
    "summed up": lambda net, x, n: sum(net(torch.cat([x, reverse(x)])).cumsum(0).chunk(2)),
    "rows of channels": lambda net, x, n: (lambda y: y[:n] + y[n:])(net[0](torch.cat([x, reverse(x)])).reshape(10 * n, 26).softmax(1).view(2 * n, 130)),
    "part of one": lambda net, x, n: net(torch.cat([x, reverse(x)]))[1 : n + 1],
    "letters of both": lambda net, x, n: (lambda y: y.unflatten(0, (-1, 4)).mean(1))(net(torch.stack([x, reverse(x), x / 2, x / 3], 2).flatten(0, 1))),
    "as many rows as both": lambda net, x, n: (lambda both: sum((net(both) * both.new_full((len(both), 1), 2)).chunk(2)))(torch.cat([x, reverse(x)])),
    "beside the sequence's": lambda net, x, n: torch.cat([net(torch.cat([x, reverse(x)]))[:n], net(x)]).flip(0)[:n],
}  # fmt: skip


def scored(use, X, device, args=None, **options):
    model = randomized(Both(use)).eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = precompute(model, L, device=device, verify=False, args=args)
    return model, made, [str(w.message) for w in caught], yuzu_ism(model, X, made, args=args, device=device, **options)


@pytest.mark.parametrize("output", ["delta", "l2"])
@pytest.mark.parametrize("name", APART)
def test_parts_run_by_themselves(name, output, device):
    X = sequences(3, L)
    args = (torch.linspace(-1, 2, 6).view(3, 2).double().to(X.dtype),) if name in ("with a cell", "beside another input") else None
    model, made, warned, found = scored(APART[name], X, device, args, output=output)
    assert not warned and not any(layer.handler == "naive" or layer.why_naive for layer in made.layers)
    assert_right(found, model, X, args=args or (), output=output, device=device)


@pytest.mark.parametrize("name", TOGETHER)
def test_what_mixes_rows_runs_as_it_is(name):
    model, made, warned, _ = scored(TOGETHER[name], sequences(1, L), "cpu")
    assert warned and "naive" in str(made)
    try:
        graph = capture(model, (4, L), (), torch.float32)
    except CaptureError:
        return
    assert any(node.shape and node.shape[0] == -1 for node in graph.nodes), "the batch was taken apart"


def test_parts_of_a_batch_are_saved_and_loaded(tmp_path):
    X = sequences(2, L)
    model, made, _, found = scored(APART["chunks"], X, "cpu", output="delta")
    made.save(tmp_path / "plan.safetensors")
    loaded = yuzu.Precomputation.load(tmp_path / "plan.safetensors", device="cpu")
    assert torch.equal(yuzu_ism(model, X, loaded, output="delta", device="cpu"), found)
