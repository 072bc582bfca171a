"""Complex numbers: made from two real ones, split into them, and convolved. Their differences add as real ones do."""

from __future__ import annotations

import torch

from yuzu._engine.context import Context
from yuzu._engine.graph import map_refs
from yuzu._engine.handlers.contract import Reading, Rule, View, setting
from yuzu._engine.handlers.registry import handles
from yuzu._engine.handlers.view import Rearranged
from yuzu._engine.layout import ROWS, Change, Layout, rewindow
from yuzu._engine.window import Geometry, Window


class ComplexConvolution(Reading):
    """A convolution of complex numbers on windows."""

    family = "convolution"
    keeps_finite = True
    reads_reference = False

    def __init__(self, view: View, layout: Layout, geometry: Geometry) -> None:
        super().__init__(view, layout)
        self.geometry = geometry

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        (change,), (source,), (layout,), node = changes, self.sources, self.source_layouts, self.node
        assert change is not None and change.window is not None and window is not None
        read = window.cached(("read", node.index), lambda: self.geometry.read_by(window))
        rows = layout.natural(rewindow(change.tensor, change.window, read).flatten(0, 1))
        x, weight = (rows if ref.index == source else run.value(ref.index) for ref in node.args[:2])
        stride, dilation = (
            [setting(node.argument(place, name, 1), axis) for axis in range(2, rows.dim())]
            for place, name in ((3, "stride"), (5, "dilation"))
        )
        convolve = torch.conv1d if rows.dim() == 3 else torch.conv2d
        # neither the positions nor, as the handler has it, the other axis is padded
        result = convolve(x, weight, None, stride, 0, dilation, node.argument(6, "groups", 1))
        return self.layout.position_first(result).unflatten(0, change.tensor.shape[:2])

    def detail(self) -> str:
        return f"kernel {self.geometry.kernel}, complex"


@handles("aten.view_as_real", "aten.view_as_complex", "aten._conj", "aten.resolve_conj", "aten._neg_view")
def parts(view: View) -> Rule | str:
    node, layout = view.node, view.layout(view.node.args[0])
    takes_last = node.op == "aten.view_as_complex" and layout.axis == view.rank
    if not node.mutated or layout.kind != "windows" or layout.composite or takes_last:
        layout = ROWS
    return Rearranged(view, layout, lambda rows: node.target(*map_refs(node.args, lambda ref: rows)))


__all__ = ["ComplexConvolution"]
