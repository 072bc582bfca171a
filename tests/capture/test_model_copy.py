"""The user's model is left alone while it is captured."""

import copy
import logging
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.capture.models import (
    Decides,
    DropoutEverywhere,
    Holding,
    Inspecting,
    Remembers,
    Reused,
    run_graph,
    seeded,
    spectral,
)
from tests.laws.random_models import (
    one_hot,
)
from yuzu._engine.capture.errors import CaptureError
from yuzu._engine.rewrite.all import capture

LENGTH = 12


@pytest.mark.parametrize("build", [DropoutEverywhere, Reused, spectral, lambda: Decides("if"), Remembers, lambda: Holding(threading.Lock), Inspecting])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_as_before(build: Callable[[], nn.Module], training: bool) -> None:
    model = seeded(build).train(training)
    model.conv if hasattr(model, "conv") else None
    first = next(model.modules())
    first.marked = "by the user"
    list(model.children())[0].train(not training)
    flags = [m.training for m in model.modules()]
    state = {k: (v.clone(), v.data_ptr()) for k, v in model.state_dict(keep_vars=True).items()}
    attributes = [{k: id(v) for k, v in m.__dict__.items() if k != "training"} for m in model.modules()]
    grads = [(p.requires_grad, p.grad) for p in model.parameters()]
    random_state = torch.get_rng_state()
    try:
        capture(model, (4, LENGTH), (), torch.float64)
    except CaptureError:
        pass
    assert [m.training for m in model.modules()] == flags
    assert [{k: id(v) for k, v in m.__dict__.items() if k != "training"} for m in model.modules()] == attributes
    after = model.state_dict(keep_vars=True)
    assert all(torch.equal(after[k], v) and after[k].data_ptr() == place for k, (v, place) in state.items())
    assert [(p.requires_grad, p.grad) for p in model.parameters()] == grads
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()


def test_a_model_in_training_mode_is_captured_as_in_evaluation() -> None:
    model = seeded(DropoutEverywhere).train()
    X = one_hot(2, 4, LENGTH)
    graph = capture(model, (4, LENGTH), (), torch.float64)
    found = run_graph(graph, model, X)
    assert model.training and torch.allclose(found, copy.deepcopy(model).eval()(X))


def test_logging_and_warnings_are_as_before() -> None:
    names = ["torch", "torch.export", "torch._dynamo"]
    before = [(logging.getLogger(n).disabled, logging.getLogger(n).level) for n in names]
    filters = list(warnings.filters)
    with pytest.raises(CaptureError):
        capture(seeded(lambda: Decides("if")), (4, LENGTH), (), torch.float64)
    assert [(logging.getLogger(n).disabled, logging.getLogger(n).level) for n in names] == before
    assert list(warnings.filters) == filters


def test_capture_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    """The messages of torch.export are not shown; the reason comes in one warning."""
    with pytest.raises(CaptureError), warnings.catch_warnings():
        warnings.simplefilter("error")
        capture(seeded(lambda: Decides("if")), (4, LENGTH), (), torch.float64)
    out, err = capfd.readouterr()
    assert out == "" and err == ""
