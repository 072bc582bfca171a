"""The law that every handler obeys, over the registry of operations.

Each case is a small module around an operation, behind a convolution (or nothing) so that windows of several widths come in. All cases of
one bench are captured as one model, run for edits at the left edge, in the middle, at the right edge, everywhere, in two sequences, on an
``N``, on a soft column and three positions wide, and every node's change is compared with running its operation on the mutants, minus
running it on the reference. Each case also says which family must have handled each operation, so that nothing is silently naive.
"""

import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

import yuzu  # noqa: F401  registers every handler
from tests.laws.random_models import Chunk, Fn, Laboratory, chunks, laboratory_sequences, settle, tensors_of
from yuzu._engine.reference import Reference

CHANNELS = 6  # after a case's first convolution; divisible by 2 and 3

# the family that handles each operation, where a case does not say otherwise; "elementwise" for what is not listed
USUAL = {
    **dict.fromkeys(["conv1d", "conv2d", "conv_transpose1d"], "convolution"),
    **dict.fromkeys(["max_pool1d", "max_pool2d", "max_pool1d_with_indices", "max_pool2d_with_indices", "avg_pool1d", "avg_pool2d"], "pool"),
    **dict.fromkeys(["linear", "matmul", "mm", "addmm", "einsum"], "dense"),
    **dict.fromkeys(["add", "sub", "rsub", "cat", "stack", "concat"], "merge"),
    **dict.fromkeys(
        ["permute", "transpose", "unsqueeze", "squeeze", "view", "reshape", "flatten", "unflatten", "slice", "select", "pad",
         "constant_pad_nd", "unfold", "im2col", "gather", "yuzu.index_of_rows", "flip", "expand", "_unsafe_view", "roll", "upsample_nearest1d", "index", "index_select", "repeat", "tile", "repeat_interleave"], "view"
    ),
    **dict.fromkeys(["mul", "add"], "elementwise|merge"),  # a product of two mutated values is a merge, a sum of different dtypes is not
    **dict.fromkeys(["to", "_to_copy", "type_as"], "view|elementwise|whole values"),
    **dict.fromkeys(["sum", "mean", "amax", "amin", "max", "min", "yuzu.sum_of_slice", "yuzu.mean_of_slice"], "reduce"),
    **dict.fromkeys(["adaptive_avg_pool1d", "adaptive_max_pool1d"], "pool"),
    **dict.fromkeys(["group_norm", "instance_norm", "scaled_dot_product_attention", "baddbmm"], "whole values"),
}  # fmt: skip


@dataclass
class Case:
    """An operation to put to the law.

    ``build`` makes its module; ``trunk`` is the kernel of the convolution before it (0: it reads the letters themselves); ``families`` names
    the family for operations where it is not the usual one, ``"naive"`` among them, and ``"a|b"`` for either. ``only_double``: its graph
    has a dtype in it, or ties, and is not run in float32.
    """

    name: str
    build: Callable[[], nn.Module]
    trunk: int = 3
    families: dict[str, str] = field(default_factory=dict)
    only_double: bool = False


@dataclass
class Bench:
    """Cases that are captured together: length of the sequence, and which of the `extras` they read."""

    length: int = 13
    extras: tuple[str, ...] = ()
    cases: list[Case] = field(default_factory=list)

BENCHES: dict[str, Bench] = {}


def bench(name: str, length: int = 13, extras: tuple[str, ...] = ()) -> Callable[..., None]:
    """Open a bench; what is returned puts a case on it."""
    made = BENCHES[name] = Bench(length, extras)

    def case(label: str, build: Callable[[], Any], trunk: int = 3, only_double: bool = False, **families: str) -> None:
        made.cases.append(Case(label, build, trunk, families, only_double))

    return case


def fn(function: Callable[..., Any], **parts: Any) -> Callable[[], nn.Module]:
    """A builder of a module from a function; ``parts`` are builders of its submodules and tensors."""
    return lambda: Fn(function, **{name: part() for name, part in parts.items()})


def extras_for(names: tuple[str, ...], length: int) -> tuple[torch.Tensor, ...]:
    """Other inputs of two rows, in the shapes that operands come in."""
    made = torch.Generator().manual_seed(5)
    shapes = {"channel": (CHANNELS, 1), "whole": (CHANNELS, length), "position": (1, length), "flat": (5,), "number": ()}
    places = {"place": torch.tensor([5, 11]), "places": torch.tensor([[0, 12, 5], [7, 7, 3]]), "span": torch.tensor([[4, 0, 12, 6, 5, 7], [9, 8, 12, 1, 0, 9]])}
    return tuple(places[n] if n in places else torch.rand(2, *shapes[n], dtype=torch.float64, generator=made) + 0.5 for n in names)


class Branch(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        k = case.trunk
        self.trunk = nn.Conv1d(4, CHANNELS, k, padding=k // 2) if k else nn.Identity()
        self.operation = case.build()

    def forward(self, x: torch.Tensor, *extras: torch.Tensor) -> Any:
        return self.operation(self.trunk(x), *extras)


class Branches(nn.Module):
    def __init__(self, cases: list[Case]) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        for case in cases:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(zlib.crc32(case.name.encode()))
                branch = Branch(case)
                settle(branch)
            self.branches.append(branch)

    def forward(self, x: torch.Tensor, *extras: torch.Tensor) -> Any:
        return [branch(x, *extras) for branch in self.branches]

FLOAT32_CHUNKS = ("both sequences", "three wide", "N", "soft")


@dataclass
class Findings:
    """The findings of a bench: for each case, the law's violations and what handled each operation; or the error."""

    laboratory: Laboratory
    owners: dict[int, int]  # node -> number of its case
    cases: list[Case]

    def of(self, problems: list[tuple[int, str]], label: str) -> list[str]:
        number = [c.name for c in self.cases].index(label)
        nodes = self.laboratory.graph.nodes
        return [f"{nodes[i].op or nodes[i].kind} ({i}): {text}" for i, text in problems if self.owners.get(i) == number]


def set_up(cases: list[Case], made: Bench, dtype: torch.dtype = torch.float64) -> Findings:
    model = Branches(cases).to(dtype)
    X = laboratory_sequences(4, made.length).to(dtype)
    extras = tuple(e.to(dtype) if e.is_floating_point() else e for e in extras_for(made.extras, made.length))
    laboratory = Laboratory(model, X, extras)
    outputs = [len(tensors_of(branch(X, *extras))) for branch in laboratory.model.branches]
    owners: dict[int, int] = {}
    number = [i for i, count in enumerate(outputs) for _ in range(count)]
    for leaf, owner in zip(laboratory.graph.outputs, number, strict=True):
        waiting = [leaf] if isinstance(leaf, int) else []
        while waiting:
            i = waiting.pop()
            if i not in owners and laboratory.graph.nodes[i].kind == "call":
                owners[i] = owner
                waiting.extend(laboratory.graph.nodes[i].inputs)
    return Findings(laboratory, owners, cases)


@functools.cache
def bench_findings(name: str) -> Findings:
    return set_up(BENCHES[name].cases, BENCHES[name], torch.float32 if name == "dtypes" else torch.float64)


@functools.cache
def bench_chunks(name: str) -> list[Chunk]:
    return chunks(laboratory_sequences(4, BENCHES[name].length))


@functools.cache
def bench_problems(name: str, dtype: torch.dtype, tolerance: float) -> list[tuple[int, str]] | Exception:
    made = bench_chunks(name)
    if dtype == torch.float32:
        made = [c for c in made if c.name in FLOAT32_CHUNKS]
    try:
        return list(bench_findings(name).laboratory.problems(made, dtype, tolerance))
    except Exception as error:  # one case of the bench raised; each is then run by itself
        return error


def violations(name: str, label: str, dtype: torch.dtype, tolerance: float) -> list[str]:
    problems = bench_problems(name, dtype, tolerance)
    if not isinstance(problems, Exception):
        return bench_findings(name).of(problems, label)
    case = next(c for c in BENCHES[name].cases if c.name == label)
    alone = set_up([case], BENCHES[name], torch.float32 if name == "dtypes" else torch.float64)
    return alone.of(list(alone.laboratory.problems(bench_chunks(name), dtype, tolerance)), label)


def fits(wanted: str, family: str, layout: str, given: set[str]) -> bool:
    """Tell whether a node is handled as wanted; windows must stay windows, except in reductions, dense and recurrent
    layers, and where "
    "it says so."""
    if wanted == "naive" or family == "naive":
        return wanted == family
    if wanted == "whole values" or given == {"rows"}:
        return layout == "rows"
    return wanted == family and (layout == "windows" or family in ("reduce", "dense", "recurrent") or "rows" in given)


def laws_of(build: Callable[[], None]) -> tuple[Callable[..., None], ...]:
    """The tests of the cases that a function puts on benches: the law in float64 and in float32, the family that handles
    each operation, and rules that say they read no reference.
    """
    before = set(BENCHES)
    build()
    names = [name for name in BENCHES if name not in before]
    cases = [(name, case) for name in names for case in BENCHES[name].cases]

    @pytest.mark.parametrize(("name", "label"), [(name, case.name) for name, case in cases])
    def test_the_law_in_float64(name: str, label: str) -> None:
        tolerance = 1e-5 if name == "dtypes" else 1e-10  # a model with float32 inside is not run in float64
        found = violations(name, label, torch.float64, tolerance)
        assert not found, "\n".join(found[:8])

    @pytest.mark.parametrize(("name", "label"), [(name, case.name) for name, case in cases if not case.only_double])
    def test_the_law_in_float32(name: str, label: str) -> None:
        found = violations(name, label, torch.float32, 2e-3)
        assert not found, "\n".join(found[:8])

    @pytest.mark.parametrize(("name", "label"), [(name, case.name) for name, case in cases])
    def test_the_family_that_handles_it(name: str, label: str) -> None:
        findings = bench_findings(name)
        number = [c.name for c in findings.cases].index(label)
        case, laboratory = findings.cases[number], findings.laboratory
        nodes, layouts = laboratory.graph.nodes, laboratory.plan.layouts
        wrong = []
        for i, family in laboratory.families().items():
            if findings.owners.get(i) == number:
                op = nodes[i].op.removeprefix("aten.").removeprefix("_operator.").removeprefix("operator.")
                wanted = case.families.get(op, USUAL.get(op, "elementwise"))
                given = {layouts[j].kind for j in nodes[i].inputs if nodes[j].mutated}
                if not any(fits(option, family, layouts[i].kind, given) for option in [*wanted.split("|"), case.families.get("any", "")]):
                    reason = laboratory.plan.reasons.get(i, layouts[i].kind)
                    wrong.append(f"{op} is handled as {family!r}, not {wanted!r} ({reason})")
        assert not wrong, "\n".join(wrong)

    @pytest.mark.parametrize("name", names)
    def test_what_does_not_read_the_reference(name: str) -> None:
        """The change is the same when every value that depends on the batch is another one."""
        laboratory = bench_findings(name).laboratory
        run, checked = laboratory.run(), 0
        nodes = laboratory.graph.nodes
        floating = [n.shape is not None and n.floating for n in nodes]
        run.keep_all = True
        with torch.no_grad():
            for item in bench_chunks(name):
                if item.name not in FLOAT32_CHUNKS:
                    continue
                windows = run.set_sites(item.sites)
                run.chunk(item.sites)
                changes, true = list(run._changes), run.reference
                scrambled = [torch.randn_like(v) if f and n.batched else v for n, f, v in zip(nodes, floating, true.values, strict=True)]
                run.reference = Reference(scrambled, true.batch)
                for node, rule, change in zip(nodes, run.plan.rules, changes, strict=True):
                    if rule is None or rule.reads_reference or change is None or not all(floating[i] for i in (node.index, *rule.sources)):
                        continue
                    again = rule.run(run, [changes[s] for s in rule.sources], windows[node.index])
                    assert torch.equal(again, change.tensor), f"{item.name}: {node.op} ({node.index})"
                    checked += 1
                run.reference = true
        assert checked, "no rule says so"

    return test_the_law_in_float64, test_the_law_in_float32, test_the_family_that_handles_it, test_what_does_not_read_the_reference
