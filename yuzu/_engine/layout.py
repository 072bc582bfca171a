"""The change that a mutation makes to the value of one node, and how it moves between windows.

Tensors that hold windows have the axes ``(S, A, w, ...)``: ``S`` sites, ``A`` edits at each, ``w`` positions,
then the node's other axes in their own order. Positions come before channels, so that neighbouring positions
lie side by side in memory and a window is contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from yuzu._engine.window import Window

FEW_SITES = 0.25  # part of the sites: if at most so many move by another offset than the rest, only they are copied


@dataclass(frozen=True)
class Layout:
    """The places of the batch and of the positions in a node's value.

    Attributes
    ----------
    kind: str
        ``"constant"``: no batch. ``"rows"``: one row for each sequence along axis 0. ``"windows"``: like rows, and a
        mutation changes a window of positions only. ``"values"``: anything; it is carried as whole values, in the
        model's own batch.
    axis: int
        The axis of positions, for windows. Its size is ``outer * length * inner``, since after a flatten the channels
        lie around the positions.
    length: int
        The number of positions.
    outer, inner: int
        The sizes of other axes that were merged into the axis of positions, before and after it.
    """

    kind: str
    axis: int = 0
    length: int = 0
    outer: int = 1
    inner: int = 1

    @property
    def composite(self) -> bool:
        """Tell whether other axes were merged into the axis of positions."""
        return self.outer != 1 or self.inner != 1

    def position_first(self, value: torch.Tensor) -> torch.Tensor:
        """Move the positions of ``(B, ...)`` to axis 1; an axis of merged channels and positions is split first."""
        if self.composite:
            value = value.unflatten(self.axis, (self.outer, -1, self.inner))
            return value.movedim(self.axis + 1, 1)
        return value.movedim(self.axis, 1)

    def natural(self, value: torch.Tensor) -> torch.Tensor:
        """The inverse of `position_first`, for any number of positions."""
        if self.composite:
            value = value.movedim(1, self.axis + 1)
            return value.flatten(self.axis, self.axis + 2)
        return value.movedim(1, self.axis)


CONSTANT, ROWS, VALUES = Layout("constant"), Layout("rows"), Layout("values")


@dataclass
class Change:
    """The change of one node's value for the ``S * A`` mutants of a chunk.

    Attributes
    ----------
    tensor: torch.Tensor
        ``(S, A, w, ...)`` on ``window``; ``(S, A, ...)`` if ``window`` is None (the whole value). With ``mutant`` these
        are the mutants' values, else mutant minus reference. For a node carried as values, it is the value of the whole
        batch of ``S * A`` mutants as the operation returned it.
    window: Window or None
    mutant: bool
        The tensor holds values, not differences.
    codes: torch.Tensor or None
        ``(S, A)`` int64, for the sequence itself if each edit writes one character over another: ``written * (C + 1) +
        overwritten``, with ``overwritten = C`` if there was none.
    """

    tensor: torch.Tensor
    window: Window | None
    mutant: bool = False
    codes: torch.Tensor | None = None


def on_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy an index array to a tensor on ``device``, without waiting for the device."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)


WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """Convert a tensor of single precision to double precision; others stay as they are."""
    return tensor.to(WIDE.get(tensor.dtype, tensor.dtype))


def rewindow(
    tensor: torch.Tensor, old: Window, new: Window, fill: float = 0.0, disposable: bool = False
) -> torch.Tensor:
    """Move differences to other windows, with ``fill`` at positions that the old window lacks. It copies only what it
    must. A ``disposable`` tensor may be overwritten.
    """
    if new is old or (new.width == old.width and new.start is old.start):
        return tensor
    offset = old.offset_to(new)
    if offset is not None:
        if offset == 0 and new.width == old.width:
            return tensor
        if offset >= 0 and offset + new.width <= old.width:
            return tensor[:, :, offset : offset + new.width]
        result = tensor.new_full((*tensor.shape[:2], new.width, *tensor.shape[3:]), fill)
        first, stop = max(offset, 0), min(offset + new.width, old.width)
        if stop > first:
            result[:, :, first - offset : stop - offset] = tensor[:, :, first:stop]
        return result
    if disposable and tensor.device.type == "cpu":  # on a GPU the launches would cost more than moving all
        moved = _moved_in_place(tensor, old, new, fill)
        if moved is not None:
            return moved
    return _gather(tensor, old, new, fill)


def _moved_in_place(tensor: torch.Tensor, old: Window, new: Window, fill: float) -> torch.Tensor | None:
    """Do `rewindow` as a view, if most sites' windows move by the same offset. The windows of the others, near the ends
    of the sequence, are overwritten in it. None if these are not few, or if the view does not hold all of the new
    window.
    """

    def find() -> tuple[Any, Window]:
        offset = new.start - old.start
        offsets, counts = np.unique(offset, return_counts=True)
        most = int(offsets[counts.argmax()])
        others = np.flatnonzero(offset != most)
        if most < 0 or most + new.width > old.width or len(others) > FEW_SITES * len(offset):
            return None, old
        return (most, others, Window.at(old.start[others], old.width), Window.at(new.start[others], new.width)), old

    found = new.cached(("moved", id(old)), find)[0]
    if found is None:
        return None
    most, others, before, after = found
    result, index = tensor[:, :, most : most + new.width], on_device(others, tensor.device)
    return result.index_copy_(0, index, _gather(tensor.index_select(0, index), before, after, fill))


def _gather(tensor: torch.Tensor, old: Window, new: Window, fill: float) -> torch.Tensor:
    sites, edits = tensor.shape[:2]
    device = tensor.device

    def tables() -> tuple[torch.Tensor, Outside, Window]:
        place, outside = _places(new.start - old.start, new.width, old.width, device)
        first = torch.arange(sites * edits, device=device).view(sites, edits, 1) * old.width
        index = (first + place.unsqueeze(1)).reshape(-1)
        return index, outside.repeated(edits), old

    index, outside, _ = _remembered(new, ("gather", id(old), edits, device), tables, device)
    rest = tensor.shape[3:]
    flat = tensor.reshape(sites * edits * old.width, -1)
    result = outside.filled(flat.index_select(0, index), fill)
    return result.view(sites, edits, new.width, *rest)


class Outside:
    """The rows of a gathered tensor that read no position. On a GPU they are a mask, since counting them would wait for
    the device. On a CPU they are indices, so that no more is written than must be. None means that there are none.
    """

    def __init__(self, mask: torch.Tensor | None) -> None:
        self.mask = mask
        on_cpu = mask is not None and mask.device.type == "cpu"
        self.rows = mask.reshape(-1).nonzero()[:, 0] if mask is not None and on_cpu else None

    def repeated(self, edits: int) -> Outside:
        """Repeat these for ``edits`` rows of each site."""
        return self if self.mask is None else Outside(self.mask[:, None].expand(-1, edits, -1))

    def filled(self, tensor: torch.Tensor, fill: float) -> torch.Tensor:
        """Overwrite these rows of ``tensor`` with ``fill``."""
        if self.rows is not None:
            return tensor.index_fill_(0, self.rows, fill)
        if self.mask is not None:
            return tensor.masked_fill_(self.mask.reshape(-1, *[1] * (tensor.dim() - 1)), fill)
        return tensor


def _places(first: np.ndarray, width: int, length: int, device: torch.device) -> tuple[torch.Tensor, Outside]:
    """The places ``first + 0 ... width - 1`` of each site, ``(S, width)``, computed on the device from one number for
    each site; and which of them lie outside of ``[0, length)``. These are set to 0.
    """
    place = on_device(first, device)[:, None] + torch.arange(width, device=device)
    if len(first) and first.min() >= 0 and first.max() + width <= length:
        return place, Outside(None)
    outside = (place < 0) | (place >= length)
    return place.masked_fill_(outside, 0), Outside(outside)


def _remembered(window: Window, key: Any, make: Callable[[], Any], device: torch.device) -> Any:
    """The result of ``make()``, kept with the window on a CPU. A GPU makes tables so fast that keeping them gains
    nothing.
    """
    return window.cached(key, make) if device.type == "cpu" else make()


def read_windows(
    value: torch.Tensor, window: Window, sequences: np.ndarray, only: int | None, fill: float | None = None
) -> torch.Tensor:
    """Read ``value`` ``(B, L, ...)`` on each site's window: ``(S, w, ...)``; a view, if it is contiguous and windows
    are evenly spaced.

    ``only`` is the sequence that all sites lie in, or None. Positions outside of the sequence read as ``fill``; without
    it no window may overhang.
    """
    batch, length = value.shape[:2]
    if batch == 1:
        only = 0
    overhangs = fill is not None and (int(window.start.min()) < 0 or int(window.start.max()) + window.width > length)
    if only is not None and not overhangs and window.step is not None and window.step >= 0 and value.is_contiguous():
        stride = value.stride(1)
        offset = value.storage_offset() + only * value.stride(0) + int(window.start[0]) * stride
        return value.as_strided(
            (len(window.start), window.width, *value.shape[2:]),
            (window.step * stride, stride, *value.stride()[2:]),
            offset,
        )
    device = value.device
    if not value.is_contiguous():
        if window.step == 0 and not overhangs:  # the same positions of every sequence
            start = int(window.start[0])
            return value[:, start : start + window.width].index_select(0, on_device(sequences, device))
        value = value.contiguous()

    def tables() -> tuple[torch.Tensor, Outside]:
        place, outside = _places(window.start, window.width, length, device)
        base = 0 if only is not None else on_device(sequences * length, device)[:, None]
        return (place + base).reshape(-1), outside

    key = ("read", length, device, None if only is not None else sequences.tobytes())
    index, outside = _remembered(window, key, tables, device)
    flat = (value[only] if only is not None else value).reshape(-1, *value.shape[2:])
    result = outside.filled(flat.index_select(0, index), 0.0 if fill is None else fill)
    return result.view(len(window.start), window.width, *value.shape[2:])


def expand(change: Change, length: int, sequences: np.ndarray, reference: torch.Tensor | None = None) -> torch.Tensor:
    """Expand a windowed change to all ``length`` positions: ``(S, A, length, ...)``, with zeros outside of the window,
    or the reference if the change holds mutants' values.
    """
    window, tensor = change.window, change.tensor
    assert window is not None
    if change.mutant:
        assert reference is not None
        rows = reference.index_select(0, on_device(sequences, tensor.device))
        result = rows.unsqueeze(1).repeat(1, tensor.shape[1], *[1] * (reference.dim() - 1))
    else:
        result = tensor.new_zeros(*tensor.shape[:2], length, *tensor.shape[3:])
    if window.step is not None and window.width > 0:
        # evenly spaced windows are one view of the result
        of_site, of_edit, of_position, *rest = result.stride()
        strides = (of_site + window.step * of_position, of_edit, of_position, *rest)
        result.as_strided(tensor.shape, strides, int(window.start[0]) * of_position).copy_(tensor)
        return result
    position = on_device(window.start, tensor.device)[:, None] + torch.arange(window.width, device=tensor.device)
    site = torch.arange(len(window.start), device=tensor.device)[:, None]
    # advanced indices around a slice come first: (S, w, A, ...)
    result[site, :, position] = tensor.movedim(2, 1)
    return result
