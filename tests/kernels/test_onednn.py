"""float32 products by oneDNN where it is faster than the BLAS behind ``@``, and the settings that products run under."""

import pytest
import torch
from torch import nn

import yuzu
from tests.oracle import assert_right
from tests.small_layers import by_way
from tests.small_models import sequences
from yuzu._engine.kernels import onednn as onednn_products
from yuzu._engine.kernels import products as low_precision_products
from yuzu._engine.kernels.precision import fastest_products, products

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this PyTorch has no oneDNN",
)


@pytest.fixture
def faster(monkeypatch):
    """As on a processor where oneDNN is faster, with small products, too; counts what it is asked for."""
    monkeypatch.setattr(onednn_products, "is_faster", lambda: True)
    monkeypatch.setattr(onednn_products, "by_setting", lambda: False)
    monkeypatch.setattr(onednn_products, "LEAST_MULTIPLY_ADDS", 1)
    monkeypatch.setattr(onednn_products, "LEAST_CHANNELS", 1)
    monkeypatch.setattr(onednn_products, "ROWS_WORTH_A_COPY", 20)
    calls, multiplied = [], onednn_products.multiplied

    def counted(x, weight):
        calls.append(x.shape)
        return multiplied(x, weight)

    monkeypatch.setattr(onednn_products, "multiplied", counted)
    return calls


@needs_onednn
def test_it_is_the_product(faster):
    torch.manual_seed(0)
    x, weight = torch.randn(30, 100)[:, 10:60], torch.randn(50, 24)
    truth = (x.double() @ weight.double()).float()
    gaps = torch.randn(50, 48)
    gaps[:, 12:36] = weight
    turned = torch.randn(24, 150)
    turned[:, 50:100] = weight.T
    for w in (weight, weight.T.contiguous().T, gaps[:, 12:36], turned[:, 50:100].T):
        torch.testing.assert_close(low_precision_products.matrix_product(x, w), truth)
        torch.testing.assert_close(low_precision_products.product(x, w), truth)
        buffer = torch.zeros(30, 72)
        low_precision_products.product(x, w, buffer[:, 24:48])
        torch.testing.assert_close(buffer[:, 24:48], truth)
        assert not buffer[:, :24].any() and not buffer[:, 48:].any()
        low_precision_products.add_product(buffer[:, 24:48], x, w)
        torch.testing.assert_close(buffer[:, 24:48], 2 * truth)
    assert len(faster) == 16


@needs_onednn
@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of the flags' own context, in PyTorch 2.13
def test_what_it_would_do_slowly_or_not_at_all_goes_another_way(faster):
    x, weight = torch.randn(30, 50), torch.randn(50, 48)
    assert onednn_products.serves(x, weight)
    assert onednn_products.serves(x, weight[:, :24])
    assert not onednn_products.serves(x[:19], weight[:, :24]), "a copy of the weight would take longer"
    assert not onednn_products.serves(x.double(), weight.double())
    assert not onednn_products.serves(x.bfloat16(), weight.bfloat16())
    with torch.backends.mkldnn.flags(enabled=False):
        assert not onednn_products.serves(x, weight), "whoever switched oneDNN off does not want it"
    torch.testing.assert_close(low_precision_products.product(x, weight[:, :24]), x @ weight[:, :24])


@needs_onednn
@pytest.mark.parametrize("conv", ["auto", "windows", "banded", "blocks", "whole", "fold", "winograd"])
@pytest.mark.parametrize("flat", ["channels around positions", "positions around channels"])
def test_models(conv, flat, faster):
    """Every way, and weights over positions, which lie row by row then."""
    torch.manual_seed(0)
    length = 48
    first, second = nn.Conv1d(4, 20, 5, padding=2), nn.Conv1d(20, 24, 7, padding=3)
    last = nn.Linear(24 * (length // 4), 9)

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(first, nn.MaxPool1d(2), nn.ReLU(), second, nn.MaxPool1d(2), nn.ReLU())
            self.last, self.head = last, nn.Linear(9, 3)

        def forward(self, x):
            y = self.layers(x)
            y = y if flat == "channels around positions" else y.transpose(1, 2)
            return self.head(self.last(y.flatten(1)).relu())

    model, X = Flat().eval(), sequences(2, length)
    made = yuzu.precompute(model, length, conv=conv, device="cpu")
    bound = made.bind(model, length, 4, (), CPU)
    for way in ("slices", "positions"):
        bound.plan = by_way(bound.plan, way)
        faster.clear()
        assert_right(
            yuzu.yuzu_ism(model, X, made, output="delta", device="cpu"), model, X, output="delta", device="cpu"
        )
        assert faster


@needs_onednn
def test_the_trial_decides(monkeypatch):
    """Clearly faster, or not at all; without oneDNN it is not."""
    undecorated = onednn_products.is_faster.__wrapped__
    assert onednn_products.is_faster() in (True, False)
    clock = [0.0]

    def taking(seconds):
        def run(x, weight):
            clock[0] += seconds
            return x

        return run

    monkeypatch.setattr(onednn_products.time, "perf_counter", lambda: clock[0])
    for blas, onednn, decision in ((2.0, 1.0, True), (1.2, 1.0, False), (1.0, 2.0, False)):
        monkeypatch.setattr(torch, "mm", taking(blas))
        monkeypatch.setattr(onednn_products, "multiplied", taking(onednn))
        assert undecorated() is decision
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert undecorated() is False


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "conv"), reason="before PyTorch 2.9 there is no such setting")
@pytest.mark.parametrize("size", [(3, 5, 2), (700, 40, 300), (64, 1000, 1), (1, 300, 500), (4, 1100, 16, 300)])
def test_products_of_a_run_are_as_precise_as_ever(size):
    """The setting with which they are fastest must not lower them, whatever their size."""
    *rows, channels, results = size
    x, weight = torch.randn(*rows, channels), torch.randn(*rows[:-1], channels, results)
    truth = x.double() @ weight.double()
    with products("highest", CPU), fastest_products(CPU):
        found = [x @ weight]
        if x.dim() == 2:
            buffer = torch.empty(len(x), 3, results)
            found.append(torch.mm(x, weight, out=buffer[:, 1]))
            found.append(torch.nn.functional.linear(x, weight.T.contiguous()))
    for each in found:
        assert torch.linalg.vector_norm(each - truth) < 1e-6 * torch.linalg.vector_norm(truth)


def test_a_model_may_ask_for_the_settings_of_products():
    """PyTorch refuses to tell while the setting of a run's own products is held: no model runs then."""

    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(80, 2)

        def forward(self, x):
            assert torch.get_float32_matmul_precision() in ("highest", "high", "medium")
            return self.linear(x.flatten(1)).tanh()

    model, X = Asks().eval(), sequences(2, 20)
    for ism in (yuzu.naive_ism, yuzu.yuzu_ism):
        assert_right(ism(model, X, device="cpu"), model, X)
    assert yuzu.predict(model, X, device="cpu").shape == (2, 2)
    with products("highest", CPU), fastest_products(CPU), fastest_products(CPU):
        held = getattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", None)
        assert (held == onednn_products.SETTING) == onednn_products.by_setting()
    torch.get_float32_matmul_precision()


def test_no_setting_on_a_processor_with_matrix_units(monkeypatch):
    undecorated = onednn_products.by_setting.__wrapped__
    monkeypatch.setattr(onednn_products, "is_faster", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert undecorated() is False
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch, "mm", lambda x, w: (x.bfloat16() @ w.bfloat16()).float())
    assert undecorated() is False, "nor where they are lowered all the same"


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="before PyTorch 2.9 there is no such setting")
@pytest.mark.parametrize("gain,decision", [(2.0, True), (1.1, False)])
def test_the_setting_must_be_faster(gain, decision, monkeypatch):
    """A processor without bfloat16 instructions multiplies as before, whatever is set."""
    part, product, clock = torch.backends.mkldnn.matmul, torch.mm, [0.0]
    before = part.fp32_precision

    def taking(x, weight):
        clock[0] += 1 if part.fp32_precision == onednn_products.SETTING else gain
        return product(x.double(), weight.double()).float()

    monkeypatch.setattr(onednn_products, "is_faster", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(onednn_products.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch, "mm", taking)
    assert onednn_products.by_setting.__wrapped__() is decision
    assert part.fp32_precision == before


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "conv"), reason="before PyTorch 2.9 there is no such setting")
@pytest.mark.parametrize("setting", ["none", "medium", "high", "everything"])
def test_a_run_on_a_cpu_multiplies_in_float32_whatever_the_caller_set(setting):
    parts = [torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv, torch.backends.mkldnn.rnn]
    def settings():
        return [part.fp32_precision for part in parts]

    before, everything, legacy = settings(), torch.backends.fp32_precision, torch.get_float32_matmul_precision()
    try:
        if setting in ("medium", "high"):
            torch.set_float32_matmul_precision(setting)
        elif setting == "everything":
            torch.backends.fp32_precision = "bf16"
        given = settings()
        assert setting == "none" or given != before
        with pytest.raises(KeyError), products("highest", CPU):
            assert {part.fp32_precision for part in parts} <= {"none", "ieee"}
            raise KeyError
        assert settings() == given
        outer, inner = products("highest", CPU), products("medium", CPU)  # as of runs in two threads
        outer.__enter__()
        inner.__enter__()
        outer.__exit__(None, None, None)
        assert {part.fp32_precision for part in parts} <= {"none", "ieee"}, "another run is at it still"
        inner.__exit__(None, None, None)
        assert settings() == given
        if setting == "everything":  # what is said for all holds for each, as before
            torch.backends.fp32_precision = "tf32"
            assert {part.fp32_precision for part in parts} == {"tf32"}
    finally:
        torch.backends.fp32_precision = everything
        torch.set_float32_matmul_precision(legacy)
        for part, value in zip(parts, before, strict=True):
            part.fp32_precision = value


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="before PyTorch 2.9 there is no such setting")
@pytest.mark.parametrize("precision,wanted", [("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")])
@pytest.mark.parametrize("setting", ["ieee", "tf32"])
def test_settings_that_the_older_names_cannot_read(setting, precision, wanted):
    """A caller who said `fp32_precision` for one of them: asking for `allow_tf32` is an error of PyTorch's then."""
    parts = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts[:2]:
            part.fp32_precision = setting
        given = [part.fp32_precision for part in parts]
        with pytest.raises(RuntimeError, match="legacy"):
            print(torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
        with products(precision, torch.device("cuda")):
            assert [part.fp32_precision for part in parts] == [wanted] * 3
        assert [part.fp32_precision for part in parts] == given
    finally:
        for part, value in zip(parts, before, strict=True):
            part.fp32_precision = value
    assert torch.backends.cuda.matmul.allow_tf32 in (True, False)
