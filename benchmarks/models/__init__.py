"""Architectures of the field with random weights, for benchmarks: one family a file.

    from models import ARCHITECTURES
    case = ARCHITECTURES["DanQ"]
    model, X, args = case.model(), case.sequences(), case.args()

They are written anew from their publications; Cherimoya's package is there, too, where it is installed. The kinds of
layers, their order and the lengths of sequences are the published ones as far as two cores allow: `notes` says where a
model is narrower, shorter or less deep. Weights mean nothing, but have the scale of trained ones (`models.weights`).
"""

from __future__ import annotations

from models.architecture import Architecture
from models.efficient import LegNet
from models.long_filters import HyenaDNA
from models.norms import (
    LogCounts,
    PooledByAttention,
    cherimoya,
    convnext,
    group_gates,
    group_norms,
    has_package,
    instance_norms,
    packaged,
    unpackaged,
)
from models.profiles import BiasAndSignal, ProfileAndCounts
from models.puffin import Puffin
from models.recurrent import ConvGRU, DanQ, DreamRNN, RnnAttention, Saluki
from models.regions import DeepSTARR, Ensemble, Malinois, Sei
from models.relative_attention import Enformer, UNet
from models.splicing import Aparent2, Pangolin
from models.towers import Basenji, ScBasset
from models.transformers import ConvTransformer, DilatedAttention, NucleotideTransformer, Satori
from models.weights import draw_anew, remember
from yuzu import models as published

ARCHITECTURES: dict[str, Architecture] = {
    "ToyNet": Architecture(lambda: published.ToyNet(4, seq_len=1000), 1000),
    "DeepSEA": Architecture(lambda: published.DeepSEA(4, seq_len=1000), 1000),
    "Basset": Architecture(lambda: published.Basset(4, seq_len=1000), 1000),
    "FactorizedBasset": Architecture(lambda: published.FactorizedBasset(4, seq_len=1000), 1000),
    "BPNet": Architecture(lambda: ProfileAndCounts(64, 8, 2, 557, 2), 2114, ((2, 2114),)),
    "ChromBPNet": Architecture(BiasAndSignal, 2114, notes="128 of 512 filters"),
    "ProCapNet": Architecture(lambda: ProfileAndCounts(128, 8, 2, 557), 2114, notes="128 of 512 filters"),
    "Beluga": Architecture(
        lambda: published.Beluga(4, 1000, 2002, 0, (96, 128, 160), 500),
        1000,
        notes="a quarter of the width, half the length",
    ),
    "DeepSTARR": Architecture(DeepSTARR, 249),
    "Malinois": Architecture(Malinois, 600),
    "Puffin": Architecture(Puffin, 1650),
    "Sei": Architecture(Sei, 1024, notes="a quarter of width and length, 2,000 of 21,907 outputs"),
    "LegNet": Architecture(lambda: draw_anew(LegNet()), 230),
    "scBasset": Architecture(ScBasset, 1344),
    "Basenji": Architecture(Basenji, 4096, notes="96 of 288 to 768 filters, 4,096 of 131,072 positions"),
    "SpliceAI": Architecture(lambda: published.SpliceAI(flanking=2000), 3000),
    "Pangolin": Architecture(Pangolin, 3000, notes="three of four groups of units"),
    "APARENT2": Architecture(Aparent2, 205, ((13,),)),
    "Cherimoya": Architecture(cherimoya, 2114),
    "Cherimoya, log counts": Architecture(lambda: LogCounts(cherimoya()), 2114),
    "Group norms": Architecture(group_norms, 1000),
    "Instance norms": Architecture(instance_norms, 1000),
    "Group gates": Architecture(group_gates, 1000),
    "ConvNeXt": Architecture(convnext, 600),
    "Attention pool": Architecture(PooledByAttention, 1000),
    "HyenaDNA": Architecture(HyenaDNA, 1024),
    "Enformer": Architecture(Enformer, 2048, notes="96 of 1,536 channels, 3 of 11 layers, 2,048 of 196,608 positions"),
    "Borzoi": Architecture(UNet, 2048, notes="64 of 1,536 channels, 2 of 8 layers"),
    "ConvTransformer": Architecture(ConvTransformer, 1000),
    "SATORI": Architecture(Satori, 600),
    "DilatedAttention": Architecture(DilatedAttention, 600),
    "NucleotideTransformer": Architecture(NucleotideTransformer, 600, notes="128 of 512 channels, 4 of 12 layers"),
    "Ensemble": Architecture(lambda: Ensemble(DeepSTARR, 5), 249),
    "DanQ": Architecture(remember(DanQ, 1.0), 1000, recurrent=True),
    "DanQ, settling": Architecture(remember(DanQ, -1.0), 1000, recurrent=True),
    "DREAM-RNN": Architecture(remember(DreamRNN, 1.0), 230, recurrent=True),
    "DREAM-RNN, settling": Architecture(remember(DreamRNN, -1.0), 230, recurrent=True),
    "ConvGRU": Architecture(remember(ConvGRU, 1.0), 600, recurrent=True),
    "ConvGRU, settling": Architecture(remember(ConvGRU, -1.0), 600, recurrent=True),
    "Saluki": Architecture(
        remember(Saluki, 1.0), 3072, ((2, 3072),), recurrent=True, notes="3,072 of 12,288 positions"
    ),
    "RNN with attention": Architecture(remember(RnnAttention, 1.0), 600, recurrent=True),
}
if has_package():
    ARCHITECTURES["Cherimoya, package"] = Architecture(packaged, 2114, wide=unpackaged)
