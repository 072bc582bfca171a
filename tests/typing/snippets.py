"""Calls as users write them, for `tests/test_types.py`: mypy knows what each returns, and refuses what is wrong.

A line with ``# wrong`` must be an error; every other must not.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import assert_type

import yuzu
from yuzu.attribution import hypothetical, mean_effect, projected
from yuzu.examples import load_ctcf_model, load_ctcf_peaks
from yuzu.plot import plot_attribution
from yuzu.product import apply_pairwise
from yuzu.sequence import reorder_alphabet
from yuzu.taylor import ism, takegrad

model = load_ctcf_model()
X = load_ctcf_peaks().X
as_numpy: npt.NDArray[np.int8] = X.numpy().astype(np.int8)

# the kind that comes in is the kind that goes out
assert_type(yuzu.yuzu_ism(model, X), torch.Tensor)
assert_type(yuzu.yuzu_ism(model, X, output="l2"), torch.Tensor)
assert_type(yuzu.naive_ism(model, X), torch.Tensor)
assert_type(yuzu.hybrid_ism(model, X), torch.Tensor)
assert_type(takegrad(X, model), torch.Tensor)
assert_type(ism(X, model), torch.Tensor)
assert_type(hypothetical(X), torch.Tensor)
assert_type(mean_effect(X, as_numpy), torch.Tensor)
assert_type(yuzu.saturation_mutagenesis(model, X), torch.Tensor)
arrays: list[npt.NDArray[Any]] = [
    yuzu.yuzu_ism(model, as_numpy),
    yuzu.naive_ism(model, as_numpy),
    yuzu.hybrid_ism(model, as_numpy),
    takegrad(as_numpy, model),
    ism(as_numpy, model),
    projected(as_numpy, X),
    yuzu.saturation_mutagenesis(model, as_numpy),
    reorder_alphabet(as_numpy, "ACGT", "AGCT"),
]

# differences and predictions come in the container that the model returns: a tensor, or something of any type
delta: torch.Tensor = yuzu.yuzu_ism(model, X, output="delta", target=0)
heads: Any = yuzu.predict(model, X)  # of a model that returns a dict
print(heads["counts"])
scores, layers, parts = yuzu.yuzu_ism(model, X, return_timings=True)
assert_type(layers, list[list[float]])
raw = yuzu.saturation_mutagenesis(model, X, raw_outputs=True)
assert_type(raw, yuzu.SaturationMutagenesisRawResult)

precomputation = yuzu.precompute(model, 100, device="cpu")
assert_type(precomputation, yuzu.Precomputation)
assert_type(yuzu.Precomputation.load("ctcf.yuzu"), yuzu.Precomputation)
assert_type(yuzu.check(model, X, precomputation).summary, str)
print(plot_attribution(delta[0]).logo.get_title())

integer: int = yuzu.yuzu_ism(model, X)  # wrong
integer = yuzu.yuzu_ism(model, as_numpy)  # wrong
integer = yuzu.yuzu_ism(model, X, output="delta")  # wrong
integer = yuzu.naive_ism(model, X, output="prediction")  # wrong
integer = yuzu.predict(model, X)  # wrong
integer = apply_pairwise(yuzu.yuzu_ism, model, X, ())  # wrong
integer = yuzu.saturation_mutagenesis(model, X)  # wrong
integer = yuzu.hybrid_ism(model, X)  # wrong
integer = hypothetical(X)  # wrong
tensor: torch.Tensor = yuzu.yuzu_ism(model, as_numpy)  # wrong
yuzu.yuzu_ism("model.pt", X)  # wrong
yuzu.yuzu_ism(model, X, "ctcf.yuzu")  # wrong
yuzu.yuzu_ism(model, X, outputs="delta")  # wrong
