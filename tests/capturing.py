"""Capturing a model once for several precomputations."""

import contextlib
import sys

WHERE = (".precompute", ".precomputation")
_captured = {}


@contextlib.contextmanager
def capturing_once():
    """Capture a model once, however often it is precomputed in other ways: most of a small model's time goes there.

    Only for tests that are not about capturing, nor about what is kept or refused.
    """
    # where precompute captures, and where a precomputation is put to use; the name ``yuzu.precompute`` is the function
    modules = [module for name, module in sys.modules.items() if name.startswith("yuzu") and name.endswith(WHERE)]
    assert len(modules) == len(WHERE), "a module has moved"
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
