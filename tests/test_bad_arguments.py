"""Every bad argument raises `ValueError` before any work; the message names it, what it got and what it wants."""

import re
import types
import warnings

import numpy as np
import pytest
import torch

import yuzu
from tests.oracle import assert_close
from tests.small_models import Net, Profile, randomized, sequences
from yuzu import YuzuError

L = 30
GOOD = sequences(2, L)


class NeverRun(Net):
    """Work would show: the model may not be run before the arguments are checked."""

    def forward(self, X, *args):
        raise AssertionError("the model was run")


@pytest.fixture(params=["yuzu_ism", "naive_ism"])
def ism(request):
    return getattr(yuzu, request.param)


def nan_at(value):
    X = GOOD.clone()
    X[1, 2, 3] = value
    return X


BAD_SEQUENCES = {
    "two axes": (torch.zeros(4, L), r"3 axes.*\(4, 30\)"),
    "four axes": (torch.zeros(1, 1, 4, L), r"3 axes.*\(1, 1, 4, 30\)"),
    "NaN": (nan_at(float("nan")), "finite"),
    "infinity": (nan_at(float("inf")), "finite"),
    "negative infinity": (nan_at(-float("inf")), "finite"),
    "numpy NaN": (nan_at(float("nan")).numpy(), "finite"),
    "empty batch": (torch.zeros(0, 4, L), r"\(0, 4, 30\)"),
    "no positions": (torch.zeros(1, 4, 0), r"\(1, 4, 0\)"),
    "no characters": (np.zeros((1, 0, L)), r"\(1, 0, 30\)"),
    "complex": (torch.zeros(1, 4, L, dtype=torch.complex64), "complex"),
    "objects": (np.zeros((1, 4, L), dtype=object), "object"),
    "strings": (np.full((1, 4, L), "A"), "<U1"),
    "a string": ("ACGT", "str"),
    "a list": (GOOD.tolist(), "list"),
    "None": (None, "None"),
}


@pytest.mark.parametrize("name", BAD_SEQUENCES)
def test_bad_sequences(ism, name):
    X, message = BAD_SEQUENCES[name]
    with pytest.raises(YuzuError, match=rf"(?s)X_0.*{message}"):
        ism(NeverRun(), X)


BAD_OPTIONS = {
    # output, target, func
    "output": [
        ({"output": "L2"}, r"'l2'.*'delta'.*'prediction'.*'L2'"),
        ({"output": None}, "None"),
        ({"output": 2}, "2"),
    ],
    "target": [
        ({"target": "first"}, "str"),
        ({"target": 1.0}, "float"),
        ({"target": True}, "bool"),
        ({"target": []}, r"\[\]"),
        ({"target": [0, "a"]}, "a"),
        ({"target": [0.5]}, "0.5"),
        ({"target": {0}}, "set"),
        ({"target": np.array(1.0)}, "float"),
        ({"target": torch.tensor(True)}, "bool"),
        ({"target": torch.tensor([1.5])}, "1.5"),
        ({"target": np.array([True, False, True])}, "True"),
    ],
    "func": [({"func": 3}, "int"), ({"func": "log"}, "str")],
    # start, end
    "start": [
        ({"start": 1.5}, "1.5"),
        ({"start": "3"}, "'3'"),
        ({"start": 10, "end": 5}, "10.*5"),
        ({"start": L}, "30"),
    ],
    "end": [({"end": "3"}, "'3'"), ({"end": 2.0}, "2.0"), ({"end": 0}, "0"), ({"end": -L}, "-30")],
    # ranges
    "ranges": [
        ({"ranges": []}, r"\[\]"),
        ({"ranges": [(0, 2), (4, 7)]}, "width.*2.*3.*call once for each width"),
        ({"ranges": [(0, 2), (4, 7)], "replace_with": ("AC", "GGT")}, "call once for each width"),
        ({"ranges": [(-1, 2)]}, r"\(-1, 2\)"),
        ({"ranges": [(0, 3), (L - 2, L + 1)]}, r"30.*\(28, 31\)"),
        ({"ranges": [(4, 4)]}, r"\(4, 4\)"),
        ({"ranges": [(6, 4)]}, r"\(6, 4\)"),
        ({"ranges": np.array([(6, 4)], dtype=np.uint8)}, r"\(6, 4\)"),
        ({"ranges": [3, 4]}, "pair"),
        ({"ranges": [(0, 1, 2)]}, "pair"),
        ({"ranges": [(0, 2), (3,)]}, "pair"),
        ({"ranges": [(0.5, 1.5)]}, "pair|integer"),
        ({"ranges": 7}, "7"),
        ({"ranges": "AC"}, "AC"),
        ({"ranges": [(0, 3)], "start": 2}, "start"),
        ({"ranges": [(0, 3)], "end": 9}, "end"),
        ({"ranges": [(0, 3)], "end": L, "replace_with": "ACG"}, "end"),
        ({"ranges": [(0, 3)], "start": -5, "end": -1}, "start"),
    ],
    "replace_with": [
        ({"ranges": [(0, 3)], "replace_with": "AXG"}, r"ACGT.*'X'.*1"),
        ({"ranges": [(0, 3)], "replace_with": "AC"}, "2.*3"),
        ({"ranges": [(0, 3)], "replace_with": ""}, "empty"),
        ({"ranges": [(0, 3)], "replace_with": np.zeros((4, 2))}, "2.*3"),
        ({"ranges": [(0, 3)], "replace_with": np.zeros((5, 3))}, r"4.*\(5, 3\)"),
        ({"ranges": [(0, 3)], "replace_with": np.zeros(3)}, r"\(4,\).*\(3,\)"),
        ({"ranges": [(0, 3)], "replace_with": np.zeros((1, 4, 3))}, r"\(1, 4, 3\)"),
        ({"ranges": [(0, 3)], "replace_with": [0.5, float("nan"), 0, 0]}, "finite"),
        ({"ranges": [(0, 3)], "replace_with": object()}, "object"),
        ({"ranges": [(0, 3)], "replace_with": 3}, ""),
        ({"replace_with": "AC"}, "AC.*2|2.*single"),
        ({"replace_with": np.zeros((4, 2))}, "2"),
        ({"replace_with": "W"}, "ACGT.*'W'"),
        ({"ranges": [(0, 2), (4, 6)], "replace_with": ["AC", "GG"]}, "2 items.*call once for each motif"),
    ],
    "batch_size": [({"batch_size": v}, str(v)) for v in (0, -1, 1.5, "8", True)],
    "device": [({"device": "graphics card"}, "graphics card"), ({"device": 3.5}, "3.5"), ({"device": ["cpu"]}, "cpu")],
    "args": [
        ({"args": torch.zeros(2, 1)}, "tuple"),
        ({"args": np.zeros((2, 1))}, "tuple"),
        ({"args": (torch.zeros(3, 1),)}, r"2.*\(3, 1\)"),
        ({"args": (torch.zeros(2, 1), torch.zeros(1, 1))}, r"\[1\].*2.*\(1, 1\)"),
        ({"args": (torch.tensor(1.0),)}, r"2"),
        ({"args": (3,)}, "int"),
        ({"args": ("a",)}, "str"),
        ({"args": (None,)}, "None"),
        ({"args": 5}, "int"),
    ],
}
CASES = [
    pytest.param(name, options, message, id=f"{name}-{i}")
    for name, cases in BAD_OPTIONS.items()
    for i, (options, message) in enumerate(cases)
]


@pytest.mark.parametrize("name, options, message", CASES)
def test_bad_options(ism, name, options, message):
    with pytest.raises(YuzuError, match=rf"(?s)\b{name}\b.*({message})|({message}).*\b{name}\b"):
        ism(NeverRun(), GOOD, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is available")
def test_cuda_that_is_not_there(ism):
    with pytest.raises(YuzuError, match=r"device.*cuda.*not available"):
        ism(NeverRun(), GOOD, device="cuda")


@pytest.mark.parametrize("model", [None, "model", lambda X: X, types.SimpleNamespace(), Net], ids=["none", "text", "function", "object", "class"])
def test_a_model_that_is_none(ism, model):
    with pytest.raises(YuzuError, match=r"model must be a torch\.nn\.Module"):
        ism(model, GOOD)


@pytest.mark.parametrize("given", ["file.yuzu", {}, 3, torch.zeros(3)], ids=lambda v: type(v).__name__)
def test_a_precomputation_that_is_none(given):
    with pytest.raises(YuzuError, match=rf"precomputation.*{type(given).__name__}"):
        yuzu.yuzu_ism(NeverRun(), GOOD, given)
    with pytest.raises(YuzuError, match=rf"precomputation.*{type(given).__name__}"):
        yuzu.check(NeverRun(), GOOD, given)


def test_unknown_arguments_are_refused(ism, net):
    with pytest.raises(TypeError, match="targets"):
        ism(net, GOOD, targets=3)


# targets that do not exist


@pytest.mark.parametrize("target", [3, -4, [0, 3], [-4], 10**9, slice(3, 9), slice(2, 1)], ids=str)
def test_a_target_that_does_not_exist(ism, net, target):
    with pytest.raises(YuzuError, match=r"(?s)target.*\b3\b"):
        ism(net, GOOD, target=target)


def test_target_with_several_outputs(ism, profile):
    with pytest.raises(YuzuError, match=r"(?s)target.*single.*func|target.*several.*func|target.*2.*func"):
        ism(profile, GOOD, target=0)


def test_target_with_several_outputs_of_func(ism, net):
    with pytest.raises(YuzuError, match=r"(?s)target.*func"):
        ism(net, GOOD, target=0, func=lambda y: (y, y))


def test_target_without_an_axis(ism, net):
    with pytest.raises(YuzuError, match="target"):
        ism(net, GOOD, target=0, func=lambda y: y.sum(1))


def test_func_that_drops_the_batch(ism, net):
    with pytest.raises(YuzuError, match="func"):
        ism(net, GOOD, func=lambda y: y.sum())
    with pytest.raises(YuzuError, match="func"):
        ism(net, GOOD, func=lambda y: y.sum(0))


def test_func_that_returns_no_tensor(ism, net):
    with pytest.raises(YuzuError, match="NoneType.*no tensor.*func"):
        ism(net, GOOD, func=lambda y: None)


class Boxed(Net):
    def forward(self, X):
        return types.SimpleNamespace(y=super().forward(X))


def test_a_model_that_returns_an_object(net, ism):
    model = Boxed().eval()
    model.load_state_dict(net.state_dict())
    with pytest.raises(YuzuError, match="output.*SimpleNamespace, which holds no tensor to score; give a func"):
        ism(model, GOOD)
    with pytest.raises(YuzuError, match=r"must return tensors.*\['SimpleNamespace'\]"):
        yuzu.predict(model, GOOD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it runs naively
        assert_close(ism(model, GOOD, func=lambda box: box.y), yuzu.naive_ism(net, GOOD))


# sequences that do not fit the model


CALLS = {
    "yuzu_ism": ("X_0", yuzu.yuzu_ism),
    "naive_ism": ("X_0", yuzu.naive_ism),
    "check": ("X_0", yuzu.check),
    "hybrid_ism": ("X_0", yuzu.hybrid_ism),
    "saturation_mutagenesis": ("X", yuzu.saturation_mutagenesis),
    "predict": ("X", yuzu.predict),
    "takegrad": ("x", lambda model, X: yuzu.taylor.takegrad(X, model)),
    "taylor.ism": ("x", lambda model, X: yuzu.taylor.ism(X, model)),
}


@pytest.mark.parametrize("shape", [(2, 5, L), (2, 4, L + 4), (2, 20, L), (2, L, 4)], ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_sequences_that_the_model_cannot_read(call, net, shape):
    name, run = CALLS[call]
    with pytest.raises(YuzuError, match=rf"(?s)cannot run on {name} of shape {re.escape(str(shape))}.*\(n, C, L\)") as caught:
        run(net, torch.zeros(shape))
    assert (f"{name} looks like (n, L, C): swap its last two axes" in str(caught.value)) == (shape[1] == L)


@pytest.mark.parametrize("call", CALLS)
def test_a_missing_input_of_the_model(call):
    class Two(torch.nn.Module):
        def forward(self, X, scale):
            return X.sum(2) * scale

    with pytest.raises(YuzuError, match="no inputs in args.*scale"):
        CALLS[call][1](Two(), GOOD)


ONE = torch.ones(2, 1, L)


@pytest.mark.parametrize("call", [call for call in CALLS if call not in ("predict", "takegrad")])
def test_one_character_that_nothing_substitutes(call):
    name, function = CALLS[call]
    with pytest.raises(YuzuError, match=rf"^{name} must have at least C = 2 characters.*\(2, 1, 30\)"):
        function(NeverRun(n_choices=1), ONE)


def test_one_character_is_enough_to_predict():
    model = Net(n_choices=1).eval()
    assert yuzu.predict(model, ONE).shape == (2, 3)
    assert yuzu.taylor.takegrad(ONE, model).shape[0] == 2


@pytest.mark.parametrize("call", [*CALLS, "precompute"])
def test_weights_that_have_no_shape_yet(call):
    run = CALLS[call][1] if call in CALLS else lambda model, X: yuzu.precompute(model, L)
    for layer, name in [(torch.nn.LazyConv1d(3, 3), "0.weight"), (torch.nn.LazyBatchNorm1d(affine=False), "0.running_mean")]:
        with pytest.raises(YuzuError, match=f"^model must have all its weights, {name} has no shape yet"):
            run(torch.nn.Sequential(layer, torch.nn.Flatten(), torch.nn.Linear(4 * L, 2)), GOOD)
    model = torch.nn.Sequential(torch.nn.LazyConv1d(3, 3), torch.nn.Flatten(), torch.nn.LazyLinear(2)).eval()
    model(GOOD)
    run(model, GOOD)
    with pytest.raises(YuzuError, match="^model must have all its weights, conv1.weight is on the device 'meta'"):
        run(Net().to("meta"), GOOD)


@pytest.mark.parametrize("path", [None, 3, b"net.yuzu"], ids=str)
def test_paths_that_are_none(net, path):
    made = yuzu.precompute(net, L)
    for call in (yuzu.Precomputation.load, made.save):
        with pytest.raises(YuzuError, match=f"^path must be a str or pathlib.Path, got {type(path).__name__}$"):
            call(path)


def test_an_error_that_is_not_about_the_input_stays():
    """Such as a lack of memory for many sequences together."""

    class Full(torch.nn.Module):
        def forward(self, X):
            if len(X) > 1:
                raise MemoryError("full")
            return X.sum(2)

    with pytest.raises(MemoryError, match="full"):
        yuzu.predict(Full(), GOOD)


# outputs that are not real


class Spectrum(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 3, 5)

    def forward(self, X):
        return torch.fft.rfft(self.conv(X))


@pytest.mark.parametrize("call", [call for call in CALLS if call != "predict"])
def test_complex_outputs(call, monkeypatch):
    """Their imaginary part was once dropped."""
    monkeypatch.setattr("yuzu._engine.store.obtain.make", None)  # no work
    with pytest.raises(YuzuError, match=r"real.*complex64.*func.*\.abs\(\)"):
        CALLS[call][1](Spectrum(), GOOD)


@pytest.mark.filterwarnings("ignore::yuzu.YuzuWarning")
def test_complex_outputs_with_func_and_with_a_precomputation():
    model, size = Spectrum(), lambda y: y.abs()
    precomputation = yuzu.precompute(model, L)
    with pytest.raises(YuzuError, match="real"):
        yuzu.yuzu_ism(model, GOOD, precomputation)
    assert_close(yuzu.yuzu_ism(model, GOOD, precomputation, func=size), yuzu.naive_ism(model, GOOD, func=size), 1e-5)


# precompute


BAD_SETTINGS = {
    "seq_len": [(0, "0"), (-1, "-1"), (30.0, "30.0"), ("30", "'30'"), (None, "None"), (True, "True")],
    "n_choices": [(0, "0"), (1, "1"), (4.0, "4.0"), ("ACGT", "ACGT")],
    "args": [(torch.zeros(1, 1), "tuple"), ((3,), "int"), ((torch.zeros(0, 3),), r"\(0, 3\)")],
    "alpha": [(0, "0"), (-1.0, "-1"), ("auto", "auto"), (float("nan"), "nan"), (float("inf"), "inf")],
    "threshold": [(0, "0"), (1.5, "1.5"), ("high", "high"), (float("nan"), "nan"), (None, "None")],
    "conv": [("fft", r"'auto'.*'windows'.*'cyclic'.*'banded'.*'fold'.*'gaussian'.*'fft'"), (None, "None"), (3, "3")],
    "precision": [("low", r"'highest'.*'high'.*'medium'.*'low'"), (None, "None"), (torch.bfloat16, "bfloat16")],
    "terminal_layers": [(("Linear",), "Linear"), ((int,), "int"), ((torch.nn.ReLU(),), "ReLU"), ([3], "3"), ("Linear", "Linear")],
    "max_memory": [(0, "0"), (-5, "-5"), ("1GB", "1GB"), (1.5, "1.5"), (True, "True")],
    "device": [("graphics card", "graphics card"), (2.5, "2.5")],
    "random_state": [(-1, "-1"), ("seed", "seed"), (1.5, "1.5")],
}
SETTINGS = [
    pytest.param(name, value, message, id=f"{name}-{value}")
    for name, cases in BAD_SETTINGS.items()
    for value, message in cases
]


@pytest.mark.parametrize("name, value, message", SETTINGS)
def test_bad_settings_of_precompute(name, value, message):
    options = {"seq_len": L, name: value}
    with pytest.raises(YuzuError, match=rf"(?s){name}.*{message}"):
        yuzu.precompute(NeverRun(), **options)


def test_precompute_of_what_is_no_model():
    with pytest.raises(YuzuError, match=r"model must be a torch\.nn\.Module.*str"):
        yuzu.precompute("model", L)


def test_precompute_for_a_length_that_the_model_cannot_read(net):
    with pytest.raises(YuzuError, match=r"(?s)seq_len.*mat1|4, 50.*seq_len"):
        yuzu.precompute(net, 50)


def test_precompute_for_an_alphabet_that_the_model_cannot_read(net):
    with pytest.raises(YuzuError, match=r"(?s)20, 30.*n_choices"):
        yuzu.precompute(net, L, 20)


# wrong C or L with a precomputation


@pytest.fixture(scope="module")
def any_length():
    model = randomized(Profile()).eval()
    return model, yuzu.precompute(model, L)


def test_wrong_length_and_alphabet_are_found_before_any_work(any_length):
    _, precomputation = any_length
    with pytest.raises(YuzuError, match=r"length 30, \(n, 4, 30\), got X_0 of shape \(n, 4, 31\)"):
        yuzu.yuzu_ism(NeverRun(), sequences(1, 31), precomputation)
    with pytest.raises(YuzuError, match=r"4 characters, \(n, 4, 30\), got X_0 of shape \(n, 20, 30\)"):
        yuzu.yuzu_ism(NeverRun(), sequences(1, L, 20), precomputation)
    with pytest.raises(YuzuError, match=r"X_0 looks like \(n, L, C\): swap its last two axes"):
        yuzu.yuzu_ism(NeverRun(), sequences(1, L).mT, precomputation)


# check


def test_bad_arguments_of_check(net):
    for positions in (0, -1, 1.5, "all", True):
        with pytest.raises(YuzuError, match="positions"):
            yuzu.check(net, GOOD, positions=positions)
    with pytest.raises(YuzuError, match=r"X_0.*3 axes"):
        yuzu.check(net, GOOD[0])
    with pytest.raises(YuzuError, match="X_0"):
        yuzu.check(net, "ACGT")
    with pytest.raises(YuzuError, match="X_0"):
        yuzu.check(net, None)
    with pytest.raises(YuzuError, match="X_0"):
        yuzu.check(net, torch.tensor(3.0))
    with pytest.raises(YuzuError, match="args"):
        yuzu.check(net, GOOD, args=torch.zeros(2, 1))
    with pytest.raises(YuzuError, match="model"):
        yuzu.check(None, GOOD)
    with pytest.raises(YuzuError, match="device"):
        yuzu.check(net, GOOD, device="graphics card")


def test_bad_arguments_do_not_spoil_what_follows(net, ism):
    expected = ism(net, GOOD)
    for options in ({"output": "x"}, {"target": 99}, {"ranges": [(0, 99)]}, {"func": lambda y: None}):
        with pytest.raises(YuzuError):
            ism(net, GOOD, **options)
    assert torch.equal(ism(net, GOOD), expected)


BRIEF = {
    "a batch as the length": lambda net: yuzu.precompute(net, GOOD),
    "an array as the length": lambda net: yuzu.precompute(net, GOOD.numpy()),
    "a batch as the number of letters": lambda net: yuzu.precompute(net, L, GOOD),
    "a batch as a count": lambda net: yuzu.naive_ism(net, GOOD, batch_size=GOOD),
    "a batch as a target": lambda net: yuzu.yuzu_ism(net, GOOD, target=GOOD),
    "a batch as a start": lambda net: yuzu.yuzu_ism(net, GOOD, start=GOOD),
    "a batch as an output": lambda net: yuzu.naive_ism(net, GOOD, output=str(GOOD)),
    "a batch as a device": lambda net: yuzu.naive_ism(net, GOOD, device=GOOD),
    "very many ranges": lambda net: yuzu.naive_ism(net, GOOD, ranges=list(range(100_000))),
    "a long string as a precision": lambda net: yuzu.precompute(net, L, precision="x" * 10_000),
}


@pytest.mark.parametrize("name", BRIEF)
def test_a_message_does_not_print_whole_arrays(name):
    with pytest.raises(YuzuError) as error:
        BRIEF[name](NeverRun())
    assert len(str(error.value)) < 300 and str(error.value).count("\n") == 0


def test_a_batch_in_the_place_of_the_length_is_explained():
    with pytest.raises(YuzuError, match=r"seq_len.*Tensor of shape \(2, 4, 30\): pass its shape\[-1\]"):
        yuzu.precompute(NeverRun(), GOOD)
