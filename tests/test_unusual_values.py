"""Numbers that are none, or become none in the model's dtype, and arrays and devices of unusual kinds."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import yuzu
from tests.oracle import assert_close
from tests.small_models import Net, sequences
from yuzu import YuzuError
from yuzu.product import apply_pairwise

L = 30
GOOD = sequences(2, L)


class Attends(nn.Module):
    """Attention under a mask that is added before the softmax."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.query, self.dense = nn.Conv1d(4, 8, 5, padding=2), nn.Conv1d(8, 8, 1), nn.Linear(8, 2)

    def forward(self, x, mask):
        y = self.conv(x).relu()
        weights = (y.mT @ self.query(y) + mask[:, None]).softmax(2)
        return self.dense((y @ weights.mT).mean(2))


@pytest.fixture(params=["yuzu_ism", "naive_ism"])
def ism(request):
    return getattr(yuzu, request.param)


class NeverRun(Net):
    def forward(self, X, *args):
        raise AssertionError("the model was run")


CALLS = {
    "yuzu_ism": yuzu.yuzu_ism,
    "naive_ism": yuzu.naive_ism,
    "check": yuzu.check,
    "hybrid_ism": yuzu.hybrid_ism,
    "saturation_mutagenesis": yuzu.saturation_mutagenesis,
    "predict": yuzu.predict,
    "takegrad": lambda model, X, **rest: yuzu.taylor.takegrad(X, model, **rest),
    "precompute": lambda model, X, **rest: yuzu.precompute(model, X.shape[2], **rest),
    "apply_pairwise": lambda model, X, args: apply_pairwise(yuzu.yuzu_ism, model, X, args),
}


@pytest.mark.parametrize("as_numpy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_nan_in_args(call, dtype, as_numpy):
    good, bad = torch.zeros(2, 3), torch.zeros(2, 3, dtype=dtype)
    bad[1, 2] = float("nan")
    if as_numpy and dtype != torch.bfloat16:
        bad = bad.numpy()
    with pytest.raises(YuzuError, match=r"args\[1\] must hold numbers, got NaN"):
        CALLS[call](NeverRun(), GOOD, args=(good, bad))


def test_nan_in_args_that_are_one_row_repeated():
    with pytest.raises(YuzuError, match=r"args\[0\].*NaN"):
        yuzu.yuzu_ism(NeverRun(), GOOD, args=(torch.tensor([[0.0, float("nan")]]).expand(2, 2),))


def test_infinite_masks_in_args_are_exact():
    model = Attends()
    mask = torch.zeros(2, L)
    mask[0, 20:] = mask[1, 3] = -torch.inf
    wanted = yuzu.naive_ism(Attends().double(), GOOD.double(), args=(mask,), output="delta")
    assert bool(torch.isfinite(wanted).all()) and wanted.abs().max() > 1e-3
    assert_close(yuzu.naive_ism(model, GOOD, args=(mask,), output="delta").double(), wanted, 1e-4)
    assert_close(yuzu.yuzu_ism(model, GOOD, args=(mask,), output="delta").double(), wanted, 1e-4)
    made = yuzu.precompute(model, L, args=(mask,))
    assert_close(yuzu.yuzu_ism(model, GOOD, made, args=(mask,), output="delta").double(), wanted, 1e-4)


def test_args_that_hold_no_numbers(ism):
    with pytest.raises(YuzuError, match=r"args\[0\] must hold numbers, got dtype object"):
        ism(NeverRun(), GOOD, args=(np.zeros((2, 3), dtype=object),))


# sequences


@pytest.mark.parametrize("kind", [">f2", ">f4", ">f8", ">i4", ">u2", "g"])
def test_arrays_that_pytorch_has_no_dtype_for(net, ism, kind):
    wanted = ism(net, GOOD.numpy())
    assert np.array_equal(ism(net, GOOD.numpy().astype(kind)), wanted)


def test_args_that_pytorch_has_no_dtype_for(ism):
    mask = np.random.default_rng(0).normal(size=(2, L)).astype("f4")
    wanted = ism(Attends(), GOOD.numpy(), args=(mask,))
    for kind in (">f4", "g"):
        assert np.array_equal(ism(Attends(), GOOD.numpy(), args=(mask.astype(kind),)), wanted)


UNUSUAL = {
    "sparse": (GOOD.to_sparse(), "torch.sparse_coo"),
    "meta": (GOOD.to("meta"), "meta"),
    "float8": (GOOD.to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
    "large float64": (GOOD.double() * 1e300, "torch.float32.*too large"),
    "large longdouble": (GOOD.numpy().astype(np.longdouble) * np.longdouble("1e400"), "finite"),
}


@pytest.mark.parametrize("call", [call for call in CALLS if call not in ("precompute", "apply_pairwise")])
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_sequences(call, name):
    X, message = UNUSUAL[name]
    if not np.isfinite(np.longdouble("1e400")) and "longdouble" in name:
        pytest.skip("no longer than float64 here")
    with pytest.raises(YuzuError, match=rf"(X|X_0|x) must .*{message}"):
        CALLS[call](NeverRun(), X)


def test_numbers_too_large_for_float16():
    model, X = NeverRun().half(), GOOD.int() * 70_000
    with pytest.raises(YuzuError, match=r"X_0 must be finite in the model's torch\.float16"):
        yuzu.naive_ism(model, X)
    with pytest.raises(YuzuError, match=r"X_0 must be finite in the model's torch\.float16"):
        yuzu.naive_ism(model, X.bfloat16())


def test_large_numbers_that_the_model_can_hold(net, ism):
    assert bool(torch.isfinite(ism(copy.deepcopy(net).double(), GOOD.double() * 1e40)).all())


# devices


def usable(kind):
    try:
        return bool(torch.empty(0, device=kind).shape == (0,))
    except Exception:
        return False


@pytest.mark.parametrize("kind", ["meta", "mps", "xpu", "hpu", "xla", "mps:0"])
@pytest.mark.parametrize("call", [call for call in CALLS if call != "apply_pairwise"])
def test_devices_that_hold_no_tensors(call, kind):
    if kind != "meta" and usable(kind):
        pytest.skip(f"{kind} is available")
    for given in (kind, torch.device(kind)):
        with pytest.raises(YuzuError, match=rf"device is .*{kind.partition(':')[0]}.*cannot hold tensors here; pass device='cpu'"):
            CALLS[call](NeverRun(), GOOD, device=given)


@pytest.mark.parametrize("kind", ["mps", "meta", "cuda"])
def test_a_file_made_on_a_device_that_is_missing_is_for_the_cpu(net, kind, tmp_path):
    if kind != "meta" and usable(kind):
        pytest.skip(f"{kind} is available")
    made = yuzu.precompute(net, L, device="cpu")
    made.settings = dataclasses.replace(made.settings, device=kind)
    made.save(tmp_path / "net.yuzu")
    assert yuzu.Precomputation.load(tmp_path / "net.yuzu").settings.device == "cpu"
    with pytest.raises(YuzuError, match=f"device is '{kind}'"):
        yuzu.Precomputation.load(tmp_path / "net.yuzu", device=kind)
