"""The kit for handlers: how to teach Yuzu an operation that it does not know.

A handler looks at one operation of the model and returns a *rule* for it, or a sentence that says why it has none.
Three rules cover most operations: `RowWise` for one that treats each sequence by itself, `Windowed` for one that reads
a few neighbouring positions, and `Linear` for one that does so linearly. `check_law` tests a handler.

`RowWise` is the engine's class ``OnRows``, whose name ``help(RowWise)`` prints.
"""

from yuzu._engine.handlers.contract import Rule as Rule
from yuzu._engine.handlers.contract import View as View
from yuzu._engine.handlers.registry import handles as handles
from yuzu._engine.handlers.values import OnRows as RowWise
from yuzu._engine.handlers.windowed import Linear as Linear
from yuzu._engine.handlers.windowed import Windowed as Windowed
from yuzu._engine.layout import Change as Change
from yuzu._engine.layout import Layout as Layout
from yuzu._engine.tune.law import check_law as check_law
from yuzu._engine.window import Geometry as Geometry
from yuzu._engine.window import Window as Window

__all__ = [
    "Change",
    "Geometry",
    "Layout",
    "Linear",
    "RowWise",
    "Rule",
    "View",
    "Window",
    "Windowed",
    "check_law",
    "handles",
]


def __dir__() -> list[str]:
    return sorted(__all__)
