"""A call of `yuzu.yuzu_ism` that is made for many sequences, some at a time: models, picked outputs, other inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from yuzu._engine.checks import check_span
from yuzu.attribution import hypothetical
from yuzu.errors import YuzuError
from yuzu.naive_ism import naive_ism
from yuzu.yuzu_ism import yuzu_ism


@dataclass(frozen=True)
class Call:
    """Models (folds of one architecture), the rows of their other inputs, and what to score.

    ``output`` is that of `yuzu.yuzu_ism`, or ``"hypothetical"``; ``settings`` are `start`, `end`, `batch_size` and
    `device`.
    """

    models: list[torch.nn.Module]
    args: tuple[torch.Tensor, ...] | None
    func: Callable[[Any], Any] | None
    target: Any
    output: str
    settings: dict[str, Any]

    def rows(self, rows: np.ndarray) -> Call:
        """The call for some sequences, by a mask or row numbers."""
        if self.args is None:
            return self
        return replace(self, args=tuple(array[torch.from_numpy(rows)] for array in self.args))

    def check(self, X: torch.Tensor) -> np.ndarray:
        """Refuse positions, a head or a target that do not exist, before the time for planning is spent. Return
        the first model's scores of one position of the first sequence, computed naively.
        """
        begin, _ = check_span(self.settings["start"], self.settings["end"], X.shape[2])
        of_one = {**self.rows(np.arange(1))._picked(), "start": begin, "end": begin + 1}
        found = naive_ism(self.models[0], X[:1], **of_one, device=self.settings["device"])
        return self._finished(found)

    def scores(self, X: torch.Tensor, made: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """The mean of the models' scores, and with several models those of each, ``(n, models, ...)``."""
        asked = {**self._picked(), **self.settings}
        each = [self._finished(yuzu_ism(model, X, made, **asked)) for model in self.models]
        if len(each) == 1:
            return each[0], None
        return np.mean(each, axis=0, dtype=each[0].dtype), np.stack(each, axis=1)

    def _picked(self) -> dict[str, Any]:
        kind = "delta" if self.output == "hypothetical" else self.output
        return {"args": self.args, "func": self.func, "target": self.target, "output": kind}

    def _finished(self, found: Any) -> np.ndarray:
        if not isinstance(found, torch.Tensor):
            raise YuzuError(
                f"output {self.output} needs one tensor, and the model returns several: pick one with head or func, or "
                "use l2"
            )
        scores: np.ndarray = (hypothetical(found) if self.output == "hypothetical" else found).numpy()
        return scores


def add_weights(digest: Any, model: torch.nn.Module) -> None:
    """Add the names and values of a model's weights to a digest."""
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        if isinstance(tensor, torch.Tensor):  # a module's get_extra_state may return anything
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
