"""Compressed sensing: convolve a few *probes*, sums of many mutants' differences, and decode (Schreiber, Lu
and Noble 2022).

At an output position only the mutants whose window covers it are nonzero, ``n`` of them at the most, and
which ones is known. With a sensing matrix ``Phi`` (probes x mutants) the probes' convolutions at a position
are ``y = Phi_sub d``, with the columns of ``Phi_sub`` those of the nonzero mutants and ``d`` their wanted
differences.

- `cyclic`: mutant ``m`` goes into probe ``m mod n`` with weight 1. Mutants that share a probe do not overlap,
  so ``Phi_sub`` is a permutation:
  ``n`` probes, the least possible, decoding is a gather, and the result is exact.
- `gaussian`: the published method. ``Phi`` is Gaussian with ``alpha * n`` rows, decoding is the least-squares
  solution
  ``(Phi_sub^T Phi_sub)^-1 Phi_sub^T y`` with coefficients computed once. Rounding is amplified by the
  condition of ``Phi_sub``.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch

from yuzu._engine.delta import on_device
from yuzu._engine.handlers.convolution_ways import WAYS, Call, WayEntry, always, convolve_rows, lowered
from yuzu._engine.window import Window

COEFFICIENTS_KEPT = 512 << 20  # bytes of decoding coefficients
CONDITIONS_LOOKED_AT = 4  # positions whose condition number is computed


@dataclass
class Slots:
    """Mutants laid side by side so that no two overlap in the output, ``count`` rows of them.

    Attributes
    ----------
    count: int
        The largest number of mutants that are nonzero at one output position.
    span: int
        Input positions from the first window's start to the last one's end.
    write, read: torch.Tensor, shape=(S * A * w,) and (S * A * (w + reach),)
        Where each input position goes in ``(count * span)`` and each output position is found in ``(count *
        (span + reach))``.
    mutant: integer array, shape=(count, span + reach)
        Which mutant an output position of a slot belongs to; -1 for none.
    """

    count: int
    span: int
    write: torch.Tensor
    read: torch.Tensor
    mutant: np.ndarray


def slots_of(window: Window, edits: int, reach: int, device: torch.device) -> Slots:
    """The slots for the windows of a chunk; the same for every layer and sequence with these windows."""

    def make() -> Slots:
        order = np.argsort(window.start, kind="stable")
        start = window.start[order] - window.start.min()
        width = window.width + reach
        # sites i..j overlap when start[j] < start[i] + width
        reached = np.searchsorted(start, start + width, side="left") - np.arange(len(start))
        sites = int(reached.max())
        count, span = sites * edits, int(start[-1]) + window.width
        place = np.empty(len(start), dtype=np.int64)
        place[order] = np.arange(len(start)) % sites
        offset = window.start - window.start.min()
        slot = (place[:, None] * edits + np.arange(edits))[:, :, None]
        write = slot * span + offset[:, None, None] + np.arange(window.width)
        read = slot * (span + reach) + offset[:, None, None] + np.arange(width)
        mutant = np.full(count * (span + reach), -1, dtype=np.int64)
        index = np.arange(len(start) * edits).reshape(len(start), edits, 1)
        mutant[read.reshape(-1)] = np.broadcast_to(index, read.shape).reshape(-1)
        return Slots(
            count,
            span,
            on_device(write.reshape(-1), device),
            on_device(read.reshape(-1), device),
            mutant.reshape(count, -1),
        )

    return window.cached(("slots", edits, reach, device), make)


def laid_out(call: Call, slots: Slots) -> torch.Tensor:
    """``(count, span, Cin)``: the mutants' differences in their slots."""
    x = call.x.reshape(-1, call.x.shape[-1])
    layout = x.new_zeros(slots.count * slots.span, x.shape[1])
    layout[slots.write] = x
    return layout.view(slots.count, slots.span, -1)


def convolved(call: Call, probes: torch.Tensor) -> torch.Tensor:
    """The convolution of probes ``(P, span, Cin)``: ``(P, span + reach, Cout)``."""
    kernel = call.derived(
        "windows",
        lambda: lowered(call.kernel, call.run.precision).unsqueeze(2).contiguous(memory_format=torch.channels_last),
    )
    return convolve_rows(probes, kernel, call.reach, call.dilation, call.groups)


def cyclic(call: Call) -> torch.Tensor:
    """Exact compressed sensing with the least number of probes."""
    slots = slots_of(call.window, call.x.shape[1], call.reach, call.x.device)
    result = convolved(call, laid_out(call, slots))
    return (
        result.reshape(-1, result.shape[2])
        .index_select(0, slots.read)
        .view(-1, call.window.width + call.reach, result.shape[2])
    )


class Sensing:
    """Gaussian sensing matrices and decoding coefficients, made when first needed and kept.

    Parameters
    ----------
    alpha: float
        Probes for each nonzero.
    seed: int
    arrays: dict of tensors or None
        From `arrays` of another, for the same ``alpha`` and ``seed``.
    """

    def __init__(self, alpha: float, seed: int, arrays: dict[str, torch.Tensor] | None = None) -> None:
        self.alpha, self.seed = alpha, seed
        self._arrays = arrays or {}
        self.condition = 1.0  # the largest condition number met
        self.probes: dict[str, int] = {}
        self._kept: OrderedDict[tuple[str, torch.device], tuple[torch.Tensor, torch.Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def coefficients(
        self, layer: int, slots: Slots, reach: int, dtype: torch.dtype, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoding ``(span, P, count)`` and decoding ``(span + reach, count, P)`` coefficients for slots."""
        pattern = hashlib.sha256(slots.mutant.tobytes()).hexdigest()[:24]
        key = (f"{layer}.{slots.span}.{pattern}.{str(dtype).removeprefix('torch.')}", device)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        name = key[0]
        if f"encode.{name}" in self._arrays and f"decode.{name}" in self._arrays:
            made = (self._arrays[f"encode.{name}"].to(device), self._arrays[f"decode.{name}"].to(device))
            self.probes[str(layer)] = max(self.probes.get(str(layer), 0), made[0].shape[1])
        else:
            made = self._make(layer, slots, reach, dtype, device)
        with self._lock:
            self._kept[key] = made
            while (
                len(self._kept) > 1 and sum(t.nbytes for pair in self._kept.values() for t in pair) > COEFFICIENTS_KEPT
            ):
                self._kept.popitem(last=False)
        return made

    def arrays(self) -> dict[str, torch.Tensor]:
        """Everything kept, by name, on the CPU."""
        with self._lock:
            kept = list(self._kept.items())
        return {
            f"{part}.{name}": t.cpu()
            for (name, _), pair in kept
            for part, t in zip(("encode", "decode"), pair, strict=True)
        }

    def _make(
        self, layer: int, slots: Slots, reach: int, dtype: torch.dtype, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        probes = max(math.ceil(self.alpha * slots.count - 1e-9), 1)
        mutants = int(slots.mutant.max()) + 1
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + layer)
        matrix = torch.randn(mutants, probes, generator=generator, dtype=torch.float64)
        mutant = torch.from_numpy(slots.mutant)
        active = (mutant >= 0).T  # (span + reach, count)
        columns = matrix[mutant.clamp(min=0)].movedim(1, 0) * active[:, :, None]  # (span + reach, count, P)
        gram = columns @ columns.mT
        gram += torch.diag_embed((~active).double())  # an empty slot decodes to zero
        decode = torch.linalg.solve(gram, columns)
        # positions with an empty slot would count its eigenvalue of 1; a few of the others tell enough, for
        # eigenvalues are dear
        full = torch.nonzero(active.all(1)).flatten()
        if len(full):
            some = full[torch.linspace(0, len(full) - 1, min(len(full), CONDITIONS_LOOKED_AT)).long()]
            eigenvalues = torch.linalg.eigvalsh(gram[some])
            self.condition = max(
                self.condition, float((eigenvalues[:, -1] / eigenvalues[:, 0].clamp(min=1e-300)).max().sqrt())
            )
        self.probes[str(layer)] = max(self.probes.get(str(layer), 0), probes)
        # the input position i of a slot lies at the output positions i .. i + reach; its mutant is the one at
        # any of them inside its window
        first = self._input_mutants(slots, reach)
        encode = (matrix[first.clamp(min=0)] * (first >= 0)[:, :, None]).movedim(1, 0).mT  # (span, P, count)
        return encode.to(device, dtype).contiguous(), decode.to(device, dtype).contiguous()

    @staticmethod
    def _input_mutants(slots: Slots, reach: int) -> torch.Tensor:
        table = np.full(slots.count * slots.span, -1, dtype=np.int64)
        write = slots.write.cpu().numpy()
        mutants = int(slots.mutant.max()) + 1
        table[write] = np.repeat(np.arange(mutants), len(write) // mutants)
        return torch.from_numpy(table.reshape(slots.count, slots.span))


def gaussian(call: Call) -> torch.Tensor:
    """Compressed sensing as published: random probes, least-squares decoding."""
    sensing = call.run.plan.sensing
    if sensing is None:
        raise RuntimeError("the plan has no Gaussian sensing matrices")
    slots = slots_of(call.window, call.x.shape[1], call.reach, call.x.device)
    encode, decode = sensing.coefficients(call.key[1], slots, call.reach, call.x.dtype, call.x.device)
    probes = torch.bmm(encode, laid_out(call, slots).movedim(1, 0)).movedim(0, 1).contiguous()  # (P, span, Cin)
    result = torch.bmm(decode, convolved(call, probes).movedim(1, 0))  # (span + reach, count, Cout)
    flat = result.movedim(1, 0).reshape(-1, result.shape[2])
    return flat.index_select(0, slots.read).view(-1, call.window.width + call.reach, result.shape[2])


WAYS["cyclic"] = WayEntry(cyclic, always)
WAYS["gaussian"] = WayEntry(gaussian, always, exact=False)
