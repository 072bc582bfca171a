"""The call of `yuzu.yuzu_ism` that the options of ``yuzu ism`` make: models, picked outputs, other inputs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from yuzu._engine.checks import check_span
from yuzu._engine.request import Selection
from yuzu._engine.run.scores import Outputs
from yuzu.attribution import hypothetical
from yuzu.command_line.model import load_args, load_models, load_pick
from yuzu.errors import YuzuError
from yuzu.predict import predict
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

    @classmethod
    def of(cls, options: argparse.Namespace, rows: int) -> Call:
        """Load what the options name; ``rows`` is the number of sequences of the input."""
        if options.head is not None and options.func is not None:
            raise YuzuError("give either --head or --func")
        if options.func is not None and ":" not in options.func:
            raise YuzuError(f"--func must be FILE.py:NAME or MODULE:NAME, got {options.func!r}")
        if options.batch_size is not None and options.batch_size < 1:
            raise YuzuError(f"--batch-size must be at least 1, got {options.batch_size}")
        models = load_models(options.model, options.weights)
        func = load_pick("--func", options.func) if options.head is None else load_pick("--head", options.head)
        settings = {name: getattr(options, name) for name in ("start", "end", "batch_size", "device")}
        args = load_args(options.args, models[0], rows)
        return cls(models, args, func, options.target, options.output, settings)

    def rows(self, rows: np.ndarray) -> Call:
        """The call for some sequences, by a mask or numbers."""
        if self.args is None:
            return self
        return replace(self, args=tuple(array[torch.from_numpy(rows)] for array in self.args))

    def check(self, X: torch.Tensor) -> None:
        """Refuse positions, a head or a target that do not exist, before the time for planning is spent."""
        check_span(self.settings["start"], self.settings["end"], X.shape[2])
        args = None if self.args is None else tuple(array[:1] for array in self.args)
        for model in self.models[:1]:
            found = predict(model, X[:1], args=args, device=self.settings["device"])
            Outputs(Selection(self.func, self.target)).leaves(found)

    def scores(self, X: torch.Tensor, made: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """The mean of the models' scores, and with several models those of each, ``(n, models, ...)``."""
        each = [self._scores_of(model, X, made) for model in self.models]
        if len(each) == 1:
            return each[0], None
        return np.mean(each, axis=0, dtype=each[0].dtype), np.stack(each, axis=1)

    def _scores_of(self, model: torch.nn.Module, X: torch.Tensor, made: Any) -> np.ndarray:
        kind = "delta" if self.output == "hypothetical" else self.output
        picked = {"args": self.args, "func": self.func, "target": self.target}
        found = yuzu_ism(model, X, made, output=kind, **picked, **self.settings)
        if not isinstance(found, torch.Tensor):
            raise YuzuError(
                f"--output {self.output} needs one tensor, and the model returns several: pick one with --head or "
                "--func, or use --output l2"
            )
        return (hypothetical(found) if self.output == "hypothetical" else found).numpy()


def add_weights(digest: Any, model: torch.nn.Module) -> None:
    """Add the names and values of a model's weights to a digest."""
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        if isinstance(tensor, torch.Tensor):  # a module's get_extra_state may return anything
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
