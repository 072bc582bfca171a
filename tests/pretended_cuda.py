"""A device that says it is CUDA and computes on the CPU, for machines without one: a plugin of pytest.

    TRITON_INTERPRET=1 python -m pytest -p pretended_cuda tests -k cuda      (or: make test-pretended-cuda)

The tests on CUDA run with it, values and all, and an operation on tensors of two devices fails as it would on a GPU. So
does making a NumPy array of a tensor on it. Kernels run in Triton's interpreter. What only a GPU has (its arithmetic, its
memory, its launches) is not tested by it; bfloat16 products in kernels are not either, since Triton's interpreter
multiplies their bits.

A tensor of the device is a tensor of the CPU of the class `Pretended`, whose ``device`` is another. Calls of PyTorch that
have one among their arguments, or that name the device, come through `call`.
"""

import collections
import contextlib
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

CUDA = torch.device("cuda", 0)
MEMORY = 16 << 30
# take tensors of two devices on any machine
MOVES = {"_has_compatible_shallow_copy_type", "to", "_to_copy", "copy_", "cpu", "cuda", "set_data", "__set__", "__deepcopy__", "__reduce_ex__"}
TAKES_INDICES = {"__getitem__", "__setitem__", "index_put_", "index", "index.Tensor"}


class Pretended(torch.Tensor):
    """A tensor that says it is on the device."""

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def get_device(self) -> int:
        return 0

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})


class Intercept(TorchFunctionMode):
    """Sends calls to `call` that name the device, and may have no tensor of it among their arguments."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        leaves = pytree.tree_leaves((args, kwargs))
        if func is torch.device or name == "_parse_to":  # makes a device, no tensor
            return func(*args, **kwargs)
        if name == "cuda" or any(isinstance(x, Pretended) or _names_it(x) for x in leaves):
            with self:
                return call(func, args, kwargs)
        return func(*args, **kwargs)


def call(func: Any, args: Any, kwargs: Any) -> Any:
    """Run ``func`` on the CPU; its result is on the device if anything that it is given is, unless it moves it away."""
    name = getattr(func, "__name__", "")
    leaves, spec = pytree.tree_flatten((args, kwargs))
    ours = [x for x in leaves if isinstance(x, Pretended)]
    _refuse_two_devices(func, name, args, leaves)
    there = bool(ours) or name == "cuda" or any(_names_it(x) for x in leaves)
    if name == "cpu" or (name in ("to", "_to_copy") and _place_in(leaves[1:]) == "cpu") or _is_cpu(kwargs.get("device")):
        there = False
    on_cpu = [("cpu" if isinstance(x, str) else torch.device("cpu")) if _names_it(x) else x for x in leaves]
    args_on_cpu, kwargs_on_cpu = pytree.tree_unflatten(on_cpu, spec)
    with torch._C.DisableTorchFunction():
        result = args[0] if name in ("cpu", "cuda") else func(*args_on_cpu, **kwargs_on_cpu)
        if name in ("to", "cpu", "cuda", "_to_copy") and isinstance(args[0], Pretended) != there:
            result = result.clone() if result.data_ptr() == args[0].data_ptr() else result
    if not any(isinstance(x, torch.Tensor) for x in pytree.tree_leaves(result)):
        return result  # a size would come out of ``tree_map`` as a tuple
    if not there:
        return pytree.tree_map(stripped, result)
    same = {id(x): x for x in ours}
    return pytree.tree_map(lambda x: same.get(id(x), x) if isinstance(x, Pretended) else _pretended(x), result)


def stripped(x: Any) -> Any:
    """What holds the same numbers, as a tensor of the CPU."""
    if not isinstance(x, Pretended):
        return x
    with torch._C.DisableTorchFunction():
        return x.as_subclass(torch.Tensor)


def _pretended(x: Any) -> Any:
    if not isinstance(x, torch.Tensor):
        return x
    with torch._C.DisableTorchFunction():
        result = x.as_subclass(Pretended)
        if isinstance(x, torch.nn.Parameter):
            result._is_param = True  # type: ignore[attr-defined]
    return result


def _refuse_two_devices(func: Any, name: str, args: Any, leaves: list[Any]) -> None:
    ours = [x for x in leaves if isinstance(x, Pretended)]
    others = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, Pretended) and x.dim()]
    if name in TAKES_INDICES and isinstance(args[0], Pretended):
        others = [x for x in others if x.is_floating_point()]  # indices on the CPU are taken
    if ours and others and name not in MOVES:
        raise RuntimeError(f"{func} got tensors on cuda:0 and, of shape {tuple(others[0].shape)}, on the CPU")


def _names_it(x: Any) -> bool:
    if isinstance(x, torch.device):
        return x.type == "cuda"
    return isinstance(x, str) and x.split(":")[0] == "cuda"


def _is_cpu(x: Any) -> bool:
    return isinstance(x, torch.device | str) and torch.device(x).type == "cpu"


def _place_in(leaves: list[Any]) -> str | None:
    """Where the arguments of ``Tensor.to`` behind the tensor itself send it; None if they say nothing of it."""
    for x in leaves:
        if _names_it(x) or isinstance(x, Pretended):
            return "cuda"
        if _is_cpu(x) or isinstance(x, torch.Tensor):
            return "cpu"
    return None


def _export_on_the_cpu() -> None:
    """``torch.export`` knows the CPU's tensors only: it gets those, and the program is put on the device."""
    from yuzu._engine.capture import routes
    from yuzu._engine.capture.model_copy import evaluation_copy

    original = routes.run_export

    def export(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], *rest: Any, **options: Any) -> Any:
        with torch._C.DisableTorchFunction():
            if not any(isinstance(t, Pretended) for t in [*module.parameters(), *module.buffers(), *inputs]):
                return original(module, inputs, *rest, **options)
        copied = evaluation_copy(module)
        for part in copied.modules():
            for held in (part._parameters, part._buffers, part.__dict__):
                for key, value in list(held.items()):
                    if isinstance(value, Pretended):
                        plain = stripped(value)
                        is_parameter = held is part._parameters
                        held[key] = torch.nn.Parameter(plain, value.requires_grad) if is_parameter else plain
        with torch._C.DisableTorchFunction():
            program, branches = original(copied, tuple(stripped(t) for t in inputs), *rest, **options)
        program._constants.update({key: _pretended(value) for key, value in program.constants.items()})
        for node in program.graph.nodes:
            if node.op == "call_function" and node.kwargs.get("device") is not None:
                node.kwargs = {**node.kwargs, "device": CUDA}
        return program, branches

    routes.run_export = export


def _transform_on_the_cpu() -> None:
    """``torch.func`` wraps tensors in levels of its own: a whole derivative runs on the CPU, and its result is put on the
    device. Inside of it, tensors of two devices go together.
    """

    def whole(function: Any) -> Any:
        def on_the_cpu(*args: Any, **kwargs: Any) -> Any:
            leaves = pytree.tree_leaves((args, kwargs))
            there = any(isinstance(x, Pretended) for x in leaves)
            with torch._C.DisableTorchFunction():
                result = function(*args, **kwargs)
            wrapped = torch._C._functorch.is_functorch_wrapped_tensor
            return pytree.tree_map(lambda x: _pretended(x) if there and not wrapped(x) else x, result)

        return on_the_cpu

    jvp, vmap = torch.func.jvp, torch.func.vmap
    torch.func.jvp = whole(jvp)
    torch.func.vmap = lambda *args, **kwargs: whole(vmap(*args, **kwargs))


def install() -> None:
    """Put the device in place, for the rest of the process."""
    properties = SimpleNamespace(shared_memory_per_block_optin=227 << 10, total_memory=MEMORY, name="pretended", major=9, minor=0)
    no_state = torch.zeros(16, dtype=torch.uint8)
    for name, stand_in in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "synchronize": lambda *args: None,
        "empty_cache": lambda: None,
        "device_of": lambda tensor: contextlib.nullcontext(),
        "mem_get_info": lambda *args: (MEMORY // 2, MEMORY),
        "memory_stats": lambda *args: collections.defaultdict(int),
        "memory_allocated": lambda *args: 0,
        "max_memory_allocated": lambda *args: 0,
        "reset_peak_memory_stats": lambda *args: None,
        "get_device_capability": lambda *args: (9, 0),
        "get_device_name": lambda *args: properties.name,
        "get_device_properties": lambda *args: properties,
        "get_rng_state": lambda *args: no_state,
        "get_rng_state_all": lambda *args: [no_state],
        "set_rng_state": lambda *args: None,
        "set_rng_state_all": lambda *args: None,
    }.items():
        setattr(torch.cuda, name, stand_in)
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # as between a CPU and a real GPU
    _export_on_the_cpu()
    _transform_on_the_cpu()
    Intercept().__enter__()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if re.fullmatch(r"test_medium\[cuda\]|test_the_kernel_is_its_formula\[cuda-.*-medium\]", item.name):
            item.add_marker(pytest.mark.skip(reason="Triton's interpreter multiplies the bits of bfloat16"))


def pytest_configure(config: pytest.Config) -> None:
    # not when the module is imported, as the collection of doctests does
    if not torch.cuda.is_available():
        install()
