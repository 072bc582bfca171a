"""Operations on several rows of a sequence, such as an encoder of its segments: only the parts that a mutation reaches
are run.
"""

from __future__ import annotations

from yuzu._engine import ops
from yuzu._engine.handlers.affine import Linear
from yuzu._engine.handlers.contract import Rule, View
from yuzu._engine.handlers.registry import handles
from yuzu._engine.handlers.values import Local, OnRows
from yuzu._engine.layout import CONSTANT, ROWS

AVERAGES = ("aten.avg_pool1d", "aten.avg_pool2d", "aten.adaptive_avg_pool1d")


@handles("yuzu.on_parts")
def on_parts(view: View) -> Rule | str:
    node, target = view.node, view.node.target
    source, layout = node.args[0], view.layout(node.args[0])
    if any(view.layout(ref) != CONSTANT for ref in view.tensors() if ref != source):
        return "its weight depends on an input"
    local = node.mutated and layout.kind == "windows" and not layout.composite and layout.axis <= target.beside
    linear = ops.of(target.op).convolves or target.op in AVERAGES
    if linear and node.mutated and node.floating and view.source(source).dtype == node.dtype:
        family = "convolution" if ops.of(target.op).convolves else "reduce"
        return Linear(view, layout if local else ROWS, family)
    return Local(view, layout, broadcast=False) if local else OnRows(view)
