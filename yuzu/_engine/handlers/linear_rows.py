"""A linear operation on whole differences, such as a convolution along an axis that is not the positions'."""

from __future__ import annotations

from collections.abc import Callable

import torch

from yuzu._engine.context import Context
from yuzu._engine.graph import Ref
from yuzu._engine.handlers.contract import Rule, View
from yuzu._engine.handlers.facts import Numerics
from yuzu._engine.layout import ROWS, Change
from yuzu._engine.window import Window


class LinearRows(Rule):
    """A linear operation on whole differences: the operation itself, without its bias."""

    family = "convolution"
    reads_reference = False
    numerics = Numerics(weighted=True)

    def __init__(self, view: View, bias: int | None) -> None:
        super().__init__(view, ROWS)
        self.bias = bias

    def run(self, run: Context, changes: list[Change | None], window: Window | None) -> torch.Tensor:
        whole = run.whole(self.sources[0], changes[0])
        return self._of_rows(run, whole.flatten(0, 1), run.value).unflatten(0, whole.shape[:2])

    def _of_rows(self, run: Context, rows: torch.Tensor, weight: Callable[[int], torch.Tensor]) -> torch.Tensor:
        source = self.sources[0]
        args = [
            rows if isinstance(a, Ref) and a.index == source else weight(a.index) if isinstance(a, Ref) else a
            for a in self.node.args
        ]
        if self.bias is not None and len(args) > self.bias:
            args[self.bias] = None
        return self.node.target(*args, **self.node.kwargs)

    def terms(
        self, run: Context, changes: list[Change | None], window: Window | None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        (change,), (source,) = changes, self.sources
        if change is None:
            return None
        grid, reference = run.sites.difference.shape[:2], run.of_sites(run.value(source)).abs()
        more = (run.mutants(source, change).unflatten(0, grid).abs() - reference).flatten(0, 1)

        def weight(index: int) -> torch.Tensor:
            return run.value(index).abs()

        def there() -> torch.Tensor:
            return self._of_rows(run, run.value(source).abs(), weight)

        of_reference = run.reference.made(("terms", self.node.index), there)
        return self._of_rows(run, more, weight).unflatten(0, grid), run.of_sites(of_reference)
