"""Recognises long convolutions that are computed by Fourier transforms: ``irfft(rfft(x, n) * filter, n)``.

Each of the three operations mixes all positions, or holds frequencies. Together they are one linear operation, which a
handler can apply to a few positions. Where the filter is the transform of a shorter signal, as in Hyena and in S4, an
output position reads only as many positions before it as that signal is long.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from yuzu._engine import ops
from yuzu._engine.graph import Node, Ref
from yuzu._engine.rewrite.unread import without_unread


class LongConvolution:
    """A node's target: the circular convolution of ``x`` with the signal that has the transform ``frequencies``.

    Parameters
    ----------
    axis: int
        Counted from the last, negative.
    size: int
        The length of the transforms; ``x`` is cut to it, or padded with zeros.
    norms: (str or None, str or None)
        The ``norm`` of both transforms.
    reach: int
        The length of the signal, where the filter is known to be the transform of a shorter one; else ``size``.
    """

    def __init__(self, axis: int, size: int, norms: tuple[Any, Any], reach: int) -> None:
        self.axis, self.size, self.norms, self.reach = axis, size, norms, reach

    def __call__(self, x: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
        return self.back(torch.fft.rfft(x, self.size, self.axis, self.norms[0]) * frequencies)

    def back(self, frequencies: torch.Tensor) -> torch.Tensor:
        """The second transform."""
        return torch.fft.irfft(frequencies, self.size, self.axis, self.norms[1])

    def signal(self, frequencies: torch.Tensor) -> torch.Tensor:
        """The operation's result for a one at the first position: the signal itself."""
        one = frequencies.new_zeros([1] * frequencies.dim(), dtype=frequencies.real.dtype) + 1
        return self(one, frequencies)

    def __str__(self) -> str:
        return f"long convolution on axis {self.axis}, size {self.size}, norms {self.norms}, reach {self.reach}"


def name_long_convolutions(nodes: list[Node], outputs: list[Any]) -> tuple[list[Node], list[Any]]:
    """The nodes with long convolutions as one operation each, renumbered, and the outputs' new indices."""
    nodes = [dataclasses.replace(node) for node in nodes]
    for node in nodes:
        if node.op == "aten.fft_irfft" and node.mutated:
            _name(node, nodes)
    return without_unread(nodes, outputs)


def _name(node: Node, nodes: list[Node]) -> None:
    """Let a node compute a long convolution itself, if it is the last of its operations."""
    product = nodes[node.args[0].index]
    if product.op != "aten.mul" or not all(isinstance(a, Ref) for a in product.args):
        return
    sides = [nodes[a.index] for a in product.args]
    spectrum, frequencies = sides if sides[0].mutated else sides[::-1]
    if spectrum.op != "aten.fft_rfft" or frequencies.batched or frequencies.shape is None:
        return
    source, rank = nodes[spectrum.args[0].index], len(node.shape or ())
    axis, before = node.named("dim") % rank - rank, spectrum.named("dim") % rank - rank
    shapes = source.shape, spectrum.shape, product.shape, node.shape
    if any(shape is None or len(shape) != rank for shape in shapes) or len(frequencies.shape) > rank or axis != before:
        return
    size = (node.shape or ())[axis]
    given = spectrum.named("n") or (source.shape or ())[axis]
    if not isinstance(size, int) or size != given or axis == -rank or len(frequencies.shape) < -axis:
        return
    if product.shape != spectrum.shape or frequencies.shape[axis] != (spectrum.shape or ())[axis]:
        return  # several filters for each channel
    reach = _length_of_signal(frequencies, nodes, axis, size)
    norms = spectrum.named("norm"), node.named("norm")
    node.op, node.target = "yuzu.long_convolution", LongConvolution(axis, size, norms, reach)
    node.args, node.kwargs = (Ref(source.index), Ref(frequencies.index)), {}


def _length_of_signal(node: Node, nodes: list[Node], axis: int, size: int) -> int:
    """The length of the signal that has a transform of ``size``, up to factors that are the same for all frequencies;
    ``size`` where it is not known.
    """
    while node.kind == "call":
        rank = len(node.shape or ())
        if node.op == "aten.fft_rfft":
            source = nodes[node.args[0].index]
            length = (source.shape or ())[axis] if -axis <= rank else None
            along = node.named("dim") % rank - rank == axis
            whole = (node.named("n") or length) == size
            return min(length, size) if along and whole and isinstance(length, int) else size
        first, others = nodes[node.inputs[0]], [nodes[i] for i in node.inputs[1:]]
        factor = node.op in ("aten.mul", "aten.div") and isinstance(node.args[0], Ref)
        if factor and others and len(first.shape or ()) == rank and _same_for_all(others[0], axis):
            node = first
        elif factor and others and node.op == "aten.mul" and _same_for_all(first, axis):
            node = others[0]
        elif (factor or ops.of(node.op).casts) and not others:
            node = first
        elif node.op == "aten.unsqueeze" and node.args[1] % rank - rank < axis:
            node = first
        else:
            break
    return size


def _same_for_all(node: Node, axis: int) -> bool:
    """Tell whether a factor is the same along an axis."""
    shape = node.shape
    return shape is not None and (len(shape) < -axis or shape[axis] == 1)


__all__ = ["LongConvolution", "name_long_convolutions"]
