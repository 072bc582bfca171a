"""The options of `precompute`, and what a `Precomputation` prints."""

import re

import pytest
import torch

from tests.oracle import assert_right, assert_same
from tests.small_models import Net, randomized, sequences
from yuzu import precompute, yuzu_ism

L = 30


@pytest.mark.parametrize(
    "classes", [(torch.nn.Linear,), [torch.nn.MaxPool1d, torch.nn.Linear], (torch.nn.Conv1d,), (Net,)]
)
def test_terminal_layers(net, captured_once, device, classes):
    X = sequences(2, L)
    precomputation = precompute(net, L, terminal_layers=classes, device=device)
    assert "terminal_layers" in precomputation.summary()
    assert_right(yuzu_ism(net, X, precomputation, output="delta", device=device), net, X, output="delta", device=device)


def test_terminal_layers_that_do_not_occur(net, captured_once):
    precomputation = precompute(net, L, terminal_layers=(torch.nn.LSTM,))
    assert "terminal_layers" not in precomputation.summary()
    assert_right(yuzu_ism(net, sequences(1, L), precomputation), net, sequences(1, L))


def test_summary_and_print(net, captured_once, capsys):
    precomputation = precompute(net, L)
    text = precomputation.summary()
    assert isinstance(text, str) and str(precomputation) == text
    print(precomputation)
    assert capsys.readouterr().out == text + "\n"
    for word in (
        "layer",
        "operation",
        "handler",
        "window",
        "way",
        "time",
        "conv1",
        "conv2",
        "fc1",
        "fc2",
        "conv1d",
        "linear",
        "%",
    ):
        assert word in text, f"{word} is missing from\n{text}"
    assert str(L) in text and "4" in text
    assert re.search(r"conv1 .*1 -> 5\b", text), "the window before and after the first convolution"
    assert isinstance(repr(precomputation), str) and "30" in repr(precomputation)


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.lstm = torch.nn.Conv1d(4, 3, 3), torch.nn.LSTM(3, 4, batch_first=True)
        self.fc = torch.nn.Linear(4, 2)

    def forward(self, X):
        _, (_, cells) = self.lstm(self.conv(X).transpose(1, 2))  # that read the states of cells run naively
        return self.fc(cells[-1])


def test_summary_says_why_a_layer_is_naive():
    model, X = randomized(Recurrent()), sequences(2, L)
    with pytest.warns(UserWarning, match="lstm"):
        precomputation = precompute(model, L)
    assert "naive" in precomputation.summary() and "lstm" in precomputation.summary()
    assert_right(yuzu_ism(model, X, precomputation, output="delta"), model, X, output="delta")


def test_summary_tells_the_probes(several, captured_once):
    text = precompute(several, 40, conv="cyclic").summary()
    assert "probes" in text
    # conv2 is reached by windows of 7, which become 15 wide: at a position 15 * 3 mutants are nonzero
    assert re.search(r"^conv2 .*7 -> 15 +45 +cyclic", text, re.M), text


def test_verbose_false_is_silent(net, capfd):
    precompute(net, L)
    assert capfd.readouterr() == ("", "")


def test_precompute_has_its_seed(several, captured_once):
    """Two identical calls decide the same: the sensing matrices must not come from the global random state."""
    torch.manual_seed(1)
    first = precompute(several, 40, conv="gaussian", alpha=1.5)
    torch.manual_seed(2)
    second = precompute(several, 40, conv="gaussian", alpha=1.5)
    X = sequences(1, 40)
    assert_same(yuzu_ism(several, X, first), yuzu_ism(several, X, second))
