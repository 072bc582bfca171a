"""The law for long convolutions through Fourier transforms, and models end to end."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu  # noqa: F401  registers every handler
from tests.handlers.picked import Net, assert_exact, sequences
from tests.laws.bench import CHANNELS, bench, fn, laws_of
from yuzu._engine.handlers import long_convolution

L = 40


def convolved(x, k, n, axis=-1, norms=(None, None), crop=None):
    y = torch.fft.irfft(torch.fft.rfft(x, n, axis, norms[0]) * torch.fft.rfft(k, n, axis, norms[1] if norms[1] == norms[0] else None), n, axis, norms[1])
    return y if crop is None else y.narrow(axis, 0, crop)


def signal(*shape):
    return lambda: nn.Parameter(torch.randn(*shape))


def long_convolution_cases() -> None:
    case = bench("long convolutions")
    shown = {"mul": "elementwise|dense", "yuzu.long_convolution": "convolution"}
    whole = {"mul": "elementwise|dense", "yuzu.long_convolution": "whole values"}
    for trunk in (0, 5):
        c = CHANNELS if trunk else 4
        for k, n, crop in ((13, 26, 13), (13, 25, 13), (5, 17, None), (1, 13, None), (13, 32, 20), (4, 16, 9)):
            case(f"signal of {k}, size {n}, first {crop}, trunk {trunk}", fn(lambda m, x, n=n, crop=crop: convolved(x, m.k, n, crop=crop).sigmoid(), k=signal(c, k)), trunk, **shown)
    for norms in ((None, "forward"), ("ortho", "ortho"), ("backward", "backward"), ("forward", None)):
        case(f"norms {norms}", fn(lambda m, x, n=norms: convolved(x, m.k, 26, norms=n, crop=13).exp(), k=signal(CHANNELS, 13)), **shown)
    case("n,L,C", fn(lambda m, x: convolved(x.transpose(1, 2), m.k, 26, axis=-2, crop=13).relu(), k=signal(13, CHANNELS)), **shown)
    case("four axes", fn(lambda m, x: convolved(x.unflatten(1, (2, 3)), m.k, 28, crop=13).relu(), k=signal(1, 3, 9)), **shown)
    case("one signal for all channels", fn(lambda m, x: convolved(x, m.k, 26, crop=13).relu(), k=signal(13)), **shown)
    case("signal with a factor", fn(lambda m, x: torch.fft.irfft(torch.fft.rfft(x, n=26) * (m.s * torch.fft.rfft(m.k, n=26) / 26), n=26, norm="forward")[..., :13].relu(), k=signal(CHANNELS, 13), s=signal(CHANNELS, 1)), **shown)
    case("the signal comes first", fn(lambda m, x: torch.fft.irfft(torch.fft.rfft(m.k, n=26) * torch.fft.rfft(x, n=26), n=26)[..., :13].relu(), k=signal(CHANNELS, 13)), **shown)
    case("padded before", fn(lambda m, x: torch.fft.irfft(torch.fft.rfft(F.pad(x, (0, 13))) * torch.fft.rfft(F.pad(m.k, (0, 13))), n=26)[..., :13].relu(), k=signal(CHANNELS, 13)), any="view", relu="whole values|elementwise", **whole)
    case("padded, a short signal", fn(lambda m, x: torch.fft.irfft(torch.fft.rfft(F.pad(x, (2, 3)), n=26) * torch.fft.rfft(m.k, n=26), n=26)[..., 2:15].relu(), k=signal(CHANNELS, 4)), **shown)
    case("two in a row", fn(lambda m, x: convolved(convolved(x, m.k, 26, crop=13).relu(), m.k, 26, crop=13).relu(), k=signal(CHANNELS, 13)), 5, **shown)
    case("gated, then a convolution", fn(lambda m, x: m.conv(x * convolved(x.tanh(), m.k, 26, crop=13)), k=signal(CHANNELS, 13), conv=lambda: nn.Conv1d(CHANNELS, 3, 3)), **{**shown, "mul": "merge|elementwise"})
    case("cropped on the left", fn(lambda m, x: convolved(x, m.k, 26)[..., 5:11].relu(), k=signal(CHANNELS, 13)), **shown)
    case("circular", fn(lambda m, x: torch.fft.irfft(torch.fft.rfft(x) * torch.view_as_complex(m.k), n=13).relu(), k=signal(CHANNELS, 7, 2)), relu="whole values", **whole)
    case("circular signal", fn(lambda m, x: convolved(x, m.k, 13).relu(), k=signal(CHANNELS, 13)), relu="whole values", **whole)
    case("too short for the signal", fn(lambda m, x: convolved(x, m.k, 18, crop=13).relu(), k=signal(CHANNELS, 7)), any="view", relu="whole values", **whole)
    case("the signal is cut", fn(lambda m, x: convolved(x, m.k, 16).relu(), k=signal(CHANNELS, 20)), relu="whole values", **whole)
    case("the sequence is cut", fn(lambda m, x: convolved(x, m.k, 10).relu(), k=signal(CHANNELS, 2)), relu="whole values", **whole)
    case("along channels", fn(lambda m, x: convolved(x, m.k, 12, axis=-2).relu(), k=signal(CHANNELS, 1)), **shown)
    case("after a softmax", fn(lambda m, x: convolved(x.softmax(2), m.k, 26, crop=13).relu(), k=signal(CHANNELS, 13)), any="view", softmax="whole values|elementwise", _softmax="elementwise|whole values", relu="whole values", **whole)
    case("flipped in frequencies", fn(lambda m, x: torch.fft.irfft(torch.fft.rfft(x, n=26) * torch.fft.rfft(m.k, n=26).conj(), n=26)[..., :13].relu(), k=signal(CHANNELS, 13)), any="view", relu="whole values", **whole)
    case("the spectrum is read, too", fn(lambda m, x: (lambda s: (torch.fft.irfft(s * torch.view_as_complex(m.k), n=26)[..., :13], s.abs()))(torch.fft.rfft(x, n=26)), k=signal(CHANNELS, 14, 2)), fft_rfft="dense", any="whole values", **whole)
    case("other sizes", fn(lambda m, x: torch.fft.irfft(torch.fft.rfft(x, n=26) * torch.view_as_complex(m.k), n=24).relu(), k=signal(CHANNELS, 14, 2)), fft_rfft="dense", fft_irfft="dense", any="whole values")
    case("several signals for each channel", fn(lambda m, x: torch.fft.irfft(torch.fft.rfft(x, n=26).unsqueeze(1) * torch.fft.rfft(m.k, n=26), n=26)[..., :13].relu(), k=signal(3, CHANNELS, 13)), fft_rfft="dense", fft_irfft="dense", any="whole values")
    case("mixed channels", fn(lambda m, x: torch.fft.irfft(torch.einsum("bcf,cdf->bdf", torch.fft.rfft(x, n=26), torch.view_as_complex(m.k)), n=26)[..., :13].relu(), k=signal(CHANNELS, 3, 14, 2)), fft_rfft="dense", fft_irfft="dense", any="whole values")


(
    test_the_law_in_float64,
    test_the_law_in_float32,
    test_the_family_that_handles_it,
    test_what_does_not_read_the_reference,
) = laws_of(long_convolution_cases)


@pytest.fixture(params=[0, 6, 100])
def few_positions(request, monkeypatch):
    monkeypatch.setattr(long_convolution, "FEW_POSITIONS", request.param)


def layers(m, x):
    y = x * convolved(x, m.signal, 2 * L, crop=L)
    return F.gelu(convolved(y, m.signal, 2 * L, crop=L)).mean(2)


@pytest.mark.parametrize("options", [{}, {"start": 5, "end": 31}, {"batch_size": 5}], ids=str)
def test_two_layers_in_both_ways(few_positions, options):
    model = Net(layers)
    model.signal = nn.Parameter(torch.randn(6, L, generator=torch.Generator().manual_seed(2)) * torch.exp(-torch.arange(L) / 9))
    assert_exact(model.eval(), sequences(3), **options)
