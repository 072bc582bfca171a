"""The error of each precision against float64 naive ISM, beside naive ISM's own in the same precision.

    python benchmarks/precision_errors.py [--device cuda]

Relative L2 errors of signed differences at 24 positions (both ends, the middle) of one random sequence, all outputs,
models with random weights. Naive ISM in bfloat16 is the model under autocast, as one would run it. ``"high"`` is the
same as ``"highest"`` on a CPU.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

import yuzu
from yuzu import models
from yuzu._engine.mixed_precision import MixedPrecision

RESULTS = Path(__file__).resolve().parent / "results"
LENGTHS = {
    "ToyNet": 1000,
    "DeepSEA": 1000,
    "Basset": 1000,
    "FactorizedBasset": 1000,
    "BPNet": 1000,
    "SpliceAI-400": 1400,
}


def flat(result: Any) -> torch.Tensor:
    return torch.cat([v.double().flatten() for v in pytree.tree_leaves(result)])


def measured(name: str, length: int, device: str) -> dict[str, float]:
    model = models.SpliceAI(flanking=400) if name == "SpliceAI-400" else getattr(models, name)(4, seq_len=length)
    model.eval()
    letters = torch.randint(4, (1, length), generator=torch.Generator().manual_seed(0))
    X = F.one_hot(letters, 4).permute(0, 2, 1).float()
    spans = [(0, 8), (length // 2, length // 2 + 8), (length - 8, length)]

    def scores(run: Any, other: torch.nn.Module, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        settings = {"output": "delta", "device": device}
        return torch.cat([flat(run(other, x, *rest, start=a, end=b, **settings)) for a, b in spans])

    truth = scores(yuzu.naive_ism, copy.deepcopy(model).double(), X.double())
    found = {}
    for precision in ("highest", "high", "medium"):
        made = yuzu.precompute(model, length, precision=precision, device=device)
        found[precision] = scores(yuzu.yuzu_ism, model, X, made)
    found["naive float32"] = scores(yuzu.naive_ism, model, X)
    found["naive bfloat16"] = scores(yuzu.naive_ism, MixedPrecision(model, torch.bfloat16), X)
    return {kind: float((value - truth).norm() / truth.norm()) for kind, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    device = parser.parse_args().device
    torch.manual_seed(0)
    print("| model | highest | high | naive, float32 | medium | naive, bfloat16 |\n|---|---|---|---|---|---|")
    rows = {}
    for name, length in LENGTHS.items():
        e = rows[name] = measured(name, length, device)
        kinds = ("highest", "high", "naive float32", "medium", "naive bfloat16")
        print(f"| {name} | " + " | ".join(f"{e[k]:.0e}" for k in kinds) + " |", flush=True)
    (RESULTS / f"{device}-precision.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
