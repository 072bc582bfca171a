"""Every registered operation has a case for the law; overloads that this PyTorch does not export, by hand; and the law can fail."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import yuzu  # noqa: F401  registers every handler
from tests.handlers import (  # noqa: F401  they fill the benches
    test_along,
    test_by_row,
    test_complex_numbers,
    test_convolution,
    test_dense,
    test_dtypes,
    test_elementwise,
    test_long_convolution,
    test_merge,
    test_norms,
    test_parts,
    test_pick,
    test_pool,
    test_recurrent,
    test_unfold,
    test_view,
)
from tests.laws.bench import BENCHES, CHANNELS, bench_findings, fits
from tests.laws.random_models import Laboratory, chunks, laboratory_sequences
from yuzu._engine.graph import Graph, Node, Ref, Result
from yuzu._engine.handlers import registered
from yuzu._engine.handlers.convolution import Convolution

aten = torch.ops.aten

Arguments = Callable[..., tuple[Any, ...]]


def random_weights(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(shape, dtype=torch.float64, generator=generator) + 0.5 for shape in shapes]


class ByHand(nn.Module):
    """A convolution and one overload, which is given ``(x, size of the batch, *weights)``."""

    def __init__(self, target: Any, arguments: Arguments, weights: list[torch.Tensor]) -> None:
        super().__init__()
        self.target, self.arguments = target, arguments
        self.conv = nn.Conv1d(4, CHANNELS, 3, padding=1)
        for i, value in enumerate(weights):
            self.register_buffer(f"weight{i}", value)

    def forward(self, x: torch.Tensor) -> Any:
        weights = [b for n, b in self.named_buffers() if n.startswith("weight")]
        value = self.target(*self.arguments(self.conv(x), x.shape[0], *weights))
        return value[0] if isinstance(value, tuple | list) else value

    def graph(self, X: torch.Tensor) -> Graph:
        count = len(list(self.buffers()))
        nodes = [Node(i, "weight", key=f"weight{i}", shape=tuple(b.shape), dtype=b.dtype) for i, b in enumerate(self.buffers())]
        for name in ("conv.weight", "conv.bias"):
            nodes.append(Node(len(nodes), "weight", key=name, shape=tuple(self.get_parameter(name).shape), dtype=X.dtype))
        sequence, mutated = len(nodes), {"mutated": True, "batched": True}
        nodes.append(Node(sequence, "sequence", shape=(None, *X.shape[1:]), dtype=X.dtype, **mutated))
        size = Node(sequence + 1, "call", "aten.sym_size", aten.sym_size.int, (Ref(sequence), 0), batched=True)
        x = Node(sequence + 2, "call", "aten.conv1d", aten.conv1d.default, (Ref(sequence), Ref(count), Ref(count + 1), [1], [1]),
                 shape=(None, CHANNELS, X.shape[2]), dtype=X.dtype, **mutated)  # fmt: skip
        result = self(X)
        several = len(self.target._schema.returns) > 1
        name = f"{self.target.namespace}.{self.target._schema.name.split('::')[1]}"
        arguments = self.arguments(Ref(x.index), Ref(size.index), *(Ref(i) for i in range(count)))
        node = Node(sequence + 3, "call", name, Result(self.target) if several else self.target, arguments,
                    shape=(None, *result.shape[1:]), dtype=result.dtype, **mutated)  # fmt: skip
        return Graph([*nodes, size, x, node], [node.index], lambda values: values[0], "*", "by hand")

# overloads that this version of torch.export does not give, but another may
C6 = (CHANNELS,)

BY_HAND: list[tuple[Any, Arguments, list[tuple[int, ...]], str]] = [
    (aten._softmax.default, lambda x, n: (x, 1, False), [], "elementwise"),
    (aten._softmax.default, lambda x, n: (x, 2, False), [], "whole values"),
    (aten._log_softmax.default, lambda x, n: (x, 1, False), [], "elementwise"),
    (aten.cumprod.default, lambda x, n: (x, 1), [], "elementwise"),
    (aten.logcumsumexp.default, lambda x, n: (x, 1), [], "elementwise"),
    (aten._prelu_kernel.default, lambda x, n, w: (x, w), [(1, CHANNELS, 1)], "elementwise"),
    (aten.batch_norm.default, lambda x, n, w, b, m, v: (x, w, b, m, v, False, 0.1, 1e-5, False), [C6] * 4, "elementwise"),
    (aten.native_batch_norm.default, lambda x, n, w, b, m, v: (x, w, b, m, v, False, 0.1, 1e-5), [C6] * 4, "elementwise"),
    (aten.native_batch_norm.default, lambda x, n, m, v: (x, None, None, m, v, False, 0.1, 1e-5), [C6] * 2, "elementwise"),
    (aten._native_batch_norm_legit_no_training.default, lambda x, n, w, b, m, v: (x, w, b, m, v, 0.1, 1e-5), [C6] * 4, "elementwise"),
    (aten.native_layer_norm.default, lambda x, n, w, b: (x, [13], w, b, 1e-5), [(13,)] * 2, "whole values"),
    (aten.max_pool2d_with_indices.default, lambda x, n: (x, [1, 3], [1, 2]), [], "naive"),
    (aten.max_pool1d_with_indices.default, lambda x, n: (x, [3], [2]), [], "pool"),
    (aten.max_pool1d.default, lambda x, n: (x, [3]), [], "pool"),
    (aten.concat.default, lambda x, n: ([x, x], 1), [], "merge"),
    (aten.cat.default, lambda x, n: ([x, x], -1), [], "merge"),
    (aten.constant_pad_nd.default, lambda x, n: (x, [2, 1], 0.5), [], "view"),
    (aten.pad.default, lambda x, n: (x, [2, -1]), [], "view"),
    (aten.movedim.int, lambda x, n: (x, 1, 2), [], "view"),
    (aten.swapaxes.default, lambda x, n: (x, 1, 2), [], "view"),
    (aten.transpose.int, lambda x, n: (x, -1, -2), [], "view"),
    (aten.unflatten.int, lambda x, n: (x, 1, [2, 3]), [], "view"),
    (aten.flatten.using_ints, lambda x, n: (x, 1), [], "view"),
    (aten.reshape.default, lambda x, n: (x, [n, 2, 3, 13]), [], "view"),
    (aten.view.default, lambda x, n: (x, [-1, 3, 2, 13]), [], "view"),
    (aten.squeeze.dims, lambda x, n: (x, [1, 2]), [], "view"),
    (aten.to.dtype, lambda x, n: (x, torch.float32), [], "view"),
    (aten.adaptive_avg_pool1d.default, lambda x, n: (x, [13]), [], "pool"),
    (aten.upsample_nearest1d.default, lambda x, n: (x, [26]), [], "view"),
    (aten.max.dim, lambda x, n: (x, 2, True), [], "reduce"),
    (aten.min.dim, lambda x, n: (x, -1), [], "reduce"),
    (aten.amax.default, lambda x, n: (x, [2]), [], "reduce"),
    (aten.mean.dim, lambda x, n: (x, [-1], True), [], "reduce"),
    (aten.conv1d.padding, lambda x, n, w: (x, w, None, [1], "same"), [(3, CHANNELS, 4)], "convolution"),
]

# operations that no case can put to the law
EXCUSED = {
    "pointwise": "a stand-in for everything that PyTorch tags so",
    "aten.empty": "has no values",
    "aten.resolve_conj": "a copy",
    "yuzu.shifted_exp": "its values are right but for a factor that cancels: see test_pooled_attention",
}


@pytest.mark.parametrize(("target", "arguments", "shapes", "wanted"), BY_HAND, ids=[f"{t}-{i}" for i, (t, *_) in enumerate(BY_HAND)])
def test_the_law_for_graphs_by_hand(target: Any, arguments: Arguments, shapes: list[tuple[int, ...]], wanted: str) -> None:
    X = laboratory_sequences(4, 13)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ByHand(target, arguments, random_weights(*shapes)).double()
    laboratory = Laboratory(model, X, (), model.graph(X))
    tolerance = 1e-6 if target is aten.to.dtype else 1e-10
    found = [text for _, text in laboratory.problems(chunks(X), torch.float64, tolerance)]
    assert not found, "\n".join(found[:8])
    last = len(laboratory.graph.nodes) - 1
    assert fits(wanted, laboratory.families()[last], laboratory.plan.layouts[last].kind, {"windows"}), laboratory.plan.reasons


def test_every_registered_operation_has_a_case() -> None:
    met = {node.op for name in BENCHES for node in bench_findings(name).laboratory.graph.nodes}
    met |= {f"aten.{target._schema.name.split('::')[1]}" for target, *_ in BY_HAND}
    without = set(registered()) - met - set(EXCUSED)
    assert not without, f"no case puts these to the law: {sorted(without)}"


def test_a_broken_handler_is_noticed() -> None:
    """The law itself can fail: a convolution whose weight differs from the model's."""
    X = laboratory_sequences(4, 13)
    laboratory = Laboratory(nn.Sequential(nn.Conv1d(4, 3, 3), nn.ReLU()).double(), X)
    assert not list(laboratory.problems(chunks(X)))
    rule = next(r for r in laboratory.plan.rules if isinstance(r, Convolution))
    kernel = rule.kernel
    object.__setattr__(rule, "kernel", lambda weight: kernel(weight) * (1 + 1e-8))  # rules are frozen
    assert {i for i, _ in laboratory.problems(chunks(X))} == {3, 4}
