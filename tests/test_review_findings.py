"""Models on which a reviewer once found wrong numbers, each against brute force in float64."""

import copy

import pytest
import torch
from torch import nn

import yuzu
from yuzu.check import errors_against

L = 30


class Headed(nn.Module):
    """A convolution and a head given as a function of its output and of the sequence."""

    def __init__(self, head):
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 5, padding=2)
        self.head = head

    def forward(self, x):
        return self.head(self.conv(x), x)


def masked(value):
    def head(h, x):
        weight = h[:, :1].masked_fill(x.sum(1, keepdim=True) == 0, value)
        return (h * torch.softmax(weight, -1)).sum(-1)

    return head


HEADS = {
    "exp that underflows": lambda h, x: torch.exp(-((h * 20) ** 2)).sum(2),
    "log softmax, exp": lambda h, x: (h * 200).log_softmax(1).exp().sum(2),
    "mask of -1e9": masked(-1e9),
    "mask of the least number": masked(torch.finfo(torch.float32).min),
    "mask of -inf": masked(float("-inf")),
    "expand, relu": lambda h, x: torch.relu(h.sum(1, keepdim=True).expand(-1, 6, -1)).sum(2),
    "both strands and zeros like them": lambda h, x: _strands(h),
}


def _strands(h):
    both = torch.cat([h, h.flip(2)], 0)
    zeros = torch.zeros_like(both)
    first, second = (both * 2 + zeros).chunk(2, 0)
    return first.sum(2) + second.amax(2)


def sequences():
    letters = torch.randint(4, (2, L), generator=torch.Generator().manual_seed(3))
    X = nn.functional.one_hot(letters, 4).permute(0, 2, 1).float()
    X[0, :, [7, 20]] = 0
    return X


@pytest.mark.filterwarnings("ignore::yuzu.YuzuWarning")
@pytest.mark.parametrize("options", [{}, {"ranges": [(i, i + 3) for i in range(0, L - 3, 2)]}], ids=["substitutions", "blanked"])
@pytest.mark.parametrize("name", HEADS)
def test_as_accurate_as_naive_float32(name, options):
    torch.manual_seed(0)
    model, X = Headed(HEADS[name]), sequences()
    truth = yuzu.naive_ism(copy.deepcopy(model).double(), X.double(), output="delta", **options)
    naive = yuzu.naive_ism(model, X, output="delta", **options)
    ours = yuzu.yuzu_ism(model, X, output="delta", **options)
    assert bool(torch.isfinite(ours).all()) or not bool(torch.isfinite(truth).all())
    error, naive_error = errors_against(ours, truth)[0], errors_against(naive, truth)[0]
    assert error <= max(1e-5, naive_error)


def test_a_callable_settings_object_is_noticed():
    class Settings:
        scale = 1.0

        def __call__(self):
            return self.scale

    model = Headed(lambda h, x: h.sum(2))
    model.settings = Settings()
    model.head = lambda h, x: h.sum(2) * model.settings.scale
    X = sequences()
    before = yuzu.yuzu_ism(model, X)
    model.settings.scale = 3.0
    assert torch.allclose(yuzu.yuzu_ism(model, X), 3 * before, rtol=1e-4)


def test_what_is_no_tensor_keeps_its_place():
    model = Headed(lambda h, x: {"a": h.sum(2), "b": None, "c": 3.0})
    for ism in (yuzu.yuzu_ism, yuzu.naive_ism):
        found = ism(model, sequences(), output="delta")
        assert list(found) == ["a", "b", "c"] and found["b"] is None and found["c"] == 3.0
        assert found["a"].shape == (2, 4, L, 6)
