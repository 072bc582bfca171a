"""The result of `precompute`, and its use with a model."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from yuzu._engine.capture.branches import Branches
from yuzu._engine.capture.errors import CaptureError
from yuzu._engine.capture.model_copy import model_dtype
from yuzu._engine.capture.structure import structure_key
from yuzu._engine.checks import argument_kinds, check_device, check_path, describe_inputs, looks_transposed
from yuzu._engine.graph import Graph
from yuzu._engine.kept import Kept
from yuzu._engine.plan.plan import Plan, make_plan
from yuzu._engine.request import Args
from yuzu._engine.rewrite.all import capture
from yuzu._engine.rewrite.norms_apart import norms_apart
from yuzu._engine.settings import Settings
from yuzu._engine.store import files as precomputation_files
from yuzu._engine.store import summary
from yuzu._engine.store.decisions import Decisions, Layer
from yuzu._engine.store.identity import branch_words, structure_fingerprint
from yuzu._engine.store.in_use import InUse
from yuzu._engine.store.validation import check_nodes, damaged
from yuzu._engine.ways.compressed_sensing import Sensing
from yuzu.errors import PrecomputationError, YuzuError, warn_user

MOST_BRANCHES = 8  # each holds tensors that are derived from the model's weights


class OtherValues(PrecomputationError):
    """The model decides by values that are others here, and so computes in another way."""


class _Known(NamedTuple):
    """A use with a model whose structure was so when it was made."""

    structure: str
    used: InUse


class Precomputation:
    """The result of `precompute`: how to run each layer, and how many mutants to carry at once. It holds nothing of
    the weights.

    ``print`` it, or call `summary`, for what it decided and why; `save` and `load` it.
    """

    def __init__(self, settings: Settings, decisions: Decisions, arrays: dict[str, torch.Tensor] | None = None) -> None:
        self.settings = settings
        self.arrays = arrays or {}
        self.decisions = decisions
        # by the model's id and the device, as long as the model lives
        self._used: Kept[tuple[int, torch.device], tuple[_Known, ...]] = Kept()
        self._others: list[Precomputation] = []  # for other values that the model decides by
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """The state that `save` writes, too: a copy, or another process, binds it to a model anew."""
        return {"settings": self.settings, "decisions": self.decisions, "arrays": self._arrays()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def seq_len(self) -> int:
        """Length of the sequences it is for."""
        return self.settings.seq_len

    @property
    def n_choices(self) -> int:
        """Number of characters it is for."""
        return self.settings.n_choices

    @property
    def layers(self) -> tuple[Layer, ...]:
        """How each operation is run, in order: the rows of `summary`, with named fields.

        Examples
        --------
        >>> import torch, yuzu
        >>> model = torch.nn.Sequential(torch.nn.Conv1d(4, 8, 5), torch.nn.ReLU())
        >>> made = yuzu.precompute(model, 50, device="cpu")
        >>> [(layer.operation, layer.window) for layer in made.layers]
        [('conv1d (kernel 5)', '1 -> 5'), ('relu', '5 -> 5')]
        """
        return self.decisions.layers

    def save(self, path: str | Path) -> None:
        """Write it to a file: safetensors (the Gaussian way's matrices, if it is used) with a JSON header,
        without code.
        """
        precomputation_files.write(check_path(path), self.settings, self.decisions, self._arrays())

    def _arrays(self) -> dict[str, torch.Tensor]:
        """The Gaussian way's matrices: those that a plan has drawn, or that came from a file."""
        plans = [one.used.plan for known in self._used.values() for one in known]
        drawn = [plan.sensing for plan in plans if plan is not None and plan.sensing is not None]
        return drawn[0].arrays() if drawn else self.arrays

    @classmethod
    def load(cls, path: str | Path, device: Any = None) -> Precomputation:
        """Read a file that `save` wrote. Nothing in it is executed.

        Parameters
        ----------
        path: str or Path
        device: str, torch.device or None
            Where it will be used. None keeps the kind of device it was made on, or the CPU where that is
            missing.

        Raises
        ------
        PrecomputationError
            If the file is truncated, of another format version, or not a precomputation.
        """
        settings, decisions, arrays = precomputation_files.read(check_path(path))
        try:
            kind = check_device(settings.device if device is None else device).type
        except YuzuError:
            if device is not None:
                raise
            kind = "cpu"
        return cls(dataclasses.replace(settings, device=kind), decisions, arrays)

    def summary(self) -> str:
        """A table with a row for each layer: operation, handler, window before and after, way, share of the
        time, and why naive.
        """
        return summary.table(self.settings, self.decisions)

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        s = self.settings
        shown = ("seq_len", "n_choices", "conv", "precision", "device")
        return f"Precomputation({', '.join(f'{name}={getattr(s, name)!r}' for name in shown)})"

    def bind(self, model: torch.nn.Module, seq_len: int, n_choices: int, args: Args, device: torch.device) -> InUse:
        """This precomputation in use with a model, after checking that it is for it.

        Raises
        ------
        PrecomputationError
            Saying what does not fit; `OtherValues` where it is only the values that the model decides by.
        """
        s = self.settings
        got = f"got X_0 of shape (n, {n_choices}, {seq_len})"
        hint = f"; {looks_transposed('X_0')}" if seq_len == s.n_choices != n_choices else ""
        self._refuse(
            seq_len != s.seq_len,
            f"sequences of length {s.seq_len}, (n, {s.n_choices}, {s.seq_len}), {got}",
            "precompute for this length" + hint,
        )
        self._refuse(
            n_choices != s.n_choices,
            f"an alphabet of {s.n_choices} characters, (n, {s.n_choices}, {s.seq_len}), {got}",
            "precompute for this alphabet" + hint,
        )
        dtype = str(model_dtype(model))
        self._refuse(
            dtype != s.dtype,
            f"a model of dtype {s.dtype}, this one is {dtype}",
            "precompute for this model, or convert it",
        )
        kinds = argument_kinds(args)
        self._refuse(
            kinds != s.args,
            f"{describe_inputs(s.args)} besides the sequence, got {describe_inputs(kinds)}",
            "pass args of the same shapes and dtypes",
        )
        key = structure_key(model)
        place = id(model), device
        known = [one for made in (self, *self._others) for one in made._used.get(place) or ()]
        here = [one.used for one in known if one.structure == key]
        for used in here:
            if used.fits(args):
                return used
        if sum(used.branches.by_args for used in here) >= MOST_BRANCHES:
            warn_user(
                f"{type(model).__name__} branches on values in args in more than {MOST_BRANCHES} ways: rows with "
                "further values run naively, mutant by mutant"
            )
            return InUse(model, None, self.settings, self.decisions, device)
        unfit = None
        for made in (self, *self._others):
            try:
                used = made._bind(model, args, device)
            except OtherValues as error:
                unfit = unfit or error
                continue
            made.keep(model, key, used)
            return used
        assert unfit is not None
        raise unfit

    def add(self, other: Precomputation) -> None:
        """Keep another for the same model, which branches otherwise in it; as many as `MOST_BRANCHES`."""
        with self._lock:
            self._others = [*self._others, other][-MOST_BRANCHES:]

    def keep(self, model: torch.nn.Module, key: str, used: InUse) -> None:
        """Remember a use for the next call, as long as the model lives: the last one on each device, and beside it
        those with other branches that args choose.
        """
        place = id(model), used.device
        with self._lock:
            known = self._used.get(place) or ()
            beside = [one for one in known if one.structure == key and one.used.branches.by_args]
            stay = beside if used.branches.by_args else []
            self._used.put(place, (*stay, _Known(key, used)), owner=model)

    def _refuse(self, wrong: bool, made_for: str, remedy: str) -> None:
        if wrong:
            raise PrecomputationError(f"precomputation was made for {made_for}; {remedy}")

    def _bind(self, model: torch.nn.Module, args: Args, device: torch.device) -> InUse:
        s, d = self.settings, self.decisions
        graph: Graph | None = None
        try:
            captured = capture(model, (s.n_choices, s.seq_len), args, model_dtype(model))
            graph, branches = captured, captured.branches
        except CaptureError as error:
            branches = error.branches
        other, remedy = "a model of another architecture", "call precompute for this model"
        if graph is not None and branches and d.fingerprint == structure_fingerprint(model):
            graph, branches = (
                None,
                Branches(),
            )  # it could not be captured with the values that it decided by at that time
        words = branch_words(model, branches, graph)
        differs = [(a, b) for a, b in zip(d.branches[1:], words[1:], strict=False) if a != b]
        if d.branches and words and differs and differs[0][0][0] == differs[0][1][0]:
            self._refuse(d.branches[0][0] != words[0][0], other, remedy)
            if d.branches[0][1] != words[0][1]:  # else it is run in the same way with other weights or numbers
                raise OtherValues(
                    "precomputation was made for other values of what the model's forward decides by (in args, or in "
                    "its buffers); call precompute with these"
                )
        else:
            fingerprint = graph.fingerprint() if graph is not None else structure_fingerprint(model)
            self._refuse(fingerprint != d.fingerprint, other, remedy)
        plain = None
        if graph is not None and d.statistics is not None:
            apart, same = norms_apart(graph, d.statistics.norms)
            naive = {i: d.naive[there] for i, there in same.items() if there in d.naive}
            plain, graph = make_plan(graph, d.precision, naive), apart
        check_nodes(graph, s, d, self.arrays)
        plan = None
        if graph is not None and d.naive_model is None:
            sensing = None if d.probing is None else Sensing(d.probing.alpha, s.random_state, self.arrays)
            plan = dataclasses.replace(
                make_plan(graph, d.precision, d.naive, d.statistics is not None), sensing=sensing, plain=plain
            )
            _warn_of_missing_handlers(plan, d.layers)
            plan = with_saved_ways(plan, d.ways)
        used = InUse(model, plan, s, d, device, branches=branches if graph is not None else None)
        if plan is not None and (least := used.least_memory()) > s.max_memory:
            damaged(f"settings['max_memory'] is {s.max_memory}, and the least that works is {least}")
        return used


def _warn_of_missing_handlers(plan: Plan, layers: tuple[Layer, ...]) -> None:
    """Warn of operations that had handlers when the precomputation was made, and have none now."""
    handled = {layer.node for layer in layers if not layer.why_naive}
    if missing := [plan.graph.nodes[i].label for i in plan.reasons if i in handled]:
        warn_user(
            f"These layers had handlers when the precomputation was made, and run naively here: {', '.join(missing)}. "
            "Register the handlers first (yuzu.handles)"
        )


def with_saved_ways(plan: Plan, ways: Mapping[int, str]) -> Plan:
    """The plan with saved ways. A way that its rule does not know, perhaps a user's own, is skipped:
    all of a rule's ways are exact.
    """
    passed, known = dict[str, None](), dict[int, str]()
    length = next(
        layout.length for node, layout in zip(plan.graph.nodes, plan.layouts, strict=True) if node.kind == "sequence"
    )
    places = plan.reached(length, 1)
    middle = plan.windows(places[(len(places) - 1) // 2, None], 1)  # where ways were chosen
    for index, way in ways.items():
        rule = plan.rules[index]
        if rule is None:
            continue
        if way not in rule.all_ways():
            passed[plan.graph.nodes[index].label] = None
            continue
        window = middle[rule.sources[0]]
        if not rule.fits(way, window.width if window is not None else 1):
            label = plan.graph.nodes[index].label
            damaged(f"decisions['ways'] has {way!r} for node {index} ({label}), to which that way does not apply")
        known[index] = way
    if passed:
        warn_user(
            f"The precomputation has ways for these layers that they do not have here, and they run by the first of "
            f"theirs, exact but perhaps slower: {', '.join(passed)}. Make it again with precompute and save"
        )
    return plan.with_ways(known)
