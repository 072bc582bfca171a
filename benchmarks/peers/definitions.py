"""The benchmark's models, built the same way in every peer's environment.

`yuzu/models.py` of this checkout is loaded by its path, since another version of yuzu, or none, may be installed
where this runs. It needs only torch and `yuzu/errors.py`.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLES = ("OneLayer", "ToyNet", "DeepSEA", "Basset", "FactorizedBasset", "BPNet")
NEED_BPNET_LITE = ("bpnet-lite", "ChromBPNet")
PROFILE = 1000  # outputs that bpnet-lite's models keep of their 2,114 inputs


def _load(name: str, path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


def example_models() -> ModuleType:
    """`yuzu/models.py` of this checkout."""
    installed = sys.modules.get("yuzu.errors")
    if installed is None:
        _load("yuzu.errors", CHECKOUT / "yuzu" / "errors.py")
    module = _load("benchmarked_models", CHECKOUT / "yuzu" / "models.py")
    if installed is None:
        del sys.modules["yuzu.errors"]  # or a yuzu imported later would find it and not set it up
    return module


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
