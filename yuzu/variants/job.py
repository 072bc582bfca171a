"""A job of scoring variants: the models put to use for it, blocks of sequences, and the scores of the whole table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from yuzu._engine.capture.model_copy import evaluation_copy, model_dtype
from yuzu._engine.checks import check_args, check_model
from yuzu._engine.edits import Mutations
from yuzu._engine.request import Args, Request
from yuzu._engine.run.naive import try_model
from yuzu._engine.run.scores import Outputs
from yuzu._engine.store.making import random_sequence
from yuzu._engine.store.obtain import inputs_of, lend, obtain
from yuzu._engine.store.trials import Asked, Outcome, run_trials
from yuzu.errors import YuzuError
from yuzu.variants.places import Group, Place
from yuzu.variants.sequences import Sequences, Trial
from yuzu.variants.wanted import Columns, Predictions, Wanted

SEQUENCES_AT_ONCE, VARIANTS_AT_ONCE = 1024, 8192  # whose one-hot sequences, and predictions, are held at once


@dataclass(frozen=True, eq=False)
class Job:
    """A call that was checked; see `score`."""

    wanted: Wanted
    asked: Asked
    length: int
    alphabet: str
    indels: str
    share: int
    both_strands: bool


def put_to_use(job: Job, model: Any, precomputation: Any, args: Any, n: int) -> list[Used]:
    """Check models, their other inputs and precomputations, and put them to use. Models run once, on one sequence."""
    models = list(model) if isinstance(model, list | tuple | torch.nn.ModuleList) else [model]
    if not models:
        raise YuzuError("model must be a torch.nn.Module or a list of them, got an empty list")
    given = list(precomputation) if isinstance(precomputation, list | tuple) else [precomputation] * len(models)
    if len(given) != len(models):
        raise YuzuError(f"precomputation must be one, or one for each of {len(models)} models, got {len(given)}")
    used = []
    for one, made in zip(models, given, strict=True):
        inputs = check_args(args, n, model_dtype(check_model(one)), inputs_of(made)) if n else ()
        used.append(Used(job, one, made, inputs, runs=n > 0 or args is None))
    for one in used if n else []:
        one.prepare(None if len(used) == 1 else used[0])
    return used


class Used:
    """A model put to use for a job.

    Attributes
    ----------
    columns: dict of str to tuple
        The shape of each score of a trial: ``()``, or ``(K,)``. Empty if the model was not run.
    """

    def __init__(self, job: Job, model: torch.nn.Module, precomputation: Any, inputs: Args, runs: bool = True) -> None:
        self.job, self.model, self.precomputation, self.inputs = job, model, precomputation, inputs
        self.dtype = model_dtype(model)
        self._first = random_sequence(job.length, len(job.alphabet), self.dtype, 0), tuple(a[:1] for a in inputs)
        one: tuple[int, ...] = ()
        self.columns = self._tried() if runs else dict.fromkeys(job.wanted.columns(), one)

    @torch.no_grad()
    def _tried(self) -> dict[str, tuple[int, ...]]:
        """The shapes of scores, of the model's outputs for one sequence."""
        asked, wanted, device = self.job.asked, self.job.wanted, self.job.asked.device
        output = try_model(evaluation_copy(self.model, device), *self._first, device)
        leaves: list[torch.Tensor] = []
        if asked.selected:
            outputs = Outputs(wanted.selection)
            leaves = outputs.leaves(output)
            outputs.check(leaves, 1)
            if self.job.both_strands and any(leaf.dim() > 2 for leaf in leaves):
                shapes = [("n", *leaf.shape[1:]) for leaf in leaves]
                raise YuzuError(
                    "reverse_complement averages outputs as they are, and cannot tell which of their axes are "
                    f"positions, got {shapes}; pick numbers, (n,) or (n, k), with func, or give counts and profile"
                )
        trial = Trial(Place(0, "", 0, "A", "C"), "left")
        predictions = Predictions(wanted, 1)
        predictions.take(Outcome(np.zeros(1, dtype=np.int64), leaves, [leaf * 0 for leaf in leaves], output, output))
        return {name: values.shape[1:] for name, values in predictions.scores([trial]).items()}

    def prepare(self, lender: Used | None) -> None:
        """Refuse a precomputation that was made for something else. Without one, models of an architecture share that
        of the first, the ``lender``.
        """
        X, args = self._first
        edits = Mutations(X.shape[1], X.shape[2], np.zeros(1, dtype=np.int64))
        request = Request(X, [args], edits, self.job.asked.device)
        if self.precomputation is not None or lender is self:
            obtain(self.model, self.precomputation, request, scored=False)
        elif lender is not None:
            lend(lender.model, self.model, request)

    def scores(self, sequences: Sequences) -> Columns:
        """The scores of each trial."""
        found = self._predictions(sequences)
        if self.job.both_strands:
            found = found.averaged(self._predictions(sequences.reverse_complement(self.job.alphabet)))
        return found.scores(sequences.trials)

    def _predictions(self, sequences: Sequences) -> Predictions:
        found = Predictions(self.job.wanted, len(sequences.trials))
        trials = sequences.of_model(self.dtype, self.inputs)
        run_trials(self.model, self.precomputation, trials, self.job.asked, found.take)
        return found


def blocks(groups: Iterable[Group]) -> Iterator[list[Group]]:
    """Groups of variants, some at a time."""
    some: list[Group] = []
    variants = 0
    for group in groups:
        some.append(group)
        variants += len(group.members)
        if len(some) >= SEQUENCES_AT_ONCE or variants >= VARIANTS_AT_ONCE:
            yield some
            some, variants = [], 0
    if some:
        yield some


class Found:
    """The scores of every row of a table, NaN where there are none.

    Parameters
    ----------
    rows: int
    shapes: list of dict of str to tuple
        The scores of each model, and the shape that each has in one row.
    """

    def __init__(self, rows: int, shapes: Sequence[dict[str, tuple[int, ...]]]) -> None:
        self._arrays: list[Columns] = [
            {name: np.full((rows, *shape), np.nan) for name, shape in of_model.items()} for of_model in shapes
        ]
        for i, of_model in enumerate(shapes[1:], 1):
            if of_model != shapes[0]:
                raise YuzuError(
                    f"model: model 0 gives scores of shapes {shapes[0]}, model {i} of {of_model}, want equal"
                )

    def write(self, found: Sequence[Columns], trials: Sequence[Trial]) -> None:
        """Write each model's scores of some trials; a variant with several gets their mean."""
        rows, place, counts = np.unique([t.place.row for t in trials], return_inverse=True, return_counts=True)
        for arrays, columns in zip(self._arrays, found, strict=True):
            for name, values in columns.items():
                total = np.zeros((len(rows), *values.shape[1:]))
                np.add.at(total, place.reshape(-1), values)
                arrays[name][rows] = total / counts.reshape(-1, *[1] * (values.ndim - 1))

    def scores(self) -> Columns:
        """The columns of the result, by name, with a number each: the models' means, and with several each model's."""
        found: Columns = {}
        for name in self._arrays[0]:
            of_models = np.stack([arrays[name] for arrays in self._arrays], axis=1)  # (rows, models, ...)
            several = of_models.ndim > 2
            flat = of_models if several else of_models[..., None]
            for k in range(flat.shape[2]):
                title = f"{name}_{k}" if several else name
                found[title] = flat[:, :, k].mean(axis=1) if flat.shape[1] > 1 else flat[:, 0, k]
                if flat.shape[1] > 1:
                    found.update({f"{title}_{i}": flat[:, i, k] for i in range(flat.shape[1])})
        return found
