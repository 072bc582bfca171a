"""Turns the model's outputs, or their differences, into the scores that the user asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from yuzu._engine.capture.outputs import map_tensors
from yuzu._engine.checks import to_user
from yuzu._engine.freed_memory import allow
from yuzu._engine.layout import on_device
from yuzu._engine.request import Request, Selection
from yuzu.errors import YuzuError


class Outputs:
    """Finds the tensors to score in a model's output, and puts their results into the same container.

    Parameters
    ----------
    selection: Selection
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self._spec: Any = None
        self._others: dict[int, Any] = {}  # values in the output that are not tensors, by place

    def leaves(self, output: Any) -> list[torch.Tensor]:
        """The tensors to score, from the model's full output for a batch."""
        func, target = self.selection.func, self.selection.target
        if func is not None:
            # clones, since func may work in place, and some of these values are read again
            output = func(map_tensors(torch.Tensor.clone, output))
        leaves, self._spec = pytree.tree_flatten(output)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if not tensors:
            raise YuzuError(
                f"the model's output (after func, if given) is a {type(output).__name__}, which holds no tensor to "
                "score; give a func that picks the tensors"
            )
        check_real(tensors)
        self._others = {i: leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, torch.Tensor)}
        if target is not None:
            if len(tensors) > 1:
                raise YuzuError(
                    f"target needs a single output tensor, but the model returns {len(tensors)}; select one with func"
                )
            tensors = [self.selection.pick(tensors[0], 1)]
        return tensors

    def check(self, leaves: Sequence[torch.Tensor], rows: int) -> None:
        """Refuse scored tensors that do not have one row for each sequence."""
        for leaf in leaves:
            if leaf.dim() == 0 or leaf.shape[0] != rows:
                where = "func must return" if self.selection.func is not None else "the model must return"
                raise YuzuError(
                    f"{where} one row for each sequence on the first axis, got shape {tuple(leaf.shape)} for {rows} "
                    "sequences"
                )

    def packed(self, values: Sequence[Any]) -> Any:
        """Put values for the scored tensors into the model's own container (after ``func``); the rest stays."""
        rest = iter(values)
        count = len(values) + len(self._others)
        leaves = [self._others[i] if i in self._others else next(rest) for i in range(count)]
        return pytree.tree_unflatten(leaves, self._spec)


def check_real(tensors: Sequence[torch.Tensor]) -> None:
    """Refuse complex tensors, since a score is a difference of real numbers."""
    for tensor in tensors:
        if tensor.is_complex():
            raise YuzuError(
                f"the model's outputs (after func, if given) must be real to be scored, got {tensor.dtype}; make them "
                "real with func, such as func=lambda y: y.abs() or y.real"
            )


class Results:
    """Memory for the results of all sequences in all states: ``(n, states, *shape, O...)`` for each scored tensor, on
    the CPU. It is allocated when their shapes are known.

    Parameters
    ----------
    request: Request
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.dtype = result_dtype(request.X.dtype)
        self.tensors: list[torch.Tensor] = []

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the results of one sequence: ``(C, L')`` or ``(R,)``."""
        return self.request.mutations.result_shape

    def of_state(self, state: int, shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
        """The results of one state, ``(n, *shape, O...)``; ``shapes`` lists the outputs' ``O...``."""
        if not self.tensors:
            lead = len(self.request.X), len(self.request.states), *self.shape
            self.tensors = [torch.zeros(*lead, *s, dtype=self.dtype, device="cpu") for s in shapes]
            allow(sum(tensor.nbytes for tensor in self.tensors))
        return [tensor[:, state] for tensor in self.tensors]

    def scores(self) -> list[Scores]:
        """Make a `Scores` for each state, which fills its results."""
        return [Scores(self, state) for state in range(len(self.request.states))]

    def to_user(self, outputs: Outputs, stacked: bool) -> Any:
        """All results in the model's own container; unless ``stacked``, those of the only state."""
        tensors = self.tensors if stacked else [tensor[:, 0] for tensor in self.tensors]
        values = [to_user(tensor, self.request.as_numpy) for tensor in tensors]
        return values[0] if self.request.output == "l2" else outputs.packed(values)


class Scores:
    """Fills the results of one state chunk by chunk."""

    def __init__(self, results: Results, state: int = 0) -> None:
        self.output, self.shape, self.dtype = results.request.output, results.shape, results.dtype
        self._whole, self._state = results, state
        self._results: list[torch.Tensor] = []
        self._batch: list[torch.Tensor] = []
        self._begin = 0
        self._size = 0
        self._reference: list[torch.Tensor] = []
        self._doubtful: torch.Tensor | None = None

    def begin(self, first: int, reference: list[torch.Tensor]) -> None:
        """Start a batch of sequences with their reference outputs (after ``func`` and ``target``)."""
        self._reference, self._begin, self._size = reference, first, reference[0].shape[0]
        self._doubtful = None
        device = reference[0].device
        shapes: list[tuple[int, ...]] = [()] if self.output == "l2" else [tuple(r.shape[1:]) for r in reference]
        results = self._results = self._whole.of_state(self._state, shapes)
        if device.type == "cpu":
            self._batch = [r[first : first + self._size] for r in results]
        else:
            self._batch = [torch.zeros(self._size, *r.shape[1:], dtype=self.dtype, device=device) for r in results]
        if self.output == "prediction":
            for result, r in zip(self._batch, reference, strict=True):
                result += r.to(self.dtype).reshape(self._size, *[1] * len(self.shape), *r.shape[1:])

    def write(
        self,
        sequence: np.ndarray,
        slot: np.ndarray,
        written: torch.Tensor | None,
        values: list[torch.Tensor | None],
    ) -> None:
        """Write the differences ``(S, A, O...)`` of a chunk, or the mutants' values for ``"prediction"``; None for an
        output that does not change.

        ``"l2"`` takes the norm over all axes after the first two, so differences on windows are enough.
        """
        device = self._reference[0].device
        rows, place = on_device(sequence, device), on_device(slot, device)
        index: tuple[Any, ...]
        if written is None:
            index = (rows, place)
        else:
            index = (rows[:, None].expand_as(written), written, place[:, None].expand_as(written))
        if self.output == "l2":
            total = self._norm(values)
            if total is not None:
                self._batch[0][index] = total if written is not None else total[:, 0]
            return
        for result, value in zip(self._batch, values, strict=True):
            if value is not None:
                result[index] = (value if written is not None else value[:, 0]).to(self.dtype)

    def doubt(self, sequence: np.ndarray, slot: np.ndarray, doubtful: torch.Tensor) -> None:
        """Note ``(S, A)`` mutants of a chunk as better run naively."""
        device = self._reference[0].device
        if self._doubtful is None:
            self._doubtful = torch.zeros(self._size, self.shape[-1], dtype=torch.bool, device=device)
        index = on_device(sequence, device), on_device(slot, device)
        self._doubtful[index] |= doubtful.any(1)

    def to_run_naively(self) -> np.ndarray | None:
        """Find the places of the batch with scores that are `not_finite` or in doubt: a mask ``(B, L')`` or ``(B, R)``;
        None if there are none.
        """
        found = self.not_finite()
        if self._doubtful is None or not bool(self._doubtful.any()):
            return found
        doubtful = self._doubtful.cpu().numpy()
        return doubtful if found is None else found | doubtful

    def not_finite(self) -> np.ndarray | None:
        """Find the places of the batch with scores that are not finite although the reference is: a mask ``(B, L')`` or
        ``(B, R)``; None if there are none.
        """
        place = len(self.shape)  # the axis of places
        found = None
        for i, result in enumerate(self._batch):
            if bool(torch.isfinite(result.sum())):  # one pass that allocates nothing large
                continue
            if self.output == "l2":
                known = torch.stack([torch.isfinite(r).reshape(self._size, -1).all(1) for r in self._reference]).all(0)
            else:
                known = torch.isfinite(self._reference[i])
            known = known.reshape(self._size, *[1] * place, *known.shape[1:])
            wrong = (~torch.isfinite(result) & known).movedim(place, 1)
            wrong = wrong.reshape(*wrong.shape[:2], -1).any(2)
            found = wrong if found is None else found | wrong
        return found.cpu().numpy() if found is not None and bool(found.any()) else None

    def _norm(self, differences: list[torch.Tensor | None]) -> torch.Tensor | None:
        present = [d for d in differences if d is not None]
        if not present:
            return None
        # norms rather than sums of squares: differences may be as small as 1e-30
        norms = [
            torch.linalg.vector_norm(d.to(self.dtype).flatten(2), dim=2) if d.dim() > 2 else d.to(self.dtype).abs()
            for d in present
        ]
        return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms), dim=0)

    def end(self) -> None:
        """Finish a batch of sequences."""
        if self._batch and self._batch[0].device.type != "cpu":
            for result, batch in zip(self._results, self._batch, strict=True):
                result[self._begin : self._begin + self._size] = batch.cpu()
        self._batch = []


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of results: float64 for a float64 model, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def difference(mutant: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """``mutant - reference``, in float32 if they are booleans or integers."""
    if not reference.is_floating_point():
        mutant, reference = mutant.float(), reference.float()
    return mutant - reference


def scored(mutant: torch.Tensor, reference: torch.Tensor, output: str) -> torch.Tensor:
    """The tensor that `Scores.write` takes for an ``output``. For predictions it is the mutant's own value, since the
    difference from an infinite reference is NaN.
    """
    return mutant if output == "prediction" else difference(mutant, reference)
