"""Exact, fast in-silico saturation mutagenesis (ISM) for PyTorch sequence models."""

import importlib
from typing import TYPE_CHECKING, Any

from yuzu import attribution as attribution
from yuzu import bigwig as bigwig
from yuzu import handlers as handlers
from yuzu import modisco as modisco
from yuzu import product as product
from yuzu import regions as regions
from yuzu import sequence as sequence
from yuzu import taylor as taylor
from yuzu._engine.handlers.contract import Rule as Rule
from yuzu._engine.handlers.contract import handles as handles
from yuzu._engine.handlers.windowed import Windowed as Windowed
from yuzu._engine.store.precomputation import Precomputation as Precomputation
from yuzu.check import Check as Check
from yuzu.check import check as check
from yuzu.errors import PrecomputationError as PrecomputationError
from yuzu.errors import YuzuError as YuzuError
from yuzu.errors import YuzuWarning as YuzuWarning
from yuzu.hybrid_ism import hybrid_ism as hybrid_ism
from yuzu.naive_ism import naive_ism as naive_ism
from yuzu.precompute import precompute as precompute
from yuzu.predict import predict as predict
from yuzu.saturation_mutagenesis import SaturationMutagenesisRawResult as SaturationMutagenesisRawResult
from yuzu.saturation_mutagenesis import saturation_mutagenesis as saturation_mutagenesis
from yuzu.yuzu_ism import yuzu_ism as yuzu_ism

if TYPE_CHECKING:
    from yuzu import examples as examples
    from yuzu import models as models
    from yuzu import plot as plot
else:
    _LAZY = frozenset({"examples", "models", "plot"})

    def __getattr__(name: str) -> Any:
        """The modules that are loaded when they are first used, such as `yuzu.plot`."""
        if name in _LAZY:
            return importlib.import_module(f"yuzu.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = "0.1.0"
__all__ = [
    "Check",
    "Precomputation",
    "PrecomputationError",
    "Rule",
    "SaturationMutagenesisRawResult",
    "Windowed",
    "YuzuError",
    "YuzuWarning",
    "check",
    "handles",
    "hybrid_ism",
    "naive_ism",
    "precompute",
    "predict",
    "saturation_mutagenesis",
    "yuzu_ism",
]
