"""The law for every way of running a convolution, and for lower precision."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import yuzu  # noqa: F401  registers every handler
from tests.handlers import test_convolution, test_dense  # noqa: F401  they fill the benches
from tests.laws.bench import BENCHES, FLOAT32_CHUNKS, bench_chunks, bench_findings
from tests.laws.random_models import Chunk, Laboratory, tensors_of
from yuzu._engine.handlers.convolution import Convolution
from yuzu._engine.ways.compressed_sensing import Sensing
from yuzu._engine.ways.convolution import WAYS


@pytest.mark.parametrize("name", ["convolution", "convolution in two dimensions", "shorter than the receptive field", "cropped"])
@pytest.mark.parametrize("way", list(WAYS))
def test_the_law_for_every_way_of_convolving(way: str, name: str) -> None:
    findings = bench_findings(name)
    theirs = findings.laboratory
    laboratory = Laboratory(theirs.model, theirs.X, theirs.args, theirs.graph)  # a plan of its own
    laboratory.plan = replace(laboratory.plan, sensing=Sensing(1.5, 0))
    everywhere, run = laboratory.plan.windows(np.arange(BENCHES[name].length), 3), laboratory.run()
    convolutions = [rule for rule in laboratory.plan.rules if isinstance(rule, Convolution)]
    ways = {r.node.index: r.forced_way(run, way, everywhere[r.sources[0]].width) for r in convolutions}
    laboratory.plan = laboratory.plan.with_ways(ways)
    forced = [chosen == way for chosen in ways.values()]
    few = way == "blocks" and name != "convolution"  # which has the layers with channels enough
    wanted = 5 if not few else int(name in ("shorter than the receptive field", "cropped"))
    assert sum(forced) >= wanted, f"{way} applies to {sum(forced)} convolutions only"
    exact = WAYS[way].exact
    found = [f"{findings.cases[findings.owners[i]].name}: {text}" for i, text in laboratory.problems(bench_chunks(name), tolerance=1e-10 if exact else 1e-4)]
    assert not found, "\n".join(found[:8])
    if not exact:
        assert way_correlation(laboratory, bench_chunks(name)) > 0.9999


def way_correlation(laboratory: Laboratory, made: list[Chunk]) -> float:
    """Pearson correlation of all outputs' changes with the truth, the least over chunks."""
    run, least = laboratory.run(), 1.0
    with torch.no_grad():
        for item in made:
            edits = item.sites.difference.shape[1]
            before = laboratory.X[torch.from_numpy(item.sites.sequence.repeat(edits))]
            truth = [m - b for m, b in zip(tensors_of(laboratory.model_copy(item.mutants)), tensors_of(laboratory.model_copy(before)), strict=True)]
            changes = run.chunk(item.sites)
            found = [laboratory.difference(run, o, c) for o, c in zip(laboratory.graph.outputs, changes, strict=True)]
            both = torch.stack([torch.cat([t.flatten() for t in tensors]) for tensors in (found, truth)])
            least = min(least, float(torch.corrcoef(both)[0, 1]))
    return least


@pytest.mark.parametrize("name", ["convolution", "dense"])
def test_medium_precision_stays_near_the_law(name: str) -> None:
    """Products in bfloat16: near, and for some cases plainly not float32."""
    findings = bench_findings(name)
    theirs = findings.laboratory
    laboratory = Laboratory(theirs.model, theirs.X, theirs.args, theirs.graph)
    laboratory.plan = replace(laboratory.plan, precision="medium")
    made = [c for c in bench_chunks(name) if c.name in FLOAT32_CHUNKS]
    found = [f"{findings.cases[findings.owners[i]].name}: {text}" for i, text in laboratory.problems(made, torch.float32, 0.04)]
    assert not found, "\n".join(found[:8])
    assert list(laboratory.problems(made, torch.float32, 1e-4))
