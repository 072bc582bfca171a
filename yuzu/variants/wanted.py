"""The scores that a call asks for, by name or as functions, and what they need of the model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from yuzu._engine.capture.outputs import tensors_in
from yuzu._engine.request import Selection
from yuzu._engine.store.trials import Outcome
from yuzu.errors import YuzuError, shown
from yuzu.variants.formulas import jsd_of_trials, logfc, share_below
from yuzu.variants.sequences import Trial
from yuzu.variants.table import COLUMNS

ALONE = ("delta", "max_abs")  # of the selected outputs; not in products
FACTORS = ("logfc", "abs_logfc", "jsd", "active_allele_quantile")
QUANTILES = ("quantile_ref", "quantile_alt", "active_allele_quantile")
BETWEEN = "_x_"  # in the names of products, such as abs_logfc_x_jsd
_PLACES = ("pos", "start", "end", "summit")  # numbers of a frame of peaks that are no counts
_COLUMNS_OF_PEAKS = ("log_counts", "logcounts", "log_count", "ref_count")

_TAKEN = (*COLUMNS, *QUANTILES, "ref_count", "alt_count")

Columns = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Wanted:
    """Scores, and how they are read off the model's outputs.

    Attributes
    ----------
    names: sequence of str
        Known scores, in order, and those of ``functions``.
    functions: dict of str to callable
        A user's own scores, of both alleles' outputs.
    selection: Selection
    counts, profile: callable or None
    peaks: numpy.ndarray or None
        Sorted log counts.
    predictions: bool
    """

    names: Sequence[str]
    functions: dict[str, Callable[..., Any]]
    selection: Selection
    counts: Callable[[Any], Any] | None
    profile: Callable[[Any], Any] | None
    peaks: np.ndarray | None
    predictions: bool

    @classmethod
    def asked(
        cls, scores: Any, selection: Selection, counts: Any, profile: Any, peaks: Any, predictions: bool
    ) -> Wanted:
        """Check what a user asks for."""
        for name, given in (("counts", counts), ("profile", profile)):
            if given is not None and not callable(given):
                raise YuzuError(f"{name} must be a callable on the model's output, got {type(given).__name__}")
        given_scores = [scores] if isinstance(scores, str) or callable(scores) else scores
        if not isinstance(given_scores, list | tuple) or not given_scores:
            raise YuzuError(f"scores must be a list of names or functions, got {shown(scores)}")
        names: list[str] = []
        functions: dict[str, Callable[..., Any]] = {}
        for score in given_scores:
            if callable(score):
                functions[_name_of(score)] = score
            elif not isinstance(score, str) or not _is_known(score):
                known = ", ".join(map(repr, (*ALONE, *FACTORS)))
                raise YuzuError(
                    f"scores must be of {known}, products of the last four such as 'abs_logfc_x_jsd', or functions of "
                    f"both alleles' outputs, got {shown(score)}"
                )
            names.append(_name_of(score) if callable(score) else score)
        if len(set(names)) < len(names):
            raise YuzuError(f"scores must have different names, got {shown(names)}")
        if taken := [name for name in functions if name in _TAKEN]:
            raise YuzuError(f"scores: a function must not have the name of a column of the table, got {taken[0]!r}")
        made = cls(names, functions, selection, counts, profile, _log_counts(peaks), bool(predictions))
        made._check_needs()
        return made

    def _check_needs(self) -> None:
        factors = {factor: name for name in self.names for factor in name.split(BETWEEN) if name not in self.functions}
        for factor, name in factors.items():
            if factor in ("logfc", "abs_logfc") and self.counts is None:
                raise YuzuError(
                    f"counts must be given for {name!r}: a callable that picks the log counts, (n,) or (n, 1)"
                )
            if factor == "jsd" and self.profile is None:
                raise YuzuError(
                    f"profile must be given for {name!r}: a callable that picks the logits, (n, length) or "
                    "(n, strands, length)"
                )
            if factor == "active_allele_quantile" and self.peaks is None:
                raise YuzuError(f"peaks must be given for {name!r}: the log counts of peaks")
        if self.peaks is not None and self.counts is None:
            raise YuzuError("counts must be given with peaks: a callable that picks the log counts, (n,) or (n, 1)")

    @property
    def selected(self) -> bool:
        """True if scores are taken of the selected outputs."""
        return any(name in ALONE for name in self.names) or (self.predictions and self.counts is None)

    @property
    def whole(self) -> bool:
        """True if scores are taken of the model's whole outputs."""
        return bool(self.functions) or self.counts is not None or self.profile is not None

    def columns(self) -> list[str]:
        """The names of all columns that this gives, if each has one number."""
        predictions = ("ref_count", "alt_count") if self.counts is not None else ("ref_0", "alt_0")
        quantiles = QUANTILES if self.peaks is not None else ()
        return list(dict.fromkeys([*self.names, *quantiles, *(predictions if self.predictions else ())]))

    def of_both(self, output: Any) -> Any:
        """The output after ``func`` and ``target``, which users' functions get."""
        found = output if self.selection.func is None else self.selection.func(output)
        return self.selection.pick(tensors_in(found)[0], 1) if self.selection.target is not None else found


def _name_of(function: Any) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    return "score" if name == "<lambda>" else str(name)


def _is_known(name: str) -> bool:
    factors = name.split(BETWEEN)
    return name in ALONE or (all(factor in FACTORS for factor in factors) and len(set(factors)) == len(factors))


def _log_counts(peaks: Any) -> np.ndarray | None:
    """Sorted log counts of peaks, from an array or a frame."""
    if peaks is None:
        return None
    if hasattr(peaks, "columns"):
        numbers = [name for name in peaks.columns if getattr(peaks[name].dtype, "kind", "O") in "fiu"]
        numbers = [name for name in numbers if str(name).lower() not in _PLACES]
        named = [name for name in _COLUMNS_OF_PEAKS if name in numbers]
        chosen = named or (numbers if len(numbers) == 1 else [])
        if not chosen:
            raise YuzuError(
                f"peaks: got the columns {shown(list(map(str, peaks.columns)))}, want a column of log counts named "
                f"{_COLUMNS_OF_PEAKS[0]!r}"
            )
        peaks = peaks[chosen[0]].to_numpy()
    values = np.asarray(peaks.detach().cpu() if isinstance(peaks, torch.Tensor) else peaks)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "fiu" or not len(values):
        raise YuzuError(f"peaks: got {values.dtype} of shape {values.shape}, want log counts of shape (peaks,)")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        row = int((~np.isfinite(values)).argmax())
        raise YuzuError(f"peaks: got {values[row]} in row {row}, want finite log counts")
    return np.sort(values)


class Predictions:
    """All trials' outputs as far as scores need them, on one strand or averaged over both: on the CPU.

    Attributes
    ----------
    arrays: dict of str to torch.Tensor
        ``before`` and ``change`` ``(T, K)`` of the selected outputs; ``counts`` ``(T, 2)`` and ``profile``
        ``(T, 2, strands, length)`` of both alleles; and each function's scores ``(T, k)``.
    """

    def __init__(self, wanted: Wanted, trials: int) -> None:
        self.wanted, self.trials = wanted, trials
        self.arrays: dict[str, torch.Tensor] = {}

    def take(self, outcome: Outcome) -> None:
        """Keep some trials' outputs; see `run_trials`."""
        wanted, number = self.wanted, outcome.number
        if wanted.selected:
            for name, tensors in (("before", outcome.before), ("change", outcome.change)):
                self._write(name, number, torch.cat([t.reshape(len(number), -1).double() for t in tensors], dim=1))
        for name, pick in (("counts", _counts), ("profile", _profiles)):
            if (function := getattr(wanted, name)) is not None:
                sides = [pick(function(side), len(number)) for side in (outcome.reference, outcome.edited)]
                self._write(name, number, torch.stack(sides, dim=1))
        if wanted.functions:
            sides = [wanted.of_both(side) for side in (outcome.reference, outcome.edited)]
            for name, function in wanted.functions.items():
                self._write(name, number, _scores(name, function(*sides), len(number)))

    def _write(self, name: str, number: np.ndarray, values: torch.Tensor) -> None:
        if name not in self.arrays:
            kind = torch.float32 if name == "profile" and values.dtype == torch.float32 else torch.float64
            self.arrays[name] = torch.full((self.trials, *values.shape[1:]), torch.nan, dtype=kind, device="cpu")
        self.arrays[name][torch.from_numpy(number)] = values.detach().cpu().to(self.arrays[name].dtype)

    def averaged(self, other: Predictions) -> Predictions:
        """The average with the other strand's, whose profile is turned back, and its two strands changed over."""
        made = Predictions(self.wanted, self.trials)
        for name, mine in self.arrays.items():
            theirs = other.arrays[name]
            if name == "profile":
                theirs = theirs.flip(3)
                theirs = theirs.flip(2) if theirs.shape[2] == 2 else theirs
                mine, theirs = mine.double(), theirs.double()
            made.arrays[name] = (mine + theirs) / 2
        return made

    def scores(self, trials: Sequence[Trial]) -> Columns:
        """The scores of all trials, ``(T,)`` or ``(T, K)``, in the order of the frame's columns."""
        wanted, arrays = self.wanted, self.arrays
        parts: dict[str, torch.Tensor] = {}
        if "counts" in arrays:
            parts["logfc"] = logfc(*arrays["counts"].unbind(1))
            parts["abs_logfc"] = parts["logfc"].abs()
        if any("jsd" in name.split(BETWEEN) for name in wanted.names if name not in wanted.functions):
            before, after = arrays["profile"].double().unbind(1)
            parts["jsd"] = jsd_of_trials(before, after, trials)
        if wanted.peaks is not None:
            shares = torch.from_numpy(share_below(wanted.peaks, arrays["counts"].numpy()))
            parts["quantile_ref"], parts["quantile_alt"] = shares.unbind(1)
            parts["active_allele_quantile"] = shares.amax(1)
        if "change" in arrays:
            parts["delta"], parts["max_abs"] = arrays["change"], arrays["change"].abs().amax(1)
        found: dict[str, torch.Tensor] = {}
        for name in wanted.names:
            if name in wanted.functions:
                found[name] = arrays[name]
            elif name in ALONE:
                found[name] = parts[name]
            else:
                factors = [parts[factor] for factor in name.split(BETWEEN)]
                found[name] = torch.stack(factors).prod(0)
        for name in QUANTILES if wanted.peaks is not None else ():
            found.setdefault(name, parts[name])
        if wanted.predictions and wanted.counts is not None:
            found["ref_count"], found["alt_count"] = arrays["counts"].unbind(1)
        elif wanted.predictions:
            before = arrays["before"]
            found["ref"], found["alt"] = before, before + arrays["change"]
        # `ref` and `alt` are the alleles, so that predictions are numbered even if there is one
        alone = [name for name, v in found.items() if v.dim() == 2 and v.shape[1] == 1 and name not in ("ref", "alt")]
        found.update({name: found[name][:, 0] for name in alone})
        return {name: values.numpy() for name, values in found.items()}


def _counts(value: Any, n: int) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or tuple(value.shape) not in ((n,), (n, 1)):
        got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise YuzuError(f"counts must return log counts of shape (n,) or (n, 1), got {got} for n = {n}")
    return value.reshape(n).double()


def _profiles(value: Any, n: int) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.dim() not in (2, 3) or len(value) != n or 0 in value.shape:
        got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise YuzuError(
            f"profile must return logits of shape (n, length) or (n, strands, length), got {got} for n = {n}"
        )
    return value.reshape(n, -1, value.shape[-1])


def _scores(name: str, value: Any, n: int) -> torch.Tensor:
    found = value if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
    if found.dim() not in (1, 2) or len(found) != n:
        raise YuzuError(f"scores: {name} must return shape (n,) or (n, k), got {tuple(found.shape)} for n = {n}")
    return found.reshape(n, -1).double()
