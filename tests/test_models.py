"""The example models: published layers and weights, order of operations, receptive fields, errors."""

import importlib.util
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from yuzu import models
from yuzu.errors import YuzuError
from yuzu.sequence import one_hot_encode, read_fasta

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "shared" / "data"
TRAINED = DATA / "openspliceai_mane_400nt_rs10.pt"
PUBLISHED_SOURCE = ROOT / "tools" / "peers" / "yuzu_ism_src" / "yuzu" / "models.py"

# The layers with parameters of yuzu-ism 0.0.1, in the order in which it draws their weights, for 4 inputs of
# length 150: (name, in, out, width) is a convolution, (name, in, out) linear, (name, n) a normalization.
DENSE = [("fc1", 600, 1000), ("bn4", 1000), ("fc2", 1000, 1000), ("bn5", 1000)]
PUBLISHED = {
    "OneLayer": [("conv", 4, 64, 7)],
    "ToyNet": [("conv1", 4, 32, 7), ("conv2", 32, 32, 7), ("conv3", 32, 2, 7)],
    "DeepSEA": [("conv1", 4, 320, 9), ("conv2", 320, 480, 9), ("conv3", 480, 960, 9), ("fc", 9 * 960, 925)],
    "Basset": [("conv1", 4, 300, 19), ("bn1", 300), ("conv2", 300, 200, 11), ("bn2", 200),
               ("conv3", 200, 200, 7), ("bn3", 200), *DENSE, ("fc3", 1000, 164)],
    "FactorizedBasset": [("conv11", 4, 48, 3), ("bn11", 48), ("conv12", 48, 64, 3), ("bn12", 64),
                         ("conv13", 64, 100, 3), ("bn13", 100), ("conv14", 100, 150, 7), ("bn14", 150),
                         ("conv15", 150, 300, 7), ("bn15", 300), ("conv21", 300, 200, 7), ("bn21", 200),
                         ("conv22", 200, 200, 3), ("bn22", 200), ("conv23", 200, 200, 3), ("bn23", 200),
                         ("conv3", 200, 200, 7), ("bn3", 200), *DENSE, ("fc3", 1000, 1)],
    "BPNet": [("iconv", 4, 64, 21), ("dconv1", 64, 64, 3), ("dconv2", 64, 64, 3), ("dconv3", 64, 64, 3),
              ("fconv", 64, 1, 75)],
}
SHAPES = {"OneLayer": (64, 150), "ToyNet": (2, 150), "DeepSEA": (1, 925), "Basset": (1, 164),
          "FactorizedBasset": (1, 1), "BPNet": (1, 150)}
ORDER = {
    "OneLayer": "conv",
    "ToyNet": "conv1 relu1 conv2 relu2 conv3",
    "DeepSEA": "conv1 relu1 mp1 conv2 relu2 mp2 conv3 relu3 reshape fc sigmoid unsqueeze",
    "Basset": "conv1 relu1 bn1 maxpool1 conv2 relu2 bn2 maxpool2 conv3 relu3 bn3 maxpool3 reshape "
              "fc1 relu4 bn4 fc2 relu5 bn5 fc3 unsqueeze",
    "FactorizedBasset": "conv11 bn11 relu11 conv12 bn12 relu12 conv13 bn13 relu13 conv14 bn14 relu14 "
                        "conv15 bn15 relu15 mp1 conv21 bn21 relu21 conv22 bn22 relu22 conv23 bn23 relu23 mp2 "
                        "conv3 bn3 relu3 mp3 flatten fc1 relu4 bn4 fc2 relu5 bn5 fc3 unsqueeze",
    "BPNet": "iconv irelu dconv1 drelu1 dconv2 drelu2 dconv3 drelu3 fconv",
}


def sequences(n, length, n_inputs=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(n_inputs, (n, length), generator=generator)
    return F.one_hot(index, n_inputs).permute(0, 2, 1).float()


def small_beluga(**kwargs):
    return models.Beluga(**{"seq_len": 400, "n_filters": (4, 6, 8), "n_hidden": 7, "n_outputs": 5, **kwargs})


def build(name, **kwargs):
    if name == "Beluga":
        return small_beluga(**kwargs).eval()
    if name == "SpliceAI":
        return models.SpliceAI(**{"flanking": 80, "n_filters": 4, **kwargs}).eval()
    return getattr(models, name)(**{"n_inputs": 4, "seq_len": 150, **kwargs}).eval()


def length_of(name):
    return {"Beluga": 400, "SpliceAI": 150}.get(name, 150)


ALL = [*PUBLISHED, "Beluga", "SpliceAI"]


# ------------------------------------------------------------------ the six published models


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("random_state", [0, 5])
def test_weights_are_those_of_the_published_package(name, random_state):
    state = build(name, random_state=random_state).state_dict()
    expected = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_state)
        for layer, *sizes in PUBLISHED[name]:
            kind = {1: torch.nn.BatchNorm1d, 2: torch.nn.Linear, 3: torch.nn.Conv1d}[len(sizes)]
            expected.update({f"{layer}.{k}": v for k, v in kind(*sizes).state_dict().items()})
    assert list(state) == list(expected)
    for key, value in expected.items():
        assert torch.equal(state[key], value), key


@pytest.mark.parametrize("name", PUBLISHED)
def test_layers_run_in_the_published_order(name):
    model = build(name)
    called = []
    for layer, module in model.named_children():
        module.register_forward_hook(lambda *_, layer=layer: called.append(layer))
    assert model(sequences(2, 150)).shape == (2, *SHAPES[name])
    assert called == ORDER[name].split()


@pytest.mark.parametrize("name", PUBLISHED)
def test_outputs_equal_the_published_source(name):
    if not PUBLISHED_SOURCE.exists():
        pytest.skip(f"no source of yuzu-ism at {PUBLISHED_SOURCE}")
    spec = importlib.util.spec_from_file_location("published_models", PUBLISHED_SOURCE)
    published = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(published)
    with torch.random.fork_rng(devices=[]):
        theirs = getattr(published, name)(4, seq_len=150, random_state=3).eval()
    ours, X = build(name, random_state=4), sequences(2, 150)
    assert not torch.equal(ours(X), theirs(X))
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours(X), theirs(X))
    theirs.load_state_dict(build(name, random_state=4).state_dict())
    assert torch.equal(build(name, random_state=4)(X), theirs(X))


def test_bpnet_honours_n_layers_and_kernel_size():
    model = models.BPNet(4, n_filters=8, kernel_size=5, n_layers=6)
    assert model.iconv.kernel_size == (5,)
    dilated = {name: m for name, m in model.named_children() if name.startswith("dconv")}
    assert list(dilated) == ["dconv1", "dconv2", "dconv3", "dconv4", "dconv5"]
    assert [m.dilation[0] for m in dilated.values()] == [2, 4, 8, 16, 32]
    assert model(sequences(1, 200)).shape == (1, 1, 200)
    only_first = models.BPNet(4, n_filters=8, n_layers=1)
    assert [name for name, _ in only_first.named_children()] == ["iconv", "irelu", "fconv"]
    assert only_first(sequences(1, 60)).shape == (1, 1, 60)


@pytest.mark.parametrize("name, shortest", [("DeepSEA", 16), ("Basset", 48), ("FactorizedBasset", 48)])
def test_length_of_the_dense_models(name, shortest):
    model = build(name, seq_len=shortest)
    assert model(sequences(2, shortest)).shape == (2, *SHAPES[name])
    with pytest.raises(YuzuError, match=f"seq_len: got {shortest - 1}, which the pooling of {name} .*at least {shortest}"):
        build(name, seq_len=shortest - 1)
    with pytest.raises(YuzuError, match=f"seq_len: got None.*dense layers of {name}.*at least {shortest}"):
        getattr(models, name)(4)


def test_flatten_goes_position_by_position():
    X = torch.arange(12).reshape(1, 3, 4)
    assert models.Flatten()(X).tolist() == [[0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]]
    assert models.Unsqueeze(-1)(X).shape == (1, 3, 4, 1)


# ------------------------------------------------------------------ every model


@pytest.mark.parametrize("name", ALL)
def test_global_random_states_are_untouched_and_irrelevant(name):
    torch.manual_seed(11)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    one = build(name, random_state=2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1] and random.getstate() == before[2]
    torch.manual_seed(12)
    same, other = build(name, random_state=2), build(name, random_state=3)
    for key, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[key]), key
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


@pytest.mark.parametrize("name", ALL)
def test_n_inputs_is_honoured(name):
    model = build(name, n_inputs=5)
    X = sequences(2, length_of(name), n_inputs=5)
    assert torch.isfinite(model(X)).all()
    changed = X.roll(1, dims=1)
    assert not torch.equal(model(X), model(changed))
    with pytest.raises(YuzuError, match="n_inputs: got 0, want an int of at least 1"):
        build(name, n_inputs=0)


@pytest.mark.parametrize("name", ALL)
def test_gradients_flow_and_symbolic_tracing_works(name):
    model, X = build(name), sequences(1, length_of(name)).requires_grad_()
    y = model(X)
    y.square().sum().backward()
    assert X.grad.abs().sum() > 0
    assert torch.equal(torch.fx.symbolic_trace(model)(X), y)


def test_default_device_and_dtype():
    with torch.device("meta"):
        assert {p.device.type for p in build("Basset").state_dict().values()} == {"meta"}
    try:
        torch.set_default_dtype(torch.float64)
        assert build("ToyNet").conv1.weight.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name, kwargs, text", [
    ("OneLayer", {"n_filters": 0}, "n_filters: got 0,"),
    ("ToyNet", {"kernel_size": 7.0}, "kernel_size: got 7.0,"),
    ("BPNet", {"n_layers": 0}, "n_layers: got 0,"),
    ("DeepSEA", {"seq_len": "150"}, "seq_len: got '150',"),
    ("Beluga", {"n_filters": (1, 2)}, r"n_filters: got \(1, 2\), want three"),
    ("Beluga", {"n_filters": (1, 2, -3)}, r"n_filters\[2\]: got -3,"),
    ("SpliceAI", {"n_outputs": None}, "n_outputs: got None,"),
])
def test_bad_sizes_are_named(name, kwargs, text):
    with pytest.raises(YuzuError, match=text):
        build(name, **kwargs)


# ------------------------------------------------------------------ Beluga


def test_beluga_has_the_published_sizes():
    model = models.Beluga(n_filters=(1, 1, 640), n_hidden=1)
    assert model.model[1][2][1].in_features == 67840
    assert model.model[1][4][1].out_features == 2002
    defaults = models.Beluga.__init__.__defaults__
    assert defaults == (4, 2000, 2002, 0, (320, 480, 640), 2003)
    assert all(m.kernel_size == (1, 8) for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    assert [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)] == [0.2, 0.2, 0.5]


def test_beluga_by_hand():
    model, X = small_beluga().eval(), sequences(2, 400)
    w = model.state_dict()
    h = X
    for i in (0, 2, 6, 8, 12, 14):
        h = F.relu(F.conv1d(h, w[f"model.0.{i}.weight"][:, :, 0], w[f"model.0.{i}.bias"]))
        if i in (2, 8):
            h = F.max_pool1d(h, 4)
    h = F.relu(F.linear(h.flatten(1), w["model.1.2.1.weight"], w["model.1.2.1.bias"]))
    y = torch.sigmoid(F.linear(h, w["model.1.4.1.weight"], w["model.1.4.1.bias"]))
    torch.testing.assert_close(model(X), y)
    assert y.shape == (2, 5)


def test_beluga_length():
    assert small_beluga(seq_len=310).eval()(sequences(1, 310)).shape == (1, 5)
    with pytest.raises(YuzuError, match="seq_len: got 309, which the pooling of Beluga .*least 310"):
        small_beluga(seq_len=309)


# ------------------------------------------------------------------ SpliceAI


def spliceai_by_hand(state, X, dilations, slope):
    """The network of Jaganathan et al. straight from a state dict; returns its probabilities."""
    def conv(x, name, dilation=1):
        w = state[f"{name}.weight"]
        return F.conv1d(x, w, state[f"{name}.bias"], padding=dilation * (w.shape[2] // 2), dilation=dilation)

    x = conv(X, "initial_conv")
    skip = conv(x, "initial_skip.conv")
    unit = crop = 0
    for i, dilation in enumerate(dilations, 1):
        h = x
        for j in "12":
            name = f"residual_units.{unit}.batchnorm{j}"
            norm = [state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
            h = conv(F.leaky_relu(F.batch_norm(h, *norm), slope), f"residual_units.{unit}.conv{j}", dilation)
            crop += dilation * (state[f"residual_units.{unit}.conv{j}.weight"].shape[2] // 2)
        x, unit = x + h, unit + 1
        if i % 4 == 0:
            skip, unit = skip + conv(x, f"residual_units.{unit}.conv"), unit + 1
    assert unit == len({key.split(".")[1] for key in state if key.startswith("residual_units")})
    return conv(skip, "final_conv")[..., crop:-crop].softmax(1)


DILATIONS = {80: [1] * 4, 400: [1] * 4 + [4] * 4, 2000: [1] * 4 + [4] * 4 + [10] * 4,
             10000: [1] * 4 + [4] * 4 + [10] * 4 + [25] * 4}


@pytest.mark.parametrize("flanking", DILATIONS)
@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_spliceai_by_hand(flanking, slope):
    model = models.SpliceAI(5, flanking, n_filters=3, n_outputs=4, negative_slope=slope).double()
    generator = torch.Generator().manual_seed(0)
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm1d):
            for tensor in (m.weight.data, m.bias.data, m.running_mean, m.running_var):
                tensor.copy_(0.5 + torch.rand(3, generator=generator, dtype=torch.float64))
    X = sequences(2, flanking + 30, n_inputs=5).double()
    y = model.eval()(X)
    assert y.shape == (2, 4, 30)
    torch.testing.assert_close(y, spliceai_by_hand(model.state_dict(), X, DILATIONS[flanking], slope))


@pytest.mark.parametrize("flanking", DILATIONS)
def test_spliceai_receptive_field(flanking):
    model = models.SpliceAI(flanking=flanking, n_filters=2).double().eval()
    # With positive weights and no biases nothing cancels and no ReLU is off: an input of zeros gives zeros,
    # and a single one shows wherever it reaches, however small.
    for name, parameter in model.named_parameters():
        parameter.data = torch.zeros_like(parameter) if name.endswith("bias") else parameter.data.abs() + 1e-3
    seen = []
    model.final_conv.register_forward_hook(lambda module, args, output: seen.append(output))
    n_outputs, at = flanking + 11, flanking + 5
    X = torch.zeros(1, 4, n_outputs + flanking, dtype=torch.float64)
    model(X)
    X[0, 2, at] = 1
    model(X)
    assert seen[0].abs().max() == 0
    changed = (seen[1] != 0).all(1)[0].nonzero()[:, 0].tolist()
    assert changed == list(range(at - flanking, at + 1))
    assert (seen[1] != 0).any(1).sum() == flanking + 1


def test_spliceai_output_is_a_distribution():
    y = build("SpliceAI")(sequences(3, 95))
    assert y.shape == (3, 3, 15)
    torch.testing.assert_close(y.sum(1), torch.ones(3, 15))


def test_spliceai_errors():
    with pytest.raises(YuzuError, match="flanking: got 100, want 80, 400, 2000 or 10000"):
        models.SpliceAI(flanking=100)
    model = models.SpliceAI(flanking=80, n_filters=2)
    with pytest.raises(YuzuError, match="X: got 80 positions, want more than the flanking of 80"):
        model(sequences(1, 80))
    assert model(sequences(1, 81)).shape == (1, 3, 1)


@pytest.mark.parametrize("flanking", DILATIONS)
def test_from_openspliceai_finds_the_sizes(flanking):
    source = models.SpliceAI(5, flanking, n_filters=3, n_outputs=4, random_state=7, negative_slope=0.1).eval()
    model = models.SpliceAI.from_openspliceai(source.state_dict())
    X = sequences(1, flanking + 20, n_inputs=5)
    assert not model.training and model.flanking == flanking
    assert torch.equal(model(X), source(X))


def test_from_openspliceai_errors():
    state = models.SpliceAI(flanking=80, n_filters=2).state_dict()
    with pytest.raises(YuzuError, match="got 1 entries, not those of OpenSpliceAI"):
        models.SpliceAI.from_openspliceai({"conv.weight": torch.zeros(1)})
    without = {k: v for k, v in state.items() if not k.startswith("residual_units.4")}
    with pytest.raises(YuzuError, match="not those of OpenSpliceAI; want .* 5, 10, 15 or 20 residual_units"):
        models.SpliceAI.from_openspliceai(without)
    without = {k: v for k, v in state.items() if k != "residual_units.2.conv1.bias"}
    with pytest.raises(YuzuError, match="for flanking 80.*residual_units.2.conv1.bias"):
        models.SpliceAI.from_openspliceai(without)


@pytest.fixture(scope="module")
def trained():
    if not TRAINED.exists():
        pytest.skip(f"no trained weights at {TRAINED}")
    return torch.load(TRAINED, weights_only=True, map_location="cpu")


# Human beta-globin, from 102 bases before the start of transcription to 204 into the second intron.
HBB_UPSTREAM = (
    "CCTGTGGAGCCACACCCTAGGGTTGGCCAATCTACTCCCAGGAGCAGGGAGGGCAGGAGCCAGGGCTGGGCATAAAAGTCAGGGCAGAGCCATCTATTGC"
    "TT"
)
HBB_EXON_1 = (
    "ACATTTGCTTCTGACACAACTGTGTTCACTAGCAACCTCAAACAGACACCATGGTGCATCTGACTCCTGAGGAGAAGTCTGCCGTTACTGCCCTGTGGGG"
    "CAAGGTGAACGTGGATGAAGTTGGTGGTGAGGCCCTGGGCAG"
)
HBB_INTRON_1 = (
    "GTTGGTATCAAGGTTACAAGACAGGTTTAAGGAGACCAATAGAAACTGGGCATGTGGAGACAGAGAAGACTCTTGGGTTTCTGATAGGCACTGACTCTCT"
    "CTGCCTATTGGTCTATTTTCCCACCCTTAG"
)
HBB_EXON_2 = (
    "GCTGCTGGTGGTCTACCCTTGGACCCAGAGGTTCTTTGAGTCCTTTGGGGATCTGTCCACTCCTGATGCTGTTATGGGCAACCCTAAGGTGAAGGCTCAT"
    "GGCAAGAAAGTGCTCGGTGCCTTTAGTGATGGCCTGGCTCACCTGGACAACCTCAAGGGCACCTTTGCCACACTGAGTGAGCTGCACTGTGACAAGCTGC"
    "ACGTGGATCCTGAGAACTTCAGG"
)
HBB_INTRON_2 = (
    "GTGAGTCTATGGGACGCTTGATGTTTTCTTTCCCCTTCTTTTCTATGGTTAAGTTCATGTCATAGGAAGGGGATAAGTAACAGGGTACAGTTTAGAATGG"
    "GAAACAGACGAATGATTGCATCAGTGTGGAAGTCTCAGGATCGTTTTAGTTTCTTTTATTTGCTGTTCATAACAATTGTTTTCTTTTGTTTAATTCTTGC"
    "TTTC"
)


def test_trained_network_finds_the_splice_sites_of_beta_globin(trained):
    parts = [HBB_UPSTREAM, HBB_EXON_1, HBB_INTRON_1, HBB_EXON_2]
    ends = np.cumsum([len(part) for part in parts])
    X = F.pad(one_hot_encode(["".join([*parts, HBB_INTRON_2])]), (200, 200))
    with torch.no_grad():
        y = models.SpliceAI.from_openspliceai(trained)(X)[0]
    acceptor, donor, first_donor = ends[2], ends[3] - 1, ends[1] - 1
    assert y[1].argmax() == acceptor and y[1, acceptor] > 0.95
    assert y[2].argmax() == donor and y[2, donor] > 0.95
    assert set(y[2].topk(2).indices.tolist()) == {donor, first_donor}
    assert (y[0] > 0.9).sum() >= y.shape[1] - 4


def test_trained_network_on_an_enhancer(trained):
    fasta = DATA / "chr3_enhancer_hg38.fa"
    if not fasta.exists():
        pytest.skip(f"no sequence at {fasta}")
    X = one_hot_encode(read_fasta(fasta).sequences)
    with torch.no_grad():
        y = models.SpliceAI.from_openspliceai(trained)(X)
        assert y.shape == (1, 3, 1600)
        torch.testing.assert_close(y.sum(1), torch.ones(1, 1600))
        assert y[0, 0].mean() > 0.999 and (y[0, 0] > 0.99).float().mean() > 0.99
        torch.testing.assert_close(y, spliceai_by_hand(trained, X, DILATIONS[400], 0.1))
        # The same names load into the plain network, but its activation is another one.
        plain = models.SpliceAI(flanking=400).eval()
        plain.load_state_dict(trained)
        assert (plain(X) - y).abs().max() > 0.01
