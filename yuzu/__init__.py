"""Exact, fast in-silico saturation mutagenesis (ISM) for PyTorch sequence models."""

from yuzu._engine.handlers.contract import Rule as Rule
from yuzu._engine.handlers.contract import handles as handles
from yuzu._engine.handlers.windowed import Windowed as Windowed
from yuzu.errors import PrecomputationError as PrecomputationError
from yuzu.errors import YuzuError as YuzuError
from yuzu.errors import YuzuWarning as YuzuWarning
from yuzu.naive_ism import Check as Check
from yuzu.naive_ism import check as check
from yuzu.naive_ism import naive_ism as naive_ism
from yuzu.precompute import Precomputation as Precomputation
from yuzu.precompute import precompute as precompute
from yuzu.yuzu_ism import yuzu_ism as yuzu_ism

__version__ = "0.1.0"
__all__ = [
    "Check",
    "Precomputation",
    "PrecomputationError",
    "Rule",
    "Windowed",
    "YuzuError",
    "YuzuWarning",
    "check",
    "handles",
    "naive_ism",
    "precompute",
    "yuzu_ism",
]
