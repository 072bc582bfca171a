"""Which ways the trials of `precompute` choose for the layers of the table's models, on the machine at hand.

    python benchmarks/ways.py

A way that no model gets is a candidate for removal; `yuzu/_engine/ways/convolution.py` says why the others are apart.
"""

from __future__ import annotations

import collections
import warnings

import torch

import yuzu
from yuzu import models

LENGTHS = {"ToyNet": 1000, "BPNet": 1000, "Basset": 600, "DeepSEA": 1000, "FactorizedBasset": 600, "SpliceAI": 1200}


def main() -> None:
    torch.set_num_threads(1)
    total: collections.Counter[str] = collections.Counter()
    for name, length in LENGTHS.items():
        make = getattr(models, name)
        torch.manual_seed(0)
        model = make(4, seq_len=length) if name in ("Basset", "DeepSEA", "FactorizedBasset") else make(4)
        for precision in ("highest", "medium"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = yuzu.precompute(model, length, device="cpu", precision=precision, verify=False)
            found = collections.Counter(layer.way for layer in made.layers if layer.way)
            total += found
            print(f"{name:18} {precision:8}", ", ".join(f"{way} {count}" for way, count in found.most_common()))
    print("all".ljust(27), ", ".join(f"{way} {count}" for way, count in total.most_common()))


if __name__ == "__main__":
    main()
