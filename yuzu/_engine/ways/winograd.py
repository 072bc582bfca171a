"""A way to run a convolution with fewer multiplications than there are pairs of positions and taps.

A block of ``m`` positions and a block of ``r`` taps are polynomials, and their convolution is the polynomials' product.
It has ``m + r - 1`` coefficients, which follow from its values at as many points. So both blocks are evaluated at the
points, multiplied point by point, and the coefficients are interpolated. That takes ``m + r - 1`` products of channels
in place of ``m r`` (Toom 1963; Cook 1966; Winograd, "Arithmetic complexity of computations", 1980; for networks Lavin
and Gray, "Fast algorithms for convolutional neural networks", 2016). Infinity is one of the points: the value there is
the leading coefficient.

The result is exact but for rounding, which evaluation and interpolation amplify about threefold with 8 points. Zeros,
and terms that cancel in direct products, come out as rounding errors. So this way is chosen only for layers after which
small errors stay small (`find_well_conditioned`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from yuzu._engine.kernels.products import product
from yuzu._engine.ways.call import Call, Shape
from yuzu._engine.ways.convolution import WAYS, Held, WayEntry, banded, several_taps

POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)  # a form takes the first of them, and infinity
MOST_POINTS = len(POINTS) + 1
MOST_WIDTH = 32  # positions of a window, at most: the cost of evaluation grows with their square
LEAST_CHANNELS = 48  # input and output channels from which on this way may win
# cost of a multiply-add in evaluation and interpolation, whose products are small, over one in products of channels
TRANSFORM_COST = 6
LEAST_GAIN = 0.9  # part of the other ways' multiply-adds that this way, transforms included, may take to win


@dataclass(frozen=True)
class Form:
    """The sizes of the blocks: ``positions`` and ``taps``."""

    positions: int
    taps: int

    @property
    def points(self) -> int:
        """The number of points at which blocks are evaluated."""
        return self.positions + self.taps - 1

    def counts(self, width: int, kernel: int) -> tuple[int, int]:
        """The number of blocks of a window (of one phase, if the convolution is dilated), and of the kernel."""
        return -(-width // self.positions), -(-kernel // self.taps)

    def terms(self, width: int, kernel: int) -> list[Term]:
        """The products to compute at each point.

        If blocks of positions and of taps are equally long, several pairs land on the same place, and one product sums
        them.
        """
        blocks, groups = self.counts(width, kernel)
        if self.positions != self.taps:
            return [
                Term(b * self.positions + g * self.taps, (b, b + 1), (groups - 1 - g, groups - g))
                for g in range(groups)
                for b in range(blocks)
            ]
        found = []
        for s in range(blocks + groups - 1):
            low, high = max(0, s - groups + 1), min(blocks, s + 1)
            found.append(Term(s * self.taps, (low, high), (groups - 1 - s + low, groups - 1 - s + high)))
        return found


@dataclass(frozen=True)
class Term:
    """A product to compute at each point.

    Attributes
    ----------
    place: int
        The first position that its result lands on.
    blocks: tuple of two ints
        First and stop of the blocks of positions that it reads, side by side.
    groups: tuple of two ints
        First and stop of the blocks of taps, which are in descending order.
    """

    place: int
    blocks: tuple[int, int]
    groups: tuple[int, int]


@dataclass(frozen=True)
class Transforms:
    """Evaluation ``(points * blocks, w)``, the terms, and interpolation ``(positions, points * terms)``."""

    evaluation: torch.Tensor
    interpolation: torch.Tensor
    terms: list[Term]


def winograd(call: Call) -> torch.Tensor:
    """Evaluate the window at the points, multiply channels at each of them, and interpolate."""
    x, kernel = call.rows().to(call.kernel.dtype), call.kernel
    (n, w, cin), (cout, _, k) = x.shape, kernel.shape
    shape = Shape(w, k, call.dilation, cin, cout, call.groups)
    form = best_form(shape)
    if form is None or _applies(shape):  # windows near the ends, or of a last chunk, may be narrower or wider
        return banded(call)
    there = _transforms(form, w, k, call.dilation, call.positions, x.dtype, x.device)
    weights = call.derived(f"winograd {form.positions} {form.taps}", lambda: _values_of_taps(kernel, form))
    values = torch.bmm(there.evaluation.expand(n, -1, -1), x).view(n, form.points, -1, cin)
    results = _multiplied(values, weights, there.terms)
    del values  # before the results: much memory that is freed at once would go back to the system
    return torch.bmm(there.interpolation.expand(n, -1, -1), results.flatten(1, 2)).to(call.dtype)


def _multiplied(values: torch.Tensor, weights: torch.Tensor, terms: list[Term]) -> torch.Tensor:
    """Compute the products: ``(N, points, terms, Cout)``. Their rows are evenly spaced, so nothing is moved."""
    n, points, _, cin = values.shape
    results = values.new_empty(n, points, len(terms), weights.shape[2])
    for i, term in enumerate(terms):
        (first, stop), (low, high) = term.blocks, term.groups
        for point in range(points):
            read = values[:, point, first:stop].flatten(1)
            product(read, weights[point, low * cin : high * cin], results[:, point, i])
    return results


@functools.lru_cache(maxsize=64)
def _points(form: Form, count: int) -> torch.Tensor:
    """The matrix that evaluates ``count`` coefficients at the points: ``(points, count)``, float64."""
    finite = [[point**power for power in range(count)] for point in POINTS[: form.points - 1]]
    infinite = [float(power == count - 1) for power in range(count)]
    return torch.tensor([*finite, infinite], dtype=torch.float64, device="cpu")


def _values_of_taps(kernel: torch.Tensor, form: Form) -> torch.Tensor:
    """Evaluate the kernel's blocks of taps at the points: ``(points, groups * Cin, Cout)``, the last block first."""
    cout, cin, k = kernel.shape
    groups = -(-k // form.taps)
    taps = kernel.new_zeros(groups * form.taps, cin, cout, dtype=torch.float64)
    taps[:k] = kernel.flip(2).permute(2, 1, 0)
    points = _points(form, form.taps).to(kernel.device)
    values = [(points @ block).to(kernel.dtype) for block in taps.view(groups, form.taps, -1).flip(0)]
    return torch.stack(values, 1).view(form.points, groups * cin, cout)


@functools.lru_cache(maxsize=256)
def _transforms(
    form: Form,
    width: int,
    kernel: int,
    dilation: int,
    wanted: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> Transforms:
    """The transforms for windows of a width and the wanted positions of the result. Each phase, the positions that are
    a dilation apart, is convolved by itself.
    """
    of_positions, of_results = _points(form, form.positions), _points(form, form.points).inverse()
    reached = width + (kernel - 1) * dilation
    rows: list[torch.Tensor] = []
    terms: list[Term] = []
    columns: list[torch.Tensor] = []
    for phase in range(min(dilation, width)):
        positions, before = range(phase, width, dilation), len(rows)
        for first in range(0, len(positions), form.positions):
            here = list(positions[first : first + form.positions])
            row = of_positions.new_zeros(form.points, width)
            row[:, here] = of_positions[:, : len(here)]
            rows.append(row)
        for term in form.terms(len(positions), kernel):
            column = of_results.new_zeros(reached, form.points)
            landing = list(range(phase + term.place * dilation, reached, dilation)[: form.points])
            column[landing] = of_results[: len(landing)]
            column = column[slice(*wanted)]
            if column.any():
                terms.append(Term(term.place, (before + term.blocks[0], before + term.blocks[1]), term.groups))
                columns.append(column)
    evaluation = torch.stack(rows, 1).flatten(0, 1)
    interpolation = torch.stack(columns, 2).flatten(1) if columns else evaluation.new_zeros(wanted[1] - wanted[0], 0)
    return Transforms(evaluation.to(device, dtype), interpolation.to(device, dtype), terms)


@functools.lru_cache(maxsize=1024)
def best_form(shape: Shape) -> Form | None:
    """The form with the fewest multiply-adds, transforms included, among those with fewer products than the direct
    ways; None if there is none.
    """
    width = -(-shape.width // shape.dilation)
    found = [
        form
        for positions in range(2, MOST_POINTS)
        for taps in range(2, MOST_POINTS + 2 - positions)
        for form in [Form(positions, taps)]
        if _products(form, width, shape.kernel) < width * shape.kernel
    ]
    return min(found, key=lambda form: (_multiply_adds(form, shape), form.points), default=None)


def _products(form: Form, width: int, kernel: int) -> int:
    blocks, groups = form.counts(width, kernel)
    return blocks * groups * form.points


def _results(form: Form, width: int, kernel: int) -> int:
    """The number of products that are interpolated."""
    return form.points * len(form.terms(width, kernel))


def _multiply_adds(form: Form, shape: Shape) -> float:
    """The cost of one mutant, in multiply-adds of the products of channels."""
    width, phases = -(-shape.width // shape.dilation), min(shape.dilation, shape.width)
    products = _products(form, width, shape.kernel) * shape.channels_in * shape.channels_out
    evaluated = form.points * form.counts(width, shape.kernel)[0] * shape.width * shape.channels_in
    reached = shape.width + (shape.kernel - 1) * shape.dilation
    interpolated = reached * _results(form, width, shape.kernel) * shape.channels_out
    return phases * (products + TRANSFORM_COST * (evaluated + interpolated))


def memory(shape: Shape) -> int:
    """The number of elements of one mutant's values at the points, or of its results there if these are more."""
    form = best_form(shape)
    if form is None:
        return 0
    width, phases = -(-shape.width // shape.dilation), min(shape.dilation, shape.width)
    values = form.points * form.counts(width, shape.kernel)[0] * shape.channels_in
    return phases * max(values, _results(form, width, shape.kernel) * shape.channels_out)


def memory_of_weights(shape: Shape) -> int:
    """The number of elements of the kernel's values at the points."""
    form = best_form(shape)
    groups = form.counts(shape.width, shape.kernel)[1] if form else 0
    return form.points * groups * shape.channels_in * shape.channels_out if form else 0


def _applies(shape: Shape) -> str | None:
    if shape.width > MOST_WIDTH:
        return f"windows are longer than {MOST_WIDTH}"
    return several_taps(shape) or (None if best_form(shape) else "no blocks have fewer products")


def _may_win(shape: Shape, low_precision: bool) -> bool:
    """Only with full products: low precision would round the values at the points, and save little beside them."""
    if low_precision or min(shape.channels_in, shape.channels_out) < LEAST_CHANNELS:
        return False
    form = best_form(shape)
    direct = shape.width * shape.kernel * shape.channels_in * shape.channels_out
    return form is not None and _multiply_adds(form, shape) < LEAST_GAIN * direct


def _held(shape: Shape, low_precision: bool) -> Held:
    return Held(memory_of_weights(shape), memory(shape))


WAYS["winograd"] = WayEntry(winograd, _applies, _may_win, keeps_zeros=False, held=_held)
