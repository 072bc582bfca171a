"""What `precompute` found out, kept and put to use with a model."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import threading
import weakref
from pathlib import Path
from typing import Any, NoReturn

import torch

from yuzu._engine.capture.branches import Branches
from yuzu._engine.capture.errors import CaptureError
from yuzu._engine.capture.model_copy import model_dtype
from yuzu._engine.capture.structure import structure_key
from yuzu._engine.graph import Graph, Node
from yuzu._engine.plan.plan import Plan, make_plan
from yuzu._engine.plan.table import COLUMNS
from yuzu._engine.request import argument_kinds, check_device, check_path, describe_inputs, looks_transposed
from yuzu._engine.rewrite.all import capture
from yuzu._engine.run.bound import Bound
from yuzu._engine.store import files as precomputation_files
from yuzu._engine.store import summary
from yuzu._engine.store.files import is_number
from yuzu._engine.store.settings import NAIVE_BATCH, Settings
from yuzu._engine.ways.compressed_sensing import SEEDS_OF_A_STATE, Sensing
from yuzu.errors import PrecomputationError, YuzuError, warn_user

Args = tuple[torch.Tensor, ...]
MOST_BRANCHES = 8  # each holds what it derives from the model's weights


class OtherValues(PrecomputationError):
    """The model decides by values that are others here, and so computes in another way."""


class Precomputation:
    """What `precompute` found out: how to run each layer, and how many mutants to carry at once. Holds
    nothing of the weights.

    ``print`` it, or call `summary`, for what it decided and why; `save` and `load` it.
    """

    def __init__(
        self, settings: Settings, decisions: dict[str, Any], arrays: dict[str, torch.Tensor] | None = None
    ) -> None:
        self.settings = settings
        self.arrays = arrays or {}
        self.decisions = decisions
        self._bound: list[tuple[weakref.ref[torch.nn.Module], str, Bound]] = []
        self._others: list[Precomputation] = []  # for other values that the model decides by
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """What `save` writes: a copy, or another process, binds it to a model anew."""
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

    def save(self, path: str | Path) -> None:
        """Write it to a file: safetensors (the Gaussian way's matrices, if it is used) with a JSON header,
        without code.
        """
        precomputation_files.write(check_path(path), self.settings, self.decisions, self._arrays())

    def _arrays(self) -> dict[str, torch.Tensor]:
        """The Gaussian way's matrices: those that a plan has drawn, or that came from a file."""
        plans = [bound.plan for _, _, bound in list(self._bound)]
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

    def bind(self, model: torch.nn.Module, seq_len: int, n_choices: int, args: Args, device: torch.device) -> Bound:
        """This precomputation with a model, after checking that it is for it.

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
        here = [
            bound
            for made in (self, *self._others)
            for reference, known, bound in list(made._bound)
            if reference() is model and known == key and bound.device == device
        ]
        for bound in here:
            if bound.fits(args):
                return bound
        if sum(bound.branches.by_args for bound in here) >= MOST_BRANCHES:
            warn_user(
                f"{type(model).__name__} branches on values in args in more than {MOST_BRANCHES} ways: rows with "
                "further values run naively, mutant by mutant"
            )
            return Bound(model, None, self, device)
        unfit = None
        for made in (self, *self._others):
            try:
                bound = made._bind(model, args, device)
            except OtherValues as error:
                unfit = unfit or error
                continue
            made.keep(model, key, bound)
            return bound
        assert unfit is not None
        raise unfit

    def add(self, other: Precomputation) -> None:
        """Keep another for the same model, which branches otherwise in it; as many as `MOST_BRANCHES`."""
        with self._lock:
            self._others = [*self._others, other][-MOST_BRANCHES:]

    def keep(self, model: torch.nn.Module, key: str, bound: Bound) -> None:
        """Remember a bound model for the next call, as long as it lives; on each device as it was last, but for the
        ways that args lead it.
        """
        with self._lock:
            alive = [b for b in list(self._bound) if b[0]() is not None]
            same = [b for b in alive if b[0]() is model and b[2].device == bound.device]
            if bound.branches.by_args:
                same = [b for b in same if b[1] != key or not b[2].branches.by_args]
            self._bound[:] = [b for b in alive if b not in same]
            self._bound.append((weakref.ref(model, functools.partial(_forget, self._bound)), key, bound))

    def _refuse(self, wrong: bool, made_for: str, remedy: str) -> None:
        if wrong:
            raise PrecomputationError(f"precomputation was made for {made_for}; {remedy}")

    def _bind(self, model: torch.nn.Module, args: Args, device: torch.device) -> Bound:
        s, d = self.settings, self.decisions
        graph: Graph | None = None
        try:
            captured = capture(model, (s.n_choices, s.seq_len), args, model_dtype(model))
            graph, branches = captured, captured.branches
        except CaptureError as error:
            branches = error.branches
        other, remedy = "a model of another architecture", "call precompute for this model"
        if graph is not None and branches and d["fingerprint"] == structure_fingerprint(model):
            graph, branches = None, Branches()  # it could not be captured with the values that it decided by then
        words = branch_words(model, branches, graph)
        differs = [(a, b) for a, b in zip(d["branches"][1:], words[1:], strict=False) if a != b]
        if d["branches"] and words and differs and differs[0][0][0] == differs[0][1][0]:
            self._refuse(d["branches"][0][0] != words[0][0], other, remedy)
            if d["branches"][0][1] != words[0][1]:  # else it is run in the same way with other weights or numbers
                raise OtherValues(
                    "precomputation was made for other values of what the model's forward decides by (in args, or in "
                    "its buffers); call precompute with these"
                )
        else:
            fingerprint = graph.fingerprint() if graph is not None else structure_fingerprint(model)
            self._refuse(fingerprint != d["fingerprint"], other, remedy)
        _check_nodes(graph, s, d, self.arrays)
        plan = None
        if graph is not None and d["naive_model"] is None:
            plan = make_plan(graph, d["precision"], {int(i): r for i, r in d["naive"].items()})
            _warn_of_missing_handlers(plan, d["layers"])
            plan = with_saved_ways(plan, {int(i): w for i, w in d["ways"].items()})
            if d["alpha"] is not None:
                plan = dataclasses.replace(plan, sensing=Sensing(d["alpha"], s.random_state, self.arrays))
        bound = Bound(model, plan, self, device, branches=branches if graph is not None else None)
        if plan is not None and (least := bound.least_memory()) > s.max_memory:
            _damaged(f"settings['max_memory'] is {s.max_memory}, and the least that works is {least}")
        return bound


def _check_nodes(
    graph: Graph | None, settings: Settings, decisions: dict[str, Any], arrays: dict[str, torch.Tensor]
) -> None:
    """Refuse decisions that are not about this graph, or not about what was asked for: of a damaged file."""
    nodes = graph.nodes if graph is not None else []

    def node_of(field: str, number: str, called: bool = True, mutated: bool = True) -> Node:
        if int(number) >= len(nodes):
            _damaged(f"{field} has node {number[:20]}, where the model's graph has {len(nodes)} nodes")
        node = nodes[int(number)]
        if (called and node.kind != "call") or (mutated and not node.mutated):
            _damaged(f"{field} has node {number}, which is no operation that a mutation changes")
        return node

    for number in decisions["naive"]:
        node_of("decisions['naive']", number, mutated=False)
    for number in decisions["ways"]:  # also of nodes that have a rule where they were made, and none here
        node_of("decisions['ways']", number, called=False, mutated=False)
    for number in decisions["probes"]:
        node_of("decisions['probes']", number)
    seen = set()
    for row in decisions["layers"]:
        node = node_of("decisions['layers']", row[-1])
        operation = node.op.removeprefix("aten.")
        if row[0] != node.layer or row[1].split(" (")[0] != operation or node.index in seen:
            _damaged(
                f"decisions['layers'] has {row[:2]!r} for node {row[-1]}, which is {[node.layer, operation]!r}"
                + (" and has a row already" if node.index in seen else "")
            )
        seen.add(node.index)
    if decisions["precision"] not in (settings.precision, "highest"):
        asked = settings.precision
        _damaged(f"decisions['precision'] is {decisions['precision']!r}, where settings['precision'] is {asked!r}")
    if decisions["naive_batch"] > max(NAIVE_BATCH, settings.seq_len * settings.n_choices):
        _damaged(f"decisions['naive_batch'] is {decisions['naive_batch']}, which is more than a sequence has mutants")
    probing = "gaussian" in decisions["ways"].values()
    if (probing or decisions["alpha"] is not None) and settings.conv != "gaussian":
        _damaged(f"decisions have Gaussian probes, where settings['conv'] is {settings.conv!r}")
    if probing and decisions["alpha"] is None:
        _damaged("decisions['ways'] has Gaussian probes, and decisions['alpha'] is None")
    if decisions["alpha"] is not None and settings.random_state * SEEDS_OF_A_STATE + len(nodes) >= 2**64:
        _damaged(f"settings['random_state'] is {settings.random_state}, which is too large for Gaussian probes")
    if arrays and decisions["alpha"] is None:
        _damaged("it holds matrices of Gaussian probes, and decisions['alpha'] is None")
    for name, array in arrays.items():
        part, *place = name.split(".")
        if part not in ("encode", "decode") or len(place) != 4 or not all(map(is_number, place[:2])):
            _damaged(f"it holds {name[:80]!r}, which is no matrix of Gaussian probes")
        node_of(f"the matrix {name[:80]!r}", place[0])
        other = {"encode": "decode", "decode": "encode"}[part]
        if ".".join([other, *place]) not in arrays:
            _damaged(f"it holds the matrix {name[:80]!r} without the one to {other}")
        if array.dim() != 3 or f"torch.{place[3]}" != str(array.dtype) or str(array.dtype) != settings.dtype:
            _damaged(
                f"the matrix {name[:80]!r} has shape {tuple(array.shape)} and dtype {array.dtype}, want three axes and "
                f"{settings.dtype}"
            )


def _damaged(why: str) -> NoReturn:
    raise PrecomputationError(f"the precomputation is damaged: {why}; make it again with precompute and save")


def _warn_of_missing_handlers(plan: Plan, layers: list[list[str]]) -> None:
    """Where operations had handlers when the precomputation was made, and have none now."""
    handled = {int(row[-1]) for row in layers if not row[COLUMNS.index("why naive")]}
    if missing := [plan.graph.nodes[i].label for i in plan.reasons if i in handled]:
        warn_user(
            f"These layers had handlers when the precomputation was made, and run naively here: {', '.join(missing)}. "
            "Register the handlers first (yuzu.handles)"
        )


def _forget(bound: list[tuple[weakref.ref[torch.nn.Module], str, Bound]], dead: weakref.ref[torch.nn.Module]) -> None:
    """Without the lock, which whoever holds may be collecting garbage; no other thread splits a removal."""
    for one in [b for b in list(bound) if b[0] is dead]:
        bound.remove(one)


def branch_words(model: torch.nn.Module, branches: Branches, graph: Graph | None) -> list[list[str]]:
    """How a model is recognised that decides by values: its structure, and a digest of the graph without names of
    weights; then of each decision how it is made and what it was. Nothing for other models.
    """
    if not branches:
        return []
    computes = "" if graph is None else graph.fingerprint(names=False)
    return [[structure_fingerprint(model), computes], *branches.words()]


def structure_fingerprint(model: torch.nn.Module) -> str:
    """For a model that cannot be captured: its modules and the shapes of its weights."""
    rows = [(n, type(m).__qualname__, m.extra_repr()) for n, m in model.named_modules()]
    shapes = [(n, tuple(t.shape)) for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, torch.Tensor)]
    return hashlib.sha256(json.dumps([rows, shapes]).encode()).hexdigest()


def with_saved_ways(plan: Plan, ways: dict[int, str]) -> Plan:
    """The plan with saved ways. A way that its rule does not know, which may be of a
    user's own, is passed over: all of a rule's ways are exact.
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
            _damaged(f"decisions['ways'] has {way!r} for node {index} ({label}), to which that way does not apply")
        known[index] = way
    if passed:
        warn_user(
            f"The precomputation has ways for these layers that they do not have here, and they run by the first of "
            f"theirs, exact but perhaps slower: {', '.join(passed)}. Make it again with precompute and save"
        )
    return plan.with_ways(known)
