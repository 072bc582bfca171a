"""Pictures of attributions, single substitutions and pairs of them, many outputs, pairs of scores, and timings.

Every function takes `ax=`, draws there (default: a new figure), and returns the axes. They need matplotlib, an
optional package: ``pip install matplotlib``.
"""

from yuzu.plot.attribution import AttributionAxes as AttributionAxes
from yuzu.plot.attribution import plot_attribution as plot_attribution
from yuzu.plot.comparison import plot_comparison as plot_comparison
from yuzu.plot.epistasis import EpistasisAxes as EpistasisAxes
from yuzu.plot.epistasis import plot_epistasis as plot_epistasis
from yuzu.plot.heatmap import ISMAxes as ISMAxes
from yuzu.plot.heatmap import plot_ism as plot_ism
from yuzu.plot.logo import DNA_COLORS as DNA_COLORS
from yuzu.plot.logo import PROTEIN_COLORS as PROTEIN_COLORS
from yuzu.plot.logo import plot_logo as plot_logo
from yuzu.plot.timings import plot_timings as plot_timings
from yuzu.plot.tracks import TracksAxes as TracksAxes
from yuzu.plot.tracks import plot_tracks as plot_tracks

__all__ = [
    "DNA_COLORS",
    "PROTEIN_COLORS",
    "AttributionAxes",
    "EpistasisAxes",
    "ISMAxes",
    "TracksAxes",
    "plot_attribution",
    "plot_comparison",
    "plot_epistasis",
    "plot_ism",
    "plot_logo",
    "plot_timings",
    "plot_tracks",
]


def __dir__() -> list[str]:
    return sorted(__all__)
