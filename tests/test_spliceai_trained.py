"""SpliceAI with trained weights on real sequences, against naive ISM. Skipped where the weights are not there."""

from pathlib import Path

import pytest
import torch

import yuzu
from yuzu.check import errors_against
from yuzu.models import SpliceAI
from yuzu.sequence import one_hot_encode, read_fasta

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
WEIGHTS = DATA / "openspliceai_mane_400nt_rs10.pt"

pytestmark = pytest.mark.skipif(
    not WEIGHTS.exists(), reason=f"the trained weights {WEIGHTS} are absent (GPL, not shipped with Yuzu)"
)


@pytest.fixture(scope="module")
def model():
    return SpliceAI.from_openspliceai(torch.load(WEIGHTS, weights_only=True, map_location="cpu"))


@pytest.mark.parametrize("name, length", [("chr3_enhancer_hg38.fa", 2000), ("gata_peaks_2114.fa", 2114)])
def test_trained_weights_on_real_sequences(model, name, length):
    """As accurate as naive float32 against naive float64, over stretches at both ends, near the crop, and in the "
    "middle."""
    X = one_hot_encode(read_fasta(DATA / name).sequences[:1])
    assert X.shape == (1, 4, length)
    precomputation = yuzu.precompute(model, length)
    assert "naive" not in {layer.handler for layer in precomputation.layers}
    double = SpliceAI.from_openspliceai(torch.load(WEIGHTS, weights_only=True, map_location="cpu")).double()
    for start in (0, 198, length // 2, length - 4):
        span = {"output": "delta", "start": start, "end": start + 4}
        ours = yuzu.yuzu_ism(model, X, precomputation, **span)
        naive = yuzu.naive_ism(model, X, **span)
        truth = yuzu.naive_ism(double, X.double(), **span)
        assert ours.shape == (1, 4, 4, 3, length - 400)
        error, largest = errors_against(ours, truth)
        naive_error, naive_largest = errors_against(naive, truth)
        assert error <= max(1e-5, naive_error)
        assert largest <= max(1e-5, naive_largest)


def test_a_mutation_changes_the_output_within_the_flanks_only(model):
    X = one_hot_encode(read_fasta(DATA / "chr3_enhancer_hg38.fa").sequences[:1])
    delta = yuzu.yuzu_ism(model, X, output="delta", start=1000, end=1001)[0, :, 0]
    changed = torch.nonzero(delta.abs().amax((0, 1))).flatten()
    assert 1000 - 400 <= int(changed.min()) and int(changed.max()) <= 1000
