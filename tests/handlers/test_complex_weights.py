"""Convolutions with complex weights, from end to end."""

import pytest
import torch
import torch.nn.functional as F

from tests.handlers.picked import Net, assert_exact, sequences

L = 40


@pytest.mark.parametrize("options", [{}, {"padding": 2, "dilation": 2}, {"stride": 2}], ids=str)
def test_a_convolution_with_complex_weights(options):
    def function(m, x):
        weight = m.weight.to(torch.complex128 if x.dtype == torch.float64 else torch.complex64)
        return F.conv1d(x.to(weight.dtype), weight, **options).abs().mean(2)

    assert_exact(Net(function, complex_weight=True).eval(), sequences(2))
