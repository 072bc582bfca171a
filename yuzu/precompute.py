"""Planning for a model: what depends on its architecture, the sequence length and the device, and on nothing else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from yuzu._engine.arrays import Device
from yuzu._engine.capture.model_copy import model_dtype
from yuzu._engine.checks import argument_kinds, check_args, check_choice, check_count, check_device, check_model
from yuzu._engine.settings import CONV, PRECISIONS, Settings, Wanted, memory_for
from yuzu._engine.store.making import make
from yuzu._engine.store.precomputation import Precomputation
from yuzu.errors import YuzuError, shown


def precompute(
    model: torch.nn.Module,
    seq_len: int,
    n_choices: int = 4,
    *,
    args: tuple[Any, ...] | None = None,
    alpha: float | None = None,
    threshold: float = 0.9999,
    conv: str = "auto",
    precision: str = "highest",
    terminal_layers: tuple[type, ...] | list[type] = (),
    max_memory: int | None = None,
    device: Device = None,
    random_state: int | None = None,
    verify: bool = True,
    verbose: bool = False,
) -> Precomputation:
    """Capture a model and decide how to run each layer, how many mutants to carry at once, and check the
    result.

    The precomputation depends on the model's architecture, the sequence length and the device. It stays valid
    when weights change.

    Parameters
    ----------
    model: torch.nn.Module
        Reads sequences ``(n, n_choices, seq_len)`` as its first input.
    seq_len, n_choices: int
        Length and number of characters of the sequences.
    args: tuple of tensors or None
        Examples ``(n, ...)`` of the model's inputs after the sequence.
    alpha: float or None
        With ``conv="gaussian"``: probes for each nonzero, at least 1. None searches upwards from 1.
    threshold: float
        With ``conv="gaussian"``: the Pearson correlation with naive ISM at which the search stops. Default
        0.9999.
    conv: str
        ``"auto"`` measures the exact ways and keeps the fastest for each layer, and runs the whole model naively
        where a sequence takes over 10 ms and that is faster still. Or one way for all
        convolutions that it applies to: ``"windows"``, ``"taps"``, ``"cyclic"``, ``"banded"``, ``"blocks"``,
        ``"whole"``, ``"fold"``, ``"winograd"``, ``"fused"`` (on a GPU, together with the next layers), ``"gaussian"``.
    precision: str
        ``"highest"``: the model's own dtype throughout. ``"high"``: TF32 products on CUDA. ``"medium"``:
        bfloat16 products of differences, which stay in bfloat16 between layers that run as one on a GPU; as
        ``"highest"``, with a warning, where verification finds these far off. The reference is float32 in all of them.
    terminal_layers: tuple of classes
        Module classes from which on the model runs naively.
    max_memory: int or None
        Bytes that a run may use beyond the model and its output. None: half of what is free on a GPU (1 GiB where
        that is more, and free); on a CPU 1 GiB and twice the model's own weights. On a CPU this counts memory that
        is freed but kept for the next tensors: glibc is told, for the whole process and until it ends, to keep freed
        blocks of less than 32 MiB (to return them and get them anew is slow). They are returned to the system when the
        process has grown by nearly this much. Not counted are the caches of PyTorch and oneDNN, the graph that
        ``torch.export`` makes, and one forward pass of the model in float64, for ``verify``, where that takes more.
    device: str, torch.device or None
        None means CUDA when available, else the CPU.
    random_state: int or None
        Seed of the random sequence and matrices; None is 0. The global random state is never touched.
    verify: bool
        Compare a few mutants of a random sequence with naive ISM in float64, and again by the ways that were chosen.
        Where they disagree the layer concerned runs naively, and a warning names it.
    verbose: bool
        Show the current stage, and print the summary. Otherwise stages are shown only after 3 seconds.

    Returns
    -------
    Precomputation

    Raises
    ------
    ValueError
        For wrong arguments; naming the least that works if ``max_memory`` is too small.

    Examples
    --------
    >>> import yuzu
    >>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
    >>> model, X = load_ctcf_model(), load_ctcf_peaks().X[:2]  # (2, 4, 100)
    >>> precomputation = yuzu.precompute(model, seq_len=100, device="cpu")
    >>> precomputation
    Precomputation(seq_len=100, n_choices=4, conv='auto', precision='highest', device='cpu')
    >>> yuzu.yuzu_ism(model, X, precomputation).shape
    torch.Size([2, 4, 100])
    """
    check_model(model)
    if getattr(seq_len, "shape", ()):
        raise YuzuError(f"seq_len must be the length of the sequences, got {shown(seq_len)}: pass its shape[-1]")
    seq_len, n_choices = check_count("seq_len", seq_len), check_count("n_choices", n_choices, 2)
    examples = tuple(a[:1] for a in check_args(args, None))
    found = check_device(device)
    check_choice("conv", conv, CONV)
    check_choice("precision", precision, PRECISIONS)
    if alpha is not None and not (_is_number(alpha) and 1 <= alpha < math.inf):
        raise YuzuError(f"alpha must be a number of at least 1, got {shown(alpha)}")
    if not (_is_number(threshold) and 0 < threshold <= 1):
        raise YuzuError(f"threshold must lie in (0, 1], got {shown(threshold)}")
    terminal = tuple(terminal_layers) if isinstance(terminal_layers, tuple | list) else (terminal_layers,)
    if not all(isinstance(t, type) and issubclass(t, torch.nn.Module) for t in terminal):
        raise YuzuError(f"terminal_layers must be a tuple of module classes, got {shown(terminal_layers)}")
    asked = None if max_memory is None else check_count("max_memory", max_memory)
    settings = Settings(
        seq_len,
        n_choices,
        dtype=str(model_dtype(model)),
        args=argument_kinds(examples),
        device=found.type,
        max_memory=asked or memory_for(model, found),
        conv=conv,
        alpha=None if alpha is None else float(alpha),
        threshold=float(threshold),
        precision=precision,
        random_state=0 if random_state is None else check_count("random_state", random_state, 0),
    )
    made = make(model, Wanted(settings, examples, found, terminal, verify, asked), verbose)
    if verbose:
        print(made.summary())
    return made


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


__all__ = ["precompute"]
