"""The fewest seconds that this machine could need for the work that ISM cannot do without.

    floor = 2 * multiply-adds / rate of a large matrix product + bytes / copy bandwidth

- Multiply-adds: for a convolution ``w k Cin Cout`` for each mutant, ``w`` the positions that are nonzero before it (or
  ``v k Cin Cout`` with the positions needed after it, where that is less), for a linear layer ``w Cin Cout`` on windows
  and ``Cin Cout`` on whole values. Exact widths of each mutant, at the ends of the sequence too.
- Bytes: the result of each convolution, linear layer, pool or reduction is written once and read once, in float32.
  Views, elementwise operations and sums count nothing, since they can be done in the same pass.

Real runs stay above it: rates of narrow products are lower than that of a large one. A model whose windows stay in
the cache could go below the bytes' part.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

EDITS = 3
PRODUCTS = ("aten.conv1d", "aten.conv2d", "aten.linear")
IN_THE_SAME_PASS = ("view", "elementwise", "merge")
PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}
COPY_FLOATS = 1 << 26


def measure_floor(model: Any, precomputation: Any, precision: str, device: str) -> dict[str, Any]:
    """The floor for one sequence, and what it is made of; or the reason why there is none."""
    import torch

    rates: dict[str, float] = {}
    try:
        dtype = torch.bfloat16 if precision == "medium" else torch.float32
        rate = rates["product_flops"] = product_rate(dtype, device, tf32=precision == "high")
        bandwidth = rates["copy_bytes_per_second"] = copy_bandwidth(device)
        plan = precomputation.bind(model, precomputation.seq_len, 4, (), torch.device(device)).plan
        multiply_adds, moved = work(plan, precomputation.seq_len)
    except Exception as error:  # a plan changes with the engine: without its floor the run is still good
        lines = str(error).splitlines() or [""]
        return {**rates, "reason": f"{type(error).__name__}: {lines[0]}"}
    return {
        **rates,
        "multiply_adds": multiply_adds,
        "bytes": moved,
        "product_seconds": 2 * multiply_adds / rate,
        "copy_seconds": moved / bandwidth,
        "seconds": 2 * multiply_adds / rate + moved / bandwidth,
    }


def work(plan: Any, length: int) -> tuple[int, int]:
    """Multiply-adds and bytes of all mutants of one sequence."""
    nodes, windows = plan.graph.nodes, plan.windows(np.arange(length), 1)
    multiply_adds = moved = 0.0
    for node in nodes:
        rule = plan.rules[node.index]
        if node.kind != "call" or not node.mutated or not plan.readers[node.index]:
            continue
        if rule is None:
            raise ValueError(f"{node.label} runs naively")
        after = extent(windows[node.index], length)
        if node.op in PRODUCTS:
            before = extent(windows[rule.sources[0]], length)
            weight = math.prod(nodes[node.args[1].index].shape)
            if node.op == "aten.linear" and windows[rule.sources[0]] is not None and windows[node.index] is None:
                weight /= plan.layouts[rule.sources[0]].length  # the slice of it that belongs to one position
                used = before
            elif node.op == "aten.linear":
                used = after
            else:
                used = np.minimum(before / rule.geometry.stride, after)
            multiply_adds += float(used.sum()) * weight
        if rule.family not in IN_THE_SAME_PASS:
            layout = plan.layouts[node.index]
            beside = math.prod(node.shape[1:]) / (layout.length if windows[node.index] is not None else 1)
            moved += float(after.sum()) * beside * 2 * 4
    return round(multiply_adds * EDITS), round(moved * EDITS)


def extent(window: Any, length: int) -> np.ndarray:
    """How many positions each mutated position reaches; 1 for a whole value."""
    if window is None:
        return np.ones(length)
    return np.maximum(window.stop - window.first, 0)


def product_rate(dtype: Any, device: str, tf32: bool = False) -> float:
    """Operations a second of a large matrix product, two for each multiply-add. On a CPU also by oneDNN, as
    `yuzu._engine.kernels.onednn` has it: the faster one counts.
    """
    import torch

    size = PRODUCT_SIZE[device]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        seconds = fastest(lambda: a @ b, device)
        if device == "cpu" and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            from yuzu._engine.kernels.onednn import multiplied

            seconds = min(seconds, fastest(lambda: multiplied(a, b), device))
        return 2 * size**3 / seconds
    finally:
        torch.set_float32_matmul_precision(before)


def copy_bandwidth(device: str) -> float:
    """Bytes read and written a second by a copy that no cache holds."""
    import torch

    source, target = (torch.ones(COPY_FLOATS, device=device) for _ in range(2))
    return 2 * 4 * COPY_FLOATS / fastest(lambda: target.copy_(source), device)


def fastest(function: Any, device: str, repeats: int = 5) -> float:
    """The least seconds of some calls after a first one."""
    import torch

    found = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begin)
    return min(found[1:])
