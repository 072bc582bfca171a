"""The arithmetic of float32 products, and the settings that are put back."""

from __future__ import annotations

import pytest
import torch

from yuzu._engine.kernels import onednn
from yuzu._engine.kernels.precision import fastest_products, small_products

CPU = torch.device("cpu")


@pytest.fixture
def setting(monkeypatch):
    """How PyTorch multiplies, where oneDNN is taken to be faster."""
    part = getattr(torch.backends.mkldnn, "matmul", None)
    if not hasattr(part, "fp32_precision"):
        pytest.skip("this PyTorch has no setting for oneDNN's products")
    monkeypatch.setattr(onednn, "by_setting", lambda: True)
    return lambda: part.fp32_precision


def test_small_products_are_pytorchs_own_for_a_while(setting):
    before = setting()
    with fastest_products(CPU):
        assert setting() == onednn.SETTING
        with small_products(CPU):
            assert setting() == before
        assert setting() == onednn.SETTING
    assert setting() == before


def test_runs_that_begin_and_end_within_another_ones_small_products(setting):
    before = setting()
    with fastest_products(CPU):
        with small_products(CPU), fastest_products(CPU):  # another thread's
            pass
        assert setting() == onednn.SETTING
    with small_products(CPU):
        assert setting() == before
        with fastest_products(CPU):
            assert setting() == before
    assert setting() == before


def test_the_last_of_several_small_products_puts_the_setting_back(setting):
    with fastest_products(CPU):
        one, two = small_products(CPU), small_products(CPU)  # two threads'
        one.__enter__()
        before = setting()
        two.__enter__()
        one.__exit__(None, None, None)
        assert setting() == before != onednn.SETTING
        two.__exit__(None, None, None)
        assert setting() == onednn.SETTING
