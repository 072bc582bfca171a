"""Checks the law of handlers for one handler: see `check_law`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from yuzu._engine.capture.errors import CaptureError
from yuzu._engine.derived import Derived
from yuzu._engine.edits import Sites
from yuzu._engine.graph import Graph, Node, Weights, evaluate
from yuzu._engine.handlers.contract import _REGISTRY, Handler, registered
from yuzu._engine.plan.plan import Plan, make_plan
from yuzu._engine.rewrite.all import capture
from yuzu._engine.run.run import Run
from yuzu.errors import YuzuError

CPU = torch.device("cpu")
LENGTHS = (24, 13)  # an even and an odd length, so that strides leave a remainder
WIDTHS = (1, 3)  # positions of an edit
TRUNK = 3  # kernel of the convolution before the operation, which makes windows of several widths


class _Model(torch.nn.Module):
    """A convolution, and then the module or function to check."""

    def __init__(self, channels: int, module: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.trunk = torch.nn.Conv1d(4, channels, TRUNK, padding=TRUNK // 2)
        self.module = module

    def forward(self, x: torch.Tensor) -> Any:
        return self.module(self.trunk(x))


def check_law(
    handler: Handler,
    module_or_function: Callable[[torch.Tensor], Any],
    operation: str | None = None,
    *,
    channels: int | None = None,
    lengths: tuple[int, ...] = LENGTHS,
    tolerance: float = 1e-10,
) -> None:
    """Check that a handler obeys the law.

    The law: for an input that changes only on a window, the rule's change is the operation on the mutant minus the
    operation on the reference, on the window that the rule declares, and zero outside of it.

    ``module_or_function`` runs after a convolution in float64, for edits at both ends, in the middle and everywhere,
    one and three positions wide, in two sequences, one of them with an ``N``. Every operation that the handler is for
    is compared with running it on the mutants.

    Parameters
    ----------
    handler: callable
        From a `View` to a `Rule`, or to a sentence; registered or not.
    module_or_function: torch.nn.Module or callable
        Runs the operation, alone or among others: from ``(n, channels, L)`` to a tensor.
    operation: str or None
        The operation that the handler is for, such as ``"aten.avg_pool1d"``. Default None: those it is registered for,
        else the only one of ``module_or_function``, else the only one there that has no handler.
    channels: int or None
        Channels that ``module_or_function`` reads. Default None: 4, or the first size of its parameters that fits.
    lengths: tuple of int
        Lengths of the sequences. Default ``(24, 13)``.
    tolerance: float
        The largest difference allowed, relative to the largest value. Default 1e-10.

    Raises
    ------
    AssertionError
        If the law is broken, if the handler gives no rule, or if the operation does not occur; the message says which
        operation, which edit, and by how much.
    ValueError
        If the module or function cannot be captured, or if the operation is not clear.

    Examples
    --------
    >>> import torch, yuzu.handlers as kit
    >>> pool = lambda x: torch.nn.functional.avg_pool1d(x, 3, 1, 1)
    >>> def handle(view):
    ...     return kit.Linear(view, lambda x: torch.nn.functional.avg_pool1d(x, 3, 1), kernel=3, padding=1)
    >>> kit.check_law(handle, pool, "aten.avg_pool1d")
    >>> def narrow(view):
    ...     return kit.Linear(view, lambda x: torch.nn.functional.avg_pool1d(x, 3, 1), kernel=2, padding=1)
    >>> kit.check_law(narrow, pool, "aten.avg_pool1d")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    AssertionError: aten.avg_pool1d breaks the law ...
    """
    for length in lengths:
        model = _fitting_model(module_or_function, channels, length)
        try:
            graph = capture(model, (4, length), (), torch.float64)
        except CaptureError as error:
            raise YuzuError(f"module_or_function cannot be captured: {error}") from error
        found = _operations(handler, graph, operation)
        with _for(handler, found):
            plan = make_plan(graph)
        nodes = [n for n in graph.nodes if n.op in found and n.mutated]
        for node in nodes:
            if plan.rules[node.index] is None:
                raise AssertionError(f"{node.op} runs naively: {plan.reasons.get(node.index)}")
        if not nodes:
            there = sorted({n.op for n in graph.nodes if n.op})
            raise AssertionError(f"{', '.join(sorted(found))} does not occur among {', '.join(there)}")
        _check_plan(plan, model, length, nodes, tolerance)


def _fitting_model(module: Callable[[torch.Tensor], Any], channels: int | None, length: int) -> torch.nn.Module:
    """A model with the first number of channels with which the module runs."""
    sizes = [4] if channels is None else [channels]
    if channels is None and isinstance(module, torch.nn.Module):
        sizes += sorted({size for p in module.parameters() for size in p.shape})
    error: Exception | None = None
    for size in sizes:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _Model(size, module).double().eval()
        try:
            with torch.no_grad():
                model(torch.zeros(2, 4, length, dtype=torch.float64))
        except Exception as failed:  # any error: the next size may fit
            error = failed
        else:
            return model
    raise YuzuError(
        f"module_or_function does not run on (2, {'|'.join(map(str, sizes))}, {length}): {error}; pass channels= and "
        "lengths="
    ) from error


def _operations(handler: Handler, graph: Graph, operation: str | None) -> set[str]:
    if operation is not None:
        return {operation.replace("::", ".")}
    if known := {name for name, other in registered().items() if other is handler}:
        return known
    trunk = next(n.index for n in graph.nodes if n.layer == "trunk")
    there = {n.op for n in graph.nodes[trunk + 1 :] if n.kind == "call" and n.mutated}
    without = {op for op in there if op not in registered()}
    for some in (there, without):
        if len(some) == 1:
            return some
    raise YuzuError(f"operation must be named, module_or_function has {', '.join(sorted(there)) or 'none'}")


@contextlib.contextmanager
def _for(handler: Handler, operations: set[str]) -> Iterator[None]:
    """A context in which plans take the handler for some operations."""
    before = {name: _REGISTRY.get(name) for name in operations}
    _REGISTRY.update(dict.fromkeys(operations, handler))
    try:
        yield
    finally:
        for name, other in before.items():
            if other is None:
                del _REGISTRY[name]
            else:
                _REGISTRY[name] = other


def _check_plan(plan: Plan, model: torch.nn.Module, length: int, nodes: list[Node], tolerance: float) -> None:
    random = np.random.default_rng(0)
    letters = torch.eye(4, dtype=torch.float64)[torch.from_numpy(random.integers(4, size=(2, length)))]
    X = letters.mT.contiguous()
    X[1, :, length // 2 - 1] = 0
    for width in WIDTHS:
        last = length - width
        for name, places in {
            "at the left end": [0],
            "in the middle": [length // 2],
            "at the right end": [last],
            "everywhere": list(range(last + 1)),
        }.items():
            position = np.tile(np.array(places), 2)
            sequence = np.repeat(np.arange(2), len(places))
            difference = torch.from_numpy(random.normal(size=(len(position), 2, width, 4)))
            where = f"for edits of {width} position{'s' * (width > 1)} {name}"
            _check_sites(plan, model, X, Sites(sequence, position, width, difference), nodes, tolerance, where)


def _check_sites(
    plan: Plan, model: torch.nn.Module, X: torch.Tensor, sites: Sites, nodes: list[Node], tolerance: float, where: str
) -> None:
    with torch.no_grad():
        run = Run(plan, Weights(model, CPU), Derived(), CPU)
        run.keep_all = True
        run.set_reference(X, ())
        run.chunk(sites)
        edits = sites.difference.shape[1]
        rows = X[torch.from_numpy(np.repeat(sites.sequence, edits))].clone()
        row = torch.arange(len(rows))[:, None]
        place = torch.from_numpy(np.repeat(sites.position, edits))[:, None] + torch.arange(sites.width)
        rows[row, :, place] += sites.difference.flatten(0, 1)
        values: list[Any] = []
        for node in plan.graph.nodes:
            leaf = node.kind != "call"
            values.append(run.leaf(node, rows, ()) if leaf else evaluate(node, values.__getitem__, CPU))
        for node in nodes:
            _compare(run, node, sites, values[node.index], tolerance, where)


def _compare(run: Run, node: Node, sites: Sites, mutants: torch.Tensor, tolerance: float, where: str) -> None:
    grid = sites.difference.shape[:2]
    found = run.mutants(node.index, run._changes[node.index]).unflatten(0, grid)
    truth = mutants.unflatten(0, grid)
    off = (found - truth).abs()
    layout = run.plan.layouts[node.index]
    if layout.kind == "windows":  # positions that no output needs may hold anything
        low, high = run.plan.needed[node.index]
        off = layout.position_first(off.flatten(0, 1))[:, low:high]
    scale = float(truth.abs().max()) or 1.0
    worst = float(off.max()) if off.numel() else 0.0
    if not worst <= tolerance * scale:
        raise AssertionError(
            f"{node.op} breaks the law {where}: its change differs from the operation's by up to {worst:.2g}, values "
            f"are up to {scale:.2g}"
        )
