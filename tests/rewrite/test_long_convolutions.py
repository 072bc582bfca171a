"""Which products of spectra are recognised as long convolutions, and how far their signals reach."""

import pytest
import torch
from torch import nn

from tests.laws.random_models import Fn
from yuzu._engine.rewrite.all import capture

C, L = 4, 12
fft = torch.fft


def cropped(x, spectrum, n=2 * L):
    return fft.irfft(fft.rfft(x, n=n) * spectrum, n=n)[..., :L]


REACH = {
    "as long as the sequence": (lambda m, x: cropped(x, fft.rfft(m.k, n=2 * L)), L),
    "shorter": (lambda m, x: cropped(x, fft.rfft(m.k[:, :5], n=2 * L)), 5),
    "with a factor": (lambda m, x: cropped(x, 3 * fft.rfft(m.k, n=2 * L) / 24), L),
    "with a factor for each channel": (lambda m, x: cropped(x, m.k[:, :1] * fft.rfft(m.k, n=2 * L)), L),
    "with a factor for each frequency": (lambda m, x: cropped(x, m.f * fft.rfft(m.k, n=2 * L)), 2 * L),
    "with an axis more": (lambda m, x: cropped(x, fft.rfft(m.k, n=2 * L).unsqueeze(0)), L),
    "made of others": (lambda m, x: cropped(x, fft.rfft((m.k * m.k).sin(), n=2 * L)), L),
    "a sum": (lambda m, x: cropped(x, fft.rfft(m.k, n=2 * L) + 1), 2 * L),
    "turned": (lambda m, x: cropped(x, fft.rfft(m.k, n=2 * L).conj()), 2 * L),
    "padded itself": (lambda m, x: cropped(x, fft.rfft(nn.functional.pad(m.k, (L, 0)))), 2 * L),
    "frequencies": (lambda m, x: cropped(x, torch.complex(m.f, m.f)), 2 * L),
    "of each sequence": (lambda m, x: cropped(x, fft.rfft(x.cumsum(-1), n=2 * L)), None),
    "another length": (lambda m, x: fft.irfft(fft.rfft(x, n=2 * L) * fft.rfft(m.k, n=2 * L), n=2 * L - 2), None),
    "another axis": (lambda m, x: fft.irfft(fft.rfft(x, n=2 * L, dim=-1) * 2, n=6, dim=-2), None),
    "a number": (lambda m, x: fft.irfft(fft.rfft(x) * 2), None),
}


@pytest.mark.parametrize("name", REACH)
def test_the_reach_of_a_signal(name):
    function, reach = REACH[name]
    model = Fn(function, k=nn.Parameter(torch.randn(C, L)), f=nn.Parameter(torch.randn(L + 1))).eval()
    graph = capture(model, (C, L), (), torch.float32)
    found = [node.target.reach for node in graph.nodes if node.op == "yuzu.long_convolution"]
    assert found == ([] if reach is None else [reach])
    assert not found or not any(node.op.startswith("aten.fft_i") for node in graph.nodes)


def test_a_long_convolution_is_the_same_operation():
    x, k = torch.randn(3, C, L, dtype=torch.float64), nn.Parameter(torch.randn(C, L, dtype=torch.float64))
    model = Fn(lambda m, x: cropped(x, fft.rfft(m.k, n=2 * L)), k=k).eval()
    graph = capture(model, (C, L), (), torch.float64)
    (node,) = [node for node in graph.nodes if node.op == "yuzu.long_convolution"]
    with torch.no_grad():
        spectrum = fft.rfft(k, n=2 * L)
        assert torch.equal(node.target(x, spectrum)[..., :L], model(x))
        signal = node.target.signal(spectrum)
    assert torch.allclose(signal[:, :L], k, atol=1e-14) and signal[:, L:].abs().max() < 1e-14
