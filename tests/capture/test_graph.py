"""Captured graphs: names, weights, what the sequence reaches, fingerprints."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.capture.models import Nested, Reused, conv, run_graph, seeded
from tests.laws.random_models import (
    one_hot,
)
from yuzu._engine.rewrite.all import capture

LENGTH = 12


def test_layer_names_are_the_users() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = conv(5, 5), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.act(self.conv(x))

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = conv()
            self.tower = nn.ModuleList([Block(), Block()])
            self.heads = nn.ModuleDict({"profile": conv(5, 1), "counts": nn.Linear(5, 1)})

        def forward(self, x: torch.Tensor) -> Any:
            x = F.relu(self.stem(x))
            for block in self.tower:
                x = block(x)
            return self.heads["profile"](x), self.heads["counts"](x.mean(2))

    graph = capture(seeded(Named), (4, LENGTH), (), torch.float64)
    names = [(n.layer, n.op) for n in graph.nodes if n.kind == "call"]
    assert names == [
        ("stem", "aten.conv1d"), ("", "aten.relu"),
        ("tower.0.conv", "aten.conv1d"), ("tower.0.act", "aten.relu"), ("tower.0", "aten.add"),
        ("tower.1.conv", "aten.conv1d"), ("tower.1.act", "aten.relu"), ("tower.1", "aten.add"),
        ("heads.profile", "aten.conv1d"), ("", "aten.mean"), ("heads.counts", "aten.linear"),
    ]  # fmt: skip
    assert [n.label for n in graph.nodes if n.op == "aten.mean"] == ["mean"]


def test_a_reused_module_is_two_layers_of_one_name() -> None:
    graph = capture(seeded(Reused), (4, LENGTH), (), torch.float64)
    assert [n.layer for n in graph.nodes if n.op == "aten.conv1d"] == ["first", "again", "again", "again"]
    assert len({n.args[1] for n in graph.nodes if n.op == "aten.conv1d"}) == 2


def test_what_depends_on_the_sequence_is_known() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.other = conv(), conv(1, 5)
            self.table = nn.Parameter(torch.rand(5, 1))

        def forward(self, x: torch.Tensor, track: torch.Tensor) -> Any:
            side = torch.tanh(self.other(track))
            return self.conv(x) * side + self.table.exp() + torch.zeros_like(x[:, :1])

    graph = capture(seeded(Two), (4, LENGTH), (torch.rand(2, 1, LENGTH, dtype=torch.float64),), torch.float64)
    said = {(n.op.removeprefix("aten."), n.layer): (n.mutated, n.batched) for n in graph.nodes if n.kind == "call"}
    assert said[("conv1d", "conv")] == (True, True)
    assert said[("conv1d", "other")] == (False, True) and said[("tanh", "")] == (False, True)
    assert said[("exp", "")] == (False, False)
    assert said[("mul", "")] == (True, True)
    assert [n.kind for n in graph.nodes if n.kind in ("sequence", "extra")] == ["sequence", "extra"]


def test_weights_are_named_not_kept() -> None:
    """The graph looks weights up when it runs: values changed in place, or replaced, are the ones used."""
    model = seeded(Reused).eval()
    graph = capture(model, (4, LENGTH), (), torch.float64)
    X = one_hot(2, 4, LENGTH)
    with torch.no_grad():
        model.first.weight.mul_(2)
        model.again.bias = nn.Parameter(torch.rand(5, dtype=torch.float64))
        assert torch.allclose(run_graph(graph, model, X), model(X))
    assert not any(n.value is not None for n in graph.nodes)


def test_the_fingerprint_tells_architectures_and_not_weights_apart() -> None:
    def fingerprint(build: Callable[[], nn.Module], seed: int = 0, length: int = LENGTH, dtype: torch.dtype = torch.float64) -> str:
        torch.manual_seed(seed)
        return capture(build().to(dtype), (4, length), (), dtype).fingerprint()

    with torch.random.fork_rng(devices=[]):
        first = fingerprint(Reused)
        assert fingerprint(Reused, seed=1) == first
        others = [
            fingerprint(Reused, length=LENGTH + 2),
            *(fingerprint(lambda k=k: nn.Sequential(conv(k=k), nn.ReLU())) for k in (3, 5)),
            fingerprint(lambda: nn.Sequential(conv(), nn.GELU())),
            *(fingerprint(lambda kind=kind: Nested(kind)) for kind in ("tuple", "list")),
            *(fingerprint(lambda s=s: nn.Sequential(conv(), nn.MaxPool1d(3, s))) for s in (1, 2)),
        ]
    assert len({first, *others}) == 1 + len(others)
