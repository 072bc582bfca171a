"""Gives operations their usual name, where a model or a transform uses a general one."""

from __future__ import annotations

from typing import Any

import torch

from yuzu._engine.graph import Node, Ref

aten = torch.ops.aten
CONVOLUTIONS = {
    3: (aten.conv1d.default, aten.conv_transpose1d.default),
    4: (aten.conv2d.default, aten.conv_transpose2d.input),
    5: (aten.conv3d.default, aten.conv_transpose3d.input),
}


def with_usual_name(node: Node, nodes: list[Node]) -> None:
    """Give a node the target and arguments of the usual operation that computes the same."""
    if node.target in (aten.convolution.default, aten._convolution.default):
        _convolution(node, nodes)


def _convolution(node: Node, nodes: list[Node]) -> None:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "transposed", "output_padding", "groups")
    given = [node.argument(i, name) for i, name in enumerate(names)]
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = given
    shape = nodes[x.index].shape if isinstance(x, Ref) else None
    if shape is None or len(shape) not in CONVOLUTIONS or not isinstance(transposed, bool):
        return
    both = CONVOLUTIONS[len(shape)]
    args: tuple[Any, ...] = (stride, padding, output_padding, groups, dilation)
    if not transposed:
        args = (stride, padding, dilation, groups)
    node.target, node.args, node.kwargs = both[transposed], (x, weight, bias, *args), {}
