"""`precompute` verifies its plan, and catches a handler that is wrong."""

import pytest
import torch

from tests.oracle import assert_right, errors, oracle
from tests.small_models import Profile, randomized, sequences
from tests.store.models import break_handler
from yuzu import precompute, yuzu_ism

L = 30


def off_by_one_position(change):
    return change.roll(1, 2)

SPOILS = {
    "off by one percent": lambda change: change * 1.01,
    "zero": torch.zeros_like,
    "shifted": off_by_one_position,
    "wrong in one channel": lambda change: torch.cat([change[..., :-1], change[..., -1:] * 1.05], -1),
    "wrong in one substitution": lambda change: torch.cat([change[:, :-1], change[:, -1:] * 1.05], 1),
}


@pytest.mark.parametrize("name", SPOILS)
def test_verify_catches_a_wrong_handler(monkeypatch, captured_once, name):
    """Errors of a percent keep a correlation above 0.9999, and must be found all the same."""
    break_handler(monkeypatch, "aten.conv1d", SPOILS[name])
    model, X = randomized(Profile(), seed=80).eval(), sequences(2, L)
    wrong = yuzu_ism(model, X, precompute(model, L, verify=False), output="delta")
    assert errors(wrong[0], oracle(model, X)["delta"][0])[1] > 1e-3, "the test is empty: nothing is broken"
    with pytest.warns(UserWarning, match=r"first|dilated|profile"):
        precomputation = precompute(model, L)
    assert_right(yuzu_ism(model, X, precomputation, output="delta"), model, X, output="delta")
    assert "naive" in precomputation.summary()


def test_verify_catches_what_is_wrong_at_the_ends_only(monkeypatch):
    def spoil(change):
        change = change.clone()
        change[-1] += 1.0  # the last site of a chunk
        return change

    break_handler(monkeypatch, "aten.relu", spoil)
    model, X = randomized(Profile(), seed=81).eval(), sequences(1, L)
    with pytest.warns(UserWarning, match="relu"):
        precomputation = precompute(model, L)
    assert_right(yuzu_ism(model, X, precomputation, output="delta"), model, X, output="delta")


def test_on_the_spot_is_verified_too(monkeypatch):
    break_handler(monkeypatch, "aten.relu", lambda change: change * 1.01)
    model, X = randomized(Profile(), seed=82).eval(), sequences(1, L)
    with pytest.warns(UserWarning, match="relu"):
        result = yuzu_ism(model, X, output="delta")
    assert_right(result, model, X, output="delta")
