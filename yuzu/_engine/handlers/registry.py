"""The registry of handlers, and the search for a node's rule.

`handles` has a worked example for an operation of one's own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from yuzu._engine import ops
from yuzu._engine.graph import Node
from yuzu._engine.handlers.contract import Rule, View

Handler = Callable[[View], "Rule | str"]
_REGISTRY: dict[str, Handler] = {}
_READS_SIZES: set[str] = set()


def handles(*operations: str, reads_sizes: bool = False) -> Callable[[Handler], Handler]:
    """Register a handler for operations, by the names that warnings show, such as ``"aten.conv1d"``;
    ``Precomputation.summary()`` leaves the ``aten.`` out.

    Parameters
    ----------
    operations: str
        Names such as ``"aten.conv1d"``, or ``"mine::smooth"`` for a custom operator.
    reads_sizes: bool
        The handler copes with arguments that are computed from the size of the batch.

    Examples
    --------
    An operator that averages three neighbours runs naively until a handler says how it reads:

    >>> import torch, yuzu
    >>> @torch.library.custom_op("doctest_yuzu::smooth", mutates_args=())
    ... def smooth(x: torch.Tensor) -> torch.Tensor:
    ...     return torch.nn.functional.avg_pool1d(x, 3, 1, 1)
    >>> @smooth.register_fake
    ... def _(x):
    ...     return torch.empty_like(x)
    >>> @yuzu.handles("doctest_yuzu::smooth")
    ... def handle_smooth(view):
    ...     if view.movable(view.node.args[0]).kind != "windows":
    ...         return "it gets no windows"
    ...     return yuzu.Windowed(view, lambda x: torch.nn.functional.avg_pool1d(x, 3, 1), kernel=3, padding=1)
    >>> class Model(torch.nn.Module):
    ...     def forward(self, x):
    ...         return smooth(x).relu()
    >>> precomputation = yuzu.precompute(Model(), seq_len=50)
    >>> [(layer.handler, layer.window) for layer in precomputation.layers]
    [('windowed', '1 -> 3'), ('elementwise', '3 -> 3')]
    """

    def register(handler: Handler) -> Handler:
        for operation in operations:
            name = operation.replace("::", ".")
            known = _REGISTRY.get(name)
            if known is not None and known.__module__ != handler.__module__ and _is_ours(handler):
                raise ValueError(f"{name} has two handlers: in {known.__module__} and in {handler.__module__}")
            _REGISTRY[name] = handler
            ops.note_handler(name)
            (_READS_SIZES.add if reads_sizes else _READS_SIZES.discard)(name)
        return handler

    return register


def _is_ours(handler: Handler) -> bool:
    return handler.__module__.startswith("yuzu._engine.handlers.")


def registered() -> dict[str, Handler]:
    """All handlers by operation."""
    return dict(_REGISTRY)


def has_rows(node: Node) -> bool:
    """Tell whether a node's result is one tensor with the batch on its first axis, and on no other."""
    shape = node.shape or (1,)
    return shape[0] is None and not any(s == -1 or s is None for s in shape[1:])


def find_handler(view: View) -> Handler | str:
    """The handler for a node, or the reason why it has none."""
    node = view.node
    handler = _REGISTRY.get(node.op)
    if handler is None and ops.is_pointwise(node.op, node.target):
        handler = _REGISTRY["pointwise"]
    if handler is None:
        return f"there is no handler for {node.op}"
    if node.shape is None:
        return f"{node.op} returns several tensors"
    if not has_rows(node):
        return "the batch is not the first axis of its result"
    sizes = [i for i in node.inputs if view.graph.nodes[i].shape is None and view.graph.nodes[i].batched]
    if sizes and node.op not in _READS_SIZES:
        return "one of its arguments is computed from the size of the batch"
    return handler


def find_rule(view: View) -> Rule | str:
    """The rule for a node, or the reason why it has none."""
    handler = find_handler(view)
    if isinstance(handler, str):
        return handler
    rule = handler(view)
    return rule if isinstance(rule, str) else (_why_no_differences(view, rule) or rule)


def _why_no_differences(view: View, rule: Rule) -> str | None:
    """The reason why a rule cannot give the change of a node as a difference; None if it can, or need not."""
    node, nodes = view.node, view.graph.nodes
    if not node.mutated:
        return None
    if not rule.carries_values and not all(n.floating for n in (node, *(nodes[i] for i in rule.sources))):
        return "masks and integers have no differences"
    # the values' rounding may be large beside their difference, which is rounded on its own
    own = next(n.dtype for n in nodes if n.kind == "sequence")
    if node.dtype is None or not node.floating or torch.finfo(node.dtype).eps <= torch.finfo(torch.float32).eps:
        return None
    if node.dtype != own:
        return f"its result is rounded to {node.dtype}"
    if not any(nodes[i].mutated and nodes[i].floating for i in node.inputs) and _is_only_widened(view, node):
        return f"its values are exact in {node.dtype}, and their differences are not"
    return None


def _is_only_widened(view: View, node: Node) -> bool:
    """Tell whether all readers of a node cast it to a more precise dtype first: none computes in its own."""
    readers = [view.graph.nodes[i] for i in view.graph.consumers[node.index]]
    if not readers or node.index in view.graph.output_nodes:
        return False
    return all(
        _widens(reader, node) or (ops.of(reader.op).moves and _is_only_widened(view, reader)) for reader in readers
    )


def _widens(cast: Node, node: Node) -> bool:
    if not ops.of(cast.op).casts or cast.dtype is None or node.dtype is None:
        return False
    return cast.floating and cast.dtype.itemsize > node.dtype.itemsize
