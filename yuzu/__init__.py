"""Exact, fast in-silico saturation mutagenesis (ISM) for PyTorch sequence models.

Examples
--------
>>> import yuzu
>>> from yuzu.examples import load_ctcf_model, load_ctcf_peaks
>>> model, X = load_ctcf_model(), load_ctcf_peaks().X[:2]
>>> precomputation = yuzu.precompute(model, seq_len=X.shape[-1])
>>> yuzu.yuzu_ism(model, X, precomputation, output="delta", target=0).shape
torch.Size([2, 4, 100])
"""

import importlib as _importlib
import typing as _typing

from yuzu import attribution as attribution
from yuzu import bigwig as bigwig
from yuzu import design as design
from yuzu import errors as errors
from yuzu import handlers as handlers
from yuzu import modisco as modisco
from yuzu import product as product
from yuzu import regions as regions
from yuzu import runs as runs
from yuzu import scan as scan
from yuzu import sequence as sequence
from yuzu import taylor as taylor
from yuzu import variants as variants
from yuzu._engine.store.precomputation import Precomputation as Precomputation
from yuzu._engine.version import __version__ as __version__
from yuzu.check import Check as Check
from yuzu.check import check as check
from yuzu.dependency_map import dependency_map as dependency_map
from yuzu.epistasis import epistasis as epistasis
from yuzu.errors import PrecomputationError as PrecomputationError
from yuzu.errors import YuzuError as YuzuError
from yuzu.errors import YuzuWarning as YuzuWarning
from yuzu.handlers import Rule as Rule
from yuzu.handlers import Windowed as Windowed
from yuzu.handlers import handles as handles
from yuzu.hybrid_ism import hybrid_ism as hybrid_ism
from yuzu.naive_ism import naive_ism as naive_ism
from yuzu.precompute import precompute as precompute
from yuzu.predict import predict as predict
from yuzu.saturation_mutagenesis import SaturationMutagenesisRawResult as SaturationMutagenesisRawResult
from yuzu.saturation_mutagenesis import saturation_mutagenesis as saturation_mutagenesis
from yuzu.yuzu_ism import yuzu_ism as yuzu_ism

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
    "dependency_map",
    "epistasis",
    "handles",
    "hybrid_ism",
    "naive_ism",
    "precompute",
    "predict",
    "saturation_mutagenesis",
    "yuzu_ism",
]

# Modules beside the functions; the lazy ones are loaded when they are first used.
_MODULES = (
    "attribution",
    "bigwig",
    "design",
    "errors",
    "handlers",
    "modisco",
    "product",
    "regions",
    "runs",
    "scan",
    "sequence",
    "taylor",
    "variants",
)
_LAZY_MODULES = ("command_line", "examples", "models", "plot")

if _typing.TYPE_CHECKING:
    from yuzu import command_line as command_line
    from yuzu import examples as examples
    from yuzu import models as models
    from yuzu import plot as plot
else:

    def __getattr__(name):
        """Load a module when it is first used, such as `yuzu.plot`."""
        if name in _LAZY_MODULES:
            return _importlib.import_module(f"yuzu.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, so that completion and `help` show these alone."""
    return sorted([*__all__, *_MODULES, *_LAZY_MODULES, "__version__"])
