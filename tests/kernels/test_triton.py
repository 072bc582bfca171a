"""Machines on which Triton runs no kernels."""

import torch

from yuzu._engine.kernels import triton as kernels_of


def test_why_a_device_runs_no_kernels(monkeypatch):
    assert "meta" in kernels_of.why_not(torch.device("meta"))
    monkeypatch.setattr(kernels_of, "triton", None)
    assert kernels_of.why_not(torch.device("cpu")) == "Triton is not installed"
