"""`yuzu_ism` and `naive_ism` called as tangermeme calls its functions."""

import torch

from tests.contract import with_args
from tests.oracle import assert_close, assert_right, oracle
from tests.small_models import one_hot, sequences

L = 30


def apply_pairwise(func, model, X, alpha, args=None, batch_size=32, device="cpu", verbose=False, **kwargs):
    """As in tangermeme: every sequence with every row of ``alpha``, handed to ``func`` in tangermeme's calling "
    "convention."""
    n, m = len(X), len(alpha)
    X_all = X.repeat_interleave(m, 0)
    alpha_all = alpha.repeat(n, 1)
    rest = () if args is None else tuple(a.repeat_interleave(m, 0) for a in args)
    result = func(
        model, X_all, args=(alpha_all, *rest), batch_size=batch_size, device=device, verbose=verbose, **kwargs
    )
    return result.reshape(n, m, *result.shape[1:])


def marginalize(func, model, X, motif, start, args=None, batch_size=32, device="cpu", verbose=False, **kwargs):
    """As in tangermeme: ``func`` before and after a motif is inserted."""
    after = X.clone()
    after[:, :, start : start + motif.shape[1]] = motif
    return tuple(
        func(model, x, args=args, batch_size=batch_size, device=device, verbose=verbose, **kwargs) for x in (X, after)
    )


def test_tangermeme_calling_convention(ism):
    model, X = with_args(), sequences(2, L, dtype=torch.int8)
    scales = torch.tensor([[0.5], [1.0], [2.0]])
    result = apply_pairwise(ism, model, X, scales, start=5, end=9)
    assert result.shape == (2, 3, 4, 4)
    for j in range(3):
        truth = oracle(model, X, args=(scales[j : j + 1].expand(2, 1),), start=5, end=9)["l2"]
        assert_close(result[:, j], truth)


def test_tangermeme_marginalize(ism, net):
    X = sequences(2, L, dtype=torch.int8)
    before, after = marginalize(ism, net, X, one_hot("TGACTCA").to(torch.int8), 10, output="delta", target=1)
    changed = X.clone()
    changed[:, :, 10:17] = one_hot("TGACTCA").to(torch.int8)
    assert_right(before, net, X, output="delta", target=1)
    assert_right(after, net, changed, output="delta", target=1)
