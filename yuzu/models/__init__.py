"""Example models at their published sizes, with random weights.

Six are those of the Yuzu paper (Schreiber, Lu and Noble, "Accelerating in silico saturation mutagenesis using
compressed sensing", Bioinformatics 2022): `OneLayer`, `ToyNet`, `DeepSEA`, `Basset`, `FactorizedBasset` and `BPNet`.
They have the layer names, the sizes and, for one `random_state`, the weights of `yuzu-ism` 0.0.1, so that state dicts
go both ways. `Beluga` and `SpliceAI` follow their own publications.

The global random state is left as it was. As any `torch.nn.Module` the models start in training mode: call `.eval()`
before predicting with those that hold batch normalization or dropout.
"""

from yuzu.models.basset import Basset as Basset
from yuzu.models.basset import FactorizedBasset as FactorizedBasset
from yuzu.models.deepsea import Beluga as Beluga
from yuzu.models.deepsea import DeepSEA as DeepSEA
from yuzu.models.layers import Flatten as Flatten
from yuzu.models.layers import Unsqueeze as Unsqueeze
from yuzu.models.small import BPNet as BPNet
from yuzu.models.small import OneLayer as OneLayer
from yuzu.models.small import ToyNet as ToyNet
from yuzu.models.spliceai import SpliceAI as SpliceAI

__all__ = [
    "BPNet",
    "Basset",
    "Beluga",
    "DeepSEA",
    "FactorizedBasset",
    "Flatten",
    "OneLayer",
    "SpliceAI",
    "ToyNet",
    "Unsqueeze",
]


def __dir__() -> list[str]:
    return sorted(__all__)
