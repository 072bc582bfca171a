"""Names of a program's tensors in the user's model."""

from __future__ import annotations

import torch

from yuzu._engine.capture.model_copy import inner_tensors, is_packed


def name_in_model(module: torch.nn.Module, target: str, children: list[str] | None = None) -> str:
    """The name in the user's model of a program's parameter, buffer or attribute; ``children`` are the model's names of
    the modules that the program numbers, where it was made of these.
    """
    target = _inside_packed(module, target)
    return target if children is None else renamed_child(target, children)


def renamed_child(name: str, children: list[str]) -> str:
    """A name that begins with the number of a child, with the child's own name in its place."""
    head, _, tail = name.partition(".")
    return f"{children[int(head)]}{'.' if tail else ''}{tail}" if head.isdigit() else name


def layer_name(fx: torch.fx.Node, children: list[str] | None) -> str:
    """The user's name of the module that a node of a program comes from; empty for the model's own ``forward``."""
    stack = fx.meta.get("nn_module_stack") or {}
    if not stack or fx.op == "placeholder":
        return ""
    name = str(list(stack.values())[-1][0]).removeprefix("L['self'].").removeprefix("L__self__").split("@")[0]
    if name.startswith("_empty_nn_module_stack"):
        return ""
    return name if children is None else renamed_child(name, children)


def tensor_attribute(module: torch.nn.Module, name: str) -> torch.Tensor | None:
    """The tensor of that name in a module; None if it has none."""
    owner, _, attribute = name.rpartition(".")
    try:
        value = getattr(module.get_submodule(owner), attribute)
    except AttributeError:
        return None
    return value if isinstance(value, torch.Tensor) else None


def _inside_packed(module: torch.nn.Module, target: str) -> str:
    """The name in the model, such as ``fc.weight.scale``, of a tensor that export took out of a packed parameter and
    calls ``fc.parametrizations.weight.original1``; any other name as it is.
    """
    owner, found, rest = target.rpartition(".parametrizations.")
    if not found:
        owner, (_, found, rest) = "", target.rpartition("parametrizations.")
    name, _, which = rest.partition(".original")
    if not found or not which.isdigit():
        return target
    tensor = tensor_attribute(module, f"{owner}.{name}")
    if tensor is None or not is_packed(tensor):
        return target
    return ".".join(part for part in (owner, name, list(inner_tensors(tensor))[int(which)]) if part)


__all__ = ["layer_name", "name_in_model", "tensor_attribute"]
