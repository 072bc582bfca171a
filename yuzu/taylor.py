"""First-order Taylor approximation of in-silico mutagenesis, and scores that are made like it.

Taylor ISM (Sasse, Chikina and Mostafavi, *Quick and effective approximation of in silico saturation mutagenesis
experiments with first-order Taylor expansion*, iScience 2024) needs one backward pass of an output where ISM needs
``L (C - 1)`` forward passes. With ``g`` the gradient of an output at the sequence ``x``, ``g_b`` its value at character
``b`` of a position, ``r`` the reference character there and ``p`` a baseline, the outputs are, at every position:

| output | at character ``b`` |
|---|---|
| ``local`` | ``g_b``: the gradient itself |
| ``corrected`` | ``g_b - mean(g)``: without its part off the simplex of one-hot letters (Majdandzic et al. 2023) |
| ``hypothetical`` | ``g_b - sum(p g)``: the contribution of character ``b`` against the baseline, were it there |
| ``global`` | ``(x_b - p_b) g_b``: gradient times difference; its sum is the ``hypothetical`` of ``r`` |
| ``tism`` | ``g_b - g_r``: the expected change of the output when ``b`` is written over ``r`` |

``tism`` is exact for a linear model. `correct_multipliers` makes the same of any score in place of the gradient: of
DeepLIFT's multipliers (`deepliftshap`), and of ISM (`ism`), whose ``tism`` it is itself and whose ``hypothetical``
against the uniform baseline is centred ISM.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch.utils import _pytree as pytree

from yuzu._engine.arrays import Array, Device
from yuzu._engine.capture.model_copy import evaluation_copy, model_dtype, on_copies
from yuzu._engine.checks import (
    check_args,
    check_choice,
    check_count,
    check_device,
    check_func,
    check_model,
    check_sequences,
    from_numpy,
    to_user,
)
from yuzu._engine.gate import running
from yuzu._engine.gradients import backward_in_evaluation, check_tracks, flat_outputs, gradients
from yuzu._engine.kernels.precision import products
from yuzu._engine.progress import tqdm
from yuzu._engine.run.naive import explained, try_model
from yuzu._engine.store.precomputation import Precomputation
from yuzu.attribution import hypothetical, mean_effect
from yuzu.errors import YuzuError
from yuzu.predict import predict_first
from yuzu.yuzu_ism import yuzu_ism

__all__ = ["correct_multipliers", "deepliftshap", "ism", "takegrad"]

OUTPUTS = ("local", "global", "corrected", "hypothetical", "tism")
ISM_OUTPUTS = ("ism", "predictions", "ism_attributions", "mean_effects")


@torch.inference_mode(False)  # which has no gradients
def takegrad(
    x: Array,
    model: torch.nn.Module,
    tracks: int | Sequence[int] | None = None,
    output: str = "corrected",
    device: Device = None,
    baseline: Any = None,
    *,
    args: tuple[Any, ...] | None = None,
    func: Callable[[Any], Any] | None = None,
    batch_size: int = 32,
    verbose: bool = False,
) -> Array:
    """Gradients of a model's outputs at sequences, as attributions; see the module for the formulas.

    Parameters
    ----------
    x: torch.Tensor or numpy.ndarray, shape=(n, C, L)
        One-hot sequences.
    model: torch.nn.Module
        It runs with evaluation semantics, and is never changed.
    tracks: int, list of int or None
        The outputs, counted over everything that the model returns for a sequence: a ``(n, T)`` tensor has ``T``, one
        of shape ``(n, A, B)`` has ``A * B`` in order, and the tensors of a list, tuple or dict follow each other.
        Default None: all.
    output: str
        ``"local"``, ``"global"``, ``"corrected"`` (default), ``"hypothetical"`` or ``"tism"``.
    device: str, torch.device or None
        Default None: CUDA when available and the CPU otherwise.
    baseline: array or None, shape=(C,), (C, L) or (n, C, L)
        For ``"global"`` and ``"hypothetical"``. Default None: ``1 / C`` everywhere.
    args: tuple of arrays or None
        The model's inputs after the sequence, each with ``n`` rows. Default None.
    func: callable or None
        Applied to the model's output, before ``tracks``. Default None.
    batch_size: int
        Sequences in one forward pass. Default 32.
    verbose: bool
        Whether to show a progress bar. Default False.

    Returns
    -------
    torch.Tensor (numpy.ndarray for a numpy ``x``), shape=(n, tracks, C, L), the model's dtype

    Raises
    ------
    ValueError
        For bad input, before any work, and for tracks that do not exist or do not depend on the sequence.

    Examples
    --------
    >>> import yuzu
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> model, X = load_ctcf_model(), load_ctcf_peaks().X[:2]  # (2, 4, 100)
    >>> yuzu.taylor.takegrad(X, model, output="tism").shape  # (n, tracks, C, L)
    torch.Size([2, 1, 4, 100])
    """
    check_model(model)
    check_choice("output", output, OUTPUTS)
    dtype, found = model_dtype(model), check_device(device)
    X = check_sequences(x, dtype, name="x", least_choices=1)
    base = _check_baseline(baseline, X)
    extra = check_args(args, len(X), dtype)
    batch_size = check_count("batch_size", batch_size)
    check_func(func)
    clone = evaluation_copy(model, found)
    parts = []
    starts = range(0, len(X), batch_size)
    for first in tqdm(starts, disable=not verbose, desc="gradients", unit="batch"):
        rows = slice(first, first + batch_size)
        rest = [a[rows].to(found) for a in extra]
        wrong = explained(clone, X, extra, found, "x")
        parts.append(_gradients(clone, X[rows].to(found), rest, func, tracks, wrong).cpu())
    result = correct_multipliers(torch.cat(parts), output, X, base)
    scores: Array = to_user(result, isinstance(x, np.ndarray))
    return scores


def _gradients(
    model: torch.nn.Module,
    X: torch.Tensor,
    args: list[torch.Tensor],
    func: Callable[[Any], Any] | None,
    tracks: int | Sequence[int] | None,
    wrong: contextlib.AbstractContextManager[None],
) -> torch.Tensor:
    """Gradients ``(n, tracks, C, L)``: one forward pass, inside a context that explains its errors, and a backward pass
    that carries many tracks together.
    """
    X = (
        X.detach().clone().requires_grad_()
    )  # a copy may have gradients, also one of a tensor that was made in inference mode
    recurrent = any(isinstance(module, torch.nn.RNNBase) for module in model.modules())
    with running(), torch.enable_grad(), backward_in_evaluation(recurrent), products("highest", X.device):
        with wrong:
            output = on_copies(model, X, *args)
        flat = flat_outputs(output if func is None else func(output), len(X))
        chosen = flat[:, check_tracks(tracks, flat.shape[1])]
        parts = [found for _, (found,) in gradients(chosen, [X])]
    return torch.cat(parts).transpose(0, 1)


def _check_baseline(baseline: Any, X: torch.Tensor) -> torch.Tensor | None:
    """``(C,)``, ``(C, L)`` or ``(n, C, L)``"""
    if baseline is None:
        return None
    try:
        found = torch.as_tensor(baseline).detach().to("cpu", X.dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise YuzuError(f"baseline must be an array of numbers, got {type(baseline).__name__}") from error
    shapes = [tuple(X.shape[1:2]), tuple(X.shape[1:]), tuple(X.shape)]
    if tuple(found.shape) not in shapes:
        raise YuzuError(f"baseline must have one of the shapes {shapes}, got {tuple(found.shape)}")
    if not bool(torch.isfinite(found).all()):
        raise YuzuError("baseline must be finite, got NaN or infinity")
    return found


@overload
def correct_multipliers(
    grad: torch.Tensor, output: str, x: Any, baseline: Any = None, channel_axis: int = -2
) -> torch.Tensor: ...


@overload
def correct_multipliers(
    grad: npt.NDArray[Any], output: str, x: Any, baseline: Any = None, channel_axis: int = -2
) -> npt.NDArray[Any]: ...


def correct_multipliers(grad: Any, output: str, x: Any, baseline: Any = None, channel_axis: int = -2) -> Any:
    """One of the outputs above, made of gradients or of any other score of every character.

    Parameters
    ----------
    grad: torch.Tensor or numpy.ndarray, shape=(n, tracks, C, L), or any other with the characters on ``channel_axis``
        and the positions right after it, and the sequences on the first axis
    output: str
        ``"local"``, ``"global"``, ``"corrected"``, ``"hypothetical"`` or ``"tism"``.
    x: torch.Tensor or numpy.ndarray, shape=(n, C, L)
        The one-hot sequences.
    baseline: array or None, shape=(C,), (C, L) or (n, C, L)
        Default None: ``1 / C`` everywhere.
    channel_axis: int
        Default -2.

    Returns
    -------
    Of the shape and kind of ``grad``.

    Raises
    ------
    ValueError
        For an unknown output and shapes that do not fit.

    Examples
    --------
    >>> import yuzu
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> model, X = load_ctcf_model(), load_ctcf_peaks().X[:2]  # (2, 4, 100)
    >>> gradient = yuzu.taylor.takegrad(X, model, output="local")
    >>> tism = yuzu.taylor.correct_multipliers(gradient, "tism", X)
    >>> bool((tism[:, 0][X == 1] == 0).all())
    True
    """
    check_choice("output", output, OUTPUTS)
    if not isinstance(grad, torch.Tensor | np.ndarray):
        raise YuzuError(f"grad must be a torch.Tensor or numpy.ndarray, got {type(grad).__name__}")
    values = from_numpy(grad, "grad") if isinstance(grad, np.ndarray) else grad.detach()
    if not values.is_floating_point():
        values = values.float()
    axis = channel_axis % values.dim() if -values.dim() <= channel_axis < values.dim() else -1
    if not 1 <= axis < values.dim() - 1:
        raise YuzuError(
            f"channel_axis={channel_axis} must be an axis of grad between the first and the last, got shape "
            f"{tuple(values.shape)}"
        )
    X = check_sequences(x, values.dtype, name="x", least_choices=1)
    if (values.shape[0], *values.shape[axis : axis + 2]) != tuple(X.shape):
        raise YuzuError(
            f"x must have the sequences, characters and positions of grad, got {tuple(X.shape)} for "
            f"{tuple(values.shape)} with characters on axis {axis}"
        )
    base = _check_baseline(baseline, X)
    if base is None:
        base = torch.full((X.shape[1],), 1 / X.shape[1], dtype=X.dtype)
    base = base[:, None] if base.dim() == 1 else base

    def beside(tensor: torch.Tensor) -> torch.Tensor:
        """``(n or 1, C, L)`` to broadcast against the scores."""
        tensor = tensor.expand(X.shape) if tensor.dim() == 3 else tensor.expand(X.shape[1:]).unsqueeze(0)
        shape = (tensor.shape[0], *[1] * (axis - 1), *X.shape[1:], *[1] * (values.dim() - axis - 2))
        return tensor.reshape(shape).to(values.device)

    if output == "corrected":
        values = values - values.mean(axis, keepdim=True)
    elif output == "hypothetical":
        values = values - (values * beside(base)).sum(axis, keepdim=True)
    elif output == "global":
        values = values * (beside(X) - beside(base))
    elif output == "tism":
        values = values - (values * beside(X)).sum(axis, keepdim=True)
    return to_user(values, isinstance(grad, np.ndarray))


def ism(
    x: Array,
    model: torch.nn.Module,
    tracks: int | Sequence[int] | None = None,
    start: int | None = 0,
    end: int | None = None,
    output: str = "ism",
    *,
    args: tuple[Any, ...] | None = None,
    func: Callable[[Any], Any] | None = None,
    precomputation: Precomputation | None = None,
    device: Device = None,
    verbose: bool = False,
) -> Array:
    """Exact ISM (`yuzu_ism`) in the shape and under the names of `takegrad`.

    Parameters
    ----------
    x, model, tracks, args, func, device, verbose
        As for `takegrad`.
    start, end: int or None
        The positions to mutate, by Python's slice rules. Default 0 and None: all.
    output: str
        ``"ism"`` (default): ``d = y(mutant) - y(reference)``. ``"predictions"``: ``y(mutant)``, with ``y(reference)``
        at the reference. ``"ism_attributions"``: ``d`` minus its mean over all ``C`` characters
        (`yuzu.attribution.hypothetical`). ``"mean_effects"``: minus the mean of ``d`` over the ``C - 1`` alternatives,
        at the reference, 0 elsewhere (`yuzu.attribution.mean_effect`).
    precomputation: Precomputation or None
        As for `yuzu_ism`.

    Returns
    -------
    torch.Tensor (numpy.ndarray for a numpy ``x``), shape=(n, tracks, C, end - start)

    Raises
    ------
    ValueError
        For bad input.

    Examples
    --------
    >>> import yuzu
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> model, X = load_ctcf_model(), load_ctcf_peaks().X[:2]  # (2, 4, 100)
    >>> yuzu.taylor.ism(X, model, tracks=0, start=40, end=50).shape  # (n, tracks, C, L')
    torch.Size([2, 1, 4, 10])
    """
    check_choice("output", output, ISM_OUTPUTS)
    check_model(model)
    X = check_sequences(x, None, name="x")
    kind = "prediction" if output == "predictions" else "delta"
    one = predict_first("x", model, X, args, func, device=device)
    # for a single (n, T) tensor the engine computes only these tracks
    single = isinstance(one, torch.Tensor) and one.ndim == 2
    chosen = None if tracks is None else check_tracks(tracks, flat_outputs(one, 1).shape[1])
    settings: dict[str, Any] = {
        "args": args,
        "func": func,
        "start": start,
        "end": end,
        "device": device,
        "verbose": verbose,
    }
    found = yuzu_ism(model, X, precomputation, output=kind, target=chosen if single else None, **settings)
    leaves = zip(pytree.tree_leaves(found), pytree.tree_leaves(one), strict=True)
    parts = [v for v, y in leaves if isinstance(y, torch.Tensor) and y.is_floating_point()]
    values = torch.cat([v.flatten(3) if v.dim() > 3 else v.unsqueeze(3) for v in parts], dim=3)
    scores = values if single or chosen is None else values[..., chosen]  # (n, C, L', tracks)
    if output == "ism_attributions":
        scores = hypothetical(scores)
    elif output == "mean_effects":
        first, stop, _ = slice(start, end).indices(X.shape[2])
        scores = mean_effect(scores, X[:, :, first:stop])
    result: Array = to_user(scores.permute(0, 3, 1, 2).contiguous(), isinstance(x, np.ndarray))
    return result


@torch.inference_mode(False)
def deepliftshap(
    x: Array,
    model: torch.nn.Module,
    tracks: int | Sequence[int] | None = None,
    output: str = "hypothetical",
    device: Device = None,
    baseline: Any = None,
    *,
    args: tuple[Any, ...] | None = None,
    n_shuffles: int = 20,
    random_state: int = 0,
    batch_size: int = 32,
    verbose: bool = False,
    **settings: Any,
) -> Array:
    """DeepLIFT/SHAP through tangermeme (``pip install tangermeme``), with the outputs of `takegrad`.

    Its multipliers take the place of the gradient. Without a ``baseline`` they are those against ``n_shuffles``
    dinucleotide shuffles of each sequence, each of which is the baseline for its own multipliers, and the outputs are
    averaged over them.

    Parameters
    ----------
    x, model, tracks, output, device, baseline, args, verbose
        As for `takegrad`; the model must return one tensor ``(n, T)``. ``output`` is ``"hypothetical"`` by default.
    n_shuffles, random_state: int
        The number of shuffles, and their seed. Default 20 and 0.
    batch_size: int
        Pairs of a sequence and a reference in one pass. Default 32.
    settings
        Further arguments of tangermeme's ``deep_lift_shap``, such as ``additional_nonlinear_ops``.

    Returns
    -------
    torch.Tensor (numpy.ndarray for a numpy ``x``), shape=(n, tracks, C, L)

    Raises
    ------
    ValueError
        For bad input.
    ImportError
        Where tangermeme is not installed.

    Examples
    --------
    >>> import yuzu
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> model, X = load_ctcf_model(), load_ctcf_peaks().X[:2]  # (2, 4, 100)
    >>> yuzu.taylor.deepliftshap(X, model, n_shuffles=5).shape  # doctest: +SKIP
    torch.Size([2, 1, 4, 100])
    """
    check_model(model)
    check_choice("output", output, OUTPUTS)
    try:
        tangermeme = importlib.import_module("tangermeme.deep_lift_shap")
    except ImportError as error:
        raise ImportError("deepliftshap runs tangermeme's: pip install tangermeme") from error
    dtype, found = model_dtype(model), check_device(device)
    X = check_sequences(x, dtype, name="x", least_choices=1)
    base = _check_baseline(baseline, X)
    extra = check_args(args, len(X), dtype)
    clone = evaluation_copy(model, found)
    value = try_model(clone, X, extra, found, "x")
    if not isinstance(value, torch.Tensor) or value.dim() != 2:
        raise YuzuError("the model must return one tensor of shape (n, tracks) for DeepLIFT/SHAP; wrap it to do so")
    if base is not None:
        base = base[:, None] if base.dim() == 1 else base
        settings["references"] = base.expand(X.shape).unsqueeze(1).contiguous()
        settings.setdefault("only_warn", True)  # a baseline need not be one-hot
    results = []
    for track in check_tracks(tracks, value.shape[1]):
        with warnings.catch_warnings():
            if base is not None:
                warnings.filterwarnings("ignore", message=".*one-hot.*")
            raw = tangermeme.deep_lift_shap(
                clone,
                X,
                args=extra or None,
                target=track,
                batch_size=batch_size,
                n_shuffles=n_shuffles,
                random_state=random_state,
                raw_outputs=True,
                return_references=True,
                device=found,
                verbose=verbose,
                **settings,
            )
        multipliers, references = raw[0], raw[1]  # (n, references, C, L)
        each = [
            correct_multipliers(multipliers[:, i], output, X, references[:, i].to(X.dtype))
            for i in range(multipliers.shape[1])
        ]
        results.append(torch.stack(each).mean(0))
    result: Array = to_user(torch.stack(results, 1), isinstance(x, np.ndarray))
    return result


def __dir__() -> list[str]:
    return sorted(__all__)
