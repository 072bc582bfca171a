"""Naive in-silico saturation mutagenesis: every mutant through the model. The yardstick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import torch

from yuzu._engine.arrays import Array, Device
from yuzu._engine.request import Arguments
from yuzu._engine.run.naive import naive_ism_of_states


@overload
def naive_ism(
    model: torch.nn.Module,
    X_0: Array,
    *,
    args: tuple[Any, ...] | None = None,
    output: Literal["l2"] = "l2",
    target: Any = None,
    func: Callable[[Any], Any] | None = None,
    start: int | None = 0,
    end: int | None = None,
    ranges: Any = None,
    replace_with: Any = None,
    batch_size: int = 128,
    device: Device = None,
    verbose: bool = False,
) -> Array: ...


@overload
def naive_ism(
    model: torch.nn.Module,
    X_0: Array,
    *,
    args: tuple[Any, ...] | None = None,
    output: str,
    target: Any = None,
    func: Callable[[Any], Any] | None = None,
    start: int | None = 0,
    end: int | None = None,
    ranges: Any = None,
    replace_with: Any = None,
    batch_size: int = 128,
    device: Device = None,
    verbose: bool = False,
) -> Array | Any: ...


def naive_ism(
    model: torch.nn.Module,
    X_0: Any,
    *,
    args: tuple[Any, ...] | None = None,
    output: str = "l2",
    target: Any = None,
    func: Callable[[Any], Any] | None = None,
    start: int | None = 0,
    end: int | None = None,
    ranges: Any = None,
    replace_with: Any = None,
    batch_size: int = 128,
    device: Any = None,
    verbose: bool = False,
) -> Any:
    """In-silico saturation mutagenesis by running the model on every mutant.

    The same results as `yuzu_ism`, to rounding, from ``L (C - 1)`` forward passes a sequence. All parameters but
    ``batch_size``, the result and the errors are those of `yuzu_ism`.

    Parameters
    ----------
    batch_size: int
        Mutants in one forward pass. Default 128. One at a time, with a warning, where what the model returns for a
        sequence depends on the others in its batch.

    Examples
    --------
    >>> import yuzu
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> model, X = load_ctcf_model(), load_ctcf_peaks().X[:2]  # (2, 4, 100)
    >>> import torch
    >>> naive = yuzu.naive_ism(model, X, start=45, end=55)
    >>> torch.allclose(naive, yuzu.yuzu_ism(model, X, start=45, end=55), atol=1e-4)
    True
    """
    arguments = Arguments(
        X_0,
        states=[args],
        output=output,
        target=target,
        func=func,
        start=start,
        end=end,
        ranges=ranges,
        replace_with=replace_with,
        batch_size=batch_size,
        device=device,
        verbose=verbose,
    )
    return naive_ism_of_states(model, arguments, stacked=False)
