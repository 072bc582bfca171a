"""The benchmark's models, built the same way in every peer's environment.

`yuzu.models` of this checkout is loaded by its path, since another version of yuzu, or none, may be installed where
this runs. It needs only torch and `yuzu/errors.py`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLES = ("OneLayer", "ToyNet", "DeepSEA", "Basset", "FactorizedBasset", "BPNet")
NEED_BPNET_LITE = ("bpnet-lite", "ChromBPNet")
PROFILE = 1000  # outputs that bpnet-lite's models keep of their 2,114 inputs


def example_models() -> ModuleType:
    """`yuzu.models` of this checkout, in a package of its name that runs nothing else of it."""
    given = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "yuzu"}
    package = ModuleType("yuzu")
    package.__path__ = [str(CHECKOUT / "yuzu")]
    sys.modules["yuzu"] = package
    try:
        return importlib.import_module("yuzu.models")
    finally:  # or a yuzu imported later would find this one
        for name in [name for name in sys.modules if name.split(".")[0] == "yuzu"]:
            del sys.modules[name]
        sys.modules.update(given)


def build(name: str, length: int) -> Any:
    """A model with random weights, in evaluation mode; the same weights each time, wherever torch is the same."""
    import torch

    torch.manual_seed(0)
    if name in NEED_BPNET_LITE:
        from bpnetlite import BPNet, ChromBPNet

        settings = {"n_control_tracks": 0, "trimming": max(length - PROFILE, 0) // 2, "verbose": False}
        if name == "bpnet-lite":
            return BPNet(**settings).eval()
        bias = BPNet(n_filters=128, n_layers=4, n_outputs=1, **settings)
        accessibility = BPNet(n_filters=512, n_layers=8, n_outputs=1, **settings)
        return ChromBPNet(bias, accessibility).eval()
    models = example_models()
    if name == "SpliceAI-400":
        return models.SpliceAI(flanking=400).eval()
    return getattr(models, name)(4, seq_len=length).eval()
