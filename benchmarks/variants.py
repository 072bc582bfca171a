"""Times `yuzu.variants.score` on BPNet (as in bpnet-lite, 64 filters, 2,114 bp) beside two forward passes a variant.

    python benchmarks/variants.py                                   # 10,000 SNVs; all SNVs of 10 kb, sharing references
    python benchmarks/variants.py --variants 200 --region 300 --rounds 3

Both sides run in one process, in turn, ``--rounds`` times. Each round scores another part of the variants (``logfc``
and ``jsd``, from a genome in memory) and then runs ``--passes`` plain forward passes on ready one-hot sequences, at
each batch size; the best one counts. So reading the genome, encoding and the scores are on our side alone. The result
is the median of the rounds' ratios: our seconds a variant over those of two passes. Errors are those of the first
variants against float64, with plain float32's beside them. ``precompute`` is timed apart. ``--clock cpu --threads 1``
counts the CPU's seconds, where other programs run on the machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from models import ProfileAndCounts  # noqa: E402

import yuzu  # noqa: E402
from yuzu.sequence import one_hot_encode  # noqa: E402

LENGTH = 2114
CHECKED = 32  # variants whose error is measured


def log_counts(output: Any) -> torch.Tensor:
    return output[1]


def profile(output: Any) -> torch.Tensor:
    return output[0]


def snvs(genome: str, positions: list[int], all_letters: bool, rng: random.Random) -> pandas.DataFrame:
    """One substitution at each position, or all three."""
    rows = []
    for position in positions:
        others = [letter for letter in "ACGT" if letter != genome[position]]
        rows += [("chr1", position, genome[position], alt) for alt in (others if all_letters else [rng.choice(others)])]
    return pandas.DataFrame(rows, columns=["chrom", "pos", "ref", "alt"])


class Bench:
    """The model, a genome, and the sides that are compared."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.options, self.device = options, options.device
        self.model = ProfileAndCounts(64, 8, 1, 557).eval().to(options.device)
        rng = random.Random(0)
        self.genome = "".join(rng.choices("ACGT", k=options.region + 20 * LENGTH))
        made: list[Any] = []
        self.planning = self.seconds(lambda: made.append(yuzu.precompute(self.model, LENGTH, device=options.device)))
        self.precomputation = made[0]
        starts = [rng.randrange(len(self.genome) - LENGTH) for _ in range(max(options.passes, max(options.batches)))]
        texts = [self.genome[start : start + LENGTH] for start in starts]
        self.X = one_hot_encode(texts).to(options.device)

    def seconds(self, work: Any) -> float:
        clock = time.process_time if self.options.clock == "cpu" else time.perf_counter
        begin = clock()
        work()
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return clock() - begin

    def score(self, table: pandas.DataFrame, share: int = 0) -> pandas.DataFrame:
        """Ours."""
        settings = {"scores": ("logfc", "jsd"), "counts": log_counts, "profile": profile, "predictions": True}
        settings |= {"share": share, "device": self.device}
        return yuzu.variants.score(self.model, table, {"chr1": self.genome}, LENGTH, self.precomputation, **settings)

    @torch.no_grad()
    def pass_seconds(self) -> tuple[float, int]:
        """The seconds of one plain forward pass, at the best batch size, and that size."""

        def passes(size: int) -> None:
            for first in range(0, len(self.X), size):
                self.model(self.X[first : first + size])

        return min((self.seconds(lambda size=size: passes(size)) / len(self.X), size) for size in self.options.batches)

    def compare(self, table: pandas.DataFrame, share: int = 0) -> dict[str, Any]:
        """Both sides in turn, each round with another part of the table."""
        parts = np.array_split(np.arange(len(table)), self.options.rounds)
        self.score(table.iloc[parts[0][:8]], share)
        self.pass_seconds()
        rounds = []
        for part in parts:
            ours = self.seconds(lambda part=part: self.score(table.iloc[part], share)) / len(part)
            naive, batch = self.pass_seconds()
            rounds.append({"ours_s": ours, "two_passes_s": 2 * naive, "batch": batch, "ratio": ours / (2 * naive)})
        found = {"variants": len(table), "share": share, "ratio": median(r["ratio"] for r in rounds), "rounds": rounds}
        return {**found, "variants_a_second": 1 / median(r["ours_s"] for r in rounds), **self.errors(table)}

    @torch.no_grad()
    def errors(self, table: pandas.DataFrame) -> dict[str, float]:
        """Relative L2 errors of ``logfc`` and ``jsd`` of the first variants, each on its own reference."""
        some = table.iloc[:CHECKED]
        found = self.score(some)
        sides = []
        for row in some.itertuples():
            text = self.genome[row.pos - LENGTH // 2 : row.pos - LENGTH // 2 + LENGTH]
            middle = LENGTH // 2
            sides += [text, text[:middle] + row.alt + text[middle + 1 :]]
        X = one_hot_encode(sides).to(self.device)
        scores = []
        for dtype in (torch.float64, torch.float32):
            shapes, counts = copy.deepcopy(self.model).to(dtype)(X.to(dtype))
            logfc = torch.diff(counts[:, 0].unflatten(0, (-1, 2)).double(), dim=1)[:, 0] / np.log(2)
            p, q = shapes.double().flatten(1).softmax(1).unflatten(0, (-1, 2)).unbind(1)
            m = (p + q) / 2
            distance = ((p * (p / m).log() + q * (q / m).log()).sum(1) / (2 * np.log(2))).clamp(min=0).sqrt()
            scores.append((logfc.cpu().numpy(), distance.cpu().numpy()))
        made = {}
        for place, name in enumerate(("logfc", "jsd")):
            truth = scores[0][place]
            for who, value in (("ours", found[name].to_numpy()), ("naive", scores[1][place])):
                made[f"{name}_error_{who}"] = float(np.linalg.norm(value - truth) / np.linalg.norm(truth))
        return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=int, default=10_000, help="SNVs at random places; 0 for none")
    parser.add_argument("--region", type=int, default=10_000, help="bp of which all SNVs are scored; 0 for none")
    parser.add_argument("--share", type=int, default=1000, help="of the region's variants")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passes", type=int, default=64, help="forward passes timed at each batch size in a round")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16, 32, 64])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    parser.add_argument("--out", type=Path, help="results as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench, rng = Bench(options), random.Random(1)
    found: dict[str, Any] = {name: getattr(options, name) for name in ("device", "threads", "clock")}
    found["precompute_s"] = bench.planning
    low, high = LENGTH, len(bench.genome) - LENGTH
    if options.variants:
        places = [rng.randrange(low, high) for _ in range(options.variants)]
        found["apart"] = bench.compare(snvs(bench.genome, places, False, rng))
    if options.region:
        table = snvs(bench.genome, list(range(low, low + options.region)), True, rng)
        found["region"] = bench.compare(table, options.share)
    for name, what in (("apart", "SNVs, each on its own reference"), ("region", "SNVs of a region, which share some")):
        if name in found:
            one = found[name]
            print(
                f"{one['variants']} {what}: {one['ratio']:.3f} of two forward passes each ({1 / one['ratio']:.1f} x), "
                f"{one['variants_a_second']:.0f} a second; logfc error {one['logfc_error_ours']:.1e} (plain float32 "
                f"{one['logfc_error_naive']:.1e}), jsd {one['jsd_error_ours']:.1e} ({one['jsd_error_naive']:.1e})"
            )
    print(f"precompute: {bench.planning:.1f} s")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
