"""The published Yuzu, `yuzu-ism` 0.0.1, with its own definitions of the models it has, and its default settings.

Its `precompute` searches for the smallest alpha that reaches a correlation of 0.9999 with naive ISM. That takes minutes
over all models, so the quick run hands it an alpha that is about what this search finds: its seconds are then a lower
bound. Its scores are norms over the outputs.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from common import (
    Memory,
    load_model,
    load_sequences,
    run,
    save_scores,
    synchronize,
    timings,
    versions,
)


def main(job: SimpleNamespace) -> dict[str, Any]:
    import yuzu
    import yuzu.models

    if hasattr(yuzu, "check"):
        raise RuntimeError("this is not the published Yuzu: it needs an environment of its own")
    own = getattr(yuzu.models, job.model, None)
    model = load_model(job, None if own is None else own(4, seq_len=job.length, random_state=0))
    X = load_sequences(job)
    memory = Memory(job.device)
    synchronize(job.device)
    begin = time.perf_counter()
    precomputation = yuzu.precompute(model, job.length, alpha=job.alpha, device=job.device, random_state=0)
    synchronize(job.device)
    precompute_seconds = time.perf_counter() - begin

    def score() -> Any:
        return yuzu.yuzu_ism(model, X, precomputation, device=job.device)

    l2 = score()  # warm up
    seconds = timings(score, job)
    save_scores(job, l2[0])
    return {
        "seconds": seconds,
        "precompute_seconds": precompute_seconds,
        "peak_bytes": memory.peak(),
        "alpha": float(precomputation.alpha),
        "note": "" if job.alpha is None else f"precompute was given alpha={job.alpha:g}: without its search for it",
        "versions": versions("yuzu-ism", "torch"),
    }


if __name__ == "__main__":
    run(main)
