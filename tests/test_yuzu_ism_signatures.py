"""Names and signatures of the public functions."""

import inspect

import pytest

import yuzu


def test_public_names():
    from yuzu import Precomputation, PrecomputationError, YuzuError, check, naive_ism, precompute, yuzu_ism

    assert issubclass(YuzuError, ValueError) and issubclass(PrecomputationError, YuzuError)
    assert isinstance(Precomputation, type) and all(map(callable, (check, naive_ism, precompute, yuzu_ism)))


def _precompute(
    model, seq_len, n_choices=4, *, args=None, alpha=None, threshold=0.9999, conv="auto", precision="highest",
    terminal_layers=(), max_memory=None, device=None, random_state=None, verify=True, verbose=False,
): ...  # fmt: skip


def _yuzu_ism(
    model, X_0, precomputation=None, *, args=None, output="l2", target=None, func=None, start=0, end=None, ranges=None,
    replace_with=None, batch_size=None, device=None, return_timings=False, verbose=False,
): ...  # fmt: skip


def _naive_ism(
    model, X_0, *, args=None, output="l2", target=None, func=None, start=0, end=None, ranges=None, replace_with=None,
    batch_size=128, device=None, verbose=False,
): ...  # fmt: skip


def _check(model, X_0, precomputation=None, *, args=None, positions=32, device=None): ...

SIGNATURES = {"precompute": _precompute, "yuzu_ism": _yuzu_ism, "naive_ism": _naive_ism, "check": _check}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    mine = inspect.signature(getattr(yuzu, name)).parameters
    contract = inspect.signature(SIGNATURES[name]).parameters
    for parameter in contract.values():
        assert parameter.name in mine, f"{name} has no {parameter.name}"
        assert (mine[parameter.name].kind, mine[parameter.name].default) == (parameter.kind, parameter.default), (
            parameter.name
        )
    positional = [p.name for p in contract.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in mine.values() if p.kind is p.POSITIONAL_OR_KEYWORD] == positional


def test_precomputation_methods():
    for name, arguments in {"save": ["self", "path"], "summary": ["self"]}.items():
        assert list(inspect.signature(getattr(yuzu.Precomputation, name)).parameters) == arguments
    load = inspect.signature(yuzu.Precomputation.load).parameters
    assert list(load) == ["path", "device"] and load["device"].default is None
