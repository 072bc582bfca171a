"""`yuzu_ism` of this checkout.

`precompute` is timed in this fresh process after the import of `torch.export`, whose seconds are torch's and are paid
once in a process; ``precompute_first_seconds`` has them in. The run after the peers loads the precomputation that the
run before them saved.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import (
    Memory,
    compared_deltas,
    load_model,
    load_sequences,
    run,
    save_scores,
    synchronize,
    timed,
    timings,
    versions,
)

sys.path.append(str(Path(__file__).resolve().parents[1]))


def main(job: SimpleNamespace) -> dict[str, Any]:
    import torch

    model, X = load_model(job), load_sequences(job)
    with torch.no_grad():
        model(torch.from_numpy(X[:1]).to(job.device))
    begin = time.perf_counter()
    import torch.export._trace  # noqa: F401  what `torch.export.export` itself imports at its first call

    import_seconds = time.perf_counter() - begin
    import yuzu

    result: dict[str, Any] = {}
    memory = Memory(job.device)
    if Path(job.precomputation_file).exists():
        precomputation = yuzu.Precomputation.load(job.precomputation_file, device=job.device)
    else:
        synchronize(job.device)
        begin = time.perf_counter()
        precomputation = yuzu.precompute(model, job.length, precision=job.precision, device=job.device)
        synchronize(job.device)
        result["precompute_seconds"] = time.perf_counter() - begin
        result["precompute_first_seconds"] = result["precompute_seconds"] + import_seconds
        precomputation.save(job.precomputation_file)

    def score() -> Any:
        return yuzu.yuzu_ism(model, X, precomputation, device=job.device)

    # the first use prepares the weights; for many sequences one of them is enough for that
    first = timed(lambda: yuzu.yuzu_ism(model, X[:1], precomputation, device=job.device), job.device)
    if len(X) > 1 and first * len(X) < job.limit_seconds:
        score()
    result["seconds"] = timings(score, job)
    result["peak_bytes"], result["allowed_bytes"] = memory.peak(), precomputation.settings.max_memory
    if job.scores_file is None:
        return result

    l2 = yuzu.yuzu_ism(model, X[:1], precomputation, device=job.device)[0]
    save_scores(job, l2, compared_deltas(job.length, lambda a, b: delta(yuzu, model, X, precomputation, a, b, job)))
    from floor import measure_floor

    result["floor"] = measure_floor(model, precomputation, job.precision, job.device)
    result["summary"] = precomputation.summary()
    result["versions"] = versions("torch", "numpy")
    return result


def delta(yuzu: Any, model: Any, X: Any, precomputation: Any, first: int, stop: int, job: SimpleNamespace) -> Any:
    """Signed changes at some positions of the first sequence."""
    return yuzu.yuzu_ism(model, X[:1], precomputation, output="delta", start=first, end=stop, device=job.device)


if __name__ == "__main__":
    run(main)
