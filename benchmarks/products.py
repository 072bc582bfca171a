"""Sequences times cell states: `yuzu.product.apply_product` beside tangermeme's, on the same model in one process.

    python benchmarks/products.py [--sequences 10] [--cells 100] [--length 500]

The cell state joins after the convolutions and a dense layer, as in models of many cell types. tangermeme 1.6.0 (in
the environment that the main benchmark makes) runs its own `apply_product` with its `saturation_mutagenesis`, with
``fast=True`` and ``fast=False``, on `--tried` of the cells, each at the best of several batch sizes; the time of all
cells is that for one times their number. ``fast=True`` never comes to use its fast path there, as no batch of pairs
would take the thirty seconds that it asks for; so it is also forced (its threshold set to zero), with all pairs in one
call and the capture counted once: from the times of one cell and of `--tried`. Yuzu's time is measured, on all cells,
``precompute`` included, but for the import of ``torch.export``, which tangermeme's capture has done before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "cpu-products.json"
BATCHES = (8, 32, 128, 512)
GENES = 50  # numbers in a cell state


class Cells(nn.Module):
    """Convolutions and a dense layer on the sequence, then a head that reads them and the cell's expression."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.tower = nn.Sequential(
            nn.Conv1d(4, 64, 15, padding=7),
            nn.ReLU(),
            nn.MaxPool1d(4),
            nn.Conv1d(64, 64, 9, padding=4),
            nn.ReLU(),
            nn.MaxPool1d(4),
            nn.Flatten(),
            nn.Linear(64 * (length // 16), 128),
            nn.ReLU(),
        )
        self.cell = nn.Linear(GENES, 32)
        self.head = nn.Sequential(nn.Linear(160, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x: torch.Tensor, expression: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.tower(x), self.cell(expression).relu()], dim=1))


def seconds_of(function: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    found = function()
    return time.perf_counter() - begin, found


def forced(
    module: Any, product: Any, model: nn.Module, X: torch.Tensor, cells: torch.Tensor, wanted: int
) -> dict[str, Any]:
    """tangermeme's fast path without its threshold, all pairs at once: seconds for ``wanted`` cells at the best batch
    of edits, from the times of one cell and of all ``cells``, so that the capture and its check count once.
    """
    module._FAST_MIN_SECONDS = 0.0
    found = {}
    for batch in (BATCHES[0], *BATCHES):  # the first warms up, and is measured again

        def scores(model: Any, X: Any, args: Any, batch_size: int, device: Any, batch: int = batch, **_: Any) -> Any:
            return module.saturation_mutagenesis(model, X, args=args, batch_size=batch, device=device, fast=True)

        times = [
            seconds_of(
                lambda n=n, f=scores: product.apply_product(
                    f, model, X, (cells[:n],), batch_size=len(X) * n, device="cpu"
                )  # type: ignore[misc]
            )[0]
            for n in (1, len(cells))
        ]
        each = (times[1] - times[0]) / (len(cells) - 1)
        found[batch] = {"seconds": times[0] + each * (wanted - 1), "one cell": times[0], "all tried": times[1]}
    best = min(found, key=lambda b: found[b]["seconds"])
    print(f"tangermeme, fast=True, forced: {found[best]['seconds']:.1f} s (batch size {best})", flush=True)
    return {"seconds": found[best]["seconds"], "batch_size": best, "tried": found}


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Both, in this process."""
    from tangermeme import product
    from tangermeme import saturation_mutagenesis as module

    saturation_mutagenesis = module.saturation_mutagenesis

    import yuzu

    torch.manual_seed(0)
    model = Cells(options.length).eval()
    X = F.one_hot(torch.randint(4, (options.sequences, options.length)), 4).permute(0, 2, 1).float()
    cells = torch.rand(options.cells, GENES)
    some = cells[: options.tried]
    result: dict[str, Any] = {"torch": torch.__version__, **vars(options)}
    theirs = None
    for fast in (True, False):
        tried = {}
        for batch in BATCHES:
            settings = {"batch_size": batch, "device": "cpu", "fast": fast}
            tried[batch], theirs = seconds_of(
                lambda s=settings: product.apply_product(saturation_mutagenesis, model, X, (some,), **s)  # type: ignore[misc]
            )
        best = min(tried, key=lambda b: tried[b])
        seconds = tried[best] * options.cells / len(some)
        result[f"tangermeme fast={fast}"] = {"seconds": seconds, "batch_size": best, "tried": tried}
        print(f"tangermeme, fast={fast}: {seconds:.1f} s (batch size {best})", flush=True)
    result["tangermeme fast, forced"] = forced(module, product, model, X, some, options.cells)
    first, _ = seconds_of(
        lambda: yuzu.product.apply_product(yuzu.saturation_mutagenesis, model, X, (cells,), device="cpu")
    )
    again, ours = seconds_of(
        lambda: yuzu.product.apply_product(yuzu.saturation_mutagenesis, model, X, (cells,), device="cpu")
    )
    assert theirs is not None
    mine = ours[:, : len(some)]
    result["yuzu"] = {"seconds": first, "seconds of a second call": again}
    result["difference from tangermeme"] = float((mine - theirs).norm() / theirs.norm())
    least = min(row["seconds"] for name, row in result.items() if name.startswith("tangermeme"))
    result["times faster"] = least / first
    print(f"yuzu: {first:.2f} s with precompute, {again:.2f} s again; {least / first:.1f} times faster")
    print(f"relative difference of the scores: {result['difference from tangermeme']:.1e}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sequences", type=int, default=10)
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--length", type=int, default=500)
    parser.add_argument("--tried", type=int, default=4, help="cells that tangermeme is timed on; default: 4")
    parser.add_argument("--here", action="store_true", help="in this environment, which has tangermeme")
    options = parser.parse_args()
    if not 2 <= options.tried <= options.cells:
        parser.error("--tried must be at least 2 and at most --cells")
    if options.here:
        warnings.simplefilter("ignore")  # tangermeme's, on why it does not use its fast path
        del options.here
        RESULTS.write_text(json.dumps(measured(options), indent=1) + "\n")
        return
    from environments import python_of

    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    command = [python_of("tangermeme"), __file__, *sys.argv[1:], "--here"]
    raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
