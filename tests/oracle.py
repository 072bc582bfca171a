"""The oracle: in-silico saturation mutagenesis by brute force, written without the library; and comparisons with it."""

import copy

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

EXACT = 1e-5  # relative L2 error that is always good enough in float32

LARGEST = 1e-4  # largest error of any one score, relative to the largest score

FLOAT64 = 1e-10  # both, in float64


def oracle(
    model,
    X,
    *,
    args=(),
    func=None,
    target=None,
    start=0,
    end=None,
    ranges=None,
    replace_with=None,
    dtype=torch.float64,
    device="cpu",
    one_by_one=False,
):
    """Run ``model`` on every mutant of every sequence: a sequence and its mutants in one batch, or each alone.

    Returns the predictions and the signed deltas, each in the container that the model (after ``func``) returns, and
    the L2 scores. ``replace_with`` is a ``(C, width)`` tensor here.
    """
    model_copy = copy.deepcopy(model).to(device=device, dtype=dtype).eval()
    X = torch.as_tensor(X).to(device=device, dtype=dtype)
    args = [torch.as_tensor(a).to(device) for a in args]
    args = [a.to(dtype) if a.is_floating_point() else a for a in args]
    n, c, length = X.shape
    if ranges is None and replace_with is None:
        positions = range(length)[start:end]
        edits = [(p, p + 1, torch.eye(c)[a][:, None]) for a in range(c) for p in positions]
        shape = (c, len(positions))
    else:
        places = [(p, p + 1) for p in range(length)[start:end]] if ranges is None else ranges
        given = torch.zeros(c, places[0][1] - places[0][0]) if replace_with is None else replace_with
        edits = [(first, stop, given) for first, stop in places]
        shape = (len(places),)

    def run(rows, i):
        y = model_copy(rows, *(a[i : i + 1].expand(len(rows), *a.shape[1:]).clone() for a in args))
        leaves, spec = pytree.tree_flatten(y if func is None else func(y))
        leaves = [leaf if target is None else leaf[(slice(None), target)] for leaf in leaves]
        return [leaf.detach().double().cpu() for leaf in leaves], spec

    predictions, deltas = [], []
    with torch.no_grad():
        for i in range(n):
            rows = X[i : i + 1].repeat(1 + len(edits), 1, 1)  # the first is the reference
            for row, (first, stop, written) in zip(rows[1:], edits, strict=True):
                row[:, first:stop] = written.to(row)
            if one_by_one:
                found = [run(row[None], i) for row in rows]
                leaves, spec = [torch.cat(leaf) for leaf in zip(*(f[0] for f in found), strict=True)], found[0][1]
            else:
                leaves, spec = run(rows, i)
            predictions.append([y[1:].reshape(*shape, *y.shape[1:]) for y in leaves])
            deltas.append([(y[1:] - y[:1]).reshape(*shape, *y.shape[1:]) for y in leaves])
    prediction = [torch.stack(leaf) for leaf in zip(*predictions, strict=True)]
    delta = [torch.stack(leaf) for leaf in zip(*deltas, strict=True)]
    squares = sum(d.reshape(n, *shape, -1).square().sum(-1) for d in delta)
    return {
        "prediction": pytree.tree_unflatten(prediction, spec),
        "delta": pytree.tree_unflatten(delta, spec),
        "l2": squares.sqrt(),
    }


def errors(result, truth):
    """Relative L2 error, and largest error over the largest value."""
    result, truth = torch.as_tensor(result).double(), torch.as_tensor(truth).double()
    assert result.shape == truth.shape, f"shape {tuple(result.shape)}, expected {tuple(truth.shape)}"
    assert bool(torch.isfinite(result).all()), "result is not finite"
    difference = result - truth
    if float(truth.abs().max()) == 0:
        return float(difference.norm()), float(difference.abs().max())
    return float(difference.norm() / truth.norm()), float(difference.abs().max() / truth.abs().max())


def assert_close(result, truth, tolerance=EXACT, largest=LARGEST):
    """Both errors of every tensor of the result, which must sit in the same container as the truth."""
    found, spec = pytree.tree_flatten(result)
    wanted, wanted_spec = pytree.tree_flatten(truth)
    assert spec == wanted_spec, f"container {spec}, expected {wanted_spec}"
    for a, b in zip(found, wanted, strict=True):
        relative, worst = errors(a, b)
        assert relative <= tolerance, f"relative L2 error {relative:.2e} > {tolerance:.2e}"
        assert worst <= largest, f"largest error {worst:.2e} of the largest score > {largest:.2e}"


def assert_right(result, model, X, *, output="l2", device="cpu", **kwargs):
    """The result against brute force in float64: within 1e-5, or float32 brute force's own error if that is larger.

    For a float64 model within 1e-10.
    """
    truth = oracle(model, X, **kwargs)[output]
    assert any(float(t.abs().max()) > 1e-3 for t in pytree.tree_leaves(truth)), "the test is empty: nothing changes"
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if dtype == torch.float64:
        for leaf in pytree.tree_leaves(result):
            assert torch.as_tensor(leaf).dtype == torch.float64
        assert_close(result, truth, FLOAT64, FLOAT64)
        return
    assert pytree.tree_structure(result) == pytree.tree_structure(truth)
    for i, (leaf, t) in enumerate(zip(pytree.tree_leaves(result), pytree.tree_leaves(truth), strict=True)):
        assert torch.as_tensor(leaf).dtype == torch.float32
        tolerance = EXACT
        if errors(leaf, t)[0] > tolerance:
            naive = oracle(model, X, dtype=torch.float32, device=device, **kwargs)[output]
            tolerance = max(tolerance, errors(pytree.tree_leaves(naive)[i], t)[0])
        assert_close(leaf, t, tolerance, LARGEST)


def assert_right_or_known(result, model, X, reason, *, bound=2e-5, output="l2", **kwargs):
    """`assert_right`, but a miss that is known is an expected failure, with its reason. An error above ``bound`` fails."""
    assert errors(result, oracle(model, X, **kwargs)[output])[0] <= bound
    try:
        assert_right(result, model, X, output=output, **kwargs)
    except AssertionError:
        pytest.xfail(reason)


def assert_same(a, b):
    """Bitwise equality of two results, container and kind of array included."""
    found, spec = pytree.tree_flatten(a)
    wanted, wanted_spec = pytree.tree_flatten(b)
    assert spec == wanted_spec
    for x, y in zip(found, wanted, strict=True):
        assert type(x) is type(y) and x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
