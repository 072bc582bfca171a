"""Capturing a model once for several precomputations."""

import contextlib
import dataclasses
import sys


def decide(made, **changes):
    """Have a precomputation decide otherwise, also where it is in use already."""
    made.decisions = dataclasses.replace(made.decisions, **changes)
    for known in made._used.values():
        for one in known:
            one.used.decisions = made.decisions
            one.used._forget_plan()


_captured = {}


@contextlib.contextmanager
def capturing_once():
    """Capture a model once, however often it is precomputed in other ways: most of a small model's time goes there.

    Only for tests that are not about capturing, nor about what is kept or refused.
    """
    # where a precomputation is made, and where it is put to use
    modules = [sys.modules[f"yuzu._engine.store.{name}"] for name in ("making", "precomputation")]
    original = modules[0].capture

    def capture(model, shape, *rest):
        key = (id(model), tuple(shape))
        if key not in _captured:
            _captured[key] = (original(model, shape, *rest), model)  # with the model, so that its id stays its own
        return _captured[key][0]

    for module in modules:
        module.capture = capture
    try:
        yield
    finally:
        for module in modules:
            module.capture = original
