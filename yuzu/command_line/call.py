"""The call of `yuzu.yuzu_ism` that the options of ``yuzu ism`` make."""

from __future__ import annotations

import argparse

from yuzu.command_line.model import load_args, load_models, load_pick
from yuzu.errors import YuzuError
from yuzu.runs.call import Call


def call_of(options: argparse.Namespace, rows: int | None = None) -> Call:
    """Load what the options name; ``rows`` is the number of sequences of the input, if it is known."""
    if options.head is not None and options.func is not None:
        raise YuzuError("give either --head or --func")
    if options.func is not None and ":" not in options.func:
        raise YuzuError(f"--func must be FILE.py:NAME or MODULE:NAME, got {options.func!r}")
    if options.batch_size is not None and options.batch_size < 1:
        raise YuzuError(f"--batch-size must be at least 1, got {options.batch_size}")
    models = load_models(options.model, options.weights)
    func = load_pick("--func", options.func) if options.head is None else load_pick("--head", options.head)
    settings = {name: getattr(options, name) for name in ("start", "end", "batch_size", "device")}
    args = load_args(options.args, models[0], rows)
    return Call(models, args, func, options.target, options.output, settings)
