"""Compressed sensing: convolve a few *probes*, which are sums of many mutants' differences, and decode the results
(Schreiber, Lu and Noble 2022).

At an output position only those mutants are nonzero whose window covers it. They are known, and at most ``n``. With a
sensing matrix ``Phi`` (probes x mutants) the probes' convolutions at a position are ``y = Phi_sub d``. The columns of
``Phi_sub`` belong to the nonzero mutants, and ``d`` are their wanted differences.

- `cyclic`: mutant ``m`` goes into probe ``m mod n`` with weight 1. Mutants that share a probe do not overlap, so
  ``Phi_sub`` is a permutation. There are ``n`` probes, the fewest possible. Decoding is a gather, and the result is
  exact.
- `gaussian`: the published method. ``Phi`` is Gaussian with ``alpha * n`` rows. Decoding is the least-squares solution
  ``(Phi_sub^T Phi_sub)^-1 Phi_sub^T y``, with coefficients that are computed once. The condition number of ``Phi_sub``
  amplifies rounding.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch

from yuzu._engine.kept import Kept
from yuzu._engine.kernels.products import convolve_rows, low_precision_kernel
from yuzu._engine.layout import on_device
from yuzu._engine.ways.call import Call
from yuzu._engine.ways.convolution import WAYS, WayEntry, always
from yuzu._engine.window import Window
from yuzu.errors import PrecomputationError

COEFFICIENTS_KEPT = 512 << 20  # bytes of encoding and decoding coefficients kept, at most
SEEDS_OF_A_STATE = 1_000_003  # seeds for the layers of one ``random_state``: more than a model has layers
CONDITIONS_LOOKED_AT = 4  # positions whose condition number is computed


@dataclass
class Slots:
    """Mutants laid side by side in ``count`` rows, so that no two overlap in the output.

    Attributes
    ----------
    count: int
        The largest number of mutants that are nonzero at one output position.
    span: int
        Input positions from the first window's start to the last one's end.
    taken: torch.Tensor or None
        The ``S * A * w`` input positions that hold a difference; None for all.
    write: torch.Tensor
        The places to which they go in ``(count * span)``.
    read: torch.Tensor, shape=(S * A * (w + reach),)
        The place of each output position in ``(count * (span + reach))``.
    missing: torch.Tensor or None
        The output positions that no difference reaches; None for none.
    mutant: integer array, shape=(count, span + reach)
        The mutant that an output position of a slot belongs to; -1 for none.
    written: integer array
        The mutant that each place of ``write`` belongs to.
    """

    count: int
    span: int
    taken: torch.Tensor | None
    write: torch.Tensor
    read: torch.Tensor
    missing: torch.Tensor | None
    mutant: np.ndarray
    written: np.ndarray


def slots_of(window: Window, edits: int, reach: int, device: torch.device) -> Slots:
    """Lay out the slots for the windows of a chunk. Every layer and sequence with these windows shares them."""

    def make() -> Slots:
        # the positions that a site truly reaches: windows at the ends are wider, and would overlap more
        first, stop = window.first, np.maximum(window.stop, window.first)
        if window.natural is not None:  # all that is carried is right, and later layers rely on it
            first = np.maximum(window.natural[0], window.start)
            stop = np.maximum(np.minimum(window.natural[1], window.start + window.width), first)
        order = np.argsort(first, kind="stable")
        base = int(first.min())
        # site i and a later site j overlap in the output when first[j] < stop[i] + reach
        reached = np.searchsorted(first[order], np.maximum.accumulate(stop[order]) + reach, side="left")
        sites = int((reached - np.arange(len(first))).max())
        count, span = sites * edits, int(stop.max()) - base
        place = np.empty(len(first), dtype=np.int64)
        place[order] = np.arange(len(first)) % sites
        slot = (place[:, None] * edits + np.arange(edits))[:, :, None]
        here = window.start[:, None] + np.arange(window.width)
        there = window.start[:, None] + np.arange(window.width + reach)
        inside = np.broadcast_to(
            ((here >= first[:, None]) & (here < stop[:, None]))[:, None], (*slot.shape[:2], window.width)
        )
        valid = ((there >= first[:, None]) & (there < stop[:, None] + reach))[:, None]
        valid = np.broadcast_to(valid, (*slot.shape[:2], window.width + reach))
        write = slot * span + (here - base)[:, None]
        read = np.where(valid, slot * (span + reach) + (there - base)[:, None], 0)
        index = np.broadcast_to(np.arange(len(first) * edits).reshape(len(first), edits, 1), read.shape)
        mutant = np.full(count * (span + reach), -1, dtype=np.int64)
        mutant[read[valid]] = index[valid]
        taken = np.flatnonzero(inside)
        return Slots(
            count,
            span,
            None if len(taken) == inside.size else on_device(taken, device),
            on_device(write[inside], device),
            on_device(read.reshape(-1), device),
            None if valid.all() else on_device(np.flatnonzero(~valid), device),
            mutant.reshape(count, -1),
            index[:, :, : window.width][inside] if window.width else np.zeros(0, dtype=np.int64),
        )

    return window.cached(("slots", edits, reach, device), make)


def laid_out(call: Call, slots: Slots) -> torch.Tensor:
    """Write the mutants' differences into their slots: ``(count, span, Cin)``."""
    x = call.x.reshape(-1, call.x.shape[-1])
    layout = x.new_zeros(slots.count * slots.span, x.shape[1])
    layout[slots.write] = x if slots.taken is None else x.index_select(0, slots.taken)
    return layout.view(slots.count, slots.span, -1)


def taken_apart(call: Call, result: torch.Tensor, slots: Slots) -> torch.Tensor:
    """Read the mutants' results ``(S*A, w + reach, Cout)`` from slots ``(count, span + reach, Cout)``."""
    rows = result.reshape(-1, result.shape[2]).index_select(0, slots.read)
    if slots.missing is not None:
        rows.index_fill_(0, slots.missing, 0)
    return rows.view(-1, call.window.width + call.reach, result.shape[2])


def convolved(call: Call, probes: torch.Tensor) -> torch.Tensor:
    """Convolve probes ``(P, span, Cin)``: ``(P, span + reach, Cout)``."""
    kernel = call.derived(
        "windows",
        lambda: low_precision_kernel(call.kernel, call.run.precision),
    )
    return convolve_rows(probes, kernel, call.reach, call.dilation, call.groups)


def cyclic(call: Call) -> torch.Tensor:
    """Exact compressed sensing with the fewest probes."""
    slots = slots_of(call.window, call.x.shape[1], call.reach, call.x.device)
    return taken_apart(call, convolved(call, laid_out(call, slots)), slots)


class Sensing:
    """Gaussian sensing matrices and decoding coefficients, made when first needed and kept.

    Parameters
    ----------
    alpha: float
        Probes for each nonzero mutant.
    seed: int
    arrays: dict of tensors or None
        The `arrays` of another object with the same ``alpha`` and ``seed``.
    """

    def __init__(self, alpha: float, seed: int, arrays: dict[str, torch.Tensor] | None = None) -> None:
        self.alpha, self.seed = alpha, seed
        self._arrays = arrays or {}
        self.condition = 1.0  # the largest condition number found so far
        self.probes: dict[str, int] = {}
        self._kept = Kept[tuple[str, torch.device], tuple[torch.Tensor, torch.Tensor]](most_bytes=COEFFICIENTS_KEPT)

    def coefficients(
        self, layer: int, slots: Slots, reach: int, dtype: torch.dtype, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoding ``(span, P, count)`` and decoding ``(span + reach, count, P)`` coefficients for slots."""
        pattern = hashlib.sha256(slots.mutant.tobytes()).hexdigest()[:24]
        key = (f"{layer}.{slots.span}.{pattern}.{str(dtype).removeprefix('torch.')}", device)
        known = self._kept.get(key)
        if known is not None:
            return known
        name = key[0]
        if f"encode.{name}" in self._arrays and f"decode.{name}" in self._arrays:
            made = (self._arrays[f"encode.{name}"].to(device), self._arrays[f"decode.{name}"].to(device))
            probes = made[0].shape[1] if made[0].dim() == 3 else 0
            shapes = (slots.span, probes, slots.count), (slots.span + reach, slots.count, probes)
            if (tuple(made[0].shape), tuple(made[1].shape)) != shapes or any(t.dtype != dtype for t in made):
                raise PrecomputationError(
                    f"the precomputation's matrices {name} have shapes {[tuple(t.shape) for t in made]}, not "
                    f"{list(shapes)}: "
                    "the file is damaged; make it again with precompute and save"
                )
            self.probes[str(layer)] = max(self.probes.get(str(layer), 0), probes)
        else:
            made = self._make(layer, slots, dtype, device)
        self._kept.put(key, made, sum(t.nbytes for t in made))
        return made

    def arrays(self) -> dict[str, torch.Tensor]:
        """Everything kept, by name, on the CPU."""
        kept = zip(self._kept.keys(), self._kept.values(), strict=True)
        return {
            f"{part}.{name}": t.cpu()
            for (name, _), pair in kept
            for part, t in zip(("encode", "decode"), pair, strict=True)
        }

    def _make(
        self, layer: int, slots: Slots, dtype: torch.dtype, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        probes = max(math.ceil(self.alpha * slots.count - 1e-9), 1)
        mutants = int(slots.mutant.max()) + 1
        generator = torch.Generator("cpu").manual_seed(self.seed * SEEDS_OF_A_STATE + layer)
        matrix = torch.randn(mutants, probes, generator=generator, dtype=torch.float64, device="cpu")
        mutant = torch.from_numpy(slots.mutant)
        active = (mutant >= 0).T  # (span + reach, count)
        columns = matrix[mutant.clamp(min=0)].movedim(1, 0) * active[:, :, None]  # (span + reach, count, P)
        gram = columns @ columns.mT
        gram += torch.diag_embed((~active).double())  # an empty slot decodes to zero
        decode = torch.linalg.solve(gram, columns)
        # An empty slot would add its eigenvalue of 1, so only positions without one count. Eigenvalues are expensive,
        # and a few positions tell enough.
        full = torch.nonzero(active.all(1)).flatten()
        if len(full):
            some = full[torch.linspace(0, len(full) - 1, min(len(full), CONDITIONS_LOOKED_AT)).long()]
            eigenvalues = torch.linalg.eigvalsh(gram[some])
            self.condition = max(
                self.condition, float((eigenvalues[:, -1] / eigenvalues[:, 0].clamp(min=1e-300)).max().sqrt())
            )
        self.probes[str(layer)] = max(self.probes.get(str(layer), 0), probes)
        # input position i of a slot reaches the output positions i .. i + reach, which belong to the same mutant
        first = self._input_mutants(slots)
        encode = (matrix[first.clamp(min=0)] * (first >= 0)[:, :, None]).movedim(1, 0).mT  # (span, P, count)
        return encode.to(device, dtype).contiguous(), decode.to(device, dtype).contiguous()

    @staticmethod
    def _input_mutants(slots: Slots) -> torch.Tensor:
        table = np.full(slots.count * slots.span, -1, dtype=np.int64)
        table[slots.write.cpu().numpy()] = slots.written
        return torch.from_numpy(table.reshape(slots.count, slots.span))


def gaussian(call: Call) -> torch.Tensor:
    """Compressed sensing as published: random probes and least-squares decoding."""
    sensing = call.run.plan.sensing
    if sensing is None:
        raise RuntimeError("the plan has no Gaussian sensing matrices")
    slots = slots_of(call.window, call.x.shape[1], call.reach, call.x.device)
    encode, decode = sensing.coefficients(call.key[1], slots, call.reach, call.x.dtype, call.x.device)
    probes = torch.bmm(encode, laid_out(call, slots).movedim(1, 0)).movedim(0, 1).contiguous()  # (P, span, Cin)
    result = torch.bmm(decode, convolved(call, probes).movedim(1, 0))  # (span + reach, count, Cout)
    return taken_apart(call, result.movedim(1, 0), slots)


WAYS["cyclic"] = WayEntry(cyclic, always, lambda shape, low_precision: shape.reached <= (1.2 if low_precision else 2))
WAYS["gaussian"] = WayEntry(gaussian, always, exact=False)
SENSING_WAYS = ("cyclic", "gaussian")
