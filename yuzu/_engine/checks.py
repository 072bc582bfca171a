"""Checks of arguments, before any work; each error names the argument, its value and the one that is wanted."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from yuzu._engine.alphabets import DNA, PROTEIN, unknown_letter
from yuzu.errors import YuzuError, shown

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
NUMBERS = frozenset(
    {*FLOATS, *INTEGERS, torch.bool}
)  # dtypes of sequences: none that is quantized or a float of eight bits
OUTPUTS = ("l2", "delta", "prediction")


def check_model(model: Any) -> torch.nn.Module:
    if not isinstance(model, torch.nn.Module):
        raise YuzuError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor):
            raise YuzuError(f"model must have all its weights, {name} has no shape yet: run it on a sequence first")
        if tensor.is_meta:
            raise YuzuError(f"model must have all its weights, {name} is on the device 'meta': load them first")
    return model


def check_path(path: Any) -> Path:
    try:
        return Path(path)
    except TypeError as error:
        raise YuzuError(f"path must be a str or pathlib.Path, got {type(path).__name__}") from error


def check_count(name: str, value: Any, least: int = 1) -> int:
    """An integer of at least ``least``; numpy's integers are accepted, booleans are not."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise YuzuError(f"{name} must be an integer of at least {least}, got {shown(value)}")
    return int(value)


def check_device(device: Any) -> torch.device:
    """None means CUDA when available and the CPU otherwise. A GPU comes with its number, as the current one may be
    another in the next call.
    """
    try:
        found = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise YuzuError(f"device must be a torch device such as 'cpu' or 'cuda', got {shown(device)}") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise YuzuError(f"device is {shown(device)}, but CUDA is not available; pass device='cpu' or None")
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type != "cuda" and not _holds_numbers(found):
        raise YuzuError(f"device is {shown(device)}, which cannot hold tensors here; pass device='cpu' or None")
    return found


def _holds_numbers(device: torch.device) -> bool:
    """Tell whether this PyTorch has the device's backend, and tensors on it have values."""
    if device.type == "meta":
        return False
    try:
        torch.empty(0, device=device)
    except Exception:  # many kinds: not compiled in, no driver, no module of that name
        return False
    return True


def check_sequences(
    X: Any,
    dtype: torch.dtype | None,
    n_choices: int | None = None,
    seq_len: int | None = None,
    name: str = "X_0",
    model_dtype: torch.dtype | None = None,
    least_choices: int = 2,
) -> torch.Tensor:
    """Sequences as a CPU tensor of ``dtype`` (None: of its own), shape ``(n, C, L)``; finite, in the model's dtype too,
    which is ``dtype`` unless given. Of one character, which nothing substitutes, only with ``least_choices=1``.
    """
    X = X.to_one_hot() if hasattr(X, "to_one_hot") else X  # tangermeme's packed sequences
    if not isinstance(X, torch.Tensor | np.ndarray):
        raise YuzuError(f"{name} must be a torch.Tensor or numpy.ndarray of shape (n, C, L), got {type(X).__name__}")
    if isinstance(X, np.ndarray):
        X = from_numpy(X, name)
    if X.layout != torch.strided or X.is_nested:
        kind = "a nested tensor" if X.is_nested else f"layout {X.layout}"
        raise YuzuError(f"{name} must be a dense tensor (n, C, L), got {kind}")
    if X.is_meta:
        raise YuzuError(f"{name} must hold numbers, got a tensor on the device 'meta'")
    if X.is_complex():
        raise YuzuError(f"{name} must hold real numbers, got dtype {X.dtype}")
    if X.dtype not in NUMBERS:
        raise YuzuError(f"{name} must be of integers, booleans, float16, bfloat16, float32 or float64, got {X.dtype}")
    if X.dim() != 3:
        raise YuzuError(f"{name} must have 3 axes (n, C, L), got shape {tuple(X.shape)}")
    if 0 in X.shape:
        raise YuzuError(f"{name} must hold at least one sequence, character and position, got shape {tuple(X.shape)}")
    if X.shape[1] < least_choices:
        raise YuzuError(
            f"{name} must have at least C = {least_choices} characters, or nothing can be substituted, got shape "
            f"{tuple(X.shape)}"
        )
    if n_choices is not None and X.shape[1] != n_choices:
        raise YuzuError(f"{name} must have C = {n_choices} characters, got shape {tuple(X.shape)}")
    if seq_len is not None and X.shape[2] != seq_len:
        raise YuzuError(f"{name} must have L = {seq_len} positions, got shape {tuple(X.shape)}")
    X = X.detach()
    if X.is_floating_point() and not bool(torch.isfinite(X).all()):
        raise YuzuError(f"{name} must be finite, got NaN or infinity")
    model_dtype = model_dtype or dtype or X.dtype
    # only a dtype of as many bytes or more can hold numbers that the other cannot
    narrows = X.dtype != model_dtype and X.dtype.itemsize >= model_dtype.itemsize
    if narrows and not bool(torch.isfinite(X.to(model_dtype)).all()):
        raise YuzuError(f"{name} must be finite in the model's {model_dtype}, got numbers too large for it")
    return X.to("cpu", dtype or X.dtype)


def from_numpy(array: np.ndarray, name: str) -> torch.Tensor:
    """A tensor of an array of numbers, the user's ``name``; read-only ones (memory-mapped files) are copied, for
    tensors are always writable, and those that PyTorch has no dtype for: of another byte order, or longer than float64.
    """
    if array.dtype.kind not in "biufc":
        raise YuzuError(f"{name} must hold numbers, got dtype {array.dtype}")
    if array.dtype.type is np.longdouble:
        with np.errstate(over="ignore"):  # they become infinite, and are refused where finite numbers are needed
            array = array.astype(np.float64)
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    return torch.from_numpy(array if array.flags.writeable else array.copy())


Kinds = tuple[tuple[tuple[int, ...], str], ...]


def check_args(
    args: Any, n: int | None, dtype: torch.dtype | None = None, made_for: Kinds | None = None
) -> tuple[torch.Tensor, ...]:
    """The inputs after the sequence: tensors with the batch on their first axis, without NaN.

    Parameters
    ----------
    n: int or None
        Rows that each must have. None: at least one.
    dtype: torch.dtype or None
        The model's, to which floating point ones are cast; None leaves them as they are.
    made_for: tuple or None
        The `argument_kinds` that a precomputation was made for: inputs of these are not cast.
    """
    if args is None:
        return ()
    if isinstance(args, torch.Tensor | np.ndarray) or not isinstance(args, Sequence):
        raise YuzuError(
            f"args must be a tuple of tensors, one for each input after the sequence, got {type(args).__name__}"
        )
    found = []
    for i, value in enumerate(args):
        if isinstance(value, np.ndarray):
            value = from_numpy(value, f"args[{i}]")
        if not isinstance(value, torch.Tensor):
            raise YuzuError(f"args[{i}] must be a tensor, got {type(value).__name__}")
        if value.dim() == 0 or value.shape[0] == 0 or (n is not None and value.shape[0] != n):
            wanted = "at least one row" if n is None else f"{n} rows, one for each sequence"
            raise YuzuError(f"args[{i}] must have {wanted} on its first axis, got shape {tuple(value.shape)}")
        value = value.detach()
        if _holds_nan(value):
            raise YuzuError(f"args[{i}] must hold numbers, got NaN")
        found.append(value)
    if dtype is None or argument_kinds(tuple(found)) == made_for:
        return tuple(found)
    return tuple(_cast(a, dtype) for a in found)


def _holds_nan(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor holds NaN. Infinity is fine: masks that are added before a softmax hold it."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.layout != torch.strided or tensor.is_meta:
        return False
    one = tensor[:1] if tensor.stride(0) == 0 else tensor  # rows that are repeated are one
    return bool(one.isnan().any())


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Floating point rows in a dtype; one that is repeated stays one."""
    if not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor
    return tensor[:1].to(dtype).expand(tensor.shape) if tensor.stride(0) == 0 else tensor.to(dtype)


def check_choice(name: str, value: Any, known: Sequence[str]) -> str:
    """One of some words."""
    if value not in known:
        raise YuzuError(f"{name} must be one of {', '.join(map(repr, known))}, got {shown(value)}")
    return str(value)


def check_output(output: Any) -> str:
    return check_choice("output", output, OUTPUTS)


def check_func(func: Any) -> None:
    if func is not None and not callable(func):
        raise YuzuError(f"func must be callable, got {type(func).__name__}")


def check_span(start: Any, end: Any, length: int) -> tuple[int, int]:
    """``start`` and ``end`` by Python's slice rules; an empty selection is an error."""
    for name, value in (("start", start), ("end", end)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer)):
            raise YuzuError(f"{name} must be an integer or None, got {shown(value)}")
    first, stop, _ = slice(None if start is None else int(start), None if end is None else int(end)).indices(length)
    if stop <= first:
        raise YuzuError(f"start={start} and end={end} select no position of a sequence of length {length}")
    return first, stop


def check_replacement(value: Any, n_choices: int, width: int | None, name: str = "replace_with") -> torch.Tensor:
    """The user's ``name`` as ``(C, width)`` float64; a ``(C,)`` array is written at every position of the range."""
    if isinstance(value, str):
        alphabets = {len(DNA): DNA, len(PROTEIN): PROTEIN}
        if n_choices not in alphabets:
            raise YuzuError(
                f"{name} can be a string only for 4 or 20 characters, the sequences have {n_choices}; pass an array"
            )
        alphabet = alphabets[n_choices]
        if not value:
            raise YuzuError(f"{name} must not be an empty string")
        unknown = unknown_letter(alphabet)
        table = torch.zeros(n_choices, len(value), dtype=torch.float64, device="cpu")
        for i, letter in enumerate(value):
            if letter.upper() == unknown:
                continue
            if letter.upper() not in alphabet:
                raise YuzuError(
                    f"{name} must be over {alphabet}, or {unknown} for no letter, got {letter!r} at position {i}"
                )
            table[alphabet.index(letter.upper()), i] = 1
    else:
        if isinstance(value, list | tuple) and any(isinstance(item, str) for item in value):
            raise YuzuError(
                f"{name} is one motif, which is written at each place, got {len(value)} items, of which some are "
                "strings: call once for each motif, with the ranges of its width"
            )
        try:
            given = value.detach().cpu().double() if isinstance(value, torch.Tensor) else value  # numpy has no bfloat16
            table = torch.as_tensor(np.asarray(given, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise YuzuError(f"{name} must be a string or an array of numbers, got {type(value).__name__}") from error
        if not bool(torch.isfinite(table).all()):
            raise YuzuError(f"{name} must be finite, got NaN or infinity")
        if table.dim() == 1 and table.shape[0] == n_choices:
            table = table[:, None].expand(n_choices, width or 1)
        if table.dim() != 2 or table.shape[0] != n_choices:
            raise YuzuError(f"{name} must have shape ({n_choices},) or ({n_choices}, width), got {tuple(table.shape)}")
    if width is not None and table.shape[1] != width:
        raise YuzuError(f"{name} is {table.shape[1]} wide, the ranges are {width} wide")
    return table


def check_ranges(ranges: Any, length: int) -> tuple[np.ndarray, int]:
    """First positions of the ranges and their common width."""
    try:
        table = np.asarray([tuple(r) for r in ranges])
    except (TypeError, ValueError) as error:
        raise YuzuError(f"ranges must be a list of (start, end) pairs, got {shown(ranges)}") from error
    if table.ndim != 2 or table.shape[1] != 2 or table.dtype.kind not in "iu":
        raise YuzuError(f"ranges must be a non-empty list of (start, end) pairs of integers, got {shown(ranges)}")
    table = table.astype(np.int64)  # unsigned ones have no negative widths
    widths = table[:, 1] - table[:, 0]
    for (first, stop), width in zip(table, widths, strict=True):
        if first < 0 or stop > length or width < 1:
            raise YuzuError(f"ranges must lie inside the sequence, 0 <= start < end <= {length}, got ({first}, {stop})")
    if (widths != widths[0]).any():
        raise YuzuError(
            f"ranges must all have one width, got widths {sorted(set(widths.tolist()))}: call once for each width, and "
            "join the results along their second axis"
        )
    return table[:, 0], int(widths[0])


def to_user(value: torch.Tensor, as_numpy: bool) -> Any:
    """A result in the kind of array that came in."""
    if as_numpy and value.dtype == torch.bfloat16:  # numpy has none
        value = value.float()
    return value.numpy() if as_numpy else value


def looks_transposed(name: str) -> str:
    """A hint for the error about sequences that would fit with their axes the other way round."""
    return f"{name} looks like (n, L, C): swap its last two axes"


def argument_kinds(args: tuple[torch.Tensor, ...]) -> Kinds:
    """Shape without the batch, and dtype, of each input after the sequence."""
    return tuple((tuple(a.shape[1:]), str(a.dtype)) for a in args)


def describe_inputs(kinds: Kinds) -> str:
    """The kinds of inputs in words."""
    if not kinds:
        return "no inputs"
    return "inputs " + ", ".join(
        f"(n, {', '.join(map(str, shape))}) {dtype}" if shape else f"(n,) {dtype}" for shape, dtype in kinds
    )
