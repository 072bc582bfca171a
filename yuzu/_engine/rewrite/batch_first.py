"""Keeps the batch on the first axis of every value, where a model moves it to another one.

    (B, T, E) -> transpose -> (T, B, E) -> linear -> view (T, B * H, D) -> transpose -> (B * H, T, D)

is what `nn.MultiheadAttention` does with its queries; here it becomes

    (B, T, E) -> linear -> view (B, T, H, D) -> permute (B, H, T, D)

so that handlers, which know rows on the first axis only, see an ordinary graph. A value that the model holds with the
batch elsewhere is made with the batch in front, and a `Form` says where it lies in the model's own. Numbers of axes are
translated; an axis that holds the batch and others, like ``B * H``, is taken apart. An operation that has no
translation reads its inputs as the model has them, and runs as it did before.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from yuzu._engine.graph import Node, OfSlice, Ref, map_refs

aten = torch.ops.aten
Translation = Callable[["BatchFirst", Node], "tuple[int, Form] | None"]


@dataclass(frozen=True)
class Form:
    """Where the batch lies in a value as the model has it.

    Attributes
    ----------
    axis: int
        The axis that holds it, ``outer * B * inner`` long.
    outer, inner: int
        What else lies on that axis, before and after it.
    size: int or None
        None for the batch itself, -1 for a multiple, of which one model run holds several batches.
    """

    axis: int = 0
    outer: int = 1
    inner: int = 1
    size: int | None = None

    @property
    def plain(self) -> bool:
        """Whether the value is held with the batch in front by the model itself."""
        return (self.axis, self.outer, self.inner) == (0, 1, 1)

    @property
    def beside(self) -> list[int]:
        """The axes that the batch's own is taken apart into, without the batch."""
        return [n for n in (self.outer, self.inner) if n > 1]

    def place(self, axis: int) -> int:
        """The number that another axis of the model's gets with the batch in front."""
        return axis + 1 if axis < self.axis else axis + len(self.beside)

    def shape(self, shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """The shape with the batch in front of a value that has ``shape`` in the model."""
        return (self.size, *shape[: self.axis], *self.beside, *shape[self.axis + 1 :])

    def without(self, full: Sequence[Any], one: Any = 1) -> list[Any]:
        """Something for each axis of the model's, without that of the batch; ``one`` for what is taken apart."""
        return [*full[: self.axis], *[one] * len(self.beside), *full[self.axis + 1 :]]


def batch_axes(shape: Sequence[int | None] | None) -> list[int]:
    """The axes of a shape whose size depends on the batch."""
    return [axis for axis, size in enumerate(shape or ()) if size is None or size < 0]


class BatchFirst:
    """The rewriting: ``found`` are the new nodes; ``held[i]`` is the new index of node ``i`` with the batch in front,
    and its form in the model.
    """

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.found: list[Node] = []
        self.held: dict[int, tuple[int, Form]] = {}
        self.given: dict[int, int] = {}  # new indices of values as the model has them
        self.sizes: dict[int, tuple[int, int | None, int]] = {}  # a number: so many times the size of which batch
        for node in nodes:
            self._take(node)

    # ---- one node after the other

    def _take(self, node: Node) -> None:
        if node.shape is None or not node.batched or node.kind != "call":
            if not self._take_size(node):
                self._copy(node)
            return
        read = [self.held.get(i) for i in node.inputs if self.nodes[i].batched and self.nodes[i].shape is not None]
        forms = [held[1] for held in read if held is not None]
        as_it_is = len(forms) == len(read) and all(form.plain for form in forms) and batch_axes(node.shape) == [0]
        if not as_it_is or (node.shape[0] == -1 and all(form.size is None for form in forms)):
            translation = _translation(node)
            result = translation(self, node) if translation is not None else None
            if result is not None:
                self.held[node.index] = result
                if result[1].plain:
                    self.given[node.index] = result[0]
                return
        self._copy(node)

    def _take_size(self, node: Node) -> bool:
        """Whether a node is a number that is known to be a multiple of a batch's size, and is taken as such."""
        if node.op == "aten.sym_size" and node.inputs[0] in self.held:
            (source,) = node.inputs
            index, form = self.held[source]
            if node.argument(1, "dim") % len(self.nodes[source].shape or ()) != form.axis:
                return False
            size = self._add(node, aten.sym_size.int, (Ref(index), 0), shape=None, dtype=None, mutated=False)
            self.sizes[node.index] = size, form.size, form.outer * form.inner
            if form.outer * form.inner > 1:
                args = (Ref(size), form.outer * form.inner)
                size = self._add(node, operator.mul, args, shape=None, dtype=None, mutated=False)
            self.given[node.index] = size
            return True
        if node.target is operator.mul and len(node.inputs) == 1 and node.inputs[0] in self.sizes:
            numbers = [a for a in node.args if isinstance(a, int)]
            base, size_of, times = self.sizes[node.inputs[0]]
            if len(numbers) == 1 and numbers[0] > 0:
                self.sizes[node.index] = base, size_of, times * numbers[0]
        return False

    def _copy(self, node: Node) -> None:
        """A node as it is, reading what the model has."""
        index = self._emit(node)
        self.given[node.index] = index
        if node.batched and batch_axes(node.shape) == [0]:
            assert node.shape is not None
            self.held[node.index] = index, Form(size=node.shape[0])

    def _emit(self, node: Node) -> int:
        args, kwargs = map_refs((node.args, node.kwargs), lambda ref: Ref(self.as_given(ref.index)))
        self.found.append(dataclasses.replace(node, index=len(self.found), args=args, kwargs=kwargs))
        return len(self.found) - 1

    def as_given(self, i: int) -> int:
        """The new index of a value as the model has it, which is made where it is asked for."""
        if i in self.given:
            return self.given[i]
        node = self.nodes[i]
        if all(j in self.given for j in node.inputs):
            self.given[i] = self._emit(node)  # the model's own way from there
            return self.given[i]
        index, form = self.held[i]
        assert node.shape is not None
        before = form.axis + (form.outer > 1)
        rank = len(self.found[index].shape or ())
        order = [*range(1, before + 1), 0, *range(before + 1, rank)]
        shape = form.shape(node.shape)
        index = self._add(node, aten.permute.default, (Ref(index), order), shape=tuple(shape[a] for a in order))
        if form.beside:
            sizes = [-1 if axis == form.axis else size for axis, size in enumerate(node.shape)]
            index = self._add(node, aten.reshape.default, (Ref(index), sizes), shape=node.shape)
        self.given[i] = index
        return index

    # ---- what translations are made of

    def _add(self, like: Node, target: Any, args: tuple[Any, ...], **changes: Any) -> int:
        of_torch = hasattr(target, "_schema")
        name = f"aten.{target._schema.name.split('::')[1]}" if of_torch else f"operator.{target.__name__}"
        leaf = {"kind": "call", "key": None, "value": None, "rows": None, "columns": None}
        changes = {**leaf, "op": name, "target": target, "args": args, "kwargs": {}, **changes}
        self.found.append(dataclasses.replace(like, index=len(self.found), **changes))
        return len(self.found) - 1

    def same(self, node: Node, form: Form, args: Any, kwargs: Any = None, **changes: Any) -> tuple[int, Form]:
        """The same operation with other arguments, and the form of its result in the model."""
        assert node.shape is not None
        kwargs = node.kwargs if kwargs is None else kwargs
        changes = {"args": tuple(args), "kwargs": kwargs, "shape": form.shape(node.shape), **changes}
        self.found.append(dataclasses.replace(node, index=len(self.found), **changes))
        return len(self.found) - 1, form

    def source(self, node: Node) -> tuple[int, Form] | None:
        """The first argument, with the batch in front; None where it has no form."""
        return self.held.get(node.args[0].index) if isinstance(node.args[0], Ref) else None

    def constant(self, item: Any) -> bool:
        """Whether an argument is the same for every batch."""
        return not isinstance(item, Ref) or not self.nodes[item.index].batched

    def reshaped(self, index: int, shape: Sequence[int | None]) -> int:
        """A new node's value in another shape, of which the first axis may be the batch's."""
        like = self.found[index]
        if like.shape == tuple(shape):
            return index
        sizes = [-1 if axis == 0 and size in (None, -1) else size for axis, size in enumerate(shape)]
        return self._add(like, aten.reshape.default, (Ref(index), sizes), shape=tuple(shape))

    def common_form(self, refs: Sequence[Ref], rank: int) -> Form | None:
        """The form that all operands have beside a result of ``rank`` axes, as broadcasting has it."""
        forms = set()
        for ref in refs:
            node = self.nodes[ref.index]
            if not node.batched or node.shape is None:
                continue
            if ref.index not in self.held:
                return None
            form = self.held[ref.index][1]
            forms.add(dataclasses.replace(form, axis=form.axis + rank - len(node.shape)))
        return forms.pop() if len(forms) == 1 and all(form.axis >= 0 for form in forms) else None

    def aligned(self, ref: Ref, rank: int, form: Form) -> Ref | None:
        """An operand, to be broadcast with others of ``form`` that have ``rank`` axes in the model; None where it
        cannot be.
        """
        node = self.nodes[ref.index]
        if node.shape is None:
            return Ref(self.as_given(ref.index))
        missing = rank - len(node.shape)
        if missing < 0:
            return None
        if not node.batched:
            full = [*[1] * missing, *node.shape]
            if missing > form.axis or not node.shape:
                return Ref(self.given[ref.index])
            return Ref(self.reshaped(self.given[ref.index], form.without(full))) if full[form.axis] == 1 else None
        index, own = self.held[ref.index]
        shape = own.shape(node.shape)
        return Ref(self.reshaped(index, (shape[0], *[1] * missing, *shape[1:])))

    def all_aligned(self, node: Node, rank: int, least: int = 0) -> tuple[Any, Form] | None:
        """The arguments of an operation on operands that are broadcast, and their form; where the batch has at least so
        many axes after it.
        """
        refs = [Ref(i) for i in node.inputs]
        form = self.common_form(refs, rank)
        if form is None or form.axis >= rank - least:
            return None
        places = {ref.index: self.aligned(ref, rank, form) for ref in refs}
        if any(place is None for place in places.values()):
            return None
        return map_refs((node.args, node.kwargs), lambda ref: places[ref.index]), form


def _with_argument(node: Node, position: int, name: str, value: Any, first: int) -> tuple[Any, Any]:
    """A node's arguments with another first one, and one exchanged."""
    args, kwargs = [Ref(first), *node.args[1:]], dict(node.kwargs)
    if len(args) > position:
        args[position] = value
    else:
        kwargs[name] = value
    return args, kwargs


# ---- the translations: from a node to a new one, and the form of its result; None where there is none

_TRANSLATIONS: dict[str, Translation] = {}


def _translates(*names: str) -> Callable[[Translation], Translation]:
    def register(translation: Translation) -> Translation:
        _TRANSLATIONS.update({name if "." in name else f"aten.{name}": translation for name in names})
        return translation

    return register


def _translation(node: Node) -> Translation | None:
    found = _TRANSLATIONS.get(node.op)
    if found is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return _pointwise
    return found


@_translates(
    *"to _to_copy zeros_like ones_like full_like leaky_relu hardswish log_sigmoid where masked_fill".split(),
    *"__and__ __or__ __xor__".split(),
)
def _pointwise(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    found = new.all_aligned(node, len(node.shape or ()))
    return None if found is None else new.same(node, found[1], *found[0])


@_translates("type_as")
def _of_type(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    held = new.source(node)
    if held is None:
        return None
    other = new.held.get(node.args[1].index, (None,))[0]  # of which only the type matters
    other = new.as_given(node.args[1].index) if other is None else other
    return new.same(node, held[1], (Ref(held[0]), Ref(other)))


@_translates("view_as_complex", "view_as_real")
def _as_pairs(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    held = new.source(node)
    if held is None or held[1].axis >= len(node.shape or ()):
        return None
    return new.same(node, held[1], (Ref(held[0]),))


@_translates("permute", "transpose", "movedim", "swapaxes")
def _permuted(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    held = new.source(node)
    if held is None:
        return None
    (index, form), order = held, order_of(node)
    moved = dataclasses.replace(form, axis=order.index(form.axis))
    split = range(form.axis + 1, form.axis + 1 + len(form.beside))
    places = [0, *(p for axis in order for p in (split if axis == form.axis else [form.place(axis)]))]
    if places == list(range(len(places))):
        return index, moved
    return new.same(node, moved, (Ref(index), places), {}, op="aten.permute", target=aten.permute.default)


def order_of(node: Node) -> list[int]:
    """The axes of the input of a node that permutes them, in the order in which its result has them."""
    rank = len(node.shape or ())
    if node.op == "aten.permute":
        return [a % rank for a in node.args[1]]
    if node.op != "aten.movedim":
        order = list(range(rank))
        a, b = node.args[1] % rank, node.args[2] % rank
        order[a], order[b] = order[b], order[a]
        return order
    given = [[a] if isinstance(a, int) else list(a) for a in node.args[1:3]]
    places = dict(zip((a % rank for a in given[1]), (a % rank for a in given[0]), strict=True))
    others = iter(a for a in range(rank) if a not in places.values())
    return [places[a] if a in places else next(others) for a in range(rank)]


@_translates("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")
def _reshaped(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    """What lies before the batch and after it stays there, however it is divided into axes."""
    held, shape = new.source(node), node.shape
    axes = batch_axes(shape)
    if held is None or shape is None or len(axes) != 1 or 0 in shape:
        return None
    (index, form), source, (axis,) = held, new.nodes[node.args[0].index], axes
    sizes, own = [size or 1 for size in shape], [size or 1 for size in source.shape or ()]
    before, after = form.outer * math.prod(own[: form.axis]), form.inner * math.prod(own[form.axis + 1 :])
    left, right = math.prod(sizes[:axis]), math.prod(sizes[axis + 1 :])
    if before % left or after % right:
        return None  # rows become others
    result = Form(axis, before // left, after // right, form.size)
    if source.op == "aten.stack" and axis == 0 and result.beside:
        return None  # a batch of several, which is taken apart
    return new.reshaped(index, result.shape(shape)), result


def _batch_among(new: BatchFirst, sizes: Sequence[Any], shape: Sequence[int | None]) -> tuple[int, Form] | None:
    """Of sizes that are given to make rows of, the one that is the batch's: its new index, and the form of the rows."""
    axes = batch_axes(shape)
    if len(axes) != 1 or len(sizes) != len(shape):
        return None
    (axis,) = axes
    if not isinstance(sizes[axis], Ref) or sizes[axis].index not in new.sizes:
        return None
    base, size, times = new.sizes[sizes[axis].index]
    return base, Form(axis, 1, times, size)


def _sizes(base: int, form: Form, sizes: Sequence[Any], times: Sequence[Any] = ()) -> list[Any]:
    """Sizes with the batch's in front."""
    return [Ref(base), *sizes[: form.axis], *(times or form.beside), *sizes[form.axis + 1 :]]


@_translates("expand")
def _expanded(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    ref, shape = node.args[0], node.shape or ()
    source = new.nodes[ref.index]
    if not source.batched:
        found = _batch_among(new, node.args[1], shape)
        return None if found is None else _made_of_one(new, node, *found, list(shape))
    form = new.common_form([ref], len(shape))
    if form is None or batch_axes(shape) != [form.axis]:
        return None
    aligned = new.aligned(ref, len(shape), form)
    assert aligned is not None
    if new.found[aligned.index].shape == form.shape(shape):
        return aligned.index, form
    return new.same(node, form, (aligned, [-1, *form.shape(shape)[1:]]), {})


@_translates("repeat", "tile")
def _repeated(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    ref, shape = node.args[0], node.shape or ()
    if not new.nodes[ref.index].batched:
        found = _batch_among(new, node.args[1], shape)
        return None if found is None else _made_of_one(new, node, *found, node.args[1])
    held, times = new.source(node), node.args[1]
    if held is None or len(times) != len(new.nodes[ref.index].shape or ()) or times[held[1].axis] != 1:
        return None
    index, form = held
    return new.same(node, form, (Ref(index), [1, *form.without(times)]), {})


def _made_of_one(new: BatchFirst, node: Node, base: int, form: Form, sizes: list[Any]) -> tuple[int, Form] | None:
    """A row for each sequence, from a constant that has one for all."""
    constant = new.nodes[node.args[0].index]
    full = [*[1] * (len(sizes) - len(constant.shape or ())), *(constant.shape or ())]
    if full[form.axis] != 1:
        return None
    one = new.reshaped(new.given[constant.index], [1, *form.without(full)])
    return new.same(node, form, (Ref(one), _sizes(base, form, sizes)), {})


@_translates("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
def _filled(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    place = int(node.op.startswith("aten.new_"))
    found = _batch_among(new, node.args[place], node.shape or ())
    if found is None:
        return None
    base, form = found
    like = [Ref(new.held[r.index][0] if r.index in new.held else new.as_given(r.index)) for r in node.args[:place]]
    return new.same(node, form, (*like, _sizes(base, form, node.args[place]), *node.args[place + 1 :]))


@_translates("repeat_interleave")
def _repeated_each(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    held, times, axis = new.source(node), node.argument(1, "repeats"), node.argument(2, "dim")
    if held is None or type(times) is not int or type(axis) is not int or times < 1:
        return None
    index, form = held
    axis %= len(node.shape or ())
    if axis != form.axis:
        return _along_axes(new, node)
    if form.inner > 1:
        return None
    inside = dataclasses.replace(form, inner=times)
    assert node.shape is not None
    shape = inside.shape(node.shape)
    place = form.axis + 1 + (form.outer > 1)
    one = new.reshaped(index, [*shape[:place], 1, *shape[place + 1 :]])
    if times == 1:
        return one, inside
    return new.same(node, inside, (Ref(one), [-1, *shape[1:]]), {}, op="aten.expand", target=aten.expand.default)


# where the axes that they work along stand among the arguments
_AXES = {
    **dict.fromkeys(("yuzu.sum_of_slice", "yuzu.mean_of_slice"), (1, "dim")),
    **{
        f"aten.{name}": (1, "dim")
        for name in (
            "softmax _softmax log_softmax _log_softmax cumsum cumprod logcumsumexp glu select slice index_select "
            "sum mean amax amin max min logsumexp var std prod any all argmax argmin median nanmedian mode nansum "
            "count_nonzero sort cummax cummin"
        ).split()
    },
    **{f"aten.{name}": (2, "dim") for name in "kthvalue quantile nanquantile norm topk".split()},
    "aten.flip": (1, "dims"),
    "aten.roll": (2, "dims"),
    "aten.linalg_vector_norm": (2, "dim"),
    "aten.repeat_interleave": (2, "dim"),
}
_LAST = {"aten.slice": 0, **{f"aten.{name}": -1 for name in "glu sort topk kthvalue mode".split()}}


@_translates(*(name for name in _AXES if name != "aten.repeat_interleave"))
def _along_axes(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    """An operation along other axes than the batch's."""
    held = new.source(node)
    tensors = [i for i in node.inputs if new.nodes[i].shape is not None]
    if node.op in ("aten.max", "aten.min") and len(tensors) == 2:
        return _pointwise(new, node)
    position, name = _AXES[node.op]
    given = node.argument(position, name, _LAST.get(node.op))
    if held is None or not all(new.constant(Ref(i)) for i in node.inputs if i != node.args[0].index):
        return None
    (index, form), rank = held, len(new.nodes[node.args[0].index].shape or ())
    listed = [given] if type(given) is int else given
    if not isinstance(listed, list | tuple) or not listed:
        return None  # along all axes
    axes = [axis % rank for axis in listed]
    cut = node.target if isinstance(node.target, OfSlice) else None
    if form.axis in axes:
        return None
    moved: Any = form.place(axes[0]) if type(given) is int else [form.place(axis) for axis in axes]
    args, kwargs = _with_argument(node, position, name, moved, index)
    args, kwargs = map_refs((args[1:], kwargs), lambda ref: Ref(new.as_given(ref.index)))
    removed = len(node.shape or ()) < rank
    left = dataclasses.replace(form, axis=form.axis - removed * sum(axis < form.axis for axis in set(axes)))
    changes = {} if cut is None else {"target": OfSlice(cut.target, form.place(cut.axis), cut.start, cut.stop)}
    return new.same(node, left, (Ref(index), *args), kwargs, **changes)


@_translates("linear")
def _linear(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    return _on_last_axes(new, node, 1)


@_translates("layer_norm", "native_layer_norm", "rms_norm")
def _layer_norm(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    return _on_last_axes(new, node, len(node.args[1]))


def _on_last_axes(new: BatchFirst, node: Node, count: int) -> tuple[int, Form] | None:
    """An operation on the last axes of its first argument by constants."""
    held = new.source(node)
    others = [i for i in node.inputs if i != node.args[0].index]
    if held is None or not all(new.constant(Ref(i)) for i in others):
        return None
    index, form = held
    if form.axis >= len(new.nodes[node.args[0].index].shape or ()) - count:
        return None
    args, kwargs = map_refs((node.args[1:], node.kwargs), lambda ref: Ref(new.given[ref.index]))
    return new.same(node, form, (Ref(index), *args), kwargs)


@_translates("matmul", "bmm", "mm")
def _matrix_product(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    left, right = node.args[:2]
    ranks = [len(new.nodes[ref.index].shape or ()) for ref in (left, right)]
    changes = {"op": "aten.matmul", "target": aten.matmul.default}
    if new.constant(right) and ranks[1] <= 2:
        held = new.source(node)
        if held is None or held[1].axis == ranks[0] - 1:
            return None
        return new.same(node, held[1], (Ref(held[0]), Ref(new.given[right.index])), {}, **changes)
    found = new.all_aligned(node, len(node.shape or ()), 2) if min(ranks) > 1 else None
    if found is None:
        return _rows_times_constants(new, node) if new.constant(right) else None
    return new.same(node, found[1], found[0][0], {}, **changes)


def _rows_times_constants(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    """``(H, B * T, D)`` times a constant ``(H, D, E)``: the batch lies among the rows of the matrices."""
    held, shape = new.source(node), list(node.shape or ())
    own = list(new.nodes[node.args[0].index].shape or ())
    if held is None or held[1].axis != len(shape) - 2 or len(own) != len(shape):
        return None
    (index, form), matrices = held, Ref(new.given[node.args[1].index])
    rows = form.outer * form.inner
    left = new.reshaped(index, (form.size, *own[:-2], rows, own[-1]))
    changes = {"op": "aten.matmul", "target": aten.matmul.default, "shape": (form.size, *shape[:-2], rows, shape[-1])}
    product, _ = new.same(node, form, (Ref(left), matrices), {}, **changes)
    return new.reshaped(product, form.shape(shape)), form


@_translates("baddbmm")
def _product_and_sum(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    found = new.all_aligned(node, len(node.shape or ()), 2)
    if found is None or len(node.args) > 3 or node.kwargs:
        return None
    ((term, left, right), _), form = found
    product, _ = new.same(node, form, (left, right), {}, op="aten.matmul", target=aten.matmul.default)
    return new.same(node, form, (Ref(product), term), {}, op="aten.add", target=aten.add.Tensor)


@_translates("scaled_dot_product_attention")
def _attention(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    found = new.all_aligned(node, len(node.shape or ()), 2)
    return None if found is None else new.same(node, found[1], *found[0])


@_translates("einsum")
def _einsum(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    equation, operands = node.args[0].replace(" ", ""), node.args[1]
    if "." in equation or "->" not in equation or len(node.args) > 2:
        return None
    inputs, result = equation.split("->")
    labels = inputs.split(",")
    letters: set[tuple[str, int | None]] = set()
    places: list[Ref] = []
    for i, ref in enumerate(operands):
        if new.constant(ref):
            places.append(Ref(new.given[ref.index]))
            continue
        if ref.index not in new.held or new.held[ref.index][1].beside:
            return None
        index, form = new.held[ref.index]
        letter = labels[i][form.axis]
        letters.add((letter, form.size))
        labels[i] = letter + labels[i].replace(letter, "")
        places.append(Ref(index))
    if len(letters) != 1:
        return None
    ((letter, size),) = letters
    if any(letter in label for ref, label in zip(operands, labels, strict=True) if new.constant(ref)):
        return None
    if result.count(letter) != 1:
        return None
    equation = f"{','.join(labels)}->{letter}{result.replace(letter, '')}"
    return new.same(node, Form(result.index(letter), size=size), (equation, places))


@_translates("cat", "concat", "stack")
def _joined(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    stacked, parts = node.op == "aten.stack", list(node.args[0])
    ranks = {len(new.nodes[ref.index].shape or ()) for ref in parts}
    if len(ranks) != 1 or any(new.constant(ref) for ref in parts):
        return None
    (rank,) = ranks
    form = new.common_form(parts, rank)
    if form is None:
        return None
    axis = node.argument(1, "dim", 0) % (rank + stacked)
    if not stacked and axis == form.axis:
        return None
    after = dataclasses.replace(form, axis=form.axis + (stacked and axis <= form.axis))
    return new.same(node, after, ([Ref(new.held[ref.index][0]) for ref in parts], after.place(axis)), {})


@_translates("pad", "constant_pad_nd")
def _padded(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    held, rank = new.source(node), len(node.shape or ())
    if held is None or (node.op == "aten.pad" and node.argument(2, "mode", "constant") != "constant"):
        return None
    index, form = held
    given = [*node.args[1], *[0] * (2 * rank - len(node.args[1]))]
    sizes = [given[2 * (rank - 1 - axis) : 2 * (rank - axis)] for axis in range(rank)]  # by axis
    if any(sizes[form.axis]):
        return None
    flat = [size for pair in reversed(form.without(sizes, [0, 0])) for size in pair]
    return new.same(node, form, (Ref(index), flat, *node.args[2:]))


@_translates("index")
def _picked(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    held = new.source(node)
    given = [(axis, index) for axis, index in enumerate(node.args[1]) if index is not None]
    if held is None or len(given) != 1 or not new.constant(given[0][1]):
        return None
    (index, form), ((axis, which),) = held, given
    if axis == form.axis or len(new.nodes[which.index].shape or ()) != 1:
        return None
    return new.same(node, form, (Ref(index), [*[None] * form.place(axis), Ref(new.given[which.index])]), {})


@_translates("embedding", "one_hot")
def _numbered(new: BatchFirst, node: Node) -> tuple[int, Form] | None:
    place = int(node.op == "aten.embedding")
    numbers = node.args[place]
    if numbers.index not in new.held or not all(new.constant(arg) for arg in node.args[:place]):
        return None
    index, form = new.held[numbers.index]
    before = [Ref(new.given[arg.index]) for arg in node.args[:place]]
    return new.same(node, form, (*before, Ref(index), *node.args[place + 1 :]))


def batch_first(nodes: list[Node], outputs: list[Any]) -> tuple[list[Node], list[Any], dict[int, int]]:
    """The nodes with the batch in front, renumbered; the outputs' new indices; and the new index of every node that is
    held with the batch in front. All as it was where the model has it there anyway.
    """
    if all(batch_axes(node.shape) in ([], [0]) and (node.shape or (None,))[0] != -1 for node in nodes):
        return nodes, outputs, {node.index: node.index for node in nodes}
    new = BatchFirst(nodes)
    outputs = [new.as_given(o) if isinstance(o, int) else o for o in outputs]
    return new.found, outputs, {i: index for i, (index, _) in new.held.items()}


__all__ = ["batch_first", "order_of"]
