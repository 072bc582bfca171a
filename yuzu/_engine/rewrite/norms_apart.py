"""Takes norms apart into statistics, such as a mean and a scale, and what each position does with them.

A norm over positions reads all of them and changes all of them, but only by a few numbers for each sequence. Apart, the
graph shows these numbers, and the plan can carry windows past the norm: see `yuzu._engine.plan.statistics`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container
from typing import Any

import torch

from yuzu._engine.graph import Graph, Node, Ref, map_refs
from yuzu._engine.rewrite.pooled_softmax import Pooled, ShiftedExp, axis_after, find_pooled, shape_beside

aten = torch.ops.aten

NORMS = frozenset(
    f"aten.{name}" for name in "layer_norm native_layer_norm group_norm instance_norm rms_norm var std".split()
)
SOFTMAX = frozenset(("aten.softmax", "aten._softmax"))


def norms_apart(graph: Graph, which: Container[int]) -> tuple[Graph, dict[int, int]]:
    """The graph with some of its norms taken apart, and the new index of each node. Norms that cannot be stay whole."""
    made = _Made(graph)
    pools = _Pools(made)
    for node in graph.nodes:
        pooled = find_pooled(graph, node) if node.index in which and node.op in SOFTMAX else None
        if pooled is not None:
            pools.begin(node, pooled)
        elif node.index in which and node.op in NORMS:
            made.take_apart(node)
        else:
            made.copy(node)
            pools.follow(node)
    outputs = [made.same[o] if isinstance(o, int) else o for o in graph.outputs]
    return dataclasses.replace(graph, nodes=made.nodes, outputs=outputs), made.same


class _Made:
    """The new nodes, and the new index of each old one."""

    def __init__(self, graph: Graph) -> None:
        self.old, self.nodes = graph.nodes, list[Node]()
        self.same: dict[int, int] = {}
        self._known: dict[str, int] = {}

    def known(self, target: Any, args: tuple[Any, ...]) -> int | None:
        """A node that computes the same: a model may take the mean itself beside a norm that does."""
        return self._known.get(self._key(target, args))

    def note(self, node: Node) -> None:
        """Note a node that later ones may repeat."""
        if not node.kwargs and node.target in (aten.mean.dim, aten.sub.Tensor, aten.mul.Tensor):
            self._known.setdefault(self._key(node.target, node.args), node.index)

    def _key(self, target: Any, args: tuple[Any, ...]) -> str:
        if target is aten.mean.dim:
            rank, axes = len(self.nodes[args[0].index].shape or ()), args[1]
            axes = [axes] if isinstance(axes, int) else axes or range(rank)
            args = (args[0], sorted(a % rank for a in axes), *args[2:])
        return f"{target} {args}"

    def add(self, beside: Node, op: str, target: Any, shape: tuple[int | None, ...], *args: Any) -> Ref:
        """Add an operation that stands beside one of the model's, or in its place."""
        node = Node(len(self.nodes), "call", op, target, args, layer=beside.layer, shape=shape, dtype=beside.dtype)
        self.nodes.append(dataclasses.replace(node, mutated=beside.mutated, batched=beside.batched))
        return Ref(node.index)

    def copy(self, node: Node) -> None:
        args, kwargs = (map_refs(a, lambda ref: Ref(self.same[ref.index])) for a in (node.args, node.kwargs))
        repeated = self.known(node.target, args) if node.kind == "call" and not kwargs else None
        if repeated is not None:
            self.same[node.index] = repeated
            return
        self.same[node.index] = len(self.nodes)
        self.nodes.append(dataclasses.replace(node, index=len(self.nodes), args=args, kwargs=kwargs))
        self.note(self.nodes[-1])

    def take_apart(self, node: Node) -> None:
        taken = _Apart(self, node)
        result = getattr(taken, node.op.removeprefix("aten.").removeprefix("native_"))()
        if result is None:
            self.copy(node)
        else:
            self.same[node.index] = result.index


class _Pools:
    """Writes attention pooling with its division last: see `yuzu._engine.rewrite.pooled_softmax`."""

    def __init__(self, made: _Made) -> None:
        self.made = made
        self.of: dict[int, Pooled] = {}  # by the nodes that follow the softmax
        self.total: dict[int, Ref] = {}  # of the exponentials, moved as they are so far, by softmax
        self.weights: dict[int, int] = {}  # the node that last moved the weights

    def begin(self, node: Node, pooled: Pooled) -> None:
        """Exponentials in place of a softmax, and their sum."""
        made = self.made
        x, shape = Ref(made.same[node.args[0].index]), node.shape or ()
        of = made.add(node, "yuzu.shifted_exp", ShiftedExp(pooled.axis), shape, x)
        summed = tuple(1 if a == pooled.axis else size for a, size in enumerate(shape))
        self.total[node.index] = made.add(node, "aten.sum", aten.sum.dim_IntList, summed, of, [pooled.axis], True)
        made.same[node.index] = of.index
        self.weights[node.index] = node.index
        self.of.update(dict.fromkeys((*pooled.moves, pooled.product, pooled.total), pooled))

    def follow(self, node: Node) -> None:
        """Move the sum as the exponentials are moved, and divide by it at the end."""
        pooled = self.of.get(node.index)
        if pooled is None:
            return
        made, total = self.made, self.total[pooled.softmax]
        before = made.nodes[total.index].shape or ()
        if node.index in pooled.moves:
            axis = next(a for a, size in enumerate(self._of_weights(pooled)) if size != before[a])
            place = axis_after(node, axis, len(before))
            shape = tuple(1 if a == place else size for a, size in enumerate(node.shape or ()))
            moved = made.add(node, node.op, node.target, shape, total, *node.args[1:])
            self.total[pooled.softmax], self.weights[pooled.softmax] = moved, node.index
            return
        if node.index != pooled.total:
            return
        if pooled.product == pooled.total:
            weights = made.old[self.weights[pooled.softmax]]
            axis = next(a for a, size in enumerate(weights.shape or ()) if size != before[a])
            view = shape_beside(node, weights, axis)
            if view is not None:
                shape = tuple(None if size == -1 else size for size in view)
                total = made.add(node, "aten.reshape", aten.reshape.default, shape, total, view)
        else:
            axes, keeps = [a % len(before) for a in node.args[1]], len(node.args) > 2 and node.args[2]
            shape = tuple(1 if a in axes else s for a, s in enumerate(before) if keeps or a not in axes)
            total = made.add(node, "aten.sum", aten.sum.dim_IntList, shape, total, axes, bool(keeps))
        summed = Ref(made.same[node.index])
        made.same[node.index] = made.add(node, "aten.div", aten.div.Tensor, node.shape or (), summed, total).index

    def _of_weights(self, pooled: Pooled) -> tuple[int | None, ...]:
        return self.made.old[self.weights[pooled.softmax]].shape or ()


class _Apart:
    """Writes the operations of one norm; each method returns the last, or None if it leaves the norm whole."""

    def __init__(self, made: _Made, node: Node) -> None:
        self.made, self.node = made, node
        self.x = Ref(made.same[node.args[0].index])
        self.shape = made.nodes[self.x.index].shape or ()

    def call(self, target: Any, shape: tuple[int | None, ...], *args: Any) -> Ref:
        known = self.made.known(target, args)
        if known is not None:
            return Ref(known)
        name = f"aten.{target._schema.name.split('::')[1]}"
        new = self.made.add(self.node, name, target, shape, *args)
        self.made.note(self.made.nodes[new.index])
        return new

    def mean(self, x: Ref, axes: list[int]) -> Ref:
        shape = self.made.nodes[x.index].shape or ()
        return self.call(aten.mean.dim, tuple(1 if a in axes else s for a, s in enumerate(shape)), x, axes, True)

    def centred(self, x: Ref, axes: list[int]) -> Ref:
        shape = self.made.nodes[x.index].shape or ()
        return self.call(aten.sub.Tensor, shape, x, self.mean(x, axes))

    def mean_square(self, x: Ref, axes: list[int]) -> Ref:
        square = self.call(aten.mul.Tensor, self.made.nodes[x.index].shape or (), x, x)
        return self.mean(square, axes)

    def scaled(self, x: Ref, axes: list[int], eps: float) -> Ref:
        """``x / sqrt(mean(x^2) + eps)``"""
        nodes = self.made.nodes
        of = self.mean_square(x, axes)
        small = nodes[of.index].shape or ()
        inverse = self.call(aten.rsqrt.default, small, self.call(aten.add.Tensor, small, of, eps))
        return self.call(aten.mul.Tensor, nodes[x.index].shape or (), x, inverse)

    def affine(self, x: Ref, weight: Any, bias: Any, view: list[int] | None) -> Ref:
        """``x * weight + bias``, the two reshaped to ``view`` before."""
        for target, old in ((aten.mul.Tensor, weight), (aten.add.Tensor, bias)):
            if isinstance(old, Ref):
                operand = Ref(self.made.same[old.index])
                if view is not None:
                    weight_node = self.made.nodes[operand.index]
                    operand = self.call(aten.reshape.default, tuple(view), operand, view)
                    if operand.index == len(self.made.nodes) - 1:
                        self.made.nodes[-1] = dataclasses.replace(
                            self.made.nodes[-1], mutated=False, batched=weight_node.batched, dtype=weight_node.dtype
                        )
                x = self.call(target, self.shape, x, operand)
        return x

    def layer_norm(self) -> Ref | None:
        node = self.node
        axes = list(range(len(self.shape) - len(node.args[1]), len(self.shape)))
        normed = self.scaled(self.centred(self.x, axes), axes, node.named("eps"))
        return self.affine(normed, node.named("weight"), node.named("bias"), None)

    def rms_norm(self) -> Ref | None:
        node, eps = self.node, self.node.named("eps")
        if eps is None:  # it depends on the dtype that the model is run in
            return None
        axes = list(range(len(self.shape) - len(node.args[1]), len(self.shape)))
        return self.affine(self.scaled(self.x, axes, eps), node.named("weight"), None, None)

    def instance_norm(self) -> Ref | None:
        node = self.node
        axes = list(range(2, len(self.shape)))
        normed = self.scaled(self.centred(self.x, axes), axes, node.named("eps"))
        return self.affine(normed, node.named("weight"), node.named("bias"), self._of_channels())

    def group_norm(self) -> Ref | None:
        node, shape = self.node, self.shape
        groups, channels, x = node.args[1], shape[1], self.x
        assert channels is not None
        apart = groups not in (1, channels)
        axes = list(range(2 if groups == channels else 1, len(shape)))
        if apart:
            split = (None, groups, channels // groups, *shape[2:])
            x = self.call(aten.reshape.default, split, x, [-1, *split[1:]])
            axes = list(range(2, len(split)))
        x = self.scaled(self.centred(x, axes), axes, node.named("eps"))
        if apart:
            x = self.call(aten.reshape.default, shape, x, [-1, *shape[1:]])
        return self.affine(x, node.named("weight"), node.named("bias"), self._of_channels())

    def _of_channels(self) -> list[int]:
        channels = self.shape[1]
        assert channels is not None
        return [channels, *[1] * (len(self.shape) - 2)]

    def var(self) -> Ref | None:
        """The mean square of centred values, times ``n / (n - 1)`` or the like."""
        node, shape = self.node, self.shape
        given, correction = node.named("dim"), node.named("correction")
        axes = [a % len(shape) for a in ([given] if isinstance(given, int) else given or ())]
        if not axes or 0 in axes:
            return None
        if node.named("unbiased") is not None:
            correction = int(node.named("unbiased"))
        count = math.prod(shape[a] or 0 for a in axes)
        freedom = count - (1 if correction is None else correction)
        if freedom <= 0:
            return None
        found = self.mean_square(self.centred(self.x, axes), axes)
        found = self.call(aten.mul.Tensor, self.made.nodes[found.index].shape or (), found, count / freedom)
        if node.named("keepdim"):
            return found
        return self.call(aten.squeeze.dims, node.shape or (), found, axes)

    def std(self) -> Ref | None:
        variance = self.var()
        return None if variance is None else self.call(aten.sqrt.default, self.node.shape or (), variance)


__all__ = ["NORMS", "SOFTMAX", "norms_apart"]
