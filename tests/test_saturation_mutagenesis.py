"""tangermeme's functions of the same names: their formulas here, and they themselves where tangermeme is installed."""

import inspect
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import yuzu
from tests.oracle import oracle
from tests.small_models import Net, sequences

L = 30


def expected(model, X, start, stop, target=None, hypothetical=False, args=()):
    """The scores by the formula, from naive ISM in float64."""
    d = oracle(model, X, args=args, start=start, end=stop)["delta"]
    d = d if target is None else d[:, :, :, target]
    centred = d - d.mean(1, keepdim=True)
    centred = centred.flatten(3).mean(3) if centred.dim() > 3 else centred
    return centred if hypothetical else centred * X[:, :, start:stop]


def test_the_signature_is_tangermemes():
    found = inspect.signature(yuzu.saturation_mutagenesis)
    names = "model X args start end batch_size target hypothetical raw_outputs dtype device verbose func fast".split()
    assert list(found.parameters) == names
    defaults = [found.parameters[n].default for n in names[2:]]
    assert defaults == [None, 0, -1, 32, None, False, False, None, None, False, None, True]
    names = "model X args func batch_size dtype device verbose".split()
    assert list(inspect.signature(yuzu.predict).parameters) == names


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("target", [None, 0, -1, slice(0, 2), [1, 0]])
@pytest.mark.parametrize("hypothetical", [True, False])
@pytest.mark.parametrize(("start", "end", "stop"), [(0, -1, L), (4, 20, 20), (3, -5, L - 4)])
def test_scores(net, device, fast, target, hypothetical, start, end, stop):
    X = sequences(3, L)
    X[0, :, 5] = 0
    settings = {"target": target, "hypothetical": hypothetical, "start": start, "end": end}
    found = yuzu.saturation_mutagenesis(net, X.to(torch.int8), fast=fast, device=device, **settings)
    wanted = expected(net, X, start, stop, target, hypothetical)
    assert found.dtype == torch.float32 and found.shape == (3, 4, stop - start)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("target", [None, 1])
def test_profiles_are_averaged(fast, target):
    model = nn.Sequential(nn.Conv1d(4, 6, 5), nn.ReLU(), nn.Conv1d(6, 3, 3)).eval()
    X = sequences(2, 40)
    found = yuzu.saturation_mutagenesis(model, X, target=target, fast=fast, device="cpu")
    wanted = expected(model, X, 0, 40, target)
    assert found.shape == (2, 4, 40)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def test_results_in_pieces(net, monkeypatch):
    X = sequences(5, L)
    whole = yuzu.saturation_mutagenesis(net, X, device="cpu")
    monkeypatch.setattr(__import__("sys").modules["yuzu.saturation_mutagenesis"], "RESULTS_AT_ONCE", 1)
    assert torch.allclose(yuzu.saturation_mutagenesis(net, X, device="cpu"), whole, atol=1e-6)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 3, 5)

    def forward(self, x, scale):
        y = self.conv(x).relu()
        return y.amax(2) * scale, y


@pytest.mark.parametrize("fast", [True, False])
def test_raw_outputs(net, fast):
    X = sequences(2, L)
    found = yuzu.saturation_mutagenesis(net, X, raw_outputs=True, start=2, end=9, fast=fast, device="cpu")
    assert found._fields == ("y0", "y_hat")
    truth = oracle(net, X, start=2, end=9)["prediction"]
    assert torch.allclose(found.y0, net.eval()(X)) and found.y_hat.shape == truth.shape
    assert float((found.y_hat - truth).norm() / truth.norm()) < 1e-5
    model, scale = Pair().eval(), torch.rand(2, 1)
    y0, y_hat = yuzu.saturation_mutagenesis(model, X, args=(scale,), raw_outputs=True, fast=fast, device="cpu")
    assert isinstance(y0, list) and isinstance(y_hat, list)
    for mine, other in zip(y_hat, oracle(model, X, args=(scale,))["prediction"], strict=True):
        assert torch.allclose(mine.double(), other, atol=1e-5)
    with pytest.raises(yuzu.YuzuError, match="raw_outputs=True is needed"):
        yuzu.saturation_mutagenesis(model, X, args=(scale,), device="cpu")
    picked = yuzu.saturation_mutagenesis(model, X, args=(scale,), func=lambda y: y[0], device="cpu")
    assert picked.shape == (2, 4, L)


def test_arrays_and_mixed_precision(net):
    X = sequences(2, L)
    plain = yuzu.saturation_mutagenesis(net, X, device="cpu")
    as_numpy = yuzu.saturation_mutagenesis(net, X.numpy().astype(bool), device="cpu")
    assert isinstance(as_numpy, np.ndarray) and np.allclose(as_numpy, plain, atol=1e-6)
    mixed = yuzu.saturation_mutagenesis(net, X, dtype="bfloat16", device="cpu")
    wrong = float((mixed - plain).norm() / plain.norm())
    assert mixed.dtype == torch.float32 and 1e-5 < wrong < 0.5, "bfloat16 throughout, as naive ISM has it"
    assert torch.equal(yuzu.saturation_mutagenesis(net, X, dtype="float32", device="cpu"), plain)


def test_a_model_that_writes_over_its_input():
    class Shifting(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(4, 3, 5)

        def forward(self, x):
            x -= 0.25
            return self.conv(x).relu().amax(2)

    model, X = Shifting().eval(), sequences(2, L)
    before = X.clone()
    found = yuzu.predict(model, X, device="cpu")
    assert torch.equal(X, before) and torch.allclose(found, model(X.clone()), atol=1e-6)
    yuzu.taylor.takegrad(X, model, device="cpu")
    assert torch.equal(X, before)


def test_reverse_complements_and_gradients(net):
    X = sequences(2, L).numpy()
    flipped = X[:, ::-1, ::-1]
    found = yuzu.saturation_mutagenesis(net, flipped, device="cpu")
    assert np.allclose(found, yuzu.saturation_mutagenesis(net, flipped.copy(), device="cpu"))
    given = torch.from_numpy(X).requires_grad_()
    assert not yuzu.saturation_mutagenesis(net, given, device="cpu").requires_grad
    assert isinstance(yuzu.predict(net, X, dtype="bfloat16", device="cpu"), np.ndarray)


class Packed:
    def __init__(self, X):
        self.X = X

    def to_one_hot(self):
        return self.X


def test_args_are_cast_to_the_models_dtype():
    model, X, scale = Pair().eval(), sequences(2, L), np.random.default_rng(0).random((2, 1))
    found, wanted = (
        yuzu.saturation_mutagenesis(model, X, args=(a,), func=lambda y: y[0], device="cpu")
        for a in (scale, torch.from_numpy(scale).float())
    )
    assert found.dtype == torch.float32 and torch.equal(found, wanted)


def test_packed_sequences(net):
    X = sequences(2, L)
    packed = Packed(X.to(torch.int8))
    for function in (yuzu.saturation_mutagenesis, yuzu.predict, yuzu.yuzu_ism, yuzu.naive_ism, yuzu.hybrid_ism):
        assert torch.equal(function(net, packed, device="cpu"), function(net, X, device="cpu")), function
    found = yuzu.taylor.ism(packed, net, output="mean_effects", start=3, device="cpu")
    assert torch.equal(found, yuzu.taylor.ism(X, net, output="mean_effects", start=3, device="cpu"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 5, "end": 5}, "0 <= start < end"),
        ({"start": -1}, "0 <= start < end"),
        ({"end": L + 1}, "0 <= start < end"),
        ({"end": None}, "end must be an integer"),
        ({"dtype": "float64"}, "dtype must be"),
        ({"dtype": "int8"}, "dtype must be"),
        ({"target": 7}, "target=7 does not exist"),
        ({"batch_size": 0}, "batch_size"),
        ({"args": (torch.zeros(1, 2),)}, "2 rows, one for each sequence"),
        ({"X": torch.zeros(4, L)}, "^X must have 3 axes"),
        ({"device": "quantum"}, "device must be"),
    ],
)
def test_bad_input(net, settings, message):
    with pytest.raises(yuzu.YuzuError, match=message):
        yuzu.saturation_mutagenesis(**{"model": net, "X": sequences(2, L), "device": "cpu", **settings})


# ---- predict


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_predict(net, device, batch_size):
    X = sequences(5, L)
    found = yuzu.predict(net, X.to(torch.int8), batch_size=batch_size, device=device)
    assert torch.allclose(found, net.eval()(X), atol=1e-5) and found.device.type == "cpu" and not found.requires_grad
    assert isinstance(yuzu.predict(net, X.numpy(), device=device), np.ndarray)
    doubled = yuzu.predict(net, X, func=lambda y: 2 * y, batch_size=batch_size, device=device)
    assert torch.allclose(doubled, 2 * found, atol=1e-5)


def test_predict_with_several_outputs_and_inputs():
    model, X, scale = Pair().eval(), sequences(5, L), torch.rand(5, 1)
    found = yuzu.predict(model, X, args=(scale,), batch_size=2, device="cpu")
    assert isinstance(found, list)
    for mine, other in zip(found, model(X, scale), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)

    class Named(nn.Module):
        def forward(self, x):
            return {"sum": x.sum(2), "rows": (x[:, 0], x[:, 1])}

    found = yuzu.predict(Named(), X, batch_size=2, device="cpu")
    assert torch.equal(found["sum"], X.sum(2)) and torch.equal(found["rows"][1], X[:, 1])


class WithNone(nn.Module):
    """Returns None beside its output, as models do whose attention weights or loss were not asked for."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x), None


def test_what_is_no_tensor_stays_as_it_is(net):
    X, model = sequences(3, L), WithNone(net).eval()
    for as_given in (X, X.numpy()):
        found = yuzu.predict(model, as_given, batch_size=2, device="cpu")
        assert type(found[0]) is type(as_given) and found[1] is None
        assert np.array_equal(found[0], yuzu.predict(net, as_given, batch_size=2, device="cpu"))
        for fast in (True, False):
            raw = yuzu.saturation_mutagenesis(model, as_given, raw_outputs=True, fast=fast, device="cpu")
            plain = yuzu.saturation_mutagenesis(net, as_given, raw_outputs=True, fast=fast, device="cpu")
            for mine, other in zip(raw, plain, strict=True):
                assert type(mine[0]) is type(as_given) and np.allclose(mine[0], other, atol=1e-6) and mine[1] is None
    assert yuzu.check(model, X, device="cpu").yuzu_relative_error < 1e-5
    for function in (yuzu.hybrid_ism, lambda m, x, device: yuzu.taylor.ism(x, m, device=device)):
        assert torch.allclose(function(model, X, device="cpu"), function(net, X, device="cpu"), atol=1e-6)


def test_predict_leaves_the_model_alone():
    model = Net().train()
    yuzu.predict(model, sequences(2, L), device="cpu")
    assert model.training
    mixed = yuzu.predict(model, sequences(2, L), dtype=torch.bfloat16, device="cpu")
    assert mixed.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"func": 1}, "func must be callable"),
        ({"func": lambda y: y.sum()}, "one row for each"),
        ({"func": lambda y: 3}, "one row for each"),
        ({"batch_size": 0}, "batch_size"),
        ({"X": torch.full((1, 4, L), torch.nan)}, "^X must be finite"),
        ({"X": torch.zeros(0, 4, L)}, "at least one sequence"),
    ],
)
def test_predict_bad_input(net, settings, message):
    with pytest.raises(yuzu.YuzuError, match=message):
        yuzu.predict(**{"model": net, "X": sequences(2, L), "device": "cpu", **settings})


def test_mixed_precision_gives_results_in_the_models_dtype(net):
    from yuzu._engine.mixed_precision import MixedPrecision

    class Kinds(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            y = self.net(x)
            return {"own": y, "place": y.argmax(1), "kind": str(y.dtype)}

    X = sequences(2, L)
    found = MixedPrecision(Kinds(), torch.bfloat16)(X)
    assert found["kind"] == "torch.bfloat16" and found["own"].dtype == torch.float32 and found["place"].dtype == torch.int64
    assert torch.allclose(found["own"], net(X), atol=0.1) and not torch.equal(found["own"], net(X))


# ---- tangermeme itself


def flat(value):
    return torch.utils._pytree.tree_leaves(list(value) if isinstance(value, tuple) else value)


def same(mine, other):
    """The same containers of the same numbers."""
    assert len(flat(mine)) == len(flat(other))
    for a, b in zip(flat(mine), flat(other), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target": 1},
        {"target": -1},
        {"target": [1, 0], "hypothetical": True},
        {"target": slice(1, 3)},
        {"start": 3, "end": -4},
        {"start": 0, "end": 7, "hypothetical": True},
        {"raw_outputs": True},
        {"raw_outputs": True, "start": 3, "end": 20},
        {"func": lambda y: (y**2).sum(1, keepdim=True)},
        {"batch_size": 5},
    ],
)
def test_the_numbers_are_tangermemes(net, settings, fast):
    theirs = pytest.importorskip("tangermeme.saturation_mutagenesis", reason="compares with tangermeme")
    X = sequences(3, L)
    X[1, :, 7] = 0
    for x in (X.to(torch.int8), X):
        same(*(f(net, x, device="cpu", fast=fast, **settings) for f in (yuzu.saturation_mutagenesis, theirs.saturation_mutagenesis)))


@pytest.mark.parametrize("settings", [{"func": lambda y: y[0]}, {"func": lambda y: y[1], "target": 1}, {"raw_outputs": True}])
def test_the_numbers_are_tangermemes_with_other_inputs(settings):
    theirs = pytest.importorskip("tangermeme.saturation_mutagenesis", reason="compares with tangermeme")
    model, X, scale = Pair().eval(), sequences(3, L), torch.rand(3, 1)
    for args in ((scale,), [scale]):
        same(*(f(model, X, args=args, device="cpu", **settings) for f in (yuzu.saturation_mutagenesis, theirs.saturation_mutagenesis)))


@pytest.mark.parametrize("settings", [{"start": 5, "end": 5}, {"start": -1}, {"end": L + 1}, {"end": -L - 2}])
def test_what_tangermeme_refuses(net, settings):
    theirs = pytest.importorskip("tangermeme.saturation_mutagenesis", reason="compares with tangermeme")
    for f in (yuzu.saturation_mutagenesis, theirs.saturation_mutagenesis):
        with pytest.raises(ValueError, match="start and end must satisfy"):
            f(net, sequences(1, L), device="cpu", **settings)


OURS = {
    "saturation_mutagenesis": (yuzu.saturation_mutagenesis, {"target": 1}),
    "yuzu_ism": (yuzu.yuzu_ism, {"output": "delta", "target": 1}),
    "predict": (yuzu.predict, {}),
}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("module", ["marginalize", "ablate"])
def test_as_func_of_their_experiments(net, name, module):
    theirs = pytest.importorskip(f"tangermeme.{module}", reason="hands our functions to tangermeme's")
    func, settings = OURS[name]
    X = sequences(3, L)
    place = {"motif": "TGACTCA", "start": 8} if module == "marginalize" else {"start": 8, "end": 15, "n": 2, "random_state": 0}
    before, after = getattr(theirs, module)(net, X, func=func, device="cpu", **place, additional_func_kwargs=settings)
    same(before, func(net, X, device="cpu", **settings))
    assert after.shape == (before.shape if module == "marginalize" else (3, 2, *before.shape[1:]))
    changed = X.clone()
    if module == "marginalize":
        changed[:, :, 8:15] = yuzu.sequence.one_hot_encode("TGACTCA")
        same(after, func(net, changed, device="cpu", **settings))
    else:
        assert not torch.allclose(before[:, None].expand_as(after), after)


@pytest.mark.parametrize("name", ["apply_pairwise", "apply_product"])
def test_as_func_of_their_products(name):
    theirs = pytest.importorskip("tangermeme.product", reason="hands our functions to tangermeme's")
    model, X, scale = Pair().eval(), sequences(3, L), torch.rand(4, 1)
    for func in (yuzu.saturation_mutagenesis, yuzu.yuzu_ism, yuzu.predict):
        settings = {"additional_func_kwargs": {"func": lambda y: y[0]}, "device": "cpu"}
        found = getattr(theirs, name)(func, model, X, (scale,), **settings)
        assert found.shape[:2] == (3, 4)
        same(found, getattr(yuzu.product, name)(func, model, X, (scale,), **settings))
        alone = func(model, X[2:3], args=(scale[1:2],), func=lambda y: y[0], device="cpu")
        assert torch.allclose(found[2, 1], alone[0], atol=1e-5)


@pytest.mark.filterwarnings("ignore:Convergence deltas")  # amax has no DeepLIFT rule
@pytest.mark.parametrize("name", ["apply_pairwise", "apply_product"])
def test_their_functions_in_our_products(name):
    product = pytest.importorskip("tangermeme.product", reason="hands tangermeme's functions to ours")
    from tangermeme.deep_lift_shap import deep_lift_shap
    from tangermeme.marginalize import marginalize
    from tangermeme.predict import predict
    from tangermeme.saturation_mutagenesis import saturation_mutagenesis

    class One(Pair):
        def forward(self, x, scale):
            return super().forward(x, scale)[0]

    model, X, scale = One().eval(), sequences(3, L), torch.rand(4, 1)
    for func, settings in (
        (predict, {}),
        (saturation_mutagenesis, {"target": 0}),
        (deep_lift_shap, {"target": 0, "n_shuffles": 2, "random_state": 0}),
        (marginalize, {"motif": "TGACTCA"}),
    ):
        mine, other = (f(func, model, X, (scale,), device="cpu", **settings) for f in (getattr(yuzu.product, name), getattr(product, name)))
        same(mine, other)


def soft(X):
    X = X.clone()
    X[1, :, 3], X[0, :, 7] = 0.25, torch.tensor([0.5, 0.5, 0, 0])
    return X


@pytest.mark.parametrize("hypothetical", [False, True])
def test_soft_columns_are_scored_with_a_warning(hypothetical):
    X, model = soft(sequences(2, L)), Net().eval()
    with pytest.warns(yuzu.YuzuWarning, match="2 in all, the first at position 7 of sequence 0") as said:
        found = yuzu.saturation_mutagenesis(model, X, hypothetical=hypothetical, device="cpu")
    assert len(said) == 1
    wanted = expected(model, X, 0, L, hypothetical=hypothetical)
    assert torch.allclose(found.double(), wanted, atol=1e-5)


def test_soft_columns_warn_with_tangermemes_class():
    utils = pytest.importorskip("tangermeme.utils", reason="has the class")
    model, X = Net().eval(), soft(sequences(2, L))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yuzu.saturation_mutagenesis(model, X, device="cpu")
        warnings.simplefilter("error", utils.TangermemeWarning)
        with pytest.raises(utils.TangermemeWarning, match="neither one-hot nor zero"):
            yuzu.saturation_mutagenesis(model, X, device="cpu")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(3):
            yuzu.saturation_mutagenesis(model, X, device="cpu")
    assert len(said) == 1, "once for a place in the user's code"


@pytest.mark.parametrize("kind", [torch.int8, torch.float32])
def test_unknown_letters_warn_of_nothing(kind):
    X = sequences(2, L)
    X[:, :, 5] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yuzu.saturation_mutagenesis(Net().eval(), X.to(kind), device="cpu")
