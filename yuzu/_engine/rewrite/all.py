"""Rewrites captured graphs so that differences can be carried through them at less cost; one file a rewriting."""

from __future__ import annotations

import dataclasses

import torch

from yuzu._engine.capture.branches import Captured
from yuzu._engine.capture.errors import CaptureError, first_line
from yuzu._engine.capture.routes import capture_plain
from yuzu._engine.rewrite.batch_first import batch_first
from yuzu._engine.rewrite.batch_parts import take_batch_apart
from yuzu._engine.rewrite.long_convolutions import name_long_convolutions
from yuzu._engine.rewrite.pools_first import pools_first
from yuzu._engine.rewrite.recurrences import split_recurrences
from yuzu._engine.rewrite.separate import separate_joined
from yuzu._engine.rewrite.simplify import simplify
from yuzu._engine.rewrite.unread import without_unread


def capture(
    model: torch.nn.Module,
    shape: tuple[int, int],
    args: tuple[torch.Tensor, ...],
    dtype: torch.dtype,
    share: bool = False,
) -> Captured:
    """Capture a model and rewrite its graph; the arguments and errors are those of `capture_plain`."""
    captured = capture_plain(model, shape, args, dtype, share)
    try:
        return rewritten(captured)
    except Exception as error:  # the model can still run naively
        raise CaptureError(first_line(error), captured.branches) from error


def rewritten(captured: Captured) -> Captured:
    """A captured graph with every rewriting applied, in order."""
    nodes, outputs = split_recurrences(*simplify(captured.nodes, captured.outputs))
    nodes, outputs, _ = batch_first(*without_unread(nodes, outputs))
    nodes, outputs = take_batch_apart(*without_unread(nodes, outputs))
    nodes, outputs = name_long_convolutions(nodes, outputs)
    nodes, outputs = separate_joined(*pools_first(nodes, outputs))
    return dataclasses.replace(captured, nodes=nodes, outputs=outputs)


__all__ = ["capture", "rewritten"]
