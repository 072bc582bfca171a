"""Facts about PyTorch's operations: one table, one row an operation.

Capturing, rewriting and planning ask this table, and never what handlers there are: a new handler changes no graph.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Op:
    """An operation, by its name without overload. A fact that its row does not state is false, or None.

    Attributes
    ----------
    name: str
        Such as ``"aten.conv1d"``.
    composite: bool
        Capture takes it apart into smaller operations.
    retraced: bool
        A second trace makes another operation of it, or none; so do those of all that are not in the table.
    recurrent: bool
        It is a recurrent layer or one step of it.
    draws: bool
        It draws random numbers, and PyTorch has no tag that says so.
    dropout: bool
        It draws random numbers while training.
    shape_only: bool
        Its result depends on the shape of its first argument alone.
    made_like: bool
        Its result depends on its arguments after the first.
    overwrites: bool
        Nothing is left of the values of its first argument.
    copies: bool
        In evaluation mode it returns its first argument.
    casts: bool
        It changes the dtype of its first argument.
    reshapes: bool
        It gives the elements of its first argument, in their order, another shape.
    flattens: bool
        It is a reshape that models use to put channels and positions on one axis.
    moves: bool
        It returns elements of its first argument, in another order or shape.
    splits: bool
        It returns parts of its first argument.
    joins: bool
        It joins tensors along an axis that they have.
    picked: bool
        It returns several results, each of which is computed by itself where several are read. To sort twice takes less
        than to keep whole mutants. Handlers know that the result may be another than the first.
    by_rows: int or None
        With so many axes, its first argument has sequences on the first axis, each treated by itself if ``dim`` is
        another axis and the other arguments are constant.
    axes: (int, str) or None
        Place and name of the argument that says along which axes it works.
    default_axis: int or None
        The axis that it works along if none is given.
    convolves: bool
        It is a convolution over one or two axes.
    maximum_pool: bool
        It is a maximum pool over one or two axes.
    batch_norm: bool
        It normalises channels by constants.
    training: int or None
        Place of the argument that has it use the statistics of the batch.
    bias: int or None
        Place of the bias that it adds to each channel.
    epsilon: int or None
        Place of the number that it adds under its root.
    pointwise: bool
        It treats elements by themselves, and some version of PyTorch does not tag it so.
    monotone: bool
        It is a function of elements that never falls, if none of its numbers is negative.
    softmax: bool
        It is a softmax.
    chooses: bool
        Its results are elements of its arguments.
    bounded_slope: bool
        It is not linear, and its slope is bounded where values are. That of a root, a logarithm, a quotient, a norm or
        a comparison is not.
    smooth: bool
        Its derivatives of all orders are bounded where values are, except near a pole or the end of its domain.
    gentle: bool
        Its slope may be large, but only where what it reads is large.
    nonzero: bool
        Its results are zero only by chance.
    makes_zeros: bool
        It makes zeros of other numbers.
    small_of_small: bool
        Its results are small only where what it reads is small, or they are exactly zero.
    """

    name: str
    composite: bool = False
    retraced: bool = False
    recurrent: bool = False
    draws: bool = False
    dropout: bool = False
    shape_only: bool = False
    made_like: bool = False
    overwrites: bool = False
    copies: bool = False
    casts: bool = False
    reshapes: bool = False
    flattens: bool = False
    moves: bool = False
    splits: bool = False
    joins: bool = False
    picked: bool = False
    by_rows: int | None = None
    axes: tuple[int, str] | None = None
    default_axis: int | None = None
    convolves: bool = False
    maximum_pool: bool = False
    batch_norm: bool = False
    training: int | None = None
    bias: int | None = None
    epsilon: int | None = None
    pointwise: bool = False
    monotone: bool = False
    softmax: bool = False
    chooses: bool = False
    bounded_slope: bool = False
    smooth: bool = False
    gentle: bool = False
    nonzero: bool = False
    makes_zeros: bool = False
    small_of_small: bool = False


def of(name: str) -> Op:
    """The facts about an operation; none for one that is not in the table."""
    return _TABLE.get(name, _UNKNOWN)


@functools.cache
def with_fact(fact: str) -> frozenset[str]:
    """The names of the operations of which a fact is true, or has a value."""
    return frozenset(op.name for op in _ROWS if not any(getattr(op, fact) is nothing for nothing in (False, None)))


def stays_whole(name: str) -> bool:
    """Return whether a second trace leaves an operation as it is."""
    facts = of(name)
    return facts is not _UNKNOWN and not (facts.retraced or facts.composite or facts.draws)


def is_pointwise(name: str, target: Any) -> bool:
    """Return whether an operation treats elements by themselves, by the table or by its tag in PyTorch."""
    return of(name).pointwise or torch.Tag.pointwise in getattr(target, "tags", ())


# Operations with a handler that the table does not know, or that capture takes apart: all are the user's.
_OF_THE_USER: set[str] = set()


def note_handler(name: str) -> None:
    """Take note of a handler. The table has a row for each operation that we have a handler for, so it changes nothing
    for these. Any other is the user's: from now on capture leaves it whole, and it counts as one that treats sequences
    by themselves. Graphs without that operation stay as they are.
    """
    if "." in name and not stays_whole(name):
        _OF_THE_USER.add(name)


def has_users_handler(name: str) -> bool:
    """Return whether the user has a handler for an operation that has no row, or that capture takes apart."""
    return name in _OF_THE_USER


def name_of(target: Any) -> str:
    """The name of an operation, such as ``"aten.conv1d"`` or ``"operator.mul"``, without overload."""
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target._schema.name.split('::')[1]}"
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', str(target))}".lstrip("_")


def _op(name: str, true: str = "", **values: Any) -> Op:
    """A row: the facts that are ``true`` of an operation, and the values of others."""
    facts: dict[str, Any] = {**dict.fromkeys(true.split(), True), **values}
    return Op(name if "." in name else f"aten.{name}", **facts)


_ROWS = (
    # Convolutions, and products with weights
    _op("conv1d", "convolves", by_rows=3, bias=2),
    _op("conv2d", "convolves", by_rows=4, bias=2),
    _op("conv3d", by_rows=5),
    _op("conv_transpose1d", by_rows=3, bias=2),
    _op("conv_transpose2d", by_rows=4),
    _op("conv_transpose3d", by_rows=5),
    _op("linear", bias=2),
    _op("addmm", bias=0),
    _op("baddbmm"),
    _op("bmm"),
    _op("mm"),
    _op("matmul"),
    _op("bilinear"),
    _op("einsum"),
    _op("scaled_dot_product_attention", "gentle"),
    _op("embedding"),
    _op("one_hot"),
    _op("inner", "composite"),
    _op("tensordot", "composite"),
    # An operation on several rows of each sequence
    _op("yuzu.on_parts"),
    # Recurrent layers, and one step of each
    _op("yuzu.recurrence", "recurrent"),
    _op("lstm", "recurrent"),
    _op("gru", "recurrent"),
    _op("rnn_tanh", "recurrent"),
    _op("rnn_relu", "recurrent"),
    _op("lstm_cell", "recurrent"),
    _op("gru_cell", "recurrent"),
    _op("rnn_tanh_cell", "recurrent"),
    _op("rnn_relu_cell", "recurrent"),
    # Normalisations
    _op("batch_norm", "batch_norm nonzero", by_rows=2, training=5),
    _op("native_batch_norm", "batch_norm nonzero", by_rows=2, training=5),
    _op("_native_batch_norm_legit_no_training", "batch_norm nonzero", by_rows=2),
    _op("instance_norm", by_rows=2, training=5, epsilon=7),
    _op("group_norm", by_rows=2, bias=3, epsilon=4),
    _op("layer_norm", "smooth", bias=3, epsilon=4),
    _op("native_layer_norm", epsilon=4),
    _op("rms_norm", "smooth"),
    # Pools, and other sizes of an axis
    _op("max_pool1d", "maximum_pool bounded_slope", by_rows=3),
    _op("max_pool2d", "maximum_pool bounded_slope", by_rows=4),
    _op("max_pool1d_with_indices", "maximum_pool bounded_slope", by_rows=3),
    _op("max_pool2d_with_indices", "maximum_pool bounded_slope", by_rows=4),
    _op("max_pool3d", by_rows=5),
    _op("avg_pool1d", "bounded_slope", by_rows=3),
    _op("avg_pool2d", "bounded_slope", by_rows=4),
    _op("avg_pool3d", by_rows=5),
    _op("adaptive_avg_pool1d", "bounded_slope", by_rows=3),
    _op("adaptive_avg_pool2d", "composite"),
    _op("adaptive_avg_pool3d", "composite"),
    _op("_adaptive_avg_pool2d", by_rows=4),
    _op("_adaptive_avg_pool3d", by_rows=5),
    _op("adaptive_max_pool1d", "bounded_slope", by_rows=3),
    _op("adaptive_max_pool2d", by_rows=4),
    _op("adaptive_max_pool3d", by_rows=5),
    _op("upsample_nearest1d", "bounded_slope", by_rows=3),
    _op("upsample_nearest2d", by_rows=4),
    _op("upsample_nearest3d", by_rows=5),
    _op("_upsample_nearest_exact1d", by_rows=3),
    _op("_upsample_nearest_exact2d", by_rows=4),
    _op("upsample_linear1d", by_rows=3),
    _op("upsample_bilinear2d", by_rows=4),
    _op("upsample_bicubic2d", by_rows=4),
    _op("upsample_trilinear3d", by_rows=5),
    _op("_upsample_bilinear2d_aa", by_rows=4),
    _op("_upsample_bicubic2d_aa", by_rows=4),
    _op("grid_sampler"),
    _op("unfold", by_rows=2),
    _op("yuzu.row_strides", by_rows=2),
    _op("im2col", by_rows=4),
    _op("col2im", by_rows=3),
    # Activations
    _op("relu", "monotone bounded_slope makes_zeros small_of_small"),
    _op("relu6", "monotone bounded_slope makes_zeros"),
    _op("leaky_relu", "monotone pointwise bounded_slope small_of_small"),
    _op("prelu", "bounded_slope small_of_small", by_rows=2),
    _op("_prelu_kernel", "bounded_slope small_of_small", by_rows=2),
    _op("elu", "monotone bounded_slope"),
    _op("celu", "bounded_slope"),
    _op("selu", "monotone bounded_slope small_of_small"),
    _op("gelu", "bounded_slope small_of_small smooth"),
    _op("silu", "bounded_slope small_of_small smooth"),
    _op("mish", "bounded_slope small_of_small smooth"),
    _op("softplus", "bounded_slope nonzero smooth"),
    _op("log_sigmoid", "pointwise bounded_slope nonzero smooth"),
    _op("sigmoid", "monotone bounded_slope nonzero smooth"),
    _op("tanh", "monotone bounded_slope smooth"),
    _op("hardtanh", "monotone bounded_slope makes_zeros"),
    _op("hardsigmoid", "bounded_slope makes_zeros"),
    _op("hardswish", "pointwise bounded_slope makes_zeros small_of_small"),
    _op("hardshrink", "makes_zeros small_of_small"),
    _op("softshrink", "makes_zeros small_of_small"),
    _op("threshold", "makes_zeros"),
    _op("glu", "bounded_slope", axes=(1, "dim"), default_axis=-1),
    _op("softmax", "softmax bounded_slope nonzero smooth", axes=(1, "dim")),
    _op("_softmax", "softmax bounded_slope nonzero smooth", axes=(1, "dim")),
    _op("log_softmax", "bounded_slope nonzero smooth", axes=(1, "dim")),
    _op("_log_softmax", "bounded_slope nonzero smooth", axes=(1, "dim")),
    # Functions of elements
    _op("abs", "bounded_slope"),
    _op("neg"),
    _op("sign", "makes_zeros"),
    _op("sgn", "makes_zeros"),
    _op("round", "makes_zeros"),
    _op("floor", "makes_zeros"),
    _op("ceil", "makes_zeros"),
    _op("trunc", "makes_zeros"),
    _op("exp", "bounded_slope nonzero smooth"),
    _op("expm1", "gentle smooth"),
    _op("pow", "retraced smooth"),
    _op("sqrt", "retraced smooth"),
    _op("rsqrt", "retraced smooth"),
    _op("reciprocal", "retraced smooth"),
    _op("square", "gentle smooth"),
    _op("sin", "bounded_slope smooth"),
    _op("cos", "bounded_slope nonzero smooth"),
    _op("sinh", "gentle smooth"),
    _op("cosh", "gentle smooth"),
    _op("asinh", "gentle smooth"),
    _op("atan", "gentle smooth"),
    _op("erf", "gentle smooth"),
    _op("erfc", "gentle smooth"),
    _op("add"),
    _op("sub"),
    _op("rsub"),
    _op("mul", "smooth"),
    _op("div", "smooth"),
    _op("floor_divide", "pointwise"),
    _op("addcmul", "gentle"),
    _op("lerp", "gentle"),
    _op("clamp", "bounded_slope makes_zeros"),
    _op("clamp_min", "bounded_slope makes_zeros"),
    _op("clamp_max", "bounded_slope makes_zeros"),
    _op("maximum", "bounded_slope makes_zeros"),
    _op("minimum", "bounded_slope makes_zeros"),
    _op("where", "pointwise chooses gentle makes_zeros"),
    _op("masked_fill", "pointwise chooses gentle makes_zeros"),
    _op("__and__", "pointwise"),
    _op("__or__", "pointwise"),
    _op("__xor__"),
    _op("complex", "pointwise"),
    _op("polar", "pointwise"),
    _op("_conj", by_rows=1),
    _op("resolve_conj", by_rows=1),
    _op("_neg_view", by_rows=1),
    _op("resolve_neg", by_rows=1),
    # Reductions
    _op("sum", axes=(1, "dim")),
    _op("nansum", axes=(1, "dim")),
    _op("mean", axes=(1, "dim")),
    _op("nanmean", "composite"),
    _op("prod", "gentle", axes=(1, "dim")),
    _op("any", axes=(1, "dim")),
    _op("all", axes=(1, "dim")),
    _op("count_nonzero", axes=(1, "dim")),
    _op("amax", "bounded_slope", axes=(1, "dim")),
    _op("amin", "bounded_slope", axes=(1, "dim")),
    _op("aminmax", "composite"),
    _op("max", "picked bounded_slope", axes=(1, "dim")),
    _op("min", "picked bounded_slope", axes=(1, "dim")),
    _op("argmax", axes=(1, "dim")),
    _op("argmin", axes=(1, "dim")),
    _op("median", "picked", axes=(1, "dim")),
    _op("nanmedian", "picked", axes=(1, "dim")),
    _op("mode", "picked", axes=(1, "dim"), default_axis=-1),
    _op("kthvalue", "picked", axes=(2, "dim"), default_axis=-1),
    _op("quantile", axes=(2, "dim")),
    _op("nanquantile", axes=(2, "dim")),
    _op("logsumexp", "bounded_slope nonzero smooth", axes=(1, "dim")),
    _op("var", axes=(1, "dim")),
    _op("std", axes=(1, "dim")),
    _op("var_mean", "composite"),
    _op("std_mean", "composite"),
    _op("norm", axes=(2, "dim")),
    _op("linalg_vector_norm", axes=(2, "dim")),
    _op("yuzu.shifted_exp", "nonzero"),
    _op("yuzu.sum_of_slice", axes=(1, "dim")),
    _op("yuzu.mean_of_slice", axes=(1, "dim")),
    # Along an axis
    _op("cumsum", "gentle", axes=(1, "dim")),
    _op("cumprod", "gentle", axes=(1, "dim")),
    _op("logcumsumexp", axes=(1, "dim")),
    _op("cummax", "picked", axes=(1, "dim")),
    _op("cummin", "picked", axes=(1, "dim")),
    _op("sort", "picked", axes=(1, "dim"), default_axis=-1),
    _op("topk", "picked", axes=(2, "dim"), default_axis=-1),
    _op("argsort", "composite"),
    _op("msort", "composite"),
    _op("flip", "bounded_slope", axes=(1, "dims")),
    _op("roll", "gentle", axes=(2, "dims")),
    _op("diff", "composite"),
    _op("trapezoid", "composite"),
    _op("trapz", "composite"),
    _op("cumulative_trapezoid", "composite"),
    _op("yuzu.long_convolution"),
    _op("fft_fft", by_rows=2),
    _op("fft_ifft", by_rows=2),
    _op("fft_rfft", by_rows=2),
    _op("fft_irfft", by_rows=2),
    _op("fft_hfft", by_rows=2),
    _op("fft_ihfft", by_rows=2),
    # Matrices and distances
    _op("tril", by_rows=3),
    _op("triu", by_rows=3),
    _op("diagonal"),
    _op("diag_embed"),
    _op("det", by_rows=3),
    _op("logdet", "composite"),
    _op("matrix_exp", by_rows=3),
    _op("linalg_cholesky", by_rows=3),
    _op("linalg_cross"),
    _op("linalg_eigvalsh", by_rows=3),
    _op("linalg_inv", by_rows=3),
    _op("linalg_matrix_norm", "composite"),
    _op("linalg_matrix_power", by_rows=3),
    _op("linalg_norm", "composite"),
    _op("linalg_pinv", by_rows=3),
    _op("linalg_slogdet", "picked", by_rows=3),
    _op("linalg_solve"),
    _op("linalg_svdvals", by_rows=3),
    _op("linalg_vecdot", "composite"),
    _op("cdist"),
    _op("cosine_similarity", "composite"),
    _op("pairwise_distance", "composite"),
    _op("kl_div", "composite"),
    # Shapes, and orders of axes
    _op("view", "reshapes flattens"),
    _op("reshape", "reshapes flattens moves"),
    _op("_unsafe_view", "reshapes"),
    _op("flatten", "reshapes flattens moves"),
    _op("unflatten", "reshapes"),
    _op("squeeze", "moves"),
    _op("unsqueeze", "moves"),
    _op("expand"),
    _op("permute", "moves"),
    _op("transpose", "moves"),
    _op("movedim"),
    _op("swapaxes"),
    _op("repeat"),
    _op("tile"),
    _op("repeat_interleave", axes=(2, "dim")),
    _op("view_as_complex"),
    _op("view_as_real"),
    _op("rot90", "composite"),
    _op("channel_shuffle", "composite"),
    _op("pixel_shuffle", "composite"),
    _op("pixel_unshuffle", "composite"),
    _op("atleast_1d", "composite"),
    _op("atleast_2d", "composite"),
    _op("atleast_3d", "composite"),
    _op("broadcast_tensors", "composite"),
    # Parts and joins
    _op("slice", "moves", axes=(1, "dim"), default_axis=0),
    _op("select", "moves", axes=(1, "dim")),
    _op("index"),
    _op("index_select", axes=(1, "dim")),
    _op("gather"),
    _op("take_along_dim", "composite"),
    _op("yuzu.index_of_rows"),
    _op("split", "retraced splits"),
    _op("split_with_sizes", "retraced splits"),
    _op("chunk", "retraced splits"),
    _op("unbind", "retraced splits"),
    _op("cat", "joins"),
    _op("concat", "joins"),
    _op("stack"),
    _op("hstack", "composite"),
    _op("vstack", "composite"),
    _op("dstack", "composite"),
    _op("column_stack", "composite"),
    _op("pad", "gentle"),
    _op("constant_pad_nd", "gentle"),
    _op("scatter"),
    _op("scatter_add"),
    _op("scatter_reduce"),
    _op("index_add"),
    _op("index_copy"),
    _op("index_fill"),
    _op("index_put", "composite"),
    _op("slice_scatter", "composite"),
    _op("select_scatter", "composite"),
    _op("searchsorted"),
    _op("bucketize"),
    # Copies and casts
    _op("clone", "copies"),
    _op("contiguous", "copies"),
    _op("detach", "copies"),
    _op("alias", "copies"),
    _op("lift_fresh_copy", "copies"),
    _op("to", "casts"),
    _op("_to_copy", "casts"),
    _op("type_as", "casts"),
    _op("copy", "overwrites pointwise"),
    _op("fill", "overwrites pointwise"),
    _op("zero", "retraced overwrites"),
    # Made of sizes, or of another tensor's shape
    _op("zeros"),
    _op("ones"),
    _op("full"),
    _op("empty"),
    _op("new_zeros", "shape_only made_like"),
    _op("new_ones", "shape_only made_like"),
    _op("new_full", "shape_only made_like"),
    _op("new_empty", "retraced made_like"),
    _op("zeros_like", "shape_only"),
    _op("ones_like", "shape_only"),
    _op("full_like", "shape_only"),
    _op("sym_size", "shape_only"),
    # Random numbers
    _op("dropout", "dropout copies"),
    _op("feature_dropout", "dropout copies"),
    _op("alpha_dropout", "retraced dropout"),
    _op("feature_alpha_dropout", "retraced dropout"),
    _op("native_dropout", "retraced dropout"),
    _op("normal_functional", "draws"),
    _op("binomial", "draws"),
    _op("_sample_dirichlet", "draws"),
)

_UNKNOWN = Op("")
_TABLE = {op.name: op for op in _ROWS}
assert len(_TABLE) == len(_ROWS), "an operation has two rows"
